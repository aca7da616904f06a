"""Objectives: what training minimises, and what is measured and answered.

objective.py        the base class: losses, weights, sums, metrics, answers
classification.py   one class an example
"""

from app.objectives.classification import Classification
from app.objectives.objective import Objective

__all__ = ["Classification", "Objective"]
