"""Latency of one image in every runtime, alternating, on one thread: `thaw bench`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thaw.deploy.export import Deployable
from thaw.deploy.formats import C_HOST, FORMATS, runtime_versions, runtimes
from thaw.deploy.verify import Tell, read_exports
from thaw.errors import ModelFileError, ThawError
from thaw.evidence.environment import environment
from thaw.evidence.latency import Timing, measure_alternately
from thaw.export.card import Precision
from thaw.seeds import numpy_generator
from thaw.training.compute import threads


@dataclass(frozen=True, kw_only=True, repr=False)
class Bench:
    """The result of a benchmark.

    Attributes:
        timings: (runtime, precision) -> times of one image; ratios are relative to the C.
        problems: (runtime, precision) -> why it was not timed.
    """

    timings: Mapping[tuple[str, Precision], Timing]
    problems: Mapping[tuple[str, Precision], str]

    @property
    def is_complete(self) -> bool:
        """Whether everything was timed."""
        return not self.problems

    def __repr__(self) -> str:
        times = ", ".join(
            f"{name} {precision} {each.median_us:,.0f} us" for (name, precision), each in self.timings.items()
        )
        return f"Bench({times})"

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: the `bench` part of deployment.json."""
        return {
            "threads": 1,
            "timings": [
                {"runtime": runtime, "precision": precision, **timing.as_dict()}
                for (runtime, precision), timing in self.timings.items()
            ],
            "problems": [
                {"runtime": runtime, "precision": precision, "problem": problem}
                for (runtime, precision), problem in self.problems.items()
            ],
            "environment": environment("cpu"),
            "runtimes": dict(runtime_versions()),
        }


def bench(
    model: Deployable,
    out: Path,
    *,
    missing: Mapping[str, str] | None = None,
    rounds: int = 20,
    repeats: int = 100,
    tell: Tell = lambda _: None,
) -> Bench:
    """Time torch, onnxruntime, LiteRT and C on one image, alternating.

    Args:
        model: the exported model.
        out: the folder of the exported files.
        missing: format -> why it could not be exported.
        rounds: number of times that each runtime is timed, at least 1.
        repeats: timed inferences per round, at least 1.
        tell: called with a line of text for each step.
    """
    # The time does not depend on what the image shows, so no data are needed.
    image = numpy_generator(0, "bench").integers(0, 256, model.input_spec.shape, dtype=np.uint8)
    exported, failed = read_exports(out)
    problems = {(check.format, check.precision): check.problem for check in failed}
    problems |= {(name, FORMATS[name].precisions[-1]): why for name, why in (missing or {}).items()}
    calls: dict[tuple[str, Precision], Callable[[], object]] = {("torch", "float"): model.predict_one(image)}
    with contextlib.ExitStack() as opened:
        for name, runtime in runtimes():
            if not runtime.is_timed or name not in exported:
                continue
            key = (runtime.name, runtime.precision)
            try:
                if runtime.precision not in exported[name].precisions:
                    raise ModelFileError(f"it was not exported: thaw export --to {name}", code="model-file-export")
                runner = runtime.open(exported[name].files, model.graph(runtime.precision), False)
                opened.callback(runner.close)
                calls[key] = runner.predict_one(image)
            except ThawError as error:
                problems[key] = str(error)
        tell(f"timing {len(calls)} runtimes: {rounds} rounds of {repeats} images each, on one thread")
        # torch sets its number of threads for the whole process; the other runtimes set theirs when they are opened.
        with threads(1):
            timings = _measure(calls, rounds, repeats)
    return Bench(timings=timings, problems=problems)


def _measure(
    calls: Mapping[tuple[str, Precision], Callable[[], object]], rounds: int, repeats: int
) -> dict[tuple[str, Precision], Timing]:
    named = {f"{runtime} {precision}": call for (runtime, precision), call in calls.items()}
    base = f"{C_HOST.name} {C_HOST.precision}"
    timings = measure_alternately(named, base=base if base in named else None, rounds=rounds, repeats=repeats)
    return {key: timings[f"{key[0]} {key[1]}"] for key in calls}
