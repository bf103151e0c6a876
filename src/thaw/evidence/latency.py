"""Latency of predictions, for one image and for one batch.

All runtimes are timed as function calls, by the same rules.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.quoting import shown

BATCH_WARMUP = 2
BATCH_REPEATS = 10


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall-clock times on one machine.

    Attributes:
        median_us: median time of one image, microseconds.
        p99_us: 99th percentile of the time of one image (linear interpolation), microseconds.
        repeats: timed calls for one image.
        warmup: calls before them that were not timed.
        batch_size: images in the batch.
        batch_repeats: timed calls for the batch.
        images_per_second: batch size over the median time of a batch.
    """

    median_us: float
    p99_us: float
    repeats: int
    warmup: int
    batch_size: int
    batch_repeats: int
    images_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: the `latency` part of metrics.json."""
        return asdict(self)


def measure_latency(
    predict_one: Callable[[], object],
    predict_batch: Callable[[], object],
    batch_size: int,
    *,
    warmup: int = 20,
    repeats: int = 200,
    min_seconds: float = 0.5,
) -> Latency:
    """Time two calls. They must return only when the result is available (on an accelerator: synchronized).

    Python's garbage collector is disabled during the measurement, as in `timeit`, and enabled again afterward.

    Args:
        predict_one: predicts one image.
        predict_batch: predicts `batch_size` images.
        batch_size: images in a batch, at least 1.
        warmup: untimed calls of `predict_one` before the measurement, at least 0; at most 2 for the batch.
        repeats: minimum number of timed calls of `predict_one`, at least 1; at most 10 for the batch.
        min_seconds: minimum measured time for each of the two.

    Raises:
        UsageError: for a number outside its range. Exceptions of the calls propagate.
    """
    if batch_size < 1 or warmup < 0 or repeats < 1 or not (min_seconds >= 0 and math.isfinite(min_seconds)):
        raise UsageError(
            f"latency with batch_size={batch_size}, warmup={warmup}, repeats={repeats}, min_seconds={min_seconds}: "
            "expected at least 1, 0, 1 and 0 (finite)",
            code="usage-latency",
        )
    one = _time_calls(predict_one, warmup, repeats, min_seconds)
    batch = _time_calls(predict_batch, min(warmup, BATCH_WARMUP), min(repeats, BATCH_REPEATS), min_seconds)
    # The clock may not advance during a very short call. One nanosecond is its smallest step.
    return Latency(
        median_us=float(np.median(one)) / 1e3,
        p99_us=float(np.percentile(one, 99)) / 1e3,
        repeats=len(one),
        warmup=warmup,
        batch_size=batch_size,
        batch_repeats=len(batch),
        images_per_second=batch_size * 1e9 / max(float(np.median(batch)), 1.0),
    )


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one of several calls that were timed alternately.

    Attributes:
        median_us: median time of a call over all rounds, microseconds.
        p99_us: 99th percentile of the time of a call (linear interpolation), microseconds.
        ratio: median time relative to that of the base call in the same round, so that load on the machine affects
            both; the median over the rounds. None without a base.
        rounds: number of rounds.
        repeats: total number of timed calls.
        warmup: untimed calls at the beginning of each round.
    """

    median_us: float
    p99_us: float
    ratio: float | None
    rounds: int
    repeats: int
    warmup: int

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def measure_alternately(
    calls: Mapping[str, Callable[[], object]],
    *,
    base: str | None = None,
    rounds: int = 20,
    repeats: int = 100,
    warmup: int = 10,
) -> dict[str, Timing]:
    """Time several calls alternately, so that load on the machine affects all of them.

    Each round runs every call: a few untimed times, which refill the caches, then timed. The order rotates by one each
    round. Python's garbage collector is disabled during the measurement.

    Args:
        calls: name -> call, which must return only when its result is available.
        base: name of the call that ratios refer to, or None.
        rounds: at least 1.
        repeats: timed calls per round, at least 1.
        warmup: untimed calls at the beginning of a round, at least 0.

    Raises:
        UsageError: for a number outside its range, or an unknown base. Exceptions of the calls propagate.
    """
    if rounds < 1 or repeats < 1 or warmup < 0:
        raise UsageError(
            f"rounds={rounds}, repeats={repeats}, warmup={warmup}: expected at least 1, 1 and 0", code="usage-latency"
        )
    if base is not None and base not in calls:
        raise UsageError(f"base {shown(base)}: expected one of {', '.join(map(repr, calls))}", code="usage-latency")
    names = list(calls)
    times: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in names}
    with _no_garbage_collection():
        for turn in range(rounds):
            first = turn % len(names) if names else 0
            for name in (*names[first:], *names[:first]):
                _warm_up(calls[name], warmup)
                times[name].append(_timed(calls[name], repeats, 0.0))
    return {
        name: Timing(
            median_us=float(np.median(times[name])) / 1e3,
            p99_us=float(np.percentile(times[name], 99)) / 1e3,
            ratio=None if base is None else _ratio(times[name], times[base]),
            rounds=rounds,
            repeats=rounds * repeats,
            warmup=warmup,
        )
        for name in names
    }


def _ratio(times: list[npt.NDArray[np.int64]], base: list[npt.NDArray[np.int64]]) -> float:
    """Median over the rounds. At least one nanosecond, since the clock may not advance during a very short call."""
    medians, bases = np.median(times, axis=1), np.maximum(np.median(base, axis=1), 1.0)
    return float(np.median(medians / bases))


def _time_calls(call: Callable[[], object], warmup: int, repeats: int, min_seconds: float) -> npt.NDArray[np.int64]:
    """Nanoseconds of each timed call, int64 [at least `repeats`]."""
    _warm_up(call, warmup)
    with _no_garbage_collection():
        return _timed(call, repeats, min_seconds)


def _warm_up(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def _timed(call: Callable[[], object], repeats: int, min_seconds: float) -> npt.NDArray[np.int64]:
    times: list[int] = []
    total = 0
    started = time.perf_counter_ns()
    while len(times) < repeats or total < min_seconds * 1e9:
        before = time.perf_counter_ns()
        call()
        after = time.perf_counter_ns()
        times.append(after - before)
        total = after - started
    return np.asarray(times, dtype=np.int64)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
