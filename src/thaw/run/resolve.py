"""What a request leaves open, made definite, and the refusal of what is over the budget: the data of a run.

In a straight line: what is known of the source before it is decoded; what fits the budget; the images; a short training
of what is worth comparing; the request with nothing left open.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from thaw.data.images import are_characters
from thaw.data.ingest import Glance, Progress, glance
from thaw.data.prepare import PreparedData, prepare
from thaw.data.problems import Problem
from thaw.data.settings import parse_input
from thaw.data.sources import NAMES, open_source
from thaw.errors import BudgetError
from thaw.models.stages import Shape
from thaw.recipe.budget import Budget
from thaw.recipe.candidates import Candidate, Choices, check_fits, find_candidates
from thaw.recipe.recipe import Recipe
from thaw.run.notes import balance_notes, input_note, input_reason, network_notes, trial_notes
from thaw.run.request import TrainRequest
from thaw.run.trials import Trial, TrialPlan, best_trial, may_compare, plan_trials, run_trials

_FEWEST_CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What is known of a source before its images are decoded.

    Attributes:
        shapes: inputs (H, W, C) that the network may have, the smallest first; none where only decoding tells. The
            channels are the fewest that are possible.
        classes: how many there are at least.
        bound: where the budget chooses the input, what says that no larger one was looked at; "" where it does not.
        own_size: height and width of all images, where they are alike and small.
        color: whether an image in color was seen.
    """

    shapes: tuple[Shape, ...] = ()
    classes: int = _FEWEST_CLASSES
    bound: str = ""
    own_size: tuple[int, int] | None = None
    color: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the budget chooses the input."""
        return bool(self.bound)

    @property
    def sides(self) -> tuple[int, ...]:
        """Rows of each of the shapes."""
        return tuple(height for height, *_ in self.shapes)

    def input_setting(self, shape: Shape) -> str:
        """`data.input` for one of the shapes: "auto" for the images' own size, and for channels that are not sure."""
        if shape[:2] == self.own_size:
            return "auto"
        return f"{shape[0]}x{shape[1]}x{shape[2] if self.color else 'auto'}"


def prepare_run(request: TrainRequest, progress: Progress | None = None) -> tuple[TrainRequest, PreparedData]:
    """`settle_run` without its events."""
    steps = settle_run(request, progress)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            settled: tuple[TrainRequest, PreparedData] = end.value
            return settled


def settle_run(
    request: TrainRequest, progress: Progress | None = None
) -> Generator[TrialPlan | Trial, None, tuple[TrainRequest, PreparedData]]:
    """The request with nothing left open, and its data; refused as early as can be where it is over the budget.

    Where the recipe leaves its size open and several networks are worth it, they are compared by a short training, of
    which the plan and each trial are yielded. What was chosen stands among the problems of the data, as notes.

    Raises:
        BudgetError: when the network does not fit, or none of its family does.
        UsageError: when the image is too small for the network.
        DataError: for what is wrong with the data.
    """
    if not isinstance(request.source, str | Path):
        # What is in memory is read once: a data set may take long, or give other pixels the next time.
        request = replace(request, source=open_source(request.source, request.recipe.data))
    request = replace(request, budget=budget_of(request.recipe, request.budget))
    facts = look_at_source(request)
    early = first_choices(request, facts)
    data = _prepare(request, facts, _largest_shape(early), progress)
    request = _with_epochs(request, len(data.train))
    choices = _choices_for(request, facts, data)
    plan = plan_trials(choices.ranked, request.recipe, data, request.seed)
    trials = [] if plan is None else (yield from _compare(plan, request))
    chosen = best_trial(trials).candidate if trials else choices.ranked[0]
    if facts.is_open and chosen.shape != data.input_spec.shape:
        data = _prepare(request, facts, chosen.shape, progress)
    request = _settled(request, facts, choices, chosen, data, plan, trials)
    told = (*request.chosen, *balance_notes(request.recipe, data))
    return request, replace(data, problems=(*data.problems, *told))


def settle_input(request: TrainRequest) -> tuple[TrainRequest, str]:
    """The request with the budget that holds and the size of its input, and why it is that; "" where it was not open.

    No image is decoded for it and nothing is trained, so that it is the most promising input where several are to be
    compared; the reason then names the others. Errors are those of `settle_run`.
    """
    request = replace(request, budget=budget_of(request.recipe, request.budget))
    facts = look_at_source(request)
    choices = first_choices(request, facts)
    if choices is None or not facts.is_open:
        return request, ""
    first = choices.ranked[0]
    data = replace(request.recipe.data, input=facts.input_setting(first.shape))
    reason = "" if first.shape[:2] == facts.own_size else input_reason(facts.sides, facts.bound, first, compared=False)
    compared = choices.ranked[: request.recipe.sizing.trials] if may_compare(request.recipe) else ()
    others = dict.fromkeys(f"{each.shape[0]}x{each.shape[1]}" for each in compared if each.shape != first.shape)
    if others:
        reason = f"{reason or 'the images have that size'}; a short training may choose {' or '.join(others)} instead"
    return replace(request, recipe=replace(request.recipe, data=data)), reason


def budget_of(recipe: Recipe, given: Budget | None) -> Budget | None:
    """The budget that holds: the one given, alone, or that of a recipe which leaves its size open."""
    return recipe.sizing.own_budget if given is None and recipe.sizing.is_open else given


def look_at_source(request: TrainRequest) -> SourceFacts:
    """What can be known before decoding; a few images are decoded where the budget chooses the input.

    Nothing is trained. Classes are counted only where the source has to be read for something else.
    """
    recipe = request.recipe
    wanted = recipe.data.input
    if wanted == "auto" and isinstance(request.source, str) and request.source in NAMES:
        wanted = open_source(request.source, recipe.data, data_root=request.data_root).usual_input or wanted
    if wanted != "auto":
        height, width, channels = parse_input(wanted)
        return SourceFacts(shapes=((height, width, channels or 1),))
    if recipe.sizing.input == "as is" or request.budget is None:
        return SourceFacts()
    opened = open_source(request.source, recipe.data, data_root=request.data_root)
    catalog = None if opened.usual_input else opened.read()
    seen = None if catalog is None else glance(catalog.splits)
    if catalog is None or seen is None:
        return SourceFacts()
    shapes = _open_shapes(recipe, seen)
    is_named = shapes[-1][0] == recipe.sizing.sides[-1] and shapes[-1][:2] != seen.own_size
    return SourceFacts(
        shapes=shapes,
        classes=max(_FEWEST_CLASSES, len(catalog.classes)),
        bound="sizing.sides has no more" if is_named else f"the shorter side of the images is {seen.shorter_side}",
        own_size=seen.own_size,
        color=seen.color,
    )


def first_choices(request: TrainRequest, facts: SourceFacts) -> Choices | None:
    """What fits the budget as far as is known before decoding; None where the input's size is not known.

    Nothing is trained: the first of `ranked` is what a run trains that compares none.

    Raises:
        BudgetError: when nothing fits.
        UsageError: when the image is too small for the network.
    """
    if not facts.shapes or request.budget is None:
        return None
    if facts.is_open:
        return find_candidates(request.recipe, request.budget, facts.shapes, facts.classes)
    try:
        check_fits(request.recipe, request.budget, facts.shapes, facts.classes)
    except BudgetError:
        # What does not fit with the fewest classes is refused with its own number, which may take long to look up.
        catalog = open_source(request.source, request.recipe.data, data_root=request.data_root).read()
        check_fits(request.recipe, request.budget, facts.shapes, max(_FEWEST_CLASSES, len(catalog.classes)))
    return None


def with_network(
    recipe: Recipe, budget: Budget | None, shape: Shape, classes: int
) -> tuple[Recipe, tuple[Problem, ...]]:
    """The recipe with the network that it trains on images (H, W, C) of K classes where none are compared, and notes.

    Raises:
        BudgetError: when it does not fit the budget: with what it needs and what it may, for each limit that is broken,
            and what to change.
        UsageError: when the image is too small for the network.
    """
    budget = budget_of(recipe, budget)
    choices = find_candidates(recipe, budget, (shape,), classes)
    chosen = choices.ranked[0]
    settled = replace(recipe, model=chosen.spec, sizing=recipe.sizing.settled())
    if recipe.sizing.network == "fixed" or budget is None:
        return settled, ()
    notes = network_notes(recipe, budget, choices, chosen, classes)
    compared = choices.ranked[: recipe.sizing.trials]
    if len(compared) > 1 and recipe.method != "two-stage":
        others = "; ".join(candidate.network for candidate in compared[1:])
        notes.append(Problem("trials", "note", f"training compares it on the images with {others}"))
    return settled, tuple(notes)


def _open_shapes(recipe: Recipe, seen: Glance) -> tuple[Shape, ...]:
    """Inputs to choose from, the smallest first: squares, and the images' own size where "auto" would take that."""
    channels = 3 if seen.color else 1
    sides = recipe.sizing.sides
    if seen.own_size is None:
        fitting = [side for side in sides if side <= seen.shorter_side] or [sides[0]]
        return tuple((side, side, channels) for side in fitting)
    height, width = seen.own_size
    smaller = (side for side in sides if side <= seen.shorter_side and side < min(height, width))
    return (*((side, side, channels) for side in smaller), (height, width, channels))


def _largest_shape(choices: Choices | None) -> Shape | None:
    """The largest input that may be compared, which the others are made of."""
    if choices is None:
        return None
    return max((candidate.shape for candidate in choices.ranked), key=lambda shape: shape[0] * shape[1])


def _prepare(request: TrainRequest, facts: SourceFacts, shape: Shape | None, progress: Progress | None) -> PreparedData:
    """The images at a shape where the budget chooses that, else as the recipe says."""
    settings = request.recipe.data
    if facts.is_open and shape is not None:
        settings = replace(settings, input=facts.input_setting(shape))
    return prepare(
        request.source,
        settings,
        seed=request.seed,
        data_root=request.data_root,
        skip_broken=request.skip_broken,
        folds=request.folds,
        progress=progress,
    )


def _choices_for(request: TrainRequest, facts: SourceFacts, data: PreparedData) -> Choices:
    """What fits now that classes and channels are known, of inputs that the decoded images can be made smaller to."""
    height, width, channels = data.input_spec.shape
    shapes = [(height, width, channels)]
    if facts.is_open:
        smaller = [(rows, columns, channels) for rows, columns, _ in facts.shapes if rows * columns < height * width]
        shapes = [*smaller, *shapes]
    return find_candidates(request.recipe, request.budget, shapes, len(data.train.classes))


def _compare(plan: TrialPlan, request: TrainRequest) -> Generator[TrialPlan | Trial, None, list[Trial]]:
    yield plan
    trials = []
    for trial in run_trials(plan, request.recipe, request.seed, request.device):
        trials.append(trial)
        yield trial
    return trials


def _settled(
    request: TrainRequest,
    facts: SourceFacts,
    choices: Choices,
    chosen: Candidate,
    data: PreparedData,
    plan: TrialPlan | None,
    trials: Sequence[Trial],
) -> TrainRequest:
    """The request with that network and input and nothing left open, and notes on what was chosen."""
    recipe, budget = request.recipe, request.budget
    settled = replace(recipe, model=chosen.spec, sizing=recipe.sizing.settled())
    notes: list[Problem] = []
    if facts.is_open and chosen.shape[:2] != facts.own_size:
        settled = replace(settled, data=replace(recipe.data, input=str(data.input_spec)))
        notes.append(input_note(data.input_spec, input_reason(facts.sides, facts.bound, chosen, compared=bool(trials))))
    if recipe.sizing.network == "largest" and budget is not None:
        notes += network_notes(recipe, budget, choices, chosen, len(data.train.classes), len(trials))
    notes += [] if plan is None else trial_notes(plan, trials)
    if _mirrors_signs(request, data.train.classes):
        settled = replace(settled, augment=replace(recipe.augment, flip=False))
        notes.append(Problem("flip", "note", "nothing is mirrored: a mirrored digit or letter is another sign"))
    return replace(request, recipe=settled, chosen=(*notes, *request.chosen))


def _with_epochs(request: TrainRequest, images: int) -> TrainRequest:
    """The request with the epochs that so many training images get, and a note where these are fewer.

    A number that was asked for beside the recipe stays as it is.
    """
    recipe, plain = request.recipe, request.recipe.plain
    settled = replace(plain, most_steps=0) if _is_asked_for(request, "plain.epochs") else plain.settled(images)
    recipe = replace(recipe, plain=settled)
    if settled.epochs == plain.epochs or "plain" not in recipe.stage_epochs():
        return replace(request, recipe=recipe)
    message = (
        f"{settled.epochs} epochs instead of {plain.epochs}: on {images:,} training images these are the "
        f"{plain.most_steps:,} steps of plain.most_steps (--set plain.epochs={plain.epochs} for all)"
    )
    return replace(request, recipe=recipe, chosen=(*request.chosen, Problem("epochs", "note", message)))


def _mirrors_signs(request: TrainRequest, classes: Sequence[str]) -> bool:
    """Whether a recipe for anything would mirror digits or letters, and nobody asked for that."""
    is_for_anything = request.recipe.sizing.is_open and request.recipe.augment.flip
    return is_for_anything and not _is_asked_for(request, "augment.flip") and are_characters(classes)


def _is_asked_for(request: TrainRequest, setting: str) -> bool:
    """Whether a setting was given beside the recipe."""
    return any(override.replace(" ", "").startswith(f"{setting}=") for override in request.overrides)
