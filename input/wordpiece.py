"""BERT's WordPiece tokenisation (arXiv:1810.04805), as a graph of TensorFlow Text's operators.

The library's own lower-casing folds more than BERT's does (NFKC takes "½" apart), so the
text is cleaned here as the reference does it: control characters out, lower case, accents
off (NFD). Splitting on punctuation and Chinese characters is the library's, where it does what the
reference does: it knows no text whose Chinese characters stay together, and counts a word's length
in bytes.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text

from input import vocabulary
from input.vocabulary import END, START

STEP = 8  # lengths are rounded up to a multiple, so that fewer shapes meet the kernels
LONGEST = 100  # letters of a word; longer ones are unknown
UNKNOWN_WORD = "\ue000"  # of private use: cleaned texts do not have it
SPACES = (
    r"[\t\n\r\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]"  # no " "
)
PUNCTUATION = r"\p{P}!-/:-@\[-`{-~"
CHINESE = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)


class WordPiece:
    """Texts to ids, `[CLS] ... [SEP]`, with the vocabulary of a folder in the BERT format.

    Args:
        folder: see `vocabulary.read`.
        max_length: tokens kept of a text, the two marks counted.

    Raises:
        InputError: no vocabulary, or one of another kind.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        self.vocabulary = vocabulary.read(folder)
        words = self.vocabulary.words
        self.size, self.max_length = len(words), max_length
        self.digest = self.vocabulary.digest
        places = {word: place for place, word in enumerate(words)}
        self._start, self._end = places[START], places[END]
        # The library wants each word once: those that no text can have get a name that none has.
        once = [
            word
            if places[word] == place and word not in ("", "##") and UNKNOWN_WORD not in word
            else f"{UNKNOWN_WORD}{place}"
            for place, word in enumerate(words)
        ]
        self._tokenizer = tf_text.FastWordpieceTokenizer(
            once, token_out_type=tf.int32, max_bytes_per_word=4 * LONGEST,
            no_pretokenization=not self.vocabulary.splits_chinese,
        )  # fmt: skip

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
        texts = self._clean(texts)
        if not self.vocabulary.splits_chinese:
            return self._tokens_of_words(texts, PUNCTUATION)
        has_long = tf.reduce_any(tf.strings.regex_full_match(texts, f".*[^ ]{{{LONGEST + 1}}}.*"))
        return tf.cond(
            has_long,
            lambda: self._tokens_of_words(texts, PUNCTUATION + CHINESE),
            lambda: self._tokenizer.tokenize(texts),
        )

    def _tokens_of_words(self, texts: tf.Tensor, apart: str) -> tf.RaggedTensor:
        """Tokens of texts split by plain operators, each character of the class `apart` a word."""
        words = tf.strings.split(tf.strings.regex_replace(texts, f"([{apart}])", r" \1 "))
        is_long = tf.strings.length(words.flat_values, "UTF8_CHAR") > LONGEST
        words = words.with_flat_values(tf.where(is_long, UNKNOWN_WORD, words.flat_values))
        return self._tokenizer.tokenize(words).merge_dims(-2, -1)

    def _clean(self, texts: tf.Tensor) -> tf.Tensor:
        texts = tf.strings.regex_replace(texts, SPACES, " ")
        texts = tf.strings.regex_replace(texts, r"[\x{FFFD}\p{Cc}\p{Cf}\p{Co}]", "")
        if self.vocabulary.is_lower:
            # The reference lowers letter by letter, and always so. The library has another sigma
            # at a word's end, and what it makes of I depends on the locale of the process.
            texts = tf.strings.regex_replace(texts, "\u03a3", "\u03c3")
            if not self.vocabulary.strips_accents:  # or the dot goes in any case
                texts = tf.strings.regex_replace(texts, "\u0130", "i\u0307")
            texts = tf.strings.lower(tf.strings.lower(texts), encoding="utf-8")  # ASCII's first
        if self.vocabulary.strips_accents:
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}", "")
        return texts
