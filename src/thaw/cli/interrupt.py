"""Signals that interrupt a command, as an error with a message.

Ctrl-C, SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt in the main thread, at most once in two seconds,
until `stopped` turns it into an error. From then on they are ignored, so that the message is shown in full. Files are
written completely or not at all, so a second signal breaks nothing at any moment.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

from thaw.errors import ThawError

STOPPED = "interrupted; run the same command again"
RESUMABLE = "interrupted; finished work is saved: run the same command again to continue"

_handled: list[signal.Signals] = []
"""The signals that this process handles itself."""

_received: list[int] = []
"""The first signal received; a list, since a handler may run between any two operations."""

_last_raised = [0.0]
"""Time of the last signal that raised KeyboardInterrupt, by the monotonic clock."""

_SETTLING_SECONDS = 2.0
"""Signals within this time after an interrupt are ignored."""


class StoppedError(ThawError):
    """The user interrupted the command; the message says what is saved.

    It is no KeyboardInterrupt, since typer catches that, and treats it differently from version to version.

    Attributes:
        exit_code: that of a shell for the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    exit_code = 128 + signal.SIGINT


def handle_signals() -> None:
    """Let the signals raise KeyboardInterrupt, except those that the parent process set to be ignored."""
    # Windows has no SIGHUP.
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(signal.Signals.__members__):
        number = signal.Signals[name]
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
            _handled.append(number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del frame
    now = time.monotonic()
    is_repeated = bool(_received) and now - _last_raised[0] < _SETTLING_SECONDS
    if not _received:
        _received.append(number)
    # A second interrupt right after the first would interrupt its handling.
    if not is_repeated:
        _last_raised[0] = now
        raise KeyboardInterrupt


def stopped(message: str, resume: str = "") -> StoppedError:
    """Return the error of an interrupted command, and ignore later signals.

    Args:
        message: what is saved.
        resume: the command that continues, if there is one.
    """
    for number in _handled:
        signal.signal(number, signal.SIG_IGN)
    error = StoppedError(message)
    error.next_command = resume
    error.exit_code = exit_code()
    return error


def was_stopped() -> bool:
    """Whether a signal was received. Its interrupt may have been lost, or turned into another error."""
    return bool(_received)


def exit_code() -> int:
    """The exit code of an interrupted process: 128 plus the number of the first signal."""
    return 128 + (_received[0] if _received else signal.SIGINT)


@contextlib.contextmanager
def told_when_stopped(message: str) -> Iterator[None]:
    """Turn an interrupt into an error with this message.

    Raises:
        StoppedError: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise stopped(message) from None
