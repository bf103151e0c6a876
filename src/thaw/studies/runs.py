"""The runs of a study: train the missing ones, resume interrupted ones, and read the finished ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.errors import RunError, UsageError
from thaw.evidence.quality import mean_interval
from thaw.files import write_atomically, write_document
from thaw.model.metrics_file import read_metrics
from thaw.quoting import shell_command, shown
from thaw.recipe.recipe import Recipe
from thaw.run.events import Event
from thaw.run.folder import RunFolder, read_json
from thaw.run.pipeline import resume_run, start_run
from thaw.run.request import TrainRequest

# Runs with different values of these cannot be compared or averaged.
_COMPARABLE = ("device", "precision", "kernels")


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A run of a study: title, folder and request."""

    title: str
    path: Path
    request: TrainRequest


@dataclass(frozen=True)
class RunStarted:
    """A run of the study starts or is resumed."""

    title: str
    path: Path


@dataclass(frozen=True, kw_only=True, repr=False)
class Study:
    """A finished comparison of runs.

    Attributes:
        result: its figures, as in the JSON file next to the page.
        page: the comparison as Markdown. The folder also contains the folders of the runs.
    """

    result: dict[str, Any]
    page: Path

    def __repr__(self) -> str:
        return f"Study({str(self.page)!r}, seeds {', '.join(map(str, self.result['seeds']))})"


def study_run(  # noqa: PLR0913 - what defines a run, by keyword only
    *,
    title: str,
    path: Path,
    source: str,
    recipe_given: str,
    recipe_name: str,
    recipe: Recipe,
    overrides: Sequence[str] = (),
    seed: int,
    device: str,
    data_root: Path | None,
) -> StudyRun:
    """Return a run that trains `recipe` on `source`.

    Args:
        title: the run, for the user.
        path: its folder.
        source: a name, path or Hub id.
        recipe_given: the recipe's name or file, for the run's command.
        recipe_name: the recipe's name, as `load_recipe` returns it.
        recipe: the recipe with the overrides.
        overrides: settings that the run's command replaces in `recipe_given`.
        seed: random seed.
        device: "auto", "cpu" or "cuda".
        data_root: folder that holds the named data sets.
    """
    request = TrainRequest(
        source=source,
        recipe_name=recipe_name,
        recipe=recipe,
        seed=seed,
        device=device,
        data_root=data_root,
        overrides=tuple(overrides),
        command=train_command(source, recipe_given, overrides, seed),
    )
    return StudyRun(title=title, path=path, request=request)


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of a study.

    Raises:
        UsageError: unless they are distinct integers of at least 0, and at least one.
    """
    are_seeds = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not are_seeds or not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds {shown(seeds)}: expected distinct integers of at least 0, such as 0, 1, 2")
    return tuple(seeds)


def train_runs(runs: Sequence[StudyRun]) -> Iterator[Event | RunStarted]:
    """Train every run that is not finished. An interrupted run resumes after its last epoch.

    Raises:
        RunError: if a folder holds another run.
    """
    for run in runs:
        is_begun = RunFolder(run.path).request.is_file()
        if is_begun:
            _check_same(run)
        if RunFolder(run.path).metrics.is_file():
            continue
        yield RunStarted(run.title, run.path)
        if is_begun:
            yield from resume_run(run.path, data_root=run.request.data_root)
        else:
            yield from start_run(run.request, out=run.path)


def read_runs(runs: Sequence[StudyRun]) -> list[dict[str, Any]]:
    """Return the metrics of finished runs, in order.

    Raises:
        RunError: if a run cannot be read, or was computed in another way than the first one.
    """
    found = [read_metrics(RunFolder(run.path).metrics) for run in runs]
    for run, metrics in zip(runs, found, strict=True):
        for name in _COMPARABLE:
            if metrics[name] != found[0][name]:
                raise RunError(
                    f"{run.path} has {name} {shown(metrics[name])}, and {runs[0].path} has {shown(found[0][name])}\n"
                    "remove one of them, then run the same command again",
                    code="run-study",
                )
    return found


def write_study(path: Path, result: dict[str, Any], page: str) -> Study:
    """Write the figures to `path`.json and the page to `path`.md, atomically."""
    write_document(path.with_name(f"{path.name}.json"), result)
    written = path.with_name(f"{path.name}.md")
    write_atomically(written, page)
    return Study(result=result, page=written)


def mean_over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and half of its 95 % Student-t interval; None for one seed."""
    return mean_interval(values) if len(values) > 1 else (values[0], None)


def study_command(words: Sequence[str], overrides: Sequence[str], seeds: Sequence[int], device: str) -> str:
    """Return the command line of a study; `words` are its name, its argument and its own options."""
    chosen = ["--device", device] if device != "auto" else []
    return shell_command(["thaw", *words, *_settings(overrides), "--seeds", ",".join(map(str, seeds)), *chosen])


def train_command(source: str, recipe: str, overrides: Sequence[str], seed: int) -> str:
    """Return the command line that trains one run."""
    return shell_command(["thaw", "train", source, "--recipe", recipe, *_settings(overrides), "--seed", str(seed)])


def _settings(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _check_same(run: StudyRun) -> None:
    """Check that the run in a folder has the same source, seed and recipe."""
    recorded, wanted = read_json(RunFolder(run.path).request), run.request.as_dict()
    for name in ("source", "seed", "recipe"):
        if recorded.get(name) != wanted[name]:
            raise RunError(
                f"{run.path} contains a run with another {name}\nchoose another folder with --out", code="run-study"
            )
