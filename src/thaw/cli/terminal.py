"""Guarded standard streams: nothing that thaw or a library writes can control the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from thaw.quoting import printable_lines


class GuardedStream:
    """A text stream that escapes control characters except line feeds.

    Names are quoted where lines are composed. This covers the rest: warnings, tracebacks, usage errors.

    Attributes:
        unguarded: the stream itself, for code that draws on a terminal and quotes its own texts.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """Write text; return its number of characters."""
        self.unguarded.write(printable_lines(text))
        return len(text)

    def flush(self) -> None:
        """The method of a text stream."""
        self.unguarded.flush()

    def isatty(self) -> bool:
        """The method of a text stream."""
        return self.unguarded.isatty()

    def fileno(self) -> int:
        """The method of a text stream."""
        return self.unguarded.fileno()

    @property
    def encoding(self) -> str:
        """The attribute of the text stream."""
        return self.unguarded.encoding

    @property
    def errors(self) -> str | None:
        """The attribute of the text stream."""
        return self.unguarded.errors


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """A context in which standard output and error are guarded; undecodable bytes are written as escapes."""
    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = map(GuardedStream, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def unguarded(stream: Any) -> TextIO:
    """The stream inside a guarded one; any other stream unchanged."""
    found: TextIO = stream.unguarded if isinstance(stream, GuardedStream) else stream
    return found
