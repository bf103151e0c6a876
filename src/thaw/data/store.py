"""Prepared images of all splits with facts about them, in memory or in a folder.

A folder holds `images.bin` (the bytes of all images, split by split), `facts.npz` (labels and `Facts`), `text.json`
(names, classes, problems) and `check.json` (format, lengths and checksums of the others). It is renamed to its final
name when it is complete, and `open_store` verifies all checksums. Images are read into memory unless they are too
large, so that later changes of the folder have no effect.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.data.catalog import SPLITS, Groups, Split
from thaw.data.chunks import FACT_SHAPES, Facts
from thaw.data.images import Fit
from thaw.data.problems import Problem
from thaw.data.scaling import ValueRange
from thaw.files import parse_object, seal, unseal

Pixels = npt.NDArray[np.uint8]

STORE_FORMAT = 3
"""Version of the format."""

_BLOCK_BYTES = 4 << 20

# Images up to this total size are read into memory, where nothing can change them; larger sets are memory-mapped.
_LOADED_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Store:
    """The result of decoding a source: all readable images with a label.

    Attributes:
        name: the name of the source.
        classes: K class names.
        named: False if the classes are numbers without names.
        shape: (h, w, c) of the prepared images.
        fit: how they were fitted to that size.
        range: the range that scaled values of more than 8 bits to bytes; None for 0 to 65,535.
        chosen: the reason for the shape if it was chosen automatically, else "".
        images: uint8 [N, h, w, c] by split; read-only.
        labels: int64 [N] by split.
        names: N names by split.
        facts: facts about the images, by split.
        modes: number of images by pixel format of the file.
        unreadable: "name (reason)" of each image that cannot be read.
        problems: all other problems.
        groups: groups of images, if any.
        is_whole: whether memory-mapped images are unchanged; always true in memory.
    """

    name: str
    classes: tuple[str, ...]
    named: bool
    shape: tuple[int, int, int]
    fit: Fit
    range: ValueRange | None
    chosen: str
    images: Mapping[Split, Pixels]
    labels: Mapping[Split, npt.NDArray[np.int64]]
    names: Mapping[Split, Sequence[str]]
    facts: Mapping[Split, Facts]
    modes: Mapping[str, int]
    unreadable: tuple[str, ...]
    problems: tuple[Problem, ...]
    groups: Groups
    is_whole: Callable[[], bool] = lambda: True


class ImageFile:
    """Appends images to a file with checksums; switches to three channels at the first color image."""

    def __init__(self, path: Path, height: int, width: int, channels: int) -> None:
        """With 0 channels, the file has one channel until a chunk has three."""
        self.path = path
        self.size = (height, width)
        self.channels = channels or 1
        self._may_widen = channels == 0
        self._open()

    def _open(self) -> None:
        self._file = self.path.open("wb")
        self._checks: list[int] = []
        self._check = 0
        self._length = 0

    def append(self, pixels: Pixels) -> None:
        """Adds images uint8 [n, h, w, 1 or 3]."""
        if pixels.shape[3] > self.channels:
            if not self._may_widen:
                raise AssertionError("a chunk has more channels than its target")
            self._widen()
        if pixels.shape[3] < self.channels:
            pixels = np.repeat(pixels, self.channels, axis=3)
        self._write(np.ascontiguousarray(pixels).tobytes())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        view = memoryview(data)
        while view:
            room = _BLOCK_BYTES - self._length % _BLOCK_BYTES
            part, view = view[:room], view[room:]
            self._check = zlib.crc32(part, self._check)
            self._length += len(part)
            if self._length % _BLOCK_BYTES == 0:
                self._checks.append(self._check)
                self._check = 0

    def _widen(self) -> None:
        self._file.close()
        narrow = self.path.with_suffix(".narrow")
        self.path.rename(narrow)
        self.channels = 3
        self._open()
        with narrow.open("rb") as file:
            while data := file.read(_BLOCK_BYTES):
                self._write(np.repeat(np.frombuffer(data, dtype=np.uint8), 3).tobytes())
        narrow.unlink()

    def close(self) -> tuple[int, list[int]]:
        """Close the file; returns its length in bytes and the CRC-32 of each block of 4 MiB."""
        self._file.close()
        rest = [self._check] if self._length % _BLOCK_BYTES else []
        return self._length, self._checks + rest


def write_tables(folder: Path, store: Store, images: tuple[int, list[int]]) -> None:
    """Write everything except the images of a store; `images` is their length and checksums."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for split in store.labels:
        columns[f"{split}.labels"] = store.labels[split]
        for field in fields(Facts):
            columns[f"{split}.{field.name}"] = getattr(store.facts[split], field.name)
        if split in store.groups.numbers:
            columns[f"{split}.groups"] = store.groups.numbers[split]
    with (folder / "facts.npz").open("wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]
    text = {
        "name": store.name,
        "classes": store.classes,
        "named": store.named,
        "shape": store.shape,
        "fit": store.fit,
        "range": store.range,
        "chosen": store.chosen,
        "names": {split: list(names) for split, names in store.names.items()},
        "modes": dict(store.modes),
        "unreadable": store.unreadable,
        "groups": {"by": store.groups.by, "names": store.groups.names},
        "problems": [problem.as_dict() for problem in store.problems],
    }
    (folder / "text.json").write_text(json.dumps(text), encoding="utf-8")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("facts.npz", "text.json")}
    check = {"format": STORE_FORMAT, "image_bytes": images[0], "image_checks": images[1], "files": sums}
    (folder / "check.json").write_text(json.dumps(seal(check)), encoding="utf-8")


def open_store(folder: Path) -> Store | None:
    """Open a folder; None if it is missing or damaged. Small sets are read into memory, others are memory-mapped."""
    try:
        check = unseal(parse_object((folder / "check.json").read_bytes()))
        if check["format"] != STORE_FORMAT or (folder / "images.bin").stat().st_size != check["image_bytes"]:
            return None
        content = {name: (folder / name).read_bytes() for name in check["files"]}
        if any(hashlib.sha256(data).hexdigest() != check["files"][name] for name, data in content.items()):
            return None
        images = _read_images(folder / "images.bin")
        if not _is_whole(images, check["image_checks"]):
            return None
        text = json.loads(content["text.json"])
        with np.load(io.BytesIO(content["facts.npz"]), allow_pickle=False) as columns:
            store = _from_parts(images, text, dict(columns))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile):
        return None
    if isinstance(images, np.memmap):
        return replace(store, is_whole=lambda: _is_whole(images, check["image_checks"]))
    return store


def _read_images(path: Path) -> Pixels:
    """All bytes of the file, read-only."""
    size = path.stat().st_size
    if size > _LOADED_BYTES:
        return np.memmap(path, dtype=np.uint8, mode="r")
    images = np.fromfile(path, dtype=np.uint8)
    images.flags.writeable = False
    return images


def _is_whole(images: Pixels, checks: Sequence[int]) -> bool:
    """Whether the checksum of every block matches."""
    starts = range(0, len(images), _BLOCK_BYTES)
    view = images.data
    return len(starts) == len(checks) and all(
        zlib.crc32(view[start : start + _BLOCK_BYTES]) == check for start, check in zip(starts, checks, strict=True)
    )


def _from_parts(images: Pixels, text: Mapping[str, Any], columns: Mapping[str, npt.NDArray[Any]]) -> Store:
    shape = (int(text["shape"][0]), int(text["shape"][1]), int(text["shape"][2]))
    labels = {split: columns[f"{split}.labels"] for split in SPLITS if f"{split}.labels" in columns}
    return Store(
        name=text["name"],
        classes=tuple(text["classes"]),
        named=text["named"],
        shape=shape,
        fit=text["fit"],
        range=None if text["range"] is None else (int(text["range"][0]), int(text["range"][1])),
        chosen=text["chosen"],
        images=_by_split(images, shape, {split: len(column) for split, column in labels.items()}),
        labels=labels,
        names={split: text["names"][split] for split in labels},
        facts={split: Facts(**{name: columns[f"{split}.{name}"] for name in FACT_SHAPES}) for split in labels},
        modes=text["modes"],
        unreadable=tuple(text["unreadable"]),
        problems=tuple(Problem.from_dict(problem) for problem in text["problems"]),
        groups=Groups(
            by=text["groups"]["by"],
            names=tuple(text["groups"]["names"]),
            numbers={split: columns[f"{split}.groups"] for split in labels if f"{split}.groups" in columns},
        ),
    )


def map_images(folder: Path, shape: tuple[int, int, int], counts: Mapping[Split, int]) -> dict[Split, Pixels]:
    """The images of each split as read-only memory-mapped views of the file."""
    path = folder / "images.bin"
    # An empty file cannot be memory-mapped.
    whole = np.memmap(path, dtype=np.uint8, mode="r") if sum(counts.values()) else np.zeros(0, np.uint8)
    return _by_split(whole, shape, counts)


def _by_split(images: Pixels, shape: tuple[int, int, int], counts: Mapping[Split, int]) -> dict[Split, Pixels]:
    """Views uint8 [N, h, w, c] of the bytes, by split."""
    whole = images.reshape(sum(counts.values()), *shape)
    views: dict[Split, Pixels] = {}
    start = 0
    for split, count in counts.items():
        views[split] = whole[start : start + count]
        start += count
    return views


def image_blocks(images: npt.NDArray[Any], values: int = 1 << 22) -> Iterator[npt.NDArray[Any]]:
    """The images in views of about `values` values."""
    step = max(1, values // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), step):
        yield images[start : start + step]
