"""The default recipe, on sets of any size and shape."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from error_matching import raises

import thaw
from thaw.recipe.recipe import default_recipe, load_recipe
from thaw.run.request import TrainRequest
from thaw.run.resolve import prepare_run
from thaw.training.stages import PlainSettings


def images_of(classes: int, each: int, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is their brightness; class names are words."""
    labels = np.arange(classes * each) % classes
    chance = np.random.default_rng(seed)
    levels = (labels * 200 // max(1, classes - 1)).reshape(-1, *(1 for _ in shape))
    images = (chance.integers(0, 50, (len(labels), *shape)) + levels).astype(np.uint8)
    return images, np.array([f"class {label:03}" for label in range(classes)])[labels]


def prepared(source, *overrides: str):
    name, recipe = load_recipe(default_recipe(source), overrides)
    return prepare_run(TrainRequest(source=source, recipe_name=name, recipe=recipe, overrides=tuple(overrides)))


@pytest.mark.parametrize(
    ("classes", "each", "shape"),
    [
        pytest.param(2, 10, (64, 64, 3), id="twenty photographs"),
        pytest.param(3, 10, (8, 8), id="tiny and gray"),
        pytest.param(10, 6, (28, 28, 1), id="28x28"),
        pytest.param(400, 4, (16, 16), id="hundreds of classes"),
        pytest.param(2, 10, (9, 40, 3), id="not square"),
    ],
)
def test_any_set_has_a_network_within_the_budget(classes, each, shape):
    request, data = prepared(images_of(classes, each, shape))
    assert request.recipe_name == "balanced"
    network = request.recipe.model.build(data.input_spec.shape, classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters <= 20_100, "normalization is folded"
    assert data.input_spec.channels == (3 if shape[-1] == 3 else 1)
    assert request.recipe.plain.epochs == 60
    assert request.recipe.augment.flip


def test_digits_are_not_mirrored():
    images, _ = images_of(10, 6, (28, 28))
    request, data = prepared((images, np.arange(60) % 10))
    assert not request.recipe.augment.flip
    assert [problem.kind for problem in data.problems].count("flip") == 1


@pytest.mark.parametrize(
    ("images", "batch_size", "most_steps", "epochs"),
    [(54_000, 32, 30_000, 17), (54_000, 32, 0, 60), (16_000, 32, 30_000, 60), (16_001, 32, 30_000, 59), (9, 4, 1, 1)],
)
def test_large_sets_have_fewer_epochs(images, batch_size, most_steps, epochs):
    settings = PlainSettings(epochs=60, batch_size=batch_size, most_steps=most_steps)
    settled = settings.settled(images)
    assert (settled.epochs, settled.most_steps) == (epochs, 0)
    assert settled.settled(10 * images) == settled


def test_rejects_a_negative_number_of_steps():
    with raises("usage", "most_steps"):
        PlainSettings(most_steps=-1)


def test_fewer_epochs_are_reported_and_stored(tmp_path):
    source = images_of(2, 40, (8, 8))
    request, data = prepared(source, "plain.most_steps=6")
    # 58 images remain for training: two steps of 32.
    assert len(data.train) == 58
    assert request.recipe.plain.epochs == 3
    (note,) = [problem for problem in data.problems if problem.kind == "epochs"]
    assert note.message.startswith("3 epochs instead of 60: on 58 training images")
    request, data = prepared(source, "plain.most_steps=6", "plain.epochs=60")
    assert request.recipe.plain.epochs == 60, "an override applies"
    assert not [problem for problem in data.problems if problem.kind == "epochs"]
    run = thaw.train(source, overrides=["plain.most_steps=6", "sizing.budget=params=1000"], out=tmp_path / "run")
    assert run.metrics["recipe"] == "balanced"
    assert run.metrics["stages"][0]["epochs"] == 3
    assert tomllib.loads((run.path / "recipe.toml").read_text("utf-8"))["plain"]["epochs"] == 3
    again = thaw.Run.open(run.path, source=source).resume()
    assert again.metrics["data"]["problems"] == run.metrics["data"]["problems"]
    assert again.metrics["stages"] == run.metrics["stages"]


def test_command_line_has_the_same_default(tmp_path, call):
    from PIL import Image

    images, labels = images_of(2, 12, (12, 12))
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    quick = ("--set", "plain.epochs=1", "--set", "sizing.budget=params=1000")
    code, _, err = call("train", "photos", *quick)
    assert code == 0, err
    assert (tmp_path / "runs" / "photos-balanced-1" / "metrics.json").is_file()
    assert "default balanced" in " ".join(call("train", "--help")[1].split())
