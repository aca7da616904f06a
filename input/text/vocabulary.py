"""Reads a BERT's vocabulary from a folder, and how its texts are cleaned.

It reads what the reference reads (`transformers.BertTokenizer`: vocab.txt, or the tokenizer.json of
the `tokenizers` library), and refuses a tokenizer of another kind by its name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input import InputError

POINTER = "version https://git-lfs"  # begins the file that git-lfs leaves in place of another
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
# By their names in tokenizer_config.json: their names in tokenizer.json, and their defaults.
SETTINGS: dict[str, tuple[str, bool | None]] = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
# What else must be as in BERT's tokenizer.json.
BERT: dict[str, dict[str, Any]] = {
    "model": {"type": "WordPiece", "unk_token": UNKNOWN, "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100},
    "normalizer": {"type": "BertNormalizer", "clean_text": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Words by their ids, and how a text is cleaned before words are looked up.

    Attributes:
        path: the file that holds the words.
        words: if a word is there twice, the last is used.
        is_lower: whether texts are lower-cased.
        strips_accents: whether accents are removed.
        splits_chinese: whether each Chinese character is a word.
    """

    path: Path
    words: tuple[str, ...]
    is_lower: bool
    strips_accents: bool
    splits_chinese: bool

    @property
    def digest(self) -> str:
        """Digest of all that ids depend on."""
        settings = [self.is_lower, self.strips_accents, self.splits_chinese]
        return hashlib.sha256(json.dumps([*settings, *self.words]).encode()).hexdigest()

    def check_weights(self, folder: Path) -> None:
        """Checks that a folder's weights were trained with these words, if it has a vocabulary.

        Raises:
            InputError: they were trained with others.
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
                "data.vocabulary out to use that of model.init_from."
            )


def read(folder: Path) -> Vocabulary:
    """Reads a folder's vocabulary.

    Raises:
        InputError: there is none, or it is not a BERT's.
    """
    path = folder / "tokenizer_config.json"
    config = _object(path) if path.exists() else {}
    if "Japanese" in str(config.get("tokenizer_class")) or config.get("do_basic_tokenize") is False:
        raise InputError(
            f"{path} describes {config.get('tokenizer_class')} with "
            f"do_basic_tokenize={config.get('do_basic_tokenize', True)}, which splits texts into "
            "words by other rules than BERT's: give the folder of another model."
        )
    path = folder / "vocab.txt"
    if path.exists() or not (folder / "tokenizer.json").exists():
        # Split only at "\n", as in the reference: a token may be another line separator.
        lines = _text(path).split("\n")
        words = lines if lines[-1] else lines[:-1]
        settings = {name: default for name, (_, default) in SETTINGS.items()}
    else:
        path = folder / "tokenizer.json"
        try:
            words, settings = _read_tokenizer(path, _object(path))
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not as tokenizers are saved ({type(error).__name__}: {error}): give "
                "the folder of a BERT."
            ) from None
    settings |= {name: config[name] for name in SETTINGS if name in config}
    for name, value in settings.items():
        if not isinstance(value, bool) and (value is not None or name != "strip_accents"):
            raise InputError(f"{folder}: {name} must be true or false, not {value!r}.")
    _require_marks(path, words)
    lower, strip = settings["do_lower_case"], settings["strip_accents"]
    return Vocabulary(
        path,
        tuple(words),
        is_lower=bool(lower),
        strips_accents=bool(lower if strip is None else strip),
        splits_chinese=bool(settings["tokenize_chinese_chars"]),
    )


def _read_tokenizer(
    path: Path, tokenizer: dict[str, Any]
) -> tuple[list[str], dict[str, bool | None]]:
    """Returns the words of a tokenizer.json, "" for an unused id, and the values of `SETTINGS`.

    Raises:
        InputError: names what differs from BERT's.
    """
    for part, wanted in BERT.items():
        found = tokenizer.get(part)
        found = found if isinstance(found, dict) else {"type": found}
        wrong = [
            f"{name} {found.get(name)!r} (not {value!r})"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        if wrong:
            raise InputError(
                f"the {part} of {path} is not BERT's: {', '.join(wrong)}; give the folder of a "
                "model with BERT's WordPiece."
            )
    marks = _marks(tokenizer.get("post_processor") or {})
    if marks != [START, "A", END]:
        raise InputError(
            f"the post_processor of {path} makes {marks} of a text A; BERT's makes "
            f"{[START, 'A', END]}: give the folder of a BERT."
        )
    ids = dict(tokenizer["model"].get("vocab") or {})
    for token in tokenizer.get("added_tokens") or []:
        if token["content"] not in ids and not token.get("special"):
            raise InputError(
                f"{path} has the added token {token['content']!r}, which is found before a "
                "text is split into words; this project does not: give a folder without it."
            )
        ids.setdefault(token["content"], token["id"])
    if not ids or not all(isinstance(i, int) and 0 <= i < 2 * len(ids) for i in ids.values()):
        raise InputError(f"the vocabulary of {path} does not number its {len(ids)} tokens from 0.")
    words = [""] * (max(ids.values()) + 1)
    for word, place in ids.items():
        words[place] = word
    saved = tokenizer["normalizer"]
    return words, {name: saved.get(key, default) for name, (key, default) in SETTINGS.items()}


def _marks(processor: dict[str, Any]) -> list[str]:
    """Returns what a tokenizer.json makes of a text A."""
    if processor.get("type") == "BertProcessing":
        return [processor["cls"][0], "A", processor["sep"][0]]
    pieces = processor.get("single") or [{"Sequence": {"id": "A"}}]
    return [value["id"] for piece in pieces for value in piece.values()]


def _require_marks(path: Path, words: list[str]) -> None:
    lacking = [mark for mark in (PAD, UNKNOWN, START, END) if mark not in words]
    if lacking:
        raise InputError(
            f"{path} is no BERT vocabulary: it lacks {', '.join(lacking)}; give the folder of a "
            "BERT."
        )
    place = len(words) - 1 - words[::-1].index(PAD)
    if place:
        raise InputError(
            f"{path} has {PAD} as token {place}, but token 0 pads texts, and is ignored: "
            f"give a vocabulary (and weights) with {PAD} as token 0, and nowhere else."
        )


def _object(path: Path) -> dict[str, Any]:
    """Reads the object of a JSON file."""
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}).") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(found).__name__}.")
    return found


def _text(path: Path) -> str:
    """Reads a text file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path.parent} is no BERT vocabulary ({error}): it must hold vocab.txt, or the "
            "tokenizer.json of a BERT."
        ) from None
    if text.startswith(POINTER):
        raise InputError(
            f"{path} is what git-lfs leaves in place of the file: run `git lfs pull` there."
        )
    return text
