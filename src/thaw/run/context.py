"""What a recipe trains on, on this machine."""

from __future__ import annotations

from thaw.data.prepare import PreparedData
from thaw.recipe.recipe import Recipe
from thaw.training.compute import (
    LANES,
    Lanes,
    normalisation_name,
    resolve_device,
    resolve_normalisation,
    resolve_precision,
    thread_count,
)
from thaw.training.method import Setting


def normalisation_of(recipe: Recipe, device: str) -> str:
    """What normalisation trains by, "fused" or "torch", on the device that "auto", "cpu" or "cuda" means here.

    Raises:
        UsageError: for "fused" on a GPU.
        MissingDependencyError: for "fused" without a C compiler.
    """
    found = resolve_device(device)
    fused = recipe.method_settings().normalised and resolve_normalisation(
        recipe.compute.normalisation,
        found,
        resolve_precision(recipe.compute.precision, found),
        threads=max(1, thread_count() // LANES),
    )
    return normalisation_name(fused=fused)


def training_setting(
    data: PreparedData, recipe: Recipe, seed: int, device: str, lanes: Lanes, *, normalisation: str
) -> Setting:
    """What a recipe trains on: `data`, on the device that "auto", "cpu" or "cuda" means here.

    `normalisation` is what `normalisation_of` gave when the training began.
    """
    found = resolve_device(device)
    return Setting(
        train=data.train,
        validation=data.validation,
        contract=data.contract,
        seed=seed,
        device=found,
        dtype=resolve_precision(recipe.compute.precision, found),
        lanes=lanes,
        fused=normalisation == normalisation_name(fused=True),
        loss=recipe.loss,
    )
