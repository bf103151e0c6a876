"""Signals that stop a command, as an error with something to say.

Ctrl-C, SIGTERM and SIGHUP (a terminal that was closed) all raise KeyboardInterrupt in the main thread, at most once in
two seconds, until somebody says by `stopped` that it has arrived; from then on they are ignored, so that what is told
is told whole. Everything on disk is written whole or not at all, so a second signal at any moment breaks nothing.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from thaw.errors import ThawError

T = TypeVar("T")

STOPPED = "interrupted; run the same command again"
RESUMABLE = "interrupted; what is finished is saved: run the same command again to continue"

_handled: list[signal.Signals] = []
"""The signals that this process handles itself."""

_received: list[int] = []
"""The first signal that came; a list, since a handler may run between any two operations."""

_last_raised = [0.0]
"""When a signal last raised KeyboardInterrupt, by the monotonic clock."""

_SETTLING_SECONDS = 2.0
"""Within this time after an interrupt further signals are ignored."""


class StoppedError(ThawError):
    """The user stopped the command; the message says what has been kept.

    A KeyboardInterrupt would not do: typer takes it, and what it makes of it differs between its versions.

    Attributes:
        exit_code: as a shell gives it for the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    exit_code = 128 + signal.SIGINT


def handle_signals() -> None:
    """Let the signals raise KeyboardInterrupt, but for those that whoever started this process wants ignored."""
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
    # A second interrupt on the heels of the first would cut off the handling of that.
    if not is_repeated:
        _last_raised[0] = now
        raise KeyboardInterrupt


def stopped(message: str, resume: str = "") -> StoppedError:
    """The error of a command that was stopped; signals that come after are ignored.

    Args:
        message: what has been kept.
        resume: the command that goes on, if there is one.
    """
    for number in _handled:
        signal.signal(number, signal.SIG_IGN)
    error = StoppedError(message)
    error.next_command = resume
    error.exit_code = exit_code()
    return error


def was_stopped() -> bool:
    """Whether a signal came: the interrupt that it raised may have been lost, or become another error, on its way."""
    return bool(_received)


def watched(events: Iterable[T]) -> Iterator[T]:
    """The events of a job, which ends at the next one where an interrupt was lost, as in a finalizer it is.

    Raises:
        KeyboardInterrupt: when a signal came.
    """
    for event in events:
        if was_stopped():
            raise KeyboardInterrupt
        yield event


def exit_code() -> int:
    """Of a process that was stopped: 128 and the number of the first signal."""
    return 128 + (_received[0] if _received else signal.SIGINT)


@contextlib.contextmanager
def told_when_stopped(message: str) -> Iterator[None]:
    """An interrupt ends with this message.

    Raises:
        StoppedError: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise stopped(message) from None
