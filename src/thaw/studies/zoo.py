"""`thaw zoo add`: from finished runs of one recipe to a model that ships with the package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.sources import NAMES
from thaw.errors import MissingDependencyError, ModelFileError, RunError, UsageError
from thaw.evidence.quality import mean_interval
from thaw.export.to_litert import write_litert
from thaw.files import SEAL, parse_object, write_atomically, write_document
from thaw.graph.cost import STACK_BYTES
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.model.metrics_file import read_metrics
from thaw.model.zoo import CARD_FILE, ZOO_PREFIX, zoo_root
from thaw.model.zoo_card import Mean, Measured, SeedResult, ZooCard, card_of, read_card
from thaw.quoting import shell_command, shown
from thaw.recipe.recipe import Recipe, load_recipe, recipe_names
from thaw.run.folder import RunFolder
from thaw.run.run import Run

RESERVED = ("add", "list", "plot", "seal", "show")
"""Words of the command line, which no model may be called."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A finished run, with what run.json and metrics.json say."""

    folder: RunFolder
    opened: Run
    metrics: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> _Finished:
        folder = RunFolder(path.expanduser())
        if not folder.metrics.is_file():
            raise RunError(f"{path} is no finished run: it holds no metrics.json\ngive folders that thaw train wrote")
        return cls(folder=folder, opened=Run.open(folder.path), metrics=read_metrics(folder.metrics))

    @property
    def recipe(self) -> Recipe:
        return self.opened.request.recipe

    @property
    def normalization(self) -> str:
        return str(self.metrics["normalization"])

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
        """What the model that is chosen has most of: accuracy on validation images, in float32, then in int8."""
        validation = self.metrics["int8"]["validation"]["accuracy"]
        return self.metrics["validation"]["accuracy"], validation, -self.metrics["seed"]


def add_model(name: str, paths: Sequence[Path], *, out: Path | None = None) -> ZooCard:
    """Put a model into the zoo: of runs that differ in nothing but their seed, the one best on validation images.

    Args:
        name: that it will have, as in "zoo:NAME".
        paths: the runs' folders.
        out: the zoo's folder; by default that of the package, for whoever works in a checkout.

    Raises:
        UsageError: for a name that cannot be one, or no run.
        RunError: for a run that is not finished or that others could not repeat, for runs that differ in more than
            their seed, or a folder that cannot be written.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"name {shown(name)}: expected lower case letters, digits and dashes, and not {', '.join(RESERVED)}"
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
        # The card makes the folder an entry. It is removed first and written last, so that a kill in between leaves
        # no entry, and never a model beside the card of another.
        (folder / CARD_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}\nchoose another folder with --out") from error
    for source in (best.folder.model, best.folder.int8):
        write_atomically(folder / source.name, source.read_bytes())
    write_document(folder / CARD_FILE, card.as_dict())
    return read_card(folder)


def seal_card(name: str, *, out: Path | None = None) -> ZooCard:
    """Give an edited card.json a new digest, once it is a card: for whoever corrects one by hand.

    Args:
        name: of the model.
        out: the zoo's folder; by default that of the package.

    Raises:
        ModelFileError: when there is no card, or what was edited cannot be one.
    """
    folder = (zoo_root() if out is None else out.expanduser()) / name
    path = folder / CARD_FILE
    try:
        content = parse_object(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not a JSON object"
        raise ModelFileError(f"cannot read {path}: {reason}") from error
    content.pop(SEAL, None)
    card_of(content, path)
    write_document(path, content)
    return read_card(folder)


def _check_same(runs: Sequence[_Finished]) -> None:
    """Refuse runs that differ in more than their seed."""
    first = runs[0]
    for other in runs[1:]:
        for what in ("recipe", "overrides", "dataset"):
            if other.metrics[what] != first.metrics[what]:
                mine, its = first.metrics[what], other.metrics[what]
                raise RunError(
                    f"{first.folder.path} has {what} {shown(mine)}, and {other.folder.path} {shown(its)}\n"
                    "give runs that differ in nothing but their seed"
                )
        if other.recipe != first.recipe:
            raise RunError(
                f"the recipes of {first.folder.path} and {other.folder.path} differ in their settings\n"
                "give runs that differ in nothing but their seed"
            )
        if other.normalization != first.normalization:
            raise RunError(
                f"{first.folder.path} was trained with normalization {first.normalization}, and {other.folder.path} "
                f"with {other.normalization}\ngive runs that differ in nothing but their seed"
            )
        if other.metrics["data"]["fingerprint"] != first.metrics["data"]["fingerprint"]:
            raise RunError(
                f"{first.folder.path} and {other.folder.path} were trained on different data\n"
                "give runs that differ in nothing but their seed"
            )
    seeds = [run.metrics["seed"] for run in runs]
    if len(set(seeds)) != len(seeds):
        raise RunError(f"two runs have the same seed: {', '.join(map(str, seeds))}\ngive each run once")


def _check_repeatable(run: _Finished) -> None:
    """Refuse what nobody else could make again: other data than the named sets, a recipe that does not ship."""
    source, recipe = run.opened.request.source, run.metrics["recipe"]
    if source not in NAMES:
        raise RunError(f"{run.folder.path} was trained on {source}: expected one of {', '.join(NAMES)}")
    if recipe not in recipe_names():
        raise RunError(
            f"{run.folder.path} was trained with recipe {shown(recipe)}, which does not ship: expected one of "
            f"{', '.join(recipe_names())}"
        )
    _, shipped = load_recipe(recipe, run.metrics["overrides"])
    mine, its = ({**each.as_dict(), "description": ""} for each in (run.recipe, shipped))
    differing = [section for section in its if mine.get(section) != its[section]]
    if differing:
        raise RunError(
            f"recipe {recipe} has changed since {run.folder.path} was trained: {', '.join(differing)}\n"
            "train with the recipe as it is now"
        )


def _card(name: str, best: _Finished, results: Sequence[SeedResult]) -> ZooCard:
    metrics, request, graph = best.metrics, best.opened.request, best.opened.model.graph("int8")
    overrides = tuple(metrics["overrides"])
    words = ["thaw", "train", str(request.source), "--recipe", metrics["recipe"]]
    words += [word for override in overrides for word in ("--set", override)]
    return ZooCard(
        name=name,
        dataset=str(request.source),
        classes=best.opened.model.classes,
        input=best.opened.model.input_spec.as_dict(),
        parameters=metrics["parameters"],
        macs=metrics["macs"],
        test=Measured.of(metrics["test"]),
        int8=Measured.of(metrics["int8"]["test"]),
        seeds=tuple(results),
        mean=_mean([each.accuracy for each in results]),
        int8_mean=_mean([each.int8_accuracy for each in results]),
        flash_bytes=constant_bytes(graph),
        ram_bytes=plan_memory(graph).arena_bytes + STACK_BYTES,
        litert_bytes=_litert_bytes(best.opened),
        recipe=metrics["recipe"],
        overrides=overrides,
        seed=metrics["seed"],
        command=shell_command([*words, "--seed", str(metrics["seed"])]),
        fingerprint=metrics["data"]["fingerprint"],
        device=metrics["device"],
        precision=metrics["precision"],
        normalization=best.normalization,
        seconds=round(metrics["seconds"], 1),
        environment=metrics["environment"],
    )


def _mean(accuracies: Sequence[float]) -> Mean:
    if len(accuracies) == 1:
        return Mean(mean=accuracies[0], half_width=None)
    mean, half = mean_interval(accuracies)
    return Mean(mean=mean, half_width=half)


def _litert_bytes(run: Run) -> int | None:
    try:
        return len(write_litert(run.model.graph("int8"), run.model.card()))
    except MissingDependencyError:
        return None


def describe(card: ZooCard) -> list[tuple[str, str]]:
    """A whole card as (what, value) lines for people."""
    height, width, channels = (card.input[key] for key in ("height", "width", "channels"))
    machine = card.environment
    litert = "" if card.litert_bytes is None else f"; {card.litert_bytes:,} as a LiteRT file"
    return [
        ("model", ZOO_PREFIX + card.name),
        ("data set", f"{card.dataset}, {len(card.classes)} classes, input {height}x{width}x{channels}"),
        ("test accuracy", _measured(card.test)),
        ("in int8", _measured(card.int8)),
        ("mean of seeds", f"{_interval(card.mean)}; in int8 {_interval(card.int8_mean)}"),
        *((f"seed {each.seed}", _seed(each, chosen=each.seed == card.seed)) for each in card.seeds),
        ("parameters", f"{card.parameters:,}"),
        ("multiply-accumulates", f"{card.macs:,}"),
        ("int8 constants", f"{card.flash_bytes:,} bytes in the C{litert}"),
        ("int8 RAM", f"{card.device_ram_bytes:,} bytes: arena and stack {card.ram_bytes:,}, the rest image and scores"),
        ("made by", card.command),
        (
            "trained on",
            f"{machine['cpu']}, {card.device}, {card.precision}, {_normalized(card)}, in {card.seconds:,.0f} s",
        ),
        ("with", f"thaw {machine['thaw']}, Python {machine['python']}, torch {machine['torch']}; {machine['os']}"),
        ("data fingerprint", card.fingerprint),
    ]


def _normalized(card: ZooCard) -> str:
    return "normalization fused" if card.normalization == "fused" else f"normalization by {card.normalization}"


def interval_half(card: ZooCard) -> str:
    """The mean over seeds with its interval, or with one seed this model's accuracy, as a table shows it."""
    return _interval(card.mean)


def _measured(found: Measured) -> str:
    return f"{found.accuracy:.2%} (95 % interval {found.low:.2%} to {found.high:.2%}, {found.count:,} images)"


def _interval(mean: Mean) -> str:
    return f"{mean.mean:.2%}" + ("" if mean.half_width is None else f" ± {mean.half_width:.2%}")


def _seed(each: SeedResult, *, chosen: bool) -> str:
    found = (
        f"{each.accuracy:.2%}; in int8 {each.int8_accuracy:.2%}; on validation images {each.validation_accuracy:.2%}"
    )
    return found + (" (this model)" if chosen else "")
