"""The library's front: the same words as the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thaw.data.prepare import PreparedData, open_image_set
from thaw.data.problems import Problem
from thaw.data.ranges import warn_of
from thaw.data.settings import DataSettings
from thaw.errors import RecipeError, RunError, UsageError
from thaw.evidence.findings import Finding
from thaw.evidence.overlap import overlap
from thaw.evidence.quality import Quality
from thaw.model.model import Model
from thaw.model.training_images import read_seen
from thaw.quoting import shell_command
from thaw.recipe.budget import Budget
from thaw.recipe.recipe import Recipe, default_recipe, grouped, load_recipe, recipe_from_dict
from thaw.run.pipeline import DecodeProgress, Event, Finished, quality_of, resume_run, start_run
from thaw.run.request import TrainRequest
from thaw.run.resolve import prepare_run


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        metrics: what metrics.json holds (see docs/metrics.md).
        report: the HTML page.
    """

    path: Path
    metrics: dict[str, Any]
    report: Path

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What to know before the accuracy is believed, such as that the model learned nothing; mostly empty."""
        return tuple(map(Finding.from_dict, self.metrics["findings"]))

    @property
    def model(self) -> Model:
        """The trained model, opened from the run folder."""
        return Model.load(self.path)


def load(
    source: Any,
    *,
    recipe: str = "",
    overrides: Sequence[str] = (),
    seed: int = 0,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    budget: str = "",
    group_by: str = "",
) -> PreparedData:
    """The images of a source, checked, resized and split as a run with the same arguments would have them.

    Args:
        source: a name ("digits", "mnist", ...), a path, a Hub data set id, or what is in memory: (images, labels) with
            images uint8 or uint16 [N, H, W] or [N, H, W, C] and labels integers or texts [N]; (paths, labels); a
            pandas data frame; a torch data set whose items are (image, label); a `datasets.Dataset`; or a mapping from
            "train", "validation" and "test" to such. Groups, one an image, may be a third beside images or paths and
            labels.
        recipe: name or file of the recipe whose data settings apply; by default that of a run.
        overrides: settings such as "data.input=48x48x3".
        seed: of the splits.
        data_root: folder that holds the named data sets; by default the environment's THAW_DATA.
        skip_broken: leave out images that cannot be read, and list them.
        budget: what the network may cost at most, on which the input's size may depend.
        group_by: a table's column, "folder", or a regular expression for the image's name or path: images of one group
            stay in one split (`DataSettings.group_by`).

    Raises:
        DataError: telling everything that is wrong with the data.
        BudgetError: when there is a budget that the network is over.
    """
    name, settings = load_recipe(recipe or default_recipe(source, has_budget=bool(budget)), overrides)
    request = TrainRequest(
        source=source,
        recipe_name=name,
        recipe=grouped(settings, group_by),
        seed=seed,
        data_root=_path(data_root),
        skip_broken=skip_broken,
        budget=Budget.parse(budget) if budget else None,
    )
    return prepare_run(request)[1]


def train(  # noqa: PLR0913 - independent options, by keyword only
    source: Any = None,
    *,
    recipe: str | Recipe = "",
    overrides: Sequence[str] = (),
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    folds: int = 0,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    budget: str = "",
    group_by: str = "",
    resume: str | Path | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Run:
    """Train a model and write its run folder; the arguments mean what `thaw train` means by them.

    Args:
        source: as for `load`; with `resume`, needed only where the run was trained from arrays.
        recipe: a recipe's name or file, or a Recipe (then `overrides` must be empty); by default "balanced", but
            without a budget "digits" for digits and "paper" for the other named data sets.
        overrides: settings such as "dual.epochs=5".
        seed: of everything random in the run.
        out: the run folder; by default runs/<source>-<recipe>-<n>.
        overwrite: replace the run that `out` names.
        device: "auto", "cpu" or "cuda".
        folds: folds of a cross-validation besides the model; 0 for none.
        data_root: folder that holds the named data sets; by default the environment's THAW_DATA.
        skip_broken: leave out images that cannot be read, and list them.
        budget: what the network may cost at most, such as "params=15000,ram=8KB,flash=32KB,macs=1M".
        group_by: as for `load`; groups stay whole in the folds too.
        resume: go on with the run in this folder.
        on_event: called with each event of the run, such as `EpochDone`.

    Raises:
        ThawError: for what is wrong in the arguments, the recipe, the data, or the training.
    """
    if resume is not None:
        if (
            recipe
            or overrides
            or seed
            or out
            or overwrite
            or folds
            or skip_broken
            or budget
            or group_by
            or device != "auto"
        ):
            raise UsageError("resume goes on as the run began: only source, data_root and on_event go with it")
        return _finish(resume_run(Path(resume), source=source, data_root=_path(data_root)), on_event)
    if source is None:
        raise UsageError("train() needs a source, or a run to resume")
    if isinstance(recipe, Recipe):
        if overrides:
            raise UsageError("overrides go with a recipe's name or file; change the Recipe with dataclasses.replace")
        name, settings = "custom", recipe
    else:
        name, settings = load_recipe(recipe or default_recipe(source, has_budget=bool(budget)), overrides)
    request = TrainRequest(
        source=source,
        recipe_name=name,
        recipe=grouped(settings, group_by),
        seed=seed,
        device=device,
        folds=folds,
        data_root=_path(data_root),
        skip_broken=skip_broken,
        budget=Budget.parse(budget) if budget else None,
        overrides=tuple(overrides),
        command=_command(
            source, recipe, overrides, seed, folds, skip_broken=skip_broken, budget=budget, group_by=group_by
        ),
    )
    return _finish(start_run(request, out=_path(out), overwrite=overwrite), on_event)


def evaluate(
    model: Model,
    source: Any,
    *,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
) -> Quality:
    """Measure a model on a source: its test split if it has one, else all of it.

    What it gives has `overlap`, which counts the images that the model was trained on and measures the others alone;
    None where it is not known what it was trained on, as for a model file without its run folder.

    Raises:
        DataError: for what is wrong with the data, such as a class that the model does not know.
    """
    quality, problems = evaluate_source(model, source, data_root=_path(data_root), skip_broken=skip_broken)
    warn_of(problems)
    return quality


def evaluate_source(
    model: Model,
    source: Any,
    *,
    data_root: Path | None = None,
    skip_broken: bool = False,
    progress: DecodeProgress | None = None,
) -> tuple[Quality, tuple[Problem, ...]]:
    """What `evaluate` measures, and what was found in the data; tables are read by the columns of the training."""
    images, problems = open_image_set(
        source,
        model.input_spec,
        model.classes,
        settings=_data_settings(model),
        data_root=data_root,
        skip_broken=skip_broken,
        progress=progress,
    )
    seen = read_seen(model)
    probabilities = model.probabilities(images.images)
    quality = quality_of(probabilities, images)
    if seen is not None:
        correct = probabilities.argmax(axis=1) == images.labels
        quality = replace(quality, overlap=overlap(correct, *seen.find(images.images)))
    return quality, problems


def _data_settings(model: Model) -> DataSettings:
    """The data settings of the recipe in the model's header; the usual ones where it has none that can be read."""
    try:
        return recipe_from_dict(model.header["recipe"]["settings"]).data
    except (KeyError, TypeError, RecipeError):
        return DataSettings()


def _command(
    source: Any,
    recipe: str | Recipe,
    overrides: Sequence[str],
    seed: int,
    folds: int,
    *,
    skip_broken: bool,
    budget: str,
    group_by: str,
) -> str:
    """The command line that does the same; "" where there is none, for arrays and for recipes made in Python."""
    if not isinstance(source, str | Path) or isinstance(recipe, Recipe):
        return ""
    words = ["thaw", "train", str(source), "--recipe", recipe or default_recipe(source, has_budget=bool(budget))]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--seed", str(seed), *(["--folds", str(folds)] if folds else [])]
    words += ["--skip-broken"] if skip_broken else []
    words += ["--budget", budget] if budget else []
    words += ["--group-by", group_by] if group_by else []
    return shell_command(words)


def _finish(events: Generator[Event, None, None], on_event: Callable[[Event], None] | None) -> Run:
    # Closed also when `on_event` raises: else the lock would last as long as somebody keeps the traceback.
    with contextlib.closing(events):
        for event in events:
            if on_event is not None:
                on_event(event)
            if isinstance(event, Finished):
                return Run(path=event.folder.path, metrics=event.metrics, report=event.folder.report)
    raise RunError("the run ended without a result")


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
