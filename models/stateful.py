"""Gives Keras layers their random and moving state as a function of the micro-batch.

Keras layers such as Dropout draw from a seed generator, which moves with every call, and layers
such as BatchNormalization assign moving averages in every call. Both would depend on which process
runs which micro-batch. Inside a `scope`, Keras' own stateless interface (`keras.StatelessScope`):

    seed generators   start from (experiment seed, micro-batch, block, number of the generator)
    what is assigned  is kept back, and recorded: the step assigns the mean over all micro-batches

So a moving average becomes m * old + (1 - m) * (mean over the micro-batches), once a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from models import ModelError

GENERATORS = 1 << 20  # what a seed is folded with, above what blocks use themselves
STATE_NAME = "seed_generator_state"  # Keras' name for the state of every seed generator


_GLOBAL_GENERATOR = (
    "{0} draws random numbers from Keras' global generator, whose order depends on the layout: "
    "give the layer a keras.random.SeedGenerator() and pass it as `seed`, or use the `seed` of "
    "`call`."
)
_TRAINABLE = "a trainable weight"
_ASSIGNS = (
    "a call of {0} assigns {1}, which is {2}, so micro-batches would see each other's values: "
    "compute the new value without assigning it, or keep it in a weight made by "
    "add_weight(trainable=False)."
)


class Scope(keras.StatelessScope):
    """Reads variables as an outer scope has them, and keeps what is assigned to them.

    Attributes:
        assigned: each variable that was assigned, and its last value, by the variable's id.
    """

    def __init__(self, values: list[tuple[keras.Variable, tf.Tensor]]) -> None:
        super().__init__(state_mapping=values, collect_losses=True, initialize_variables=False)
        self.assigned: dict[int, tuple[keras.Variable, tf.Tensor]] = {}

    def __enter__(self) -> Scope:
        super().__enter__()
        outer = self.original_scope
        if outer is not None:  # Keras reads the innermost scope only
            self.state_mapping: dict[int, Any] = outer.state_mapping | self.state_mapping
        return self

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        """Keeps an assigned value, which later reads in the scope return."""
        super().add_update(update)
        self.assigned[id(update[0])] = update


def seed_states(block: keras.Layer) -> list[keras.Variable]:
    """Returns the states of a block's seed generators, each once: no weights, and never saved."""
    weights = {id(v) for v in block.weights}
    return list({id(v): v for v in block.variables if id(v) not in weights}.values())


def has_state(block: keras.Layer) -> bool:
    """Returns whether a call of a built block may draw from a generator or move a variable."""
    return bool(seed_states(block) or block.non_trainable_weights)


@contextlib.contextmanager
def scope(block: keras.Layer, seed: tf.Tensor, place: int) -> Iterator[Scope | None]:
    """Calls inside it draw from this seed, and assign nothing; None for a block without state.

    Args:
        block: built.
        seed: of the micro-batch, int32 [2].
        place: of the block in the model.
    """
    if not has_state(block):
        yield None
        return
    values = []
    key = tf.random.experimental.stateless_fold_in(seed, place)
    for number, state in enumerate(seed_states(block), GENERATORS):
        drawn = tf.random.experimental.stateless_fold_in(key, number)
        values.append((state, tf.cast(tf.bitcast(drawn, tf.uint32), state.dtype)))
    # In a scope, Keras takes what regularizers read from its mapping.
    values += [(v, v.value) for v in block.trainable_weights if v.regularizer is not None]
    with Scope(values) as opened:
        yield opened


def moved(block: keras.Layer, scope: Scope) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Returns the weights that a call assigned, with their values, in the order of assignment.

    Raises:
        ModelError: something was assigned that is not the mean of what the micro-batches assign.
    """
    seeds = {id(v) for v in seed_states(block)}
    weights = {id(v) for v in block.non_trainable_weights}
    found = []
    for key, (variable, value) in scope.assigned.items():
        if key in seeds:
            continue
        if variable.name == STATE_NAME:
            raise ModelError(_GLOBAL_GENERATOR.format(block.name))
        if key not in weights:
            kind = _TRAINABLE if variable.trainable else "not among its weights"
            raise ModelError(_ASSIGNS.format(block.name, variable.path, kind))
        if variable.dtype != "float32":
            raise ModelError(
                f"a call of {block.name} assigns {variable.path} of type {variable.dtype}, but "
                "what micro-batches assign is averaged over a step, for which it must be float32: "
                "make it a float32 weight whose mean is meant, or do not assign it in `call`."
            )
        found.append((variable, value))
    return found


@contextlib.contextmanager
def creating(block: keras.Layer) -> Iterator[None]:
    """Creates a block's variables in its first call, and undoes what that call assigns.

    Raises:
        ModelError: the call makes a variable that is not among the block's, or assigns a trainable
            one.
    """
    kept = [(v.value, v.value.read_value()) for v in block.non_trainable_variables if _exists(v)]
    created = []

    def creator(next_creator: Any, **arguments: Any) -> tf.Variable:
        variable = next_creator(**arguments)
        created.append((variable, variable.read_value()))
        return variable

    with tf.variable_creator_scope(creator):
        yield
    own = {id(v.value): v for v in block.variables}
    for variable, value in created:
        if id(variable) not in own:
            raise _unlisted(block, variable)
        if variable.trainable and not tf.reduce_all((variable == value) | (value != value)):
            raise ModelError(_ASSIGNS.format(block.name, own[id(variable)].path, _TRAINABLE))
    for variable, value in [*kept, *((v, value) for v, value in created if not v.trainable)]:
        variable.assign(value)


def _unlisted(block: keras.Layer, variable: tf.Variable) -> ModelError:
    name = variable.name.split("/")[-1].partition(":")[0]
    if name == STATE_NAME:
        return ModelError(_GLOBAL_GENERATOR.format(block.name))
    return ModelError(
        f"a call of {block.name} makes the variable {name!r}, which is not among the weights that "
        "Keras lists for it, so it would not be saved: make it by add_weight in `build`."
    )


def _exists(variable: keras.Variable) -> bool:
    return isinstance(variable.value, tf.Variable)


def move(variable: keras.Variable) -> None:
    """Moves a Keras variable to the device of the scope in which this is called.

    Keras has no public way to give a variable another tf.Variable: this is the only use of the
    private one, and a test pins it.
    """
    old = variable.value
    if isinstance(old, tf.Variable):
        variable._value = tf.Variable(
            old.read_value(), trainable=old.trainable, dtype=old.dtype, name=variable.name
        )
