"""Networks and input sizes that fit a budget, and the ones that are worth comparing by a short training.

Costs follow from the architecture, so nothing is trained here. Shapes are those of one image: H rows, W columns, C
channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from thaw.errors import BudgetError, UsageError
from thaw.graph.cost import Cost
from thaw.models.blocks import StemReduction
from thaw.models.families import FamilySpec
from thaw.models.stages import Shape
from thaw.recipe.budget import Budget, over_budget
from thaw.recipe.recipe import Recipe
from thaw.recipe.sizing import largest_variant, network_cost

# Two costs are similar if the smaller is at least this share of the larger.
_ABOUT = 0.9
# Smallest evenness (see `Candidate`) of widths that count as proportional to the recipe's.
_EVEN_ENOUGH = 1 / 3
# Smaller minimum channels per stage, tried in order if nothing fits the recipe's minimum.
_FEWER_CHANNELS = (4, 1)
# Among stems that reduce the image, the one with fewer multiply-accumulates comes first.
_STEM_ORDER: tuple[StemReduction, ...] = ("none", "stride", "pool")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network for images of one shape.

    Attributes:
        shape: (H, W, C) of the input.
        spec: the network.
        cost: its cost.
        evenness: smallest share of a stage's width in proportion to the recipe's: 1 if all widths are in proportion,
            0.5 if one stage is half as wide.
    """

    shape: Shape
    spec: FamilySpec
    cost: Cost
    evenness: float

    @property
    def stem(self) -> StemReduction:
        """How the stem reduces the image."""
        return getattr(self.spec, "stem_reduction", "none")

    @property
    def network(self) -> str:
        """A description of the network, such as "residual, stem stride, widths 20, 60, 68"."""
        stem = "" if self.stem == "none" else f", stem {self.stem}"
        return f"{self.spec.family}{stem}, widths {', '.join(map(str, self.spec.tunable_widths))}"

    def __str__(self) -> str:
        """For example "48x48x3, residual, stem stride, widths 20, 60, 68"."""
        return f"{'x'.join(map(str, self.shape))}, {self.network}"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The candidates that fit a budget.

    Attributes:
        ranked: candidates worth comparing, at least one; the first one is used if there is no comparison.
        least_width: minimum channels per stage of all candidates, if the widths were open.
        warning: why this is less than the recipe's minimum, or "".
    """

    ranked: tuple[Candidate, ...]
    least_width: int
    warning: str = ""


def find_candidates(recipe: Recipe, budget: Budget | None, shapes: Sequence[Shape], classes: int) -> Choices:
    """The networks of a recipe that fit a budget, for images of one of `shapes` and K classes.

    If the recipe leaves its network open: for every shape and every stem, the largest network of its family whose
    stages all have at least `sizing.least_width` channels, or fewer only if none fits. `rank` then drops candidates
    that are not worth comparing.

    Raises:
        BudgetError: if nothing fits, with the cost of the nearest candidate.
        UsageError: if the image is too small for the network.
    """
    asked = recipe.sizing.least_width if recipe.sizing.network == "largest" else 1
    warning = ""
    for least in (asked, *(fewer for fewer in _FEWER_CHANNELS if fewer < asked)):
        found = [
            candidate
            for shape in shapes
            for spec in _variants(recipe, shape)
            if (candidate := _largest(recipe, spec, budget, shape, classes, least)) is not None
        ]
        if found:
            return Choices(ranked=rank(found), least_width=least, warning=warning)
        warning = warning or _why_fewer(recipe, budget, shapes, classes, least)
    check_fits(recipe, budget, shapes, classes)
    raise RuntimeError("a network that fits was not found")


def check_fits(recipe: Recipe, budget: Budget | None, shapes: Sequence[Shape], classes: int) -> None:
    """Check that some shape, stem and width fits the budget. Cheaper than searching for the largest network.

    Raises:
        BudgetError: with the cost of the nearest candidate.
        UsageError: if the image is too small for the network.
    """
    nearest = _nearest(recipe, budget, shapes, classes, least=1)
    if budget is None or not budget.exceeded(nearest.cost):
        return
    if recipe.sizing.network == "largest":
        what = f"the smallest {nearest.spec.family} network"
        advice = "raise the limit with --budget, or reduce the input size with --set data.input=..."
    else:
        widths = "filters" if nearest.spec.family == "paper" else "widths"
        what = "the network"
        advice = (
            f"reduce its size with --set model.{widths}=... or --set data.input=..., raise the limit, or use --recipe "
            "balanced, which fits its network to the budget"
        )
    if budget.counts_image and "ram" in budget.exceeded(nearest.cost):
        advice += "; image=excluded does not count the image in ram"
    raise BudgetError(f"{over_budget(budget, nearest.cost, nearest.shape, classes, what)}\n{advice}")


def rank(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates worth comparing, the most promising first.

    Candidates with nearly the most parameters and widths close to the recipe's proportions come first, ordered by input
    size, largest first; for equal inputs, the stem without reduction comes first. The others follow, ordered by their
    proportions. A candidate is dropped if an earlier one has an input at least as large, similar parameters and
    multiply-accumulates, and widths that are as even. If one input is reduced in both ways, the second one comes last,
    since both learn equally well.
    """
    most = max(candidate.cost.parameters for candidate in found)

    def promise(candidate: Candidate) -> tuple[float, ...]:
        keeps = candidate.cost.parameters >= _ABOUT * most and candidate.evenness >= _EVEN_ENOUGH
        pixels = candidate.shape[0] * candidate.shape[1]
        plain = -_STEM_ORDER.index(candidate.stem)
        return (1.0, pixels, plain) if keeps else (0.0, candidate.evenness, pixels, plain)

    kept: list[Candidate] = []
    for candidate in sorted(found, key=promise, reverse=True):
        if not any(_covers(earlier, candidate) for earlier in kept):
            kept.append(candidate)
    twins = [late for place, late in enumerate(kept) if any(_are_twins(early, late) for early in kept[:place])]
    return (*(candidate for candidate in kept if candidate not in twins), *twins)


def _are_twins(one: Candidate, other: Candidate) -> bool:
    """Whether both read images of one shape and reduce them, in different ways."""
    return one.shape == other.shape and {one.stem, other.stem} == {"pool", "stride"}


def _covers(one: Candidate, other: Candidate) -> bool:
    """Whether `other` has no advantage over `one`."""
    return (
        not _are_twins(one, other)
        and one.shape[0] * one.shape[1] >= other.shape[0] * other.shape[1]
        and one.cost.parameters >= _ABOUT * other.cost.parameters
        and one.cost.macs >= _ABOUT * other.cost.macs
        and min(one.evenness, _EVEN_ENOUGH) >= min(other.evenness, _EVEN_ENOUGH)
    )


def _variants(recipe: Recipe, shape: Shape) -> tuple[FamilySpec, ...]:
    """The recipe's network for images of a shape: with the required stages, and with each stem if the stem is open.

    If the widths are open, only their proportions count.
    """
    sizing = recipe.sizing
    if sizing.network == "fixed":
        return (recipe.model,)
    variants = recipe.model.with_stems(sizing.stems)
    # The steps of unfreezing name the stages, so their number is fixed.
    if recipe.method == "two-stage":
        return variants
    return tuple(variant.with_extra_stages(shape, sizing.last_map) for variant in variants)


def _largest(
    recipe: Recipe, spec: FamilySpec, budget: Budget | None, shape: Shape, classes: int, least: int
) -> Candidate | None:
    """The largest network like `spec` that fits; None if none does, or if only another kind of stem is possible."""
    variant: FamilySpec | None = spec
    try:
        if recipe.sizing.network == "largest" and budget is not None:
            variant = largest_variant(spec, budget, shape, classes, recipe.unify_spec, least=least)
        elif budget is not None and budget.exceeded(network_cost(spec, recipe.unify_spec, shape, classes)):
            variant = None
        return None if variant is None else _candidate(recipe, variant, shape, classes, proportions=spec)
    except UsageError:
        if spec == _variants(recipe, shape)[0]:
            raise
        return None


def _candidate(recipe: Recipe, spec: FamilySpec, shape: Shape, classes: int, *, proportions: FamilySpec) -> Candidate:
    shares = [width / usual for width, usual in zip(spec.tunable_widths, proportions.tunable_widths, strict=True)]
    cost = network_cost(spec, recipe.unify_spec, shape, classes)
    return Candidate(shape=shape, spec=spec, cost=cost, evenness=min(shares) / max(shares))


def _nearest(recipe: Recipe, budget: Budget | None, shapes: Sequence[Shape], classes: int, *, least: int) -> Candidate:
    """The smallest network, over shapes and stems, that exceeds the fewest limits and then needs least RAM."""
    smallest = list(_smallest(recipe, shapes, classes, least))

    def excess(candidate: Candidate) -> tuple[int, int]:
        return len(budget.exceeded(candidate.cost)) if budget is not None else 0, candidate.cost.ram_bytes

    return min(smallest, key=excess)


def _smallest(recipe: Recipe, shapes: Sequence[Shape], classes: int, least: int) -> Iterator[Candidate]:
    for shape in shapes:
        for place, spec in enumerate(_variants(recipe, shape)):
            variants: Iterator[FamilySpec] = iter((spec,) if recipe.sizing.network == "fixed" else spec.variants(least))
            try:
                yield _candidate(recipe, next(variants), shape, classes, proportions=spec)
            except UsageError:
                if not place:
                    raise


def _why_fewer(recipe: Recipe, budget: Budget | None, shapes: Sequence[Shape], classes: int, least: int) -> str:
    """Why no network has `least` channels in every stage, or ""."""
    if budget is None:
        return ""
    nearest = _nearest(recipe, budget, shapes, classes, least=least)
    needed, limits = budget.needs(nearest.cost), budget.limits()
    over = ", ".join(f"{name} {needed[name]:,} (limit {limits[name]:,})" for name in budget.exceeded(nearest.cost))
    return (
        f"no network with at least {least} channels in every stage fits: the smallest needs {over}; narrower stages "
        "learn less, so raise the limit if the device allows it"
    )
