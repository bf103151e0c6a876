"""The training context of a recipe: its data, and how this machine computes."""

from __future__ import annotations

from thaw.data.prepare import PreparedData
from thaw.recipe.recipe import Recipe
from thaw.training.compute import (
    LANES,
    ParallelBranches,
    normalization_name,
    resolve_device,
    resolve_normalization,
    resolve_precision,
    thread_count,
)
from thaw.training.trainer import TrainingContext


def normalization_of(recipe: Recipe, device: str) -> str:
    """What computes normalization in training, "fused" or "torch", on "auto", "cpu" or "cuda".

    Raises:
        UsageError: for "fused" on a GPU.
        MissingDependencyError: for "fused" without a C compiler.
    """
    found = resolve_device(device)
    fused = recipe.trainer_settings().normalized and resolve_normalization(
        recipe.compute.normalization,
        found,
        resolve_precision(recipe.compute.precision, found),
        threads=max(1, thread_count() // LANES),
    )
    return normalization_name(fused=fused)


def training_context(
    data: PreparedData, recipe: Recipe, seed: int, device: str, lanes: ParallelBranches, *, normalization: str
) -> TrainingContext:
    """What the stages of a recipe train on: `data`, on "auto", "cpu" or "cuda".

    `normalization` is what `normalization_of` returned when the run started.
    """
    found = resolve_device(device)
    return TrainingContext(
        train=data.train,
        validation=data.validation,
        input_spec=data.input_spec,
        seed=seed,
        device=found,
        dtype=resolve_precision(recipe.compute.precision, found),
        lanes=lanes,
        fused=normalization == normalization_name(fused=True),
        loss=recipe.loss,
    )
