"""Training kernels in C, compiled for this machine when training starts. Without a compiler, torch computes."""

from typing import Literal

KernelLayer = Literal["convolution", "normalization"]
"""Layers that have compiled kernels. "convolution" is `blocks.ConvReluPool`, with the dense layer behind it."""
