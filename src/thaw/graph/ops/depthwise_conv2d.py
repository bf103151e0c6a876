"""Depthwise convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph.ops.convolution import Convolution
from thaw.graph.tensors import Array, Int8Array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthwiseConv2d(Convolution):
    """Convolution of each channel with its own kernel, and the activation: (H, W, C) -> (H', W', C).

    On the padded input x, `y[i, j, c] = bias[c] + sum over r, s of x[sh i + r, sw j + s, c] * weights[r, s, c]`.

    Attributes:
        weights: [kh, kw, C].
    """

    kind: ClassVar[str] = "depthwise_conv2d"
    axes: ClassVar[int] = 3
    channel_axis: ClassVar[int] = 2

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw)."""
        return self.weights.shape[0], self.weights.shape[1]

    def sum_products(self, x: Array, weights: Array) -> Array:
        """[N, H, W, C] -> [N, H', W', C]."""
        sums: Array = np.einsum("nijrsc,rsc->nijc", self._patches(x), weights)
        return sums

    def sum_products_in_torch(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        from torch.nn.functional import conv2d

        filters = weights.permute(2, 0, 1)[:, None]
        return conv2d(self._padded_in_torch(x), filters, stride=self.stride, groups=self.channels)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in the C, which stores them as they are."""
        return self.weights.size

    def packed_weights(self) -> Int8Array:
        """The int8 weights as the C stores them, int8 [weight_bytes]."""
        return self.weights.reshape(-1).astype(np.int8)
