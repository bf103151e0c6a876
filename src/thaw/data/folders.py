"""Folders of images: class folders, or split folders over class folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from thaw.data.catalogue import (
    SPLIT_NAMES,
    SPLITS,
    Catalogue,
    Entries,
    Payload,
    Source,
    Split,
    natural_key,
    source_name,
)
from thaw.data.decode import SUFFIXES, looks_like_image
from thaw.data.problems import Problem
from thaw.errors import DataError
from thaw.quoting import encodable, printable

_FILES_A_BATCH = 32

_UNSUPPORTED = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".dng", ".arw", ".cr2", ".cr3", ".nef", ".orf", ".raf", ".rw2"}
)
"""Endings of photographs that cannot be read here."""


@dataclass(frozen=True)
class FoundFile:
    """A regular file below a folder: its path from there with "/" between parts, bytes, and time of change in ns."""

    path: str
    size: int
    changed_ns: int

    @property
    def hidden(self) -> bool:
        """Whether the file or a folder above it is out of sight, as system files are."""
        return any(part.startswith(".") or part == "__MACOSX" for part in self.path.split("/"))


@dataclass(frozen=True)
class _Layout:
    """Files by split and class, every class folder (also those without images), and what is wrong."""

    files: dict[Split, list[tuple[str, str]]]  # (path, class)
    classes: list[str]
    problems: list[Problem]


def walk_files(root: Path) -> tuple[list[FoundFile], list[str]]:
    """All files below `root`, naturally sorted, and all folders; links are followed, each folder once.

    Raises:
        DataError: when a folder cannot be read.
    """
    files: list[FoundFile] = []
    folders: list[str] = []
    seen: set[str] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        real = os.path.realpath(root / prefix)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    path = f"{prefix}{entry.name}"
                    if entry.is_dir():
                        folders.append(path)
                        waiting.append(f"{path}/")
                    elif entry.is_file():
                        found = entry.stat()
                        files.append(FoundFile(path, found.st_size, found.st_mtime_ns))
                    else:
                        files.append(FoundFile(path, -1, 0))
        except OSError as error:
            raise DataError(f"{_shown(root / prefix)} cannot be read: {error.strerror}") from None
    return sorted(files, key=lambda file: natural_key(file.path)), sorted(folders, key=natural_key)


def folder_source(root: Path) -> Source:
    """A folder of class folders, with or without split folders above them.

    Raises:
        DataError: for an empty folder, or images without class folders.
    """
    files, folders = walk_files(root)
    shown = _shown(root)
    if not files:
        raise DataError(f"{shown} holds no files: expected a folder with one sub-folder of images for each class")
    if all(_is_hidden(folder) for folder in folders):
        raise DataError(
            f"{shown} has no class folders: expected one sub-folder of images for each class, such as {shown}/cats "
            f"and {shown}/dogs"
        )
    facts = {
        "folder": str(root.resolve()),
        "files": [[f.path, f.size, f.changed_ns] for f in files],
        "folders": folders,
    }
    return Source(name=source_name(root.resolve().name), facts=facts, read=partial(_read, root, files, folders))


def split_images(root: Path, files: Sequence[FoundFile]) -> tuple[list[str], list[Problem]]:
    """The paths of the files that are, or claim to be, images; the rest is told."""
    images, others = [], []
    for file in files:
        claims = _suffix(file.path) in SUFFIXES
        if file.size >= 0 and not file.hidden and (claims or looks_like_image(root / file.path)):
            images.append(file.path)
        else:
            others.append(file)
    visible = [file.path for file in others if not file.hidden]
    photos = [path for path in visible if _suffix(path) in _UNSUPPORTED]
    stray = [path for path in visible if _suffix(path) not in _UNSUPPORTED]
    hidden = [file.path for file in others if file.hidden]
    problems = []
    if photos:
        kinds = ", ".join(sorted({_suffix(path)[1:].upper() for path in photos}))
        message = f"{_count(photos)} in a format that cannot be read here ({kinds}; convert to JPEG or PNG)"
        problems.append(Problem("format", "error", message, _printable(photos)))
    if stray:
        message = f"{_count(stray)} {'is no image and is' if len(stray) == 1 else 'are no images and are'} not used"
        problems.append(Problem("stray", "warning", message, _printable(stray)))
    if hidden:
        message = f"{_count(hidden)} out of sight, as system files are, not used"
        problems.append(Problem("hidden", "note", message, _printable(hidden)))
    return images, problems


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _count(paths: Sequence[str]) -> str:
    return f"{len(paths):,} file{'' if len(paths) == 1 else 's'}"


def _printable(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(encodable, paths))


def _shown(path: Path) -> str:
    return printable(str(path))


def path_batches(root: Path, paths: Sequence[str]) -> Iterator[Sequence[Payload]]:
    """Full paths, some at a time."""
    for start in range(0, len(paths), _FILES_A_BATCH):
        yield [str(root / path) for path in paths[start : start + _FILES_A_BATCH]]


def _read(root: Path, files: Sequence[FoundFile], folders: Sequence[str]) -> Catalogue:
    images, problems = split_images(root, files)
    if not images:
        reason = next((f": {problem.message}" for problem in problems if problem.kind == "format"), "")
        raise DataError(
            f"{_shown(root)} holds {len(files):,} files but no images{reason}: "
            "expected one sub-folder of images for each class"
        )
    layout = _layout(images, folders)
    order = {name: index for index, name in enumerate(layout.classes)}
    splits: dict[Split, Entries] = {}
    for split in SPLITS:
        members = layout.files.get(split)
        if members is None:
            continue
        paths = [path for path, _ in members]
        labels = np.array([order[name] for _, name in members], dtype=np.int64)
        splits[split] = Entries(names=_printable(paths), labels=labels, batches=partial(path_batches, root, paths))
    classes = _printable(layout.classes)
    if len(set(classes)) < len(classes):
        raise DataError(f"{_shown(root)} has class folders whose names print alike: rename those that are not UTF-8")
    return Catalogue(classes=classes, splits=splits, problems=(*problems, *layout.problems))


def _is_hidden(path: str) -> bool:
    return FoundFile(path, 0, 0).hidden


def _layout(images: Iterable[str], folders: Sequence[str]) -> _Layout:
    shown = [folder for folder in folders if not _is_hidden(folder)]
    top = [folder for folder in shown if "/" not in folder]
    deep = {folder.split("/")[0] for folder in shown if "/" in folder}
    named = [folder for folder in top if folder.lower() in SPLIT_NAMES and folder in deep]
    is_split = bool(named) and (
        len(named) == len(top) or any(SPLIT_NAMES[folder.lower()] == "train" for folder in named)
    )
    if not is_split:
        return _sort_in(images, shown, {"": "train"}, [])
    unused = [folder for folder in top if folder not in named]
    problems = []
    if unused:
        message = "folders beside the split folders are not used"
        problems.append(Problem("unused", "warning", message, _printable(unused)))
    splits: dict[str, Split] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.lower()]
        if split in splits.values():
            raise DataError(f"two folders for the {split} split, {_shown(Path(folder))} among them: expected one")
        splits[folder] = split
    return _sort_in((path for path in images if path.split("/")[0] not in unused), shown, dict(splits), problems)


def _sort_in(
    images: Iterable[str], folders: Iterable[str], prefixes: dict[str, Split], problems: list[Problem]
) -> _Layout:
    """Puts each image under its split (by first folder, or the only split) and class (by the folder below)."""
    depth = 0 if "" in prefixes else 1
    files: dict[Split, list[tuple[str, str]]] = {split: [] for split in prefixes.values()}
    classes = {
        parts[depth]
        for parts in (folder.split("/") for folder in folders)
        if len(parts) == depth + 1 and (depth == 0 or parts[0] in prefixes)
    }
    outside = []
    direct: set[str] = set()
    nested: set[str] = set()
    for path in images:
        parts = path.split("/")
        if len(parts) < depth + 2:
            outside.append(path)
        else:
            files[prefixes[parts[0] if depth else ""]].append((path, parts[depth]))
            (direct if len(parts) == depth + 2 else nested).add("/".join(parts[: depth + 1]))
    if deeper := sorted(nested - direct, key=natural_key):
        message = (
            "folders with images in sub-folders only: expected CLASS/IMAGE, or SPLIT/CLASS/IMAGE "
            "where the split folders are called train, validation (or val) and test"
        )
        problems.append(Problem("layout", "error", message, _printable(deeper)))
    if outside:
        message = f"{len(outside):,} image(s) beside the class folders belong to no class and are not used"
        problems.append(Problem("unused", "warning", message, _printable(outside)))
    return _Layout(files, sorted(classes, key=natural_key), problems)
