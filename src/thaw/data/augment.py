"""The augmented view: random rotation, zoom, translation and brightness of a whole batch at a time.

Shapes: B batch, C channels, H rows, W columns. Every random number comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from thaw.errors import UsageError

Fill = Literal["zeros", "border", "reflection"]


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Ranges of the augmented view; each image draws its own values, uniformly, and 0 switches one off.

    Attributes:
        rotation_degrees: rotation by up to this much either way, 0 to 180.
        zoom: scaling by a factor from 1 - zoom to 1 + zoom, 0 to below 1.
        translation: shift by up to this share of the height and of the width, 0 to 1.
        brightness: added to every pixel (0 to 1), the same for a whole image, up to this much either way, 0 to 1.
        fill: what lies outside of the image: "zeros" (black), its "border" pixels repeated, or its "reflection".
    """

    rotation_degrees: float = 10.0
    zoom: float = 0.1
    translation: float = 0.1
    brightness: float = 0.1
    fill: Fill = "zeros"

    def __post_init__(self) -> None:
        limits = {"rotation_degrees": 180.0, "zoom": 0.99, "translation": 1.0, "brightness": 1.0}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0.0 <= value <= limit:
                raise UsageError(f"augment.{name} {value}: expected a number from 0 to {limit:g}")
        if self.fill not in get_args(Fill):
            raise UsageError(f"augment.fill {self.fill!r}: expected one of {', '.join(get_args(Fill))}")


def affine_matrices(settings: AugmentSettings, count: int, aspect: float, generator: torch.Generator) -> Tensor:
    """Random maps from output to input coordinates, float32 [count, 2, 3], for `torch.nn.functional.affine_grid`.

    Coordinates run from -1 to 1 over each side, so a rotation needs the aspect ratio W / H to stay one in pixels: for
    an angle a and a scale s, x_in = s (cos a x - sin a y / aspect) + tx and y_in = s (sin a aspect x + cos a y) + ty.
    Sampling with scale s shrinks or enlarges the picture by 1 / s, which is why s is the inverse of the zoom drawn.
    """
    draws = torch.rand((4, count), generator=generator, device=generator.device).mul_(2.0).sub_(1.0)
    angle = draws[0] * math.radians(settings.rotation_degrees)
    scale = 1.0 / (1.0 + settings.zoom * draws[1])
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    # A side is 2 units long in these coordinates, so a share t of it is 2 t.
    shift_x, shift_y = 2.0 * settings.translation * draws[2], 2.0 * settings.translation * draws[3]
    rows = torch.stack([cosine, -sine / aspect, shift_x, sine * aspect, cosine, shift_y], dim=1)
    return rows.view(count, 2, 3)


def augment(x: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """The augmented view of images float32 [B, C, H, W] in 0..1: same shape, dtype and range, bilinearly sampled."""
    count, _, height, width = x.shape
    theta = affine_matrices(settings, count, width / height, generator)
    offset = torch.rand((count, 1, 1, 1), generator=generator, device=generator.device).mul_(2.0).sub_(1.0)
    moves = bool(settings.rotation_degrees or settings.zoom or settings.translation)
    if moves:
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode=settings.fill, align_corners=False)
    if settings.brightness:
        x = x + settings.brightness * offset
    # Bilinear weights can add up to 1 and a rounding error, so sampling alone leaves the range too.
    return x.clamp_(0.0, 1.0) if moves or settings.brightness else x
