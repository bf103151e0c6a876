"""Missing system resources: standard streams, memory, file descriptors, a home folder, disk space."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from thaw.quoting import PATH_LENGTH, shown

_MEMORY_WORDS = (
    *("can't allocate memory", "cannot allocate memory", "failed to map segment"),
    # The last is from oneDNN, which compiles code for each operation.
    *("bad_alloc", "out of memory", "could not create a primitive"),
)
# Messages of RuntimeErrors -> explanations.
_MEANINGS = {
    "home directory": "this user has no home folder\nset HOME, or give paths without ~",
    "can't start new thread": (
        "the system cannot start another thread\nclose other programs, or raise the limit (ulimit -u)"
    ),
}


def open_streams() -> None:
    """Open missing standard streams (`>&-`) on the null device.

    Otherwise the next file that is opened would get the number of standard output, and output would go there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


def silence_output() -> None:
    """Redirect standard output to the null device, after its reader has exited or a write has failed.

    Otherwise the interpreter would fail again when it flushes at exit.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def in_words(error: BaseException) -> str | None:
    """The missing resource that caused the error, and a remedy; None for other errors."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _MEMORY_WORDS):
        return "not enough memory\nclose other programs, raise the limit (ulimit -v), or use smaller batches"
    if isinstance(error, OSError):
        return _of_the_system(error)
    known = (meaning for words, meaning in _MEANINGS.items() if isinstance(error, RuntimeError) and words in text)
    return next(known, None)


def _of_the_system(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return f"{reason}\nclose other programs, or raise the limit (ulimit -n)"
    if error.filename is not None:
        # A path that is too long, a folder without permission, a removed device.
        return f"cannot use {shown(os.fsdecode(error.filename), PATH_LENGTH)}: {reason}"
    return f"system error: {reason}"
