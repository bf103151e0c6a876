"""Parquet files and data sets of the Hub: columns, labels, splits, damage."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import SETTINGS, picture, png, problem, write_folder, write_parquet
from error_matching import raises
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

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


def test_missing_and_invalid_labels_are_reported_by_row(tmp_path):
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


def test_broken_and_missing_table_images_are_reported_by_row(tmp_path):
    images = [{"bytes": png(i), "path": None} for i in range(12)]
    images[5] = {"bytes": None, "path": None}
    images[7] = {"bytes": b"rubbish", "path": None}
    write_parquet(tmp_path / "a.parquet", [0, 1] * 6, images=images)
    with raises("data-unreadable", "train[5]", "train[7]"):
        prepare(tmp_path / "a.parquet", SETTINGS, seed=1)


def test_plain_bytes_are_an_image_column(tmp_path):
    write_parquet(
        tmp_path / "a.parquet", ["x", "y"] * 6, images=[png(i) for i in range(12)], image="picture", label="kind"
    )
    assert prepare(tmp_path / "a.parquet", SETTINGS, seed=1).train.classes == ("x", "y")


def test_ambiguous_columns_list_the_candidates(tmp_path):
    extra = {"fine": [0, 1, 2] * 4, "second": [png(i) for i in range(12)]}
    write_parquet(tmp_path / "a.parquet", ["x", "y"] * 6, label="coarse", extra=extra)
    with raises("data-columns", "data.image_column"):
        prepare(tmp_path / "a.parquet", SETTINGS, seed=1)
    with raises("data-columns", "data.label_column"):
        prepare(tmp_path / "a.parquet", DataSettings(image_column="image"), seed=1)
    data = prepare(tmp_path / "a.parquet", DataSettings(image_column="image", label_column="fine"), seed=1)
    assert data.train.classes == ("0", "1", "2")
    with raises("data-columns", "'fin'"):
        prepare(tmp_path / "a.parquet", DataSettings(image_column="image", label_column="fin"), seed=1)
    write_parquet(tmp_path / "b.parquet", [0.5, 1.5], label="score")
    with raises("data-columns"):
        prepare(tmp_path / "b.parquet", SETTINGS, seed=1)


def test_damaged_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with raises("data-file", "a.parquet"):
        prepare(tmp_path / "a.parquet", SETTINGS, seed=1)


def test_damaged_page_is_reported_by_file_name(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(path, [f"class{i % 2}" for i in range(12)])
    whole = path.read_bytes()
    for column in (0, 1):
        start = pq.ParquetFile(path).metadata.row_group(0).column(column * 2).data_page_offset
        path.write_bytes(whole[:start] + b"\xff" * 40 + whole[start + 40 :])
        with raises("data-file", "train.parquet") as caught:
            prepare(path, SETTINGS, seed=1)
        assert "\n" not in str(caught.value)
        assert "cache" not in str(caught.value).replace(str(tmp_path), "")
        path.write_bytes(whole)


def test_paths_in_a_table_are_relative_to_its_folder(tmp_path, monkeypatch):
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
    with raises("data-columns", "'label'"):
        prepare(tmp_path / "b.parquet", DataSettings(image_column="label", label_column="file"), seed=1)


@pytest.mark.parametrize("hidden", [None, -1])
def test_test_split_without_labels_is_replaced(tmp_path, hidden):
    root = tmp_path / "contest"
    write_parquet(root / "train.parquet", [0, 1] * 12, names=["no", "yes"])
    write_parquet(root / "test.parquet", pa.array([hidden] * 6, pa.int64()), names=["no", "yes"], start=500)
    data = prepare(root, SETTINGS, seed=1)
    told = problem(data, "unlabeled")
    assert (told.severity, told.message) == ("warning", "the test split has no labels and is ignored")
    assert data.splits["test"]["origin"] == "cut"
    assert len(data.train) + len(data.validation) + len(data.test) == 24


def test_unused_declared_classes_are_removed(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, 2] * 6, names=["a", "b", "c"])
    data = prepare(tmp_path / "a.parquet", SETTINGS, seed=1)
    assert data.train.classes == ("a", "c")
    assert problem(data, "class").names == ("b",)


# The Hub


class Hub:
    """A stand-in for the Hub: files by repository and revision, below a folder."""

    def __init__(self, root):
        self.root = root
        self.downloads = []

    def list_repo_files(self, repository, *, repo_type, revision):
        assert repo_type == "dataset"
        if not (self.root / repository).is_dir():
            raise RepositoryNotFoundError("404 Client Error", response=requests_response())
        if not (self.root / repository / revision).is_dir():
            raise RevisionNotFoundError("404 Client Error", response=requests_response())
        folder = self.root / repository / revision
        return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]

    def snapshot_download(self, repository, *, repo_type, revision, local_dir, allow_patterns):
        self.downloads.append((repository, allow_patterns))
        files = self.list_repo_files(repository, repo_type=repo_type, revision=revision)
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / repository / revision / name, Path(local_dir) / name)


def requests_response():
    return SimpleNamespace(headers={}, request=None, status_code=404, url="")


@pytest.fixture
def the_hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def write_hub_set(hub, repository, configuration, revision="refs/convert/parquet", splits=("train", "test")):
    for place, split in enumerate(splits):
        path = hub.root / repository / revision / configuration / split / "0000.parquet"
        write_parquet(path, [0, 1] * 12, names=["no", "yes"], start=100 * place)


def test_hub_sets(the_hub):
    write_hub_set(the_hub, "someone/things", "small", splits=("train", "test", "unsupervised"))
    write_hub_set(the_hub, "someone/things", "large")
    data = prepare("someone/things:small", SETTINGS, seed=1)
    assert (data.train.classes, data.name) == (("no", "yes"), "things:small")
    assert np.array_equal(data.test.open().images[5], picture(105))
    assert problem(data, "unused").names == ("unsupervised/0000.parquet",)
    prepare("someone/things:small", DataSettings(input="9x9x1"), seed=2)
    assert the_hub.downloads == [("someone/things", "small/*.parquet")]
    with raises("data-hub-configuration", "large, small"):
        prepare("someone/things", SETTINGS, seed=1)
    with raises("data-hub-configuration", "large, small"):
        prepare("someone/things:tiny", SETTINGS, seed=1)


def test_hub_sets_without_a_conversion(the_hub):
    write_hub_set(the_hub, "someone/private", "data", "main")
    assert len(prepare("someone/private", SETTINGS, seed=1).test) == 24
    (the_hub.root / "someone/texts/main").mkdir(parents=True)
    (the_hub.root / "someone/texts/main/README.md").write_text("nothing")
    with raises("data-hub", "someone/texts"):
        prepare("someone/texts", SETTINGS, seed=1)
    with raises("data-hub", "someone/nothing"):
        prepare("someone/nothing", SETTINGS, seed=1)


def test_partial_hub_set_is_reported(the_hub):
    write_hub_set(the_hub, "someone/large", "default", splits=("partial-train", "test"))
    data = prepare("someone/large", SETTINGS, seed=1)
    assert problem(data, "partial").severity == "warning"
    assert len(data.train) + len(data.validation) == 24


@pytest.mark.parametrize("path", ["cat.png", "../cat.png", "/etc/hostname"])
def test_hub_sets_open_no_local_file(the_hub, monkeypatch, tmp_path, path):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(1)).save("cat.png")
    file = the_hub.root / "someone/else/main/data/train/0000.parquet"
    file.parent.mkdir(parents=True)
    Image.fromarray(picture(1)).save(file.parent / "cat.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": path}] * 20, type=kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 10}), file)
    with raises("data-hub-file", path):
        prepare("someone/else", SETTINGS, seed=1)


def test_failed_download_leaves_nothing(the_hub, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise ConnectionError("Name or service not known")

    write_hub_set(the_hub, "ylecun/mnist", "mnist")
    write_hub_set(the_hub, "nobody/nothing", "default")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with raises("data-hub", "data_root=DIR", "THAW_DATA") as caught:
        prepare("mnist", SETTINGS, seed=1)
    assert len(str(caught.value).splitlines()) == 2
    with raises("data-hub", "nobody/nothing"):
        prepare("nobody/nothing", SETTINGS, seed=1)
    assert not list((tmp_path / "cache").iterdir())
