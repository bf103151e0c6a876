"""Times stage 1 on MNIST pairs (original, augmented): thaw, plain PyTorch, and Keras on TensorFlow, interleaved.

With --steps it times thaw with each of its measures taken away instead. docs/speed.md tells how to run it and read it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contenders import (
    HERE,
    Row,
    WorkerError,
    keras_worker,
    measure,
    ratios,
    spread,
    thaw_worker,
    torch_worker,
    use_cores,
)
from workload import Workload

from thaw.data.prepare import prepare
from thaw.data.settings import DataSettings
from thaw.errors import ThawError
from thaw.evidence.environment import environment

# Two submodels of 6,930 (PAPER.md's count for 28x28x1 and ten classes): 100 + 1,820 + 5,010 each.
PARAMETERS = 13_860
THAW, PLAIN = "thaw", "plain PyTorch"
KERAS = (("float32", False), ("bfloat16", False), ("float32", True))
# Load average above which other programs are likely to be in the way.
BUSY = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    options = parse(arguments)
    cores = use_cores(options.threads)
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory(prefix="thaw-bench-") as folder, contextlib.ExitStack() as stack:
            workload = make_workload(options, Path(folder))
            rows = step_rows(workload, stack) if options.steps else contender_rows(options, workload, stack)
            check_parameters(rows)
            measure(rows, options.rounds, tell)
    except (ThawError, WorkerError) as error:
        print(error, file=sys.stderr)
        return 1
    result = {
        "schema": 1,
        "command": shlex.join(["python", "bench/stage1.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "mode": "steps" if options.steps else "contenders",
        "machine": environment(options.device) | {"cores": cores, "load_average_before": round(load, 2)},
        "workload": {"pairs": options.pairs, "batch_size": workload.batch_size, "rounds": options.rounds},
        "rows": [row.as_dict() for row in rows],
        "ratios": step_ratios(rows) if options.steps else contender_ratios(rows),
    }
    print_result(result)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/stage1.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="folder that holds mnist/ (default: THAW_DATA, else the Hub)")
    parser.add_argument("--pairs", type=positive, default=60_000, help="images to train on (default: 60000, all)")
    parser.add_argument("--rounds", type=positive, default=5, help="timed epochs of each (default: 5)")
    parser.add_argument("--threads", type=positive, help="cores that a contender may use (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader processes of plain PyTorch (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="of the rows on PyTorch")
    parser.add_argument("--xla", action="store_true", help="also Keras with its step compiled by XLA (slow)")
    parser.add_argument("--keras-float32", action="store_true", help="Keras in float32 only: bfloat16 may be emulated")
    parser.add_argument("--steps", action="store_true", help="thaw with each of its measures taken away")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    default = HERE / ".venv-keras" / "bin" / "python"
    parser.add_argument("--keras-python", type=Path, default=default, help="of the environment that holds Keras")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """Return a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer above 0")
    return value


def tell(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def make_workload(options: argparse.Namespace, folder: Path) -> Workload:
    """Write the first `options.pairs` training images of MNIST to `folder`."""
    data = prepare("mnist", DataSettings(), seed=0, data_root=options.data_root)
    # All 60,000: the part that `prepare` cuts off for validation comes back.
    images = np.concatenate([data.train.images, data.validation.images])[: options.pairs]
    labels = np.concatenate([data.train.labels, data.validation.labels])[: options.pairs]
    options.pairs = len(images)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    (mean,), (deviation,) = data.input_spec.mean, data.input_spec.std
    return Workload(folder=str(folder), mean=mean, deviation=deviation, device=options.device, options={})


def contender_rows(options: argparse.Namespace, workload: Workload, stack: contextlib.ExitStack) -> list[Row]:
    """Return rows for thaw, plain PyTorch, and Keras if installed."""
    own = stack.enter_context(thaw_worker(workload, [THAW]))
    rows = [Row(THAW, own, THAW, own.about["precision"][THAW])]
    plain = stack.enter_context(torch_worker(workload, options.workers))
    rows.append(Row(PLAIN, plain, "", plain.about["precision"]))
    if not options.keras_python.is_file():
        tell("Keras is left out: `make bench-keras` installs it into bench/.venv-keras")
        return rows
    for precision, jit in KERAS:
        if (jit and not options.xla) or (precision == "bfloat16" and options.keras_float32):
            continue
        keras = stack.enter_context(keras_worker(workload, options.keras_python, precision=precision, jit=jit))
        rows.append(Row(f"Keras, {precision}{', XLA' if jit else ''}", keras, "", precision))
    return rows


def step_rows(workload: Workload, stack: contextlib.ExitStack) -> list[Row]:
    """Return rows for thaw, and for thaw without each of its optimizations."""
    names = [
        THAW,
        "operations of torch",
        "both submodels in one thread after the other",
        "augmentation a batch at a time",
        "all of the above",
        "no augmentation (what it costs)",
    ]
    worker = stack.enter_context(thaw_worker(workload, names))
    return [Row(name, worker, name, worker.about["precision"][name]) for name in names]


def check_parameters(rows: Sequence[Row]) -> None:
    """Refuse to compare networks of different sizes."""
    for row in rows:
        found = row.worker.about["parameters"]
        if found != PARAMETERS:
            raise WorkerError(f"{row.name} trains {found:,} parameters: expected {PARAMETERS:,}")


def contender_ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the ratios of thaw to plain PyTorch, and to the faster Keras row."""
    own = [row for row in rows if row.name == THAW]
    others = [row for row in rows if row.name == PLAIN]
    keras = [row for row in rows if row.name.startswith("Keras")]
    if keras:
        others.append(max(keras, key=lambda row: spread(row.rates)["median"]))
    return [{"of": row.name, "to": other.name, "ratio": ratios(row, other)} for row in own for other in others]


def step_ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the ratios of the time with all optimizations to the time without each one of them."""
    whole, *lacking = rows
    return [{"of": whole.name, "to": row.name, "ratio": ratios(whole, row)} for row in lacking]


def print_result(result: dict[str, Any]) -> None:
    """Return the tables as Markdown."""
    machine, workload = result["machine"], result["workload"]
    versions: dict[str, str] = {}
    for row in result["rows"]:
        versions |= row["about"]["versions"]
    print(f"\n{result['command']}")
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}; device {machine['device']}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()) + f", Python {machine['python']}")
    print(f"{workload['pairs']:,} pairs, batch {workload['batch_size']}, {workload['rounds']} rounds, ", end="")
    print(f"load average before: {machine['load_average_before']:.2f}\n")
    print("| | precision | pairs/s (median) | min | max | seconds | CPU seconds | loss |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in result["rows"]:
        rate, last = row["pairs_per_second"], row["rounds"][-1]
        print(
            f"| {row['name']} | {row['precision']} | {rate['median']:,.0f} | {rate['min']:,.0f} | {rate['max']:,.0f} "
            f"| {workload['pairs'] / rate['median']:.2f} | {row['cpu_seconds']['median']:.2f} | {last['loss']:.3f} |"
        )
    print("\n| pairs/s of one to another | ratio (median) | min | max |\n|---|---:|---:|---:|")
    for entry in result["ratios"]:
        ratio = entry["ratio"]
        pair = f"{entry['of']} to {entry['to']}"
        print(f"| {pair} | {ratio['median']:.2f} | {ratio['min']:.2f} | {ratio['max']:.2f} |")
    if machine["load_average_before"] > BUSY:
        tell("other programs were running: measure again on a quiet machine before you quote this")


if __name__ == "__main__":
    sys.exit(main())
