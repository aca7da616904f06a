"""Runs every block of docs/tutorial.md, in order, in one folder.

`./run.sh COMMAND` becomes what run.sh calls, in the present environment; setting one up is left
out. A server is started beside the blocks that follow it.
"""

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from ranks import ROOT, start
from served import Served

pytestmark = pytest.mark.ranks
TUTORIAL = ROOT / "docs" / "tutorial.md"
LIMIT = 240  # seconds, of a block
SERVE = re.compile(r"^\./run\.sh serve --model=(\S+)$")


class Block(NamedTuple):
    section: str
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks, each with the heading that it is under."""
    found, section = [], ""
    for heading, language, body in re.findall(
        r"^## ([^\n]*)$|^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        section = heading or section
        if language:
            found.append(Block(section, language, body))
    return found


class Reader:
    """Does what the tutorial says, in a folder; what is printed is kept."""

    def __init__(self, folder: Path, closing: contextlib.ExitStack) -> None:
        self.folder, self.closing, self.port = folder, closing, 8501

    def follow(self, block: Block) -> str:
        if block.language == "python":
            name = re.match(r"# (\w+\.py)\n", block.text)[1]
            text = block.text.replace("127.0.0.1:8501", f"127.0.0.1:{self.port}")
            (self.folder / name).write_text(text)
            return ""
        assert block.language == "bash", block
        if block.text.strip() == "./run.sh setup":
            return ""
        if match := SERVE.match(block.text.strip()):
            server = self.closing.enter_context(Served(self.folder / match[1]))
            self.port = server.port
            return server.line
        python = shlex.quote(sys.executable)
        command = block.text.replace(".venv/bin/python", python)
        command = command.replace("./run.sh", f"{python} -m app launch")
        done = start(
            ["bash", "-euo", "pipefail", "-c", command], self.folder, LIMIT,
            TFDS_DATA_DIR=str(self.folder / "data"),
        )  # fmt: skip
        assert not done.returncode, f"{block.text}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_every_block_runs(tmp_path):
    printed: dict[str, str] = {}
    with contextlib.ExitStack() as closing:
        reader = Reader(tmp_path, closing)
        for block in blocks(TUTORIAL.read_text()):
            if block.language == "text":
                continue
            printed[block.section] = printed.get(block.section, "") + reader.follow(block)
    said = {title.partition(".")[0]: text for title, text in printed.items()}
    assert "train 192, val 48, 0 skipped" in said["3"]
    # Plain lines where there is no terminal, and all files in one folder outside the project.
    assert "2 stages a process" in said["4"] and "step 60/60" in said["4"]
    trained = json.loads((tmp_path / "runs/tutorial/result.json").read_text())
    assert trained["metrics"]["val"]["examples"] == 48
    made = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"} - {"__pycache__"}
    assert made == {"shapes", "data", "runs", "exports", "answers.csv"}
    assert "every layout agrees with the serial run" in said["5"]
    assert '"accuracy"' in said["6"] and "circle" in said["6"]
    assert "bubble" in said["9"]
    assert (tmp_path / "runs/trace/trace.png").stat().st_size
    assert "circle" in said["8"]
