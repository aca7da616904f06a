"""Which of Keras' optimizers can be taken by name, with what arguments, and why not the others.

Everything is known without Keras, so that a mistake is answered before TensorFlow is imported. A
test compares this table with what each optimizer of the pinned Keras does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from app.bounds import Bound, Fraction, NonNegative, Positive

InnerFraction = Annotated[float, Bound("in (0, 1)", lambda x: 0 < x < 1)]
Power = Annotated[float, Bound("at most 0 and finite", lambda x: -float("inf") < x <= 0)]


class Rule(NamedTuple):
    """One of Keras' optimizers.

    Attributes:
        kind: its name in `keras.optimizers`.
        slots: names of the variables that it keeps for a weight, of the weight's shape.
        arguments: what it can be given, and of which type and bounds.
        optional: slots that it keeps only where an argument is not 0, and that argument.
        initial: the argument and its default that a slot begins as; else it is 0.
        weight_decay: Keras' default.
    """

    kind: str
    slots: tuple[str, ...]
    arguments: Mapping[str, Any]
    optional: Mapping[str, str] = {}
    initial: Mapping[str, tuple[str, float]] = {}
    weight_decay: float = 0.0


MOMENTS: Mapping[str, Any] = {"beta_1": Fraction, "beta_2": Fraction, "epsilon": Positive}
ADAM = Rule(
    "Adam", ("momentum", "velocity", "velocity_hat"), {**MOMENTS, "amsgrad": bool},
    optional={"velocity_hat": "amsgrad"},
)  # fmt: skip
ACCUMULATOR: Mapping[str, tuple[str, float]] = {"accumulator": ("initial_accumulator_value", 0.1)}

RULES: Mapping[str, Rule] = {
    "sgd": Rule(
        "SGD", ("momentum",), {"momentum": Fraction, "nesterov": bool},
        optional={"momentum": "momentum"},
    ),
    "rmsprop": Rule(
        "RMSprop", ("velocity", "momentum", "average_gradient"),
        {"rho": Fraction, "momentum": Fraction, "epsilon": Positive, "centered": bool},
        optional={"momentum": "momentum", "average_gradient": "centered"},
    ),
    "adam": ADAM,
    "adamw": ADAM._replace(kind="AdamW", weight_decay=0.004),
    "adagrad": Rule(
        "Adagrad", ("accumulator",),
        {"initial_accumulator_value": NonNegative, "epsilon": Positive}, initial=ACCUMULATOR,
    ),
    "adadelta": Rule(
        "Adadelta", ("accumulated_grad", "accumulated_delta_var"),
        {"rho": Fraction, "epsilon": Positive},
    ),
    "adamax": Rule("Adamax", ("momentum", "norm"), MOMENTS),
    "ftrl": Rule(
        "Ftrl", ("linear", "accumulator"),
        {
            "learning_rate_power": Power, "initial_accumulator_value": NonNegative,
            "l1_regularization_strength": NonNegative, "l2_regularization_strength": NonNegative,
            "l2_shrinkage_regularization_strength": NonNegative, "beta": NonNegative,
        },
        initial=ACCUMULATOR,
    ),
    "lion": Rule("Lion", ("momentum",), {"beta_1": InnerFraction, "beta_2": Fraction}),
}  # fmt: skip

REFUSED: Mapping[str, str] = {
    "adafactor": "its state has not the shape of the weight, and its step depends on means over "
    "whole weights, whose order of additions follows the number of threads",
    "lamb": "its step depends on norms of whole weights, whose order of additions follows the "
    "number of threads: take app.optimizers.LAMB, which adds in one order",
    "muon": "its step multiplies whole matrices, whose order of additions follows the number of "
    "threads, and which rule a weight has depends on its name",
    "nadam": "it keeps one number for all weights together (the product of its momenta), which no "
    "weight's own update advances",
    "schedulefreeadamw": "its weights in training are not those to evaluate, and on TensorFlow "
    "Keras reads its momentum after changing it, which is another rule than the paper's",
    "lossscaleoptimizer": "precision=float16 scales the loss for all processes alike",
    "multioptimizer": "it has several optimizers: set optimization.rate_factors and "
    "optimization.no_decay, or write a subclass of Optimizer",
}

ELSEWHERE: Mapping[str, str] = {
    "learning_rate": "set optimization.learning_rate and a schedule",
    "weight_decay": "set optimization.weight_decay, and no_decay for exceptions",
    "clipnorm": "set optimization.clip_norm, of all gradients together",
    "global_clipnorm": "set optimization.clip_norm",
    "clipvalue": "set optimization.clip_norm, of all gradients together",
    "use_ema": "set optimization.ema_decay",
    "ema_momentum": "set optimization.ema_decay",
    "ema_overwrite_frequency": "set optimization.ema_decay",
    "loss_scale_factor": "precision=float16 scales the loss",
    "gradient_accumulation_steps": "a step has global_batch / micro_batch of them already",
    "warmup_steps": "set optimization.warmup_epochs",
    "name": "checkpoints name the slots",
}
