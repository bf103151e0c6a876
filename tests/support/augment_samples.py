"""Images, settings and a sampling oracle for the tests of the augmented view."""

from __future__ import annotations

import math

import numpy as np
import torch

from thaw.data.augment import AugmentSettings

OFF = {"rotation_degrees": 0.0, "zoom": 0.0, "translation": 0.0, "brightness": 0.0}
FILLS = ("zeros", "border", "reflection")


def only(**ranges) -> AugmentSettings:
    return AugmentSettings(**{**OFF, **ranges})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, channels, height, width), generator=generator(seed))


def reflected(position: float, side: int) -> float:
    """Reflect at the outer edges of the first and the last pixel until inside; then the nearest center."""
    while not -0.5 <= position <= side - 0.5:
        position = -1.0 - position if position < -0.5 else 2.0 * side - 1.0 - position
    return min(max(position, 0.0), side - 1.0)


def np_sample(image: np.ndarray, matrix: np.ndarray, fill: str) -> np.ndarray:
    """One image [C, H, W] seen through `matrix` [2, 3], pixel by pixel."""
    channels, height, width = image.shape
    out = np.zeros((channels, height, width))
    for row in range(height):
        for column in range(width):
            # Pixel centers: -1 is the left edge of the first pixel and 1 the right edge of the last.
            x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
            x_in, y_in = matrix @ np.array([x, y, 1.0])
            across, down = ((x_in + 1) * width - 1) / 2, ((y_in + 1) * height - 1) / 2
            if fill == "border":
                across, down = min(max(across, 0.0), width - 1.0), min(max(down, 0.0), height - 1.0)
            elif fill == "reflection":
                across, down = reflected(across, width), reflected(down, height)
            left, top = math.floor(across), math.floor(down)
            for at_row, at_column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= at_row < height and 0 <= at_column < width:
                    weight = (1 - abs(across - at_column)) * (1 - abs(down - at_row))
                    out[:, row, column] += weight * image[:, at_row, at_column]
    return out
