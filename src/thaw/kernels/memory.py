"""Memory of large feature maps, used again and again.

The C library returns large blocks to the system when they are freed. Each map of each step then begins as pages that
the system has to clear one by one, which took a third of a step (docs/speed.md). Here, blocks of freed maps are kept
until `release`, and the system may use large pages for them.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import weakref
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

# Smaller maps are left to the C library, which keeps blocks of this size.
_LEAST_BYTES = 1 << 17

_free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)
_leases: dict[int, _Lease] = {}


class _Lease(weakref.ref[Any]):
    """Watches a buffer that a tensor holds; when that is freed, its block is free too."""

    __slots__ = ("block",)
    block: mmap.mmap


def new_map(size: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """A map [B, C, H, W] on the CPU, channels-last, not initialized."""
    batch, channels, height, width = size
    count = math.prod(size)
    bytes_used = count * dtype.itemsize
    if bytes_used < _LEAST_BYTES:
        return torch.empty(size, dtype=dtype, memory_format=torch.channels_last)
    try:
        block = _free[bytes_used].pop()
    except IndexError:
        block = _new_block(bytes_used)
    buffer = (ctypes.c_char * bytes_used).from_buffer(block)
    lease = _Lease(buffer, _take_back)
    lease.block = block
    _leases[id(lease)] = lease
    return torch.frombuffer(buffer, dtype=dtype, count=count).view(batch, height, width, channels).permute(0, 3, 1, 2)


def map_like(x: Tensor) -> Tensor:
    """A map with the size and the dtype of `x` [B, C, H, W], channels-last, not initialized."""
    batch, channels, height, width = x.shape
    return new_map((batch, channels, height, width), x.dtype)


def release() -> None:
    """Return all memory that no map uses to the system."""
    _free.clear()


def _new_block(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Some systems have no large pages.
        with contextlib.suppress(OSError):
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _take_back(lease: Any) -> None:
    del _leases[id(lease)]
    _free[len(lease.block)].append(lease.block)
