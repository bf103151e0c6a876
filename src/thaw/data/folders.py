"""Folders of images: class folders, or split folders over class folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from thaw.data.catalog import SPLITS, Catalog, Entries, Payload, Source, Split, natural_key, source_name
from thaw.data.decode import SUFFIXES, looks_like_image
from thaw.data.groups import groups_by_pattern
from thaw.data.layout import Layout, find_layout
from thaw.data.pairs import find_pairs
from thaw.data.pattern import FilePattern, require_match
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.data.spelling import folded, one_spelling
from thaw.data.walk import FoundFile, Walk, is_hidden, shown_path
from thaw.errors import DataError
from thaw.quoting import encodable, shown

_FILES_A_BATCH = 32

_UNSUPPORTED = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".dng", ".arw", ".cr2", ".cr3", ".nef", ".orf", ".raf", ".rw2"}
)
"""Suffixes of photographs that cannot be read here."""


# Suffixes of broken links to files of another kind; a broken link with any other name may have been a folder.
_FILE_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,5}")


def folder_source(root: Path, walk: Walk, settings: DataSettings) -> Source:
    """A folder of class folders, with or without split folders above them.

    Args:
        root: the folder.
        walk: its files and folders.
        settings: the file pattern, the groups, and whether names are merged.

    Raises:
        DataError: for an empty folder, or a folder without class folders.
    """
    where = shown_path(root)
    if not walk.files:
        raise DataError(
            f"{where} is empty: expected a folder with one subfolder of images per class", code="data-empty"
        )
    if all(is_hidden(folder) for folder in walk.folders):
        broken = [file for file in walk.files if file.broken and not file.hidden and not _is_image_link(file)]
        reason = f" but {_links(broken)}" if broken else ""
        raise DataError(
            f"{where} has no class folders{reason}: expected one subfolder of images per class, such as "
            f"{where}/cats and {where}/dogs",
            code="data-layout",
        )
    facts = {
        "folder": str(root.resolve()),
        "files": [[f.path, f.size, f.changed_ns] for f in walk.files],
        "folders": [*walk.folders, *walk.loops],
        "reading": [settings.pattern, settings.group_by, settings.merge_spellings],
    }
    name = source_name(root.resolve().name)
    return Source(name=name, facts=facts, read=partial(_read, root, walk, settings), has_files=True)


def split_images(root: Path, files: Sequence[FoundFile]) -> tuple[list[str], list[Problem]]:
    """The paths of all image files, and problems for the other files.

    A broken link to an image counts as an image, so that it is reported among those that cannot be read.
    """
    images, others, lost = [], [], []
    for file in files:
        if file.hidden:
            others.append(file)
        elif file.broken and _is_image_link(file):
            images.append(file.path)
        elif file.broken and not _FILE_ENDING.fullmatch(_suffix(file.path)):
            lost.append(file)
        elif file.size >= 0 and (_suffix(file.path) in SUFFIXES or looks_like_image(root / file.path)):
            images.append(file.path)
        else:
            others.append(file)
    visible = [file for file in others if not file.hidden]
    photos = [file.path for file in visible if _suffix(file.path) in _UNSUPPORTED]
    stray = [file for file in visible if _suffix(file.path) not in _UNSUPPORTED]
    hidden = [file.path for file in others if file.hidden]
    problems = []
    if lost:
        message = f"{len(lost):,} broken link{'' if len(lost) == 1 else 's'}"
        names = tuple(f"{encodable(file.path)} ({file.broken})" for file in lost)
        problems.append(Problem("link", "error", message, names))
    if photos:
        kinds = ", ".join(sorted({_suffix(path)[1:].upper() for path in photos}))
        message = f"{_count(photos)} in a format that cannot be read ({kinds}; convert to JPEG or PNG)"
        problems.append(Problem("format", "error", message, _printable(photos)))
    if stray:
        message = f"{_count(stray)} that {'is not an image' if len(stray) == 1 else 'are not images'}, ignored"
        names = tuple(encodable(file.path) + (f" ({file.broken})" if file.broken else "") for file in stray)
        problems.append(Problem("stray", "warning", message, names))
    if hidden:
        message = f"{_count(hidden)} hidden, ignored"
        problems.append(Problem("hidden", "note", message, _printable(hidden)))
    return images, problems


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _count(files: Sequence[object]) -> str:
    return f"{len(files):,} file{'' if len(files) == 1 else 's'}"


def _printable(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(encodable, paths))


def path_batches(root: Path, paths: Sequence[str]) -> Iterator[Sequence[Payload]]:
    """Full paths, in batches."""
    for start in range(0, len(paths), _FILES_A_BATCH):
        yield [str(root / path) for path in paths[start : start + _FILES_A_BATCH]]


def _is_image_link(file: FoundFile) -> bool:
    """Whether a broken link is one to an image, by its own name or that of its target."""
    return _suffix(file.path) in SUFFIXES or _suffix(file.broken.split(" does not exist")[0]) in SUFFIXES


def _links(files: Sequence[FoundFile]) -> str:
    return "broken links (" + ", ".join(f"{shown_path(f.path)}: {f.broken}" for f in files[:3]) + ")"


def _read(root: Path, walk: Walk, settings: DataSettings) -> Catalog:
    images, problems = _chosen_images(root, walk, settings)
    others = {file.path for file in walk.files if not file.hidden} - set(images)
    layout = find_layout(shown_path(root), images, others, walk.folders)
    return layout_catalog(shown_path(root), layout, settings, partial(path_batches, root), problems)


def layout_catalog(
    where: str,
    layout: Layout,
    settings: DataSettings,
    batches_of: Callable[[Sequence[str]], Iterator[Sequence[Payload]]],
    problems: Sequence[Problem],
) -> Catalog:
    """The catalog of images that lie in class folders.

    Args:
        where: the root, for messages.
        layout: the images by split and class folder.
        settings: the groups, and whether names are merged.
        batches_of: reads the images of these paths, in batches.
        problems: problems found before, which come first.

    Raises:
        DataError: for class folders whose names cannot be distinguished.
    """
    members = [(split, path, name) for split in SPLITS for path, name in layout.files.get(split, ())]
    counts = Counter(name for *_, name in members)
    named, merged = one_spelling({name: counts[name] for name in layout.classes}, merge=settings.merge_spellings)
    classes = sorted(set(named.values()), key=natural_key)
    if len(classes) < len({folded(name) for name in layout.classes} if settings.merge_spellings else layout.classes):
        raise DataError(
            f"{where} has class folders whose names look alike: rename those that are not UTF-8",
            code="data-classes",
        )
    order = {name: index for index, name in enumerate(classes)}
    splits: dict[Split, Entries] = {}
    for split in (split for split in SPLITS if split in layout.files):
        paths = [path for path, _ in layout.files[split]]
        labels = np.array([order[named[name]] for _, name in layout.files[split]], dtype=np.int64)
        splits[split] = Entries(names=_printable(paths), labels=labels, batches=partial(batches_of, paths))
    pairs = find_pairs(path for _, path, _ in members)
    groups, grouping = groups_by_pattern(
        {split: [path for path, _ in layout.files[split]] for split in splits}, settings.group_by
    )
    problems = [*problems, *layout.problems, *merged, *grouping, *([pairs] if pairs else [])]
    return Catalog(classes=tuple(classes), splits=splits, problems=tuple(problems), groups=groups)


def _chosen_images(root: Path, walk: Walk, settings: DataSettings) -> tuple[list[str], list[Problem]]:
    """The images that the settings choose, and problems of the other files."""
    found, problems = split_images(root, walk.files)
    if walk.loops:
        message = "links to a folder above them are not followed"
        problems.append(Problem("link", "note", message, _printable(walk.loops)))
    if not found:
        reason = next((f": {p}" for p in problems if p.kind in ("format", "link") and p.severity == "error"), "")
        if not reason and any(_suffix(file.path) == ".dvc" for file in walk.files):
            reason = " (there are .dvc files: fetch the images with dvc pull)"
        raise DataError(
            f"{shown_path(root)} holds {len(walk.files):,} files but no images{reason}: "
            "expected one subfolder of images per class",
            code="data-empty",
        )
    if not settings.pattern:
        return found, problems
    images = FilePattern.parse(settings.pattern).select(found)
    require_match(shown_path(root), settings.pattern, found, images)
    if len(images) < len(found):
        message = (
            f"data.pattern {shown(settings.pattern)} excludes {len(found) - len(images):,} of {len(found):,} images"
        )
        problems.append(Problem("pattern", "note", message))
    return images, problems
