"""A folder's BERT vocabulary, and how its texts are cleaned.

What is read is what the reference reads (`transformers.BertTokenizer`, and the fast tokenizer that
it saves); a tokenizer of another kind is refused by its name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input import InputError, tokenizer_json
from input.tokenizer_json import END, PAD, SETTINGS, START, UNKNOWN

POINTER = b"version https://git-lfs"  # begins what git-lfs leaves in place of a file


@dataclass(frozen=True)
class Vocabulary:
    """Words by their ids, and what is done to a text before they are looked for.

    Attributes:
        path: the file that holds the words.
        words: of two that are the same, the last is meant.
        is_lower: lower case.
        strips_accents: accents are taken off.
        splits_chinese: each Chinese character is a word.
    """

    path: Path
    words: tuple[str, ...]
    is_lower: bool
    strips_accents: bool
    splits_chinese: bool

    @property
    def digest(self) -> str:
        """Of all that ids depend on."""
        settings = [self.is_lower, self.strips_accents, self.splits_chinese]
        return hashlib.sha256(json.dumps([*settings, *self.words]).encode()).hexdigest()

    def must_be_that_of(self, folder: Path) -> None:
        """Checks that a folder of weights was trained with these words, if it says with which.

        Raises:
            InputError: names both.
        """
        if not any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json")):
            return
        theirs = read(folder)
        if theirs.words != self.words:
            same = sum(a == b for a, b in zip(theirs.words, self.words, strict=False))
            raise InputError(
                f"the weights of model.init_from were trained with {theirs.path} "
                f"({len(theirs.words)} tokens), but data.vocabulary is {self.path} "
                f"({len(self.words)} tokens, {same} of them in the same place): leave "
                "data.vocabulary out to take that of model.init_from."
            )


def read(folder: Path) -> Vocabulary:
    """Reads a folder's vocabulary.

    Raises:
        InputError: there is none, one without BERT's marks, or a tokenizer of another kind.
    """
    config = _object(folder / "tokenizer_config.json", is_needed=False)
    if "Japanese" in str(config.get("tokenizer_class")) or config.get("do_basic_tokenize") is False:
        raise InputError(
            f"{folder / 'tokenizer_config.json'} describes {config.get('tokenizer_class')} with "
            f"do_basic_tokenize={config.get('do_basic_tokenize', True)}, which splits texts in "
            "words by other rules than BERT's: give the folder of another model."
        )
    path = folder / "vocab.txt"
    if path.exists() or not (folder / "tokenizer.json").exists():
        # Only by "\n", as the reference does: a token may be another separator of lines.
        lines = _text(path).split("\n")
        words, settings = lines if lines[-1] else lines[:-1], dict(SETTINGS)
    else:
        path = folder / "tokenizer.json"
        try:
            words, settings = tokenizer_json.read(path, _object(path))
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not as tokenizers are saved ({type(error).__name__}: {error}): give "
                "the folder of a BERT."
            ) from None
    settings |= {name: config[name] for name in SETTINGS if name in config}
    for name, value in settings.items():
        if not isinstance(value, bool) and (value is not None or name != "strip_accents"):
            raise InputError(f"{folder}: {name} must be true or false, not {value!r}.")
    _must_have_marks(path, words)
    lower, strip = settings["do_lower_case"], settings["strip_accents"]
    return Vocabulary(
        path,
        tuple(words),
        is_lower=bool(lower),
        strips_accents=bool(lower if strip is None else strip),
        splits_chinese=bool(settings["tokenize_chinese_chars"]),
    )


def _must_have_marks(path: Path, words: list[str]) -> None:
    lacking = [mark for mark in (PAD, UNKNOWN, START, END) if mark not in words]
    if lacking:
        raise InputError(
            f"{path} is no BERT vocabulary: it lacks {', '.join(lacking)}; give the folder of a "
            "BERT."
        )
    place = len(words) - 1 - words[::-1].index(PAD)
    if place:
        raise InputError(
            f"{path} has {PAD} as token {place}, but token 0 pads texts, and is never looked at: "
            f"give a vocabulary (and weights) with {PAD} as token 0, and nowhere else."
        )


def _object(path: Path, is_needed: bool = True) -> dict[str, Any]:
    """A JSON file's object, empty if the file need not be there and is not."""
    if not is_needed and not path.exists():
        return {}
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}).") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(found).__name__}.")
    return found


def _text(path: Path) -> str:
    """A file's text."""
    try:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise InputError(
                    f"{path} is what git-lfs leaves in place of the file: run `git lfs pull` there."
                )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path.parent} is no BERT vocabulary ({error}): it must hold vocab.txt, or the "
            "tokenizer.json of a BERT."
        ) from None
