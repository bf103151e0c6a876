"""Resolves a request step by step: budget, facts about the source, inputs, networks, data, choice.

Every step is a function of the earlier ones, and nothing is looked up twice. A network that exceeds the budget is
refused as early as possible: before images are decoded, if the facts about the source suffice.

Shapes are those of one image: H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from thaw.data.catalog import Source
from thaw.data.images import are_characters
from thaw.data.ingest import Glance, Progress, glance
from thaw.data.prepare import PreparedData, prepare
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings, parse_input
from thaw.data.sources import open_source
from thaw.errors import BudgetError
from thaw.events import result_of
from thaw.models.stages import Shape
from thaw.recipe.budget import Budget
from thaw.recipe.candidates import Candidate, Choices, check_fits, find_candidates
from thaw.recipe.recipe import Recipe
from thaw.run.notes import balance_notes, epochs_note, flip_note, input_note, input_reason, network_notes, trial_notes
from thaw.run.request import TrainRequest
from thaw.run.trials import Trial, TrialPlan, best_trial, may_compare, plan_trials, run_trials

_FEWEST_CLASSES = 2


@dataclass(frozen=True)
class SourceFacts:
    """Facts about a source that are known before decoding. Each one is looked up once, when it is needed."""

    source: Source

    @cached_property
    def classes(self) -> int:
        """Number of classes."""
        return max(_FEWEST_CLASSES, len(self.source.read().classes))

    @cached_property
    def seen(self) -> Glance | None:
        """Sizes and colors of a few images; None if none of them can be read."""
        return glance(self.source.read().splits)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs that a network may have.

    Attributes:
        shapes: (H, W, C), smallest first; empty if they are unknown before decoding. C is a lower bound.
        bound: why no larger input is considered; "" if the budget does not choose the input.
        own_size: height and width of all images, if they are equal and small.
        color: whether any sampled image is in color.
    """

    shapes: tuple[Shape, ...] = ()
    bound: str = ""
    own_size: tuple[int, int] | None = None
    color: bool = False

    @property
    def are_open(self) -> bool:
        """Whether the budget chooses the input."""
        return bool(self.bound)

    @property
    def sides(self) -> tuple[int, ...]:
        """The height of each shape."""
        return tuple(height for height, *_ in self.shapes)

    def setting(self, shape: Shape) -> str:
        """`data.input` for one of the shapes: "auto" for the images' own size, and for uncertain channels."""
        if shape[:2] == self.own_size:
            return "auto"
        return f"{shape[0]}x{shape[1]}x{shape[2] if self.color else 'auto'}"

    def settings(self, settings: DataSettings, shape: Shape | None) -> DataSettings:
        """Data settings with the chosen input; unchanged if the input is not open."""
        return replace(settings, input=self.setting(shape)) if self.are_open and shape is not None else settings

    def after_decoding(self, shape: Shape) -> list[Shape]:
        """The inputs available from images decoded at `shape`: that one, and the smaller open ones."""
        height, width, channels = shape
        smaller = [(rows, columns, channels) for rows, columns, _ in self.shapes if rows * columns < height * width]
        return [*(smaller if self.are_open else []), shape]


def settle_run(
    request: TrainRequest, progress: Progress | None = None
) -> Generator[TrialPlan | Trial, None, tuple[TrainRequest, PreparedData]]:
    """The resolved request and its data.

    If the recipe leaves its size open and several networks are worth comparing, a short training compares them; the
    plan and the trials are yielded. The problems of the data include notes on the choices.

    Raises:
        BudgetError: when the network, or every network of its family, exceeds the budget.
        UsageError: when the image is too small for the network.
        DataError: for invalid data.
    """
    recipe, budget = request.recipe, budget_of(request.recipe, request.budget)
    facts = source_facts(request)
    inputs = possible_inputs(recipe, budget, facts)
    read = cache(lambda shape: _prepare(request, facts.source, inputs.settings(recipe.data, shape), progress))
    data = read(_largest_shape(first_choices(recipe, budget, inputs, facts)))
    recipe, epoch_notes = _with_epochs(recipe, len(data.train), request.overrides)
    shapes, classes = inputs.after_decoding(data.input_spec.shape), data.train.classes
    choices = find_candidates(recipe, budget, shapes, len(classes))
    plan = plan_trials(choices.ranked, recipe, data, request.seed)
    trials = [] if plan is None else (yield from _compare(plan, recipe, request))
    chosen = best_trial(trials).candidate if trials else choices.ranked[0]
    if inputs.are_open and chosen.shape != data.input_spec.shape:
        data = read(chosen.shape)
    notes = [
        *_input_notes(inputs, chosen, data, compared=bool(trials)),
        *network_notes(recipe, budget, choices, chosen, len(classes), len(trials)),
        *([] if plan is None else trial_notes(plan, trials)),
    ]
    recipe, flip_notes = _without_mirrored_characters(recipe, classes, request.overrides)
    recipe = _closed(recipe, inputs, chosen, data)
    told = (*notes, *flip_notes, *request.chosen, *epoch_notes)
    request = replace(request, recipe=recipe, budget=budget, chosen=told)
    return request, replace(data, problems=(*data.problems, *told, *balance_notes(recipe, data)))


def prepare_run(request: TrainRequest, progress: Progress | None = None) -> tuple[TrainRequest, PreparedData]:
    """`settle_run` without its events."""
    return result_of(settle_run(request, progress))


def settle_input(request: TrainRequest) -> tuple[Source, DataSettings, str]:
    """The opened source, the data settings with the input of a training, and the reason for it ("" if not open).

    Nothing is trained for this. If a training would compare several inputs, the result is the most promising one, and
    the reason names the others. Errors are those of `settle_run`.
    """
    recipe, budget = request.recipe, budget_of(request.recipe, request.budget)
    facts = source_facts(request)
    inputs = possible_inputs(recipe, budget, facts)
    choices = first_choices(recipe, budget, inputs, facts)
    if choices is None:
        return facts.source, recipe.data, ""
    first = choices.ranked[0]
    is_own = first.shape[:2] == inputs.own_size
    reason = "" if is_own else input_reason(inputs.sides, inputs.bound, first, compared=False)
    compared = choices.ranked[: recipe.sizing.trials] if may_compare(recipe) else ()
    others = dict.fromkeys(f"{each.shape[0]}x{each.shape[1]}" for each in compared if each.shape != first.shape)
    if others:
        reason = f"{reason or 'the images have that size'}; a short training may choose {' or '.join(others)} instead"
    return facts.source, inputs.settings(recipe.data, first.shape), reason


def with_network(
    recipe: Recipe, budget: Budget | None, shape: Shape, classes: int
) -> tuple[Recipe, tuple[Problem, ...]]:
    """The recipe with its network for images (H, W, C) of K classes, without a comparison, and notes.

    Raises:
        BudgetError: when it exceeds the budget; the message has the cost, the limit, and what to change.
        UsageError: when the image is too small for the network.
    """
    budget = budget_of(recipe, budget)
    choices = find_candidates(recipe, budget, (shape,), classes)
    chosen = choices.ranked[0]
    settled = replace(recipe, model=chosen.spec, sizing=recipe.sizing.settled())
    notes = network_notes(recipe, budget, choices, chosen, classes)
    compared = choices.ranked[: recipe.sizing.trials]
    if notes and len(compared) > 1 and recipe.method != "two-stage":
        others = "; ".join(candidate.network for candidate in compared[1:])
        notes.append(Problem("trials", "note", f"training compares it on the images with {others}"))
    return settled, tuple(notes)


def budget_of(recipe: Recipe, given: Budget | None) -> Budget | None:
    """The budget that applies: the given one, or that of a recipe that leaves its size open."""
    return recipe.sizing.own_budget if given is None and recipe.sizing.is_open else given


def source_facts(request: TrainRequest) -> SourceFacts:
    """The facts about the request's source, which is opened here and read at most once.

    A data set in memory may be slow to read, or return other pixels the next time.
    """
    source = open_source(request.source, request.recipe.data, data_root=request.data_root)
    return SourceFacts(replace(source, read=cache(source.read)))


def possible_inputs(recipe: Recipe, budget: Budget | None, facts: SourceFacts) -> Inputs:
    """The possible inputs of the network. A few images are decoded if the budget chooses."""
    wanted = recipe.data.input
    if wanted == "auto":
        wanted = facts.source.usual_input or wanted
    if wanted != "auto":
        height, width, channels = parse_input(wanted)
        return Inputs(shapes=((height, width, channels or 1),))
    if recipe.sizing.input == "as is" or budget is None or facts.seen is None:
        return Inputs()
    shapes = _open_shapes(recipe.sizing.sides, facts.seen)
    is_listed = shapes[-1][0] == recipe.sizing.sides[-1] and shapes[-1][:2] != facts.seen.own_size
    return Inputs(
        shapes=shapes,
        bound="no larger side is in sizing.sides"
        if is_listed
        else f"the shorter side of the images is {facts.seen.shorter_side}",
        own_size=facts.seen.own_size,
        color=facts.seen.color,
    )


def _open_shapes(sides: Sequence[int], seen: Glance) -> tuple[Shape, ...]:
    """Inputs to choose from, smallest first: squares, and the images' own size if "auto" would use it."""
    channels = 3 if seen.color else 1
    if seen.own_size is None:
        fitting = [side for side in sides if side <= seen.shorter_side] or [sides[0]]
        return tuple((side, side, channels) for side in fitting)
    height, width = seen.own_size
    smaller = (side for side in sides if side <= seen.shorter_side and side < min(height, width))
    return (*((side, side, channels) for side in smaller), (height, width, channels))


def first_choices(recipe: Recipe, budget: Budget | None, inputs: Inputs, facts: SourceFacts) -> Choices | None:
    """The networks that fit the budget by the facts known before decoding; None if it does not choose the input.

    Raises:
        BudgetError: when nothing fits.
        UsageError: when the image is too small for the network.
    """
    if not inputs.shapes or budget is None:
        return None
    if inputs.are_open:
        return find_candidates(recipe, budget, inputs.shapes, facts.classes)
    try:
        check_fits(recipe, budget, inputs.shapes, _FEWEST_CLASSES)
    except BudgetError:
        # Counting the classes may be slow, so it is done only for the message.
        check_fits(recipe, budget, inputs.shapes, facts.classes)
    return None


def _largest_shape(choices: Choices | None) -> Shape | None:
    """The largest input that may be compared; the images of the others are resized from it."""
    if choices is None:
        return None
    return max((candidate.shape for candidate in choices.ranked), key=lambda shape: shape[0] * shape[1])


def _prepare(request: TrainRequest, source: Source, settings: DataSettings, progress: Progress | None) -> PreparedData:
    return prepare(
        source,
        settings,
        seed=request.seed,
        data_root=request.data_root,
        skip_broken=request.skip_broken,
        folds=request.folds,
        progress=progress,
    )


def _with_epochs(recipe: Recipe, images: int, overrides: Sequence[str]) -> tuple[Recipe, list[Problem]]:
    """The recipe with the epochs for this number of training images, and a note if they are fewer. Overrides stay."""
    plain = recipe.plain
    settled = replace(plain, most_steps=0) if _is_overridden("plain.epochs", overrides) else plain.settled(images)
    is_same = settled.epochs == plain.epochs or "plain" not in recipe.stage_epochs()
    return replace(recipe, plain=settled), [] if is_same else [epochs_note(plain, settled.epochs, images)]


def _compare(plan: TrialPlan, recipe: Recipe, request: TrainRequest) -> Generator[TrialPlan | Trial, None, list[Trial]]:
    yield plan
    trials = []
    for trial in run_trials(plan, recipe, request.seed, request.device):
        trials.append(trial)
        yield trial
    return trials


def _input_notes(inputs: Inputs, chosen: Candidate, data: PreparedData, *, compared: bool) -> list[Problem]:
    if not inputs.are_open or chosen.shape[:2] == inputs.own_size:
        return []
    return [input_note(data.input_spec, input_reason(inputs.sides, inputs.bound, chosen, compared=compared))]


def _without_mirrored_characters(
    recipe: Recipe, classes: Sequence[str], overrides: Sequence[str]
) -> tuple[Recipe, list[Problem]]:
    """Disable mirroring for digits and letters, unless the caller set it."""
    is_general = recipe.sizing.is_open and recipe.augment.flip
    if not is_general or _is_overridden("augment.flip", overrides) or not are_characters(classes):
        return recipe, []
    return replace(recipe, augment=replace(recipe.augment, flip=False)), [flip_note()]


def _closed(recipe: Recipe, inputs: Inputs, chosen: Candidate, data: PreparedData) -> Recipe:
    """The resolved recipe, with the chosen network and input."""
    is_chosen = inputs.are_open and chosen.shape[:2] != inputs.own_size
    settings = replace(recipe.data, input=str(data.input_spec)) if is_chosen else recipe.data
    return replace(recipe, model=chosen.spec, data=settings, sizing=recipe.sizing.settled())


def _is_overridden(setting: str, overrides: Sequence[str]) -> bool:
    """Whether an override sets this setting."""
    return any(override.replace(" ", "").startswith(f"{setting}=") for override in overrides)
