"""Families of submodels: one frozen spec and one builder each.

A submodel is an `nn.Sequential` of named units from the image to the logits, the last of which is a `DenseClassifier`.
Unification and the training stages know nothing else of it: units are unfrozen one at a time, from the last to the
first. A submodel can also stand alone as the whole network.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias

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
    StemReduction,
    make_stem,
)
from thaw.models.stages import (
    MOST_BLOCKS,
    WIDEST,
    Shape,
    check_alike,
    check_reduction,
    check_side,
    check_stages,
    lengthened,
    missing_stages,
    scaled_widths,
    stage_units,
)
from thaw.quoting import shown


@dataclass(frozen=True, kw_only=True)
class PaperSpec:
    """The submodel of arXiv 2501.15547: twice 3x3 convolution, pooling and ReLU, then dropout and a dense layer.

    Attributes:
        filters: filters of the two convolutions.
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    family: ClassVar[str] = "paper"
    units: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "dense")
    normalized: ClassVar[bool] = False
    width_step: ClassVar[int] = 1

    filters: tuple[int, ...] = (10, 20)
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if len(self.filters) != 2 or min(self.filters, default=0) < 1 or max(self.filters) > WIDEST:
            raise UsageError(
                f"model.filters {shown(list(self.filters))}: expected two whole numbers from 1 to {WIDEST}"
            )
        _check_dropout(self.dropout)

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
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

    def variants(self, least: int = 1) -> Iterator[PaperSpec]:
        """The family from the smallest on: these proportions at every width of the first convolution from `least`."""
        ratio = self.filters[1] / self.filters[0]
        for first in range(least, WIDEST + 1):
            if (second := max(least, round(ratio * first))) <= WIDEST:
                yield replace(self, filters=(first, second))

    @property
    def tunable_widths(self) -> tuple[int, ...]:
        """The widths that can be chosen one by one, in steps of `width_step`."""
        return self.filters

    def with_widths(self, widths: Sequence[int]) -> Self:
        """The same with other `tunable_widths`."""
        return replace(self, filters=tuple(widths))

    def with_extra_stages(self, shape: Shape, last_map: int) -> Self:  # noqa: ARG002 - other families need it
        """The same: the paper's submodel has two convolutions, whatever the image."""
        return self

    def with_stems(self, reductions: Sequence[StemReduction]) -> tuple[Self, ...]:  # noqa: ARG002 - as above
        """The same alone: the paper's submodel has no stem."""
        return (self,)


@dataclass(frozen=True, kw_only=True)
class _BlockSpec(ABC):
    """What families have in common whose stages are so many blocks of a width.

    Widths are searched in steps of 4, four int8 weights being what a small device loads at once; steps of 16, which
    vector units like, are too coarse for ten thousand parameters.

    Attributes:
        widths: channels of each stage; the first is also the stem's.
        blocks: blocks of each stage, at least `least_blocks`.
        pooling: between the stages, "max" or "average".
        stem_reduction: "none", or how the stem halves rows and columns: "pool" 2x2 after it, or a "stride" of 2.
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    width_step: ClassVar[int] = 4
    normalized: ClassVar[bool] = True
    least_blocks: ClassVar[int]

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    pooling: Pooling = "max"
    stem_reduction: StemReduction = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_stages("widths", self.widths, least=1, most=WIDEST)
        check_stages("blocks", self.blocks, least=self.least_blocks, most=MOST_BLOCKS)
        check_alike(self.widths, "blocks", self.blocks)
        check_reduction(self.pooling, self.stem_reduction)
        _check_dropout(self.dropout)

    @abstractmethod
    def _stage(self, read: int, width: int, blocks: int, *, is_first: bool) -> OrderedDict[str, nn.Module]:
        """The parts of one stage, which reads `read` channels and gives `width`; a later one pools first."""

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: when the image is too small to be pooled between all stages.
        """
        reads = (self.widths[0], *self.widths)
        stages = [
            self._stage(read, width, count, is_first=not index)
            for index, (read, width, count) in enumerate(zip(reads, self.widths, self.blocks, strict=False))
        ]
        stem = make_stem(shape[2], self.widths[0], self.stem_reduction, self.pooling)
        return _staged(self, shape, classes, stem, stages, self.widths[-1])

    @property
    def units(self) -> tuple[str, ...]:
        """From the image to the logits."""
        return stage_units(self.widths)

    def variants(self, least: int = 1) -> Iterator[Self]:
        """The family from the smallest on: these proportions at every width, multiples of 4 (and below 4, each).

        A stage that would have fewer than `least` channels has `least`.
        """
        for widths in scaled_widths(self.widths, least):
            yield replace(self, widths=widths)

    @property
    def tunable_widths(self) -> tuple[int, ...]:
        """The widths that can be chosen one by one, in steps of `width_step`."""
        return self.widths

    def with_widths(self, widths: Sequence[int]) -> Self:
        """The same with other `tunable_widths`."""
        return replace(self, widths=tuple(widths))

    def with_extra_stages(self, shape: Shape, last_map: int) -> Self:
        """The same with more stages like the last, until that works on at most `last_map` rows and columns."""
        more = missing_stages(shape, len(self.widths), last_map, self.stem_reduction)
        return replace(self, widths=lengthened(self.widths, more), blocks=lengthened(self.blocks, more))

    def with_stems(self, reductions: Sequence[StemReduction]) -> tuple[Self, ...]:
        """The same with each of these `stem_reduction`s; alone where it has one already."""
        kinds = reductions if self.stem_reduction == "none" else (self.stem_reduction,)
        return tuple(replace(self, stem_reduction=kind) for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class ResidualSpec(_BlockSpec):
    """Residual stages of 3x3 convolutions, pooled between, then global pooling and a dense layer (arXiv 1512.03385).

    The first stage works at the image's own size. Each later one begins with pooling 2x2 and a convolution to its
    width.

    Attributes:
        widths: channels of each stage.
        blocks: residual blocks (two convolutions each) of each stage; 0 for none.
        pooling: between the stages, "max" or "average".
        stem_reduction: "none", or how the stem halves rows and columns: "pool" 2x2 after it, or a "stride" of 2.
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
    """Stages of one 3x3 convolution each that is used many times, with a normalization of its own for each pass.

    Parameters are shared between the passes, so that depth costs time and not memory. The stem works at the image's own
    size; later stages begin with pooling 2x2, and a 1x1 convolution where the width changes.

    Attributes:
        stem: channels of the convolution that reads the image.
        widths: channels of each stage.
        passes: passes of each stage's convolution; 0 where a stage only pools and widens.
        pooling: between the stages, "max" or "average".
        stem_reduction: "none", or how the stem halves rows and columns: "pool" 2x2 after it, or a "stride" of 2.
        shared: one convolution for all stages, which then have to be equally wide, the stem included.
        mixed: 0 for a classifier on the last state; else how many of the last states are mixed by learned factors.
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    family: ClassVar[str] = "looped"
    width_step: ClassVar[int] = 4
    normalized: ClassVar[bool] = True

    stem: int = 16
    widths: tuple[int, ...] = (16, 32, 32)
    passes: tuple[int, ...] = (2, 4, 4)
    pooling: Pooling = "max"
    stem_reduction: StemReduction = "none"
    shared: bool = False
    mixed: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_stages("widths", (self.stem, *self.widths), least=1, most=WIDEST)
        check_stages("widths", self.widths, least=1, most=WIDEST)
        check_stages("passes", self.passes, least=0, most=MOST_BLOCKS)
        check_alike(self.widths, "passes", self.passes)
        check_reduction(self.pooling, self.stem_reduction)
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
        return ("stem", "loop", "dense") if self.shared else stage_units(self.widths)

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: when the image is too small to be pooled between all stages.
        """
        stem = make_stem(shape[2], self.stem, self.stem_reduction, self.pooling)
        if self.shared:
            unit: OrderedDict[str, nn.Module] = OrderedDict(
                loop=Loop(self.stem, self.passes, pooling=self.pooling, mixed=self.mixed)
            )
            return _staged(self, shape, classes, stem, [unit], self.stem, names=["loop"])
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
        return _staged(self, shape, classes, stem, stages, read)

    def variants(self, least: int = 1) -> Iterator[LoopedSpec]:
        """The family from the smallest on: these proportions at every width, multiples of 4 (and below 4, each).

        A stage that would have fewer than `least` channels has `least`.
        """
        for stem, *widths in scaled_widths((self.stem, *self.widths), least):
            yield replace(self, stem=stem, widths=tuple(widths))

    @property
    def tunable_widths(self) -> tuple[int, ...]:
        """The widths that can be chosen one by one, in steps of `width_step`; one where all stages share theirs."""
        return (self.stem,) if self.shared else self.widths

    def with_widths(self, widths: Sequence[int]) -> Self:
        """The same with other `tunable_widths`; a stem that is as wide as the first stage stays so."""
        stem = widths[0] if self.stem == self.widths[0] else self.stem
        return replace(self, stem=stem, widths=tuple(widths) * (len(self.widths) if self.shared else 1))

    def with_extra_stages(self, shape: Shape, last_map: int) -> Self:
        """The same with more stages like the last, until that works on at most `last_map` rows and columns."""
        more = missing_stages(shape, len(self.widths), last_map, self.stem_reduction)
        return replace(self, widths=lengthened(self.widths, more), passes=lengthened(self.passes, more))

    def with_stems(self, reductions: Sequence[StemReduction]) -> tuple[Self, ...]:
        """The same with each of these `stem_reduction`s; alone where it has one already."""
        kinds = reductions if self.stem_reduction == "none" else (self.stem_reduction,)
        return tuple(replace(self, stem_reduction=kind) for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class SeparableSpec(_BlockSpec):
    """Stages of depthwise-separable convolutions, pooled between, then global pooling and a dense layer.

    Few parameters and multiply-accumulates, as in MobileNet (arXiv 1704.04861), for devices more than for training:
    depthwise convolutions are slow on a desk's CPU.

    Attributes:
        widths: channels of each stage; the first is also the stem's.
        blocks: separable blocks of each stage, at least 1.
        pooling: between the stages, "max" or "average".
        stem_reduction: "none", or how the stem halves rows and columns: "pool" 2x2 after it, or a "stride" of 2.
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
    spec: _BlockSpec | LoopedSpec,
    shape: Shape,
    classes: int,
    stem: nn.Module,
    stages: Sequence[OrderedDict[str, nn.Module]],
    features: int,
    names: Sequence[str] = (),
) -> nn.Sequential:
    """Stem, stages, the mean over positions at the end of the last (unless it gives that already), and a classifier."""
    check_side(shape, len(spec.widths), spec.stem_reduction)
    _check_classes(classes)
    last = stages[-1].get("loop")
    if not (isinstance(last, Loop) and last.mix):
        stages[-1]["pool"] = GlobalPool()
    named = names or [f"stage{number}" for number in range(1, len(stages) + 1)]
    units: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    units.update((name, nn.Sequential(parts)) for name, parts in zip(named, stages, strict=True))
    units["dense"] = DenseClassifier((features, 1, 1), classes, spec.dropout)
    return nn.Sequential(units)


def _check_dropout(dropout: float) -> None:
    if not 0.0 <= dropout < 1.0:
        raise UsageError(f"model.dropout {dropout}: expected a probability from 0 to below 1")


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise UsageError(f"{classes} class: a classifier needs at least 2")
