"""From class folders to prepared data: layouts, splits, the sealed test set, faults, inputs."""

import itertools
import json
import os
import sys

import numpy as np
import pytest
from data_samples import SETTINGS, picture, problem, write_folder
from error_matching import raises
from PIL import Image

from thaw.data.image_files import load_images
from thaw.data.images import InputSpec
from thaw.data.prepare import prepare
from thaw.data.problems import Problem
from thaw.data.resize import resize
from thaw.data.settings import DataSettings
from thaw.data.summary import look
from thaw.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


# Folders of class folders


def test_class_folders(tmp_path):
    root = write_folder(tmp_path / "Pets 2", count=20)
    data = prepare(root, SETTINGS, seed=1)
    assert data.name == "Pets 2"
    assert data.train.classes == ("cat", "dog")
    assert (len(data.test), len(data.validation), len(data.train)) == (8, 4, 28)
    assert str(data.input_spec) == "12x10x3" or str(data.input_spec) == "10x12x3"
    assert data.splits["test"] == {"origin": "cut", "count": 8, "fraction": 0.2, "seed": 1}
    assert data.splits["train"] == {"origin": "source", "count": 28, "fraction": None, "seed": None}
    test = data.test.open()
    for images in (data.train, data.validation, test):
        for row in range(len(images)):
            assert np.array_equal(images.images[row], np.asarray(Image.open(root / images.name(row))))
            assert images.name(row).startswith(images.classes[images.labels[row]])
    assert len({*data.train.names, *data.validation.names, *test.names}) == 40


def test_test_set_opens_once(tmp_path):
    data = prepare(write_folder(tmp_path / "pets"), SETTINGS, seed=1)
    assert len(data.test) == len(data.test.names)
    data.test.open()
    with pytest.raises(RuntimeError):
        data.test.open()


def test_same_seed_gives_same_splits_and_fingerprint_is_independent_of_the_seed(tmp_path):
    root = write_folder(tmp_path / "pets", count=20)
    one, two, other = (prepare(root, SETTINGS, seed=seed) for seed in (1, 1, 2))
    assert one.test.names == two.test.names != other.test.names
    assert one.fingerprint == two.fingerprint == other.fingerprint
    Image.fromarray(picture(99_999)).save(root / "cat" / "cat3.png")
    assert prepare(root, SETTINGS, seed=1).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "splits",
    [("train", "val", "test"), ("Train", "valid", "TEST"), ("training", "Validation", "testing")],
)
def test_split_folders(tmp_path, splits):
    root = tmp_path / "pets"
    for start, split in enumerate(splits):
        write_folder(root / split, count=4 + start, start=100 * start)
    data = prepare(root, SETTINGS, seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 10, 12)
    assert {part["origin"] for part in data.splits.values()} == {"source"}


def test_missing_validation_split_is_cut_from_training_only(tmp_path):
    root = tmp_path / "pets"
    write_folder(root / "train", count=20)
    write_folder(root / "test", count=3, start=100)
    (root / "extra").mkdir()
    Image.fromarray(picture(5)).save(root / "extra" / "x.png")
    data = prepare(root, SETTINGS, seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 6)
    assert all(name.startswith("train/") for name in data.validation.names)
    assert problem(data, "unused").names == ("extra",)


def test_rejects_classes_below_other_folders(tmp_path):
    for folder in ("learn", "eval"):
        write_folder(tmp_path / "pets" / folder)
    with raises("data-class", "CLASS/IMAGE", "SPLIT/CLASS/IMAGE"):
        prepare(tmp_path / "pets", SETTINGS, seed=1)
    (tmp_path / "pets" / "learn").rename(tmp_path / "pets" / "Training")
    data = prepare(tmp_path / "pets", SETTINGS, seed=1)
    assert problem(data, "unused").names == ("eval",)
    assert data.train.classes == ("cat", "dog")


def test_unreadable_photograph_formats_are_reported(tmp_path):
    root = tmp_path / "phone"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "1.HEIC").write_bytes(b"photo")
    with raises("data-empty", "2", "HEIC"):
        prepare(root, SETTINGS, seed=1)
    mixed = write_folder(tmp_path / "mixed")
    (mixed / "cat" / "1.heic").write_bytes(b"photo")
    with raises("data-format", "HEIC", "skip_broken=True", "cat/1.heic"):
        prepare(mixed, SETTINGS, seed=1)
    assert prepare(mixed, SETTINGS, seed=1, skip_broken=True).left_out == ("cat/1.heic",)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_not_utf_8_can_be_written(tmp_path):
    root = write_folder(tmp_path / "pets")
    Image.fromarray(picture(4321)).save(root / "cat" / os.fsdecode(b"\xff0.png"))
    (root / "dog" / os.fsdecode(b"\xfe.png")).touch()
    (root / os.fsdecode(b"fi\xe9vre")).mkdir()
    for index in range(12):
        Image.fromarray(picture(5000 + index)).save(root / os.fsdecode(b"fi\xe9vre") / f"{index}.png")
    data = prepare(root, SETTINGS, seed=1, skip_broken=True)
    assert data.train.classes == ("cat", "dog", r"fi\xe9vre")
    assert data.left_out == (r"dog/\xfe.png (empty file)",)
    names = [*data.train.names, *data.validation.names, *data.test.open().names]
    assert r"cat/\xff0.png" in names
    told = [problem.as_dict() for problem in data.problems]
    json.dumps([names, told, data.train.classes], ensure_ascii=False).encode()
    images, shown, _ = load_images([root / "cat" / os.fsdecode(b"\xff0.png")], data.input_spec)
    assert np.array_equal(images[0], picture(4321))
    assert shown[0].endswith(r"/\xff0.png")


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    root = write_folder(tmp_path / "pe\x1b[2Jts", classes=("cat\n\x1b[31m", "dog"))
    (root / "dog" / "a\x1b]0;title\x07.png").touch()
    summary = look(root, SETTINGS)
    assert summary.classes[0] == "cat\n\x1b[31m"
    assert problem(summary, "unreadable").names == ("dog/a\x1b]0;title\x07.png (empty file)",)
    text = summary.describe()
    assert "\x1b" not in text
    assert r"cat\n\x1b[31m" in text
    with pytest.raises(DataError) as caught:
        prepare(root, SETTINGS, seed=1)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "cached"), [("\u00c9t\u00e9", "ete"), ("\u82b1", "data"), ("x" * 240, "x" * 60), ("Pets 2", "pets-2")]
)
def test_name_is_kept_and_cache_folder_is_short(tmp_path, folder, cached):
    data = prepare(write_folder(tmp_path / folder), SETTINGS, seed=1)
    assert data.name == folder
    (made,) = (tmp_path / "cache").iterdir()
    assert made.name.rsplit("-", maxsplit=1)[0] == cached


@pytest.mark.parametrize("options", [{"seed": "1"}, {"seed": None}, {"seed": 1.0}, {"folds": "5"}, {"folds": -1}])
def test_seed_and_folds_are_integers(options):
    with raises("usage"):
        prepare("digits", SETTINGS, **{"seed": 1, **options})


def test_class_may_be_named_test(tmp_path):
    data = prepare(write_folder(tmp_path / "lab", classes=("test", "control")), SETTINGS, seed=1)
    assert data.train.classes == ("control", "test")


def test_classes_and_files_sort_naturally(tmp_path):
    root = write_folder(tmp_path / "numbers", classes=("10", "9", "1"))
    data = prepare(root, SETTINGS, seed=1)
    assert data.train.classes == ("1", "9", "10")


def test_subfolders_belong_to_their_class_and_strays_are_reported(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "cat" / "old").mkdir()
    Image.fromarray(picture(777)).save(root / "cat" / "old" / "a.png")
    Image.fromarray(picture(778)).save(root / "cat" / "no_ending", format="PNG")
    (root / "cat" / "notes.txt").write_text("text")
    (root / ".DS_Store").write_bytes(b"\0")
    Image.fromarray(picture(779)).save(root / "beside.png")
    summary = look(root, SETTINGS)
    assert summary.counts == {"train": {"cat": 14, "dog": 12}}
    assert problem(summary, "stray").names == ("cat/notes.txt",)
    hidden = problem(summary, "hidden")
    assert (hidden.severity, hidden.names) == ("note", (".DS_Store",))
    assert problem(summary, "unused").names == ("beside.png",)


def test_faults_are_reported_together(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "cat" / "empty.png").touch()
    (root / "dog" / "text.jpg").write_text("not an image")
    (root / "bird").mkdir()
    (root / "fish").mkdir()
    Image.fromarray(picture(4242)).save(root / "fish" / "only.png")
    with pytest.raises(DataError) as caught:
        prepare(root, SETTINGS, seed=1)
    text = str(caught.value)
    for part in (
        "cat/empty.png (empty file)",
        "dog/text.jpg (not an image",
        "skip_broken=True",
        "bird",
        "fish (1)",
        "3 problems",
    ):
        assert part in text


def test_skip_broken_lists_skipped_images(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "cat" / "empty.png").touch()
    with raises("data-unreadable", "1", "cat/empty.png"):
        prepare(root, SETTINGS, seed=1)
    data = prepare(root, SETTINGS, seed=1, skip_broken=True)
    assert data.left_out == ("cat/empty.png (empty file)",)
    assert len(data.train) + len(data.validation) + len(data.test) == 24


def test_long_lists_are_counted():
    assert str(Problem("x", "note", "some", tuple("abcdefgh"))) == "some: a, b, c, d, e and 3 more"


def test_identical_images_stay_together_and_are_reported(tmp_path):
    root = write_folder(tmp_path / "pets", count=20)
    for index in range(10):
        Image.fromarray(picture(index)).save(root / "cat" / f"copy{index}.bmp")
    Image.fromarray(picture(3)).save(root / "dog" / "clash.png")
    for seed in range(4):
        data = prepare(root, SETTINGS, seed=seed)
        parts = [data.train, data.validation, data.test.open()]
        contents = [{image.tobytes() for image in part.images} for part in parts]
        assert all(not one & other for one, other in itertools.combinations(contents, 2))
    assert len(problem(data, "repeat").names) == 11
    assert problem(data, "duplicate").names == ("cat/cat3.png = dog/clash.png (cat, dog)",)
    same = {}
    for row, group in enumerate(data.train_groups.tolist()):
        assert same.setdefault(data.train.images[row].tobytes(), group) == group


def test_duplicates_across_splits_of_the_source_are_reported(tmp_path):
    root = tmp_path / "pets"
    write_folder(root / "train", count=20)
    write_folder(root / "test", count=3, start=100)
    Image.fromarray(picture(7)).save(root / "test" / "cat" / "again.bmp")
    data = prepare(root, SETTINGS, seed=1)
    told = problem(data, "duplicate")
    assert (told.severity, told.names) == ("warning", ("train/cat/cat7.png = test/cat/again.bmp",))


def test_class_faults(tmp_path):
    one = write_folder(tmp_path / "one", classes=("cat",))
    with raises("data-class"):
        prepare(one, SETTINGS, seed=1)
    root = tmp_path / "lacking"
    write_folder(root / "train")
    write_folder(root / "test", classes=("cat", "dog", "bird"), start=500)
    with raises("data-class"):
        prepare(root, SETTINGS, seed=1)
    few = write_folder(tmp_path / "few", count=6)
    assert len(prepare(few, SETTINGS, seed=1).train)
    with raises("data-class", "5", "6"):
        prepare(few, SETTINGS, seed=1, folds=5)
    only_test = write_folder(tmp_path / "t" / "test").parent
    with raises("data-split"):
        prepare(only_test, SETTINGS, seed=1)


def test_imbalanced_classes_are_reported(tmp_path):
    root = write_folder(tmp_path / "pets", classes=("cat",), count=40)
    write_folder(root, classes=("dog",), count=3, start=999)
    assert problem(prepare(root, SETTINGS, seed=1), "balance").names == ("dog",)


def test_conversions_are_noted(tmp_path):
    root = write_folder(tmp_path / "pets")
    Image.fromarray(picture(1, (10, 12, 4))).save(root / "cat" / "alpha.png")
    Image.fromarray(picture(2)).quantize(4).save(root / "cat" / "palette.png")
    frames = [Image.fromarray(picture(3 + i)) for i in range(2)]
    frames[0].save(root / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    data = prepare(root, SETTINGS, seed=1)
    assert problem(data, "alpha").names == ("cat/alpha.png",)
    assert problem(data, "animated").names == ("dog/moving.gif",)
    assert "cat/palette.png" in problem(data, "palette").names


# Input


def test_auto_input(tmp_path):
    cases = {
        "own": ((10, 12, 3), "10x12x3"),
        "gray": ((64, 30), "64x30x1"),
        "large": ((65, 20, 3), "32x32x3"),
    }
    for name, (shape, expected) in cases.items():
        data = prepare(write_folder(tmp_path / name, shape=shape), SETTINGS, seed=1)
        assert str(data.input_spec) == expected
        assert expected in problem(data, "input").message
    mixed = write_folder(tmp_path / "mixed", shape=(20, 20))
    Image.fromarray(picture(5, (20, 21))).save(mixed / "dog" / "zz.png")
    data = prepare(mixed, SETTINGS, seed=1)
    assert str(data.input_spec) == "32x32x1"
    assert "differ in size" in problem(data, "input").message


def test_one_color_image_gives_three_channels(tmp_path):
    root = write_folder(tmp_path / "pets", shape=(20, 20), count=50)
    Image.fromarray(picture(5, (20, 20, 3))).save(root / "dog" / "zz.png")
    data = prepare(root, SETTINGS, seed=1)
    assert str(data.input_spec) == "20x20x3"
    for row in range(len(data.train)):
        expected = np.asarray(Image.open(root / data.train.name(row)).convert("RGB"))
        assert np.array_equal(data.train.images[row], expected)


@pytest.mark.parametrize(("wanted", "fit"), [("7x5x1", "stretch"), ("16x8x3", "crop"), ("28x28x1", "crop")])
def test_explicit_input_uses_the_common_resizing(tmp_path, wanted, fit):
    root = write_folder(tmp_path / "pets")
    data = prepare(root, DataSettings(input=wanted, fit=fit), seed=1)
    height, width, channels = (int(part) for part in wanted.split("x"))
    input_spec = InputSpec(height=height, width=width, channels=channels, fit=fit)
    assert (data.input_spec.shape, data.input_spec.fit) == (input_spec.shape, fit)
    for row in range(len(data.train)):
        original = np.asarray(Image.open(root / data.train.name(row)))
        assert np.array_equal(data.train.images[row], resize(original, input_spec))


def test_statistics_are_those_of_the_training_part(tmp_path):
    root = write_folder(tmp_path / "pets", count=20)
    data = prepare(root, SETTINGS, seed=1)
    pixels = data.train.images / 255.0
    assert np.allclose(data.input_spec.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-12)
    assert np.allclose(data.input_spec.std, pixels.std(axis=(0, 1, 2)), atol=1e-12)
    unit = prepare(root, DataSettings(normalize="unit"), seed=1).input_spec
    assert (unit.mean, unit.std) == ((0.0,) * 3, (1.0,) * 3)
