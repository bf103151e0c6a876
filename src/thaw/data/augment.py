"""Augmentation of whole batches: flip, crop, one operation per image, affine map, brightness, cutout.

Shapes: B batch, C channels, H rows, W columns. All random numbers come from the generator that is passed in. Operations
that are switched off draw none, except the affine map and the brightness, which always draw.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, StrictBool
from torch import Tensor

from thaw.data.policy import apply_policy
from thaw.kernels.augmentation import Changes
from thaw.plain import Real, Share, checked_dataclass

Fill = Literal["zeros", "border", "reflection"]
Policy = Literal["none", "trivial"]


@checked_dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """The random changes of the augmented view. Each image draws its own values, uniformly; 0 switches a change off."""

    rotation_degrees: Annotated[Real, Field(ge=0, le=180)] = 10.0
    """Largest rotation in either direction, in degrees."""
    zoom: Annotated[Real, Field(ge=0, le=0.99)] = 0.1
    """Scaling by a factor from 1 - zoom to 1 + zoom."""
    translation: Share = 0.1
    """Largest shift in either direction, as a fraction of the height and of the width."""
    brightness: Share = 0.1
    """Largest value added to or subtracted from all pixels (0 to 1) of an image."""
    fill: Fill = "zeros"
    """Pixels outside of the image: "zeros" (black), its "border" pixels repeated, or its "reflection"."""
    flip: StrictBool = False
    """Mirror half of the images horizontally."""
    crop: Annotated[Real, Field(ge=0, le=0.5)] = 0.0
    """Largest shift by whole pixels, as a fraction of the height and of the width, rounded. 0.125 is the usual padding
    of 32x32 images by 4 pixels."""
    cutout: Annotated[Real, Field(ge=0, le=0.9)] = 0.0
    """Side of a square that is filled with the image's mean color, at a random center, as a fraction of the shorter
    side, rounded."""
    policy: Policy = "none"
    """"trivial" applies to each image one random operation at a random strength (TrivialAugment, arXiv 2103.10158)."""
    mixup: Annotated[Real, Field(ge=0, le=10)] = 0.0
    """Alpha of the Beta distribution of the weights when images are blended in pairs (mixup)."""
    cutmix: Annotated[Real, Field(ge=0, le=10)] = 0.0
    """Alpha of the Beta distribution of the area when a rectangle of another image is pasted in (CutMix). If mixup is
    on too, each batch draws one of them."""
    mix_probability: Share = 1.0
    """Fraction of the batches that are mixed."""


def affine_matrices(settings: AugmentSettings, count: int, aspect: float, generator: torch.Generator) -> Tensor:
    """Random maps from output to input coordinates, float32 [count, 2, 3], for `torch.nn.functional.affine_grid`.

    Coordinates run from -1 to 1 over each side, so that a rotation in pixels involves the aspect ratio W / H: for an
    angle a and a scale s, x_in = s (cos a x - sin a y / aspect) + tx and y_in = s (sin a aspect x + cos a y) + ty.
    Sampling with scale s zooms the picture by 1 / s, so s is the inverse of the zoom drawn.
    """
    draws = torch.rand((4, count), generator=generator, device=generator.device).mul_(2.0).sub_(1.0)
    angle = draws[0] * math.radians(settings.rotation_degrees)
    scale = 1.0 / (1.0 + settings.zoom * draws[1])
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    # A side is 2 units long in these coordinates, so that a share t of it is 2 t.
    shift_x, shift_y = 2.0 * settings.translation * draws[2], 2.0 * settings.translation * draws[3]
    rows = torch.stack([cosine, -sine / aspect, shift_x, sine * aspect, cosine, shift_y], dim=1)
    return rows.view(count, 2, 3)


def augment(x: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """Augment images float32 [B, C, H, W] in 0..1, without mixing: same shape, dtype and range.

    Order: flip and crop by whole pixels, policy, affine map (bilinear), brightness, cutout.
    """
    if settings.flip or settings.crop:
        x = reframe(x, settings, generator)
    if settings.policy == "trivial":
        x = apply_policy(x, settings.fill, generator)
    x = _move_and_light(x, settings, generator)
    return cut_out(x, settings.cutout, generator) if settings.cutout else x


def reframe(x: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """Flip and shift by whole pixels: float32 [B, C, H, W] -> the same, channels last in memory."""
    count, channels, height, width = x.shape
    device = x.device
    down, across, mirrored = _frames(settings, count, (height, width), generator)
    columns = torch.arange(width, device=device).expand(count, width)
    if mirrored is not None:
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = columns + across
    rows = torch.arange(height, device=device) + down
    first = torch.arange(count, device=device)[:, None] * height
    # Lookup of rows of C values in one table: several times as fast as indexing three axes.
    chosen = (first + _source(rows, height, settings.fill))[:, :, None] * width
    chosen = chosen + _source(columns, width, settings.fill)[:, None, :]
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    made = table.index_select(0, chosen.view(-1)).view(count, height, width, channels)
    if settings.crop and settings.fill == "zeros":
        # Rows of W * C numbers: several times as fast as a mask that is broadcast over C.
        lines = made.view(count, height, width * channels)
        lines.mul_(_is_inside(rows, height)[:, :, None])
        lines.mul_(_is_inside(columns, width).repeat_interleave(channels, dim=1)[:, None, :])
    return made.permute(0, 3, 1, 2)


def _frames(
    settings: AugmentSettings, count: int, sides: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random shifts down and across, int64 [count, 1], and which images are mirrored, bool [count, 1], if any are."""
    down, across = (_shifts(settings.crop, side, count, generator) for side in sides)
    if not settings.flip:
        return down, across, None
    return down, across, torch.rand((count, 1), generator=generator, device=generator.device) < 0.5


def _shifts(crop: float, side: int, count: int, generator: torch.Generator) -> Tensor:
    """A random shift of each image by up to crop * side pixels in either direction, int64 [count, 1]."""
    if not crop:
        return torch.zeros((count, 1), dtype=torch.int64, device=generator.device)
    reach = round(crop * side)
    return torch.randint(-reach, reach + 1, (count, 1), generator=generator, device=generator.device)


def _source(positions: Tensor, side: int, fill: Fill) -> Tensor:
    """The source of positions that may lie outside a side; for "zeros", any position inside."""
    if fill == "reflection":
        # Reflection at the outer edges of the pixels, as in `grid_sample`: -1 maps to 0, with a period of 2 sides.
        positions = positions.remainder(2 * side)
        return torch.minimum(positions, 2 * side - 1 - positions)
    return positions.clamp(0, side - 1)


def _is_inside(positions: Tensor, side: int) -> Tensor:
    """1 for positions inside a side, else 0; float32 of the same shape."""
    return ((positions >= 0) & (positions < side)).to(torch.float32)


def _move_and_light(x: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """The affine map and the brightness: float32 [B, C, H, W] in 0..1 -> the same."""
    count, _, height, width = x.shape
    theta = affine_matrices(settings, count, width / height, generator)
    offset = _offsets(count, generator)
    moves = _moves(settings)
    if moves:
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode=settings.fill, align_corners=False)
    if settings.brightness:
        x = x + settings.brightness * offset.view(-1, 1, 1, 1)
    # Rounding of the bilinear weights can also exceed the range.
    return x.clamp_(0.0, 1.0) if moves or settings.brightness else x


def _moves(settings: AugmentSettings) -> bool:
    """Whether there is an affine map."""
    return bool(settings.rotation_degrees or settings.zoom or settings.translation)


def _offsets(count: int, generator: torch.Generator) -> Tensor:
    """Random numbers from -1 to 1, float32 [count]."""
    return torch.rand(count, generator=generator, device=generator.device).mul_(2.0).sub_(1.0)


def _centers(count: int, sides: tuple[int, int], generator: torch.Generator) -> list[Tensor]:
    """A random row and a random column of each image, int64 [count, 1]."""
    return [torch.randint(n, (count, 1), generator=generator, device=generator.device) for n in sides]


def cut_out(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set a square of round(share * shorter side) pixels to the mean color: float32 [B, C, H, W] -> the same.

    The center (for an even side, the pixel below and right of it) is uniform over all pixels, so that a part of the
    square may lie outside the image.
    """
    count, channels, height, width = x.shape
    side = round(share * min(height, width))
    reach = torch.arange(side, device=x.device) - side // 2
    centers = _centers(count, (height, width), generator)
    # The center lies inside, so that border pixels, to which outside positions are clamped, belong to the square.
    rows, columns = ((center + reach).clamp(0, n - 1) for center, n in zip(centers, (height, width), strict=True))
    first = torch.arange(count, device=x.device)[:, None] * height
    chosen = (first + rows)[:, :, None] * width + columns[:, None, :]
    made = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    means = x.mean(dim=(2, 3)).repeat_interleave(side * side, dim=0)
    made.view(-1, channels).index_copy_(0, chosen.view(-1), means)
    return made.permute(0, 3, 1, 2)


def draw_changes(
    settings: AugmentSettings, count: int, sides: tuple[int, int], generator: torch.Generator
) -> Changes | None:
    """The random numbers of `augment` for images of `sides` (H, W), for `thaw.kernels.augmentation`.

    Returns:
        The changes; None, without drawing anything, if the settings have one that is not among them.
    """
    if settings.policy != "none":
        return None
    height, width = sides
    frames = centers = None
    if settings.flip or settings.crop:
        down, across, mirrored = _frames(settings, count, sides, generator)
        frames = torch.cat([down, across, torch.zeros_like(down) if mirrored is None else mirrored], dim=1)
    theta = affine_matrices(settings, count, width / height, generator)
    offsets = _offsets(count, generator)
    if settings.cutout:
        centers = torch.cat(_centers(count, sides, generator), dim=1).to(torch.int32)
    return Changes(
        frames=None if frames is None else frames.to(torch.int32),
        theta=theta if _moves(settings) else None,
        lights=offsets.mul_(settings.brightness) if settings.brightness else None,
        centers=centers,
        square=round(settings.cutout * min(sides)),
        fill=settings.fill,
    )
