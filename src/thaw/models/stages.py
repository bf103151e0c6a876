"""Widths and numbers of stages: what the families of `thaw.models.families` have in common.

Shapes: H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from thaw.errors import UsageError
from thaw.models.blocks import Pooling, StemReduction, reduced_side
from thaw.quoting import shown

WIDEST = 4096
MOST_STAGES = 8
MOST_BLOCKS = 64

Shape = tuple[int, int, int]


def stage_units(widths: Sequence[int]) -> tuple[str, ...]:
    """The units of a submodel of stages, from the image to the logits."""
    return ("stem", *(f"stage{number}" for number in range(1, len(widths) + 1)), "dense")


def scaled_widths(widths: Sequence[int], least: int) -> Iterator[tuple[int, ...]]:
    """`widths` in proportion to every width of the widest: 1, 2, 3, and multiples of 4; none below `least`."""
    widest = max(widths)
    before: tuple[int, ...] = ()
    for largest in (1, 2, 3, *range(4, WIDEST + 1, 4)):
        scaled = tuple(max(least, _whole_width(width * largest / widest)) for width in widths)
        if scaled != before:
            yield scaled
        before = scaled


def _whole_width(width: float) -> int:
    """The nearest multiple of 4; below 4 the nearest whole number from 1."""
    return max(1, round(width)) if width < 4 else 4 * round(width / 4)


def missing_stages(shape: Shape, stages: int, last_map: int, stem: StemReduction) -> int:
    """How many stages more, each behind pooling 2x2, bring the last one to at most `last_map` rows and columns."""
    sides = [reduced_side(side, stem) for side in shape[:2]]
    more = 0
    while (
        max(sides) >> (stages + more - 1) > last_map and min(sides) >> (stages + more) and stages + more < MOST_STAGES
    ):
        more += 1
    return more


def lengthened(values: tuple[int, ...], more: int) -> tuple[int, ...]:
    """The values with the last one repeated so many times more."""
    return values + values[-1:] * more


def check_stages(name: str, values: Sequence[int], *, least: int, most: int) -> None:
    """Refuse no stage, too many stages, or a value out of range."""
    if not 1 <= len(values) <= MOST_STAGES or min(values, default=least) < least or max(values, default=most) > most:
        raise UsageError(
            f"model.{name} {shown(list(values))}: expected 1 to {MOST_STAGES} whole numbers from {least} to {most}, "
            "one a stage"
        )


def check_alike(widths: Sequence[int], name: str, values: Sequence[int]) -> None:
    """Refuse settings of different numbers of stages."""
    if len(widths) != len(values):
        raise UsageError(
            f"model.widths {shown(list(widths))} and model.{name} {shown(list(values))}: "
            "expected one of each for every stage"
        )


def check_reduction(pooling: str, stem: str) -> None:
    """Refuse a pooling or a stem that is not known."""
    if pooling not in get_args(Pooling):
        raise UsageError(f'model.pooling {shown(pooling)}: expected "max" or "average"')
    if stem not in get_args(StemReduction):
        raise UsageError(f'model.stem_reduction {shown(stem)}: expected "none", "pool" or "stride"')


def check_side(shape: Shape, stages: int, stem: StemReduction) -> None:
    """The stem and pooling between the stages must leave at least one position."""
    height, width, _ = shape
    least = 2 ** (stages - 1)
    if min(reduced_side(height, stem), reduced_side(width, stem)) < least:
        behind = "" if stem == "none" else f" behind a stem that halves them (model.stem_reduction={stem})"
        needed = least if stem == "none" else 2 * least
        raise UsageError(
            f"images of {height}x{width} are too small for {stages} stages{behind}: at least {needed}x{needed} are "
            "needed"
        )
