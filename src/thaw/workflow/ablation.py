"""`thaw ablate`: does each idea of the method pay? Arms with equal parameters and image passes, over several seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.data.prepare import PreparedData, prepare
from thaw.errors import RunError
from thaw.evidence.environment import environment
from thaw.evidence.quality import mcnemar, mean_interval
from thaw.files import write_atomically
from thaw.training.arms import ARMS, PLAIN, ArmTraining, Modules, arm_tensors, count_parameters, load_arm
from thaw.training.checkpoint import read_tensors, write_tensors
from thaw.training.compute import Lanes, precision_name, resolve_device, resolve_precision
from thaw.training.engine import EpochRecord
from thaw.training.model import network_probabilities
from thaw.workflow.pipeline import DecodeProgress, training_setting
from thaw.workflow.recipe import Recipe
from thaw.workflow.run_folder import RunFolder, locked, read_json

ARM_VERSION = 1


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
    out: Path,
    device: str,
    data_root: Path | None,
    command: str,
    progress: DecodeProgress | None = None,
) -> Iterator[ArmEpoch | Compared]:
    """For each seed train every arm and then open the test set; compare, and write `out`/ablation.md and .json.

    An arm that is trained already is taken from `out`, so a run that was stopped goes on with the arm it was at.

    Raises:
        RunError: when `out` holds the arms of another source or recipe, or cannot be written.
    """
    resolve_device(device)
    folder = RunFolder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write in {out}: {error.strerror or error}\nchoose another folder with --out") from error
    outcomes: dict[str, list[npt.NDArray[np.bool_]]] = {arm.name: [] for arm in ARMS}
    parameters: dict[str, int] = {}
    name = ""
    with locked(folder):
        for seed in seeds:
            data = prepare(source, recipe.data, seed=seed, data_root=data_root, progress=progress)
            _check_plan(folder, {"version": ARM_VERSION, "source": source, "recipe": recipe.as_dict()}, data, seed)
            trained = yield from _train_arms(out, recipe, data, seed, device)
            name, test = data.name, data.test.open()
            for arm, modules in trained.items():
                predicted = network_probabilities(modules, test.images, data.contract).argmax(axis=1)
                outcomes[arm].append(predicted == test.labels)
                parameters[arm] = count_parameters(modules)
        result = _compare(outcomes, parameters, seeds) | {
            "command": command,
            "dataset": name,
            "recipe": recipe_name,
            "seeds": list(seeds),
            "epochs": sum(recipe.stage_epochs().values()),
            "stages": recipe.stage_epochs(),
            "precision": precision_name(resolve_precision(recipe.compute.precision, resolve_device(device))),
            "environment": environment(resolve_device(device).type),
        }
        folder.write_json(out / "ablation.json", result)
        write_atomically(out / "ablation.md", page(result))
    yield Compared(result, out / "ablation.md")


def _train_arms(
    out: Path, recipe: Recipe, data: PreparedData, seed: int, device: str
) -> Generator[ArmEpoch, None, dict[str, Modules]]:
    trained: dict[str, Modules] = {}
    with Lanes(2, resolve_device(device)) as lanes:
        training = ArmTraining(recipe.method_settings(), training_setting(data, recipe, seed, device, lanes))
        for arm in ARMS:
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
    folder.write_json(path, plan)


def _compare(
    outcomes: dict[str, list[npt.NDArray[np.bool_]]], parameters: dict[str, int], seeds: Sequence[int]
) -> dict[str, Any]:
    plain = outcomes[PLAIN]
    arms = []
    for arm in ARMS:
        correct = outcomes[arm.name]
        accuracies = [float(seed.mean()) for seed in correct]
        differences = [float(a.mean() - b.mean()) for a, b in zip(correct, plain, strict=True)]
        several = len(seeds) > 1
        mean, half = mean_interval(accuracies) if several else (accuracies[0], None)
        difference, difference_half = mean_interval(differences) if several else (differences[0], None)
        tests = [mcnemar(a, b).as_dict() for a, b in zip(correct, plain, strict=True)] if arm.name != PLAIN else []
        arms.append(
            {
                **dataclasses.asdict(arm),
                "views": list(arm.views),
                "parameters": parameters[arm.name],
                "accuracies": accuracies,
                "mean": mean,
                "ci95_half_width": half,
                "difference_to_plain": difference,
                "difference_ci95_half_width": difference_half,
                "mcnemar": tests,
            }
        )
    return {"arms": arms, "test_count": len(plain[0])}


def page(result: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    machine, seeds = result["environment"], ", ".join(map(str, result["seeds"]))
    versions = f"Python {machine['python']}, torch {machine['torch']}"
    lines = [
        f"# Does each idea pay? {result['dataset']}",
        "",
        f"Made by `{result['command']}`.",
        f"Every arm had {result['epochs']} passes over the training images; seeds {seeds}.",
        f"The test set ({result['test_count']:,} images) was opened after all arms of a seed were trained.",
        "",
        "| arm | what it is | parameters | test accuracy | difference to plain | McNemar against plain, p by seed |",
        "|---|---|---|---|---|---|",
    ]
    for arm in result["arms"]:
        accuracy = _plus_minus(arm["mean"], arm["ci95_half_width"])
        p_values = ", ".join(f"{test['p_value']:.2g} ({test['only_a']}:{test['only_b']})" for test in arm["mcnemar"])
        lines.append(
            f"| {arm['name']} | {arm['question']} | {arm['parameters']:,} | {accuracy} "
            f"| {'' if arm['name'] == PLAIN else _points(arm)} | {p_values} |"
        )
    lines += [
        "",
        "± is half of the 95 % Student-t interval over the seeds; differences are paired by seed, in points.",
        "In brackets: test images that only this arm got right, and that only the plain network got right.",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores; {versions}; convolutions in {result['precision']}.",
    ]
    return "\n".join(lines) + "\n"


def _plus_minus(mean: float, half: float | None) -> str:
    return f"{mean:.2%}" + (f" ± {half:.2%}" if half is not None else "")


def _points(arm: dict[str, Any]) -> str:
    half = arm["difference_ci95_half_width"]
    return f"{100 * arm['difference_to_plain']:+.2f}" + (f" ± {100 * half:.2f}" if half is not None else "")
