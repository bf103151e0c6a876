"""`thaw ablate`: compares arms of equal size with equal numbers of image passes, over several seeds.

The study "parts" measures the effect of every part of the method; "unify" compares ways to turn two submodels into one.
Every arm and seed is an ordinary run with its own folder: report, int8 network, and the command to train it again.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.data.ingest import Progress as DecodeProgress
from thaw.data.prepare import prepare
from thaw.errors import RunError, UsageError
from thaw.evidence.quality import mcnemar
from thaw.model.model import Model
from thaw.quoting import markdown_code, markdown_text, shown
from thaw.recipe.recipe import load_recipe
from thaw.run.events import Event
from thaw.studies.arms import PLAIN, Arm, StudyName, arms_of, overrides_between
from thaw.studies.runs import (
    RunStarted,
    Study,
    StudyRun,
    checked_seeds,
    mean_over_seeds,
    read_runs,
    study_command,
    study_run,
    train_runs,
    write_study,
)
from thaw.training.compute import resolve_device

Outcomes = npt.NDArray[np.bool_]
"""Whether each test image was classified correctly, bool [N]."""

_TITLES: dict[StudyName, str] = {"parts": "Does each idea pay?", "unify": "How should two submodels become one?"}
_FILES: dict[StudyName, str] = {"parts": "ablation", "unify": "unify"}
_NOTES: dict[StudyName, list[str]] = {
    "parts": ["Every arm had {epochs} passes over the training images; seeds {seeds}."],
    "unify": [
        "Every arm had {epochs} passes over the training images; seeds {seeds}.",
        "A pass trains as many parameters as the plain network has: an epoch of two submodels of that size counts as",
        "two passes, an epoch of one of half the size as half of one. Frozen units are not counted: the images of a",
        "distilled network also go through both of its teachers, forward only.",
    ],
}


def ablate(  # noqa: PLR0913 - the options of the command
    source: str,
    recipe: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    *,
    study: StudyName = "parts",
    out: Path | None,
    device: str,
    data_root: Path | None,
    progress: DecodeProgress | None = None,
) -> Generator[Event | RunStarted, None, Study]:
    """Train a run per arm and seed in `out`, and write the comparison there: ablation.md and .json, or unify.md.

    Finished runs are not trained again, so the same call resumes an interrupted study. `out` is
    runs/ablate-<source> or runs/unify-<source> by default.

    Raises:
        UsageError: for a recipe from which the arms cannot be made, an unknown study or invalid seeds.
        RunError: if `out` holds runs of another source or recipe, or cannot be written.
    """
    if study not in _FILES:
        raise UsageError(f"study {shown(study)}: expected one of {', '.join(_FILES)}")
    seeds = checked_seeds(seeds)
    if out is None:
        out = Path("runs") / f"{'ablate' if study == 'parts' else study}-{Path(source).resolve().name}"
    name, base = load_recipe(recipe, overrides)
    resolve_device(device)
    data = prepare(source, base.data, seed=seeds[0], data_root=data_root, progress=progress)
    arms = arms_of(study, base, data.input_spec.shape, len(data.train.classes))

    def run_of(arm: Arm, seed: int) -> StudyRun:
        return study_run(
            title=f"{arm.name}, seed {seed}: {arm.description}",
            path=out / f"{arm.name}-seed{seed}",
            source=source,
            recipe_given=recipe,
            recipe_name=name,
            recipe=arm.recipe,
            overrides=(*overrides, *overrides_between(base, arm.recipe)),
            seed=seed,
            device=device,
            data_root=data_root,
        )

    runs = {arm.name: [run_of(arm, seed) for seed in seeds] for arm in arms}
    # All arms of a seed run before the next seed.
    yield from train_runs([run for of_seed in zip(*runs.values(), strict=True) for run in of_seed])
    found = read_runs([run for of_arm in runs.values() for run in of_arm])
    metrics = {arm: found[at * len(seeds) : (at + 1) * len(seeds)] for at, arm in enumerate(runs)}
    outcomes = _outcomes(runs, metrics, source, data_root)
    result = {
        "study": study,
        "command": study_command(["ablate", source, "--recipe", recipe, "--study", study], overrides, seeds, device),
        "dataset": data.name,
        "recipe": name,
        "seeds": list(seeds),
        "epochs": sum(base.stage_epochs().values()),
        "stages": base.stage_epochs(),
        "arms": [_compare(arm, metrics, outcomes) for arm in arms],
        "test_count": found[0]["test"]["count"],
        **{key: found[0][key] for key in ("precision", "kernels", "environment")},
    }
    return write_study(out / _FILES[study], result, page(result))


def _outcomes(
    runs: Mapping[str, Sequence[StudyRun]],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    source: str,
    data_root: Path | None,
) -> dict[str, list[Outcomes]]:
    """Return whether each run's model classifies each test image correctly, by arm and seed."""
    outcomes: dict[str, list[Outcomes]] = {arm: [] for arm in runs}
    for at, first in enumerate(runs[PLAIN]):
        data = prepare(source, first.request.recipe.data, seed=first.request.seed, data_root=data_root)
        test = data.test.open()
        for arm, of_arm in runs.items():
            if metrics[arm][at]["data"]["fingerprint"] != data.fingerprint:
                raise RunError(
                    f"{of_arm[at].path} was trained on other data\nchoose another folder with --out", code="run-study"
                )
            predicted = Model.load(of_arm[at].path).probabilities(test.images).argmax(axis=1)
            outcomes[arm].append(predicted == test.labels)
    return outcomes


def _compare(
    arm: Arm, metrics: Mapping[str, Sequence[Mapping[str, Any]]], outcomes: Mapping[str, Sequence[Outcomes]]
) -> dict[str, Any]:
    """Return the entry of an arm: its results, and its differences from the plain network, paired by seed."""
    own, plain = metrics[arm.name], metrics[PLAIN]
    accuracies = [float(each["test"]["accuracy"]) for each in own]
    int8 = [float(each["int8"]["test"]["accuracy"]) for each in own]
    differences = [mine - each["test"]["accuracy"] for mine, each in zip(accuracies, plain, strict=True)]
    mean, half = mean_over_seeds(accuracies)
    difference, difference_half = mean_over_seeds(differences)
    pairs = [] if arm.name == PLAIN else zip(outcomes[arm.name], outcomes[PLAIN], strict=True)
    return {
        "name": arm.name,
        "description": arm.description,
        "overrides": own[0]["overrides"],
        "stages": arm.recipe.stage_epochs(),
        "parameters": own[0]["parameters"],
        "macs": own[0]["macs"],
        "accuracies": accuracies,
        "mean": mean,
        "ci95_half_width": half,
        "int8_accuracies": int8,
        "int8_mean": mean_over_seeds(int8)[0],
        "difference_to_plain": difference,
        "difference_ci95_half_width": difference_half,
        "mcnemar": [mcnemar(mine, other).as_dict() for mine, other in pairs],
    }


def page(result: dict[str, Any]) -> str:
    """Return the comparison as Markdown."""
    machine = result["environment"]
    study: StudyName = result["study"]
    notes = [note.format(epochs=result["epochs"], seeds=", ".join(map(str, result["seeds"]))) for note in _NOTES[study]]
    versions = f"Python {machine['python']}, torch {machine['torch']}"
    hardware = markdown_text(f"{machine['cpu']}, {machine['cores']} cores")
    columns = ["arm", "description", "parameters", "MACs", "test accuracy", "int8 (mean)", "difference from plain"]
    columns.append("McNemar against plain, p by seed")
    lines = [
        f"# {_TITLES[study]} {markdown_text(result['dataset'])}",
        "",
        f"Made by {markdown_code(result['command'])}.",
        *notes,
        f"Each run opened its test set ({result['test_count']:,} images) after training, and all choices were made on",
        "validation images. The folder of each run is called after its arm and seed, and holds its report.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + len(columns) * "---|",
    ]
    for arm in result["arms"]:
        accuracy = _plus_minus(arm["mean"], arm["ci95_half_width"])
        p_values = ", ".join(f"{test['p_value']:.2g} ({test['only_a']}:{test['only_b']})" for test in arm["mcnemar"])
        lines.append(
            f"| {arm['name']} | {arm['description']} | {arm['parameters']:,} | {arm['macs']:,} | {accuracy} "
            f"| {arm['int8_mean']:.2%} | {'' if arm['name'] == PLAIN else _points(arm)} | {p_values} |"
        )
    lines += [
        "",
        "± is half of the 95 % Student-t interval over the seeds. Differences are paired by seed, in points.",
        "In parentheses: test images that only this arm, or only the plain network, classified correctly.",
        "",
        f"Machine: {hardware}; {versions}; convolutions in {result['precision']}.",
    ]
    return "\n".join(lines) + "\n"


def _plus_minus(mean: float, half: float | None) -> str:
    return f"{mean:.2%}" + (f" ± {half:.2%}" if half is not None else "")


def _points(arm: dict[str, Any]) -> str:
    half = arm["difference_ci95_half_width"]
    return f"{100 * arm['difference_to_plain']:+.2f}" + (f" ± {100 * half:.2f}" if half is not None else "")
