"""Time the kernels of the paper's network against torch's operations, and against the peak of one core.

    python bench/kernels.py

Times are CPU time of the thread, the shortest of many, so that other programs disturb them little. They include the
calls from Python. The rate counts the products and sums that are needed: in a backward pass those of the gradients that
pooling, ReLU and dropout let through.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from contenders import use_cores
from timing import shortest
from torch import Tensor

from thaw.evidence.environment import environment
from thaw.host_c import FAST_FLAGS, compile_c, find_compiler
from thaw.kernels.conv_relu_pool import conv_relu_pool
from thaw.kernels.dropout_dense import Drop, dropout_dense
from thaw.training.optim import OptimizerSettings, make_optimizer

BATCH, REPEATS = 128, 200
DROPOUT = 0.3


def main() -> None:
    """Print the table."""
    use_cores(1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peak = peak_rate()
    machine = environment("cpu")
    print(f"{machine['cpu']}, one core, torch {torch.__version__}; peak {peak / 1e9:.0f} GFLOP/s; batch {BATCH}\n")
    print("| kernel | us per image | torch, us per image | GFLOP/s | share of the peak |\n|---|--:|--:|--:|--:|")
    rows = [*convolution("convolution 1", (1, 28, 28), 10), *convolution("convolution 2", (10, 13, 13), 20), *dense()]
    for name, operations, own, torchs in rows:
        mine, its = (1e6 * shortest(each, REPEATS) / BATCH for each in (own, torchs))
        rate = operations / BATCH / mine * 1e-3
        print(f"| {name} | {mine:.2f} | {its:.2f} | {rate:.1f} | {rate * 1e9 / peak:.0%} |")
    mine, its = (1e6 * shortest(each, REPEATS) for each in steps())
    print(f"\nNAdam, one step for both submodels: {mine:.0f} us, torch {its:.0f} us")


Row = tuple[str, float, Callable[[], object], Callable[[], object]]
"""Name, operations per batch, the kernel, torch's operations."""


def convolution(name: str, shape: tuple[int, int, int], filters: int) -> list[Row]:
    """Forward and backward; the gradient of the image itself is only needed by the second convolution."""
    channels, height, width = shape
    x = torch.randn(BATCH, channels, height, width).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(filters, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    leaves = [weight.requires_grad_(), torch.zeros(filters).requires_grad_()]
    if channels > 1:
        leaves.insert(0, x.requires_grad_())

    def in_torch() -> Tensor:
        return F.relu(F.max_pool2d(F.conv2d(x, *leaves[-2:]), 2))

    own, torchs = conv_relu_pool(x, *leaves[-2:]), in_torch()
    # Dropout, or the pooling of the next layer, leave about half of the gradients.
    dy = torch.randn_like(own) * (torch.rand_like(own) < 0.5)
    passing = int(((own > 0) & (dy != 0)).sum())
    taps = 9 * channels
    return [
        (f"{name}, forward", 2.0 * 4 * own.numel() * taps, lambda: conv_relu_pool(x, *leaves[-2:]), in_torch),
        (
            f"{name}, backward",
            2.0 * passing * taps * (2 if channels > 1 else 1),
            lambda: torch.autograd.grad(own, leaves, dy, retain_graph=True),
            lambda: torch.autograd.grad(torchs, leaves, dy, retain_graph=True),
        ),
    ]


def dense() -> list[Row]:
    """Dropout and the dense layer."""
    x = torch.randn(BATCH, 20, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(10, 20, 5, 5).requires_grad_(), torch.zeros(10).requires_grad_()
    drop = Drop(DROPOUT, 1)

    def in_torch() -> Tensor:
        return F.linear(F.dropout(x.flatten(1), DROPOUT), weight.flatten(1), bias)

    own, torchs = dropout_dense(x, weight, bias, drop), in_torch()
    dy, leaves, products = torch.randn_like(own), [x, weight, bias], 2.0 * x.numel() * 10
    return [
        ("dropout and dense, forward", products, lambda: dropout_dense(x, weight, bias, drop), in_torch),
        (
            "dropout and dense, backward",
            2 * products,
            lambda: torch.autograd.grad(own, leaves, dy, retain_graph=True),
            lambda: torch.autograd.grad(torchs, leaves, dy, retain_graph=True),
        ),
    ]


def steps() -> list[Callable[[], object]]:
    """NAdam's step, compiled and torch's."""
    from thaw.models.families import PaperSpec
    from thaw.models.unify import build_dual

    made = []
    for compiled in (True, False):
        dual = build_dual(PaperSpec(), (28, 28, 1), 10)
        for parameter in dual.parameters():
            parameter.grad = torch.randn_like(parameter)
        made.append(make_optimizer(dual, OptimizerSettings(), 0.001, compiled=compiled).step)
    return made


def peak_rate() -> float:
    """Floating-point operations per second of one core, with products and sums fused if it can."""
    values = np.full(32, 0.5, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(__file__).with_name("peak.c")
        flags = [*FAST_FLAGS, "-std=c99", "-ffp-contract=fast", "-fPIC", "-shared", "-o", "peak.so", str(source)]
        compile_c([find_compiler(), *flags], Path(folder), source.name)
        peak = ctypes.CDLL(str(Path(folder) / "peak.so")).bench_peak
    peak.argtypes, peak.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_size_t
    rounds = 100_000
    operations = peak(values.ctypes.data, rounds)
    return float(operations / shortest(lambda: peak(values.ctypes.data, rounds), REPEATS))


if __name__ == "__main__":
    main()
