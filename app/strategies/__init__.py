"""Other ways to take a step than the data-parallel one, each imported only where it is chosen.

pipelined          the model cut in stages             --stages, --tensor
local_sgd          processes that step by themselves   update.kind=local_sgd
parameter_server   weights on servers                  update.kind=parameter_server
elastic            a run whose ranks change            --elastic

`app/training/strategy.py` chooses. Without this folder, data-parallel training works as before.
"""
