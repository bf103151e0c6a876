"""Families of submodels: one frozen spec and one builder each.

A submodel is an `nn.Sequential` of named units from the image to the logits, the last of which is a `DenseClassifier`.
That is all that fusion and the training stages know of it: units are what thaws, one at a time, from the last to the
first. A submodel can also stand alone as the whole network.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias, get_args

from torch import nn

from thaw.errors import UsageError
from thaw.models.blocks import (
    ConvNorm,
    ConvReluPool,
    DenseClassifier,
    GlobalPool,
    Halve,
    Loop,
    Pooling,
    Residual,
    Separable,
)
from thaw.quoting import shown

WIDEST = 4096
_MOST_STAGES = 8
_MOST_BLOCKS = 64


@dataclass(frozen=True, kw_only=True)
class PaperSpec:
    """The submodel of arXiv 2501.15547: twice 3x3 convolution, pooling and ReLU, then dropout and a dense layer.

    Attributes:
        filters: filters of the two convolutions.
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    family: ClassVar[str] = "paper"
    units: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "dense")
    normalised: ClassVar[bool] = False
    width_step: ClassVar[int] = 1

    filters: tuple[int, ...] = (10, 20)
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if len(self.filters) != 2 or min(self.filters, default=0) < 1 or max(self.filters) > WIDEST:
            raise UsageError(
                f"model.filters {shown(list(self.filters))}: expected two whole numbers from 1 to {WIDEST}"
            )
        _check_dropout(self.dropout)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: when the image is too small for the layers (below 10x10).
        """
        height, width, channels = shape
        rows, columns = (ConvReluPool.output_side(ConvReluPool.output_side(side)) for side in (height, width))
        if rows < 1 or columns < 1:
            raise UsageError(
                f"images of {height}x{width} are too small for the paper's network: at least 10x10 are needed"
            )
        _check_classes(classes)
        first, second = self.filters
        return nn.Sequential(
            OrderedDict(
                conv1=ConvReluPool(channels, first),
                conv2=ConvReluPool(first, second),
                dense=DenseClassifier((second, rows, columns), classes, self.dropout),
            )
        )

    def members(self) -> Iterator[PaperSpec]:
        """The family from the smallest on: these proportions at every width of the first convolution."""
        ratio = self.filters[1] / self.filters[0]
        for first in range(1, WIDEST + 1):
            if (second := max(1, round(ratio * first))) <= WIDEST:
                yield replace(self, filters=(first, second))

    @property
    def free_widths(self) -> tuple[int, ...]:
        """The widths that can be chosen one by one, in steps of `width_step`."""
        return self.filters

    def with_widths(self, widths: Sequence[int]) -> Self:
        """The same with other `free_widths`."""
        return replace(self, filters=tuple(widths))

    def deepened(self, shape: tuple[int, int, int], last_map: int) -> Self:  # noqa: ARG002 - other families need it
        """The same: the paper's submodel has two convolutions, whatever the image."""
        return self


@dataclass(frozen=True, kw_only=True)
class _BlockSpec(ABC):
    """What families have in common whose stages are so many blocks of a width.

    Widths are searched in steps of 4, four int8 weights being what a small device loads at once; steps of 16, which
    vector units like, are too coarse for ten thousand parameters.

    Attributes:
        widths: channels of each stage; the first is also the stem's.
        blocks: blocks of each stage, at least `least_blocks`.
        pooling: between the stages, "max" or "average".
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    width_step: ClassVar[int] = 4
    normalised: ClassVar[bool] = True
    least_blocks: ClassVar[int]

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    pooling: Pooling = "max"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_stages("widths", self.widths, least=1, most=WIDEST)
        _check_stages("blocks", self.blocks, least=self.least_blocks, most=_MOST_BLOCKS)
        _check_alike(self.widths, "blocks", self.blocks)
        _check_pooling(self.pooling)
        _check_dropout(self.dropout)

    @abstractmethod
    def _stage(self, read: int, width: int, blocks: int, *, is_first: bool) -> OrderedDict[str, nn.Module]:
        """The parts of one stage, which reads `read` channels and gives `width`; a later one pools first."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: when the image is too small to be pooled between all stages.
        """
        reads = (self.widths[0], *self.widths)
        stages = [
            self._stage(read, width, count, is_first=not index)
            for index, (read, width, count) in enumerate(zip(reads, self.widths, self.blocks, strict=False))
        ]
        return _staged(shape, classes, self.widths[0], stages, self.widths[-1], self.dropout)

    @property
    def units(self) -> tuple[str, ...]:
        """From the image to the logits."""
        return _stage_units(self.widths)

    def members(self) -> Iterator[Self]:
        """The family from the smallest on: these proportions at every width, multiples of 4 (and below 4, each)."""
        for widths in _scaled_widths(self.widths):
            yield replace(self, widths=widths)

    @property
    def free_widths(self) -> tuple[int, ...]:
        """The widths that can be chosen one by one, in steps of `width_step`."""
        return self.widths

    def with_widths(self, widths: Sequence[int]) -> Self:
        """The same with other `free_widths`."""
        return replace(self, widths=tuple(widths))

    def deepened(self, shape: tuple[int, int, int], last_map: int) -> Self:
        """The same with more stages like the last, until that works on at most `last_map` rows and columns."""
        more = _missing_stages(shape, len(self.widths), last_map)
        return replace(self, widths=_lengthened(self.widths, more), blocks=_lengthened(self.blocks, more))


@dataclass(frozen=True, kw_only=True)
class ResidualSpec(_BlockSpec):
    """Residual stages of 3x3 convolutions, pooled between, then global pooling and a dense layer (arXiv 1512.03385).

    The first stage works at the image's own size. Each later one begins with pooling 2x2 and a convolution to its
    width.

    Attributes:
        widths: channels of each stage.
        blocks: residual blocks (two convolutions each) of each stage; 0 for none.
        pooling: between the stages, "max" or "average".
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    family: ClassVar[str] = "residual"
    least_blocks: ClassVar[int] = 0

    widths: tuple[int, ...] = (16, 16, 28)
    blocks: tuple[int, ...] = (1, 1, 1)

    def _stage(self, read: int, width: int, blocks: int, *, is_first: bool) -> OrderedDict[str, nn.Module]:
        begin = {} if is_first else {"halve": Halve(self.pooling), "widen": ConvNorm(read, width)}
        return OrderedDict(begin | {f"block{number}": Residual(width) for number in range(1, blocks + 1)})


@dataclass(frozen=True, kw_only=True)
class LoopedSpec:
    """Stages of one 3x3 convolution each that is used many times, with a normalisation of its own for each pass.

    Parameters are shared between the passes, so that depth costs time and not memory. The stem works at the image's own
    size; later stages begin with pooling 2x2, and a 1x1 convolution where the width changes.

    Attributes:
        stem: channels of the convolution that reads the image.
        widths: channels of each stage.
        passes: passes of each stage's convolution; 0 where a stage only pools and widens.
        pooling: between the stages, "max" or "average".
        shared: one convolution for all stages, which then have to be equally wide, the stem included.
        mixed: 0 for a classifier on the last state; else how many of the last states are mixed by learned factors.
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    family: ClassVar[str] = "looped"
    width_step: ClassVar[int] = 4
    normalised: ClassVar[bool] = True

    stem: int = 16
    widths: tuple[int, ...] = (16, 32, 32)
    passes: tuple[int, ...] = (2, 4, 4)
    pooling: Pooling = "max"
    shared: bool = False
    mixed: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_stages("widths", (self.stem, *self.widths), least=1, most=WIDEST)
        _check_stages("widths", self.widths, least=1, most=WIDEST)
        _check_stages("passes", self.passes, least=0, most=_MOST_BLOCKS)
        _check_alike(self.widths, "passes", self.passes)
        _check_pooling(self.pooling)
        if self.shared and len({self.stem, *self.widths}) > 1:
            raise UsageError(
                f"model.shared: stem {self.stem} and widths {shown(list(self.widths))} have to be equal to "
                "share a convolution"
            )
        available = sum(self.passes) if self.shared else self.passes[-1]
        if not 0 <= self.mixed <= available or not self.passes[-1]:
            raise UsageError(
                f"model.mixed {self.mixed}, model.passes {shown(list(self.passes))}: expected at least one pass in "
                f"the last stage, and no more states to mix than there are ({available})"
            )
        _check_dropout(self.dropout)

    @property
    def units(self) -> tuple[str, ...]:
        """From the image to the logits."""
        return ("stem", "loop", "dense") if self.shared else _stage_units(self.widths)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: when the image is too small to be pooled between all stages.
        """
        _check_side(shape, len(self.widths))
        if self.shared:
            unit: OrderedDict[str, nn.Module] = OrderedDict(
                loop=Loop(self.stem, self.passes, pooling=self.pooling, mixed=self.mixed)
            )
            return _staged(shape, classes, self.stem, [unit], self.stem, self.dropout, names=["loop"])
        stages = []
        read = self.stem
        for index, (width, passes) in enumerate(zip(self.widths, self.passes, strict=True)):
            parts: dict[str, nn.Module] = {"halve": Halve(self.pooling)} if index else {}
            if width != read:
                parts["widen"] = ConvNorm(read, width, kernel=1)
            if passes:
                parts["loop"] = Loop(width, (passes,), mixed=self.mixed if index == len(self.widths) - 1 else 0)
            stages.append(OrderedDict(parts))
            read = width
        return _staged(shape, classes, self.stem, stages, read, self.dropout)

    def members(self) -> Iterator[LoopedSpec]:
        """The family from the smallest on: these proportions at every width, multiples of 4 (and below 4, each)."""
        for stem, *widths in _scaled_widths((self.stem, *self.widths)):
            yield replace(self, stem=stem, widths=tuple(widths))

    @property
    def free_widths(self) -> tuple[int, ...]:
        """The widths that can be chosen one by one, in steps of `width_step`; one where all stages share theirs."""
        return (self.stem,) if self.shared else self.widths

    def with_widths(self, widths: Sequence[int]) -> Self:
        """The same with other `free_widths`; a stem that is as wide as the first stage stays so."""
        stem = widths[0] if self.stem == self.widths[0] else self.stem
        return replace(self, stem=stem, widths=tuple(widths) * (len(self.widths) if self.shared else 1))

    def deepened(self, shape: tuple[int, int, int], last_map: int) -> Self:
        """The same with more stages like the last, until that works on at most `last_map` rows and columns."""
        more = _missing_stages(shape, len(self.widths), last_map)
        return replace(self, widths=_lengthened(self.widths, more), passes=_lengthened(self.passes, more))


@dataclass(frozen=True, kw_only=True)
class SeparableSpec(_BlockSpec):
    """Stages of depthwise-separable convolutions, pooled between, then global pooling and a dense layer.

    Few parameters and multiply-accumulates, as in MobileNet (arXiv 1704.04861), for devices more than for training:
    depthwise convolutions are slow on a desk's CPU.

    Attributes:
        widths: channels of each stage; the first is also the stem's.
        blocks: separable blocks of each stage, at least 1.
        pooling: between the stages, "max" or "average".
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    family: ClassVar[str] = "separable"
    least_blocks: ClassVar[int] = 1

    widths: tuple[int, ...] = (24, 48, 96)
    blocks: tuple[int, ...] = (1, 2, 2)

    def _stage(self, read: int, width: int, blocks: int, *, is_first: bool) -> OrderedDict[str, nn.Module]:
        begin: dict[str, nn.Module] = {} if is_first else {"halve": Halve(self.pooling)}
        reads = (read, *(width,) * (blocks - 1))
        return OrderedDict(
            begin | {f"block{number}": Separable(channels, width) for number, channels in enumerate(reads, start=1)}
        )


FamilySpec: TypeAlias = PaperSpec | ResidualSpec | LoopedSpec | SeparableSpec
FAMILIES: dict[str, type[FamilySpec]] = {
    spec.family: spec for spec in (PaperSpec, ResidualSpec, LoopedSpec, SeparableSpec)
}


def _staged(
    shape: tuple[int, int, int],
    classes: int,
    stem: int,
    stages: Sequence[OrderedDict[str, nn.Module]],
    features: int,
    dropout: float,
    names: Sequence[str] = (),
) -> nn.Sequential:
    """Stem, stages, the mean over positions at the end of the last (unless it gives that already), and a classifier."""
    _check_side(shape, len(stages))
    _check_classes(classes)
    last = stages[-1].get("loop")
    if not (isinstance(last, Loop) and last.mix):
        stages[-1]["pool"] = GlobalPool()
    named = names or [f"stage{number}" for number in range(1, len(stages) + 1)]
    units: OrderedDict[str, nn.Module] = OrderedDict(stem=ConvNorm(shape[2], stem))
    units.update((name, nn.Sequential(parts)) for name, parts in zip(named, stages, strict=True))
    units["dense"] = DenseClassifier((features, 1, 1), classes, dropout)
    return nn.Sequential(units)


def _stage_units(widths: Sequence[int]) -> tuple[str, ...]:
    return ("stem", *(f"stage{number}" for number in range(1, len(widths) + 1)), "dense")


def _scaled_widths(widths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """`widths` in proportion to every width of the widest: 1, 2, 3, and multiples of 4."""
    widest = max(widths)
    before: tuple[int, ...] = ()
    for largest in (1, 2, 3, *range(4, WIDEST + 1, 4)):
        scaled = tuple(_whole_width(width * largest / widest) for width in widths)
        if scaled != before:
            yield scaled
        before = scaled


def _whole_width(width: float) -> int:
    """The nearest multiple of 4; below 4 the nearest whole number from 1."""
    return max(1, round(width)) if width < 4 else 4 * round(width / 4)


def _missing_stages(shape: tuple[int, int, int], stages: int, last_map: int) -> int:
    """How many stages more, each behind pooling 2x2, bring the last one to at most `last_map` rows and columns."""
    height, width, _ = shape
    more = 0
    while (
        max(height, width) >> (stages + more - 1) > last_map
        and min(height, width) >> (stages + more)
        and stages + more < _MOST_STAGES
    ):
        more += 1
    return more


def _lengthened(values: tuple[int, ...], more: int) -> tuple[int, ...]:
    return values + values[-1:] * more


def _check_stages(name: str, values: Sequence[int], *, least: int, most: int) -> None:
    if not 1 <= len(values) <= _MOST_STAGES or min(values, default=least) < least or max(values, default=most) > most:
        raise UsageError(
            f"model.{name} {shown(list(values))}: expected 1 to {_MOST_STAGES} whole numbers from {least} to {most}, "
            "one a stage"
        )


def _check_alike(widths: Sequence[int], name: str, values: Sequence[int]) -> None:
    if len(widths) != len(values):
        raise UsageError(
            f"model.widths {shown(list(widths))} and model.{name} {shown(list(values))}: "
            "expected one of each for every stage"
        )


def _check_pooling(pooling: str) -> None:
    if pooling not in get_args(Pooling):
        raise UsageError(f'model.pooling {shown(pooling)}: expected "max" or "average"')


def _check_dropout(dropout: float) -> None:
    if not 0.0 <= dropout < 1.0:
        raise UsageError(f"model.dropout {dropout}: expected a probability from 0 to below 1")


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise UsageError(f"{classes} class: a classifier needs at least 2")


def _check_side(shape: tuple[int, int, int], stages: int) -> None:
    """Pooling between the stages must leave at least one position."""
    height, width, _ = shape
    least = 2 ** (stages - 1)
    if min(height, width) < least:
        raise UsageError(
            f"images of {height}x{width} are too small for {stages} stages: at least {least}x{least} are needed"
        )
