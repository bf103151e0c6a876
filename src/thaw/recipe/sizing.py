"""The largest network of a family within a budget, and the `sizing` section of a recipe.

Costs follow from the architecture, so nothing is trained here.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, StrictStr

from thaw.data.images import MAX_SIDE
from thaw.graph.cost import Cost
from thaw.graph.lower import layer_table
from thaw.models.blocks import StemReduction
from thaw.models.families import FamilySpec
from thaw.models.stages import WIDEST, Shape, Width
from thaw.models.unify import UnifySpec
from thaw.plain import Real, Whole, checked_dataclass, refusing
from thaw.recipe.budget import Budget

NetworkSize = Literal["fixed", "largest"]
InputSize = Literal["as is", "largest"]

_STEMS: tuple[StemReduction, ...] = get_args(StemReduction)


def _check_budget(text: str) -> str:
    Budget.parse(text)
    return text


def _check_sides(sides: tuple[int, ...]) -> tuple[int, ...]:
    if sides != tuple(sorted(set(sides))):
        raise ValueError("expected different sides in ascending order")
    return sides


def _check_stems(stems: tuple[StemReduction, ...]) -> tuple[StemReduction, ...]:
    if len(set(stems)) != len(stems):
        raise ValueError("expected each stem once")
    return stems


_Side = Annotated[Whole, Field(ge=8, le=MAX_SIDE)]


@checked_dataclass(frozen=True, kw_only=True)
class SizingSettings:
    """Sizes of a recipe that are chosen to fit the budget."""

    network: NetworkSize = "fixed"
    """"fixed" trains the network of the section `model`; "largest" the largest of its family that fits the budget, with
    widths in about the proportions of that section."""
    input: InputSize = "as is"
    """"as is" uses `data.input`; "largest" chooses from `sides` if `data.input` is "auto" and the source has no usual
    size."""
    budget: Annotated[StrictStr, AfterValidator(refusing(_check_budget))] = "params=20000,ram=256KB"
    """Limits that apply if the run is given no budget."""
    macs: Annotated[Whole, Field(ge=1, le=10**12)] = 20_000_000
    """Limit on multiply-accumulates per image, in addition to `budget`, to train on a CPU in minutes instead of hours.
    Does not apply if the run is given a budget."""
    sides: Annotated[tuple[_Side, ...], Field(min_length=1), AfterValidator(_check_sides)] = (32, 40, 48, 64)
    """Input sizes to choose from, in pixels, in ascending order."""
    stems: Annotated[tuple[StemReduction, ...], Field(min_length=1), AfterValidator(_check_stems)] = _STEMS
    """Values of `model.stem_reduction` to choose from, if the family has it and it is "none"."""
    least_width: Width = 8
    """Minimum number of channels per stage, unless no such network fits with any input and any stem."""
    trials: Annotated[Whole, Field(ge=0, le=16)] = 4
    """Number of networks to compare by a short training on the run's own images; 0 for none."""
    trial_share: Annotated[Real, Field(gt=0, le=1)] = 0.2
    """Maximum cost of the comparison, as a fraction of the whole training."""
    last_map: Annotated[Whole, Field(ge=1, le=MAX_SIDE)] = 11
    """Maximum number of rows and columns that the last stage works on. Networks for larger images get more stages like
    the last."""

    @property
    def is_open(self) -> bool:
        """Whether the budget determines any size."""
        return self.network == "largest" or self.input == "largest"

    def settled(self) -> SizingSettings:
        """These settings with no size left open."""
        return replace(self, network="fixed", input="as is")

    @property
    def own_budget(self) -> Budget:
        """The limits that apply if the run is given no budget."""
        own = Budget.parse(self.budget)
        return own if own.macs is not None else replace(own, macs=self.macs)


@lru_cache(maxsize=4096)
def network_cost(spec: FamilySpec, unify_spec: UnifySpec | None, shape: Shape, classes: int) -> Cost:
    """`layer_table`, cached: a search visits the same networks many times."""
    return layer_table(spec, unify_spec, shape, classes)


def largest_variant(
    spec: FamilySpec, budget: Budget, shape: Shape, classes: int, unify_spec: UnifySpec | None, *, least: int = 1
) -> FamilySpec | None:
    """The largest variant of a family that exceeds no limit, for images (H, W, C); None if even the smallest does.

    Starting with the largest of `spec.variants(least)` that fits, stages are widened while the network still fits: all
    stages that can grow, by the same number of steps; or else the one stage whose step adds the most parameters (among
    equals, the fewest multiply-accumulates).

    Raises:
        UsageError: if the image is too small for the network.
    """

    def cost(variant: FamilySpec) -> Cost:
        return network_cost(variant, unify_spec, shape, classes)

    def fits(variant: FamilySpec) -> bool:
        return not budget.exceeded(cost(variant))

    variants: list[FamilySpec] = list(spec.variants(least))
    fitting = _leading(len(variants), lambda place: fits(variants[place]))
    if not fitting:
        return None
    found = variants[fitting - 1]
    while growing := [place for place in _places(found) if fits(_widened(found, [place], 1))]:
        most = min(_room(found, place) for place in growing)
        steps = _leading(most, lambda place: fits(_widened(found, growing, place + 1)))  # noqa: B023 - called at once
        singly = [_widened(found, [place], 1) for place in growing]
        found = _widened(found, growing, steps) if steps else max(singly, key=lambda wider: _rank(cost(wider)))
    return found


def _leading(count: int, holds: Callable[[int], bool]) -> int:
    """The number of leading places of 0 ... count - 1 that a monotone condition holds for.

    It tests few places beyond that, where networks are large and costs are slow to compute.
    """
    beyond = 1
    while beyond <= count and holds(beyond - 1):
        beyond *= 2
    known = range(beyond // 2, min(beyond - 1, count))
    return known.start + bisect.bisect_left(known, x=True, key=lambda place: not holds(place))


def limits_reached(
    spec: FamilySpec, budget: Budget, shape: Shape, classes: int, unify_spec: UnifySpec | None
) -> list[str]:
    """The limits that would be exceeded if any one stage were a step wider."""
    costs = [network_cost(_widened(spec, [place], 1), unify_spec, shape, classes) for place in _places(spec)]
    exceeded = {name for cost in costs for name in budget.exceeded(cost)}
    return [name for name in budget.limits() if name in exceeded]


def _places(spec: FamilySpec) -> list[int]:
    """The indices of stages that can be wider."""
    return [place for place in range(len(spec.tunable_widths)) if _room(spec, place)]


def _room(spec: FamilySpec, place: int) -> int:
    """The number of steps by which a stage can be wider."""
    return (WIDEST - spec.tunable_widths[place]) // spec.width_step


def _widened(spec: FamilySpec, places: Sequence[int], steps: int) -> FamilySpec:
    """The variant with some stages wider, at multiples of the family's step."""
    step = spec.width_step
    widths = enumerate(spec.tunable_widths)
    return spec.with_widths([(width // step + steps) * step if place in places else width for place, width in widths])


def _rank(cost: Cost) -> tuple[int, int]:
    """Sort key of networks: more parameters, then fewer multiply-accumulates."""
    return cost.parameters, -cost.macs
