"""What a request leaves open, made definite, and the refusal of what is over the budget: the data of a run.

The input's size is chosen before the images are decoded, the network when input and classes are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from thaw.data.balance import class_counts, imbalance, is_uneven
from thaw.data.images import InputContract, are_signs
from thaw.data.ingest import Glance, Progress, glance
from thaw.data.prepare import PreparedData, prepare
from thaw.data.problems import Problem
from thaw.data.settings import parse_input
from thaw.data.sources import NAMES, open_source
from thaw.errors import BudgetError
from thaw.graph.cost import Cost
from thaw.models.families import FamilySpec
from thaw.workflow.budget import Budget, over_budget
from thaw.workflow.recipe import Recipe
from thaw.workflow.request import TrainRequest
from thaw.workflow.sizing import Shape, evenness, largest_input, largest_member, limits_reached, network_cost

_FEWEST_CLASSES = 2


def prepare_run(request: TrainRequest, progress: Progress | None = None) -> tuple[TrainRequest, PreparedData]:
    """The request with nothing left open, and its data; refused as early as can be where it is over the budget.

    What was chosen stands among the problems of the data, as notes.

    Raises:
        BudgetError: when the network does not fit, or none of its family does.
        UsageError: when the image is too small for the network.
        DataError: for what is wrong with the data.
    """
    request, reason = settle_input(request)
    _check_before_decoding(request)
    data = prepare(
        request.source,
        request.recipe.data,
        seed=request.seed,
        data_root=request.data_root,
        skip_broken=request.skip_broken,
        folds=request.folds,
        progress=progress,
    )
    shape, classes = data.contract.shape, len(data.train.classes)
    recipe, notes = with_network(request.recipe, request.budget, shape, classes)
    if reason:
        recipe = replace(recipe, data=replace(recipe.data, input=str(data.contract)))
        notes = (input_note(data.contract, reason), *notes)
    if _mirrors_signs(request, data.train.classes):
        recipe = replace(recipe, augment=replace(recipe.augment, flip=False))
        notes = (*notes, Problem("flip", "note", "nothing is mirrored: a mirrored digit or letter is another sign"))
    recipe, epochs_note = _with_epochs(request, recipe, len(data.train))
    notes = (*notes, *epochs_note)
    request = replace(request, recipe=recipe, chosen=(*request.chosen, *notes))
    return request, replace(data, problems=(*data.problems, *request.chosen, *_balance_note(recipe, data)))


def _with_epochs(request: TrainRequest, recipe: Recipe, images: int) -> tuple[Recipe, tuple[Problem, ...]]:
    """The recipe with the epochs that so many training images get, and a note where these are fewer.

    A number that was asked for beside the recipe stays as it is.
    """
    plain = recipe.plain
    is_asked_for = any(override.replace(" ", "").startswith("plain.epochs=") for override in request.overrides)
    settled = replace(plain, most_steps=0) if is_asked_for else plain.settled(images)
    recipe = replace(recipe, plain=settled)
    if settled.epochs == plain.epochs or "plain" not in recipe.stage_epochs():
        return recipe, ()
    message = (
        f"{settled.epochs} epochs instead of {plain.epochs}: on {images:,} training images these are the "
        f"{plain.most_steps:,} steps of plain.most_steps (--set plain.epochs={plain.epochs} for all)"
    )
    return recipe, (Problem("epochs", "note", message),)


def _balance_note(recipe: Recipe, data: PreparedData) -> tuple[Problem, ...]:
    """What was done where classes are uneven; nothing where they are even."""
    counts = class_counts(data.train.labels, len(data.train.classes))
    if not is_uneven(counts):
        return ()
    figure = recipe.loss.score(counts).replace("_", " ")
    weights = recipe.loss.weights(counts)
    weighted = "no class weights in the loss"
    if weights is not None:
        present = weights[counts > 0]
        weighted = f"the loss of an image is weighted by its class, {present.min():.2f} to {present.max():.2f}"
    message = (
        f"classes are uneven: the largest has {imbalance(counts):.1f} times the training images of the smallest; "
        f"the best epoch is chosen by {figure}, {weighted} (loss.class_weights, loss.select)"
    )
    return (Problem("uneven", "note", message),)


def settle_input(request: TrainRequest) -> tuple[TrainRequest, str]:
    """The request with the budget that holds and the size of its input, and why it is that; "" where it was not open.

    No image is decoded for it. Errors are those of `prepare_run`.
    """
    return _with_input(replace(request, budget=budget_of(request.recipe, request.budget)))


def input_note(contract: InputContract, reason: str) -> Problem:
    """What tells of an input that was chosen."""
    return Problem("input", "note", f"input {contract} was chosen: {reason}")


def _mirrors_signs(request: TrainRequest, classes: Sequence[str]) -> bool:
    """Whether a recipe for anything would mirror digits or letters, and nobody asked for that."""
    is_for_anything = request.recipe.sizing.is_open and request.recipe.augment.flip
    is_asked_for = any(override.replace(" ", "").startswith("augment.flip=") for override in request.overrides)
    return is_for_anything and not is_asked_for and are_signs(classes)


def budget_of(recipe: Recipe, given: Budget | None) -> Budget | None:
    """The budget that holds: the one given, or that of a recipe which leaves its size open."""
    return Budget.parse(recipe.sizing.budget) if given is None and recipe.sizing.is_open else given


def with_network(
    recipe: Recipe, budget: Budget | None, shape: Shape, classes: int
) -> tuple[Recipe, tuple[Problem, ...]]:
    """The recipe with the network that it trains on images (H, W, C) of K classes, and a note where that was chosen.

    Raises:
        BudgetError: when it does not fit the budget: with what it needs and what it may, for each limit that is broken,
            and what to change.
        UsageError: when the image is too small for the network.
    """
    budget = budget_of(recipe, budget)
    spec, cost = _network(recipe, budget, shape, classes)
    settled = replace(recipe, model=spec, sizing=recipe.sizing.settled())
    if recipe.sizing.network == "fixed" or budget is None:
        return settled, ()
    reached = limits_reached(spec, recipe.sizing.limits(budget), shape, classes, recipe.joined)
    bound = f"; any wider breaks {' or '.join(reached)}" if reached else ""
    message = (
        f"network {spec.family}, widths {', '.join(map(str, spec.free_widths))}, was chosen: the largest within "
        f"{recipe.sizing.in_words(budget)} ({cost.parameters:,} parameters){bound}"
    )
    return settled, (Problem("network", "note", message),)


def _network(recipe: Recipe, budget: Budget | None, shape: Shape, classes: int) -> tuple[FamilySpec, Cost]:
    """The network that a recipe trains on images of a shape; a BudgetError where it is over the budget."""
    spec = _proportions(recipe, shape)
    if recipe.sizing.network == "largest" and budget is not None:
        spec = largest_member(spec, recipe.sizing.limits(budget), shape, classes, recipe.joined)
    cost = network_cost(spec, recipe.joined, shape, classes)
    if budget is not None and budget.broken(cost):
        widths = "filters" if spec.family == "paper" else "widths"
        raise BudgetError(
            f"{over_budget(budget, cost, shape, classes)}\nmake it smaller, with --set model.{widths}=... or --set "
            "data.input=..., allow more, or take --recipe balanced, which fits its network to the budget"
        )
    return spec, cost


def _proportions(recipe: Recipe, shape: Shape) -> FamilySpec:
    """The network of a recipe, with the stages that images of a shape ask for where its size is open."""
    # The sub-stages of thawing name the stages that there are.
    if recipe.sizing.network == "fixed" or recipe.method == "two-stage":
        return recipe.model
    return recipe.model.deepened(shape, recipe.sizing.last_map)


def _with_input(request: TrainRequest) -> tuple[TrainRequest, str]:
    """The request with the input's size and why it is that, where it is left open; else as it is, and "".

    Where nothing that was seen is in colour, the channels are still for the images to decide.
    """
    recipe, budget = request.recipe, request.budget
    if recipe.sizing.input == "as is" or recipe.data.input != "auto" or budget is None:
        return request, ""
    opened = open_source(request.source, recipe.data, data_root=request.data_root)
    catalogue = None if opened.usual_input else opened.read()
    seen = None if catalogue is None else glance(catalogue.splits)
    if catalogue is None or seen is None:
        return request, ""
    limits, classes = recipe.sizing.limits(budget), max(_FEWEST_CLASSES, len(catalogue.classes))
    shapes = _shapes(recipe, seen)

    def network(shape: Shape) -> tuple[int, float]:
        spec, cost = _network(recipe, limits, shape, classes)
        return cost.parameters, evenness(spec, _proportions(recipe, shape))

    chosen, against = largest_input(shapes, network)
    if chosen[:2] == seen.own_size:
        return request, ""
    if not against:
        is_named = chosen[0] == recipe.sizing.sides[-1]
        against = "sizing.sides has no more" if is_named else f"the shorter side of the images is {seen.shorter_side}"
    sides = ", ".join(str(height) for height, *_ in shapes)
    reason = (
        f"the largest of {sides} pixels a side for a network within {recipe.sizing.in_words(budget)}; {against}"
        if len(shapes) > 1
        else f"{against}, and the smallest of sizing.sides {chosen[0]}"
    )
    data = replace(recipe.data, input=f"{chosen[0]}x{chosen[1]}x{chosen[2] if seen.colour else 'auto'}")
    return replace(request, recipe=replace(recipe, data=data)), reason


def _shapes(recipe: Recipe, seen: Glance) -> list[Shape]:
    """Inputs to choose from, the smallest first: squares, and the images' own size where "auto" would take that."""
    channels = 3 if seen.colour else 1
    squares: list[Shape] = [(side, side, channels) for side in recipe.sizing.sides if side <= seen.shorter_side]
    if seen.own_size is None:
        return squares or [(recipe.sizing.sides[0], recipe.sizing.sides[0], channels)]
    height, width = seen.own_size
    return [*(shape for shape in squares if shape[0] < min(height, width)), (height, width, channels)]


def _check_before_decoding(request: TrainRequest) -> None:
    """Refuse a network that is over the budget, if its input's size is known before any image is decoded.

    What fits with the fewest classes passes, so that the classes of a source are only looked up where that may take
    the place of decoding; whoever prepares the data has to check again.
    """
    recipe, budget = request.recipe, request.budget
    if budget is None:
        return
    wanted = recipe.data.input
    if wanted == "auto" and isinstance(request.source, str) and request.source in NAMES:
        wanted = open_source(request.source, recipe.data, data_root=request.data_root).usual_input
    if wanted in {"", "auto"}:
        return
    height, width, channels = parse_input(wanted)
    shape = (height, width, channels or 1)
    least = next(iter(recipe.model.members())) if recipe.sizing.network == "largest" else recipe.model
    if budget.broken(network_cost(least, recipe.joined, shape, _FEWEST_CLASSES)):
        catalogue = open_source(request.source, recipe.data, data_root=request.data_root).read()
        _network(recipe, budget, shape, max(_FEWEST_CLASSES, len(catalogue.classes)))
