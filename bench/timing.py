"""The time that a piece of work takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def shortest(work: Callable[[], object], repeats: int) -> float:
    """The shortest CPU time of the thread, in seconds, of `repeats` calls after one that is not timed."""
    work()
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return min(times)
