"""All files below a folder, with links followed, and why a file is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from thaw.data.catalog import natural_key
from thaw.errors import DataError
from thaw.quoting import encodable, printable

# A pool of images may be linked from several classes and splits, but links to links can multiply without limit.
_MOST_FOLDERS_AGAIN = 10_000
_MOST_FILES_AGAIN = 2_000_000

_FETCHED_BY = (("annex/objects", "git annex get"), (".dvc/cache", "dvc pull"), ("dvc/", "dvc pull"))
"""Part of a link's target -> the command that fetches the file."""


@dataclass(frozen=True)
class FoundFile:
    """A file below a folder.

    Attributes:
        path: relative to the folder, with "/" between parts.
        size: bytes; -1 if it is not a regular file.
        changed_ns: modification time in ns.
        broken: why a broken link cannot be followed; else "".
    """

    path: str
    size: int
    changed_ns: int
    broken: str = ""

    @property
    def hidden(self) -> bool:
        """Whether the file or a folder above it is hidden."""
        return is_hidden(self.path)


@dataclass(frozen=True)
class Walk:
    """The content of a folder, naturally sorted.

    Attributes:
        files: all files.
        folders: the paths of all folders.
        loops: links to a folder above themselves, which are not followed.
    """

    files: list[FoundFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)


def is_hidden(path: str) -> bool:
    """Whether a part of a relative path is hidden."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def shown_path(path: Path | str) -> str:
    """A path as printable text."""
    return printable(str(path))


def why_missing(path: str | Path) -> str:
    """Why there is no file at `path`: the target of its link, and the command that fetches it."""
    try:
        target = str(Path(path).readlink())
    except (OSError, ValueError):
        return f"No such file: {encodable(str(path))}"
    fetch = next((f"; fetch it with {command}" for part, command in _FETCHED_BY if part in target), "")
    return f"broken link: {encodable(target)} does not exist{fetch}"


def file_state(path: str) -> tuple[str, int, int]:
    """A file's absolute path, size in bytes and modification time in ns; -1 and 0 if it is missing."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return str(Path(path).absolute()), -1, 0
    return str(Path(path).absolute()), found.st_size, found.st_mtime_ns


def walk_files(root: Path) -> Walk:
    """All files and folders below `root`.

    Links are followed, except to a folder above them; a folder with two links to it occurs twice.

    Raises:
        DataError: when a folder cannot be read, or links reach the same folders too often.
    """
    walk = Walk()
    seen: set[tuple[int, int]] = set()
    folders_again = files_again = 0
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, above = waiting.pop()
        try:
            identity = _identity((root / prefix).stat())
            if identity in above:
                walk.loops.append(prefix[:-1])
                continue
            again = identity in seen
            seen.add(identity)
            before = len(walk.files)
            below = _read_folder(root, prefix, walk)
        except OSError as error:
            message = f"{shown_path(root / prefix)} cannot be read: {error.strerror}"
            raise DataError(message, code="data-file") from None
        folders_again += again
        files_again += len(walk.files) - before if again else 0
        if folders_again > _MOST_FOLDERS_AGAIN or files_again > _MOST_FILES_AGAIN:
            raise DataError(
                f"links below {shown_path(root)} reach the same folders too often, such as "
                f"{shown_path(prefix)[:80]}: remove some of these links",
                code="data-link",
            )
        waiting += [(f"{path}/", above | {identity}) for path in below]
    folders = set(walk.folders) - set(walk.loops)
    files = sorted(walk.files, key=lambda file: natural_key(file.path))
    return Walk(files, sorted(folders, key=natural_key), sorted(walk.loops, key=natural_key))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _read_folder(root: Path, prefix: str, walk: Walk) -> list[str]:
    """Add the content of one folder to `walk`; returns its subfolders."""
    below: list[str] = []
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            try:
                found = entry.stat()
                if entry.is_dir():
                    below.append(path)
                    continue
                size, changed_ns = (found.st_size, found.st_mtime_ns) if entry.is_file() else (-1, 0)
                walk.files.append(FoundFile(path, size, changed_ns))
            except OSError as error:
                reason = why_missing(entry.path) if entry.is_symlink() else str(error.strerror)
                walk.files.append(FoundFile(path, -1, 0, reason))
    walk.folders.extend(below)
    return below
