"""Add a model to the zoo: from finished runs that differ only in their seed, the one with the best validation accuracy.

    python bench/zoo_add.py mnist-15k runs/mnist-15k-0 runs/mnist-15k-1 runs/mnist-15k-2

The entry goes to src/thaw/zoo/NAME/, or to another folder with --out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.sources import NAMES
from thaw.errors import MissingDependencyError, RunError, ThawError, UsageError
from thaw.export.to_litert import write_litert
from thaw.files import write_atomically, write_document
from thaw.graph.cost import STACK_BYTES
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.model.metrics_file import read_metrics
from thaw.model.zoo import CARD_FILE, zoo_root
from thaw.model.zoo_card import Mean, Measured, SeedResult, ZooCard, read_card
from thaw.quoting import shown
from thaw.recipe.recipe import Recipe, load_recipe, recipe_names
from thaw.run.folder import RunFolder
from thaw.run.run import Run
from thaw.studies.runs import mean_over_seeds, train_command

RESERVED = ("list", "show")
"""Words of the command line, which are not allowed as names of models."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}", re.ASCII)
_SAME = "all runs of a model must be the same except for their seed"


def main() -> None:
    """Add one model."""
    parser = argparse.ArgumentParser(prog="bench/zoo_add.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="name of the model, as in zoo:NAME")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--out", type=Path, help="folder of the zoo (default: the one in the package)")
    options = parser.parse_args()
    card = add_model(options.name, options.runs, out=options.out)
    print(f"zoo:{card.name}: seed {card.seed}, accuracy {card.test.accuracy:.2%}, int8 {card.int8.accuracy:.2%}")


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A finished run, with the content of run.json and metrics.json."""

    folder: RunFolder
    opened: Run
    metrics: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> _Finished:
        folder = RunFolder(path.expanduser())
        if not folder.metrics.is_file():
            raise RunError(f"{path} is not a finished run: it has no metrics.json", code="run-zoo")
        return cls(folder=folder, opened=Run.open(folder.path), metrics=read_metrics(folder.metrics))

    @property
    def recipe(self) -> Recipe:
        return self.opened.request.recipe

    @property
    def result(self) -> SeedResult:
        return SeedResult(
            seed=self.metrics["seed"],
            accuracy=self.metrics["test"]["accuracy"],
            int8_accuracy=self.metrics["int8"]["test"]["accuracy"],
            validation_accuracy=self.metrics["validation"]["accuracy"],
        )

    @property
    def rank(self) -> tuple[float, float, int]:
        """The run that is highest becomes the model: by validation accuracy in float32, then in int8."""
        validation = self.metrics["int8"]["validation"]["accuracy"]
        return self.metrics["validation"]["accuracy"], validation, -self.metrics["seed"]


def add_model(name: str, paths: Sequence[Path], *, out: Path | None = None) -> ZooCard:
    """Add a model to the zoo and return its card.

    Args:
        name: name of the model, as in "zoo:NAME".
        paths: folders of runs that differ only in their seed.
        out: folder of the zoo; by default the one in the package.

    Raises:
        UsageError: for an invalid name, or without a run.
        RunError: for a run that is unfinished or not repeatable, runs that differ in more than their seed, or a folder
            that cannot be written.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"name {shown(name)}: expected lower-case letters, digits and dashes, and not {', '.join(RESERVED)}"
        )
    if not paths:
        raise UsageError("no run was given: expected one or more run folders")
    runs = sorted((_Finished.open(path) for path in paths), key=lambda run: run.metrics["seed"])
    _check_same(runs)
    _check_repeatable(runs[0])
    best = max(runs, key=lambda run: run.rank)
    card = _card(name, best, [run.result for run in runs])
    folder = (zoo_root() if out is None else out.expanduser()) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder with a card is an entry. The card is removed first and written last, so that a kill in between leaves
        # no entry, and never a model with the card of another one.
        (folder / CARD_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror}\nchoose another folder with --out", code="run-zoo"
        ) from error
    for source in (best.folder.model, best.folder.int8):
        write_atomically(folder / source.name, source.read_bytes())
    write_document(folder / CARD_FILE, card.as_dict())
    return read_card(folder)


def _check_same(runs: Sequence[_Finished]) -> None:
    """Refuse runs that differ in more than their seed."""
    first = runs[0]
    for other in runs[1:]:
        for what in ("recipe", "overrides", "dataset", "kernels"):
            if other.metrics[what] != first.metrics[what]:
                mine, its = shown(first.metrics[what]), shown(other.metrics[what])
                raise RunError(
                    f"{first.folder.path} has {what} {mine}, {other.folder.path} has {its}\n{_SAME}", code="run-zoo"
                )
        both = f"{first.folder.path} and {other.folder.path}"
        if other.recipe != first.recipe:
            raise RunError(f"the recipes of {both} differ in their settings\n{_SAME}", code="run-zoo")
        if other.metrics["data"]["fingerprint"] != first.metrics["data"]["fingerprint"]:
            raise RunError(f"{both} were trained on different data\n{_SAME}", code="run-zoo")
    seeds = [run.metrics["seed"] for run in runs]
    if len(set(seeds)) != len(seeds):
        raise RunError(f"two runs have the same seed: {', '.join(map(str, seeds))}\ngive each run once", code="run-zoo")


def _check_repeatable(run: _Finished) -> None:
    """Refuse a run that others cannot repeat: it needs a named data set and a recipe that ships."""
    source, recipe = run.opened.request.source, run.metrics["recipe"]
    if source not in NAMES:
        raise RunError(f"{run.folder.path} was trained on {source}: expected one of {', '.join(NAMES)}", code="run-zoo")
    if recipe not in recipe_names():
        raise RunError(
            f"{run.folder.path} was trained with recipe {shown(recipe)}, which does not ship: expected one of "
            f"{', '.join(recipe_names())}",
            code="run-zoo",
        )
    _, shipped = load_recipe(recipe, run.metrics["overrides"])
    mine, its = ({**each.as_dict(), "description": ""} for each in (run.recipe, shipped))
    differing = [section for section in its if mine.get(section) != its[section]]
    if differing:
        raise RunError(
            f"recipe {recipe} has changed since {run.folder.path} was trained: {', '.join(differing)}\n"
            "train again with the current recipe",
            code="run-zoo",
        )


def _card(name: str, best: _Finished, results: Sequence[SeedResult]) -> ZooCard:
    metrics, dataset, graph = best.metrics, str(best.opened.request.source), best.opened.model.graph("int8")
    overrides = tuple(metrics["overrides"])
    mean, half = mean_over_seeds([each.accuracy for each in results])
    int8_mean, int8_half = mean_over_seeds([each.int8_accuracy for each in results])
    return ZooCard(
        name=name,
        dataset=dataset,
        classes=best.opened.model.classes,
        input=best.opened.model.input_spec.as_dict(),
        parameters=metrics["parameters"],
        macs=metrics["macs"],
        test=Measured.of(metrics["test"]),
        int8=Measured.of(metrics["int8"]["test"]),
        seeds=tuple(results),
        mean=Mean(mean=mean, ci95_half_width=half),
        int8_mean=Mean(mean=int8_mean, ci95_half_width=int8_half),
        flash_bytes=constant_bytes(graph),
        ram_bytes=plan_memory(graph).arena_bytes + STACK_BYTES,
        litert_bytes=_litert_bytes(best.opened),
        recipe=metrics["recipe"],
        overrides=overrides,
        seed=metrics["seed"],
        command=train_command(dataset, metrics["recipe"], overrides, metrics["seed"]),
        fingerprint=metrics["data"]["fingerprint"],
        device=metrics["device"],
        precision=metrics["precision"],
        kernels=str(metrics["kernels"]),
        seconds=round(metrics["seconds"], 1),
        environment=metrics["environment"],
    )


def _litert_bytes(run: Run) -> int | None:
    try:
        return len(write_litert(run.model.graph("int8"), run.model.card()))
    except MissingDependencyError:
        return None


if __name__ == "__main__":
    try:
        main()
    except ThawError as error:
        raise SystemExit(f"error: {error}") from None
