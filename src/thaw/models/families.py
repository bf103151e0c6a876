"""Families of submodels: one frozen spec and one builder each.

A submodel is an `nn.Sequential` of named units from the image to the logits. The last is a `DenseClassifier`.
Unification and the training stages rely on nothing else: units are unfrozen one at a time, from the last to the first.
A submodel can also be the whole network.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self, TypeAlias, get_args

from pydantic import Field, StrictBool, model_validator
from torch import nn

from thaw.errors import UsageError
from thaw.kernels import KernelLayer
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
    WIDEST,
    Blocks,
    PerStage,
    Shape,
    Width,
    check_same_stages,
    check_side,
    lengthened,
    missing_stages,
    scaled_widths,
    stage_units,
)
from thaw.plain import BelowOne, Whole, checked_dataclass, default_family
from thaw.quoting import shown


@checked_dataclass(frozen=True, kw_only=True)
class PaperSpec:
    """The submodel of arXiv 2501.15547: twice 3x3 convolution, pooling and ReLU, then dropout and a dense layer."""

    units: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "dense")
    kernel_layer: ClassVar[KernelLayer] = "convolution"
    width_step: ClassVar[int] = 1

    family: Literal["paper"] = "paper"
    """The network's family."""
    filters: tuple[Width, Width] = (10, 20)
    """Filters of the two convolutions."""
    dropout: BelowOne = 0.3
    """Dropout probability before the dense layer."""

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: if the image is too small for the layers (below 10x10).
        """
        height, width, channels = shape
        rows, columns = (ConvReluPool.output_side(ConvReluPool.output_side(side)) for side in (height, width))
        if rows < 1 or columns < 1:
            raise UsageError(
                f"images of {height}x{width} are too small for the paper's network: expected at least 10x10 pixels"
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

    def variants(self, least: int = 1) -> Iterator[Self]:
        """The networks of the family, smallest first: these proportions at every first width from `least`."""
        ratio = self.filters[1] / self.filters[0]
        for first in range(least, WIDEST + 1):
            if (second := max(least, round(ratio * first))) <= WIDEST:
                yield self.with_widths((first, second))

    @property
    def tunable_widths(self) -> tuple[int, ...]:
        """The widths that a search can change one by one, in steps of `width_step`."""
        return self.filters

    def with_widths(self, widths: Sequence[int]) -> Self:
        """This spec with other `tunable_widths`."""
        first, second = widths
        return replace(self, filters=(first, second))

    def with_extra_stages(self, shape: Shape, last_map: int) -> Self:  # noqa: ARG002 - other families need it
        """This spec: the paper's submodel always has two convolutions."""
        return self

    def with_stems(self, reductions: Sequence[StemReduction]) -> tuple[Self, ...]:  # noqa: ARG002 - as above
        """Only this spec: the paper's submodel has no stem."""
        return (self,)


@checked_dataclass(frozen=True, kw_only=True)
class _BlockSpec(ABC):
    """The common base of families whose stages are blocks of one width.

    Widths are searched in steps of 4, the number of int8 weights that a small device loads at once; steps of 16, which
    vector units prefer, are too coarse for ten thousand parameters.
    """

    width_step: ClassVar[int] = 4
    kernel_layer: ClassVar[KernelLayer] = "normalization"

    family: str
    """The network's family."""
    widths: PerStage[Width]
    """Channels of each stage. The first is also the width of the stem."""
    blocks: PerStage[Blocks]
    """Blocks of each stage."""
    pooling: Pooling = "max"
    """Pooling between the stages: "max" or "average"."""
    stem_reduction: StemReduction = "none"
    """How the stem halves rows and columns: "none" if it does not, 2x2 pooling after it ("pool"), or a stride of 2
    ("stride")."""
    dropout: BelowOne = 0.0
    """Dropout probability before the dense layer."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        check_same_stages("blocks", self.blocks, self.widths)
        return self

    @abstractmethod
    def _stage(self, read: int, width: int, blocks: int, *, is_first: bool) -> OrderedDict[str, nn.Module]:
        """The parts of one stage from `read` to `width` channels; every stage except the first begins with pooling."""

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: if the image is too small to be pooled between all stages.
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
        """The family from the smallest: these proportions at every width below 4 and every multiple of 4.

        No stage has fewer than `least` channels.
        """
        for widths in scaled_widths(self.widths, least):
            yield replace(self, widths=widths)

    @property
    def tunable_widths(self) -> tuple[int, ...]:
        """The widths that a search can change one by one, in steps of `width_step`."""
        return self.widths

    def with_widths(self, widths: Sequence[int]) -> Self:
        """This spec with other `tunable_widths`."""
        return replace(self, widths=tuple(widths))

    def with_extra_stages(self, shape: Shape, last_map: int) -> Self:
        """This spec with more stages like the last, until that works on at most `last_map` rows and columns."""
        more = missing_stages(shape, len(self.widths), last_map, self.stem_reduction)
        return replace(self, widths=lengthened(self.widths, more), blocks=lengthened(self.blocks, more))

    def with_stems(self, reductions: Sequence[StemReduction]) -> tuple[Self, ...]:
        """This spec with each of these `stem_reduction`s; unchanged if it has one."""
        kinds = reductions if self.stem_reduction == "none" else (self.stem_reduction,)
        return tuple(replace(self, stem_reduction=kind) for kind in kinds)


@checked_dataclass(frozen=True, kw_only=True)
class ResidualSpec(_BlockSpec):
    """Residual stages of 3x3 convolutions, pooled between, then global pooling and a dense layer (arXiv 1512.03385).

    The first stage works at the image's own size. Each later stage begins with 2x2 pooling and a convolution to its
    width.
    """

    family: Literal["residual"] = "residual"
    """The network's family."""
    widths: PerStage[Width] = (16, 16, 28)
    """Channels of each stage. The first is also the width of the stem."""
    blocks: PerStage[Blocks] = (1, 1, 1)
    """Residual blocks (two convolutions each) of each stage; 0 for none."""

    def _stage(self, read: int, width: int, blocks: int, *, is_first: bool) -> OrderedDict[str, nn.Module]:
        begin = {} if is_first else {"halve": Halve(self.pooling), "widen": ConvNorm(read, width)}
        return OrderedDict(begin | {f"block{number}": Residual(width) for number in range(1, blocks + 1)})


@checked_dataclass(frozen=True, kw_only=True)
class LoopedSpec:
    """Stages of one 3x3 convolution each that is applied many times, with a separate normalization for each pass.

    The passes share parameters, so depth costs time but no memory. The stem works at the image's own size; later
    stages begin with 2x2 pooling, and with a 1x1 convolution if the width changes.
    """

    width_step: ClassVar[int] = 4
    kernel_layer: ClassVar[KernelLayer] = "normalization"

    family: Literal["looped"] = "looped"
    """The network's family."""
    stem: Width = 16
    """Channels of the first convolution."""
    widths: PerStage[Width] = (16, 32, 32)
    """Channels of each stage."""
    passes: PerStage[Blocks] = (2, 4, 4)
    """Passes of each stage's convolution; 0 for a stage that only pools and changes the width."""
    pooling: Pooling = "max"
    """Pooling between the stages: "max" or "average"."""
    stem_reduction: StemReduction = "none"
    """How the stem halves rows and columns: "none" if it does not, 2x2 pooling after it ("pool"), or a stride of 2
    ("stride")."""
    shared: StrictBool = False
    """Share one convolution between all stages. The stem and all stages must then have the same width."""
    mixed: Annotated[Whole, Field(ge=0)] = 2
    """Number of last states that the classifier reads, mixed by learned factors; 0 for the last state alone."""
    dropout: BelowOne = 0.0
    """Dropout probability before the dense layer."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        check_same_stages("passes", self.passes, self.widths)
        if self.shared and len({self.stem, *self.widths}) > 1:
            raise ValueError(
                f"shared = True: expected equal widths, found stem {self.stem} and widths {shown(list(self.widths))}"
            )
        available = sum(self.passes) if self.shared else self.passes[-1]
        if not self.passes[-1]:
            raise ValueError(f"passes = {shown(list(self.passes))}: expected at least one pass in the last stage")
        if self.mixed > available:
            raise ValueError(f"mixed = {self.mixed}: expected at most {available}, the number of states")
        return self

    @property
    def units(self) -> tuple[str, ...]:
        """From the image to the logits."""
        return ("stem", "loop", "dense") if self.shared else stage_units(self.widths)

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: if the image is too small to be pooled between all stages.
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
        """The family from the smallest: these proportions at every width below 4 and every multiple of 4.

        No stage has fewer than `least` channels.
        """
        for stem, *widths in scaled_widths((self.stem, *self.widths), least):
            yield replace(self, stem=stem, widths=tuple(widths))

    @property
    def tunable_widths(self) -> tuple[int, ...]:
        """The widths that a search can change one by one, in steps of `width_step`; one if all stages share it."""
        return (self.stem,) if self.shared else self.widths

    def with_widths(self, widths: Sequence[int]) -> Self:
        """This spec with other `tunable_widths`. A stem as wide as the first stage remains as wide."""
        stem = widths[0] if self.stem == self.widths[0] else self.stem
        return replace(self, stem=stem, widths=tuple(widths) * (len(self.widths) if self.shared else 1))

    def with_extra_stages(self, shape: Shape, last_map: int) -> Self:
        """This spec with more stages like the last, until that works on at most `last_map` rows and columns."""
        more = missing_stages(shape, len(self.widths), last_map, self.stem_reduction)
        return replace(self, widths=lengthened(self.widths, more), passes=lengthened(self.passes, more))

    def with_stems(self, reductions: Sequence[StemReduction]) -> tuple[Self, ...]:
        """This spec with each of these `stem_reduction`s; unchanged if it has one."""
        kinds = reductions if self.stem_reduction == "none" else (self.stem_reduction,)
        return tuple(replace(self, stem_reduction=kind) for kind in kinds)


@checked_dataclass(frozen=True, kw_only=True)
class SeparableSpec(_BlockSpec):
    """Stages of depthwise-separable convolutions, pooled between, then global pooling and a dense layer.

    Few parameters and multiply-accumulates, as in MobileNet (arXiv 1704.04861). Memory limits their speed in training,
    more than arithmetic.
    """

    family: Literal["separable"] = "separable"
    """The network's family."""
    widths: PerStage[Width] = (24, 48, 96)
    """Channels of each stage. The first is also the width of the stem."""
    blocks: PerStage[Annotated[Blocks, Field(ge=1)]] = (1, 2, 2)
    """Separable blocks of each stage."""

    def _stage(self, read: int, width: int, blocks: int, *, is_first: bool) -> OrderedDict[str, nn.Module]:
        begin: dict[str, nn.Module] = {} if is_first else {"halve": Halve(self.pooling)}
        reads = (read, *(width,) * (blocks - 1))
        return OrderedDict(
            begin | {f"block{number}": Separable(channels, width) for number, channels in enumerate(reads, start=1)}
        )


_AnySpec: TypeAlias = PaperSpec | ResidualSpec | LoopedSpec | SeparableSpec
FamilySpec: TypeAlias = Annotated[_AnySpec, Field(discriminator="family"), default_family("paper")]
FAMILIES: dict[str, type[FamilySpec]] = {spec.family: spec for spec in get_args(_AnySpec)}
"""The specs of all families by name."""


def _staged(
    spec: _BlockSpec | LoopedSpec,
    shape: Shape,
    classes: int,
    stem: nn.Module,
    stages: Sequence[OrderedDict[str, nn.Module]],
    features: int,
    names: Sequence[str] = (),
) -> nn.Sequential:
    """Stem, stages, global pooling (unless the last stage ends with it), and a classifier."""
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


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise UsageError(f"classes {classes}: expected at least 2")
