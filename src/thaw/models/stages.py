"""Widths and numbers of stages, for the families of `thaw.models.families`.

Shapes: H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from thaw.errors import UsageError
from thaw.models.blocks import StemReduction, reduced_side
from thaw.plain import Whole
from thaw.quoting import shown

WIDEST = 4096
MOST_STAGES = 8
MOST_BLOCKS = 64

T = TypeVar("T")
Shape = tuple[int, int, int]
Width = Annotated[Whole, Field(ge=1, le=WIDEST)]
Blocks = Annotated[Whole, Field(ge=0, le=MOST_BLOCKS)]
PerStage = Annotated[tuple[T, ...], Field(min_length=1, max_length=MOST_STAGES)]


def stage_units(widths: Sequence[int]) -> tuple[str, ...]:
    """The units of a submodel with stages, from the image to the logits."""
    return ("stem", *(f"stage{number}" for number in range(1, len(widths) + 1)), "dense")


def scaled_widths(widths: Sequence[int], least: int) -> Iterator[tuple[int, ...]]:
    """`widths` scaled so that the widest is 1, 2, 3 and every multiple of 4; none below `least`."""
    widest = max(widths)
    before: tuple[int, ...] = ()
    for largest in (1, 2, 3, *range(4, WIDEST + 1, 4)):
        scaled = tuple(max(least, _whole_width(width * largest / widest)) for width in widths)
        if scaled != before:
            yield scaled
        before = scaled


def _whole_width(width: float) -> int:
    """The nearest multiple of 4; below 4 the nearest positive integer."""
    return max(1, round(width)) if width < 4 else 4 * round(width / 4)


def missing_stages(shape: Shape, stages: int, last_map: int, stem: StemReduction) -> int:
    """Stages to add, each after 2x2 pooling, until the last works on at most `last_map` rows and columns."""
    sides = [reduced_side(side, stem) for side in shape[:2]]
    more = 0
    while (
        max(sides) >> (stages + more - 1) > last_map and min(sides) >> (stages + more) and stages + more < MOST_STAGES
    ):
        more += 1
    return more


def lengthened(values: tuple[int, ...], more: int) -> tuple[int, ...]:
    """The values with the last one repeated `more` times."""
    return values + values[-1:] * more


def check_same_stages(name: str, values: Sequence[int], widths: Sequence[int]) -> None:
    """Check that lists have one entry per stage."""
    if len(widths) != len(values):
        raise ValueError(
            f"{name} = {shown(list(values))}: expected one entry per stage, as in widths = {shown(list(widths))}"
        )


def check_side(shape: Shape, stages: int, stem: StemReduction) -> None:
    """Check that the image is large enough for the stem and the pooling between stages."""
    height, width, _ = shape
    least = 2 ** (stages - 1)
    if min(reduced_side(height, stem), reduced_side(width, stem)) < least:
        after = "" if stem == "none" else f" after a stem that halves them (model.stem_reduction={stem})"
        needed = least if stem == "none" else 2 * least
        raise UsageError(
            f"images of {height}x{width} are too small for {stages} stages{after}: expected at least "
            f"{needed}x{needed} pixels"
        )
