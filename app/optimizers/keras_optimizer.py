"""Stock optimizers of Keras, moved by this project's step: the same numbers on every layout."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.bounds import NonNegative, violation
from app.optimizers.keras_rules import ELSEWHERE, REFUSED, RULES
from app.optimizers.optimizer import Optimizer, is_decayed

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class KerasOptimizer(Optimizer):
    """An optimizer of Keras whose update is a function of one weight, its gradient and its slots.

        KerasOptimizer("rmsprop", arguments=(("rho", 0.95), ("centered", True)))

    Accepted are sgd, rmsprop, adam, adamw, adagrad, adadelta, adamax, ftrl and lion: their updates
    are element by element, so they have the same bits on every layout. `keras_rules.REFUSED` has
    the others and why. Keras' own `update_step` computes the update, on this project's variables.

    The learning rate, clipping, moving averages, loss scaling and gradient accumulation are those
    of the experiment, not Keras'. So is the choice of weights that decay, not biases and
    normalisation; they decay as in Keras, w = w - rate * weight_decay * w before the update.

    Attributes:
        name: of the optimizer, in lower case.
        arguments: names and values of what it is given; others have Keras' defaults.
        weight_decay: None is Keras' default, 0.004 of adamw and otherwise 0.

    Raises:
        ValueError: there is no such optimizer or argument, or it is refused.
    """

    name: str = "adam"
    arguments: tuple[tuple[str, float | bool], ...] = ()
    weight_decay: NonNegative | None = None  # not on biases and normalisation

    def __post_init__(self) -> None:
        _check_name(self.name)
        rule, given = RULES[self.name], _pairs(self.arguments)
        for argument, value in given.items():
            _check_argument(self.name, argument, value)
        kept = [s for s in rule.slots if s not in rule.optional or given.get(rule.optional[s])]
        object.__setattr__(self, "slots", tuple(kept))

    def initial(self, slot: str, weight: tf.Variable) -> tf.Tensor:
        """See base class."""
        import tensorflow as tf

        argument, default = RULES[self.name].initial.get(slot, ("", 0.0))
        value = dict(self.arguments).get(argument, default)
        return tf.fill(weight.shape, tf.cast(value, weight.dtype))

    def update(
        self, weight: tf.Variable, gradient: tf.Tensor, slots: Sequence[tf.Variable],
        rate: tf.Tensor, count: tf.Tensor, ratio: tf.Tensor | None,
    ) -> None:  # fmt: skip
        """See base class."""
        import tensorflow as tf

        decay = self.weight_decay
        if decay is None:
            decay = RULES[self.name].weight_decay
        if decay and is_decayed(weight):
            weight.assign_sub(weight * decay * rate)
        optimizer = self._made(dict(zip(self.slots, slots, strict=True)), tf.cast(count, tf.int64))
        optimizer.build([weight])
        optimizer.update_step(gradient, weight, rate)

    def _made(self, slots: Mapping[str, tf.Variable], count: tf.Tensor) -> Any:
        """Makes the Keras optimizer for one weight, with these variables as its own."""
        import keras

        kind: Any = getattr(keras.optimizers, RULES[self.name].kind)

        class OnSlots(kind):
            @property
            def iterations(self) -> tf.Tensor:
                """Updates before this one."""
                return count - 1

            def add_variable_from_reference(
                self, reference_variable: Any, name: str, initializer: Any = "zeros"
            ) -> tf.Variable:
                """Returns the slot of this name instead of a new variable."""
                return slots[name]

        # Keras makes variables of its own for the rate and the steps, which are not used. A thread
        # of its own has no graph that is being made, in which none may be created any more.
        with ThreadPoolExecutor(1) as eager:
            return eager.submit(OnSlots, **_numbers(self.arguments)).result()


def _pairs(arguments: Any) -> dict[str, Any]:
    try:
        return dict(arguments)
    except (TypeError, ValueError):
        raise ValueError(
            f'arguments must be pairs of a name and a value, as (("rho", 0.9),), not {arguments!r}'
        ) from None


def _numbers(arguments: tuple[tuple[str, float | bool], ...]) -> dict[str, float | bool]:
    """Returns the arguments with whole numbers as floats, as Keras insists on."""
    return {n: value if isinstance(value, bool) else float(value) for n, value in arguments}


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name in RULES:
        return
    low = str(name).lower()
    if low in RULES:
        raise ValueError(f"name must be in lower case, {low!r}, not {name!r}")
    if low in REFUSED:
        raise ValueError(f"Keras' {name} cannot be taken: {REFUSED[low]}")
    near = difflib.get_close_matches(low, RULES, n=1)
    hint = f" (nearest: {near[0]})" if near else ""
    raise ValueError(f"name must be one of {', '.join(RULES)}, not {name!r}{hint}")


def _check_argument(name: str, argument: Any, value: Any) -> None:
    kind, known = RULES[name].kind, RULES[name].arguments
    if argument in ELSEWHERE:
        raise ValueError(
            f"{argument} is not an argument of Keras' {kind} in an experiment: "
            f"{ELSEWHERE[argument]}, and leave it out"
        )
    if argument not in known:
        near = difflib.get_close_matches(str(argument), known, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ValueError(
            f"Keras' {kind} takes {', '.join(known)}, but no argument {argument!r}{hint}"
        )
    wanted = known[argument]
    if (wanted is bool) != isinstance(value, bool) or not isinstance(value, (bool, int, float)):
        raise ValueError(
            f"{argument} must be {'true or false' if wanted is bool else 'a number'}, not {value!r}"
        )
    if broken := violation(value, wanted):
        raise ValueError(f"{argument} must be {broken[1]}, not {value}")
