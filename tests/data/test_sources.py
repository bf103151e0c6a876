"""Arrays, the bundled digits, names, and invalid sources."""

import numpy as np
import pytest
from data_samples import SETTINGS, picture, write_folder, write_parquet
from error_matching import raises

from thaw.data.images import InputSpec
from thaw.data.prepare import prepare
from thaw.data.resize import resize
from thaw.data.settings import DataSettings
from thaw.data.sources import open_source
from thaw.errors import UsageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


# Arrays and the bundled digits


def test_arrays():
    images = picture(1, (60, 9, 9))
    labels = np.arange(60) % 3
    data = prepare((images, labels), SETTINGS, seed=1)
    assert (str(data.input_spec), data.name, data.train.classes) == ("9x9x1", "arrays", ("0", "1", "2"))
    for row in range(len(data.train)):
        place = int(data.train.name(row)[6:-1])
        assert np.array_equal(data.train.images[row, ..., 0], images[place])
        assert data.train.labels[row] == labels[place]


def test_array_splits_and_names():
    parts = {
        split: (picture(i, (30, 8, 8, 3)), np.arange(30) % 2) for i, split in enumerate(("train", "validation", "test"))
    }
    data = prepare({**parts, "classes": ["no", "yes"]}, DataSettings(input="4x4x1"), seed=1)
    assert data.train.classes == ("no", "yes")
    assert np.array_equal(data.test.open().images, resize(parts["test"][0], InputSpec(height=4, width=4, channels=1)))


def test_unchanged_arrays_are_not_copied():
    images, labels = picture(1, (60, 9, 9, 3)), np.arange(60) % 3
    data = prepare(
        {"train": (images, labels), "test": (images[:9] ^ 1, labels[:9]), "val": (images[9:18] ^ 2, labels[:9])},
        SETTINGS,
        seed=1,
    )
    assert np.shares_memory(data.train.images, images)
    assert not data.train.images.flags.writeable
    assert images.flags.writeable


@pytest.mark.parametrize(
    ("source", "code", "fact"),
    [
        ((np.zeros((4, 8, 8)), [0, 1, 0, 1]), "data-arrays", "float64"),
        ((np.zeros((4, 8), np.uint8), [0, 1, 0, 1]), "data-arrays", "[4, 8]"),
        ((np.zeros((4, 3, 8, 8), np.uint8), [0, 1, 0, 1]), "data-arrays", "channels last"),
        ((np.zeros((4, 8, 8), np.uint8), [0, 1]), "data-arrays", "4 images and 2 labels"),
        ((np.zeros((4, 8, 8), np.uint8), np.eye(4)), "data-label", "[4, 4]"),
        ((np.zeros((4, 8, 8), np.uint8), [0.5, 1.0, 0.0, 1.0]), "data-label", "float64"),
        ({"train": 5}, "data-arrays", "int"),
        ({"learn": (np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1])}, "data-split", "'learn'"),
        (
            ([np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)], [0, 1]),
            "data-arrays",
            "list",
        ),
        ((None, [0, 1]), "data-arrays", "images are NoneType"),
        (("ab", [0, 1]), "data-arrays", "images are str"),
        (b"ab", "data-arrays", "images are int64"),
        ((np.zeros((4, 8, 8), np.uint8), [[0], [1, 2], [0], [1]]), "data-arrays", "labels"),
        ((np.zeros((4, 8, 8), np.uint8), None), "data-arrays", "labels are NoneType"),
        ((np.zeros((4, 8, 8), np.uint8), "abab"), "data-arrays", "labels are str"),
        ({"train": (np.zeros((2, 8, 8), np.uint8), [0, 1]), "classes": 3}, "data-classes", "3"),
        ({"train": (np.zeros((2, 8, 8), np.uint8), [0, 1]), "classes": [[], []]}, "data-classes", "[[], []]"),
        ({"train": (np.zeros((2, 8, 8), np.uint8), [0, 1]), "classes": ["a", "a"]}, "data-classes", "['a', 'a']"),
        (None, "data-arrays", "NoneType"),
        (3, "data-arrays", "int"),
        ({}, "data-empty", ""),
        ((), "data-arrays", "tuple"),
    ],
)
def test_rejects_other_arrays(source, code, fact):
    with raises(code, fact):
        prepare(source, SETTINGS, seed=1)


def test_lists_of_equal_arrays_are_an_array():
    images = picture(1, (60, 9, 9))
    labels = np.array([np.int64(i % 3) for i in range(60)], dtype=object)
    one, other = prepare((list(images), labels), SETTINGS, seed=1), prepare((images, labels.tolist()), SETTINGS, seed=1)
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("split", ["validation", "test"])
def test_split_without_labels_is_ignored(split):
    images = picture(1, (60, 9, 9))
    data = prepare({"train": (images, np.arange(60) % 3), split: (images[:5], [-1] * 5)}, SETTINGS, seed=1)
    assert data.splits[split]["origin"] == "cut"
    assert f"the {split} split has no labels and is ignored" in [str(problem) for problem in data.problems]


def test_invalid_array_labels_are_reported_by_index():
    images = picture(1, (30, 9, 9))
    labels = np.arange(30) % 3
    labels[4] = -1
    with raises("data-label", "1", "train[4]", "-1"):
        prepare((images, labels), SETTINGS, seed=1)
    data = prepare((images, labels), SETTINGS, seed=1, skip_broken=True)
    assert len(data.train) + len(data.validation) + len(data.test) == 29
    for row in range(len(data.train)):
        assert np.array_equal(data.train.images[row, ..., 0], images[int(data.train.name(row)[6:-1])])


def test_digits():
    from sklearn.datasets import load_digits

    data = prepare("digits", SETTINGS, seed=1)
    assert (data.name, str(data.input_spec)) == ("digits", "28x28x1")
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    raw = load_digits()
    input_spec = InputSpec(height=28, width=28, channels=1)
    for row in range(20):
        place = int(data.train.name(row)[7:-1])
        small = np.floor(raw.images[place] * 255 / 16 + 0.5).astype(np.uint8)[..., None]
        assert np.array_equal(data.train.images[row], resize(small, input_spec))
        assert data.train.labels[row] == raw.target[place]
    assert prepare("digits", SETTINGS, seed=1).fingerprint == data.fingerprint


# Invalid sources


def test_rejects_invalid_sources(tmp_path):
    with raises("data-source"):
        open_source("minst", SETTINGS)
    write_folder(tmp_path / "flowers")
    with raises("data-source"):
        open_source(tmp_path / "flower", SETTINGS)
    (tmp_path / "void").mkdir()
    with raises("data-empty"):
        open_source(tmp_path / "void", SETTINGS)
    with raises("data-layout"):
        open_source(tmp_path / "flowers" / "cat", SETTINGS)
    with raises("data-source"):
        open_source(tmp_path / "flowers" / "cat" / "cat1.png", SETTINGS)
    (tmp_path / "a.txt").write_text("x")
    with raises("data-source"):
        open_source(tmp_path / "a.txt", SETTINGS)
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "a.txt").write_text("x")
    with raises("data-empty", "1"):
        prepare(tmp_path / "texts", SETTINGS, seed=1)
    with raises("usage-data-root", "data_root="):
        open_source("mnist", SETTINGS, data_root=tmp_path / "missing")


def test_images_and_tables_in_one_folder_are_ambiguous(tmp_path):
    root = write_folder(tmp_path / "pets")
    write_parquet(root / ".hidden.parquet", [0, 1] * 6)
    write_parquet(root / ".cache" / "train.parquet", [0, 1] * 6)
    assert prepare(root, SETTINGS, seed=1).train.classes == ("cat", "dog")
    write_parquet(root / "meta.parquet", [0, 1] * 6)
    with raises("data-layout", "meta.parquet") as caught:
        open_source(root, SETTINGS)
    assert "Give the path of the parquet file, or move it" in str(caught.value)
    assert prepare(root / "meta.parquet", SETTINGS, seed=1).train.classes == ("0", "1")


def test_folder_with_the_name_of_a_known_set_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_source("digits", SETTINGS).problems == ()
    write_folder(tmp_path / "digits")
    data = prepare("digits", SETTINGS, seed=1)
    told = data.problems[0]
    assert (told.kind, told.severity, len(data.train.classes)) == ("name", "note", 10)
    assert "./digits" in str(told)
    assert prepare("./digits", SETTINGS, seed=1).train.classes == ("cat", "dog")


@pytest.mark.parametrize("source", ["", "  "])
def test_rejects_an_empty_source(source):
    with raises("usage-source"):
        open_source(source, SETTINGS)


@pytest.mark.parametrize("source", ["a\0b", "x" * 5000, "~nobody-of-this-name/x"])
def test_invalid_paths_are_reported(source):
    with raises("data-source"):
        open_source(source, SETTINGS)


@pytest.mark.parametrize("root", [3, ["a"], b"a"])
def test_data_root_is_a_path(root):
    with raises("usage-data-root"):
        open_source("mnist", SETTINGS, data_root=root)


@pytest.mark.parametrize(
    "options",
    [
        {"input": "28x28"},
        {"input": "0x28x1"},
        {"input": "28x28x2"},
        {"input": "2\u00b2x28x1"},
        {"input": "9" * 5000 + "x28x1"},
        {"fit": "zoom"},
        {"normalize": "none"},
        {"validation_fraction": 0},
        {"validation_fraction": 0.6},
        {"test_fraction": True},
        {"test_fraction": "0.1"},
        {"test_fraction": float("nan")},
        {"input": 28},
        {"image_column": "a", "label_column": "a"},
    ],
)
def test_settings_are_strict(options):
    with pytest.raises(UsageError):
        DataSettings(**options)
