"""Trains a model, data-parallel, from setup to result.

In the order of reading:

trainer            the loop: steps, and what is due after them
setup              before the first step: join the job, open the data, build the state
agreement          what ranks do together, so that all go on or none
data               the data of a run, and what they mean
batch_stream       this process's micro-batches, in the order of steps
building, state    the model on its devices, and every variable that training changes
step               the protocol of a step, and the step on one device
differentiation    forward and backward of a part of the model
sums, joined       sums over micro-batches; small tensors as one
exchange           sums over processes
update, ordered    norm, clipping and the change of weights, with the same bits on every replica
per_weight         which weights decay, and factors of the learning rate
evaluation         exact metrics
divergence         replicas that differ
nonfinite          steps that are not finite
checkpoint         saving and restoring
result             result.json
strategy           imports what is not data-parallel, by name (`app/strategies`)

trained            opens a run's newest checkpoint for the commands that use it
kernels            chooses CPU kernels, before TensorFlow is imported
"""
