"""The processes that the benchmark times, one at a time, and the rows of its tables."""

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
    """A contender's process ended early; the message contains the last lines of its output."""


class Worker:
    """A contender in its own process, which stays alive between epochs and is idle until called."""

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
        """Train one epoch, or the warm-up, and return its figures."""
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
    """A row of the table: a variant of a worker, and its measurements.

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
        """Pairs per second in each round."""
        return [epoch["pairs"] / epoch["seconds"] for epoch in self.epochs]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
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
    """Warm up every row, then time an epoch of each in turn, `rounds` times."""
    for row in rows:
        tell(f"warm-up: {row.name}")
        row.worker.train(row.variant, warm_up=True)
    for number in range(1, rounds + 1):
        for row in rows:
            row.epochs.append(row.worker.train(row.variant))
            tell(f"round {number} of {rounds}: {row.name}, {row.rates[-1]:,.0f} pairs/s")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(row: Row, other: Row) -> dict[str, float]:
    """Return the spread over rounds of the ratio of `row` to `other` in pairs per second."""
    return spread([mine / theirs for mine, theirs in zip(row.rates, other.rates, strict=True)])


def thaw_worker(workload: Workload, variants: Sequence[str]) -> Worker:
    """Return a worker that trains `variants` of thaw."""
    return Worker("thaw_dual.py", replace(workload, options={"variants": list(variants)}))


def torch_worker(workload: Workload, workers: int) -> Worker:
    """Return a worker for plain PyTorch with `workers` loader processes."""
    return Worker("plain_torch.py", replace(workload, options={"workers": workers}))


def keras_worker(workload: Workload, python: Path, *, precision: str, jit: bool) -> Worker:
    """Return a worker for Keras in the environment of `python`, in "float32" or "bfloat16", with or without XLA."""
    return Worker("keras_dual.py", replace(workload, options={"precision": precision, "jit": jit}), str(python))


def use_cores(count: int | None) -> int:
    """Restrict this process and its children to `count` cores (None: all), and return the number of cores."""
    usable = sorted(os.sched_getaffinity(0))
    chosen = usable[:count]
    os.sched_setaffinity(0, chosen)
    return len(chosen)
