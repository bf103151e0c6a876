"""Settings that a run derives from its data, except for the size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sizing_samples import draw_photos

from thaw.data import sources
from thaw.recipe.recipe import load_recipe
from thaw.run import resolve
from thaw.run.request import TrainRequest, build_request
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


def test_source_is_opened_and_read_once(tmp_path, monkeypatch):
    photos = draw_photos(tmp_path / "photos", [(30, 40), (28, 26)], each=20)
    opened, read = [], []

    def open_source(*arguments, **options):
        source = sources.open_source(*arguments, **options)
        opened.append(source)

        def counted():
            read.append(source)
            return source.read()

        return replace(source, read=counted)

    monkeypatch.setattr(resolve, "open_source", open_source)
    settings = ["sizing.sides=[16, 24]", "plain.epochs=20", "plain.batch_size=16"]
    request = build_request(photos, overrides=settings, budget="ram=6KB,flash=16KB")
    settled, data = prepare_run(request)
    assert (len(opened), len(read)) == (1, 1)
    assert not settled.recipe.sizing.is_open
    assert settled.recipe.data.input == str(data.input_spec)
    assert settled.source == photos, "stored for a resume"
