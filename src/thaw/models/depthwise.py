"""Depthwise convolution, in compiled C or in torch.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thaw.kernels.depthwise import can_convolve, depthwise


class DepthwiseConv(nn.Conv2d):
    """Zero-padded convolution of each channel by itself: [B, C, H, W] -> [B, C, H', W'].

    Attributes:
        compiled: in training mode, use compiled C for inputs that it supports (see `thaw.kernels.depthwise`).
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(channels, channels, kernel, stride, padding=kernel // 2, groups=channels, bias=False)
        self.compiled = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        if self.compiled and self.training and self.weight.dtype == torch.float32:
            x = in_autocast_dtype(x)
            if can_convolve(x):
                return depthwise(x, self.weight, self.stride[0])
        return super().forward(x)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in the dtype of torch's convolutions here."""
    if not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
