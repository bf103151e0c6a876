"""Open a source: a known data set, a path, a Hub id, or data in memory."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from thaw.data.arrays import digits_source
from thaw.data.catalog import Source, source_name
from thaw.data.decode import SUFFIXES
from thaw.data.folders import folder_source
from thaw.data.groups import no_groups_here
from thaw.data.hub import hub_source
from thaw.data.layout import has_class_folders
from thaw.data.list_files import LIST_SUFFIXES
from thaw.data.lists import list_source, names_images
from thaw.data.npz import npz_source
from thaw.data.objects import memory_source
from thaw.data.pattern import PatternError
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.data.tables import parquet_files, parquet_source
from thaw.data.walk import Walk, shown_path, walk_files, why_missing
from thaw.errors import DataError, UsageError
from thaw.quoting import PATH_LENGTH, shown

SourceLike = Any
"""A name, path or Hub id, or data in memory (see `memory_source`)."""

HUB_IDS: Mapping[str, str] = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}
"""Known data sets -> their Hub ids."""

FILE_TYPES: Mapping[str, Callable[[Path, DataSettings], Source]] = {
    ".parquet": parquet_source,
    **dict.fromkeys(sorted(LIST_SUFFIXES), list_source),
    ".npz": npz_source,
}
"""Suffixes of data sets in one file, in lower case -> the function that opens one."""

# Larger files next to images, such as annotations, are not opened.
_LARGEST_LIST_BYTES = 128 << 20

NAMES = ("digits", *HUB_IDS)


def open_source(source: SourceLike, settings: DataSettings, *, data_root: str | Path | None = None) -> Source:
    """Open a source; nothing is decoded or downloaded yet.

    Args:
        source: one of `NAMES`; a folder; a file with a suffix of `FILE_TYPES`; a Hub id (`owner/name`); or data in
            memory. An opened source is returned unchanged.
        settings: columns, groups and file pattern.
        data_root: a folder with parquet subfolders for the known data sets; by default `THAW_DATA`.

    Raises:
        DataError: when the source does not exist or is not a data set.
        UsageError: when the source is empty, or `data_root` is not a folder.
    """
    if data_root is not None and not isinstance(data_root, str | os.PathLike):
        raise UsageError(f"data root {shown(data_root)}: expected the path of a folder", code="usage-data-root")
    opened = (
        memory_source(source, settings) if not isinstance(source, str | Path) else _named(source, settings, data_root)
    )
    if settings.pattern and not opened.has_files:
        raise PatternError(
            f"data.pattern {shown(settings.pattern)} needs a folder or a table of paths, and {opened.name} is neither"
        )
    return opened


def _named(source: str | Path, settings: DataSettings, data_root: str | Path | None) -> Source:
    """A source by its name, path or Hub id."""
    text = str(source)
    if not text.strip():
        message = f"the source is empty: expected a folder, a table, a Hub id, or {', '.join(NAMES)}"
        raise UsageError(message, code="usage-source")
    if text in NAMES:
        opened = _digits(settings) if text == "digits" else _named_source(text, settings, data_root)
        return _with_note(opened, text)
    try:
        path = Path(text).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    # A path may be too long, contain a null byte, lie in an inaccessible folder, or name an unknown user.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {shown(text, PATH_LENGTH)}: {reason}", code="data-source") from None
    if is_folder:
        return _directory_source(path, settings)
    if is_file:
        return _file_source(path, settings)
    if path.is_symlink():
        raise DataError(f"{shown_path(path)} cannot be read: {why_missing(path)}", code="data-link")
    if isinstance(source, str) and _can_be_hub_id(text):
        return hub_source(text, settings)
    message = f"{shown(text, PATH_LENGTH)} is neither a path nor a known data set{_suggestion(path)}"
    raise DataError(f"{message}\nKnown: {', '.join(NAMES)}.", code="data-source")


def _digits(settings: DataSettings) -> Source:
    no_groups_here(settings.group_by, "digits")
    return digits_source()


def _with_note(source: Source, name: str) -> Source:
    """Add a note if a folder has the name of a known data set."""
    if not Path(name).is_dir():
        return source
    message = f"{shown(name)} is the known data set; for the folder of that name, write ./{name}"
    return replace(source, problems=(Problem("name", "note", message),))


def _directory_source(path: Path, settings: DataSettings) -> Source:
    walk = walk_files(path)
    tables = [file.path for file in walk.files if file.path.lower().endswith(".parquet") and not file.hidden]
    images = [file.path for file in walk.files if Path(file.path).suffix.lower() in SUFFIXES and not file.hidden]
    if tables and any("/" in image for image in images):
        raise DataError(
            f"{shown_path(path)} holds both parquet files ({shown_path(tables[0])}) and folders of images\n"
            "Give the path of the parquet file, or move it out of the folder to use the images.",
            code="data-layout",
        )
    if tables:
        return parquet_source(path, settings)
    listed = None if has_class_folders(images, walk.folders) else _list_in(path, walk, settings)
    return listed if listed is not None else folder_source(path, walk, settings)


def _list_in(path: Path, walk: Walk, settings: DataSettings) -> Source | None:
    """The table of paths and labels in a folder without class folders.

    Raises:
        DataError: when there are several.
    """
    found = []
    for file in walk.files:
        is_text = Path(file.path).suffix.lower() in LIST_SUFFIXES and file.size <= _LARGEST_LIST_BYTES
        if is_text and "/" not in file.path and not file.hidden:
            found += [file.path] if names_images(path / file.path) else []
    if len(found) > 1:
        proposals = " or ".join(shown_path(path / name) for name in found[:3])
        raise DataError(
            f"{shown_path(path)} has no class folders but several tables of images: did you mean {proposals}?",
            code="data-layout",
        )
    if not found:
        return None
    source = list_source(path / found[0], settings)
    note = Problem("layout", "note", f"no class folders: labels are read from {shown_path(found[0])}")
    return replace(source, name=source_name(path.resolve().name), problems=(note,))


def _named_source(name: str, settings: DataSettings, data_root: str | Path | None) -> Source:
    root = data_root if data_root is not None else os.environ.get("THAW_DATA", "")
    if root:
        if not Path(root).expanduser().is_dir():
            origin = "--data-root" if data_root is not None else "THAW_DATA"
            message = f"{origin} {shown(str(root), PATH_LENGTH)} is not a folder"
            raise UsageError(message, code="usage-data-root")
        folder = Path(root).expanduser() / name
        if folder.is_dir() and parquet_files(folder):
            return parquet_source(folder, settings, name)
    return hub_source(HUB_IDS[name], settings, name)


def _file_source(path: Path, settings: DataSettings) -> Source:
    suffix = path.suffix.lower()
    if suffix in FILE_TYPES:
        return FILE_TYPES[suffix](path, settings)
    if suffix in SUFFIXES:
        message = f"{path} is a single image: expected a folder with one subfolder of images per class"
        raise DataError(message, code="data-source")
    raise DataError(
        f"{path} has an unknown file type: expected a folder of class folders, or a file of one of the types "
        f"{', '.join(FILE_TYPES)}",
        code="data-source",
    )


def _can_be_hub_id(text: str) -> bool:
    owner, _, name = text.partition("/")
    return bool(owner and name) and "/" not in name and not text.startswith((".", "~", "/")) and "\\" not in text


def _suggestion(path: Path) -> str:
    """The closest names: known data sets, and files next to the path."""
    try:
        beside = {entry.name: str(path.parent / entry.name) for entry in path.parent.iterdir()}
    except OSError:
        beside = {}
    choices = {**{name: name for name in NAMES}, **beside}
    close = difflib.get_close_matches(path.name, choices, n=2)
    return f": did you mean {' or '.join(choices[name] for name in close)}?" if close else "."
