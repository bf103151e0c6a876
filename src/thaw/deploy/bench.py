"""One image at a time through every runtime, in turns and on one thread: what `thaw bench` does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thaw.deploy.export import TrainedRun, keep
from thaw.deploy.runtimes import C_HOST, RUNTIMES, Runtime, close_runner, open_runner, runtime_versions
from thaw.deploy.verify import Tell, find_exports
from thaw.errors import ModelFileError, ThawError
from thaw.evidence.environment import environment
from thaw.evidence.latency import Timing, measure_alternately
from thaw.export.card import Precision
from thaw.seeds import numpy_generator
from thaw.training.compute import threads


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What was timed.

    Attributes:
        timings: (runtime, precision) -> times of one image; ratios refer to the C.
        problems: (runtime, precision) -> why it was not timed.
    """

    timings: Mapping[tuple[str, Precision], Timing]
    problems: Mapping[tuple[str, Precision], str]

    @property
    def is_complete(self) -> bool:
        """Whether everything was timed."""
        return not self.problems

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
    run: TrainedRun,
    *,
    out: Path | None = None,
    rounds: int = 20,
    repeats: int = 100,
    tell: Tell = lambda _: None,
) -> Bench:
    """Time torch, onnxruntime, LiteRT and the C on one image, in turns.

    Where nothing was exported yet, everything is exported first.

    Args:
        run: a run folder or a model of the zoo, opened.
        out: where the artifacts are; RUN/export by default, and for zoo:NAME ./NAME-export.
        rounds: how often each has its turn, at least 1.
        repeats: timed inferences a turn, at least 1.
        tell: called with a line about each thing that is begun.

    Raises:
        RunError: for a bare model file.
    """
    run.needs_run("a comparison of runtimes")
    folder = run.default_out() if out is None else out.expanduser()
    # What the image shows does not matter to the time, so no data are needed.
    image = numpy_generator(0, "bench").integers(0, 256, run.model.input_spec.shape, dtype=np.uint8)
    calls: dict[tuple[str, Precision], Callable[[], object]] = {}
    problems: dict[tuple[str, Precision], str] = {}
    with run.locked(), contextlib.ExitStack() as opened:
        exported, failed = find_exports(run, folder, tell)
        problems |= {(check.target, check.precision): check.problem for check in failed}
        calls["torch", "float"] = run.model.predict_one(image)
        for runtime in _to_time():
            if runtime.target not in exported:
                continue
            key, graph = (runtime.name, runtime.precision), run.graph(runtime.precision)
            try:
                if runtime.precision not in exported[runtime.target].precisions:
                    raise ModelFileError(f"it was not exported: thaw export --to {runtime.target}")
                runner = open_runner(runtime, exported[runtime.target], graph, is_strict=False)
                opened.callback(close_runner, runner)
                calls[key] = runner.predict_one(image)
            except ThawError as error:
                problems[key] = str(error)
        tell(f"timing {len(calls)} runtimes in turns: {rounds} rounds of {repeats} images each, on one thread")
        # torch keeps its number of threads in the process; the others were given theirs when they were opened.
        with threads(1):
            timings = _measure(calls, rounds, repeats)
        result = Bench(timings=timings, problems=problems)
        keep(run, "bench", result.as_dict())
    return result


def _to_time() -> tuple[Runtime, ...]:
    return tuple(runtime for runtime in RUNTIMES if runtime.is_timed)


def _measure(
    calls: Mapping[tuple[str, Precision], Callable[[], object]], rounds: int, repeats: int
) -> dict[tuple[str, Precision], Timing]:
    named = {f"{runtime} {precision}": call for (runtime, precision), call in calls.items()}
    base = f"{C_HOST.name} {C_HOST.precision}"
    timings = measure_alternately(named, base=base if base in named else None, rounds=rounds, repeats=repeats)
    return {key: timings[f"{key[0]} {key[1]}"] for key in calls}
