"""Reads tar shards as webdataset writes them, by index.

    000017.jpg, 000017.cls     files of one name up to its first dot are an example,
                               what follows the dot is the column

`prepare` reads the headers of every shard and writes where each file is, with the state of the
shards; afterwards an example is one read at a known place, of the disk or of the object storage.

    tar_indices/<digest>.npz    below data_dir
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input import InputError, failures, paths, remote
from input.source import Ids
from input.tables.columns import Columns

FORMAT = 1
LABELS = ("cls",)
ALIASES = {"image": ("jpg", "jpeg", "png"), "label": LABELS, "text": ("txt",)}


class Shards(Columns):
    """Examples in tar files.

    Args:
        path: the pattern, for messages.
        index: as `_index` makes it.
    """

    def __init__(self, path: str, index: dict[str, Any]) -> None:
        self.path, self.classes = path, {}
        self.state = str(index["state"])
        self.files = [str(name) for name in index["files"]]
        self.shard, self.keys = index["shard"], index["keys"]
        self.suffixes = [str(x) for x in index["suffixes"]]
        self.places = index["places"]  # [N, columns, 2]: first byte and length; -1: no such file
        self.labels = index.get("labels")  # [N], what .cls says
        self.names = tuple(self.suffixes)
        self.names += tuple(a for a, some in ALIASES.items() if set(some) & set(self.suffixes))

    def __len__(self) -> int:
        return len(self.shard)

    def values(self, ids: Ids, name: str) -> Sequence[Any]:
        """See the base class: numbers of .cls, text of .txt, arrays of .npy, bytes of others."""
        if name in (*LABELS, "label") and self.labels is not None:
            return list(self.labels[np.asarray(ids)])
        options = [self.suffixes.index(x) for x in ALIASES.get(name, (name,)) if x in self.suffixes]
        spans, suffixes = [], []
        for i in map(int, ids):
            column = next((k for k in options if self.places[i, k, 0] >= 0), None)
            if column is None:
                raise InputError(f"{self.name(i)} has no .{name}: add it, or take the example out.")
            start, size = map(int, self.places[i, column])
            spans.append((self.files[self.shard[i]], start, size))
            suffixes.append(self.suffixes[column])
        return [
            _decoded(content, suffix, self.name(int(i)))
            for content, suffix, i in zip(remote.ranges(spans), suffixes, ids, strict=True)
        ]

    def name(self, row: int) -> str:
        """See the base class."""
        return f"{self.keys[row]} in {self.files[self.shard[row]]}"


def _decoded(content: bytes, suffix: str, where: str) -> Any:
    kind = suffix.rpartition(".")[2]
    try:
        if kind in LABELS:
            return int(content)
        if kind in ("txt", "text"):
            return content.decode()
        if kind == "npy":
            return np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{where}: .{suffix} is damaged: {error}.") from None
    return content


def shards(pattern: str, data_dir: str, prepares: bool) -> Shards:
    """Opens tar shards: one, or several by a pattern, sorted by name.

    Args:
        pattern: path or URL.
        data_dir: below which the index is.
        prepares: whether to write the index if it is not there, or of other shards.

    Raises:
        InputError: they cannot be read, or were not prepared, or changed since.
    """
    files = remote.find(pattern)
    state = json.dumps([FORMAT, [[name, *remote.state(name)] for name in files]])
    key = hashlib.sha256(pattern.encode()).hexdigest()[:16]
    place = paths.expand_user(data_dir) / "tar_indices" / f"{key}.npz"
    index = _stored(place)
    if str(index.get("state")) != state:
        if not prepares:
            raise InputError(
                f"{pattern} is not prepared, or a shard changed since: run `./run.sh prepare` with "
                "the same --experiment and --set."
            )
        index = _index(files) | {"state": np.array(state)}
        with paths.replacing(place) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **index)
    return Shards(pattern, index)


def _stored(place: Path) -> dict[str, Any]:
    if not place.exists():
        return {}
    try:
        with np.load(place, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError):
        return {}


def _index(files: Sequence[str]) -> dict[str, Any]:
    """Reads the headers of shards; returns files, shard [N], keys [N], suffixes, places."""
    found: dict[tuple[int, str], dict[str, tuple[int, int]]] = {}
    labels: dict[tuple[int, str], int] = {}
    for number, name in enumerate(files):
        with remote.opened(name) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for member in archive:
                        if member.isfile() and not Path(member.name).name.startswith("."):
                            stem, suffix = _split(member.name)
                            example = found.setdefault((number, stem), {})
                            if suffix in example:
                                raise InputError(f"{name} has {member.name} twice.")
                            example[suffix] = (member.offset_data, member.size)
                            if suffix in LABELS:
                                labels[number, stem] = _label(archive, member, name)
            except tarfile.TarError as error:
                raise InputError(
                    f"cannot read {name}: {failures.sentence(error)}; a shard must be a tar file "
                    "that is not compressed."
                ) from None
    if not found:
        raise InputError(f"{files[0]} has no files in it.")
    suffixes = sorted({suffix for example in found.values() for suffix in example})
    places = np.full([len(found), len(suffixes), 2], -1, np.int64)
    for row, example in enumerate(found.values()):
        for suffix, place in example.items():
            places[row, suffixes.index(suffix)] = place
    whole = (
        {"labels": np.array([labels[key] for key in found])} if len(labels) == len(found) else {}
    )
    return whole | {
        "files": np.array(files),
        "shard": np.array([number for number, _ in found], np.int32),
        "keys": np.array([stem for _, stem in found]),
        "suffixes": np.array(suffixes),
        "places": places,
    }


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> int:
    content = archive.extractfile(member)
    assert content is not None
    try:
        return int(content.read())
    except ValueError:
        raise InputError(f"{member.name} in {name} is no whole number.") from None


def _split(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()
