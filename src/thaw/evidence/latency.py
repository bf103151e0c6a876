"""How long a prediction takes: one image at a time, and a batch at a time.

Nothing here knows what computes the prediction: it takes calls, so that every runtime is timed by the same rules.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError

BATCH_WARMUP = 2
BATCH_REPEATS = 10


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall-clock times on one machine.

    Attributes:
        median_us: median time of one image, microseconds.
        p99_us: 99th percentile of the same (linear between neighbours), microseconds.
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
    """Time two calls; each must return only when its result is there (on an accelerator: synchronised).

    Python's garbage collector is off while calls are timed, as `timeit` does, and on again afterwards.

    Args:
        predict_one: predicts one image.
        predict_batch: predicts `batch_size` images.
        batch_size: images in a batch, at least 1.
        warmup: untimed calls of `predict_one` first, at least 0; the batch gets at most 2 of them.
        repeats: the least number of timed calls of `predict_one`, 1 or more; for the batch it is 10 where this is more.
        min_seconds: each of the two goes on until this much time has been measured as well.

    Raises:
        UsageError: for a number outside its range. What the calls raise passes through.
    """
    if batch_size < 1 or warmup < 0 or repeats < 1 or not (min_seconds >= 0 and math.isfinite(min_seconds)):
        raise UsageError(
            f"latency with batch_size={batch_size}, warmup={warmup}, repeats={repeats}, min_seconds={min_seconds}: "
            "expected at least 1, 0, 1 and 0 (finite)"
        )
    one = _time_calls(predict_one, warmup, repeats, min_seconds)
    batch = _time_calls(predict_batch, min(warmup, BATCH_WARMUP), min(repeats, BATCH_REPEATS), min_seconds)
    # A clock may stand still over a very short call: one nanosecond is its smallest step.
    return Latency(
        median_us=float(np.median(one)) / 1e3,
        p99_us=float(np.percentile(one, 99)) / 1e3,
        repeats=len(one),
        warmup=warmup,
        batch_size=batch_size,
        batch_repeats=len(batch),
        images_per_second=batch_size * 1e9 / max(float(np.median(batch)), 1.0),
    )


def _time_calls(call: Callable[[], object], warmup: int, repeats: int, min_seconds: float) -> npt.NDArray[np.int64]:
    """Nanoseconds of each timed call, int64 [at least `repeats`]."""
    for _ in range(warmup):
        call()
    times: list[int] = []
    total = 0
    with _no_garbage_collection():
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
