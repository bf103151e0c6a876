"""What a recipe leaves of its size to the budget, and the largest network of a family within one.

Costs follow from the architecture, so that nothing is trained to find out.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from thaw.data.images import MAX_SIDE
from thaw.errors import UsageError
from thaw.graph.cost import Cost
from thaw.graph.lower import layer_table
from thaw.models.blocks import StemReduction
from thaw.models.families import FamilySpec
from thaw.models.stages import WIDEST, Shape
from thaw.models.unify import UnifySpec
from thaw.quoting import shown
from thaw.recipe.budget import Budget

NetworkSize = Literal["fixed", "largest"]
InputSize = Literal["as is", "largest"]

_SMALLEST_SIDE = 8
_MOST_TRIALS = 16
_STEMS: tuple[StemReduction, ...] = get_args(StemReduction)


@dataclass(frozen=True, kw_only=True)
class SizingSettings:
    """What of its size a recipe leaves to the budget.

    Attributes:
        network: "fixed" trains the network of the `model` section; "largest" the largest of its family that fits the
            budget, whose widths are about in the proportions of that section.
        input: "as is" obeys `data.input` alone; "largest" chooses among `sides` where that is "auto" and the source has
            no usual size.
        budget: limits that hold where a run is given no budget; a run that is given one obeys that alone.
        macs: multiply-accumulates for one image, a limit beside `budget`, so that training on a CPU takes minutes and
            not hours; not where a run is given a budget.
        sides: input sides to choose from, in pixels, from the smallest.
        stems: what to choose from for `model.stem_reduction`, where the family has that and it is "none".
        least_width: no stage has fewer channels, where any input and any stem lets such a network fit.
        trials: how many networks a short training on the run's own images compares, 0 for none.
        trial_share: what that may cost, as a share of the whole training.
        last_map: the last stage works on at most so many rows and columns; a network for larger images has more stages
            like its last.
    """

    network: NetworkSize = "fixed"
    input: InputSize = "as is"
    budget: str = "params=20000,ram=256KB"
    macs: int = 20_000_000
    sides: tuple[int, ...] = (32, 40, 48, 64)
    stems: tuple[StemReduction, ...] = _STEMS
    least_width: int = 8
    trials: int = 4
    trial_share: float = 0.2
    last_map: int = 11

    def __post_init__(self) -> None:
        for name, choices in {"network": get_args(NetworkSize), "input": get_args(InputSize)}.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"sizing.{name} {shown(getattr(self, name))}: expected one of {', '.join(choices)}")
        try:
            Budget.parse(self.budget)
        except UsageError as error:
            raise UsageError(f"sizing.{error}") from None
        bounds = {
            "macs": (1, 10**12),
            "least_width": (1, WIDEST),
            "trials": (0, _MOST_TRIALS),
            "last_map": (1, MAX_SIDE),
        }
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(
                    f"sizing.{name} {getattr(self, name)}: expected at least {least:,} and at most {most:,}"
                )
        if not 0.0 < self.trial_share <= 1.0:
            raise UsageError(f"sizing.trial_share {self.trial_share}: expected above 0 and at most 1")
        self._check_choices()

    def _check_choices(self) -> None:
        if not self.stems or len(set(self.stems)) != len(self.stems):
            raise UsageError(f"sizing.stems {shown(list(self.stems))}: expected different ones of {', '.join(_STEMS)}")
        if not self.sides or self.sides != tuple(sorted(set(self.sides))):
            raise UsageError(f"sizing.sides {shown(list(self.sides))}: expected different sides, from the smallest")
        if not _SMALLEST_SIDE <= self.sides[0] <= self.sides[-1] <= MAX_SIDE:
            raise UsageError(
                f"sizing.sides {shown(list(self.sides))}: expected sides from {_SMALLEST_SIDE} to {MAX_SIDE}"
            )

    @property
    def is_open(self) -> bool:
        """Whether anything is left to the budget."""
        return self.network == "largest" or self.input == "largest"

    def settled(self) -> SizingSettings:
        """The same with nothing left open."""
        return replace(self, network="fixed", input="as is")

    @property
    def own_budget(self) -> Budget:
        """The limits that hold where a run is given none."""
        own = Budget.parse(self.budget)
        return own if own.macs is not None else replace(own, macs=self.macs)


@lru_cache(maxsize=4096)
def network_cost(spec: FamilySpec, unify_spec: UnifySpec | None, shape: Shape, classes: int) -> Cost:
    """`layer_table`, remembered: a search asks for neighbors of neighbors, and again when the classes are known."""
    return layer_table(spec, unify_spec, shape, classes)


def largest_variant(
    spec: FamilySpec, budget: Budget, shape: Shape, classes: int, unify_spec: UnifySpec | None, *, least: int = 1
) -> FamilySpec | None:
    """The largest member of a family that breaks no limit, for images (H, W, C); None where even the smallest does.

    The largest of `spec.variants(least)` that fits is made wider while it still fits: all stages that can be by equally
    many steps, or else the one stage whose step adds most learned parameters (of equal ones, with fewer
    multiply-accumulates).

    Raises:
        UsageError: when the image is too small for the network.
    """

    def cost(member: FamilySpec) -> Cost:
        return network_cost(member, unify_spec, shape, classes)

    def fits(member: FamilySpec) -> bool:
        return not budget.broken(cost(member))

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
    """How many of the places 0, 1, ... count - 1 something holds for, if it ends to hold at one of them.

    It is asked for few places beyond, where networks are large and their costs take long.
    """
    beyond = 1
    while beyond <= count and holds(beyond - 1):
        beyond *= 2
    known = range(beyond // 2, min(beyond - 1, count))
    return known.start + bisect.bisect_left(known, x=True, key=lambda place: not holds(place))


def limits_reached(
    spec: FamilySpec, budget: Budget, shape: Shape, classes: int, unify_spec: UnifySpec | None
) -> list[str]:
    """The limits that a member would break that is a step wider in any one stage."""
    costs = [network_cost(_widened(spec, [place], 1), unify_spec, shape, classes) for place in _places(spec)]
    broken = {name for cost in costs for name in budget.broken(cost)}
    return [name for name in budget.limits() if name in broken]


def _places(spec: FamilySpec) -> list[int]:
    """The stages that can be wider."""
    return [place for place in range(len(spec.tunable_widths)) if _room(spec, place)]


def _room(spec: FamilySpec, place: int) -> int:
    """By how many steps a stage can be wider."""
    return (WIDEST - spec.tunable_widths[place]) // spec.width_step


def _widened(spec: FamilySpec, places: Sequence[int], steps: int) -> FamilySpec:
    """The member with some stages wider, at whole multiples of the family's step."""
    step = spec.width_step
    widths = enumerate(spec.tunable_widths)
    return spec.with_widths([(width // step + steps) * step if place in places else width for place, width in widths])


def _rank(cost: Cost) -> tuple[int, int]:
    """Of two networks the larger, and of equally large ones that with fewer multiply-accumulates."""
    return cost.parameters, -cost.macs
