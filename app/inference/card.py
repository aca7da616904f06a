"""The model card: what a model is, where it comes from, and how it did (arXiv:1810.03993)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from app.inference.variants import VARIANTS
from input import paths

TEMPLATE = Path(__file__).with_name("card.md")


def text(facts: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """README.md of an exported model.

    Args:
        facts: of the run and of the model.
        seen: how each variant did (`export.Seen`).
    """
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    template = environment.from_string(TEMPLATE.read_text())
    saved = next((name for name in seen if name in VARIANTS), "")  # a SavedModel, if there is one
    experiment = json.dumps(facts["experiment"], indent=1)
    card = template.render(**facts, seen=seen, saved=saved, experiment_json=experiment)
    return paths.shown(card)  # it names folders
