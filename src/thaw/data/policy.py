"""One random operation of random strength per image, after TrivialAugment (arXiv 2103.10158).

Shapes: B batch, n images of it with the same operation, C channels, H rows, W columns. Images are float32 in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R BT.601, the weights of Pillow's enhancers.
_GRAY_WEIGHTS = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A row of the table; the strength is uniform between `low` and `high`.

    Attributes:
        name: unique in the table.
        low: one end of the strengths.
        high: the other end, which may be smaller.
        change: (images [n, C, H, W], strengths [n, 1, 1, 1]) -> images [n, C, H, W], not yet clamped to 0..1; None for
            the identity and for geometric operations, which are applied together.
        color_only: whether it has no effect on gray images, which then do not draw it.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    change: Callable[[Tensor, Tensor], Tensor] | None = None
    color_only: bool = False


def brightness(x: Tensor, strengths: Tensor) -> Tensor:
    """`x` times 1 + strength."""
    return x * (1.0 + strengths)


def contrast(x: Tensor, strengths: Tensor) -> Tensor:
    """The distance of each pixel from the mean gray of its image, times 1 + strength."""
    return torch.lerp(_gray(x).mean(dim=(2, 3), keepdim=True), x, 1.0 + strengths)


def saturation(x: Tensor, strengths: Tensor) -> Tensor:
    """The distance of each pixel from its own gray, times 1 + strength."""
    return torch.lerp(_gray(x), x, 1.0 + strengths)


def sharpness(x: Tensor, strengths: Tensor) -> Tensor:
    """The distance of each pixel from the smoothed image, times 1 + strength: below 0 it blurs, above it sharpens."""
    # Pillow's SMOOTH: (sum of the 3x3 neighborhood + 4 * the pixel) / 13. Shifted additions take a quarter of the
    # time of avg_pool2d.
    near = F.pad(x, (1, 1, 1, 1), mode="replicate")
    near = near[:, :, :-2] + near[:, :, 1:-1] + near[:, :, 2:]
    near = near[..., :-2] + near[..., 1:-1] + near[..., 2:]
    return torch.lerp(near.add_(x, alpha=4.0).div_(13.0), x, 1.0 + strengths)


def posterize(x: Tensor, strengths: Tensor) -> Tensor:
    """Keep only the highest bits of each byte; the strength, rounded, is their number."""
    dropped = 8 - strengths.round().to(torch.int64)
    step = torch.bitwise_left_shift(torch.ones_like(dropped), dropped).to(x.dtype)
    # Rounded first, since k / 255 * 255 may lie just below k.
    return torch.floor((x * 255.0).round_() / step) * step / 255.0


def solarize(x: Tensor, strengths: Tensor) -> Tensor:
    """Invert pixels that are at least as bright as the strength."""
    return torch.where(x >= strengths, 1.0 - x, x)


def autocontrast(x: Tensor, strengths: Tensor) -> Tensor:  # noqa: ARG001 - one signature for the table
    """Stretch each channel of each image to 0..1; a constant channel is unchanged."""
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    even = high <= low
    return torch.where(even, x, (x - low) / torch.where(even, 1.0, high - low))


# The operations of RandAugment's search space with its ranges (degrees, slopes, shares of a side, changes of factors,
# bits, threshold), the milder of the two spaces of the TrivialAugment paper, since the networks here are small.
TRIVIAL: tuple[Operation, ...] = (
    Operation(name="identity"),
    Operation(name="rotate", low=-30.0, high=30.0),
    Operation(name="shear_x", low=-0.3, high=0.3),
    Operation(name="shear_y", low=-0.3, high=0.3),
    Operation(name="translate_x", low=-0.3, high=0.3),
    Operation(name="translate_y", low=-0.3, high=0.3),
    Operation(name="brightness", low=-0.9, high=0.9, change=brightness),
    Operation(name="contrast", low=-0.9, high=0.9, change=contrast),
    Operation(name="saturation", low=-0.9, high=0.9, change=saturation, color_only=True),
    Operation(name="sharpness", low=-0.9, high=0.9, change=sharpness),
    Operation(name="posterize", low=8.0, high=4.0, change=posterize),
    Operation(name="solarize", low=1.0, high=0.0, change=solarize),
    Operation(name="autocontrast", change=autocontrast),
)


# The geometric operations, in the order of the columns that `matrices` reads.
_MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def trivial_table(channels: int) -> tuple[Operation, ...]:
    """The operations for images with this many channels."""
    return tuple(operation for operation in TRIVIAL if channels == 3 or not operation.color_only)


def draw(table: tuple[Operation, ...], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A row of the table, int64 [count], and a strength, float32 [count], for each of `count` images."""
    device = generator.device
    choices = torch.randint(len(table), (count,), generator=generator, device=device)
    low = torch.tensor([operation.low for operation in table], device=device)[choices]
    high = torch.tensor([operation.high for operation in table], device=device)[choices]
    return choices, torch.lerp(low, high, torch.rand(count, generator=generator, device=device))


def matrices(moves: Tensor, aspect: float) -> Tensor:
    """Maps from output to input coordinates, float32 [n, 2, 3], for `torch.nn.functional.affine_grid`.

    Args:
        moves: float32 [n, 5], the strengths of rotate, shear_x, shear_y, translate_x and translate_y; at most one per
            row is not 0.
        aspect: W / H; coordinates run from -1 to 1 over each side, but angles and slopes refer to pixels.
    """
    degrees, shear_x, shear_y, shift_x, shift_y = moves.unbind(1)
    angles = torch.deg2rad(degrees)
    cosine, sine = torch.cos(angles), torch.sin(angles)
    # A side is 2 units long in these coordinates, so that a share t of it is 2 t.
    top = [cosine, (shear_x - sine) / aspect, 2.0 * shift_x]
    bottom = [(shear_y + sine) * aspect, cosine, 2.0 * shift_y]
    return torch.stack([*top, *bottom], dim=1).view(-1, 2, 3)


def apply_policy(x: Tensor, fill: str, generator: torch.Generator) -> Tensor:
    """Apply a random operation to each image of float32 [B, C, H, W] in 0..1: same shape, dtype and range.

    Args:
        x: the images; they are not modified.
        fill: padding mode of `torch.nn.functional.grid_sample`.
        generator: source of all random numbers.
    """
    table = trivial_table(x.shape[1])
    choices, strengths = draw(table, len(x), generator)
    # Channels first, since sums over an image take several times as long with channels last.
    made = x.clone(memory_format=torch.contiguous_format)
    lines = [line for name in _MOVES for line, operation in enumerate(table) if operation.name == name]
    moves = strengths[:, None] * (choices[:, None] == torch.tensor(lines, device=choices.device))
    where = moves.any(dim=1).nonzero()[:, 0]
    if len(where):
        some = made.index_select(0, where)
        grid = F.affine_grid(matrices(moves[where], x.shape[3] / x.shape[2]), list(some.shape), align_corners=False)
        _put(made, where, F.grid_sample(some, grid, mode="bilinear", padding_mode=fill, align_corners=False))
    for line, operation in enumerate(table):
        where = (choices == line).nonzero()[:, 0]
        if operation.change is not None and len(where):
            some = made.index_select(0, where)
            _put(made, where, operation.change(some, strengths[where].view(-1, 1, 1, 1)))
    return made


def _put(made: Tensor, where: Tensor, some: Tensor) -> None:
    """Write images [n, C, H, W], clamped to 0..1, over those at `where` (int64 [n]) of `made` [B, C, H, W]."""
    made.index_copy_(0, where, some.clamp_(0.0, 1.0))


def _gray(x: Tensor) -> Tensor:
    """Luma: [n, C, H, W] -> [n, 1, H, W]; gray images are returned unchanged."""
    if x.shape[1] == 1:
        return x
    weights = torch.tensor(_GRAY_WEIGHTS, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(dim=1, keepdim=True)
