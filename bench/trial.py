"""Train a recipe with overrides and print its validation accuracy; the test set stays closed.

    python bench/trial.py cifar10 --recipe best-cifar10-19k --set plain.epochs=4 --seed 0 --log trials.jsonl

Each line of the log is one trial: its overrides, the size of the network, and its results.
docs/results/experiments.md is based on these logs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.prepare import PreparedData, prepare
from thaw.errors import ThawError
from thaw.graph.lower import layer_table
from thaw.recipe.recipe import load_recipe
from thaw.run.context import kernels_of, training_context
from thaw.training.trainer import MultiStageTrainer


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What trains: a recipe with overrides, and a seed."""

    source: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    data_root: Path | None

    @contextmanager
    def trainer(self) -> Iterator[tuple[MultiStageTrainer, PreparedData]]:
        """Prepare the data, and open the training."""
        _, recipe = load_recipe(self.recipe, self.overrides)
        data = prepare(self.source, recipe.data, seed=self.seed, data_root=self.data_root)
        kernels = kernels_of(recipe, "auto")
        with training_context(data, recipe, self.seed, "auto", kernels=kernels) as context:
            yield MultiStageTrainer(recipe.trainer_settings(), context), data


def result_of(trial: Trial, trainer: MultiStageTrainer, data: PreparedData, seconds: float) -> dict[str, Any]:
    """Return the line of the log of a finished trial that took `seconds`."""
    name, recipe = load_recipe(trial.recipe, trial.overrides)
    cost = layer_table(recipe.model, recipe.unify_spec, data.input_spec.shape, len(data.train.classes))
    last, records = trainer.progress.summaries[-1], trainer.progress.records
    return {
        "source": trial.source,
        "recipe": name,
        "overrides": list(trial.overrides),
        "seed": trial.seed,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "epochs": len(records),
        "train_loss": records[-1].train_loss,
        "validation_accuracy": last.validation_accuracy,
        "validation_loss": records[-1].validation_loss,
        "validation_count": len(data.validation),
        "images_per_second": last.images_per_second,
        "seconds": seconds,
    }


def main() -> None:
    """Run one trial."""
    options = _options()
    trial = Trial(
        source=options.source,
        recipe=options.recipe,
        overrides=tuple(options.overrides),
        seed=options.seed,
        data_root=options.data_root,
    )
    started = time.perf_counter()
    with trial.trainer() as (trainer, data):
        for record in trainer.epochs():
            print(
                f"{record.stage} {record.epoch}/{record.epochs} loss {record.train_loss:.4f} "
                f"validation {record.validation_accuracy:.2%} {record.images_per_second:,.0f} img/s",
                flush=True,
            )
        result = result_of(trial, trainer, data, time.perf_counter() - started)
    print(json.dumps(result))
    if options.log is not None:
        with options.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(result) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--log", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except ThawError as error:
        raise SystemExit(f"error: {error}") from None
