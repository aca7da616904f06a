"""A folder of images, `train/<class>/...` and `val/<class>/...`, listed once by `prepare`.

    image_folders/<digest>.json   classes, and the files of each split with their class

All files below the folder of a class are looked at: those that are JPEG or PNG by their content
are its examples. What has a hidden name is no data, as `._1.jpg` and `.ipynb_checkpoints`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from input import InputError, classes, decoding, names, paths, raw

if TYPE_CHECKING:
    from input.images import Images

FORMAT = 2  # of an index
SUFFIXES = {".jpg", ".jpeg", ".png"}  # of what must be an image; what others are is looked at
SPLITS = ("train", "val")
HEAD = 1200  # bytes that say what a file is
SOME = 3  # examples of what was left out


class Folder:
    """A split of an indexed folder: one file an image."""

    def __init__(self, config: Images, index: dict[str, Any], split: str) -> None:
        self.root = paths.of_user(config.dataset).resolve()
        self.classes = tuple(index["classes"])
        self.files: list[tuple[str, int]] = index["splits"][split]

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Reads files."""
        files = [self.files[i] for i in ids]
        return [(self.root / path).read_bytes() for path, _ in files], [c for _, c in files]

    def name(self, example: int) -> str:
        """The file's path."""
        return paths.shown(str(self.root / self.files[example][0]))


def index_path(config: Images, data_dir: str) -> Path:
    """Where the index of a folder is: one file a folder and policy."""
    policy = f"{config.on_bad_image} {config.bad_image_budget}"
    key = f"{paths.of_user(config.dataset).resolve()} {policy}"
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    return paths.of_user(data_dir) / "image_folders" / f"{digest}.json"


def read_index(config: Images, data_dir: str) -> dict[str, Any]:
    """The index that `prepare` wrote.

    Raises:
        InputError: there is none, or it is of an older version.
    """
    path = index_path(config, data_dir)
    index: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if index.get("format") != FORMAT:
        raise InputError(
            f"folder {config.dataset} is not prepared{' by this version' * bool(index)}: run "
            "`./run.sh prepare` with the same --experiment and --set (it looks at every image "
            "once)."
        )
    return index


def prepare(config: Images, data_dir: str) -> str:
    """Lists a folder's images and decodes each once; returns lines on it.

    Raises:
        InputError: no images; a class without any; bad images beyond the policy.
    """
    root = paths.of_user(config.dataset).resolve()
    splits = {split: Listing(root, split) for split in SPLITS}
    class_names = sorted({name for listing in splits.values() for name in listing.classes})
    names.must_be_text(class_names, root)
    classes.must_be_some(class_names, str(root))
    every = {split: [(p, c) for p, c in splits[split].images] for split in SPLITS}
    _must_have_all(root, class_names, splits, every)
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for s in SPLITS for p, _ in every[s]]
    listing = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    path = index_path(config, data_dir)
    index = json.loads(path.read_text()) if path.exists() else {}
    if index.get("format") != FORMAT or index["listing"] != listing:
        bad = faults([p for split in SPLITS for p, _ in every[split]])
        _must_be_few(config, bad, len(stats))
        good = {split: [(p, c) for p, c in every[split] if p not in bad] for split in SPLITS}
        _must_have_all(root, class_names, splits, good)
        number = {name: i for i, name in enumerate(class_names)}
        index = {
            "format": FORMAT,
            "folder": str(root),
            "listing": listing,
            "classes": class_names,
            "skipped": {str(p): fault for p, fault in sorted(bad.items())},
            "splits": {
                split: [(str(p.relative_to(root)), number[c]) for p, c in good[split]]
                for split in SPLITS
            },
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(index))
        partial.replace(path)
    return "\n".join(_report(root, index, splits, path))


class Listing:
    """What is below the folder of a split, by its content.

    Attributes:
        classes: names of the folders.
        images: (path, class) of each, sorted by path; ids are places in this list.
        left_out: why, and the files.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.left_out = root, dict[str, list[Path]]()
        place = root / split
        if not place.is_dir():
            raise InputError(f"no folder {place}: expected {place}/<class>/*.jpg (JPEG or PNG).")
        top = sorted(p for p in place.iterdir() if not p.name.startswith("."))
        self.classes = [p.name for p in top if p.is_dir()]
        for path in top:
            if not path.is_dir():
                self._leave("not in the folder of a class", path)
        self.images = sorted(
            (folder / path, folder.name)
            for folder in top
            if folder.is_dir()
            for path in paths.below(folder, _fail, follows_links=True)
            if self._is_taken(folder / path)
        )

    def _is_taken(self, path: Path) -> bool:
        if path.suffix.lower() in SUFFIXES:
            return True
        try:
            with path.open("rb") as file:
                head = file.read(HEAD)
            if head.startswith((raw.JPEG, raw.PNG)):
                return True
            raw.image_size(head)
        except OSError as error:
            self._leave(f"cannot be read ({error.strerror})", path)
        except ValueError as error:
            self._leave(f"{path.suffix or 'no suffix'}: {error}", path)
        return False

    def _leave(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def without_examples(self, name: str) -> str:
        """What is in the folder of a class that has no images."""
        reasons = Counter(
            reason for reason, files in self.left_out.items() for p in files
            if name in p.relative_to(self.root).parts[1:2]
        )  # fmt: skip
        return ", ".join(f"{n} ({reason})" for reason, n in reasons.items()) or "nothing"


def _fail(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}.")


def faults(files: Sequence[Path]) -> dict[Path, str]:
    """What is wrong with each that does not decode to its end."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(_fault, files)
        return {path: fault for path, fault in zip(files, found, strict=True) if fault}


def _fault(path: Path) -> str | None:
    try:
        return decoding.image_fault(path.read_bytes())
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _must_be_few(config: Images, bad: Mapping[Path, str], total: int) -> None:
    if not bad or (config.on_bad_image == "skip" and len(bad) <= config.bad_image_budget):
        return
    some = "; ".join(f"{paths.shown(str(p))}: {bad[p]}" for p in sorted(bad)[:SOME])
    more = f"; and {len(bad) - SOME} more" if len(bad) > SOME else ""
    raise InputError(
        f"{len(bad)} of {total} images cannot be used ({some}{more}): convert them or move them "
        "elsewhere, or set data.on_bad_image=skip with data.bad_image_budget (now "
        f"{config.bad_image_budget}) of at least {len(bad)}."
    )


def _must_have_all(
    root: Path, names: Sequence[str], splits: Mapping[str, Listing],
    images: Mapping[str, Sequence[tuple[Path, str]]],
) -> None:  # fmt: skip
    """Raises InputError unless each split has images of each class."""
    lacking = []
    for split, found in images.items():
        missing = sorted(set(names) - {name for _, name in found})
        if len(missing) == len(names):
            raise InputError(
                f"no images in {root / split}: expected {root / split}/<class>/*.jpg (JPEG or PNG)."
            )
        some = [
            f"{paths.shown(name)!r} (there: {splits[split].without_examples(name)})"
            if name in splits[split].classes else f"{paths.shown(name)!r} (no folder)"
            for name in missing[:SOME]
        ]  # fmt: skip
        more = f" and {len(missing) - SOME} more" if len(missing) > SOME else ""
        lacking += [f"{split} has no image of {', '.join(some)}{more}"] if missing else []
    if lacking:
        raise InputError(
            f"{root}: train and val must have the same classes, with images (JPEG or PNG) of "
            f"each, but {'; '.join(lacking)}. Add or convert images, or move the folders of the "
            "class elsewhere."
        )


def _report(
    root: Path, index: dict[str, Any], splits: Mapping[str, Listing], path: Path
) -> Iterator[str]:
    skipped: dict[str, str] = index["skipped"]
    sizes = ", ".join(f"{split} {len(files):,}" for split, files in index["splits"].items())
    yield f"{root} ({sizes}, {len(skipped)} skipped), index in {path}"
    counts = {}
    for split, files in index["splits"].items():
        each = Counter(number for _, number in files)
        counts[split] = [each[i] for i in range(len(index["classes"]))]
    yield from classes.report(index["classes"], counts)
    for split, listing in splits.items():
        for reason, files in listing.left_out.items():
            yield f"left out of {split}: {len(files):,} ({_examples(root, files)}): {reason}"
    for place, fault in sorted(skipped.items())[:SOME]:
        yield f"skipped: {paths.shown(place)}: {fault}"
    if len(skipped) > SOME:
        yield f"skipped: and {len(skipped) - SOME} more, all named in the index"


def _examples(root: Path, files: Sequence[Path]) -> str:
    some = [paths.shown(str(p.relative_to(root))) for p in sorted(files)[:SOME]]
    return ", ".join([*some, *(["..."] if len(files) > SOME else [])])
