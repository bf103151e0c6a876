"""Folders of images: class folders, or split folders over class folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from thaw.data.catalogue import SPLIT_NAMES, SPLITS, Catalogue, Entries, Payload, Source, Split, natural_key, slug
from thaw.data.decode import SUFFIXES, looks_like_image
from thaw.data.problems import Problem
from thaw.errors import DataError

_FILES_A_BATCH = 32


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
            raise DataError(f"{root / prefix} cannot be read: {error.strerror}") from None
    return sorted(files, key=lambda file: natural_key(file.path)), sorted(folders, key=natural_key)


def folder_source(root: Path) -> Source:
    """A folder of class folders, with or without split folders above them.

    Raises:
        DataError: for an empty folder, or images without class folders.
    """
    files, folders = walk_files(root)
    if not files:
        raise DataError(f"{root} holds no files: expected a folder with one sub-folder of images for each class")
    if not [folder for folder in folders if not _is_hidden(folder)]:
        raise DataError(
            f"{root} has no class folders: expected one sub-folder of images for each class, such as {root.name}/cats "
            f"and {root.name}/dogs"
        )
    facts = {
        "folder": str(root.resolve()),
        "files": [[f.path, f.size, f.changed_ns] for f in files],
        "folders": folders,
    }
    return Source(name=slug(root.resolve().name), facts=facts, read=partial(_read, root, files, folders))


def split_images(root: Path, files: Sequence[FoundFile]) -> tuple[list[str], list[Problem]]:
    """The paths of the files that are, or claim to be, images; the rest is told as stray."""
    images, stray = [], []
    for file in files:
        claims = PurePosixPath(file.path).suffix.lower() in SUFFIXES
        if file.size >= 0 and not file.hidden and (claims or looks_like_image(root / file.path)):
            images.append(file.path)
        else:
            stray.append(file.path)
    problems = []
    if stray:
        message = (
            "1 file is no image and is not used"
            if len(stray) == 1
            else f"{len(stray):,} files are no images and are not used"
        )
        problems.append(Problem("stray", "warning", message, tuple(stray)))
    return images, problems


def path_batches(root: Path, paths: Sequence[str]) -> Iterator[Sequence[Payload]]:
    """Full paths, some at a time."""
    for start in range(0, len(paths), _FILES_A_BATCH):
        yield [str(root / path) for path in paths[start : start + _FILES_A_BATCH]]


def _read(root: Path, files: Sequence[FoundFile], folders: Sequence[str]) -> Catalogue:
    images, problems = split_images(root, files)
    if not images:
        raise DataError(
            f"{root} holds {len(files):,} files but no images: expected one sub-folder of images for each class"
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
        splits[split] = Entries(names=paths, labels=labels, batches=partial(path_batches, root, paths))
    return Catalogue(classes=tuple(layout.classes), splits=splits, problems=(*problems, *layout.problems))


def _is_hidden(path: str) -> bool:
    return FoundFile(path, 0, 0).hidden


def _layout(images: Iterable[str], folders: Sequence[str]) -> _Layout:
    shown = [folder for folder in folders if not _is_hidden(folder)]
    top = [folder for folder in shown if "/" not in folder]
    deep = {folder.split("/")[0] for folder in shown if "/" in folder}
    named = [folder for folder in top if folder.lower() in SPLIT_NAMES and folder in deep]
    is_split = bool(named) and (len(named) == len(top) or any(folder.lower() == "train" for folder in named))
    if not is_split:
        return _sort_in(images, shown, {"": "train"}, [])
    unused = [folder for folder in top if folder not in named]
    problems = []
    if unused:
        message = "folders beside the split folders are not used"
        problems.append(Problem("unused", "warning", message, tuple(unused)))
    splits: dict[str, Split] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.lower()]
        if split in splits.values():
            raise DataError(f"two folders for the {split} split, {folder!r} among them: expected one")
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
    for path in images:
        parts = path.split("/")
        if len(parts) < depth + 2:
            outside.append(path)
        else:
            files[prefixes[parts[0] if depth else ""]].append((path, parts[depth]))
    if outside:
        message = f"{len(outside):,} image(s) beside the class folders belong to no class and are not used"
        problems.append(Problem("unused", "warning", message, tuple(outside)))
    return _Layout(files, sorted(classes, key=natural_key), problems)
