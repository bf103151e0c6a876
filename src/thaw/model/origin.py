"""Measures a trained model on labeled images, and prepares its data again.

Shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thaw.data.images import ImageSet
from thaw.data.prepare import PreparedData, open_image_set, prepare
from thaw.data.ranges import warn_of
from thaw.data.settings import DataSettings
from thaw.errors import RecipeError, RunError
from thaw.events import OnEvent, decoding_to
from thaw.evidence.overlap import overlap
from thaw.evidence.quality import Quality, evaluate
from thaw.model.training_images import read_seen
from thaw.model.zoo_card import read_card
from thaw.recipe.recipe import recipe_from_dict

if TYPE_CHECKING:
    from thaw.model.model import Model


def quality_of(probabilities: npt.NDArray[np.float64], images: ImageSet) -> Quality:
    """The quality of probabilities, float64 [N, K], for N labeled images."""
    names = [images.name(index) for index in range(len(images))]
    return evaluate(probabilities, images.labels, images.classes, names)


def evaluate_model(
    model: Model, source: Any, *, data_root: Path | None, skip_broken: bool, on_event: OnEvent | None
) -> Quality:
    """Implements `Model.evaluate`. Tables are read with the columns of the training."""
    images, problems = open_image_set(
        source,
        model.input_spec,
        model.classes,
        settings=_data_settings(model),
        data_root=data_root,
        skip_broken=skip_broken,
        progress=decoding_to(on_event),
    )
    if on_event is None:
        warn_of(problems, stacklevel=4)
    else:
        for problem in problems:
            on_event(problem)
    seen = read_seen(model)
    probabilities = model.probabilities(images.images)
    quality = quality_of(probabilities, images)
    if seen is None:
        return quality
    correct = probabilities.argmax(axis=1) == images.labels
    return replace(quality, overlap=overlap(correct, *seen.find(images.images)))


def _data_settings(model: Model) -> DataSettings:
    """The data settings of the recipe in the model's header; the defaults if they are missing or unreadable."""
    try:
        return recipe_from_dict(model.header["recipe"]["settings"]).data
    except (KeyError, TypeError, RecipeError):
        return DataSettings()


def zoo_test_images(model: Model, *, data_root: Path | None, on_event: OnEvent | None) -> ImageSet:
    """The test images of the data set that a zoo model was trained on.

    Raises:
        RunError: when the data set has changed since.
        DataError: when it cannot be found or read.
    """
    assert model.file is not None
    card = read_card(model.file.parent)
    data = prepare(
        card.dataset, _data_settings(model), seed=card.seed, data_root=data_root, progress=decoding_to(on_event)
    )
    check_fingerprint(data, card.fingerprint, f"zoo:{card.name}")
    return data.test.open()


def check_fingerprint(data: PreparedData, expected: object, trained: object) -> None:
    """Check that data equal those that `trained` was trained on.

    Raises:
        RunError: when they differ.
    """
    if data.fingerprint != expected:
        raise RunError(
            f"the data of {trained} have changed since it was trained\n"
            "restore them, or name the folder that holds them with --data-root",
            code="run-data",
        )
