"""Max pooling and average pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph.ops.operation import Operation
from thaw.graph.ops.windows import count_windows, lead_of_windows, sliding_windows
from thaw.graph.rounding import rounded
from thaw.graph.tensors import Array, Interval, Tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Operation):
    """Pooling windows over a feature map, without padding: (H, W, C) -> ((H - kh) // sh + 1, (W - kw) // sw + 1, C).

    Rows and columns that do not fill a window are ignored.

    Attributes:
        kernel: (kh, kw), the window's rows and columns.
        stride: (sh, sw), from one window to the next.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_pair("kernel", self.kernel)
        self._check_pair("stride", self.stride)

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(H, W, C) -> (H', W', C)."""
        read = self._only(inputs, 3)
        return self._moved((*count_windows(read.shape[:2], self.kernel, self.stride), read.shape[2]), read)

    def lead_bytes(self, read: Tensor, written: Tensor, pool_stride: tuple[int, int]) -> int:
        """As `Operation.lead_bytes`."""
        return lead_of_windows(read, written, self.stride)

    def _reduce(self, x: Array, combine: Callable[[Array, Array], Array]) -> Array:
        """Combine the positions of each window, one position at a time: [N, H, W, C] -> [N, H', W', C]."""
        view = sliding_windows(x, self.kernel, self.stride)
        made: Array = view[:, :, :, 0, 0].copy()
        for row, column in list(np.ndindex(self.kernel))[1:]:
            made = combine(made, view[:, :, :, row, column])
        return made


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool2d(Pool):
    """The largest value of each window: (H, W, C) -> (H', W', C)."""

    kind: ClassVar[str] = "max_pool2d"

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """[N, H, W, C] -> [N, H', W', C]."""
        return self._reduce(arrays[0], np.maximum)

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        from torch.nn.functional import max_pool2d

        return max_pool2d(arrays[0], self.kernel, self.stride)


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool2d(Pool):
    """The mean of each window: (H, W, C) -> (H', W', C); with a window of (H, W) it is global pooling.

    In an int8 graph the mean is rounded to the nearest integer, halves away from 0.
    """

    kind: ClassVar[str] = "average_pool2d"

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """[N, H, W, C] -> [N, H', W', C]."""
        count = math.prod(self.kernel)
        if reads[0].quantization is None:
            return self._reduce(arrays[0], np.add) / np.float32(count)
        sums = self._reduce(arrays[0].astype(np.int64), np.add)
        halves_away = np.where(sums > 0, sums + count // 2, sums - count // 2)
        return np.clip(np.trunc(halves_away / count), -128, 127).astype(np.int8)

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        import torch
        from torch.nn.functional import avg_pool2d

        from thaw.graph.fake_quantize import straight_through

        count = math.prod(self.kernel)
        mean = avg_pool2d(arrays[0], self.kernel, self.stride)
        sums = avg_pool2d(arrays[0].detach().double(), self.kernel, self.stride, divisor_override=1).to(torch.int64)
        halves_away = torch.where(sums > 0, sums + count // 2, sums - count // 2)
        return straight_through(mean, halves_away.div(count, rounding_mode="trunc").clamp_(-128, 127))

    def admitted(self, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
        """Means that are rounded in any way."""
        count = math.prod(self.kernel)
        ends = [self._reduce(end.astype(np.float64), np.add) / count for end in (lows[0], highs[0])]
        # A float32 mean adds `count` numbers.
        return rounded(ends[0], ends[1], 255.0 * count * 2.0**-24, None)
