"""Text classification data: the configuration, readable without TensorFlow.

source (sources.py, text_files.py)   ids -> texts, labels
order (order.py)                     micro-batch number -> ids
wordpiece (wordpiece.py)             texts -> int32 [b, T]
batches (text_set.py)                the three, overlapped with the training step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from input.text_set import TextSet


@dataclass(frozen=True)
class Text:
    """One data set of labelled texts.

    Attributes:
        dataset: `movie_sentences`, any TFDS text classification set (`imdb_reviews`,
            `glue/sst2`, `yelp_polarity_reviews`, ...), or a file: `.tsv`, `.csv` with a line
            of column names, `.jsonl` with an object a line.
        vocabulary: `minilm`, or a folder with a BERT `vocab.txt`.
        max_length: tokens kept of a text, `[CLS]` and `[SEP]` counted; longer ones are cut.
        text_field, label_field: names of the columns or features.
        train_split: of a TFDS set.
        evaluation_split: of a TFDS set; None takes `test`, `validation` or `val`.
        evaluation_file: of a file; None holds out a tenth of it, chosen by the texts' digests.
        classes: of a file, in order of their numbers; none: the sorted labels of `dataset`.
        has_baseline: compare with TF-IDF and logistic regression at the end of training.
    """

    dataset: str = "movie_sentences"
    vocabulary: str = "minilm"
    max_length: int = 128
    text_field: str = "text"
    label_field: str = "label"
    train_split: str = "train"
    evaluation_split: str | None = None
    evaluation_file: str | None = None
    classes: tuple[str, ...] = ()
    has_baseline: bool = True

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise ValueError("max_length must be at least 3: two marks and a token")

    def prepare(self, data_dir: str) -> str:
        """Fetches vocabulary and data set if they are not there; reports what is cut."""
        from input import text_set

        return text_set.prepare(self, data_dir)

    def open(self, data_dir: str) -> TextSet:
        """Opens the prepared data set; raises InputError if it is not prepared."""
        from input import text_set

        return text_set.TextSet(self, data_dir)
