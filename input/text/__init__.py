"""Configures text classification data, without importing TensorFlow.

datasets/, files.py          ids -> texts, labels
vocabulary.py, wordpiece.py  texts -> ids of WordPieces, int32 [b, T]
text_set.py, lengths.py      micro-batch number -> inputs, targets (with indexed.py, order.py)
token_set.py                 the same with targets of tokens: language models, case
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from input import remote, rows

if TYPE_CHECKING:
    from input.source import Source
    from input.text.text_set import TextSet

VOCABULARY = "minilm"  # the default


@dataclass(frozen=True)
class Text:
    """A data set of labelled texts.

    Attributes:
        dataset: `movie_sentences`, any TFDS text classification set (`imdb_reviews`,
            `glue/sst2`, `yelp_polarity_reviews`, ...), or a file: `.tsv` or `.csv` with a line
            of column names, `.jsonl` or `.json` with an object a line or a list of them; it may
            be compressed (`.gz`), in UTF-16, or separated by semicolons. Also a table as of
            `Images`: .parquet or .tar files, an s3:// URL, a folder of `datasets.save_to_disk`.
        vocabulary: `minilm`, or a folder with the `vocab.txt` or `tokenizer.json` of a BERT; None:
            that of the weights that the model starts from, or `minilm` (`config.resolved`).
        max_length: the most tokens of a text, with `[CLS]` and `[SEP]`; longer texts are cut.
        text_field, label_field: names of the columns or features.
        target: name of a column or feature of numbers to predict, in place of the classes of
            `label_field`: float32 [b, 1]. `movie_sentences` has `rating`, -4 to 4.
        train_split: of a TFDS set.
        evaluation_split: of a TFDS set; None: the first of `test`, `validation` and `val` that
            has labels.
        evaluation_file: of a file; None holds out a tenth of it, chosen by the texts' digests. Of a
            table None is its split `test`, `validation` or `val`, or else every fifth row.
        classes: of a file or table, in the order of their numbers; empty: its labels, sorted.
        predicts: what of a text is learned: its `label`, or of each token, int32 [b, T], the `next`
            word, the word itself where it was `masked`, or the `case` of the letters that an
            uncased vocabulary loses (`token_set.py`).
        has_baseline: whether to compare with a simple model after training.
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
    target: str | None = field(default=None, metadata={"came_later": True})
    predicts: Literal["label", "next", "masked", "case"] = field(
        default="label", metadata={"came_later": True}
    )

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise ValueError(
                f"max_length must be at least 3, [CLS], [SEP] and a token, not {self.max_length}"
            )
        for name in ("dataset", "vocabulary", "text_field", "label_field", "train_split", "target"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must not be empty")
        if self.text_field in (self.label_field, self.target):
            name = "label_field" if self.text_field == self.label_field else "target"
            raise ValueError(f"text_field and {name} must differ, not be {self.text_field!r}")
        if self.target and self.predicts != "label":
            raise ValueError(f"target is of predicts=label, not {self.predicts}: leave one out")
        if self.target and self.classes:
            raise ValueError(f"a target of numbers ({self.target}) has no classes: leave one out")
        if self.classes and not 1 < len(self.classes) == len(set(self.classes)):
            raise ValueError(f"classes must be 2 or more, all different, not {self.classes}")
        for name in (self.dataset, self.evaluation_file or ""):
            remote.require_no_credentials(name)
        if self._is_in_files and (self.train_split != "train" or self.evaluation_split):
            raise ValueError(
                "train_split and evaluation_split apply to TFDS sets: for a file, set "
                "data.evaluation_file"
            )
        if not self._is_in_files and (self.evaluation_file or self.classes):
            raise ValueError(
                "evaluation_file and classes apply to files: for a TFDS set, set "
                "data.evaluation_split"
            )

    @property
    def is_file(self) -> bool:
        """Whether `dataset` is a file."""
        return self._is_text_file and not self._is_table

    @property
    def _is_text_file(self) -> bool:
        """Whether `dataset` is a file by its name."""
        return rows.is_file_name(self.dataset)

    @property
    def _is_table(self) -> bool:
        return remote.is_table(self.dataset) or bool(self.target and self._is_text_file)

    @property
    def _fields(self) -> tuple[str, str]:
        return self.text_field, self.target or self.label_field

    @property
    def _is_in_files(self) -> bool:
        return self.is_file or self._is_table

    @property
    def limits(self) -> dict[str, int]:
        """Lower bounds of the model's fields that are known without the data."""
        return {"positions": self.max_length}

    def prepare(self, data_dir: str) -> str:
        """Writes vocabulary and data set below `data_dir` unless they are there, and checks them.

        Returns:
            A report on lengths and classes.

        Raises:
            InputError: the data cannot be had or used; names the text.
        """
        from input import datasets, labels, packages, survey

        lines = [packages.prepare_pretrained(self.vocabulary or VOCABULARY, data_dir)]
        if self._is_table:
            self._table_splits(data_dir, prepares=True)
        elif not self.is_file:
            lines.append(datasets.prepare(self.dataset, data_dir, self._fields))
        data = self.open(data_dir)
        lines += data.store_lengths()
        if self.predicts != "label":
            return "\n".join(lines)
        if data.targets.meaning != "class":
            return "\n".join([*lines, survey.report(self.dataset, data)])
        lines.append(f"{data.num_classes} classes")
        splits = {self.train_split: data.training, data.evaluation_split: data.held_out}
        counts = {name: labels.count(source) for name, source in splits.items()}
        return "\n".join([*lines, *labels.report(data.classes, counts)])

    def open(self, data_dir: str) -> TextSet:
        """Opens the prepared data set; raises InputError if it is not prepared."""
        from input import packages
        from input.text.text_set import TextSet
        from input.text.wordpiece import WordPiece

        folder = packages.pretrained(self.vocabulary or VOCABULARY, data_dir)
        wordpiece = WordPiece(folder, self.max_length)
        training, held_out, name = self.open_splits(data_dir)
        about = [self.dataset, self.train_split, self.text_field, str(len(training))]
        if digest := getattr(training, "digest", None):  # a file, which may change at any time
            about = [digest]
        given = (training, held_out, name, wordpiece, about, data_dir, self.has_baseline)
        if self.predicts == "label":
            return TextSet(*given)
        from input.text import token_set

        return token_set.KINDS[self.predicts](*given)

    def open_splits(self, data_dir: str) -> tuple[Source, Source, str]:
        """Returns training split, evaluation split and the latter's name.

        Raises:
            InputError: the data are not prepared; of a file, names the line that cannot be used.
        """
        if self._is_table:
            return self._table_splits(data_dir, prepares=False)
        fields = self._fields
        if self.is_file:
            from input.text import files

            return files.open_splits(self.dataset, self.evaluation_file, fields, self.classes)
        from input import datasets

        return datasets.open_splits(
            self.dataset, data_dir, self.train_split, self.evaluation_split, fields
        )

    def _table_splits(self, data_dir: str, prepares: bool) -> tuple[Source, Source, str]:
        from input.tables import sources

        return sources.open_splits(
            self.dataset,
            self.evaluation_file,
            data_dir,
            self._fields,
            self.classes,
            prepares,
            are_numbers=bool(self.target),
        )
