"""BERT's WordPiece tokenisation (arXiv:1810.04805), as a graph of TensorFlow Text's operators.

The library's own lower-casing folds more than BERT's does (NFKC takes "½" apart), so the
text is cleaned here as the reference does it: control characters out, lower case, accents
off (NFD). The rest, splitting on punctuation and CJK characters included, is the library's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text

from input import InputError

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
STEP = 8  # lengths are rounded up to a multiple, so that fewer shapes meet the kernels


class WordPiece:
    """Texts to ids, `[CLS] ... [SEP]`, with the vocabulary of a folder in the BERT format.

    Args:
        folder: holds `vocab.txt` and, if the text keeps its case, `tokenizer_config.json`.
        max_length: tokens kept of a text, the two marks counted.

    Raises:
        InputError: no vocabulary, or one without BERT's marks.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        try:
            words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
            settings = folder / "tokenizer_config.json"
            config = json.loads(settings.read_text()) if settings.exists() else {}
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder} is no BERT vocabulary ({error}): it must hold vocab.txt."
            ) from None
        marks = [m for m in (PAD, UNKNOWN, START, END) if m not in words]
        if marks or words[0] != PAD:
            raise InputError(
                f"{folder / 'vocab.txt'} must begin with {PAD} and hold {UNKNOWN}, {START} and "
                f"{END}; it begins with {words[:1]} and lacks {marks}."
            )
        self.size, self.max_length = len(words), max_length
        self.digest = hashlib.sha256("\n".join(words).encode()).hexdigest()
        self.is_lower = config.get("do_lower_case", True)
        self._start, self._end = words.index(START), words.index(END)
        self._tokenizer = tf_text.FastBertTokenizer(
            words, token_out_type=tf.int32, support_detokenization=False, no_pretokenization=False
        )

    def lengths(self, texts: tf.Tensor) -> tf.Tensor:  # string [b] -> int64 [b]
        """Tokens of each text, uncut, the two marks counted."""
        return self._tokens(texts).row_lengths() + 2

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:  # string [b] -> int32 [b, T]
        """Ids, padded with 0 to a multiple of 8 that holds the longest."""
        tokens = self._tokens(texts)[:, : self.max_length - 2]
        column = tf.ones([tf.shape(texts)[0], 1], tf.int32)
        whole = tf.concat([column * self._start, tokens, column * self._end], 1)
        longest = tf.cast(whole.bounding_shape()[1], tf.int32)
        length = tf.minimum(-(-longest // STEP) * STEP, self.max_length)
        return whole.to_tensor(shape=tf.stack([-1, length]))

    def _tokens(self, texts: tf.Tensor) -> tf.RaggedTensor:
        tokens = self._tokenizer.tokenize(self._clean(texts))
        return tokens.merge_dims(-2, -1) if tokens.ragged_rank > 1 else tokens

    def _clean(self, texts: tf.Tensor) -> tf.Tensor:
        texts = tf.strings.regex_replace(texts, r"[\t\n\r]", " ")
        texts = tf.strings.regex_replace(texts, r"[\x{FFFD}\p{Cc}\p{Cf}\p{Co}]", "")
        if self.is_lower:
            texts = tf.strings.lower(texts, encoding="utf-8")
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}", "")
        return texts
