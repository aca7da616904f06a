"""Tokenises texts as BERT does (WordPiece, arXiv:1810.04805), with TensorFlow Text's operators.

The library's own lower-casing folds more than BERT's does (NFKC decomposes "½"), so texts are
cleaned by other operators, as in the reference: control characters removed, lower case, accents
removed (NFD). The library splits on punctuation and Chinese characters, except where it differs
from the reference: it always splits Chinese characters, and counts a word's length in bytes.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text

from input.text import vocabulary
from input.text.vocabulary import END, START

STEP = 8  # lengths are rounded up to a multiple, so that there are fewer shapes
LONGEST = 100  # letters of a word; longer ones are unknown
UNKNOWN_WORD = "\ue000"  # private use, which no cleaned text contains
# All but " ".
SPACES = r"[\t\n\r\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]"
PUNCTUATION = r"\p{P}!-/:-@\[-`{-~"
CHINESE = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)


class WordPiece:
    """Maps texts to ids, `[CLS] ... [SEP]`, with the vocabulary of a folder in BERT's format.

    Args:
        folder: see `vocabulary.read`.
        max_length: the most tokens of a text, with `[CLS]` and `[SEP]`; longer texts are cut.

    Raises:
        InputError: there is no vocabulary, or it is not a BERT's.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        self.vocabulary = vocabulary.read(folder)
        words = self.vocabulary.words
        self.size, self.max_length = len(words), max_length
        self.digest = self.vocabulary.digest
        places = {word: place for place, word in enumerate(words)}
        self._start, self._end = places[START], places[END]
        # The library needs each word once: words that no text can contain get unused names.
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
        """Returns the number of tokens of each text, uncut, with `[CLS]` and `[SEP]`."""
        return self.pieces(texts).row_lengths() + 2

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:  # string [b] -> int32 [b, T]
        """Returns ids, padded with 0 to the longest text, rounded up to a multiple of 8."""
        tokens = self.pieces(texts)[:, : self.max_length - 2]
        column = tf.ones([tf.shape(texts)[0], 1], tf.int32)
        whole = tf.concat([column * self._start, tokens, column * self._end], 1)
        longest = tf.cast(whole.bounding_shape()[1], tf.int32)
        length = tf.minimum(-(-longest // STEP) * STEP, self.max_length)
        return whole.to_tensor(shape=tf.stack([-1, length]))

    def pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of each text's WordPieces, without `[CLS]` and `[SEP]`, uncut."""
        texts = self._clean(texts)
        if not self.vocabulary.splits_chinese:
            return self._tokens_of_words(texts, PUNCTUATION)
        has_long = tf.reduce_any(tf.strings.regex_full_match(texts, f".*[^ ]{{{LONGEST + 1}}}.*"))
        return tf.cond(
            has_long,
            lambda: self._tokens_of_words(texts, PUNCTUATION + CHINESE),
            lambda: self._tokenizer.tokenize(texts),
        )

    def _tokens_of_words(self, texts: tf.Tensor, separate: str) -> tf.RaggedTensor:
        """Tokenises texts that are split by plain operators.

        Args:
            texts: cleaned.
            separate: characters that are a word each, as a regular expression's class.
        """
        words = tf.strings.split(tf.strings.regex_replace(texts, f"([{separate}])", r" \1 "))
        is_long = tf.strings.length(words.flat_values, "UTF8_CHAR") > LONGEST
        words = words.with_flat_values(tf.where(is_long, UNKNOWN_WORD, words.flat_values))
        return self._tokenizer.tokenize(words).merge_dims(-2, -1)

    def _clean(self, texts: tf.Tensor) -> tf.Tensor:
        texts = tf.strings.regex_replace(texts, SPACES, " ")
        texts = tf.strings.regex_replace(texts, r"[\x{FFFD}\p{Cc}\p{Cf}\p{Co}]", "")
        if self.vocabulary.is_lower:
            # The reference lower-cases each letter by itself. The library has another sigma at a
            # word's end, and its treatment of I depends on the process's locale.
            texts = tf.strings.regex_replace(texts, "\u03a3", "\u03c3")
            if not self.vocabulary.strips_accents:  # else the dot is removed anyway
                texts = tf.strings.regex_replace(texts, "\u0130", "i\u0307")
            texts = tf.strings.lower(tf.strings.lower(texts), encoding="utf-8")  # ASCII first
        if self.vocabulary.strips_accents:
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}", "")
        return texts
