"""The largest network of a family, and the largest input for it, within a budget.

Costs follow from the architecture, so that nothing is trained to find out.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from thaw.data.images import MAX_SIDE
from thaw.errors import BudgetError, UsageError
from thaw.graph.cost import Cost
from thaw.graph.lower import layer_table
from thaw.models.families import WIDEST, FamilySpec
from thaw.models.fusion import FusionSpec
from thaw.quoting import shown
from thaw.workflow.budget import Budget, over_budget

Shape = tuple[int, int, int]

NetworkSize = Literal["fixed", "largest"]
InputSize = Literal["as is", "largest"]

_SMALLEST_SIDE = 8
# A larger input is not worth a network that has less than this share of the parameters that it has on the smallest.
_KEPT_SHARE = 0.9
# Nor one whose first stages shrink to a trickle so that they fit: none may be so much narrower, in proportion, than
# another.
_LEAST_EVEN = 1 / 3


@dataclass(frozen=True, kw_only=True)
class SizingSettings:
    """What of its size a recipe leaves to the budget.

    Attributes:
        network: "fixed" trains the network of the `model` section; "largest" the largest of its family that fits the
            budget, whose widths are about in the proportions of that section.
        input: "as is" obeys `data.input` alone; "largest" chooses among `sides` where that is "auto" and the source has
            no usual size.
        budget: limits that hold where a run is given no budget.
        macs: multiply-accumulates for one image, where the budget has no limit of its own, so that training on a CPU
            takes minutes and not hours.
        sides: input sides to choose from, in pixels, from the smallest.
        last_map: the last stage works on at most so many rows and columns; a network for larger images has more stages
            like its last.
    """

    network: NetworkSize = "fixed"
    input: InputSize = "as is"
    budget: str = "params=20000,ram=256KB"
    macs: int = 20_000_000
    sides: tuple[int, ...] = (32, 40, 48, 64)
    last_map: int = 11

    def __post_init__(self) -> None:
        for name, choices in {"network": get_args(NetworkSize), "input": get_args(InputSize)}.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"sizing.{name} {shown(getattr(self, name))}: expected one of {', '.join(choices)}")
        try:
            Budget.parse(self.budget)
        except UsageError as error:
            raise UsageError(f"sizing.{error}") from None
        if self.macs < 1 or self.last_map < 1:
            raise UsageError(f"sizing.macs {self.macs}, sizing.last_map {self.last_map}: expected at least 1")
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

    def limits(self, budget: Budget) -> Budget:
        """The budget, and the limit on multiply-accumulates that stands beside it."""
        return budget if budget.macs is not None else replace(budget, macs=self.macs)

    def in_words(self, budget: Budget) -> str:
        """`limits` in words, such as "params=20,000 and the 30,000,000 multiply-accumulates of sizing.macs"."""
        beside = f" and the {self.macs:,} multiply-accumulates of sizing.macs" if budget.macs is None else ""
        return f"{budget}{beside}"


@lru_cache(maxsize=1024)
def network_cost(spec: FamilySpec, joined: FusionSpec | None, shape: Shape, classes: int) -> Cost:
    """`layer_table`, remembered: a search asks for neighbours of neighbours."""
    return layer_table(spec, joined, shape, classes)


def largest_member(
    spec: FamilySpec, budget: Budget, shape: Shape, classes: int, joined: FusionSpec | None
) -> FamilySpec:
    """The largest member of a family that breaks no limit, for images (H, W, C).

    The largest of `spec.members()` that fits is made wider while it still fits: all stages that can be by equally many
    steps, or else the one stage whose step adds most learned parameters (of equal ones, with fewer
    multiply-accumulates).

    Raises:
        BudgetError: when no member fits, with the figures of the smallest.
        UsageError: when the image is too small for the network.
    """

    def cost(member: FamilySpec) -> Cost:
        return network_cost(member, joined, shape, classes)

    def fits(member: FamilySpec) -> bool:
        return not budget.broken(cost(member))

    members: list[FamilySpec] = list(spec.members())
    fitting = _leading(len(members), lambda place: fits(members[place]))
    if not fitting:
        raise BudgetError(
            over_budget(budget, cost(members[0]), shape, classes, f"the smallest {spec.family} network")
            + "\nallow more with --budget, or make the input smaller with --set data.input=..."
        )
    found = members[fitting - 1]
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
    spec: FamilySpec, budget: Budget, shape: Shape, classes: int, joined: FusionSpec | None
) -> list[str]:
    """The limits that a member would break that is a step wider in any one stage."""
    costs = [network_cost(_widened(spec, [place], 1), joined, shape, classes) for place in _places(spec)]
    broken = {name for cost in costs for name in budget.broken(cost)}
    return [name for name in budget.as_dict() if name in broken]


def _places(spec: FamilySpec) -> list[int]:
    """The stages that can be wider."""
    return [place for place in range(len(spec.free_widths)) if _room(spec, place)]


def _room(spec: FamilySpec, place: int) -> int:
    """By how many steps a stage can be wider."""
    return (WIDEST - spec.free_widths[place]) // spec.width_step


def _widened(spec: FamilySpec, places: Sequence[int], steps: int) -> FamilySpec:
    """The member with some stages wider, at whole multiples of the family's step."""
    step = spec.width_step
    widths = enumerate(spec.free_widths)
    return spec.with_widths([(width // step + steps) * step if place in places else width for place, width in widths])


def _rank(cost: Cost) -> tuple[int, int]:
    """Of two networks the larger, and of equally large ones that with fewer multiply-accumulates."""
    return cost.parameters, -cost.macs


def evenness(spec: FamilySpec, proportions: FamilySpec) -> float:
    """How far the widths of a member keep to proportions: 1 where all do, 0.5 where one stage is half as wide."""
    shares = [width / usual for width, usual in zip(spec.free_widths, proportions.free_widths, strict=True)]
    return min(shares) / max(shares)


def largest_input(shapes: Sequence[Shape], network: Callable[[Shape], tuple[int, float]]) -> tuple[Shape, str]:
    """The largest of `shapes` whose network keeps its parameters and its proportions, and why no larger one.

    Args:
        shapes: what to choose from, the smallest first.
        network: the parameters of what would be trained on images of a shape, and its `evenness`; raises BudgetError
            where nothing fits.

    Returns:
        The shape, and in words what speaks against the next one; "" for the last.

    Raises:
        BudgetError: when not even the smallest shape has a network that fits.
    """
    least = _KEPT_SHARE * network(shapes[0])[0]
    against = ""
    for shape in reversed(shapes[1:]):
        size = f"{shape[0]}x{shape[1]}"
        try:
            parameters, even = network(shape)
        except BudgetError:
            against = f"at {size} no network fits"
            continue
        if parameters >= least and even >= _LEAST_EVEN:
            return shape, against
        against = f"at {size} no more than {parameters:,} parameters fit"
        if parameters >= least:
            against = f"at {size} some stages would be too narrow, beside the others, to fit"
    return shapes[0], against
