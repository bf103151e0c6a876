"""The effect of class weights and of epoch selection when one class has most images.

    python bench/imbalance.py TRASH FOLDER --majority paper --share 0.7 --seeds 0,1,2 --folds 3

TRASH is a folder of class folders. The script copies all images of the class `--majority` and equally many of each
other class, chosen by a fixed seed, into FOLDER/images, so that the majority has `--share` of them. Then it trains each
arm on each seed (FOLDER/runs) and prints the mean recall over classes on the images that the folds held out of
training, on the validation images, and on the test images. Runs that are there already are only read.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

import thaw

ARMS = {
    "before": ("loss.class_weights=none", "loss.select=accuracy"),
    "selection": ("loss.class_weights=none", "loss.select=balanced_accuracy"),
    "sqrt": ("loss.class_weights=sqrt", "loss.select=balanced_accuracy"),
    "balanced": ("loss.class_weights=balanced", "loss.select=balanced_accuracy"),
}


def main() -> None:
    """Make the data set, train the missing runs, and print the table."""
    options = _options()
    images = options.folder / "images"
    if not images.is_dir():
        make_set(options.source, images, options.majority, options.share)
    arms = options.arms.split(",") if options.arms else list(ARMS)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in seeds:
        for arm in arms:
            found[arm].append(_run(images, options, arm, seed))
    print(
        "arm        folds: mean recall, accuracy   validation: mean recall   test: mean recall, accuracy, each recall"
    )
    for arm, runs in found.items():
        on_validation = _spread([run["validation"]["balanced_accuracy"] for run in runs])
        print(f"{arm:<10} {_folds(runs)}   {on_validation}   {_test(runs)}")


def make_set(source: Path, target: Path, majority: str, share: float) -> None:
    """Copy all images of one class, and equally many of each other class so that the first has a share of `share`."""
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    files = {path.name: sorted(path.iterdir()) for path in folders}
    each = round(len(files[majority]) * (1 - share) / share / (len(files) - 1))
    generator = np.random.default_rng(0)
    for name, paths in files.items():
        kept = paths if name == majority else [paths[row] for row in generator.permutation(len(paths))[:each]]
        (target / name).mkdir(parents=True)
        for path in kept:
            shutil.copy(path, target / name / path.name)


def _run(images: Path, options: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    out = options.folder / "runs" / f"{arm}-{seed}"
    if not (out / "metrics.json").is_file():
        overrides = [*ARMS[arm], *(options.overrides or ())]
        thaw.train(
            str(images), recipe="balanced", overrides=overrides, seed=seed, folds=options.folds, budget=options.budget,
            out=out, overwrite=out.exists(),
        )  # fmt: skip
        print(f"{arm}, seed {seed}: done", flush=True)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
    return metrics


def _spread(values: list[float]) -> str:
    deviation = f" (sd {100 * stdev(values):.1f})" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f} %{deviation}"


def _folds(runs: list[dict[str, Any]]) -> str:
    if not runs[0]["folds"]:
        return "-"
    recall = [share for run in runs for share in run["folds"]["balanced_accuracies"]]
    accuracy = [share for run in runs for share in run["folds"]["accuracies"]]
    return f"{_spread(recall)}, {_spread(accuracy)}"


def _test(runs: list[dict[str, Any]]) -> str:
    recalls = np.mean([[entry["recall"] for entry in run["test"]["per_class"]] for run in runs], axis=0)
    figures = [_spread([run["test"][name] for run in runs]) for name in ("balanced_accuracy", "accuracy")]
    return ", ".join([*figures, " ".join(f"{100 * recall:.0f}" for recall in recalls)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--majority", default="paper")
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--arms", default="", help=f"of {', '.join(ARMS)}, with commas between them; all by default")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--budget", default="params=20000,ram=256KB")
    parser.add_argument("--set", dest="overrides", action="append", metavar="A.B=C")
    return parser.parse_args()


if __name__ == "__main__":
    main()
