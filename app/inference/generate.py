"""Generates text: adds to each prompt the words that a model of next words predicts, one by one.

    prompt   [CLS] it was            -> logits of the next word -> good
             [CLS] it was good       -> logits of the next word -> [SEP], the end

Each word is the likeliest (temperature 0), or drawn from softmax(logits / temperature). What is
drawn is a function of (seed, item, place), so it is the same on any number of ranks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from app.errors import UsageError
from app.inference.predictor import Reader
from app.inference.shards import Row
from app.objectives import LanguageModel, Objective
from app.training.state import State
from input.batches import DataSet

STEP = 8  # tokens: lengths are padded to a multiple, so that there are fewer shapes
COLUMNS = ["text", "added"]


@dataclass(frozen=True)
class Sampling:
    """How words are chosen.

    Attributes:
        words: added at most.
        temperature: 0: the likeliest.
        seed: of what is drawn.
    """

    words: int = 32
    temperature: float = 0.0
    seed: int = 0


def is_of_next_words(objective: Objective, data: DataSet) -> bool:
    """Returns whether a model continues texts.

    Raises:
        UsageError: it is a language model of another kind.
    """
    if not isinstance(objective, LanguageModel):
        return False
    if not getattr(data, "is_of_next_words", False):
        raise UsageError(
            f"predict continues texts, for which a model of next words is needed, not of "
            f"{type(data).__name__}: train with data.predicts=next, or export the model."
        )
    return True


class Generator:
    """Turns prompts into rows.

    Args:
        reader: of the prompts.
        state: holds the model.
        data: whose vocabulary it has.
        sampling: how words are chosen.
        bar: shows progress, a step a shard.
    """

    def __init__(
        self, reader: Reader, state: State, data: Any, sampling: Sampling, bar: Any
    ) -> None:
        self.reader, self.state, self.sampling, self.bar = reader, state, sampling, bar
        self.words = data.wordpiece.vocabulary.words
        self.longest, self.end = data.wordpiece.max_length, data.special[1]
        self._next = tf.function(
            self._next_words,
            input_signature=[
                tf.TensorSpec(shape, tf.int32) for shape in ([None, None], [None], [None])
            ],
        )

    def run(self, todo: Sequence[int]) -> None:
        """Generates and writes these shards."""
        rows: dict[int, Row] = {}
        for shard, indices in self.reader.batches(todo):
            batch = self.reader.read(shard, indices)
            readable = [i for i in indices if i not in batch.errors]
            texts = self.continued(readable, batch.inputs)
            for i in indices:
                row: dict[str, Any] = {"index": i, "item": self.reader.items.name(i)}
                is_read = i in texts
                rows[i] = row | (
                    dict(zip(COLUMNS, texts[i], strict=True)) if is_read
                    else {"error": batch.errors[i]}
                )  # fmt: skip
            every = self.reader.shards.indices(shard)
            if all(i in rows for i in every):
                self.reader.shards.write(shard, [rows.pop(i) for i in every])
                self.bar.update()

    def continued(self, items: Sequence[int], inputs: Any) -> dict[int, tuple[str, str]]:
        """Returns of each item the whole text, and what was added to it.

        Args:
            items: their indices, from which what is drawn follows.
            inputs: int32 [B, T], `[CLS] ... [SEP]`, padded; B is at least the number of items.
        """
        if inputs is None:
            return {}
        rows = [[int(k) for k in row if k and k != self.end] for row in inputs.numpy()]
        prompts = [len(row) for row in rows]
        numbers = np.array([*items, *([-1] * (len(rows) - len(items)))], np.int32)
        running = set(range(len(items)))
        for _ in range(self.sampling.words):
            running = {
                r for r in running if len(rows[r]) < self.longest and rows[r][-1] != self.end
            }
            if not running:
                break
            longest = -(-max(map(len, rows)) // STEP) * STEP
            padded = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
            found = self._next(padded, np.array([max(len(r), 1) for r in rows], np.int32), numbers)
            for r in running:
                rows[r].append(int(found[r]))
        return {
            i: (self.text(row), self.text(row[prompt:]))
            for i, row, prompt in zip(items, rows, prompts, strict=False)
        }

    def text(self, ids: Sequence[int]) -> str:
        """Joins WordPieces to a text, without special ones."""
        words = (self.words[k] for k in ids)
        joined = " ".join(word for word in words if not re.fullmatch(r"\[[A-Z]+\]", word))
        joined = joined.replace(" ##", "").removeprefix("##")
        joined = re.sub(r" ([.,!?;:%)\]}])", r"\1", joined)
        return re.sub(r" ' (s|t|re|ve|ll|d|m)\b", r"'\1", joined)

    def _next_words(self, ids: tf.Tensor, lengths: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Returns the next word of each row, int32 [B].

        Args:
            ids: int32 [B, T].
            lengths: tokens of each row, int32 [B].
            items: their indices, int32 [B].
        """
        logits = tf.gather(self.state.outputs(ids), lengths - 1, batch_dims=1)  # [B, V]
        if self.sampling.temperature:

            def draw(about: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
                key = tf.random.experimental.stateless_fold_in([self.sampling.seed, 0], about[0])
                key = tf.random.experimental.stateless_fold_in(key, about[1])
                uniform = tf.random.stateless_uniform([logits.shape[-1]], key, 1e-20, 1.0)
                return -tf.math.log(-tf.math.log(uniform))

            # The largest of logits and Gumbel noise is a sample of their softmax.
            noise = tf.map_fn(draw, (items, lengths), fn_output_signature=tf.float32)
            logits = logits / self.sampling.temperature + noise
        return tf.argmax(logits, -1, tf.int32)
