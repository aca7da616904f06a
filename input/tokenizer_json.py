"""What the `tokenizers` library saves of a BERT's tokenizer: its words and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from input import InputError

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
# As tokenizer_config.json calls them, and what they are where nothing says it.
SETTINGS: dict[str, bool | None] = {
    "do_lower_case": True,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
}
# What tokenizer.json calls them, and what else must be as it is in BERT's.
SAVED = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
BERT_S: dict[str, dict[str, Any]] = {
    "model": {"type": "WordPiece", "unk_token": UNKNOWN, "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100},
    "normalizer": {"type": "BertNormalizer", "clean_text": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
}  # fmt: skip


def read(path: Path, tokenizer: dict[str, Any]) -> tuple[list[str], dict[str, bool | None]]:
    """Words by their ids, "" where there is none, and `SETTINGS` as the file has them.

    Args:
        path: of the file.
        tokenizer: what it holds.

    Raises:
        InputError: a tokenizer of another kind, by its name.
    """
    for part, wanted in BERT_S.items():
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
                f"{path} has the added token {token['content']!r}, which is looked for before a "
                "text is split into words; this project does not: give a folder without it."
            )
        ids.setdefault(token["content"], token["id"])
    if not ids or not all(isinstance(i, int) and 0 <= i < 2 * len(ids) for i in ids.values()):
        raise InputError(f"the vocabulary of {path} does not number its {len(ids)} tokens from 0.")
    words = [""] * (max(ids.values()) + 1)
    for word, place in ids.items():
        words[place] = word
    normalizer = tokenizer["normalizer"]
    return words, {ours: normalizer.get(name, SETTINGS[ours]) for ours, name in SAVED.items()}


def _marks(processor: dict[str, Any]) -> list[str]:
    """What a tokenizer.json puts around a text A."""
    if processor.get("type") == "BertProcessing":
        return [processor["cls"][0], "A", processor["sep"][0]]
    pieces = processor.get("single") or [{"Sequence": {"id": "A"}}]
    return [value["id"] for piece in pieces for value in piece.values()]
