"""Compares what docs/layouts.md says with the code."""

import contextlib
import io
import re

import pytest
from ranks import ROOT

from app.parallel import schedule

TEXT = (ROOT / "docs" / "layouts.md").read_text()
SNIPPETS = re.findall(r"```python\n# (\w+)\.py\n(.*?)```\n\n```text\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(
    ("name", "code", "printed"), SNIPPETS, ids=[name for name, _, _ in SNIPPETS]
)
def test_a_snippet_prints_what_stands_below_it(name, code, printed):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue() == printed, name


@pytest.mark.fast
def test_the_table_of_bubbles():
    rows = dict(re.findall(r"^\| (\d+) \|((?: \d+ % \|)+)$", TEXT, re.MULTILINE))
    assert list(rows) == ["2", "4", "8", "16"]
    for stages, row in rows.items():
        figures = [int(figure) for figure in re.findall(r"\d+", row)]
        wanted = [schedule.bubble(int(stages), 1, m) for m in (2, 4, 8, 16, 32, 64)]
        assert figures == [int(f"{100 * share:.0f}") for share in wanted]


@pytest.mark.fast
@pytest.mark.parametrize(("p", "c", "m"), [(2, 1, 4), (4, 1, 2), (4, 1, 8), (4, 2, 8), (4, 3, 4)])
def test_the_table_of_activations(p, c, m):
    gpipe = schedule.orders("gpipe", p, 1, m)
    assert [schedule.most_alive(order) for order in gpipe] == [m] * p
    for s, order in enumerate(schedule.orders("1f1b", p, c, m)):
        one, many = min(m, p - s), min(c * m, 2 * (p - 1 - s) + (c - 1) * p + 1)
        assert schedule.most_alive(order) == (one if c == 1 else many)
