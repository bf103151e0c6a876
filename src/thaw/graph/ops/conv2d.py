"""Convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from thaw.graph.ops.convolution import Convolution
from thaw.graph.tensors import Array, Tensor

if TYPE_CHECKING:
    import torch

POSITIONS_AT_ONCE = 4
"""Output positions that the C kernel computes at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d(Convolution):
    """Convolution and its activation: (H, W, C) -> (H', W', C').

    On the padded input x,
    `y[i, j, o] = bias[o] + sum over r, s, c of x[sh i + r, sw j + s, c] * weights[o, r, s, c]`.

    Attributes:
        weights: [C', kh, kw, C].
    """

    kind: ClassVar[str] = "conv2d"
    axes: ClassVar[int] = 4
    gathers: ClassVar[int] = 1

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw)."""
        return self.weights.shape[1], self.weights.shape[2]

    @property
    def kernel_rows(self) -> int:
        """Kh."""
        return int(self.weights.shape[1])

    def sum_products(self, x: Array, weights: Array) -> Array:
        """[N, H, W, C] -> [N, H', W', C']."""
        patches, filters = self._patches(x), weights.reshape(len(weights), -1)
        products = patches.reshape(-1, filters.shape[1]) @ filters.T
        sums: Array = products.reshape(*patches.shape[:3], len(filters))
        return sums

    def sum_products_in_torch(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        from torch.nn.functional import conv2d

        return conv2d(self._padded_in_torch(x), weights.permute(0, 3, 1, 2), stride=self.stride)

    def scratch_bytes(self, written: Tensor, pooled_positions: int) -> int:
        """Gathered windows as int16, for a batch of positions or for all positions of a pooling window."""
        is_single = pooled_positions == 1 and written.shape[:2] == (1, 1)
        batches = -(-pooled_positions // POSITIONS_AT_ONCE)
        return 2 * self.padded_taps * (1 if is_single else batches * POSITIONS_AT_ONCE)
