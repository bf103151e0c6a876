"""From sources to prepared data: layouts, columns, arrays, faults told together, splits, seals."""

import io
import itertools
import json
import socket

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from thaw.data import tables
from thaw.data.images import InputContract
from thaw.data.prepare import load_images, open_image_set, prepare
from thaw.data.resize import resize
from thaw.data.settings import DataSettings
from thaw.data.sources import open_source
from thaw.data.summary import contact_sheet, look
from thaw.errors import DataError, UsageError

SETTINGS = DataSettings()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


def picture(seed, shape=(10, 12, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(root, classes=("cat", "dog"), count=12, start=0, shape=(10, 12, 3)):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(picture(start + 1000 * number + index, shape)).save(root / name / f"{name}{index}.png")
    return root


def png(seed, shape=(10, 12, 3)):
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, shape)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path, labels, *, start=0, names=None, extra=None, image="image", label="label", images=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = images if images is not None else [{"bytes": png(start + i), "path": None} for i in range(len(labels))]
    table = pa.table({image: content, label: labels, **(extra or {})})
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def problem(data, kind):
    return next(problem for problem in data.problems if problem.kind == kind)


# Folders of class folders


def test_class_folders(tmp_path):
    root = write_folder(tmp_path / "Pets 2", count=20)
    data = prepare(root, SETTINGS, seed=1)
    assert data.name == "pets-2"
    assert data.train.classes == ("cat", "dog")
    assert (len(data.test), len(data.validation), len(data.train)) == (8, 4, 28)
    assert str(data.contract) == "12x10x3" or str(data.contract) == "10x12x3"
    assert data.splits["test"] == {"from": "train", "count": 8, "fraction": 0.2, "seed": 1}
    assert data.splits["train"] == {"from": "source", "count": 28}
    test = data.test.open()
    for images in (data.train, data.validation, test):
        for row in range(len(images)):
            assert np.array_equal(images.images[row], np.asarray(Image.open(root / images.name(row))))
            assert images.name(row).startswith(images.classes[images.labels[row]])
    assert len({*data.train.names, *data.validation.names, *test.names}) == 40


def test_the_test_set_opens_once(tmp_path):
    data = prepare(write_folder(tmp_path / "pets"), SETTINGS, seed=1)
    assert len(data.test) == len(data.test.names)
    data.test.open()
    with pytest.raises(RuntimeError, match="opened already"):
        data.test.open()


def test_same_seed_same_splits_and_one_fingerprint_for_all_seeds(tmp_path):
    root = write_folder(tmp_path / "pets", count=20)
    one, two, other = (prepare(root, SETTINGS, seed=seed) for seed in (1, 1, 2))
    assert one.test.names == two.test.names != other.test.names
    assert one.fingerprint == two.fingerprint == other.fingerprint
    Image.fromarray(picture(99_999)).save(root / "cat" / "cat3.png")
    assert prepare(root, SETTINGS, seed=1).fingerprint != one.fingerprint


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_split_folders(tmp_path, validation):
    root = tmp_path / "pets"
    for start, split in enumerate(("train", validation, "test")):
        write_folder(root / split, count=4 + start, start=100 * start)
    data = prepare(root, SETTINGS, seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 10, 12)
    assert {part["from"] for part in data.splits.values()} == {"source"}


def test_a_missing_validation_split_is_cut_off_training_only(tmp_path):
    root = tmp_path / "pets"
    write_folder(root / "train", count=20)
    write_folder(root / "test", count=3, start=100)
    (root / "extra").mkdir()
    Image.fromarray(picture(5)).save(root / "extra" / "x.png")
    data = prepare(root, SETTINGS, seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 6)
    assert all(name.startswith("train/") for name in data.validation.names)
    assert problem(data, "unused").names == ("extra",)


def test_a_class_may_be_called_test(tmp_path):
    data = prepare(write_folder(tmp_path / "lab", classes=("test", "control")), SETTINGS, seed=1)
    assert data.train.classes == ("control", "test")


def test_classes_and_files_sort_naturally(tmp_path):
    root = write_folder(tmp_path / "numbers", classes=("10", "9", "1"))
    data = prepare(root, SETTINGS, seed=1)
    assert data.train.classes == ("1", "9", "10")


def test_sub_folders_belong_to_their_class_and_strays_are_told(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "cat" / "old").mkdir()
    Image.fromarray(picture(777)).save(root / "cat" / "old" / "a.png")
    Image.fromarray(picture(778)).save(root / "cat" / "no_ending", format="PNG")
    (root / "cat" / "notes.txt").write_text("text")
    (root / ".DS_Store").write_bytes(b"\0")
    Image.fromarray(picture(779)).save(root / "beside.png")
    summary = look(root, SETTINGS)
    assert summary.counts == {"train": {"cat": 14, "dog": 12}}
    assert problem(summary, "stray").names == (".DS_Store", "cat/notes.txt")
    assert problem(summary, "unused").names == ("beside.png",)


def test_faults_are_told_together(tmp_path):
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
        "--skip-broken",
        "bird",
        "fish (1)",
        "3 problems",
    ):
        assert part in text


def test_skip_broken_lists_what_it_left_out(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "cat" / "empty.png").touch()
    with pytest.raises(DataError, match=r"pets: 1 image cannot be read .*: cat/empty.png \(empty file\)$"):
        prepare(root, SETTINGS, seed=1)
    data = prepare(root, SETTINGS, seed=1, skip_broken=True)
    assert data.left_out == ("cat/empty.png (empty file)",)
    assert len(data.train) + len(data.validation) + len(data.test) == 24


def test_long_lists_are_counted():
    from thaw.data.problems import Problem

    assert str(Problem("x", "note", "some", tuple("abcdefgh"))) == "some: a, b, c, d, e and 3 more"


def test_identical_images_stay_together_and_are_told(tmp_path):
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


def test_duplicates_across_the_sources_own_splits_are_told(tmp_path):
    root = tmp_path / "pets"
    write_folder(root / "train", count=20)
    write_folder(root / "test", count=3, start=100)
    Image.fromarray(picture(7)).save(root / "test" / "cat" / "again.bmp")
    data = prepare(root, SETTINGS, seed=1)
    told = problem(data, "duplicate")
    assert (told.severity, told.names) == ("warning", ("train/cat/cat7.png = test/cat/again.bmp",))


def test_class_faults(tmp_path):
    one = write_folder(tmp_path / "one", classes=("cat",))
    with pytest.raises(DataError, match=r"one class only.*cat"):
        prepare(one, SETTINGS, seed=1)
    root = tmp_path / "lacking"
    write_folder(root / "train")
    write_folder(root / "test", classes=("cat", "dog", "bird"), start=500)
    with pytest.raises(DataError, match="test classes without a training image: bird"):
        prepare(root, SETTINGS, seed=1)
    few = write_folder(tmp_path / "few", count=6)
    assert len(prepare(few, SETTINGS, seed=1).train)
    with pytest.raises(DataError, match=r"fewer .* than .* 5 folds .*: cat \(6\), dog \(6\)"):
        prepare(few, SETTINGS, seed=1, folds=5)
    only_test = write_folder(tmp_path / "t" / "test").parent
    with pytest.raises(DataError, match="no training images"):
        prepare(only_test, SETTINGS, seed=1)


def test_lopsided_classes_are_told(tmp_path):
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


# What the input becomes


def test_auto_input(tmp_path):
    cases = {
        "own": ((10, 12, 3), "10x12x3"),
        "grey": ((64, 30), "64x30x1"),
        "large": ((65, 20, 3), "32x32x3"),
    }
    for name, (shape, expected) in cases.items():
        data = prepare(write_folder(tmp_path / name, shape=shape), SETTINGS, seed=1)
        assert str(data.contract) == expected
        assert expected in problem(data, "input").message
    mixed = write_folder(tmp_path / "mixed", shape=(20, 20))
    Image.fromarray(picture(5, (20, 21))).save(mixed / "dog" / "zz.png")
    data = prepare(mixed, SETTINGS, seed=1)
    assert str(data.contract) == "32x32x1"
    assert "differ in size" in problem(data, "input").message


def test_one_colour_image_makes_three_channels_for_all(tmp_path):
    root = write_folder(tmp_path / "pets", shape=(20, 20), count=50)
    Image.fromarray(picture(5, (20, 20, 3))).save(root / "dog" / "zz.png")
    data = prepare(root, SETTINGS, seed=1)
    assert str(data.contract) == "20x20x3"
    for row in range(len(data.train)):
        expected = np.asarray(Image.open(root / data.train.name(row)).convert("RGB"))
        assert np.array_equal(data.train.images[row], expected)


@pytest.mark.parametrize(("wanted", "fit"), [("7x5x1", "stretch"), ("16x8x3", "crop"), ("28x28x1", "crop")])
def test_forced_input_is_the_one_definition_of_resizing(tmp_path, wanted, fit):
    root = write_folder(tmp_path / "pets")
    data = prepare(root, DataSettings(input=wanted, fit=fit), seed=1)
    height, width, channels = (int(part) for part in wanted.split("x"))
    contract = InputContract(height=height, width=width, channels=channels, fit=fit)
    assert (data.contract.shape, data.contract.fit) == (contract.shape, fit)
    for row in range(len(data.train)):
        original = np.asarray(Image.open(root / data.train.name(row)))
        assert np.array_equal(data.train.images[row], resize(original, contract))


def test_statistics_are_those_of_the_training_part(tmp_path):
    root = write_folder(tmp_path / "pets", count=20)
    data = prepare(root, SETTINGS, seed=1)
    pixels = data.train.images / 255.0
    assert np.allclose(data.contract.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-12)
    assert np.allclose(data.contract.std, pixels.std(axis=(0, 1, 2)), atol=1e-12)
    unit = prepare(root, DataSettings(normalise="unit"), seed=1).contract
    assert (unit.mean, unit.std) == ((0.0,) * 3, (1.0,) * 3)


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
    with pytest.raises(DataError, match="no label column"):
        prepare(tmp_path / "b.parquet", SETTINGS, seed=1)


def test_damaged_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a.parquet is no readable parquet file"):
        prepare(tmp_path / "a.parquet", SETTINGS, seed=1)


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
    assert (data.train.classes, data.name) == (("no", "yes"), "things-small")
    assert np.array_equal(data.test.open().images[5], picture(5))
    assert problem(data, "unused").names == ("unsupervised",)
    prepare("someone/things:small", SETTINGS, seed=2)
    assert calls == [("someone/things", "small")]


def test_no_network_is_told_quickly(monkeypatch):
    def no_network(*_, **__):
        raise socket.gaierror("Name or service not known")

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(tables.socket, "getaddrinfo", no_network)
    with pytest.raises(DataError) as caught:
        prepare("mnist", SETTINGS, seed=1)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "--data-root" in lines[1]
    assert "THAW_DATA" in lines[1]
    with pytest.raises(DataError, match="is no path here"):
        prepare("nobody/nothing", SETTINGS, seed=1)


# Arrays and the bundled digits


def test_arrays():
    images = picture(1, (60, 9, 9))
    labels = np.arange(60) % 3
    data = prepare((images, labels), SETTINGS, seed=1)
    assert (str(data.contract), data.name, data.train.classes) == ("9x9x1", "arrays", ("0", "1", "2"))
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
    assert np.array_equal(
        data.test.open().images, resize(parts["test"][0], InputContract(height=4, width=4, channels=1))
    )


def test_arrays_that_need_no_change_are_not_copied():
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
    ("source", "message"),
    [
        ((np.zeros((4, 8, 8)), [0, 1, 0, 1]), "float64.*expected uint8; scale"),
        ((np.zeros((4, 8), np.uint8), [0, 1, 0, 1]), r"shape \[4, 8\]"),
        ((np.zeros((4, 3, 8, 8), np.uint8), [0, 1, 0, 1]), "channels last"),
        ((np.zeros((4, 8, 8), np.uint8), [0, 1]), "4 images and 2 labels"),
        ((np.zeros((4, 8, 8), np.uint8), np.eye(4)), "expected \\[N\\]"),
        ((np.zeros((4, 8, 8), np.uint8), [0.5, 1.0, 0.0, 1.0]), "float64: expected whole numbers"),
        ({"train": 5}, "train split is int"),
        ({"training": (np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1])}, "'training'"),
        ({}, "no images were given"),
        ((), "expected \\(images, labels\\)"),
    ],
)
def test_other_arrays_are_refused(source, message):
    with pytest.raises(DataError, match=message):
        prepare(source, SETTINGS, seed=1)


def test_bad_array_labels_are_told_by_place():
    images = picture(1, (30, 9, 9))
    labels = np.arange(30) % 3
    labels[4] = -1
    with pytest.raises(DataError, match=r"1 label out of range .*train\[4\] has -1"):
        prepare((images, labels), SETTINGS, seed=1)
    data = prepare((images, labels), SETTINGS, seed=1, skip_broken=True)
    assert len(data.train) + len(data.validation) + len(data.test) == 29
    for row in range(len(data.train)):
        assert np.array_equal(data.train.images[row, ..., 0], images[int(data.train.name(row)[6:-1])])


def test_digits():
    from sklearn.datasets import load_digits

    data = prepare("digits", SETTINGS, seed=1)
    assert (data.name, str(data.contract)) == ("digits", "28x28x1")
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    raw = load_digits()
    contract = InputContract(height=28, width=28, channels=1)
    for row in range(20):
        place = int(data.train.name(row)[7:-1])
        small = np.floor(raw.images[place] * 255 / 16 + 0.5).astype(np.uint8)[..., None]
        assert np.array_equal(data.train.images[row], resize(small, contract))
        assert data.train.labels[row] == raw.target[place]
    assert prepare("digits", SETTINGS, seed=1).fingerprint == data.fingerprint


# What is no data set


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="did you mean mnist"):
        open_source("minst", SETTINGS)
    write_folder(tmp_path / "flowers")
    with pytest.raises(DataError, match=r"did you mean .*flowers\?"):
        open_source(tmp_path / "flower", SETTINGS)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        open_source(tmp_path / "void", SETTINGS)
    with pytest.raises(DataError, match="has no class folders"):
        open_source(tmp_path / "flowers" / "cat", SETTINGS)
    with pytest.raises(DataError, match="is a single image"):
        open_source(tmp_path / "flowers" / "cat" / "cat1.png", SETTINGS)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no known kind"):
        open_source(tmp_path / "a.txt", SETTINGS)
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="1 files but no images"):
        prepare(tmp_path / "texts", SETTINGS, seed=1)
    with pytest.raises(UsageError, match=r"--data-root .* is not a folder"):
        open_source("mnist", SETTINGS, data_root=tmp_path / "missing")


@pytest.mark.parametrize(
    "options",
    [
        {"input": "28x28"},
        {"input": "0x28x1"},
        {"input": "28x28x2"},
        {"fit": "zoom"},
        {"normalise": "none"},
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


# Evaluation and prediction


def test_evaluation_takes_the_test_split_and_maps_classes_by_name(tmp_path):
    root = tmp_path / "pets"
    write_folder(root / "train")
    write_folder(root / "test", count=3, start=500)
    contract = InputContract(height=8, width=8, channels=1, mean=(0.5,), std=(0.2,))
    images, _ = open_image_set(root, contract, ("dog", "bird", "cat"))
    assert images.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert images.images.shape == (6, 8, 8, 1)
    everything, _ = open_image_set(root / "train", contract, ("dog", "cat"))
    assert len(everything) == 24
    with pytest.raises(DataError, match=r"does not know \(it knows dog, bird\): cat"):
        open_image_set(root, contract, ("dog", "bird"))


def test_evaluation_takes_bare_numbers_as_the_models_indices():
    source = (picture(1, (6, 8, 8)), [0, 2, 2, 0, 2, 0])
    contract = InputContract(height=8, width=8, channels=1)
    images, _ = open_image_set(source, contract, ("a", "b", "c"))
    assert images.labels.tolist() == [0, 2, 2, 0, 2, 0]
    with pytest.raises(DataError, match="does not know"):
        open_image_set(source, contract, ("a", "b"))


def test_loading_images_for_prediction(tmp_path):
    root = write_folder(tmp_path / "pets", count=11)
    (root / "cat" / "notes.txt").write_text("x")
    contract = InputContract(height=8, width=9, channels=3, fit="crop")
    pixels, names, problems = load_images([root / "dog" / "dog1.png", root / "cat"], contract)
    assert names == [str(root / "dog" / "dog1.png"), *(str(root / "cat" / f"cat{i}.png") for i in range(11))]
    assert [p.kind for p in problems] == ["stray"]
    for name, image in zip(names, pixels, strict=True):
        assert np.array_equal(image, resize(np.asarray(Image.open(name)), contract))
    (root / "cat" / "bad.png").touch()
    with pytest.raises(DataError, match=r"bad.png \(empty file\)"):
        load_images([root], contract)
    assert len(load_images([root], contract, skip_broken=True)[0]) == 22
    with pytest.raises(DataError, match="does not exist"):
        load_images([tmp_path / "missing.png"], contract)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no image in"):
        load_images([tmp_path / "void"], contract)


# A look


def test_look_tells_and_draws(tmp_path):
    root = write_folder(tmp_path / "pets", count=12)
    Image.fromarray(picture(5, (20, 40))).save(root / "dog" / "grey.png")
    (root / "cat" / "empty.png").touch()
    summary = look(root, SETTINGS)
    found = json.loads(json.dumps(summary.as_dict()))
    assert found["counts"] == {"train": {"cat": 12, "dog": 13}}
    assert found["heights"] == {"smallest": 10, "median": 10.0, "largest": 20}
    assert found["widths"] == {"smallest": 12, "median": 12.0, "largest": 40}
    assert (found["distinct_sizes"], found["modes"], found["grey_images"]) == (2, {"RGB": 24, "L": 1}, 1)
    assert found["balance"] == pytest.approx(13 / 12)
    assert (found["input"], found["usable"], summary.usable) == ("32x32x3", False, False)
    assert "cat/empty.png (empty file)" in summary.describe()
    sheet = contact_sheet(summary, tmp_path / "new" / "sheet.png", per_class=4)
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    # The first tile is the first image, enlarged twice without smoothing.
    tile = pixels[22 : 22 + 64, 6 : 6 + 64]
    assert np.array_equal(tile[::2, ::2], summary.preview.images[0])
    with pytest.raises(UsageError):
        contact_sheet(summary, tmp_path / "sheet.png", per_class=0)


def test_look_at_a_source_without_a_usable_image(tmp_path):
    (tmp_path / "bad" / "cat").mkdir(parents=True)
    (tmp_path / "bad" / "cat" / "a.png").touch()
    summary = look(tmp_path / "bad", SETTINGS)
    assert summary.count == 0
    assert not summary.usable
    contact_sheet(summary, tmp_path / "sheet.png")
