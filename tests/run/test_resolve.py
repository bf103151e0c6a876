"""What a run settles by its data before it trains, besides its size."""

from __future__ import annotations

import numpy as np
import pytest

from thaw.recipe.recipe import load_recipe
from thaw.run.request import TrainRequest
from thaw.run.resolve import prepare_run


@pytest.mark.parametrize(
    ("overrides", "classes", "flips"),
    [
        ((), "0123", False),
        ((), ("10", "11", "7"), False),
        ((), ("0", "cat"), True),
        ((), ("cat", "dog"), True),
        (("augment.flip=true",), "0123", True),
        (("augment.flip = true",), "0123", True),
        (("augment.flip=false",), ("cat", "dog"), False),
    ],
)
def test_digits_and_letters_are_not_mirrored(overrides, classes, flips):
    images = np.random.default_rng(0).integers(0, 256, (40 * len(classes), 16, 16), dtype=np.uint8)
    labels = [name for name in classes for _ in range(40)]
    request = TrainRequest(
        source=(images, labels),
        recipe_name="balanced",
        recipe=load_recipe("balanced", overrides)[1],
        overrides=overrides,
    )
    resolved, data = prepare_run(request)
    assert resolved.recipe.augment.flip == flips
    assert any(problem.kind == "flip" for problem in data.problems) == (not flips and not overrides)
