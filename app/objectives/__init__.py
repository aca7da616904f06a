"""Objectives: what training minimises, and what is measured and answered.

objective.py        the base class: losses, weights, sums, metrics, answers
classification.py   one class an example
multilabel.py       any number of classes an example
regression.py       numbers
tokens.py           a class for each token; language models
keras_losses.py     losses and metrics of Keras, by name
"""

from app.objectives.classification import Classification
from app.objectives.keras_losses import KerasLoss
from app.objectives.multilabel import MultiLabel
from app.objectives.objective import Objective
from app.objectives.regression import Regression
from app.objectives.tokens import LanguageModel, TokenClassification

__all__ = [
    "Classification", "KerasLoss", "LanguageModel", "MultiLabel", "Objective", "Regression",
    "TokenClassification",
]  # fmt: skip
