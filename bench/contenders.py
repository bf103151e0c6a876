"""The processes that the benchmark times, one computing at a time, and the rows of its tables."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workload import Workload

HERE = Path(__file__).resolve().parent


class WorkerError(Exception):
    """A contender's process ended before its time; the message holds the last lines that it wrote."""


class Worker:
    """A contender in a process of its own, kept alive between epochs and idle until it is asked."""

    def __init__(self, script: str, workload: Workload, python: str = sys.executable) -> None:
        self.script = script
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - __exit__ closes it
        self._process = subprocess.Popen(
            [python, str(HERE / script), workload.as_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.about: dict[str, Any] = self._answer()

    def train(self, variant: str, *, warm_up: bool = False) -> dict[str, float]:
        """Have it train an epoch, or its warm-up, and wait for the figures."""
        request = self._process.stdin
        if request is None:
            raise RuntimeError("the worker was started without a pipe")
        try:
            request.write(json.dumps({"variant": variant, "warm_up": warm_up}) + "\n")
            request.flush()
        except BrokenPipeError:
            pass  # its last words are read below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._process.wait()
            self._log.seek(0)
            last = "".join(self._log.readlines()[-12:])
            raise WorkerError(f"{self.script} ended with status {self._process.returncode}\n{last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=0 if kind is not None else 30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@dataclass
class Row:
    """A line of the table: a variant of a worker, and what was measured of it.

    Attributes:
        name: for the table.
        worker: the process.
        variant: what the worker calls it.
        precision: the type that its convolutions compute in.
        epochs: "seconds", "cpu_seconds", "pairs" and "loss" of every round.
    """

    name: str
    worker: Worker
    variant: str
    precision: str
    epochs: list[dict[str, float]] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Pairs a second, a number a round."""
        return [epoch["pairs"] / epoch["seconds"] for epoch in self.epochs]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "name": self.name,
            "variant": self.variant,
            "precision": self.precision,
            "about": self.worker.about,
            "pairs_per_second": spread(self.rates),
            "cpu_seconds": spread([epoch["cpu_seconds"] for epoch in self.epochs]),
            "rounds": self.epochs,
        }


def measure(rows: Sequence[Row], rounds: int, tell: Callable[[str], None]) -> None:
    """Warm every row up, then time an epoch of each in turn, `rounds` times over."""
    for row in rows:
        tell(f"warm-up: {row.name}")
        row.worker.train(row.variant, warm_up=True)
    for number in range(1, rounds + 1):
        for row in rows:
            row.epochs.append(row.worker.train(row.variant))
            tell(f"round {number} of {rounds}: {row.name}, {row.rates[-1]:,.0f} pairs/s")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(row: Row, other: Row) -> dict[str, float]:
    """How many times the pairs a second of `other` the `row` has: the spread of the ratios round by round."""
    return spread([mine / theirs for mine, theirs in zip(row.rates, other.rates, strict=True)])


def thaw_worker(workload: Workload, variants: Sequence[str], *, keep_freed_memory: bool = True) -> Worker:
    """thaw, ready to train `variants`."""
    options = {"variants": list(variants), "keep_freed_memory": keep_freed_memory}
    return Worker("thaw_dual.py", replace(workload, options=options))


def torch_worker(workload: Workload, workers: int) -> Worker:
    """The plain PyTorch way with `workers` processes that load."""
    return Worker("plain_torch.py", replace(workload, options={"workers": workers}))


def keras_worker(workload: Workload, python: Path, *, precision: str, jit: bool) -> Worker:
    """Keras in the environment of `python`, in "float32" or "bfloat16", its step compiled with XLA or not."""
    return Worker("keras_dual.py", replace(workload, options={"precision": precision, "jit": jit}), str(python))


def use_cores(count: int | None) -> int:
    """Confine this process and those it starts to `count` of its cores (None: all of them); how many there are then."""
    if not hasattr(os, "sched_setaffinity"):
        if count is not None:
            os.environ["OMP_NUM_THREADS"] = str(count)
        return count or os.cpu_count() or 1
    usable = sorted(os.sched_getaffinity(0))
    chosen = usable[:count]
    os.sched_setaffinity(0, chosen)
    return len(chosen)
