"""The real command line for tests: small runs on the digits, started, killed, and compared."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import Launched, launch
from safetensors.numpy import load_file

SECONDS = 120
REPOSITORY = Path(__file__).resolve().parents[2]

# Five stages of at least two epochs, so that each can be killed in the middle.
STAGES = ("dual", "head", "dense", "conv2", "conv1")
STEPS = ", ".join(f'{{unit="{name}", epochs=2, learning_rate=0.02}}' for name in STAGES[1:])
SMALL = ("--set", "dual.epochs=3", "--set", f"unfreeze.steps=[{STEPS}]", "--seed", "3")

# Minimal training: three epochs, and no fine-tuning in int8, which networks trained so briefly would otherwise need.
TINY_STEPS = 'unfreeze.steps=[{unit="head", epochs=1}, {unit="all", epochs=1}]'
TINY_OVERRIDES = ("dual.epochs=1", TINY_STEPS, "quantize.qat_threshold=100")
TINY = tuple(word for override in TINY_OVERRIDES for word in ("--set", override))

TIMES = ("seconds", "images_per_second")
DIGEST = "sha256"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "thaw", *map(str, arguments)]


def thaw(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `thaw ARGUMENTS` to its end."""
    process = start(*arguments, cwd=cwd, env={**os.environ, **environment})
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.wait(), out, err)


def start(*arguments: object, cwd: Path, **options: Any) -> Launched:
    """Start `thaw ARGUMENTS` in a process forked from one that has imported torch."""
    return launch(*arguments, cwd=cwd, **options)


# Programs that a shell starts in the background ignore interrupts, and so do their children, such as these tests.
_LISTENING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from thaw.cli import run
run()
"""


def start_interpreter(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Start `thaw ARGUMENTS` in a new interpreter."""
    words = [sys.executable, "-c", _LISTENING, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def wait_for(condition: Callable[[], bool], process: Launched | subprocess.Popen[str]) -> None:
    """Wait until the condition holds; fail if the process ends before it."""
    end = time.monotonic() + SECONDS
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"it ended before it could be stopped: {process.communicate()}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError("timeout")
        time.sleep(0.002)


def history(run: Path) -> list[dict[str, Any]]:
    path = run / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_times(value: Any) -> Any:
    """Metrics or history without values that differ between runs: times, the command, and the digest."""
    if isinstance(value, dict):
        left_out = (*TIMES, DIGEST, "latency", "command")
        return {key: without_times(item) for key, item in value.items() if key not in left_out}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def stored(path: Path) -> dict[str, Any]:
    """The content of a JSON document of thaw, without its digest."""
    return {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key != DIGEST}


def reseal(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON document with a valid digest: over all other keys, sorted."""
    plain = {key: value for key, value in content.items() if key != DIGEST}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**plain, DIGEST: digest}), "utf-8")


def assert_same_run(run: Path, other: Path) -> None:
    """Check for bit-identical weights and equal history and metrics, except times."""
    weights, others = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == others[name].dtype
        assert tensor.tobytes() == others[name].tobytes(), name
    int8 = "model-int8.safetensors"
    assert (run / int8).read_bytes() == (other / int8).read_bytes()
    assert without_times(history(run)) == without_times(history(other))
    assert without_times(metrics(run)) == without_times(metrics(other))


def error_of(words: Sequence[str], outcome: tuple[int, str, str], code: int, lines: int = 2) -> str:
    """The message of a failed command: no traceback, nothing on standard output, few lines."""
    found, out, err = outcome
    assert found == code, (words, outcome)
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert 1 <= len(err.strip().splitlines()) <= lines, err
    for word in words:
        assert word in err, (word, err)
    return err


@dataclass(frozen=True)
class FinishedRun:
    """A run of `thaw train ... --json`, and its output."""

    path: Path
    stdout: str
    stderr: str
