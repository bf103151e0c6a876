"""Standard output and standard error as a terminal may have them: nothing that thaw or a library writes steers it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from thaw.quoting import printable_lines


class GuardedStream:
    """A text stream that writes out control characters, but for line feeds, instead of passing them on.

    Names are quoted where lines are put together; this holds for all the rest too: warnings, tracebacks, usage errors.

    Attributes:
        unguarded: the stream itself, for what draws on a terminal and quotes its texts on its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """As a text stream does; the number of characters that were given."""
        self.unguarded.write(printable_lines(text))
        return len(text)

    def flush(self) -> None:
        """As a text stream does."""
        self.unguarded.flush()

    def isatty(self) -> bool:
        """As a text stream does."""
        return self.unguarded.isatty()

    def fileno(self) -> int:
        """As a text stream does."""
        return self.unguarded.fileno()

    @property
    def encoding(self) -> str:
        """As a text stream has it."""
        return self.unguarded.encoding

    @property
    def errors(self) -> str | None:
        """As a text stream has it."""
        return self.unguarded.errors


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Standard output and standard error are guarded; names that are not text are written with backslashes."""
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
    """The stream below a guarded one; any other as it is."""
    found: TextIO = stream.unguarded if isinstance(stream, GuardedStream) else stream
    return found
