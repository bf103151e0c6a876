"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from thaw.errors import RunError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Put `content` (text as UTF-8) at `path` so that a reader, or a power cut, finds the old file or the new one.

    Raises:
        RunError: when the disk is full or the folder cannot be written; the old file is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}\n"
            "free some space there, or choose another folder with --out"
        ) from error
    finally:
        # There only if something went wrong, Ctrl-C included.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep_unfinished(folder: Path) -> None:
    """Remove what `write_atomically` had begun in `folder` when its process was killed."""
    with contextlib.suppress(OSError):
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
