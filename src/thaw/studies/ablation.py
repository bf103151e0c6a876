"""`thaw ablate`: arms with equal parameters and image passes, compared over several seeds.

Does each idea of the method pay ("parts"), and how should two submodels become one ("unify")?
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.data.ingest import Progress as DecodeProgress
from thaw.data.prepare import PreparedData, prepare
from thaw.errors import RunError, UsageError
from thaw.evidence.environment import environment
from thaw.evidence.quality import mcnemar, mean_interval
from thaw.files import write_atomically, write_document
from thaw.graph.cost import count_cost
from thaw.graph.lower import lower
from thaw.model.probabilities import network_probabilities
from thaw.quoting import markdown_code, markdown_text
from thaw.recipe.recipe import Recipe
from thaw.run.context import normalization_of, training_context
from thaw.run.folder import RunFolder, locked, read_json
from thaw.training.arms import PLAIN, STUDIES, Arm, ArmTraining, Modules, StudyName, arm_tensors, load_arm
from thaw.training.checkpoint import read_tensors, write_tensors
from thaw.training.compute import LANES, ParallelBranches, precision_name, resolve_device, resolve_precision
from thaw.training.engine import EpochRecord

ARM_VERSION = 1

_TITLES: dict[StudyName, str] = {"parts": "Does each idea pay?", "unify": "How should two submodels become one?"}
_FILES: dict[StudyName, str] = {"parts": "ablation", "unify": "unify"}
_NOTES: dict[StudyName, list[str]] = {
    "parts": ["Every arm had {epochs} passes over the training images; seeds {seeds}."],
    "unify": [
        "Every arm had {epochs} passes over the training images; seeds {seeds}.",
        "A pass trains as many parameters as the plain network has: an epoch of two submodels of that size counts as",
        "two passes, an epoch of one of half the size as half of one. What is frozen is not counted: the images of a",
        "distilled network also go through both of its teachers, forward only.",
    ],
}


@dataclass(frozen=True)
class ArmEpoch:
    """An epoch of one arm is over."""

    arm: str
    seed: int
    record: EpochRecord


@dataclass(frozen=True)
class Compared:
    """The comparison is on disk."""

    result: dict[str, Any]
    page: Path


def ablate(  # noqa: PLR0913 - the options of the command
    source: str,
    recipe_name: str,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    study: StudyName = "parts",
    out: Path,
    device: str,
    data_root: Path | None,
    command: str,
    progress: DecodeProgress | None = None,
) -> Iterator[ArmEpoch | Compared]:
    """For each seed train every arm and then open the test set; compare, and write a page and its figures into `out`.

    They are called ablation.md and .json, or unify.md and .json. An arm that is trained already is taken from `out`, so
    a run that was stopped goes on with the arm it was at.

    Raises:
        UsageError: for a recipe that the arms of the study cannot be made of.
        RunError: when `out` holds the arms of another source or recipe, or cannot be written.
    """
    resolve_device(device)
    _check_recipe(recipe, study)
    normalization = normalization_of(recipe, device)
    arms, folder = STUDIES[study], RunFolder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write in {out}: {error.strerror or error}\nchoose another folder with --out") from error
    outcomes: dict[str, list[npt.NDArray[np.bool_]]] = {arm.name: [] for arm in arms}
    costs: dict[str, dict[str, int]] = {}
    name = ""
    with locked(folder):
        for seed in seeds:
            data = prepare(source, recipe.data, seed=seed, data_root=data_root, progress=progress)
            plan = {
                "version": ARM_VERSION,
                "source": source,
                "recipe": recipe.as_dict(),
                "normalization": normalization,
            }
            _check_plan(folder, plan, data, seed)
            trained = yield from _train_arms(arms, out, recipe, data, seed, device, normalization)
            name, test = data.name, data.test.open()
            for arm, modules in trained.items():
                predicted = network_probabilities(modules, test.images, data.input_spec).argmax(axis=1)
                outcomes[arm].append(predicted == test.labels)
                costs[arm] = _costs(modules, data)
        result = _compare(arms, outcomes, costs, seeds) | {
            "study": study,
            "command": command,
            "dataset": name,
            "recipe": recipe_name,
            "seeds": list(seeds),
            "epochs": sum(recipe.stage_epochs().values()),
            "stages": recipe.stage_epochs(),
            "precision": precision_name(resolve_precision(recipe.compute.precision, resolve_device(device))),
            "normalization": normalization,
            "environment": environment(resolve_device(device).type),
        }
        write_document(out / f"{_FILES[study]}.json", result)
        write_atomically(out / f"{_FILES[study]}.md", page(result))
    yield Compared(result, out / f"{_FILES[study]}.md")


def _check_recipe(recipe: Recipe, study: StudyName) -> None:
    """Refuse a recipe that the arms of a study cannot be made of."""
    if recipe.method != "two-stage" or recipe.unify.join != "concatenate":
        raise UsageError(
            f"method {recipe.method}, unify.join {recipe.unify.join}: arms are made of a recipe for the two stages "
            "that concatenates; the other ways are arms of --study unify"
        )
    if study == "unify" and recipe.dual.epochs < 2:
        raise UsageError(
            f"dual.epochs {recipe.dual.epochs}: expected at least 2, since submodels that are averaged or distilled "
            "train for half of them"
        )


def _costs(modules: Modules, data: PreparedData) -> dict[str, int]:
    """Parameters and multiply-accumulates of all modules together."""
    input_spec, classes = data.input_spec, len(data.train.classes)
    every = [
        count_cost(lower(module, shape=input_spec.shape, mean=input_spec.mean, std=input_spec.std, classes=classes))
        for module in modules
    ]
    return {"parameters": sum(cost.parameters for cost in every), "macs": sum(cost.macs for cost in every)}


def _train_arms(
    arms: Sequence[Arm],
    out: Path,
    recipe: Recipe,
    data: PreparedData,
    seed: int,
    device: str,
    normalization: str,
) -> Generator[ArmEpoch, None, dict[str, Modules]]:
    trained: dict[str, Modules] = {}
    with ParallelBranches(LANES, resolve_device(device)) as lanes:
        setting = training_context(data, recipe, seed, device, lanes, normalization=normalization)
        training = ArmTraining(recipe.trainer_settings(), setting)
        for arm in arms:
            path = out / f"seed{seed}-{arm.name}.safetensors"
            if path.is_file():
                modules = training.skeleton(arm)
                load_arm(modules, read_tensors(path, version=ARM_VERSION)[0])
            else:
                for record in training.train(arm):
                    yield ArmEpoch(arm.name, seed, record)
                modules = training.modules
                write_tensors(path, arm_tensors(modules), {"version": ARM_VERSION, "arm": arm.name, "seed": seed})
            trained[arm.name] = modules
    return trained


def _check_plan(folder: RunFolder, plan: dict[str, Any], data: PreparedData, seed: int) -> None:
    """Refuse to mix arms of different sources or recipes in one folder."""
    path = folder.path / f"seed{seed}.json"
    plan = json.loads(json.dumps(plan | {"fingerprint": data.fingerprint}))
    if path.is_file() and read_json(path) != plan:
        raise RunError(f"{folder.path} holds arms of another source or recipe; choose another folder with --out")
    write_document(path, plan)


def _compare(
    arms: Sequence[Arm],
    outcomes: dict[str, list[npt.NDArray[np.bool_]]],
    costs: dict[str, dict[str, int]],
    seeds: Sequence[int],
) -> dict[str, Any]:
    plain = outcomes[PLAIN]
    found = []
    for arm in arms:
        correct = outcomes[arm.name]
        accuracies = [float(seed.mean()) for seed in correct]
        differences = [float(a.mean() - b.mean()) for a, b in zip(correct, plain, strict=True)]
        several = len(seeds) > 1
        mean, half = mean_interval(accuracies) if several else (accuracies[0], None)
        difference, difference_half = mean_interval(differences) if several else (differences[0], None)
        tests = [mcnemar(a, b).as_dict() for a, b in zip(correct, plain, strict=True)] if arm.name != PLAIN else []
        found.append(
            {
                **dataclasses.asdict(arm),
                "views": list(arm.views),
                **costs[arm.name],
                "accuracies": accuracies,
                "mean": mean,
                "ci95_half_width": half,
                "difference_to_plain": difference,
                "difference_ci95_half_width": difference_half,
                "mcnemar": tests,
            }
        )
    return {"arms": found, "test_count": len(plain[0])}


def page(result: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    machine = result["environment"]
    study: StudyName = result["study"]
    notes = [note.format(epochs=result["epochs"], seeds=", ".join(map(str, result["seeds"]))) for note in _NOTES[study]]
    versions = f"Python {machine['python']}, torch {machine['torch']}"
    hardware = markdown_text(f"{machine['cpu']}, {machine['cores']} cores")
    columns = ["arm", "what it is", "parameters", "MACs", "test accuracy", "difference to plain"]
    columns.append("McNemar against plain, p by seed")
    lines = [
        f"# {_TITLES[study]} {markdown_text(result['dataset'])}",
        "",
        f"Made by {markdown_code(result['command'])}.",
        *notes,
        f"The test set ({result['test_count']:,} images) was opened after all arms of a seed were trained.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + len(columns) * "---|",
    ]
    for arm in result["arms"]:
        accuracy = _plus_minus(arm["mean"], arm["ci95_half_width"])
        p_values = ", ".join(f"{test['p_value']:.2g} ({test['only_a']}:{test['only_b']})" for test in arm["mcnemar"])
        lines.append(
            f"| {arm['name']} | {arm['question']} | {arm['parameters']:,} | {arm['macs']:,} | {accuracy} "
            f"| {'' if arm['name'] == PLAIN else _points(arm)} | {p_values} |"
        )
    lines += [
        "",
        "± is half of the 95 % Student-t interval over the seeds; differences are paired by seed, in points.",
        "In brackets: test images that only this arm got right, and that only the plain network got right.",
        "",
        f"Machine: {hardware}; {versions}; convolutions in {result['precision']}.",
    ]
    return "\n".join(lines) + "\n"


def _plus_minus(mean: float, half: float | None) -> str:
    return f"{mean:.2%}" + (f" ± {half:.2%}" if half is not None else "")


def _points(arm: dict[str, Any]) -> str:
    half = arm["difference_ci95_half_width"]
    return f"{100 * arm['difference_to_plain']:+.2f}" + (f" ± {100 * half:.2f}" if half is not None else "")
