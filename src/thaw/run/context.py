"""The training context of a recipe on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from thaw.data.prepare import PreparedData
from thaw.kernels.memory import release
from thaw.recipe.recipe import Recipe
from thaw.training.compute import (
    PARALLEL_BRANCHES,
    Arithmetic,
    KernelsName,
    ParallelBranches,
    kernels_name,
    parallel_jobs,
    resolve_arithmetic,
    resolve_device,
    thread_count,
)
from thaw.training.trainer import TrainingContext


def kernels_of(recipe: Recipe, device: str) -> KernelsName:
    """Return what computes a training, "compiled" kernels or "torch" alone, on device "auto", "cpu" or "cuda".

    Raises:
        UsageError: for "compiled" on a GPU.
        MissingDependencyError: for "compiled" without a C compiler.
    """
    return kernels_name(compiled=_arithmetic(recipe, device, recipe.compute.kernels).compiled)


def _arithmetic(recipe: Recipe, device: str, kernels: KernelsName) -> Arithmetic:
    layers = recipe.trainer_settings().kernel_layers
    share = max(1, thread_count() // PARALLEL_BRANCHES)
    return resolve_arithmetic(replace(recipe.compute, kernels=kernels), resolve_device(device), layers, threads=share)


@contextmanager
def training_context(
    data: PreparedData, recipe: Recipe, seed: int, device: str, *, kernels: KernelsName
) -> Iterator[TrainingContext]:
    """Open the training context for `data` on device "auto", "cpu" or "cuda".

    Its threads end with the context, and memory for feature maps is returned to the system.
    `kernels` is what `kernels_of` returned when training started.

    Raises:
        UsageError: for "compiled" on a GPU.
        MissingDependencyError: for "compiled" without a C compiler.
    """
    found, arithmetic = resolve_device(device), _arithmetic(recipe, device, kernels)
    jobs = parallel_jobs(arithmetic, recipe.trainer_settings().kernel_layers, thread_count())
    try:
        with ParallelBranches(jobs, found) as parallel:
            yield TrainingContext(
                train=data.train,
                validation=data.validation,
                input_spec=data.input_spec,
                seed=seed,
                device=found,
                dtype=arithmetic.dtype,
                parallel=parallel,
                compiled=arithmetic.compiled,
                loss=recipe.loss,
            )
    finally:
        release()
