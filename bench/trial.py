"""Train a recipe with overrides and print its validation accuracy; the test set stays closed.

    python bench/trial.py cifar10 --recipe best-cifar10-19k --set plain.epochs=4 --seed 0 --log trials.jsonl

Each line of the log is one trial: its overrides, the size of the network, and its results.
docs/results/experiments.md is based on these logs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from thaw.data.prepare import prepare
from thaw.errors import ThawError
from thaw.graph.lower import layer_table
from thaw.recipe.recipe import load_recipe
from thaw.run.context import kernels_of, training_context
from thaw.training.trainer import MultiStageTrainer


def main() -> None:
    """Run one trial."""
    options = _options()
    name, recipe = load_recipe(options.recipe, options.overrides)
    data = prepare(options.source, recipe.data, seed=options.seed, data_root=options.data_root)
    cost = layer_table(recipe.model, recipe.unify_spec, data.input_spec.shape, len(data.train.classes))
    started = time.perf_counter()
    kernels = kernels_of(recipe, "auto")
    with training_context(data, recipe, options.seed, "auto", kernels=kernels) as context:
        trainer = MultiStageTrainer(recipe.trainer_settings(), context)
        for record in trainer.epochs():
            print(
                f"{record.stage} {record.epoch}/{record.epochs} loss {record.train_loss:.4f} "
                f"validation {record.validation_accuracy:.2%} {record.images_per_second:,.0f} img/s",
                flush=True,
            )
    last, records = trainer.progress.summaries[-1], trainer.progress.records
    trial = {
        "source": options.source,
        "recipe": name,
        "overrides": options.overrides,
        "seed": options.seed,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "epochs": len(records),
        "train_loss": records[-1].train_loss,
        "validation_accuracy": last.validation_accuracy,
        "validation_loss": records[-1].validation_loss,
        "validation_count": len(data.validation),
        "images_per_second": last.images_per_second,
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps(trial))
    if options.log is not None:
        with options.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(trial) + "\n")


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
