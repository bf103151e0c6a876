"""Evaluation on images that a model was trained on: their number, and the accuracy on the others."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from command_line import error_of, metrics
from PIL import Image
from scipy import stats

import thaw as library
from thaw.data.seen import SeenImages, image_digests
from thaw.evidence.overlap import overlap
from thaw.model.training_images import SEEN_FILE, read_seen, write_seen


def test_digests_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    images[7] = images[3]
    digests = image_digests(images)
    assert (digests.dtype, digests.shape) == (np.uint64, (20,))
    by_hand = [int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little") for image in images]
    assert digests.tolist() == by_hand
    assert len(set(by_hand)) == 19
    assert np.array_equal(image_digests(np.asfortranarray(images)[::-1]), digests[::-1])
    assert image_digests(images[:0]).shape == (0,)


def test_finds_training_and_validation_images():
    images = np.random.default_rng(1).integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    # An image in both counts as a training image.
    seen = SeenImages.of(images[:10], images[8:20])
    in_train, in_validation = seen.find(images[::-1])
    assert in_train[::-1].tolist() == [index < 10 for index in range(30)]
    assert in_validation[::-1].tolist() == [10 <= index < 20 for index in range(30)]
    changed = images.copy()
    changed[:, 0, 0] ^= 1
    assert not np.any(seen.find(changed))


def test_counts_and_accuracy_of_the_others_by_hand():
    correct = np.array([1, 1, 1, 0, 1, 1, 0, 1, 0, 1], bool)
    in_train, in_validation = np.arange(10) < 4, np.arange(10) == 4
    found = overlap(correct, in_train, in_validation)
    assert (found.train, found.validation, found.used, found.others) == (4, 1, 5, 5)
    assert found.accuracy == 3 / 5
    interval = stats.binomtest(3, 5).proportion_ci(method="wilson")
    assert found.accuracy_ci95 == pytest.approx((interval.low, interval.high))
    assert "5 of 10 images were used in training (4) or validation (1); accuracy on the other 5: 60.00%" in str(found)
    every = overlap(correct, np.ones(10, bool), np.zeros(10, bool))
    assert (every.others, every.accuracy, every.accuracy_ci95) == (0, None, None)
    assert "does not measure" in str(every)
    assert "none of the 10 images is, pixel for pixel, one" in str(
        overlap(correct, np.zeros(10, bool), np.zeros(10, bool))
    )
    assert json.loads(json.dumps(every.as_dict()))["accuracy"] is None


@pytest.fixture(scope="module")
def sets():
    """The splits of the run, and its test images."""
    data = library.load("digits", recipe="digits", seed=3)
    return data.train, data.validation, data.test.open()


def test_run_records_its_images(finished, sets):
    train, validation, _ = sets
    seen = read_seen(library.Model.load(finished.path))
    assert set(seen.train.tolist()) == set(image_digests(train.images).tolist())
    assert set(seen.validation.tolist()) == set(image_digests(validation.images).tolist())
    assert (finished.path / SEEN_FILE).stat().st_size < 8 * (len(train) + len(validation)) + 1000
    assert metrics(finished.path)["files"]["training_images"] == SEEN_FILE


def test_evaluate_on_training_data_reports_the_overlap(finished, sets, call):
    train, validation, test = sets
    out = json.loads(call("evaluate", finished.path, "digits", "--json")[1])
    told = out["overlap"]
    assert (told["train"], told["validation"], told["others"]) == (len(train), len(validation), len(test))
    # The others are the run's test images.
    of_run = metrics(finished.path)["test"]
    assert told["accuracy"] == pytest.approx(of_run["accuracy"], abs=1e-12)
    assert told["accuracy_ci95"] == pytest.approx(of_run["accuracy_ci95"], abs=1e-12)
    text = call("evaluate", finished.path, "digits")[1]
    used = len(train) + len(validation)
    assert f"warning: {used:,} of 1,797 images were used in training ({len(train):,})" in text
    assert f"accuracy on the other {len(test):,}: {of_run['accuracy']:.2%}" in text
    quality = library.Model.load(finished.path).evaluate("digits")
    assert quality.overlap.as_dict() == told
    assert quality.count == 1797


def test_held_out_images_have_no_overlap(finished, sets):
    train, _, test = sets
    model = library.Model.load(finished.path / "model.safetensors")
    quality = model.evaluate((test.images, test.labels))
    assert (quality.overlap.used, quality.overlap.others) == (0, len(test))
    assert quality.overlap.accuracy == quality.accuracy
    quality = model.evaluate((train.images[:50], train.labels[:50]))
    assert (quality.overlap.train, quality.overlap.others, quality.overlap.accuracy) == (50, 0, None)
    # Only the test split of a source is used.
    both = {"train": (train.images[:50], train.labels[:50]), "test": (test.images, test.labels)}
    assert model.evaluate(both).overlap.used == 0


def test_copies_under_other_names_are_found(finished, sets, tmp_path):
    train, _, test = sets
    for index in range(3):
        for name, images in (("copy", train), ("new", test)):
            folder = tmp_path / "photos" / images.classes[int(images.labels[index])]
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(images.images[index][..., 0]).convert("RGB")
            picture.save(folder / f"{name}{index}.bmp")
    quality = library.Model.load(finished.path).evaluate(tmp_path / "photos")
    assert (quality.overlap.train, quality.overlap.validation, quality.overlap.others) == (3, 0, 3)


def test_model_without_run_folder_has_no_overlap(finished, sets, call, tmp_path):
    shutil.copy(finished.path / "model.safetensors", tmp_path / "alone.safetensors")
    test = sets[2]
    assert library.Model.load(tmp_path / "alone.safetensors").evaluate("digits").overlap is None
    out = call("evaluate", tmp_path / "alone.safetensors", "digits")[1]
    assert f"there is no {SEEN_FILE}" in out
    assert json.loads(call("evaluate", tmp_path / "alone.safetensors", "digits", "--json")[1])["overlap"] is None
    # The same for a model without a file.
    model = library.Model.load(finished.path)
    assert replace(model, file=None).evaluate((test.images, test.labels)).overlap is None


def test_images_of_another_model_are_ignored(finished, tmp_path):
    model = library.Model.load(finished.path)
    path = tmp_path / "model.safetensors"
    model.save(path)
    other = replace(model, module=library.Model.load(finished.path).module)
    for parameter in other.module.parameters():
        parameter.data += 1.0
    write_seen(tmp_path / SEEN_FILE, SeenImages.of(*[np.zeros((1, 2, 2, 1), np.uint8)] * 2), other)
    assert read_seen(library.Model.load(path)) is None
    write_seen(tmp_path / SEEN_FILE, SeenImages.of(*[np.zeros((1, 2, 2, 1), np.uint8)] * 2), model)
    assert len(read_seen(library.Model.load(path)).train) == 1


def test_damaged_image_list_is_reported(finished, call, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    content = (run / SEEN_FILE).read_bytes()
    (run / SEEN_FILE).write_bytes(content[: len(content) // 2])
    error_of([SEEN_FILE, "remove it"], call("evaluate", run, "digits"), 1)
    # Everything else works.
    assert call("info", run)[0] == 0


def test_class_without_images_has_no_recall(finished, sets, call, tmp_path):
    test = sets[2]
    for index in np.flatnonzero(np.isin(test.labels, (3, 5)))[:20]:
        folder = tmp_path / "some" / test.classes[int(test.labels[index])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[index][..., 0]).save(folder / f"{index}.png")
    rows = {line.split()[0]: line.split()[1:] for line in call("evaluate", finished.path, "some")[1].splitlines()[-10:]}
    assert rows["0"][1:] == ["-", "-", "0"]
    assert all(value.endswith("%") for value in rows["3"][:3])
    entries = json.loads(call("evaluate", finished.path, "some", "--json")[1])["test"]["per_class"]
    absent = [entry for entry in entries if not entry["support"]]
    assert len(absent) == 8
    assert all(entry["recall"] is None and entry["f1"] is None for entry in absent)
    assert all(isinstance(entry["recall"], float) for entry in entries if entry["support"])


def test_evaluate_accepts_the_arrays_of_train(finished, sets):
    test, model = sets[2], library.Model.load(finished.path)
    of_run = model.evaluate((test.images, test.labels)).accuracy
    for images in (test.images[..., 0], np.repeat(test.images, 3, axis=3), np.asfortranarray(test.images)):
        assert model.evaluate((images, test.labels)).accuracy == of_run
    for wrong in (None, 5, [], (test.images,), (test.images, None), (test.images / 255, test.labels)):
        with pytest.raises(library.DataError):
            model.evaluate(wrong)
