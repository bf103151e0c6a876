"""Inputs and tolerances for the tests of training kernels."""

from __future__ import annotations

import torch

# Rounding error of one result, with 24 bits and with 8 bits.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


def channels_last(*shape, dtype, seed=0, mean=0.0):
    """Random numbers [B, C, H, W]."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=draw) + mean).to(dtype).to(memory_format=torch.channels_last)
