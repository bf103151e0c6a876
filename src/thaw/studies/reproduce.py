"""`thaw reproduce`: the paper's data sets over several seeds, compared with the published results."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.ingest import Progress as DecodeProgress
from thaw.data.prepare import prepare
from thaw.errors import UsageError
from thaw.quoting import listed, markdown_code, markdown_text
from thaw.recipe.recipe import load_recipe
from thaw.run.events import Event
from thaw.run.folder import RunFolder
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

RECIPE = "paper"


@dataclass(frozen=True)
class Published:
    """A row of the paper's results (arXiv 2501.15547): test accuracy (0 to 1) and parameters."""

    title: str
    accuracy: float
    parameters: int


PUBLISHED: dict[str, Published] = {
    "mnist": Published("MNIST", 0.99, 14_862),
    "fashion_mnist": Published("Fashion-MNIST", 0.89, 14_862),
    "cifar10": Published("CIFAR-10", 0.65, 19_622),
}


def reproduce(
    datasets: Sequence[str] | None,
    seeds: Sequence[int],
    *,
    out: Path,
    device: str,
    data_root: Path | None,
    progress: DecodeProgress | None = None,
) -> Generator[Event | RunStarted, None, Study]:
    """Train the missing runs, one folder per data set and seed under `out`, and write the table there.

    Raises:
        UsageError: for a data set that is not in the paper, or invalid seeds.
    """
    unknown = [name for name in datasets or () if name not in PUBLISHED]
    if unknown:
        raise UsageError(f"data set {listed(unknown)}: expected some of {', '.join(PUBLISHED)}")
    seeds = checked_seeds(seeds)
    _, recipe = load_recipe(RECIPE)
    resolve_device(device)
    names = list(dict.fromkeys(datasets or PUBLISHED))
    # Open all data sets before the first training, so that a missing one is reported at once.
    for name in names:
        prepare(name, recipe.data, seed=seeds[0], data_root=data_root, progress=progress)

    def run_of(name: str, seed: int) -> StudyRun:
        return study_run(
            title=f"{PUBLISHED[name].title}, seed {seed}",
            path=out / f"{name}-seed{seed}",
            source=name,
            recipe_given=RECIPE,
            recipe_name=RECIPE,
            recipe=recipe,
            seed=seed,
            device=device,
            data_root=data_root,
        )

    runs = {name: [run_of(name, seed) for seed in seeds] for name in names}
    yield from train_runs([run for of_data in runs.values() for run in of_data])
    rows = [_row(name, of_data) for name, of_data in runs.items()]
    options = [word for name in names for word in ("--dataset", name)] if datasets else []
    command = study_command(["reproduce", *options], (), seeds, device)
    result = {"command": command, "recipe": RECIPE, "seeds": list(seeds), "rows": rows}
    return write_study(out / "reproduce", result, _page(result))


def _row(name: str, runs: Sequence[StudyRun]) -> dict[str, Any]:
    """Return the row of one data set from the metrics of its runs."""
    found = read_runs(runs)
    accuracies = [metrics["test"]["accuracy"] for metrics in found]
    mean, half = mean_over_seeds(accuracies)
    return {
        "dataset": name,
        "title": PUBLISHED[name].title,
        "published": {"accuracy": PUBLISHED[name].accuracy, "parameters": PUBLISHED[name].parameters},
        "parameters": found[0]["parameters"],
        "macs": found[0]["macs"],
        "accuracies": accuracies,
        "mean": mean,
        "ci95_half_width": half,
        "stage_one_validation": [metrics["stages"][0]["validation"] for metrics in found],
        "validation": [metrics["validation"]["accuracy"] for metrics in found],
        "test_count": found[0]["test"]["count"],
        "median_latency_us": [metrics["latency"]["median_us"] for metrics in found],
        "model_bytes": RunFolder(runs[0].path).model.stat().st_size,
        "seconds": [metrics["seconds"] for metrics in found],
        "environment": found[0]["environment"],
        "precision": found[0]["precision"],
    }


def _page(result: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        "# The paper's results, reproduced",
        "",
        f"Made by {markdown_code(result['command'])} (recipe `{result['recipe']}`, seeds {seeds}).",
        "Each run opened its test set once, after training; all choices were made on validation images.",
        "",
        "| data set | published | here: mean over seeds | each seed | parameters (published) | MACs |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        half = row["ci95_half_width"]
        mean = f"{row['mean']:.2%}" + (f" ± {half:.2%}" if half is not None else "")
        each = ", ".join(f"{accuracy:.2%}" for accuracy in row["accuracies"])
        lines.append(
            f"| {row['title']} | {row['published']['accuracy']:.0%} | **{mean}** | {each} "
            f"| {row['parameters']:,} ({row['published']['parameters']:,}) | {row['macs']:,} |"
        )
    lines += ["", "± is half of the 95 % Student-t interval over the seeds.", "", *_stages(result), *_machines(result)]
    return "\n".join(lines) + "\n"


def _stages(result: dict[str, Any]) -> list[str]:
    """Return a table of the accuracy of each stage on validation images."""
    lines = [
        "On validation images (a tenth of the training images), mean over the seeds:",
        "",
        "| data set | stage 1: original submodel | stage 1: augmented submodel | unified, after stage 2 |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        first = row["stage_one_validation"]
        means = [sum(entry[name] for entry in first) / len(first) for name in ("original", "augmented")]
        unified = sum(row["validation"]) / len(row["validation"])
        lines.append(f"| {row['title']} | {means[0]:.2%} | {means[1]:.2%} | {unified:.2%} |")
    return [*lines, ""]


def _machines(result: dict[str, Any]) -> list[str]:
    row = result["rows"][0]
    machine = row["environment"]
    hardware = markdown_text(f"{machine['cpu']}, {machine['cores']} cores; {machine['os']}")
    versions = f"Python {machine['python']}, torch {machine['torch']}, NumPy {machine['numpy']}"
    return [f"Machine: {hardware}; {versions}; convolutions in {row['precision']}.", ""]
