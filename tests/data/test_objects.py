"""Data in memory: paths and labels, data frames, and data sets of torch and `datasets`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from data_samples import SETTINGS, picture, png, problem, write_folder
from error_matching import raises
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

import thaw as library
from thaw.data.images import InputSpec
from thaw.data.prepare import open_image_set, prepare
from thaw.data.settings import DataSettings
from thaw.data.sources import open_source

COUNT = 24
LABELS = [row % 2 for row in range(COUNT)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


@pytest.fixture
def files(tmp_path):
    paths = []
    for row in range(COUNT):
        paths.append(tmp_path / f"{row}.png")
        Image.fromarray(picture(row)).save(paths[-1])
    return paths


def contents(data):
    """(pixels, class) of every image of all splits."""
    parts = (data.train, data.validation, data.test.open())
    return Counter(
        (part.images[row].tobytes(), part.classes[part.labels[row]]) for part in parts for row in range(len(part))
    )


def expected(classes=("0", "1"), pixels=picture):
    return Counter((pixels(row).tobytes(), classes[LABELS[row]]) for row in range(COUNT))


# Paths


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series])
def test_paths_and_labels(files, kind):
    names = kind([str(path) for path in files])
    data = prepare((names, kind(["ab"[label] for label in LABELS])), SETTINGS, seed=1)
    assert contents(data) == expected(("a", "b"))
    assert data.train.name(0) in {str(path) for path in files}


def test_paths_by_split_with_class_names(files, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    paths = [path.name for path in files]
    source = {"train": (paths[:18], LABELS[:18]), "test": (paths[18:], LABELS[18:]), "classes": ["no", "yes"]}
    data = prepare(source, SETTINGS, seed=1)
    assert list(data.test.names) == paths[18:]
    assert contents(data) == expected(("no", "yes"))


def test_rejects_invalid_paths(files):
    with raises("data-arrays", "24", "2"):
        prepare((files, [0, 1]), SETTINGS, seed=1)
    with raises("data-unreadable", "none.png", "No"):
        prepare(([*files, Path("none.png")], [*LABELS, 1]), SETTINGS, seed=1)
    with raises("data-label", "float64"):
        prepare((files, [0.5] * COUNT), SETTINGS, seed=1)
    with raises("data-arrays"):
        prepare({"train": (files, LABELS), "test": (picture(1, (4, 8, 8)), [0, 1, 0, 1])}, SETTINGS, seed=1)


def test_pattern_groups_paths(files):
    data = prepare((files, LABELS), DataSettings(group_by=r"(\d)\.png"), seed=1)
    assert data.grouping["count"] == 10


# Data frames


def test_data_frames(files):
    frame = pd.DataFrame({"file": [str(path) for path in files], "kind": pd.Categorical(["ab"[i] for i in LABELS])})
    assert contents(prepare(frame, SETTINGS, seed=1)) == expected(("a", "b"))
    frame["split"] = ["train"] * 18 + ["test"] * 6
    data = prepare(frame.sample(frac=1, random_state=3), SETTINGS, seed=1)
    assert (len(data.test), data.splits["test"]["origin"]) == (6, "source")
    frame.loc[3, "kind"] = None
    with raises("data-label", "1", "3.png"):
        prepare(frame, SETTINGS, seed=1)


def test_numbers_with_gaps_in_a_data_frame(files):
    frame = pd.DataFrame({"file": [*map(str, files), str(files[0])], "y": [*map(float, LABELS), float("nan")]})
    data = prepare(frame, SETTINGS, seed=1, skip_broken=True)
    assert data.train.classes == ("0", "1")
    assert len(data.left_out) == 1
    frame["y"] = frame["y"].astype("Int64")
    assert prepare(frame, SETTINGS, seed=1, skip_broken=True).fingerprint == data.fingerprint


def test_encoded_images_in_a_data_frame():
    frame = pd.DataFrame({"image": [png(row) for row in range(COUNT)], "label": LABELS})
    assert contents(prepare(frame, SETTINGS, seed=1)) == expected()
    structs = pd.DataFrame({"img": [{"bytes": png(row), "path": None} for row in range(COUNT)], "label": LABELS})
    assert contents(prepare(structs, SETTINGS, seed=1)) == expected()


@pytest.mark.parametrize("form", [picture, lambda row: Image.fromarray(picture(row))])
def test_pictures_in_a_data_frame(form):
    frame = pd.DataFrame({"photo": [form(row) for row in range(COUNT)], "label": LABELS})
    frame["vector"] = list(np.zeros((COUNT, 4)))
    assert contents(prepare(frame, SETTINGS, seed=1)) == expected()


def test_rejects_invalid_data_frames(files):
    with raises("data-empty"):
        prepare(pd.DataFrame({"file": [], "label": []}), SETTINGS, seed=1)
    twice = pd.DataFrame([[str(files[0]), 0, 1]], columns=["file", "label", "label"])
    with raises("data-columns", "'label'"):
        prepare(twice, SETTINGS, seed=1)
    with raises("data-columns"):
        prepare(pd.DataFrame({"a": [1, 2], "label": [0, 1]}), SETTINGS, seed=1)


# Data sets of torch


class Items(Dataset):
    """Items made by `make(row)`, with the number of requests for each."""

    def __init__(self, make, count=COUNT, **facts):
        self.make, self.count, self.read = make, count, Counter()
        self.__dict__.update(facts)

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        self.read[row] += 1
        return self.make(row)


def as_tensor(pixels):
    """The result of torchvision's ToTensor."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


FORMS = {
    "PIL": lambda row: Image.fromarray(picture(row)),
    "bytes [H, W, C]": picture,
    "float tensor [C, H, W]": lambda row: as_tensor(picture(row)),
    "byte tensor [C, H, W]": lambda row: torch.from_numpy(picture(row).transpose(2, 0, 1).copy()),
    "float array [C, H, W]": lambda row: as_tensor(picture(row)).numpy(),
    "half tensor": lambda row: as_tensor(picture(row)).double(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", [int, np.int64, float, torch.tensor, lambda value: torch.tensor([float(value)])])
def test_items_are_read_once_without_loss(form, label):
    items = Items(lambda row: (FORMS[form](row), label(LABELS[row])))
    assert contents(prepare(items, SETTINGS, seed=1)) == expected()
    assert items.read == Counter(range(COUNT))


def test_items_as_gray_tensors_texts_and_mappings():
    gray = lambda row: picture(row, (10, 12, 1))  # noqa: E731
    for items in (
        Items(lambda row: (torch.from_numpy(gray(row)[..., 0].copy()), "ab"[LABELS[row]])),
        Items(lambda row: {"image": as_tensor(gray(row)), "label": "ab"[LABELS[row]]}),
        Items(lambda row: [Image.fromarray(gray(row)[..., 0]), "ab"[LABELS[row]]]),
    ):
        data = prepare(items, SETTINGS, seed=1)
        assert str(data.input_spec) == "10x12x1"
        assert contents(data) == expected(("a", "b"), gray)


def test_items_of_several_sizes():
    sized = lambda row: picture(row, (8 + row % 3, 9, 3))  # noqa: E731
    settings = DataSettings(input="8x9x3")
    data = prepare(Items(lambda row: (sized(row), LABELS[row])), settings, seed=1)
    kept = {row: sized(row) for row in range(COUNT) if sized(row).shape == (8, 9, 3)}
    found = contents(data)
    assert all(found[pixels.tobytes(), str(LABELS[row])] == 1 for row, pixels in kept.items())
    assert sum(found.values()) == COUNT


def test_class_names_of_data_sets_and_subsets():
    whole = Items(lambda row: (picture(row), LABELS[row]), classes=["zebra", "ape"])
    assert contents(prepare(whole, SETTINGS, seed=1)) == expected(("zebra", "ape"))
    part = Subset(Subset(whole, range(20)), range(16))
    assert prepare(part, SETTINGS, seed=1).train.classes == ("zebra", "ape")
    assert prepare(ConcatDataset([part, part]), SETTINGS, seed=1).train.classes == ("zebra", "ape")
    three = Items(lambda row: (picture(row), LABELS[row]), classes=["a", "b", "unused"])
    data = prepare(three, SETTINGS, seed=1)
    assert data.train.classes == ("a", "b")
    assert problem(data, "class").names == ("unused",)


def test_splits_and_groups_of_data_sets():
    train = Items(lambda row: (picture(row), LABELS[row], f"p{row // 3}"))
    test = Items(lambda row: (picture(500 + row), LABELS[row], f"q{row}"), count=8)
    data = prepare({"train": train, "test": test}, SETTINGS, seed=1)
    assert (len(data.test), data.grouping["count"]) == (8, 8)
    pixels = np.stack([picture(row).transpose(2, 0, 1) for row in range(COUNT)])
    tensors = TensorDataset(torch.from_numpy(pixels), torch.tensor(LABELS))
    assert contents(prepare(tensors, SETTINGS, seed=1)) == expected()


def test_lists_of_pictures():
    images = [Image.fromarray(picture(row)) for row in range(COUNT)]
    assert contents(prepare((images, LABELS), SETTINGS, seed=1)) == expected()


class Stream(IterableDataset):
    def __iter__(self):
        yield picture(1), 0


@pytest.mark.parametrize(
    ("source", "code", "fact"),
    [
        (Stream(), "data-arrays", "Stream"),
        (iter([1]), "data-arrays", "list_iterator"),
        (Items(picture), "data-arrays", "train[0]"),
        (Items(lambda row: (picture(row), 0.5)), "data-label", "0.5"),
        (Items(lambda row: (picture(row), np.eye(2)[0])), "data-label", "train[0]"),
        (Items(lambda row: (as_tensor(picture(row)) * 2 - 1, 0)), "data-arrays", "-1 to 1"),
        (Items(lambda row: (as_tensor(picture(row)) * float("nan"), 0)), "data-arrays", "nan to nan"),
        (Items(lambda row: (np.zeros((4, 4, 4), np.uint8), 0)), "data-arrays", "uint8 [4, 4, 4]"),
        (Items(lambda row: (np.zeros((4, 4), np.int64), 0)), "data-arrays", "int64 [4, 4, 1]"),
        (Items(lambda row: ("x.png", 0)), "data-arrays", "train[0] is str"),
        (Items(lambda row: 1 / 0), "data-unreadable", "train[0]"),
        (Items(lambda row: None, count=0), "data-empty", ""),
        (([Image.new("RGB", (4, 4))], [0, 1]), "data-arrays", "1 images and 2 labels"),
    ],
)
def test_rejects_invalid_items(source, code, fact):
    with raises(code, fact):
        prepare(source, SETTINGS, seed=1)


def test_opened_source_does_not_read_items_again():
    items = Items(lambda row: (picture(row), LABELS[row]))
    opened = open_source(items, SETTINGS)
    assert open_source(opened, SETTINGS) is opened
    one, two = prepare(opened, SETTINGS, seed=1), prepare(opened, SETTINGS, seed=1)
    assert one.fingerprint == two.fingerprint
    assert items.read == Counter(range(COUNT))


# `datasets`


def hub_set(start=0, count=COUNT, **columns):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
        | {name: datasets.Value("string") for name in columns}
    )
    images = [{"bytes": png(start + row), "path": None} for row in range(count)]
    return datasets.Dataset.from_dict({"image": images, "label": LABELS[:count], **columns}, features=features)


def test_datasets_library_data_set():
    data = prepare(hub_set(), SETTINGS, seed=1)
    assert contents(data) == expected(("no", "yes"))
    shuffled = prepare(hub_set().shuffle(seed=3).with_format("torch"), SETTINGS, seed=1)
    assert contents(shuffled) == expected(("no", "yes"))
    assert shuffled.fingerprint != data.fingerprint


def test_datasets_library_splits_columns_and_groups():
    both = datasets.DatasetDict({"train": hub_set(), "test": hub_set(500, 6), "extra": hub_set(600, 2)})
    data = prepare(both, SETTINGS, seed=1)
    assert (len(data.test), problem(data, "unused").names) == (6, ("extra",))
    grouped = hub_set(person=[f"p{row // 3}" for row in range(COUNT)])
    assert prepare(grouped, DataSettings(group_by="person"), seed=1).grouping["count"] == 8
    split = hub_set(split=["train"] * 18 + ["test"] * 6)
    assert len(prepare(split, SETTINGS, seed=1).test) == 6
    with raises("usage-groups"):
        prepare(hub_set(), DataSettings(group_by="person"), seed=1)


def test_datasets_library_files_are_opened(tmp_path):
    write_folder(tmp_path / "set")
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), split="train")
    data = prepare(found, SETTINGS, seed=1)
    assert data.train.classes == ("cat", "dog")
    Image.fromarray(picture(99_999)).save(tmp_path / "set" / "cat" / "cat3.png")
    assert prepare(found, SETTINGS, seed=1).fingerprint != data.fingerprint


def test_evaluation_accepts_all_kinds(files):
    input_spec = InputSpec(height=10, width=12, channels=3)
    frame = pd.DataFrame({"file": [str(path) for path in files], "label": LABELS})
    for source in ((files, LABELS), frame, Items(lambda row: (picture(row), LABELS[row])), hub_set()):
        images, _ = open_image_set(source, input_spec, ("no", "yes"))
        assert images.labels.tolist() == LABELS
        assert np.array_equal(images.images[3], picture(3))


def test_library_reads_items_once():
    items = Items(lambda row: (picture(row), LABELS[row]))
    data = library.load(items, recipe="balanced", overrides=["sizing.sides=[8]"])
    assert items.read == Counter(range(COUNT))
    assert len(data.train) + len(data.validation) + len(data.test) == COUNT
