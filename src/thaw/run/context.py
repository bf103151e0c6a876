"""The training context of a recipe on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from thaw.data.prepare import PreparedData
from thaw.recipe.recipe import Recipe
from thaw.training.compute import (
    PARALLEL_BRANCHES,
    ParallelBranches,
    normalization_name,
    resolve_device,
    resolve_normalization,
    resolve_precision,
    thread_count,
)
from thaw.training.trainer import TrainingContext


def normalization_of(recipe: Recipe, device: str) -> str:
    """Return how normalization is computed in training, "fused" or "torch", on device "auto", "cpu" or "cuda".

    Raises:
        UsageError: for "fused" on a GPU.
        MissingDependencyError: for "fused" without a C compiler.
    """
    found = resolve_device(device)
    fused = recipe.trainer_settings().normalized and resolve_normalization(
        recipe.compute.normalization,
        found,
        resolve_precision(recipe.compute.precision, found),
        threads=max(1, thread_count() // PARALLEL_BRANCHES),
    )
    return normalization_name(fused=fused)


@contextmanager
def training_context(
    data: PreparedData, recipe: Recipe, seed: int, device: str, *, normalization: str
) -> Iterator[TrainingContext]:
    """Open the training context for `data` on device "auto", "cpu" or "cuda". Its threads end with the context.

    `normalization` is the result of `normalization_of` when training began.
    """
    found = resolve_device(device)
    with ParallelBranches(PARALLEL_BRANCHES, found) as parallel:
        yield TrainingContext(
            train=data.train,
            validation=data.validation,
            input_spec=data.input_spec,
            seed=seed,
            device=found,
            dtype=resolve_precision(recipe.compute.precision, found),
            parallel=parallel,
            fused=normalization == normalization_name(fused=True),
            loss=recipe.loss,
        )
