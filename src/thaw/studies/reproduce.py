"""`thaw reproduce`: the paper's data sets over several seeds, beside the published figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.ingest import Progress as DecodeProgress
from thaw.data.prepare import prepare
from thaw.errors import RunError, UsageError
from thaw.evidence.quality import mean_interval
from thaw.files import write_atomically, write_document
from thaw.model.metrics_file import read_metrics
from thaw.quoting import listed, markdown_code, markdown_text, shown
from thaw.recipe.recipe import Recipe, load_recipe
from thaw.run.events import Event
from thaw.run.folder import read_json
from thaw.run.pipeline import resume_run, start_run
from thaw.run.request import TrainRequest
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


@dataclass(frozen=True)
class SeedStarted:
    """A run of the reproduction begins, or goes on."""

    title: str
    seed: int
    path: Path


@dataclass(frozen=True)
class Written:
    """The table is on disk."""

    result: dict[str, Any]
    page: Path


def parse_seeds(text: str) -> tuple[int, ...]:
    """'0,1,2' -> (0, 1, 2).

    Raises:
        UsageError: when it is not different whole numbers with commas between them.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,15}", part) for part in parts) or len(set(map(int, parts))) != len(parts):
        raise UsageError(
            f"seeds {shown(text)}: expected different whole numbers with commas between them, such as 0,1,2"
        )
    return tuple(int(part) for part in parts)


def reproduce(
    datasets: Sequence[str],
    seeds: Sequence[int],
    *,
    out: Path,
    device: str,
    data_root: Path | None,
    command: str,
    progress: DecodeProgress | None = None,
) -> Iterator[Event | SeedStarted | Written]:
    """Train what is not trained yet, in one run folder a data set and seed under `out`, and write the table there.

    Raises:
        UsageError: for a data set that is not the paper's.
    """
    unknown = [name for name in datasets if name not in PUBLISHED]
    if unknown:
        raise UsageError(f"data set {listed(unknown)}: expected some of {', '.join(PUBLISHED)}")
    datasets = list(dict.fromkeys(datasets))
    _, recipe = load_recipe(RECIPE)
    resolve_device(device)
    # All data sets are opened before the first is trained on: one that is missing should not show after half an hour.
    for name in datasets:
        prepare(name, recipe.data, seed=seeds[0], data_root=data_root, progress=progress)
    for name in datasets:
        for seed in seeds:
            path = out / f"{name}-seed{seed}"
            is_begun = (path / "run.json").is_file()
            if is_begun:
                _check_same(path, name, seed, recipe)
            if (path / "metrics.json").is_file():
                continue
            yield SeedStarted(PUBLISHED[name].title, seed, path)
            if is_begun:
                yield from resume_run(path, data_root=data_root)
                continue
            request = TrainRequest(
                source=name,
                recipe_name=RECIPE,
                recipe=recipe,
                seed=seed,
                device=device,
                data_root=data_root,
                command=f"thaw train {name} --recipe {RECIPE} --seed {seed}",
            )
            yield from start_run(request, out=path)
    result = _collect(datasets, seeds, out, command)
    write_document(out / "reproduce.json", result)
    write_atomically(out / "reproduce.md", _page(result))
    yield Written(result, out / "reproduce.md")


def _check_same(path: Path, name: str, seed: int, recipe: Recipe) -> None:
    """Refuse to put runs of different recipes into one table."""
    kept = read_json(path / "run.json")
    wanted = {"source": name, "seed": seed, "recipe": recipe.as_dict()}
    if {key: kept.get(key) for key in wanted} != wanted:
        raise RunError(f"{path} holds a run of another recipe, data set or seed\nchoose another folder with --out")


def _collect(datasets: Sequence[str], seeds: Sequence[int], out: Path, command: str) -> dict[str, Any]:
    rows = []
    for name in datasets:
        runs = [read_metrics(out / f"{name}-seed{seed}" / "metrics.json") for seed in seeds]
        accuracies = [run["test"]["accuracy"] for run in runs]
        mean, half = mean_interval(accuracies) if len(accuracies) > 1 else (accuracies[0], None)
        rows.append(
            {
                "dataset": name,
                "title": PUBLISHED[name].title,
                "published": {"accuracy": PUBLISHED[name].accuracy, "parameters": PUBLISHED[name].parameters},
                "parameters": runs[0]["parameters"],
                "macs": runs[0]["macs"],
                "accuracies": accuracies,
                "mean": mean,
                "ci95_half_width": half,
                "stage_one_validation": [run["stages"][0]["validation"] for run in runs],
                "validation": [run["validation"]["accuracy"] for run in runs],
                "test_count": runs[0]["test"]["count"],
                "median_latency_us": [run["latency"]["median_us"] for run in runs],
                "model_bytes": (out / f"{name}-seed{seeds[0]}" / "model.safetensors").stat().st_size,
                "seconds": [run["seconds"] for run in runs],
                "environment": runs[0]["environment"],
                "precision": runs[0]["precision"],
            }
        )
    return {"command": command, "recipe": RECIPE, "seeds": list(seeds), "rows": rows}


def _page(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        "# The paper's results, reproduced",
        "",
        f"Made by {markdown_code(result['command'])} (recipe `{result['recipe']}`, seeds {seeds}).",
        "The test set of each run was opened once, after training; every choice was made on validation data.",
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
    """What each stage gave on validation data."""
    lines = [
        "On validation images (a tenth of the training images), mean over the seeds:",
        "",
        "| data set | stage 1: original submodel | stage 1: augmented submodel | unified, thawed |",
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
