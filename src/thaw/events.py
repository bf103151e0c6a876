"""Progress events of long calls, which the public functions pass to `on_event`.

A caller also receives the events of a run (`thaw.run.events`) and the problems found in images
(`thaw.data.problems.Problem`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

OnEvent = Callable[[object], None]
R = TypeVar("R")


@dataclass(frozen=True)
class Decoding:
    """`done` of `total` images are decoded."""

    done: int
    total: int


@dataclass(frozen=True)
class Step:
    """A step of an export, verification or benchmark begins; `text` describes it in one line."""

    text: str


def decoding_to(on_event: OnEvent | None) -> Callable[[int, int], None] | None:
    """The progress callback of the readers in `thaw.data`, which passes `Decoding` events on."""
    return None if on_event is None else lambda done, total: on_event(Decoding(done, total))


def steps_to(on_event: OnEvent | None) -> Callable[[str], None]:
    """A function that passes its line of text on as a `Step` event."""
    return (lambda _: None) if on_event is None else lambda text: on_event(Step(text))


def result_of(steps: Generator[object, None, R], on_event: OnEvent | None = None) -> R:
    """Run a generator of events to its end and return its result."""
    # Closed also if `on_event` raises. Otherwise files would stay locked as long as the traceback exists.
    with contextlib.closing(steps):
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                result: R = end.value
                return result
            if on_event is not None:
                on_event(event)
