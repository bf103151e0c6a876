"""The findings of a finished run, shown before its accuracy, and suggestions."""

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
    result_findings,
    stuck_findings,
    unified_findings,
)
from thaw.evidence.quality import Quality
from thaw.model.model import Model
from thaw.recipe.recipe import Recipe
from thaw.training.trainer import MultiStageTrainer

# Below this side, in pixels, a larger input may help.
_SMALL_SIDE = 64


def run_findings(
    recipe_name: str,
    recipe: Recipe,
    trainer: MultiStageTrainer,
    model: Model,
    test: Quality,
    int8_test: Mapping[str, Any],
) -> tuple[Finding, ...]:
    """All findings, the most important first.

    Args:
        recipe_name: name of the recipe.
        recipe: the resolved recipe.
        trainer: the trainer, after training.
        model: the trained model.
        test: quality of the float network on the test images.
        int8_test: the `int8.test` part of metrics.json.
    """
    found = (
        *result_findings(test.confusion, model.classes, images="test image"),
        *_unified(model, trainer.context.validation, trainer),
        *stuck_findings(_lowest_losses(recipe, trainer)),
        *int8_findings(int8_test["per_class"]),
    )
    first = next((place for place, each in enumerate(found) if each.severity == "warning"), None)
    if first is None:
        return found
    # General advice is given once, with the first warning.
    advised = replace(found[first], remedies=(*found[first].remedies, *_advice(recipe_name, recipe, trainer)))
    return (*found[:first], advised, *found[first + 1 :])


def _unified(model: Model, validation: ImageSet, trainer: MultiStageTrainer) -> tuple[Finding, ...]:
    submodels = trainer.progress.submodel_hits
    if not submodels:
        return ()
    hits = model.probabilities(validation.images).argmax(axis=1) == validation.labels
    return unified_findings(hits, submodels, validation.labels, len(model.classes))


def _lowest_losses(recipe: Recipe, trainer: MultiStageTrainer) -> dict[str, tuple[float, float]]:
    """Output -> (lowest mean training loss of an epoch, loss of a constant prediction).

    Students are excluded, since their loss also depends on the teacher's predictions.
    """
    smoothing = {"dual": recipe.dual.fit.label_smoothing, "plain": recipe.plain.fit.label_smoothing, "unfreeze": 0.0}
    context = trainer.context
    shares = class_counts(context.train.labels, context.classes) / len(context.train)
    if context.class_weights is not None:
        shares = shares * context.class_weights
    lowest: dict[str, tuple[float, float]] = {}
    for record in trainer.progress.records:
        if record.kind in smoothing:
            constant = constant_loss(shares.astype(np.float64), smoothing[record.kind])
            for name, loss in record.losses.items():
                lowest[name] = (min(loss, lowest.get(name, (loss, 0.0))[0]), constant)
    return lowest


def _advice(recipe_name: str, recipe: Recipe, trainer: MultiStageTrainer) -> tuple[str, ...]:
    """General suggestions, as options of `thaw train` where possible."""
    context, advice = trainer.context, []
    if recipe_name != "balanced":
        advice.append("--recipe balanced")
    if is_uneven(class_counts(context.train.labels, context.classes)) and recipe.loss.class_weights != "balanced":
        advice.append("--set loss.class_weights=balanced")
    section, epochs = next(iter(recipe.stage_epochs().items()))
    key = {"dual": "dual.epochs", "plain": "plain.epochs"}.get(section)
    if key is not None:
        advice.append(f"more epochs: --set {key}={2 * epochs}")
    height, width = context.input_spec.height, context.input_spec.width
    if max(height, width) < _SMALL_SIDE:
        advice.append(f"a larger input: --set data.input={2 * height}x{2 * width}xauto")
    return (*advice, "more images, and a check of their labels with thaw data")
