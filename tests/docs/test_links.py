"""Every link, file, command and flag that README and docs name exists."""

import re

import pytest
from ranks import ROOT

from app import __main__

pytestmark = pytest.mark.fast
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = re.compile(r"`((?:app|models|input|tests|third_party|docs)/[\w./-]+\.\w+)`")
COMMAND = re.compile(r"(?:\./run\.sh|python -m app(?: launch)?) (?!launch)([a-z][^`\n|\\#]*)")
OF_RUN_SH = ("setup", "test", "help")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / target).exists(), target
    for path in PATH.findall(text):
        is_pattern = "NAME" in path or "/NN-" in path
        assert is_pattern or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_flags_that_are_named(page):
    for line in COMMAND.findall(page.read_text()):
        words = line.split()
        if words[0] in OF_RUN_SH or words[0] not in {n.split()[0] for n in __main__.names()}:
            assert words[0] in OF_RUN_SH, line
            continue
        name, rest = __main__.split(words)
        flags = __main__.load(name).FLAGS
        for word in rest:
            flag = re.match(r"\[?--(?:no)?(\w+)", word)
            assert not flag or flag[1] in flags or word.startswith("--help"), f"{name}: {word}"
