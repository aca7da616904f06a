"""Reads Arrow files by index: of Parquet files a copy, of a Hugging Face `datasets` folder its own.

    Parquet    arrow_tables/<digest>.arrow below data_dir, written by `prepare`: of a compressed
               Parquet file no row can be read without its neighbours
    datasets   what `save_to_disk` writes: data-*.arrow (streams), state.json, dataset_info.json

Both are mapped into memory: a process holds only the rows that it reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from input import InputError, failures, paths, remote
from input.source import Ids
from input.tables import columns
from input.tables.columns import Columns

STATE = b"scaleproof.state"  # a key in the copy's metadata
BATCH = 1024  # rows


class ArrowTable(Columns):
    """A table in memory-mapped Arrow files.

    Args:
        path: for messages.
        table: of all rows.
        classes: by column.
    """

    def __init__(
        self, path: str, table: pa.Table, classes: dict[str, tuple[str, ...]] | None = None
    ) -> None:
        self.path, self.table, self.classes = path, table, classes or {}
        self.names = tuple(table.column_names)
        self.state = (table.schema.metadata or {}).get(STATE, b"").decode()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def values(self, ids: Ids, name: str) -> Sequence[Any]:
        """See the base class."""
        taken = self.table.column(name).take(pa.array(np.asarray(ids, np.int64))).combine_chunks()
        if isinstance(taken, pa.ChunkedArray):  # none or several chunks
            taken = pa.concat_arrays(taken.chunks)
        if pa.types.is_dictionary(taken.type):
            taken = taken.dictionary_decode()
        if taken.null_count:
            row = int(np.asarray(ids)[taken.is_null().to_numpy(zero_copy_only=False)][0])
            raise InputError(columns.empty(self.name(row), name))
        return self._plain(taken, name)

    def distinct(self, name: str) -> set[Any]:
        """See the base class."""
        return set(self.table.column(name).unique().to_pylist())

    def _plain(self, array: Any, name: str) -> Sequence[Any]:
        kind = array.type
        if (
            pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        ):  # an image of `datasets`
            content = array.field("bytes")
            if content.null_count:
                raise InputError(
                    f"{self.path}: column {name!r} has paths of files, not their content."
                )
            return list(content.to_pylist())
        if pa.types.is_boolean(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind):
            found: np.ndarray = array.to_numpy(zero_copy_only=False)
            return found  # type: ignore[return-value]
        if _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return list(array.to_pylist())
        if (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        ):
            return [np.array(row) for row in array.to_pylist()]
        raise InputError(
            f"{self.path}: column {name!r} is {kind}: make it numbers, lists, text or bytes."
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _mapped(path: Path, is_stream: bool) -> pa.Table:
    source = pa.memory_map(str(path))
    reader = pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)
    return reader.read_all()


def parquet(pattern: str, data_dir: str, prepares: bool) -> ArrowTable:
    """Opens Parquet files: one, or several by a pattern, sorted by name.

    Args:
        pattern: path or URL.
        data_dir: below which the copy is.
        prepares: whether to write the copy if it is not there, or of other files.

    Raises:
        InputError: they cannot be read, have different columns, or were not prepared.
    """
    files = remote.find(pattern)
    state = json.dumps([[name, *remote.state(name)] for name in files]).encode()
    key = hashlib.sha256(pattern.encode()).hexdigest()[:16]
    place = paths.expand_user(data_dir) / "arrow_tables" / f"{key}.arrow"
    try:
        if place.exists() and _mapped(place, False).schema.metadata.get(STATE) == state:
            return ArrowTable(pattern, _mapped(place, False))
        if not prepares:
            raise InputError(
                f"{pattern} is not prepared, or changed since: run `./run.sh prepare` with the "
                "same --experiment and --set."
            )
        with paths.replacing(place) as partial:
            _copy(files, partial, state)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {pattern}: {failures.sentence(error)}.") from None
    return ArrowTable(pattern, _mapped(place, False))


def _copy(files: Sequence[str], path: Path, state: bytes) -> None:
    writer, schema = None, None
    try:
        for name in files:
            with remote.opened(name) as file:
                parquet = pq.ParquetFile(file)
                found = parquet.schema_arrow.remove_metadata()
                schema = schema or found
                if not found.equals(schema):
                    raise InputError(f"{name} has other columns than {files[0]}: {found.names}.")
                if writer is None:
                    writer = pa.ipc.new_file(str(path), schema.with_metadata({STATE: state}))
                for batch in parquet.iter_batches(BATCH):
                    writer.write_batch(batch.replace_schema_metadata({STATE: state}))
    finally:
        if writer is not None:
            writer.close()


def is_datasets_folder(path: Path) -> bool:
    """Returns whether `save_to_disk` wrote a folder: a set, or a dictionary of splits."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def datasets_folder(path: Path) -> dict[str, ArrowTable]:
    """Opens a folder that `datasets.save_to_disk` wrote; returns its splits by name.

    A set that is no dictionary of splits is `train`.

    Raises:
        InputError: a file is missing or damaged.
    """
    try:
        if (path / "dataset_dict.json").exists():
            splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
            return {split: _datasets_split(path / split) for split in splits}
        return {"train": _datasets_split(path)}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read {path} as a `datasets` folder ({failures.sentence(error)}): save it "
            "again with save_to_disk."
        ) from None


def _datasets_split(path: Path) -> ArrowTable:
    state = json.loads((path / "state.json").read_text())
    if state.get("_indices_data_files"):
        raise InputError(
            f"{path} has an index beside its rows: call flatten_indices() and save it."
        )
    files = [path / entry["filename"] for entry in state["_data_files"]]
    table = pa.concat_tables([_mapped(file, True) for file in files])
    features = json.loads((path / "dataset_info.json").read_text()).get("features") or {}
    named = {
        name: tuple(feature["names"])
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    table = table.replace_schema_metadata({STATE: str(state.get("_fingerprint", ""))})
    return ArrowTable(str(path), table, named)
