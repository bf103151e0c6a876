"""Parquet files and data sets of the Hub: columns, labels, splits, damage."""

import socket

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import SETTINGS, picture, png, problem, write_folder, write_parquet
from PIL import Image

from thaw.data import hub
from thaw.data.prepare import prepare
from thaw.data.settings import DataSettings
from thaw.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


# Tables


def test_parquet_with_class_names(tmp_path):
    root = tmp_path / "set"
    names = ["apple", "pear"]
    write_parquet(root / "train-00000-of-00002.parquet", [0, 1] * 6, names=names)
    write_parquet(root / "train-00001-of-00002.parquet", [1, 0] * 6, names=names, start=100)
    write_parquet(root / "test-00000-of-00001.parquet", [0, 1, 1], names=names, start=300)
    data = prepare(root, SETTINGS, seed=1)
    test = data.test.open()
    assert (test.classes, test.labels.tolist(), list(test.names)) == (
        ("apple", "pear"),
        [0, 1, 1],
        ["test[0]", "test[1]", "test[2]"],
    )
    assert np.array_equal(test.images[2], picture(302))
    assert len(data.train) + len(data.validation) == 24


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([3, 11, 3, 11] * 4, ("3", "11")),
        (["b", "a10", "a9"] * 5, ("a9", "a10", "b")),
        ([True, False] * 6, ("False", "True")),
    ],
)
def test_parquet_labels_without_names(tmp_path, labels, classes):
    write_parquet(tmp_path / "things.parquet", labels)
    data = prepare(tmp_path / "things.parquet", SETTINGS, seed=1)
    assert (data.train.classes, data.name) == (classes, "things")
    for row in range(len(data.train)):
        place = int(data.train.name(row)[6:-1])
        assert classes[data.train.labels[row]] == str(labels[place])


def test_missing_and_impossible_labels_are_told_by_row(tmp_path):
    labels = [0, 1] * 8 + [None, 7, -1]
    write_parquet(tmp_path / "a.parquet", labels, names=["apple", "pear"])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "a.parquet", SETTINGS, seed=1)
    assert "1 image without a label" in str(caught.value)
    assert "train[16]" in str(caught.value)
    assert "train[17] has 7, train[18] has -1" in str(caught.value)
    data = prepare(tmp_path / "a.parquet", SETTINGS, seed=1, skip_broken=True)
    assert len(data.left_out) == 3
    assert len(data.train) + len(data.validation) + len(data.test) == 16


def test_broken_and_missing_table_images_are_told_by_row(tmp_path):
    images = [{"bytes": png(i), "path": None} for i in range(12)]
    images[5] = {"bytes": None, "path": None}
    images[7] = {"bytes": b"rubbish", "path": None}
    write_parquet(tmp_path / "a.parquet", [0, 1] * 6, images=images)
    with pytest.raises(DataError, match=r"train\[5\] \(no image\), train\[7\] \(not an image of a known format\)"):
        prepare(tmp_path / "a.parquet", SETTINGS, seed=1)


def test_plain_bytes_are_an_image_column(tmp_path):
    write_parquet(
        tmp_path / "a.parquet", ["x", "y"] * 6, images=[png(i) for i in range(12)], image="picture", label="kind"
    )
    assert prepare(tmp_path / "a.parquet", SETTINGS, seed=1).train.classes == ("x", "y")


def test_ambiguous_columns_list_the_candidates(tmp_path):
    extra = {"fine": [0, 1, 2] * 4, "second": [png(i) for i in range(12)]}
    write_parquet(tmp_path / "a.parquet", ["x", "y"] * 6, label="coarse", extra=extra)
    with pytest.raises(DataError, match=r"several image columns: choose data.image_column from image, second"):
        prepare(tmp_path / "a.parquet", SETTINGS, seed=1)
    with pytest.raises(DataError, match=r"several label columns: choose data.label_column from coarse, fine"):
        prepare(tmp_path / "a.parquet", DataSettings(image_column="image"), seed=1)
    data = prepare(tmp_path / "a.parquet", DataSettings(image_column="image", label_column="fine"), seed=1)
    assert data.train.classes == ("0", "1", "2")
    with pytest.raises(DataError, match=r"no column 'fin'.*coarse, fine"):
        prepare(tmp_path / "a.parquet", DataSettings(image_column="image", label_column="fin"), seed=1)
    write_parquet(tmp_path / "b.parquet", [0.5, 1.5], label="score")
    with pytest.raises(DataError, match="no label column \\(of whole numbers or texts\\)"):
        prepare(tmp_path / "b.parquet", SETTINGS, seed=1)


def test_damaged_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a.parquet is no readable parquet file"):
        prepare(tmp_path / "a.parquet", SETTINGS, seed=1)


def test_a_damaged_page_is_told_by_the_files_name(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(path, [f"class{i % 2}" for i in range(12)])
    whole = path.read_bytes()
    for column in (0, 1):
        start = pq.ParquetFile(path).metadata.row_group(0).column(column * 2).data_page_offset
        path.write_bytes(whole[:start] + b"\xff" * 40 + whole[start + 40 :])
        with pytest.raises(DataError, match=r"train.parquet cannot be read to its end") as caught:
            prepare(path, SETTINGS, seed=1)
        assert "\n" not in str(caught.value)
        assert "cache" not in str(caught.value).replace(str(tmp_path), "")
        path.write_bytes(whole)


def test_paths_in_a_table_start_from_its_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "set")
    paths = [f"{name}/{name}{i}.png" for i in range(12) for name in ("cat", "dog")]
    write_parquet(tmp_path / "set" / "a.parquet", ["cat", "dog"] * 12, image="file", images=paths)
    monkeypatch.chdir(tmp_path)
    settings = DataSettings(image_column="file", label_column="label")
    data = prepare(tmp_path / "set" / "a.parquet", settings, seed=1)
    for row in range(len(data.train)):
        place = int(data.train.name(row)[6:-1])
        assert np.array_equal(data.train.images[row], np.asarray(Image.open(tmp_path / "set" / paths[place])))
    write_parquet(tmp_path / "b.parquet", [0, 1] * 6, image="file", images=["a"] * 12)
    with pytest.raises(DataError, match="column 'label' holds int: expected encoded images"):
        prepare(tmp_path / "b.parquet", DataSettings(image_column="label", label_column="file"), seed=1)


@pytest.mark.parametrize("hidden", [None, -1])
def test_a_test_split_without_labels_is_replaced(tmp_path, hidden):
    root = tmp_path / "contest"
    write_parquet(root / "train.parquet", [0, 1] * 12, names=["no", "yes"])
    write_parquet(root / "test.parquet", pa.array([hidden] * 6, pa.int64()), names=["no", "yes"], start=500)
    data = prepare(root, SETTINGS, seed=1)
    told = problem(data, "unlabeled")
    assert (told.severity, told.message) == ("warning", "the test split has no labels and is not used")
    assert data.splits["test"]["origin"] == "cut"
    assert len(data.train) + len(data.validation) + len(data.test) == 24


def test_unused_declared_classes_are_left_out(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, 2] * 6, names=["a", "b", "c"])
    data = prepare(tmp_path / "a.parquet", SETTINGS, seed=1)
    assert data.train.classes == ("a", "c")
    assert problem(data, "class").names == ("b",)


# The Hub


def hub_set(count):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "label": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_hub_sets(monkeypatch):
    calls = []

    def load(name, configuration):
        calls.append((name, configuration))
        return datasets.DatasetDict({"train": hub_set(20), "test": hub_set(6), "unsupervised": hub_set(2)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = prepare("someone/things:small", SETTINGS, seed=1)
    assert (data.train.classes, data.name) == (("no", "yes"), "things:small")
    assert np.array_equal(data.test.open().images[5], picture(5))
    assert problem(data, "unused").names == ("unsupervised",)
    prepare("someone/things:small", SETTINGS, seed=2)
    assert calls == [("someone/things", "small")]


@pytest.mark.parametrize("path", ["cat.png", "../cat.png", "/etc/hostname"])
def test_hub_sets_open_no_file_of_this_machine(monkeypatch, tmp_path, path):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(1)).save("cat.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"image": [{"bytes": None, "path": path}] * 20, "label": [0, 1] * 10}
    sets = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: sets)
    with pytest.raises(DataError, match=r"no part of the data set: it is not opened"):
        prepare(f"someone/else:{len(path)}", SETTINGS, seed=1)


def test_hub_sets_open_what_was_unpacked_for_them(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "unpacked")
    write_folder(tmp_path / "unpacked")
    rows = {
        "image": [{"bytes": None, "path": str(tmp_path / "unpacked" / f"cat/cat{i}.png")} for i in range(12)],
        "label": [0, 1] * 6,
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    sets = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: sets)
    assert prepare("someone/photos", SETTINGS, seed=1).train.classes == ("no", "yes")


def test_no_network_is_told_quickly(monkeypatch):
    def no_network(*_, **__):
        raise socket.gaierror("Name or service not known")

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(hub.socket, "getaddrinfo", no_network)
    with pytest.raises(DataError) as caught:
        prepare("mnist", SETTINGS, seed=1)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "data_root=" in lines[1]
    assert "THAW_DATA" in lines[1]
    with pytest.raises(DataError, match="is no path here"):
        prepare("nobody/nothing", SETTINGS, seed=1)
