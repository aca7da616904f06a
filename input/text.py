"""Text classification data: the configuration, readable without TensorFlow.

source (sources.py, text_files.py)   ids -> texts, labels
order (order.py)                     micro-batch number -> ids
wordpiece (wordpiece.py)             texts -> int32 [b, T]
batches (text_set.py)                the three, overlapped with the training step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from input import plain

if TYPE_CHECKING:
    from input.text_set import TextSet

VOCABULARY = "minilm"  # where nothing says which


@dataclass(frozen=True)
class Text:
    """One data set of labelled texts.

    Attributes:
        dataset: `movie_sentences`, any TFDS text classification set (`imdb_reviews`,
            `glue/sst2`, `yelp_polarity_reviews`, ...), or a file: `.tsv`, `.csv` with a line
            of column names, `.jsonl` or `.json` with an object a line or a list of them; also
            packed (`.gz`), in UTF-16, or separated by semicolons.
        vocabulary: `minilm`, or a folder with the `vocab.txt` or `tokenizer.json` of a BERT; None:
            that of the weights which the model starts from, or `minilm` (`config.resolved`).
        max_length: tokens kept of a text, `[CLS]` and `[SEP]` counted; longer ones are cut.
        text_field, label_field: names of the columns or features.
        train_split: of a TFDS set.
        evaluation_split: of a TFDS set; None takes `test`, `validation` or `val`.
        evaluation_file: of a file; None holds out a tenth of it, chosen by the texts' digests.
        classes: of a file, in order of their numbers; none: the sorted labels of `dataset`.
        has_baseline: compare with TF-IDF and logistic regression at the end of training.
    """

    dataset: str = "movie_sentences"
    vocabulary: str | None = None
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
            raise ValueError(
                f"max_length must be at least 3, two marks and a token, not {self.max_length}"
            )
        for name in ("dataset", "vocabulary", "text_field", "label_field", "train_split"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must not be empty")
        if self.text_field == self.label_field:
            raise ValueError(f"text_field and label_field must differ, not be {self.text_field!r}")
        if self.classes and not 1 < len(self.classes) == len(set(self.classes)):
            raise ValueError(f"classes must be 2 or more, all different, not {self.classes}")
        if self.is_file and (self.train_split != "train" or self.evaluation_split):
            raise ValueError(
                "train_split and evaluation_split are of TFDS sets: of a file set "
                "data.evaluation_file"
            )
        if not self.is_file and (self.evaluation_file or self.classes):
            raise ValueError(
                "evaluation_file and classes are of files: of a TFDS set, set data.evaluation_split"
            )

    @property
    def is_file(self) -> bool:
        """Whether `dataset` is a file."""
        return plain.is_file_name(self.dataset)

    @property
    def limits(self) -> dict[str, int]:
        """The least that fields of a model must be, as far as it is known without the data."""
        return {"positions": self.max_length}

    def prepare(self, data_dir: str) -> str:
        """Fetches vocabulary and data set if they are not there; reports what is cut."""
        from input import text_set

        return text_set.prepare(self, data_dir)

    def open(self, data_dir: str) -> TextSet:
        """Opens the prepared data set; raises InputError if it is not prepared."""
        from input import text_set

        return text_set.TextSet(self, data_dir)
