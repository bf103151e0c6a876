"""Many long trainings from one plan: start, stop, resume and list them; the test set stays closed.

    python bench/records.py train bench/records/cifar10-19k.toml [--stop-after 170m] [--jobs N] [--log FILE]
    python bench/records.py list bench/records/cifar10-19k.toml

A plan names a source, a recipe, and trials, each with overrides and seeds (`bench/records/` has examples). A trial has
a folder under runs/records/PLAN/ with a checkpoint after every epoch. Running the command again, after SIGINT, SIGTERM
or a crash, continues each trial from there with the same bits. A finished trial is one line of the log, as of
bench/trial.py.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trial import Trial, result_of

from thaw.errors import ThawError, UsageError
from thaw.files import write_atomically
from thaw.training.checkpoint import read_tensors, write_tensors
from thaw.training.trainer import MultiStageTrainer

VERSION = 1
CHECKPOINT, RESULT, HISTORY = "checkpoint.safetensors", "result.json", "history.jsonl"
_UNITS = {"s": 1, "m": 60, "h": 3600}
_KEYS = {"plan": {"source", "recipe", "set", "seeds", "trial"}, "trial": {"name", "set", "seeds", "recipe"}}


@dataclass(frozen=True)
class Job:
    """One trial with one seed.

    Attributes:
        name: the trial and its seed.
        folder: where its checkpoint and its result are.
        trial: what trains.
    """

    name: str
    folder: Path
    trial: Trial

    @property
    def digest(self) -> str:
        """Of everything that a plan says about the trial. A checkpoint continues only the same trial."""
        return hashlib.sha256(repr(self.trial).encode()).hexdigest()

    def result(self) -> dict[str, Any] | None:
        """The line of the log of a finished trial."""
        path = self.folder / RESULT
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def epochs(self) -> list[dict[str, Any]]:
        """The records of the epochs so far."""
        path = self.folder / HISTORY
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def read_plan(path: Path, data_root: Path | None, root: Path) -> list[Job]:
    """Return the jobs of a plan file, seed by seed, so that each trial has a first result soon.

    Raises:
        UsageError: for a file that cannot be read, an unknown key, or two trials of the same name.
    """
    try:
        plan = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    _check_keys(path, "plan", plan)
    jobs: list[tuple[int, Job]] = []
    for trial in plan.get("trial", []):
        _check_keys(path, "trial", trial)
        name = str(trial.get("name", ""))
        if not re.fullmatch(r"[\w.+-]+", name):
            raise UsageError(f"{path}: trial name {name!r}: expected letters, digits, '.', '_', '+' and '-'")
        for order, seed in enumerate(trial.get("seeds", plan.get("seeds", [0]))):
            made = Trial(
                source=plan["source"],
                recipe=trial.get("recipe", plan["recipe"]),
                overrides=(*plan.get("set", ()), *trial.get("set", ())),
                seed=int(seed),
                data_root=data_root,
            )
            full = f"{name}-seed{seed}"
            jobs.append((order, Job(full, root / path.stem / full, made)))
    names = [job.name for _, job in jobs]
    if len(set(names)) != len(names):
        raise UsageError(f"{path}: expected trials with different names and seeds")
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def _check_keys(path: Path, part: str, given: Mapping[str, Any]) -> None:
    needed = {"plan": {"source", "recipe", "trial"}, "trial": {"name"}}[part]
    if (unknown := given.keys() - _KEYS[part]) or not needed <= given.keys():
        found = f"unknown {', '.join(sorted(unknown))}" if unknown else f"no {', '.join(sorted(needed - given.keys()))}"
        raise UsageError(f"{path}: a {part} has {found}; expected {', '.join(sorted(_KEYS[part]))}")


class Stopped(Exception):  # noqa: N818 - not an error
    """The time is over, or a signal came; the checkpoint of the last epoch is written."""


def train(job: Job, deadline: float) -> dict[str, Any]:
    """Train a job to its end, from its checkpoint if there is one, and return its result.

    Raises:
        Stopped: at the end of an epoch after `deadline`, in seconds of `time.monotonic`, or after SIGTERM or SIGINT.
        ModelFileError: for a damaged checkpoint.
        UsageError: for a checkpoint of another trial.
    """
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stops.append(received))
    job.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with _locked(job.folder), job.trial.trainer() as (trainer, data):
        before = _restore(job, trainer)
        for _ in trainer.epochs():
            _save(job, trainer, before + time.monotonic() - started)
            if stops or time.monotonic() > deadline:
                raise Stopped
        result = result_of(job.trial, trainer, data, before + time.monotonic() - started)
    write_atomically(job.folder / RESULT, json.dumps(result) + "\n")
    (job.folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def _restore(job: Job, trainer: MultiStageTrainer) -> float:
    path = job.folder / CHECKPOINT
    if not path.is_file():
        return 0.0
    tensors, header = read_tensors(path, version=VERSION)
    if header["trial"] != job.digest:
        raise UsageError(f"{path} belongs to a trial with other settings: rename the trial, or remove its folder")
    trainer.restore(tensors, header["trainer"])
    return float(header["seconds"])


def _save(job: Job, trainer: MultiStageTrainer, seconds: float) -> None:
    tensors, numbers = trainer.state()
    header = {"version": VERSION, "trial": job.digest, "trainer": numbers, "seconds": seconds}
    write_tensors(job.folder / CHECKPOINT, tensors, header)
    lines = "".join(json.dumps(record) + "\n" for record in numbers["records"])
    write_atomically(job.folder / HISTORY, lines)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{folder} is in use by another process that trains this trial") from None
        yield


def train_all(options: argparse.Namespace, jobs: Sequence[Job]) -> int:
    """Train each job in a process of its own, `options.jobs` at a time; return how many ended with an error."""
    waiting = [job for job in jobs if job.result() is None]
    running: dict[subprocess.Popen[bytes], Job] = {}
    deadline = time.monotonic() + options.stop_after
    failed = 0

    def stop(number: int, _: object) -> None:
        waiting.clear()
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while waiting or running:
        while waiting and len(running) < options.jobs and time.monotonic() < deadline:
            job = waiting.pop(0)
            command = [sys.executable, __file__, "train", str(options.plan), "--only", job.name]
            command += ["--root", str(options.root)]
            if deadline < float("inf"):
                command += ["--stop-after", f"{max(1.0, deadline - time.monotonic()):.0f}s"]
            command += ["--data-root", str(options.data_root)] if options.data_root else []
            # A terminal sends its interrupts to this process, which passes them on.
            running[subprocess.Popen(command, start_new_session=True)] = job
        if not running:
            break
        for process in [each for each in running if each.poll() is not None]:
            job = running.pop(process)
            result = job.result()
            failed += process.returncode != 0
            print(_row(job), flush=True)
            if result is not None and options.log is not None:
                with options.log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(result) + "\n")
        time.sleep(0.2)
    return failed


def _row(job: Job) -> str:
    epochs, result = job.epochs(), job.result()
    if not epochs:
        return f"{job.name:40} not started"
    last = epochs[-1]
    best = max(each["validation_accuracy"] for each in epochs)
    state = "finished" if result else f"{last['stage']} {last['epoch']}/{last['epochs']}"
    seconds = sum(each["seconds"] for each in epochs)
    return (
        f"{job.name:40} {state:14} validation {last['validation_accuracy']:.2%} (best {best:.2%}), "
        f"loss {last['validation_loss']:.4f}, training loss {last['train_loss']:.4f}, {seconds / 60:.0f} min"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or list, and return the exit status."""
    options = _options(arguments)
    jobs = read_plan(options.plan, options.data_root, options.root)
    if options.command == "list":
        print("\n".join(map(_row, jobs)))
        return 0
    if not options.only:
        return 1 if train_all(options, jobs) else 0
    chosen = [job for job in jobs if job.name == options.only]
    if not chosen:
        raise UsageError(f"no trial {options.only}: expected one of {', '.join(job.name for job in jobs)}")
    with contextlib.suppress(Stopped):
        train(chosen[0], time.monotonic() + options.stop_after)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/records.py", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "list"):
        command = commands.add_parser(name)
        command.add_argument("plan", type=Path, help="a TOML file")
        command.add_argument("--data-root", type=Path, help="folder that holds the named data sets")
        command.add_argument("--root", type=Path, default=Path("runs/records"), help="folder of all plans' trials")
        if name == "train":
            command.add_argument("--only", default="", metavar="TRIAL-seedN", help="one trial, in this process")
            command.add_argument("--jobs", type=int, default=1, help="trials at the same time (default: 1)")
            command.add_argument("--stop-after", type=_seconds, default=float("inf"), metavar="N[s|m|h]")
            command.add_argument("--log", type=Path, help="file that gets a line for each finished trial")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: expected a duration such as 90s, 170m or 2.5h")
    return float(found[1]) * _UNITS[found[2] or "s"]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ThawError as error:
        raise SystemExit(f"error: {error}") from None
