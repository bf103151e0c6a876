"""Where and how arithmetic runs: the device, the precision, and lanes that run independent branches at once."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeVar, get_args

import torch

from thaw.errors import MissingDependencyError, UsageError
from thaw.models.fused import compiled
from thaw.quoting import shown

T = TypeVar("T")
DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Normalization = Literal["auto", "fused", "torch"]
# With more, torch's operations, which use them all, are taken to be faster than C that uses one.
_FUSED_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """What the arithmetic of training runs in.

    Attributes:
        precision: "float32", "bfloat16", or "auto": bfloat16 where the hardware multiplies it.
        normalization: "fused" for normalization with what comes after it in C that is compiled when training begins,
            "torch" for torch's operations, or "auto": fused where that is faster and there is a C compiler.
    """

    precision: Precision = "auto"
    normalization: Normalization = "auto"

    def __post_init__(self) -> None:
        for name, known in (("precision", get_args(Precision)), ("normalization", get_args(Normalization))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"compute.{name} {shown(value)}: expected one of {', '.join(known)}")


def resolve_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means on this machine.

    Raises:
        UsageError: for another name, or for "cuda" where torch sees no such device.
    """
    if name not in get_args(DeviceName):
        raise UsageError(f"device {shown(name)}: expected one of {', '.join(get_args(DeviceName))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in: "auto" is bfloat16 where the hardware multiplies it, else float32.

    Weights, gradients and optimizer state are float32 in either case.
    """
    if name not in get_args(Precision):
        raise UsageError(f"precision {shown(name)}: expected one of {', '.join(get_args(Precision))}")
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if "avx512_bf16" in _cpu_features() else torch.float32


def resolve_normalization(name: str, device: torch.device, dtype: torch.dtype, *, threads: int) -> bool:
    """Whether normalization is fused with what comes after it; where it is, the C for maps of `dtype` is compiled here.

    "auto" is yes on a CPU under Linux, where it was measured, with few threads an operation (the C has one), and where
    it compiles.

    Args:
        name: the setting.
        device: where training computes.
        dtype: what convolutions compute in.
        threads: that an operation of torch has.

    Raises:
        UsageError: for another name, or for "fused" on a GPU.
        MissingDependencyError: for "fused" without a C compiler that can make it.
    """
    if name not in get_args(Normalization):
        raise UsageError(f"normalization {shown(name)}: expected one of {', '.join(get_args(Normalization))}")
    pays = device.type == "cpu" and sys.platform.startswith("linux") and threads <= _FUSED_THREADS
    if name == "torch" or (name == "auto" and not pays):
        return False
    if device.type != "cpu":
        raise UsageError(
            f'compute.normalization "fused" computes on a CPU, not on {device.type}; use "auto" or "torch"'
        )
    try:
        compiled(dtype)
    except MissingDependencyError:
        if name == "fused":
            raise
        return False
    return True


def normalization_name(*, fused: bool) -> str:
    """The name of what computes: "fused" or "torch"."""
    return "fused" if fused else "torch"


def precision_name(dtype: torch.dtype) -> str:
    """The name of the type: "float32" or "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _cpu_features() -> frozenset[str]:
    names = {"avx512_bf16": "_is_avx512_bf16_supported"}
    return frozenset(feature for feature, probe in names.items() if getattr(torch.cpu, probe, lambda: False)())


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """The context under which a forward pass computes in `dtype`."""
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()


def thread_count() -> int:
    """Threads that an operation on the CPU may use."""
    return torch.get_num_threads()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let an operation on the CPU use `count` threads, at least 1, for as long as the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


LANES = 2
"""Branches, or parts of a batch, that are computed at once."""


class ParallelBranches:
    """Runs independent pieces of work at the same time: on a CPU each in a thread with its share of the cores.

    Branches this small gain nothing from threads inside an operation, but two of them keep two cores busy. The numbers
    do not depend on which finishes first, because the pieces share nothing that they write. On a GPU they run one after
    the other.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._threads = torch.get_num_threads()
        if device.type == "cpu" and count > 1 and self._threads > 1:
            share = max(1, self._threads // count)
            # The thread that joins the lanes computes little, and would wait at a barrier for a second core that a lane
            # holds: with two threads an operation, the head alone took longer than both branches.
            torch.set_num_threads(share)
            self._pool = ThreadPoolExecutor(count, "thaw-lane", initializer=torch.set_num_threads, initargs=(share,))

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """The jobs' results in order; the first error is raised once all have ended."""
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


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks for the next step instead of returning them to the system.

    A training step frees and takes the same megabytes each time; by default every step then pays for fresh pages. Does
    nothing on other C libraries. The three numbers are M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mebibyte = 1 << 20
    for option, value in ((-3, 1024 * mebibyte), (-1, 2047 * mebibyte), (-2, 64 * mebibyte)):
        mallopt(ctypes.c_int(option), ctypes.c_int(value))
