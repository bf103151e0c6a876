"""The training context of a recipe on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from thaw.data.prepare import PreparedData
from thaw.recipe.recipe import Recipe
from thaw.training.compute import (
    PARALLEL_BRANCHES,
    ParallelBranches,
    kernels_name,
    resolve_device,
    resolve_kernels,
    resolve_precision,
    thread_count,
)
from thaw.training.trainer import TrainingContext


def kernels_of(recipe: Recipe, device: str) -> str:
    """Return what computes a training, "compiled" kernels or "torch" alone, on device "auto", "cpu" or "cuda".

    Raises:
        UsageError: for "compiled" on a GPU.
        MissingDependencyError: for "compiled" without a C compiler.
    """
    found = resolve_device(device)
    compiled = recipe.trainer_settings().normalized and resolve_kernels(
        recipe.compute.kernels,
        found,
        resolve_precision(recipe.compute.precision, found),
        threads=max(1, thread_count() // PARALLEL_BRANCHES),
    )
    return kernels_name(compiled=compiled)


@contextmanager
def training_context(
    data: PreparedData, recipe: Recipe, seed: int, device: str, *, kernels: str
) -> Iterator[TrainingContext]:
    """Open the training context for `data` on device "auto", "cpu" or "cuda"; its threads end with the context.

    `kernels` is what `kernels_of` returned when the training began.
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
            compiled=kernels == kernels_name(compiled=True),
            loss=recipe.loss,
        )
