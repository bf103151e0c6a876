"""The public functions: train, inspect data, load a recipe, estimate a network's cost, compare runs.

The public classes are `thaw.run.run.Run` and `thaw.model.model.Model`. The command line is a client of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thaw.data.images import InputSpec, parse_shape
from thaw.data.prepare import PreparedData
from thaw.data.problems import Problem
from thaw.errors import UsageError
from thaw.events import OnEvent, decoding_to, result_of
from thaw.graph.cost import Cost
from thaw.recipe.budget import Budget
from thaw.recipe.recipe import Recipe
from thaw.recipe.recipe import load_recipe as _load_recipe
from thaw.run.request import Overrides, build_request, override_texts
from thaw.run.run import Run, drive

if TYPE_CHECKING:
    from thaw.data.summary import SourceSummary
    from thaw.studies.arms import StudyName
    from thaw.studies.runs import Study


def train(  # noqa: PLR0913 - independent options, by keyword only
    source: Any,
    *,
    recipe: str | Recipe = "",
    overrides: Overrides = (),
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    folds: int = 0,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    budget: str = "",
    group_by: str = "",
    on_event: OnEvent | None = None,
) -> Run:
    """Train a model and write its run folder.

    Args:
        source: the data to train on, as for `load`.
        recipe: a recipe's name or file, or a `Recipe` (then without `overrides`); by default "balanced", or without a
            budget "digits" for digits and "paper" for the other named data sets.
        overrides: settings of the recipe to replace, such as {"dual.epochs": 5} or ["dual.epochs=5"].
        seed: random seed.
        out: the run folder; runs/<source>-<recipe>-<n> by default.
        overwrite: replace the run in `out`.
        device: "auto", "cpu" or "cuda".
        folds: folds of a cross-validation in addition to the model; 0 for none.
        data_root: folder that holds the named data sets; the environment's THAW_DATA by default.
        skip_broken: leave out images that cannot be read, and list them.
        budget: upper limits on the network's cost, such as "params=15000,ram=8KB,flash=32KB,macs=1M".
        group_by: as for `load`; folds keep groups together too.
        on_event: called with each event of the run (`thaw.run.events`), such as `EpochDone`, and each `Decoding`. To
            stop, raise an exception in it: `Run.open(out).resume()` continues after the last finished epoch.

    Returns:
        The finished run.

    Raises:
        UsageError: for an argument with an invalid value.
        RecipeError: for invalid settings, all reported together.
        BudgetError: when no network fits the budget.
        DataError: for invalid data, all problems reported together.
        RunError: when the run folder exists or cannot be written.
        TrainingError: when the loss is not finite.
    """
    from thaw.run.pipeline import start_run

    request = build_request(
        source,
        recipe=recipe,
        overrides=overrides,
        seed=seed,
        device=device,
        folds=folds,
        data_root=data_root,
        skip_broken=skip_broken,
        budget=budget,
        group_by=group_by,
    )
    folder = None if out is None else Path(out).expanduser()
    events = start_run(request, out=folder, overwrite=overwrite, progress=decoding_to(on_event))
    return drive(events, on_event, source=source, data_root=request.data_root)


def load(  # noqa: PLR0913 - as above
    source: Any,
    *,
    recipe: str | Recipe = "",
    overrides: Overrides = (),
    seed: int = 0,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    budget: str = "",
    group_by: str = "",
    on_event: OnEvent | None = None,
) -> PreparedData:
    """Load the images of a source, checked, resized and split as in a run with the same arguments.

    Args:
        source: a name ("digits", "mnist", ...), a path, a Hub data set id, or data in memory: (images, labels) with
            images uint8 or uint16 [N, H, W] or [N, H, W, C] and labels integers or texts [N]; (paths, labels); a
            pandas data frame; a torch data set whose items are (image, label); a `datasets.Dataset`; or a mapping from
                "train", "validation" and "test" to any of these. A third entry after images (or paths) and labels gives
                groups, one per image.
        recipe: a recipe's name or file, or a `Recipe`, whose data settings apply; by default that of `train`.
        overrides: settings of the recipe to replace, such as {"data.input": "48x48x3"}.
        seed: random seed of the splits.
        data_root: folder that holds the named data sets; the environment's THAW_DATA by default.
        skip_broken: leave out images that cannot be read, and list them.
        budget: upper limits on the network's cost, on which the input size may depend.
        group_by: a table's column, "folder", or a regular expression for the image's name or path: images of one group
            stay in one split (`DataSettings.group_by`).
        on_event: called with each `Decoding`, and with the trials if a short training chooses the input.

    Raises:
        DataError: for invalid data, all problems reported together.
        BudgetError: when no network fits the budget.
    """
    from thaw.run.resolve import settle_run

    request = build_request(
        source,
        recipe=recipe,
        overrides=overrides,
        seed=seed,
        data_root=data_root,
        skip_broken=skip_broken,
        budget=budget,
        group_by=group_by,
    )
    return result_of(settle_run(request, decoding_to(on_event)), on_event)[1]


def summarize(
    source: Any,
    *,
    recipe: str | Recipe = "",
    overrides: Overrides = (),
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    budget: str = "",
    group_by: str = "",
    on_event: OnEvent | None = None,
) -> SourceSummary:
    """Inspect a source: counts, classes, sizes, balance and all problems. Errors are listed, not raised.

    The arguments are those of `load`. If a short training would choose the input, the result's `input` is the most
    promising one.

    Raises:
        DataError: when there are no images.
        BudgetError: when no network fits the budget.
    """
    from thaw.data.summary import look
    from thaw.run.notes import input_note
    from thaw.run.resolve import settle_input

    request = build_request(
        source, recipe=recipe, overrides=overrides, data_root=data_root, budget=budget, group_by=group_by
    )
    opened, settings, reason = settle_input(request)
    summary = look(opened, settings, skip_broken=skip_broken, progress=decoding_to(on_event))
    notes = (input_note(summary.input, reason),) if reason else ()
    return replace(summary, problems=(*summary.problems, *notes), recipe=request.recipe_name)


def load_recipe(name_or_file: str, overrides: Overrides = ()) -> Recipe:
    """Load a recipe by name or from a TOML file, with overrides such as {"dual.epochs": 5}.

    Raises:
        RecipeError: listing all faults: unknown keys, wrong types, values out of range, contradictions.
    """
    return _load_recipe(name_or_file, override_texts(overrides))[1]


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimate:
    """The network that a recipe would train, and its cost.

    Attributes:
        recipe: the recipe, with the network determined.
        input_spec: the input.
        classes: number of classes.
        cost: the cost of the network, layer by layer.
        notes: the chosen settings, if the recipe leaves the network open.
    """

    recipe: Recipe
    input_spec: InputSpec
    classes: int
    cost: Cost
    notes: Sequence[Problem]

    def __repr__(self) -> str:
        cost = f"{self.cost.parameters:,} parameters, {self.cost.macs:,} MACs"
        return f"Estimate({self.recipe.model.family}, input {self.input_spec}, {self.classes} classes, {cost})"


def estimate(
    recipe: str | Recipe,
    *,
    input: str = "28x28x1",  # noqa: A002 - the word of the recipe and of the command line
    classes: int = 10,
    overrides: Overrides = (),
    budget: str = "",
) -> Estimate:
    """Return the network that a recipe would train on images of one size, and its cost, without training.

    Args:
        recipe: a recipe's name or file, or a `Recipe`.
        input: HEIGHTxWIDTHxCHANNELS.
        classes: number of classes.
        overrides: settings of the recipe to replace.
        budget: upper limits on the network's cost.

    Raises:
        RecipeError: for invalid settings.
        BudgetError: when no network fits the budget.
        UsageError: for an invalid input or budget, or an image too small for the network.
    """
    from thaw.graph.lower import layer_table
    from thaw.run.resolve import with_network

    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    height, width, channels = parse_shape(input)
    input_spec = InputSpec(height=height, width=width, channels=channels)
    limits = Budget.parse(budget) if budget else None
    settled, notes = with_network(settings, limits, input_spec.shape, classes)
    cost = layer_table(settled.model, settled.unify_spec, input_spec.shape, classes)
    return Estimate(recipe=settled, input_spec=input_spec, classes=classes, cost=cost, notes=notes)


def reproduce(
    datasets: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    out: str | Path = "runs/reproduce",
    device: str = "auto",
    data_root: str | Path | None = None,
    on_event: OnEvent | None = None,
) -> Study:
    """Train the networks of arXiv 2501.15547 and compare their accuracy with the published figures.

    Each data set and seed is a run in its own folder. Finished runs are not trained again and interrupted ones are
    resumed, so the same call continues an interrupted study.

    Args:
        datasets: any of "mnist", "fashion_mnist" and "cifar10"; None for all.
        seeds: random seeds, distinct.
        out: the folder for the runs and the table.
        device: "auto", "cpu" or "cuda".
        data_root: folder that holds the named data sets; the environment's THAW_DATA by default.
        on_event: called with a `thaw.studies.runs.RunStarted` before each run, and as for `train`.

    Raises:
        UsageError: for an unknown data set or device, or invalid seeds.
        RunError: when `out` contains runs of another recipe, or cannot be written.
    """
    from thaw.studies import reproduce as study

    events = study.reproduce(
        datasets,
        seeds,
        out=Path(out).expanduser(),
        device=device,
        data_root=None if data_root is None else Path(data_root).expanduser(),
        progress=decoding_to(on_event),
    )
    return result_of(events, on_event)


def ablate(  # noqa: PLR0913 - as above
    source: str | Path,
    *,
    recipe: str = "paper",
    overrides: Overrides = (),
    seeds: Sequence[int] = (0, 1, 2),
    study: StudyName = "parts",
    out: str | Path | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    on_event: OnEvent | None = None,
) -> Study:
    """Compare variants of the two-stage method, with equal parameters and equally many image passes.

    Each variant and seed is a run in its own folder. Finished runs are not trained again and interrupted ones are
    resumed, so the same call continues an interrupted study.

    Args:
        source: a name, path or Hub id, as for `load`.
        recipe: name or file of a two-stage recipe.
        overrides: settings of the recipe to replace.
        seeds: random seeds, distinct.
        study: "parts" leaves out one idea of the method at a time; "unify" compares ways to unify two submodels.
        out: the folder for the runs and the comparison; runs/ablate-<source> or runs/unify-<source> by default.
        device: "auto", "cpu" or "cuda".
        data_root: folder that holds the named data sets; the environment's THAW_DATA by default.
        on_event: as for `reproduce`.

    Raises:
        UsageError: for a recipe without variants, an unknown study, or invalid seeds.
        RecipeError: for invalid settings.
        DataError: for invalid data.
        RunError: when `out` contains runs of another source or recipe, or cannot be written.
    """
    from thaw.studies import ablation

    if not isinstance(source, str | Path):
        raise UsageError("an ablation needs a source that can be opened again: a name, a path or a Hub id")
    events = ablation.ablate(
        str(source),
        recipe,
        override_texts(overrides),
        seeds,
        study=study,
        out=None if out is None else Path(out).expanduser(),
        device=device,
        data_root=None if data_root is None else Path(data_root).expanduser(),
        progress=decoding_to(on_event),
    )
    return result_of(events, on_event)
