"""Progress of a command on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

from thaw.cli.interrupt import was_stopped
from thaw.cli.terminal import unguarded
from thaw.data.problems import Problem
from thaw.events import Decoding, Step
from thaw.quoting import printable


class Progress:
    """Shows events on `stream`, standard error by default. Pass it as `on_event`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console

        # Names and paths are shown as they are: without markup, and without line breaks inside them.
        self._console = Console(
            file=unguarded(stream or sys.stderr), highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._decoding_shown = 0.0
        self._decoding_open = False

    def __call__(self, event: object) -> None:
        """Show an event; other events than `Decoding` and `Step` are ignored.

        Raises:
            KeyboardInterrupt: if the interrupt of an earlier signal was lost, for example in a finalizer.
        """
        if was_stopped():
            raise KeyboardInterrupt
        self.show(event)

    def show(self, event: object) -> None:
        """Show an event."""
        if isinstance(event, Decoding):
            self._decoding(event.done, event.total)
        elif isinstance(event, Step):
            self.say(event.text)

    def _decoding(self, done: int, total: int) -> None:
        """Show the number of decoded images, on a terminal in one line that is updated at most ten times a second."""
        now = time.monotonic()
        if self._console.is_terminal and (done == total or now - self._decoding_shown > 0.1):
            self._decoding_shown, self._decoding_open = now, done < total
            self._console.print(f"decoding images {done:,} / {total:,}", end="\r" if done < total else "\n")

    def say(self, text: str) -> None:
        """Show one or more lines."""
        self.close()
        for line in text.split("\n"):
            self._print(line)

    def say_missing(self, missing: Mapping[str, str]) -> None:
        """Show a line for each entry of `missing`: name -> reason."""
        for name, reason in missing.items():
            self.say(printable(f"{name}: {'; '.join(reason.splitlines())}"))

    def _print(self, line: str) -> None:
        """Print one line. The console writes control sequences itself, so names are quoted here."""
        self._console.print(printable(line))

    def close(self) -> None:
        """End a line that is being rewritten."""
        if self._decoding_open:
            self._console.print()
            self._decoding_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ProblemProgress(Progress):
    """Shows the problems found in images as well.

    Attributes:
        problems: the problems found so far.
    """

    def __init__(self, stream: TextIO | None = None, *, is_quiet: bool) -> None:
        super().__init__(stream)
        self.problems: list[Problem] = []
        self._is_quiet = is_quiet

    def show(self, event: object) -> None:
        """Show an event; problems are only collected if quiet."""
        if isinstance(event, Problem):
            self.problems.append(event)
            if not self._is_quiet:
                self.say(f"{event.severity}: {event}")
        else:
            super().show(event)
