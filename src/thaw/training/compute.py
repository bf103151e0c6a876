"""Where and how arithmetic runs: the device, the precision, and independent branches in parallel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar, get_args

import torch

from thaw.errors import MissingDependencyError, UsageError
from thaw.kernels import KernelLayer, augmentation, conv_relu_pool, dropout_dense, normalization, optimizers
from thaw.kernels.library import compile_all
from thaw.plain import checked_dataclass
from thaw.quoting import shown

T = TypeVar("T")
DeviceName = Literal["auto", "cpu", "cuda"]
ComputePrecision = Literal["auto", "float32", "bfloat16"]
KernelsName = Literal["auto", "compiled", "torch"]

PARALLEL_BRANCHES = 2
"""Branches of a network, or parts of a batch, that are computed at the same time."""

# The compiled normalization uses one thread. With more threads per operation, torch is assumed to be faster.
_NORMALIZATION_THREADS = 2


@checked_dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """The arithmetic of training."""

    precision: ComputePrecision = "auto"
    """Precision of convolutions: "float32", "bfloat16", or "auto" (bfloat16 if the hardware supports it, except where
    compiled kernels compute all convolutions, in float32)."""
    kernels: KernelsName = "auto"
    """Implementation of the layers that have C kernels: "compiled" (in C that is compiled when training starts),
    "torch", or "auto" (compiled if that is faster and a C compiler is installed)."""


def resolve_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda" on this machine.

    Raises:
        UsageError: for an unknown name, or for "cuda" without a CUDA device.
    """
    if name not in get_args(DeviceName):
        raise UsageError(f"device {shown(name)}: expected one of {', '.join(get_args(DeviceName))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: torch finds no CUDA device on this machine; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions: "auto" is bfloat16 if the hardware supports it, otherwise float32.

    Weights, gradients and optimizer state are always float32.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in get_args(ComputePrecision):
        raise UsageError(f"precision {shown(name)}: expected one of {', '.join(get_args(ComputePrecision))}")
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if "avx512_bf16" in _cpu_features() else torch.float32


@dataclass(frozen=True)
class Arithmetic:
    """What computes a training.

    Attributes:
        compiled: whether layers that have compiled kernels use them.
        dtype: dtype of the convolutions.
    """

    compiled: bool
    dtype: torch.dtype


def resolve_arithmetic(
    settings: ComputeSettings, device: torch.device, layers: Collection[KernelLayer], *, threads: int
) -> Arithmetic:
    """Return what computes networks with these layers on this machine; kernels are compiled here.

    "auto" selects compiled kernels on a CPU if they compile; for normalization, with at most two threads per operation
    (the C uses one). Compiled convolutions are float32, and faster than torch's in bfloat16. So with "auto", the
    precision is float32 if all convolutions are compiled, and otherwise as in `resolve_precision`.

    Args:
        settings: "auto", or what `kernels_name` returned when the training began.
        device: where training computes.
        layers: layers of the networks that train, of those that have kernels.
        threads: number of threads per torch operation.

    Raises:
        UsageError: for "compiled" on a GPU, or for convolutions in bfloat16.
        MissingDependencyError: for "compiled" without a working C compiler.
    """
    torchs = Arithmetic(compiled=False, dtype=resolve_precision(settings.precision, device))
    only_convolutions = set(layers) == {"convolution"}
    convolutions = torchs.dtype == torch.float32 or (settings.precision == "auto" and only_convolutions)
    dtype = torch.float32 if only_convolutions and convolutions else torchs.dtype
    wanted: list[Callable[[], object]] = []
    if "normalization" in layers:
        wanted.append(partial(normalization.compiled, dtype))
    if "convolution" in layers and convolutions:
        wanted += [conv_relu_pool.compiled_forward, conv_relu_pool.compiled_backward, dropout_dense.compiled]
    if not wanted and settings.kernels == "compiled" and device.type == "cpu":
        raise UsageError(
            'compute.kernels "compiled" has no bfloat16 convolutions: expected compute.precision "auto" or "float32"'
        )
    pays = device.type == "cpu" and ("normalization" not in layers or threads <= _NORMALIZATION_THREADS)
    if not wanted or settings.kernels == "torch" or (settings.kernels == "auto" and not pays):
        return torchs
    if device.type != "cpu":
        raise UsageError(f'compute.kernels "compiled" is not available on {device.type}; use "auto" or "torch"')
    wanted += [optimizers.compiled, augmentation.compiled]
    try:
        compile_all(wanted)
    except MissingDependencyError:
        if settings.kernels == "compiled":
            raise
        return torchs
    return Arithmetic(compiled=True, dtype=dtype)


def parallel_jobs(arithmetic: Arithmetic, layers: Collection[KernelLayer], threads: int) -> int:
    """Return how many jobs to run at the same time on `threads` cores.

    Compiled convolutions use one thread, and a batch can be computed in any number of parts, since no statistics are
    taken over it. Other networks are computed as two branches or parts, with threads inside torch's operations.
    """
    alone = arithmetic.compiled and set(layers) == {"convolution"}
    return max(PARALLEL_BRANCHES, threads) if alone else PARALLEL_BRANCHES


def kernels_name(*, compiled: bool) -> KernelsName:
    """Return "compiled" or "torch"."""
    return "compiled" if compiled else "torch"


def precision_name(dtype: torch.dtype) -> str:
    """Return "float32" or "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _cpu_features() -> frozenset[str]:
    names = {"avx512_bf16": "_is_avx512_bf16_supported"}
    return frozenset(feature for feature, probe in names.items() if getattr(torch.cpu, probe, lambda: False)())


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which a forward pass computes in `dtype`."""
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()


def thread_count() -> int:
    """Return the number of threads per CPU operation."""
    return torch.get_num_threads()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` threads (at least 1) per CPU operation inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ParallelBranches:
    """Runs independent jobs at the same time: on a CPU, each in a thread with its share of the cores.

    Networks this small gain nothing from threads inside an operation, but two branches keep two cores busy. Results do
    not depend on the order in which jobs finish, because jobs share nothing that they write to. On a GPU, jobs run one
    after the other.

    Args:
        count: number of jobs that run at the same time.
        device: where they compute.

    Attributes:
        count: the same; 1 on a GPU, or with one thread.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = 1
        self._pool: ThreadPoolExecutor | None = None
        self._threads = torch.get_num_threads()
        if device.type == "cpu" and count > 1 and self._threads > 1:
            share = max(1, self._threads // count)
            # The calling thread computes little. With two threads per operation it would wait for a core that a branch
            # is using: the head alone then took longer than both branches.
            torch.set_num_threads(share)
            self.count = count
            self._pool = ThreadPoolExecutor(count, "thaw-branch", initializer=torch.set_num_threads, initargs=(share,))

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Return the results in order; the first error is raised after all jobs have ended."""
        if self._pool is None or len(jobs) < 2:
            return [job() for job in jobs]
        futures = [self._pool.submit(job) for job in jobs]
        wait(futures)
        return [future.result() for future in futures]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._threads)
