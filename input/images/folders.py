"""Lists a folder of images, `train/<class>/...` and `val/<class>/...`; `prepare` writes an index.

    image_folders/<digest>.json   classes, and the files of each split with their class

All files below the folder of a class are looked at: those that are JPEG or PNG by their content
are its examples. Hidden files and folders, as `._1.jpg` and `.ipynb_checkpoints`, are no data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from input import InputError, labels, paths, raw
from input.images import decoding
from input.source import Encoded, Ids

FORMAT = 2  # of an index
SUFFIXES = {".jpg", ".jpeg", ".png"}  # files that must be images; others are images by content
SPLITS = ("train", "val")
HEAD = 1200  # bytes, enough to know what a file is
SOME = 3  # examples of what was left out


class Folder(Encoded):
    """A split of an indexed folder: one file an image."""

    def __init__(self, index: dict[str, Any], split: str) -> None:
        self.root = Path(index["folder"])
        self.classes = tuple(index["classes"])
        self.files: list[tuple[str, int]] = index["splits"][split]

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, ids: Ids) -> tuple[list[bytes], list[int]]:
        """Reads files."""
        files = [self.files[i] for i in ids]
        return [(self.root / path).read_bytes() for path, _ in files], [c for _, c in files]

    def name(self, example: int) -> str:
        """Returns the file's path."""
        return paths.shown(str(self.root / self.files[example][0]))


def open_splits(folder: str, data_dir: str, skips: bool, budget: int) -> tuple[Folder, Folder, str]:
    """Returns training split, evaluation split and the latter's name; see `prepare`.

    Raises:
        InputError: the folder was not prepared, or by an older version.
    """
    path = _index_path(folder, data_dir, skips, budget)
    index: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if index.get("format") != FORMAT:
        raise InputError(
            f"folder {folder} is not prepared{' by this version' * bool(index)}: run "
            "`./run.sh prepare` with the same --experiment and --set (it looks at every image "
            "once)."
        )
    train, evaluation = (Folder(index, split) for split in SPLITS)
    return train, evaluation, "val"


def prepare(folder: str, data_dir: str, skips: bool, budget: int) -> str:
    """Lists a folder's images and decodes each once; returns a report.

    Args:
        folder: of the images, as the user gives it.
        data_dir: below which the index is written.
        skips: whether images that cannot be decoded are left out.
        budget: the most images that may be.

    Raises:
        InputError: no images; a class without any; bad images beyond the budget.
    """
    root = paths.expand_user(folder).resolve()
    splits = {split: Listing(root, split) for split in SPLITS}
    classes = sorted({name for listing in splits.values() for name in listing.classes})
    labels.require_text(classes, root)
    labels.require_classes(classes, str(root))
    images = {split: listing.images for split, listing in splits.items()}
    _require_images_of_all(root, classes, splits, images)
    every = [p for found in images.values() for p, _ in found]
    stats = [(str(p), *paths.state(p)) for p in every]
    listing = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    path = _index_path(folder, data_dir, skips, budget)
    index = json.loads(path.read_text()) if path.exists() else {}
    if index.get("format") != FORMAT or index["listing"] != listing:
        bad = faults(every)
        if len(bad) > (budget if skips else 0):
            raise InputError(_too_many(bad, len(every), budget))
        good = {split: [(p, c) for p, c in images[split] if p not in bad] for split in SPLITS}
        _require_images_of_all(root, classes, splits, good)
        number = {name: i for i, name in enumerate(classes)}
        index = {
            "format": FORMAT,
            "folder": str(root),
            "listing": listing,
            "classes": classes,
            "skipped": {str(p): fault for p, fault in sorted(bad.items())},
            "splits": {
                split: [(str(p.relative_to(root)), number[c]) for p, c in good[split]]
                for split in SPLITS
            },
        }
        with paths.replacing(path) as partial:
            partial.write_text(json.dumps(index))
    return "\n".join(_report(root, index, splits, path))


def _index_path(folder: str, data_dir: str, skips: bool, budget: int) -> Path:
    """Returns the path of an index: one for each folder and policy for bad images."""
    policy = f"{'skip' if skips else 'fail'} {budget}"
    key = f"{paths.expand_user(folder).resolve()} {policy}"
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    return paths.expand_user(data_dir) / "image_folders" / f"{digest}.json"


class Listing:
    """What is below the folder of a split, by its content.

    Attributes:
        classes: names of the folders.
        images: (path, class) of each image, sorted by path; ids are indices of this list.
        left_out: files that are not images, by the reason.
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
                self._leave_out("not in the folder of a class", path)
        self.images = sorted(
            (folder / path, folder.name)
            for folder in top
            if folder.is_dir()
            for path in paths.below(folder, follows_links=True)
            if self._is_image(folder / path)
        )

    def _is_image(self, path: Path) -> bool:
        if path.suffix.lower() in SUFFIXES:
            return True
        try:
            with path.open("rb") as file:
                head = file.read(HEAD)
            if head.startswith((raw.JPEG, raw.PNG)):
                return True
            raw.image_size(head)
        except OSError as error:
            self._leave_out(f"cannot be read ({error.strerror})", path)
        except ValueError as error:
            self._leave_out(f"{path.suffix or 'no suffix'}: {error}", path)
        return False

    def _leave_out(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def without_examples(self, name: str) -> str:
        """Describes what is in the folder of a class that has no images."""
        reasons = Counter(
            reason for reason, files in self.left_out.items() for p in files
            if name in p.relative_to(self.root).parts[1:2]
        )  # fmt: skip
        return ", ".join(f"{n} ({reason})" for reason, n in reasons.items()) or "nothing"


def faults(files: Sequence[Path]) -> dict[Path, str]:
    """Returns what is wrong with each file that does not decode to its end."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(_fault, files)
        return {path: fault for path, fault in zip(files, found, strict=True) if fault}


def _fault(path: Path) -> str | None:
    try:
        return decoding.image_fault(path.read_bytes())
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _too_many(bad: Mapping[Path, str], total: int, budget: int) -> str:
    some = "; ".join(f"{paths.shown(str(p))}: {bad[p]}" for p in sorted(bad)[:SOME])
    more = f"; and {len(bad) - SOME} more" if len(bad) > SOME else ""
    return (
        f"{len(bad)} of {total} images cannot be used ({some}{more}): convert them or move them "
        "elsewhere, or set data.on_bad_image=skip with data.bad_image_budget (now "
        f"{budget}) of at least {len(bad)}."
    )


def _require_images_of_all(
    root: Path, classes: Sequence[str], splits: Mapping[str, Listing],
    images: Mapping[str, Sequence[tuple[Path, str]]],
) -> None:  # fmt: skip
    """Raises InputError unless each split has images of each class."""
    lacking = []
    for split, found in images.items():
        missing = sorted(set(classes) - {name for _, name in found})
        if len(missing) == len(classes):
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
        found = Counter(number for _, number in files)
        counts[split] = [found[i] for i in range(len(index["classes"]))]
    yield from labels.report(index["classes"], counts)
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
