"""Optimizers: how a gradient moves a weight.

optimizer.py          the base class, and how to write your own
momentum.py           SGD, LARS
adam.py               AdamW, LAMB
keras_optimizer.py    an optimizer of Keras, by its name
keras_rules.py        which of Keras' optimizers these are, and why not the others
"""

from collections.abc import Mapping

from app.optimizers.adam import LAMB, AdamW
from app.optimizers.keras_optimizer import KerasOptimizer
from app.optimizers.momentum import LARS, SGD
from app.optimizers.optimizer import Optimizer, is_decayed

__all__ = [
    "LAMB", "LARS", "OPTIMIZERS", "SGD", "AdamW", "KerasOptimizer", "Optimizer", "is_decayed",
]  # fmt: skip

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "sgd": SGD, "lars": LARS, "adamw": AdamW, "lamb": LAMB, "keras": KerasOptimizer,
}  # fmt: skip
