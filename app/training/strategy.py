"""Imports a strategy by its name: no other is imported, and training works without that folder.

update.kind=parameter_server       strategies/parameter_server.py
update.kind=local_sgd              strategies/local_sgd.py, around the step of the layout
update.kind=adasum                 strategies/adasum.py, in the place of the all-reduce
update.compression                 strategies/compression.py, likewise
several devices per process        strategies/partition.py, pipelined.py
--elastic                          strategies/elastic.py
"""

from __future__ import annotations

import importlib
from typing import Any

from app.config import Update


def load(name: str) -> Any:
    """Imports and returns app/strategies/`name`.py."""
    return importlib.import_module(f"app.strategies.{name}")


def is_local(rule: Update) -> bool:
    """Returns whether processes step by themselves.

    They need not if rounds have one step and no outer optimizer: that is the synchronous step.
    """
    is_synchronous = rule.local_steps == 1 and rule.outer_rate == 1 and not rule.outer_momentum
    return rule.kind == "local_sgd" and not is_synchronous
