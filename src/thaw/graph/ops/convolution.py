"""The common base of full and depthwise convolutions: padding, stride and windows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph.ops.weighted import Weighted
from thaw.graph.ops.windows import count_windows, lead_of_windows, sliding_windows
from thaw.graph.tensors import Array, Shape, Tensor, is_sizes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution(Weighted):
    """A convolution and its activation: (H, W, C) -> (H', W', C').

    H' = (H + top + bottom - kh) // sh + 1, and W' likewise.

    Attributes:
        padding: rows and columns of zeros (top, bottom, left, right); in an int8 graph, the input's zero point.
        stride: (rows, columns) from one window to the next.
    """

    gathers: ClassVar[int] = 0
    """Windows that the C kernel reads before it writes the first output."""

    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    stride: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_sizes(self.padding, least=0) or len(self.padding) != 4:
            self._refuse(f"padding {self.padding}: expected (top, bottom, left, right), each at least 0")
        self._check_pair("stride", self.stride)
        rows, columns = self.kernel
        if max(self.padding[:2]) >= rows or max(self.padding[2:]) >= columns:
            self._refuse(f"padding {self.padding}: expected less than the kernel's {rows}x{columns}")

    @property
    @abstractmethod
    def kernel(self) -> tuple[int, int]:
        """(kh, kw), the window's rows and columns."""

    @property
    def in_channels(self) -> int:
        """Input channels, C."""
        return int(self.weights.shape[-1])

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(H, W, C) -> (H', W', C')."""
        read = self._only(inputs, 3)
        rows, columns, channels = read.shape
        if channels != self.in_channels:
            self._refuse(f"its weights are for {self.in_channels} channels, but its input has {channels}")
        top, bottom, left, right = self.padding
        shape = count_windows((rows + top + bottom, columns + left + right), self.kernel, self.stride)
        return self._computed((*shape, self.channels), read, self.quantization)

    def macs(self, output: Shape) -> int:
        """Positions times weights; products with padding count."""
        return math.prod(output[:2]) * self.weights.size

    def lead_bytes(self, read: Tensor, written: Tensor, pool_stride: tuple[int, int]) -> int:
        """As `Operation.lead_bytes`."""
        stride = (self.stride[0] * pool_stride[0], self.stride[1] * pool_stride[1])
        return lead_of_windows(read, written, stride, (self.padding[0], self.padding[2]), self.gathers)

    def _patches(self, x: Array) -> Array:
        """A view of the windows of the padded input: [N, H, W, C] -> [N, H', W', kh, kw, C]."""
        top, bottom, left, right = self.padding
        # Zeros in an int8 graph too: the zero point has been subtracted.
        padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))) if any(self.padding) else x
        return sliding_windows(padded, self.kernel, self.stride)

    def _padded_in_torch(self, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import pad

        top, bottom, left, right = self.padding
        return pad(x, (left, right, top, bottom)) if any(self.padding) else x
