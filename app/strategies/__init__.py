"""Strategies other than one data-parallel step, each imported only where it is chosen.

partition          the model cut in stages              --stages, --tensor
compression        gradients compressed on the wire     update.compression
adasum             gradients combined in pairs          update.kind=adasum
local_sgd          processes that step by themselves    update.kind=local_sgd
parameter_server   weights on servers                   update.kind=parameter_server
elastic            a run whose ranks change             --elastic

`app/training/strategy.py` imports them by name; data-parallel training works without this folder.
"""
