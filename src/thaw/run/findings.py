"""What a finished run has to say of itself before its accuracy, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from thaw.data.balance import class_counts, is_uneven
from thaw.data.images import ImageSet
from thaw.evidence.findings import (
    Finding,
    constant_loss,
    int8_findings,
    joined_findings,
    result_findings,
    stuck_findings,
)
from thaw.evidence.quality import Quality
from thaw.model.model import Model
from thaw.recipe.recipe import Recipe
from thaw.training.trainer import MultiStageTrainer

# Up to this side a larger input may show what a smaller one hides.
_SMALL_SIDE = 64


def run_findings(
    recipe_name: str,
    recipe: Recipe,
    trainer: MultiStageTrainer,
    model: Model,
    test: Quality,
    int8_test: Mapping[str, Any],
) -> tuple[Finding, ...]:
    """Everything that is worth a line at the top of a result.

    Args:
        recipe_name: of the run.
        recipe: resolved.
        trainer: after training.
        model: what came out.
        test: of the float network on the test images.
        int8_test: `int8.test` of metrics.json.
    """
    found = (
        *result_findings(test.confusion, model.classes, images="test image"),
        *_joined(model, trainer.context.validation, trainer),
        *stuck_findings(_lowest_losses(recipe, trainer)),
        *int8_findings(int8_test["per_class"]),
    )
    first = next((place for place, each in enumerate(found) if each.severity == "warning"), None)
    if first is None:
        return found
    # What helps against all of them is told once.
    advised = replace(found[first], remedies=(*found[first].remedies, *_advice(recipe_name, recipe, trainer)))
    return (*found[:first], advised, *found[first + 1 :])


def _joined(model: Model, validation: ImageSet, trainer: MultiStageTrainer) -> tuple[Finding, ...]:
    submodels = trainer.progress.submodel_hits
    if not submodels:
        return ()
    hits = model.probabilities(validation.images).argmax(axis=1) == validation.labels
    return joined_findings(hits, submodels, validation.labels, len(model.classes))


def _lowest_losses(recipe: Recipe, trainer: MultiStageTrainer) -> dict[str, tuple[float, float]]:
    """By output the lowest mean training loss of an epoch, and that of a constant answer.

    What a teacher says is in a student's loss besides the labels, so that students are left out.
    """
    smoothing = {"dual": recipe.dual.fit.label_smoothing, "plain": recipe.plain.fit.label_smoothing, "unfreeze": 0.0}
    setting = trainer.context
    shares = class_counts(setting.train.labels, setting.classes) / len(setting.train)
    if setting.class_weights is not None:
        shares = shares * setting.class_weights
    lowest: dict[str, tuple[float, float]] = {}
    for record in trainer.progress.records:
        if record.kind in smoothing:
            constant = constant_loss(shares.astype(np.float64), smoothing[record.kind])
            for name, loss in record.losses.items():
                lowest[name] = (min(loss, lowest.get(name, (loss, 0.0))[0]), constant)
    return lowest


def _advice(recipe_name: str, recipe: Recipe, trainer: MultiStageTrainer) -> tuple[str, ...]:
    """What is left to try, as options of `thaw train` where there are some."""
    setting, advice = trainer.context, []
    if recipe_name != "balanced":
        advice.append("--recipe balanced")
    if is_uneven(class_counts(setting.train.labels, setting.classes)) and recipe.loss.class_weights != "balanced":
        advice.append("--set loss.class_weights=balanced")
    section, epochs = next(iter(recipe.stage_epochs().items()))
    key = {"dual": "dual.epochs", "plain": "plain.epochs"}.get(section)
    if key is not None:
        advice.append(f"more epochs: --set {key}={2 * epochs}")
    height, width = setting.input_spec.height, setting.input_spec.width
    if max(height, width) < _SMALL_SIDE:
        advice.append(f"a larger input: --set data.input={2 * height}x{2 * width}xauto")
    return (*advice, "more images, and a look at their labels with thaw data")
