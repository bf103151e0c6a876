"""Images for a trained model, and inspection of a source before training."""

import json

import numpy as np
import pytest
from data_samples import SETTINGS, picture, write_folder
from error_matching import raises
from PIL import Image

from thaw.data.image_files import load_images
from thaw.data.images import InputSpec
from thaw.data.prepare import open_image_set
from thaw.data.resize import resize
from thaw.data.summary import look
from thaw.errors import UsageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


# Evaluation and prediction


def test_evaluation_uses_the_test_split_and_maps_classes_by_name(tmp_path):
    root = tmp_path / "pets"
    write_folder(root / "train")
    write_folder(root / "test", count=3, start=500)
    input_spec = InputSpec(height=8, width=8, channels=1, mean=(0.5,), std=(0.2,))
    images, _ = open_image_set(root, input_spec, ("dog", "bird", "cat"))
    assert images.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert images.images.shape == (6, 8, 8, 1)
    everything, _ = open_image_set(root / "train", input_spec, ("dog", "cat"))
    assert len(everything) == 24
    with raises("data-class"):
        open_image_set(root, input_spec, ("dog", "bird"))


def test_evaluation_uses_bare_numbers_as_class_indices():
    source = (picture(1, (6, 8, 8)), [0, 2, 2, 0, 2, 0])
    input_spec = InputSpec(height=8, width=8, channels=1)
    images, _ = open_image_set(source, input_spec, ("a", "b", "c"))
    assert images.labels.tolist() == [0, 2, 2, 0, 2, 0]
    with raises("data-class"):
        open_image_set(source, input_spec, ("a", "b"))


def test_load_images_for_prediction(tmp_path):
    root = write_folder(tmp_path / "pets", count=11)
    (root / "cat" / "notes.txt").write_text("x")
    input_spec = InputSpec(height=8, width=9, channels=3, fit="crop")
    pixels, names, problems = load_images([root / "dog" / "dog1.png", root / "cat"], input_spec)
    assert names == [str(root / "dog" / "dog1.png"), *(str(root / "cat" / f"cat{i}.png") for i in range(11))]
    assert [p.kind for p in problems] == ["stray"]
    for name, image in zip(names, pixels, strict=True):
        assert np.array_equal(image, resize(np.asarray(Image.open(name)), input_spec))
    (root / "cat" / "bad.png").touch()
    with raises("data-unreadable", "bad.png"):
        load_images([root], input_spec)
    assert len(load_images([root], input_spec, skip_broken=True)[0]) == 22
    with raises("data-source"):
        load_images([tmp_path / "missing.png"], input_spec)
    (tmp_path / "void").mkdir()
    with raises("data-empty"):
        load_images([tmp_path / "void"], input_spec)


# Inspection


def test_look_reports_and_draws(tmp_path):
    root = write_folder(tmp_path / "pets", count=12)
    Image.fromarray(picture(5, (20, 40))).save(root / "dog" / "gray.png")
    (root / "cat" / "empty.png").touch()
    summary = look(root, SETTINGS)
    found = json.loads(json.dumps(summary.as_dict()))
    assert found["counts"] == {"train": {"cat": 12, "dog": 13}}
    assert found["heights"] == {"smallest": 10, "median": 10.0, "largest": 20}
    assert found["widths"] == {"smallest": 12, "median": 12.0, "largest": 40}
    assert (found["distinct_sizes"], found["modes"], found["gray_images"]) == (2, {"RGB": 24, "L": 1}, 1)
    assert found["balance"] == pytest.approx(13 / 12)
    assert (found["input"], found["usable"], summary.usable) == ("32x32x3", False, False)
    assert "cat/empty.png (empty file)" in summary.describe()
    sheet = summary.contact_sheet(tmp_path / "new" / "sheet.png", per_class=4)
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    # The first tile is the first image, enlarged twice without smoothing.
    tile = pixels[22 : 22 + 64, 6 : 6 + 64]
    assert np.array_equal(tile[::2, ::2], summary.preview.images[0])
    with pytest.raises(UsageError):
        summary.contact_sheet(tmp_path / "sheet.png", per_class=0)


def test_look_at_a_source_without_usable_images(tmp_path):
    (tmp_path / "bad" / "cat").mkdir(parents=True)
    (tmp_path / "bad" / "cat" / "a.png").touch()
    summary = look(tmp_path / "bad", SETTINGS)
    assert summary.count == 0
    assert not summary.usable
    summary.contact_sheet(tmp_path / "sheet.png")
