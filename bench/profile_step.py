"""Profile of a training step of stage 1: on one core, both submodels one after the other.

Two tables: the thread's CPU time of the step's three parts, which other programs on the machine disturb least, and each
operation's share of the whole as PyTorch's profiler sees it.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from contenders import use_cores
from torch.profiler import ProfilerActivity, profile, record_function

from thaw.data.augment import AugmentSettings
from thaw.data.batches import Batch, BatchSource
from thaw.data.images import ImageSet, InputSpec
from thaw.evidence.environment import environment
from thaw.models.blocks import use_kernels
from thaw.models.families import PaperSpec
from thaw.models.unify import build_dual
from thaw.training.compute import ComputeSettings, ParallelBranches, resolve_arithmetic
from thaw.training.stages import DualSettings, DualStage

CPU = torch.device("cpu")
DATA, TRAIN, STEP = "images and augmentation", "both submodels, forward and backward", "optimizer step"
KERNELS = {
    ("_ConvReluPool", 1): "convolution 1, forward",
    ("_ConvReluPool", 10): "convolution 2, forward",
    # The first argument of a backward operation is the gradient of its result.
    ("_ConvReluPoolBackward", 10): "convolution 1, backward",
    ("_ConvReluPoolBackward", 20): "convolution 2, backward",
    ("_DropoutDense", 20): "dropout and dense layer, forward",
    ("_DropoutDenseBackward", 10): "dropout and dense layer, backward",
}
OPERATIONS = {
    "_log_softmax": "loss",
    "_log_softmax_backward_data": "loss",
    "nll_loss_forward": "loss",
    "nll_loss_backward": "loss",
    "empty": "allocation",
    "empty_like": "allocation",
    "empty_strided": "allocation",
    "new_empty": "allocation",
}
REST = "everything else, Python included"


@dataclass
class Training:
    """Stage 1 on noise in the shape of MNIST; how long a step takes does not depend on the pixels."""

    steps: int
    batch_size: int = 128
    cpu_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((DATA, TRAIN, STEP), 0.0))

    def __post_init__(self) -> None:
        count = self.steps * self.batch_size
        random = np.random.default_rng(0)
        self.source = BatchSource(
            images=ImageSet(
                images=random.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8),
                labels=random.integers(0, 10, count),
                classes=tuple("0123456789"),
            ),
            input_spec=InputSpec(height=28, width=28, channels=1, mean=(0.5,), std=(0.3,)),
            batch_size=self.batch_size,
            device=CPU,
            augment=AugmentSettings(),
            views=("original", "augmented"),
            compiled=True,
        )
        torch.manual_seed(0)
        dual = build_dual(PaperSpec(), (28, 28, 1), 10)
        dual.to(memory_format=torch.channels_last)
        use_kernels(dual, compiled=True)
        self.stage = DualStage(dual, DualSettings(batch_size=self.batch_size))
        self.stage.compiled = True
        self.optimizer = self.stage.optimizer()
        self.parallel = ParallelBranches(1, CPU)

    def epoch(self) -> float:
        """Train all steps and return the wall-clock seconds."""
        self.stage.set_training()
        started = time.perf_counter()
        batches = self.source.ordered()
        while (batch := self._timed(DATA, lambda: _next(batches))) is not None:
            self.optimizer.zero_grad()
            self._timed(TRAIN, lambda batch=batch: self.stage.backward(batch, self.parallel, torch.float32))
            self._timed(STEP, self.optimizer.step)
        return time.perf_counter() - started

    def _timed(self, part: str, work: Callable[[], Any]) -> Any:
        started = time.thread_time()
        with record_function(part):
            result = work()
        self.cpu_seconds[part] += time.thread_time() - started
        return result


def _next(batches: Iterator[Batch]) -> Batch | None:
    return next(batches, None)


def place(event: Any) -> str:
    """Return the row of the second table for a profiler event."""
    above = event
    while above is not None:
        if above.name in {DATA, STEP}:
            return str(above.name)
        above = above.cpu_parent
    shape = event.input_shapes[0] if event.input_shapes else []
    kernel = KERNELS.get((event.name, shape[1] if len(shape) > 1 else 0))
    return kernel or OPERATIONS.get(event.name.removeprefix("aten::"), REST)


def shares(training: Training) -> dict[str, float]:
    """Return each row's share of the profiled time, largest first; the sum is 1."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        wall = training.epoch()
    micros: dict[str, float] = defaultdict(float)
    for event in profiled.events():
        micros[place(event)] += event.self_cpu_time_total
    seen = sum(micros.values())
    micros[REST] += max(0.0, wall * 1e6 - seen)
    total = sum(micros.values())
    return {name: value / total for name, value in sorted(micros.items(), key=lambda item: -item[1])}


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(prog="bench/profile_step.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="steps to profile (default: 60)")
    parser.add_argument("--repeats", type=int, default=5, help="runs for the CPU times (default: 5)")
    options = parser.parse_args()
    use_cores(1)
    torch.set_num_threads(1)
    resolve_arithmetic(ComputeSettings(kernels="compiled"), CPU, {"convolution"}, threads=1)
    training = Training(options.steps)
    training.epoch()
    training.cpu_seconds = dict.fromkeys(training.cpu_seconds, 0.0)
    for _ in range(options.repeats):
        training.epoch()
    steps = options.steps * options.repeats
    milliseconds = {part: 1e3 * seconds / steps for part, seconds in training.cpu_seconds.items()}
    machine = environment("cpu")
    print(f"{machine['cpu']}, one core; torch {torch.__version__}; compiled kernels, float32; batch 128\n")
    print("| part of a step | CPU time, ms | share |\n|---|---:|---:|")
    for part, value in milliseconds.items():
        print(f"| {part} | {value:.2f} | {value / sum(milliseconds.values()):.0%} |")
    print("\n| operation | share |\n|---|---:|")
    for name, share in shares(training).items():
        print(f"| {name} | {share:.1%} |")


if __name__ == "__main__":
    main()
