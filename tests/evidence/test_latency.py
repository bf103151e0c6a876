"""Latency on calls whose duration is known."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from error_matching import raises

from thaw.evidence import latency, measure_alternately, measure_latency


class Clock:
    """A clock that only the calls under test advance."""

    def __init__(self, steps: Iterator[int]) -> None:
        self.now = 0
        self.steps = steps
        self.calls = 0

    def predict(self) -> None:
        assert self.calls < 3 or not gc.isenabled()
        self.now += next(self.steps)
        self.calls += 1


def test_percentiles_and_throughput_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times = list(np.random.default_rng(0).integers(1_000, 900_000, 101))
    one = Clock(iter([7, 7, 7, *times]))
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: one.now)

    def predict_batch() -> None:
        one.now += 4_000_000

    result = measure_latency(one.predict, predict_batch, 32, warmup=3, repeats=101, min_seconds=0)
    assert result.median_us == sorted(times)[50] / 1e3
    assert result.p99_us == sorted(times)[99] / 1e3
    assert (result.repeats, result.warmup, one.calls) == (101, 3, 104)
    assert result.batch_repeats == 10
    assert result.images_per_second == pytest.approx(32 / 0.004)
    assert gc.isenabled()


def test_repeats_until_the_minimum_time() -> None:
    result = measure_latency(
        lambda: time.sleep(0.002), lambda: time.sleep(0.004), 8, warmup=0, repeats=1, min_seconds=0.05
    )
    assert result.median_us >= 2_000
    assert result.repeats <= 25
    assert result.images_per_second <= 2_000
    assert json.loads(json.dumps(result.as_dict()))["batch_size"] == 8


def test_garbage_collection_is_enabled_after_an_error() -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure_latency(fail, fail, 1, warmup=0)
    assert gc.isenabled()


def test_disabled_garbage_collection_stays_disabled() -> None:
    gc.disable()
    try:
        measure_latency(int, int, 1, warmup=0, repeats=1, min_seconds=0)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0}, {"warmup": -1}, {"repeats": 0}, {"min_seconds": -1.0}, {"min_seconds": float("inf")}],
)
def test_rejects_invalid_settings(settings: dict[str, float]) -> None:
    with raises("usage-latency"):
        measure_latency(int, int, **{"batch_size": 1, **settings})  # type: ignore[arg-type]


def test_alternating_calls_have_their_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = 0, []

    def call(name: str, durations: Iterator[int]):
        def run() -> None:
            nonlocal now
            assert not gc.isenabled()
            order.append(name)
            now += next(durations)

        return run

    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: now)
    # Three rounds of one warm-up and two timed calls; in the second round the machine is ten times slower.
    slow, fast = ([2_000, 3_000, 5_000], [1_000, 1_000, 3_000])
    rounds = [1, 10, 1]
    times = measure_alternately(
        {
            "slow": call("slow", iter([pace * time for pace in rounds for time in slow])),
            "fast": call("fast", iter([pace * time for pace in rounds for time in fast])),
        },
        base="fast",
        rounds=3,
        repeats=2,
        warmup=1,
    )
    assert "".join(name[0] for name in order) == "sssfff" + "fffsss" + "sssfff"
    assert times["slow"].median_us == np.median([3, 5, 30, 50, 3, 5])
    assert times["slow"].p99_us == pytest.approx(np.percentile([3, 5, 30, 50, 3, 5], 99))
    assert times["fast"].median_us == np.median([1, 3, 10, 30, 1, 3])
    assert (times["slow"].ratio, times["fast"].ratio) == (2.0, 1.0)
    assert (times["slow"].repeats, times["slow"].rounds, times["slow"].warmup) == (6, 3, 1)
    assert json.loads(json.dumps(times["slow"].as_dict()))["ratio"] == 2.0
    assert gc.isenabled()


def test_no_base_gives_no_ratios() -> None:
    times = measure_alternately({"only": int}, rounds=1, repeats=1, warmup=0)
    assert times["only"].ratio is None
    assert measure_alternately({}, rounds=1, repeats=1) == {}


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"repeats": 0}, {"warmup": -1}, {"base": "other"}])
def test_rejects_invalid_rounds(settings: dict[str, Any]) -> None:
    with raises("usage-latency"):
        measure_alternately({"one": int}, **settings)
