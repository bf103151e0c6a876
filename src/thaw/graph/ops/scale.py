"""Normalization of raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thaw.data.images import check_statistics
from thaw.graph.ops.operation import Operation, OutputScale
from thaw.graph.tensors import Array, FloatArray, Quantization, Tensor
from thaw.quoting import shown


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Operation):
    """Raw pixels to network input: uint8 (H, W, C) -> float32 (H, W, C), `(x / 255 - mean) / std`.

    Int8 graphs do not have this operation: they read pixels through a `Requantize`, and normalization is folded into
    the first convolution.

    Attributes:
        mean: one number per channel.
        std: one number per channel, above 0.
    """

    kind: ClassVar[str] = "scale"
    output_scale: ClassVar[OutputScale] = "fixed"

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_statistics(f"graph: {self.kind} {shown(self.name)}", self.mean, self.std, len(self.mean))

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """uint8 (H, W, C) -> float32 (H, W, C)."""
        read = self._only(inputs, 3, ("uint8",))
        if len(self.mean) != read.shape[2]:
            self._refuse(
                f"{len(self.mean)} means and deviations for {read.shape[2]} channels: expected one per channel"
            )
        return self._written(read.shape, "float32", None)

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """uint8 [N, H, W, C] -> float32 [N, H, W, C]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (arrays[0].astype(np.float32) / np.float32(255.0) - mean) / std

    def pixel_quantization(self) -> Quantization:
        """The quantization of raw pixels that comes closest to this normalization.

        The rest is folded into weights and biases, exactly except for padding: the zeros around a normalized image
        become zero points, which are off by up to half a gray level in a gray image, and in a color image by the
        difference between a channel's mean and the mean of all channels.
        """
        mean, std = float(np.mean(self.mean)), float(np.mean(self.std))
        zero_point = int(np.clip(round(255.0 * mean), 0, 255))
        return Quantization(scale=float(np.float32(1.0 / (255.0 * std))), zero_point=zero_point)

    def folding(self, pixels: Quantization) -> tuple[FloatArray, FloatArray]:
        """(factor, offset), float32 [C]: this operation maps a pixel with value z to `z * factor + offset`."""
        mean, std = np.array(self.mean), np.array(self.std)
        factor = 1.0 / (255.0 * pixels.scale * std)
        offset = (pixels.zero_point / 255.0 - mean) / std
        return factor.astype(np.float32), offset.astype(np.float32)
