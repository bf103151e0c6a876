"""Text tables that name image files: CSV and JSON Lines."""

from __future__ import annotations

import csv
import json
from collections import Counter

import numpy as np
import pytest
from data_samples import SETTINGS, picture, problem, write_folder
from error_matching import raises
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from thaw.data.images import InputSpec
from thaw.data.list_files import read_list
from thaw.data.prepare import open_image_set, prepare
from thaw.data.settings import DataSettings
from thaw.data.sources import open_source
from thaw.data.summary import look
from thaw.errors import DataError

COUNT = 24
LABELS = [("cat", "dog")[row % 2] for row in range(COUNT)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    """`set/images/<row>.png`, whose seed is the row."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    for row in range(COUNT):
        Image.fromarray(picture(row)).save(tmp_path / "set" / "images" / f"{row}.png")
    return tmp_path / "set"


PATHS = [f"images/{row}.png" for row in range(COUNT)]


def write_csv(path, columns, *, header=True, delimiter=",", encoding="utf-8", **options):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter, **options)
        if header:
            writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_json(path, columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def assert_holds(data, labels=LABELS):
    """Check that every image has its own pixels and label."""
    rows = {}
    for part in (data.train, data.validation, data.test.open()):
        for place in range(len(part)):
            row = int(part.name(place).rpartition("/")[2].removesuffix(".png"))
            assert np.array_equal(part.images[place], picture(row))
            rows[row] = part.classes[part.labels[place]]
    assert rows == dict(enumerate(labels))


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_with_any_delimiter_and_unicode(folder, delimiter, encoding):
    columns = {"image": PATHS, "kind": LABELS}
    data = prepare(write_csv(folder / "a.csv", columns, delimiter=delimiter, encoding=encoding), SETTINGS, seed=1)
    assert (data.name, data.train.classes) == ("a", ("cat", "dog"))
    assert_holds(data)


@pytest.mark.parametrize("suffix", [".tsv", ".TSV", ".csv"])
def test_csv_without_a_header(folder, suffix):
    columns = {"1": PATHS, "2": LABELS}
    path = write_csv(folder / f"a{suffix}", columns, header=False, delimiter="\t", lineterminator="\r\n")
    assert_holds(prepare(path, SETTINGS, seed=1))


def test_quotes_blanks_and_empty_lines(folder):
    odd = folder / "images" / 'a, "b"; c.png'
    Image.fromarray(picture(777)).save(odd)
    lines = ["image, label", *(f"{path} , {label}" for path, label in zip(PATHS, LABELS, strict=True))]
    lines[3:3] = ["", " , ", '"images/a, ""b""; c.png","cat"']
    (folder / "a.csv").write_text("\n".join(lines) + "\n\n")
    data = prepare(folder / "a.csv", SETTINGS, seed=1)
    names = {*data.train.names, *data.validation.names, *data.test.names}
    assert len(names) == COUNT + 1
    assert 'images/a, "b"; c.png' in names


@pytest.mark.parametrize("absolute", [False, True])
def test_paths_are_relative_to_the_folder_of_the_table(folder, monkeypatch, tmp_path, absolute):
    monkeypatch.chdir(tmp_path)
    paths = [str(folder / path) for path in PATHS] if absolute else PATHS
    write_csv(folder / "a.csv", {"file": paths, "label": LABELS})
    assert_holds(prepare("set/a.csv", SETTINGS, seed=1))


def test_windows_paths_and_names_without_suffix_or_folder(folder):
    write_csv(folder / "a.csv", {"file": [path.replace("/", "\\") for path in PATHS], "label": LABELS})
    data = prepare(folder / "a.csv", SETTINGS, seed=1)
    assert sum(map(len, (data.train, data.validation, data.test))) == COUNT
    write_csv(folder / "b.csv", {"file": [path.removeprefix("images/") for path in PATHS], "label": LABELS})
    data = prepare(folder / "b.csv", SETTINGS, seed=1)
    assert_holds(data)
    assert problem(data, "layout").message == "the paths in the table are relative to its folder images"


@pytest.mark.parametrize("form", ["{}", "x{}", "00{}"])
def test_names_without_suffix_are_found(folder, form):
    for row in range(COUNT):
        (folder / "images" / f"{row}.png").rename(folder / "images" / f"{form.format(row)}-.png")
    for row in range(COUNT):
        (folder / "images" / f"{form.format(row)}-.png").rename(folder / "images" / f"{form.format(row)}.png")
    write_csv(folder / "a.csv", {"id_code": [form.format(row) for row in range(COUNT)], "diagnosis": LABELS})
    data = prepare(folder / "a.csv", SETTINGS, seed=1)
    assert data.train.classes == ("cat", "dog")
    for place in range(len(data.train)):
        row = int(data.train.name(place).removeprefix("x"))
        assert np.array_equal(data.train.images[place], picture(row))
        assert data.train.classes[data.train.labels[place]] == LABELS[row]


@pytest.mark.parametrize("column", ["split", "part"])
def test_column_of_splits(folder, column):
    splits = ["train"] * 12 + ["Val"] * 4 + [" test "] * 6 + ["extra", ""]
    write_csv(folder / "a.csv", {"path": PATHS, "label": LABELS, column: splits})
    data = prepare(folder / "a.csv", DataSettings(split_column="" if column == "split" else column), seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 6)
    assert problem(data, "unused").names == ("extra (1)", "an empty cell (1)")
    assert list(data.test.names) == PATHS[16:22]
    assert {part["origin"] for part in data.splits.values()} == {"source"}


def test_split_column_can_be_ignored(folder):
    splits = (["train"] * 4 + ["test", "valid"]) * 4
    write_csv(folder / "a.csv", {"path": PATHS, "label": LABELS, "split": splits})
    data = prepare(folder / "a.csv", SETTINGS, seed=1)
    assert Counter(splits) == {"train": len(data.train), "valid": len(data.validation), "test": len(data.test)}
    cut = prepare(folder / "a.csv", DataSettings(split_column="none", label_column="label"), seed=1)
    assert cut.splits["test"]["origin"] == "cut"
    with raises("data-split"):
        prepare(folder / "a.csv", DataSettings(split_column="label", label_column="split"), seed=1)
    with raises("data-columns", "'part'", "split_column"):
        prepare(folder / "a.csv", DataSettings(split_column="part"), seed=1)


def test_missing_files_and_labels_are_reported_by_name(folder):
    labels = [*LABELS, "cat", ""]
    write_csv(folder / "a.csv", {"path": [*PATHS, "images/none.png", PATHS[0]], "label": labels})
    with pytest.raises(DataError) as caught:
        prepare(folder / "a.csv", SETTINGS, seed=1)
    # A long path is shortened in the middle.
    assert "images/none.png)" in str(caught.value)
    assert "1 image without a label" in str(caught.value)
    assert len(prepare(folder / "a.csv", SETTINGS, seed=1, skip_broken=True).left_out) == 2


def test_file_added_later_is_read(folder):
    write_csv(folder / "a.csv", {"path": [*PATHS, "images/late.png"], "label": [*LABELS, "cat"]})
    assert look(folder / "a.csv", SETTINGS).count == COUNT
    Image.fromarray(picture(99)).save(folder / "images" / "late.png")
    assert look(folder / "a.csv", SETTINGS).count == COUNT + 1


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["3", "11"], ("3", "11")),
        (["3.0", "11.0"], ("3", "11")),
        (["007", "7"], ("007", "7")),
        (["1e3", "1000"], ("1e3", "1000")),
        (["9" * 30, "1"], ("1", "9" * 30)),
    ],
)
def test_numbers_as_labels(folder, labels, classes):
    write_csv(folder / "a.csv", {"path": PATHS, "label": labels * (COUNT // 2)})
    assert prepare(folder / "a.csv", SETTINGS, seed=1).train.classes == classes


def test_measurements_are_not_classes(folder):
    write_csv(folder / "a.csv", {"path": PATHS, "value": [row / 10 for row in range(COUNT)]})
    with raises("data-columns"):
        prepare(folder / "a.csv", SETTINGS, seed=1)
    with raises("data-label", "'value'", "0.0"):
        prepare(folder / "a.csv", DataSettings(label_column="value"), seed=1)


def test_label_column_has_priority_over_other_columns(folder):
    columns = {
        "path": PATHS,
        "label": [row / 10 for row in range(COUNT)],
        "person": [f"p{row % 4}" for row in range(COUNT)],
    }
    write_csv(folder / "a.csv", columns)
    with raises(DataError, "'label'", "0.0", "data.label_column"):
        prepare(folder / "a.csv", SETTINGS, seed=1)
    assert prepare(folder / "a.csv", DataSettings(label_column="person"), seed=1).train.classes == (
        "p0",
        "p1",
        "p2",
        "p3",
    )


def test_photograph_and_mask_in_a_table_are_reported(folder):
    for row in range(COUNT):
        Image.fromarray(picture(COUNT + row)).save(folder / "images" / f"{row}.bmp")
    paths = [path for name in PATHS for path in (name, name.replace(".png", ".bmp"))]
    write_csv(folder / "a.csv", {"path": paths, "label": [label for label in LABELS for _ in range(2)]})
    told = problem(look(folder / "a.csv", SETTINGS), "pairs")
    assert (told.severity, len(told.names)) == ("warning", COUNT)
    assert told.names[0] == "images/0.png + images/0.bmp"


def test_several_possible_label_columns(folder):
    columns = {
        "path": PATHS,
        "kind": LABELS,
        "color": ["red", "blue", "red"] * 8,
        "note": [f"n{i}" for i in range(COUNT)],
    }
    write_csv(folder / "a.csv", columns)
    with raises("data-columns", "data.label_column"):
        prepare(folder / "a.csv", SETTINGS, seed=1)
    assert_holds(prepare(folder / "a.csv", DataSettings(label_column="kind"), seed=1))
    del columns["color"]
    write_csv(folder / "b.csv", columns)
    assert_holds(prepare(folder / "b.csv", SETTINGS, seed=1))


@pytest.mark.parametrize(
    ("content", "code", "fact"),
    [
        (b"", "data-empty", ""),
        (b"image,label\n", "data-empty", ""),
        (b"image\na.png\n", "data-columns", ""),
        (b"image,label\na.png,cat,x\n", "data-file", "line 2 has 3 cells"),
        (b"image,label,label\na.png,cat,cat\n", "data-columns", "'label'"),
        (b"image,label\n\xff.png,cat\n", "data-file", "line 2"),
        (b'image,label\n"a.png,cat\n', "data-file", "line 2"),
        (b"image,label\n" + b"x" * 200_000 + b",cat\n", "data-file", "line 2"),
        (b"size,label\n1,cat\n2,dog\n", "data-columns", "size, label: name one with data.image_column"),
    ],
)
def test_rejects_invalid_tables(folder, content, code, fact):
    (folder / "a.csv").write_bytes(content)
    with raises(code, fact):
        prepare(folder / "a.csv", SETTINGS, seed=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=200), st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]))
def test_any_bytes_are_a_table_or_a_data_error(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"image,label\n" + content if content[:1] > b"@" else content)
    try:
        columns = read_list(path)
    except DataError as error:
        columns = {"told": [str(error)]}
    assert len({len(values) for values in columns.values()}) == 1
    assert len(columns.get("told", [""])[0]) < 600


def test_hostile_names_are_escaped(folder):
    write_csv(folder / "a.csv", {"path": [*PATHS, "\x1b[2J.png"], "label": [*LABELS, "\x1b]0;x\x07"]})
    text = look(folder / "a.csv", SETTINGS).describe()
    assert "\x1b" not in text
    assert "\x07" not in text


# JSON lines


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines(folder, suffix):
    data = prepare(write_json(folder / f"a{suffix}", {"file_name": PATHS, "label": LABELS}), SETTINGS, seed=1)
    assert_holds(data)


def test_json_lines_are_separated_only_by_line_feeds(folder):
    names = [f"{label}\u2028\x85{row % 2}" for row, label in enumerate(LABELS)]
    rows = [
        json.dumps({"image": path, "label": name}, ensure_ascii=False) for path, name in zip(PATHS, names, strict=True)
    ]
    (folder / "a.jsonl").write_text("\r\n".join(rows), encoding="utf-8")
    assert_holds(prepare(folder / "a.jsonl", SETTINGS, seed=1), names)


def test_json_list_and_missing_keys(folder):
    rows = [{"file": path, "label": label, "box": [1, 2]} for path, label in zip(PATHS, LABELS, strict=True)]
    del rows[3]["label"]
    (folder / "a.json").write_text(json.dumps(rows))
    with raises("data-label", "1", "images/3.png"):
        prepare(folder / "a.json", SETTINGS, seed=1)


@pytest.mark.parametrize(
    ("content", "code", "fact"),
    [
        ('{"a": 1}\nnot json\n', "data-file", "line 2"),
        ("[1, 2]", "data-file", "entry 1 is int"),
        ("[" * 100_000, "data-file", ""),
        ("", "data-empty", ""),
        ('{"file": "a.png", "label": NaN}', "data-columns", ""),
    ],
)
def test_rejects_invalid_json(folder, content, code, fact):
    (folder / "a.jsonl").write_text(content)
    with raises(code, fact):
        prepare(folder / "a.jsonl", SETTINGS, seed=1)


# A folder of images and a table


def test_folder_of_images_with_one_table_uses_the_table(folder):
    write_csv(folder / "labels.csv", {"image": PATHS, "label": LABELS})
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    data = prepare(folder, SETTINGS, seed=1)
    assert data.name == "set"
    assert problem(data, "layout").message == "no class folders: labels are read from labels.csv"
    assert_holds(data)
    write_csv(folder / "more.csv", {"image": PATHS, "label": LABELS})
    with raises(DataError, folder / "labels.csv", folder / "more.csv"):
        open_source(folder, SETTINGS)


def test_folder_with_a_table_of_names_without_suffix(tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    for row in range(COUNT):
        Image.fromarray(picture(row)).save(tmp_path / "set" / "train" / f"{row}.png")
    write_csv(tmp_path / "set" / "train.csv", {"id_code": list(range(COUNT)), "diagnosis": LABELS})
    write_csv(tmp_path / "set" / "sizes.csv", {"width": [12] * COUNT, "height": [10] * COUNT})
    data = prepare(tmp_path / "set", SETTINGS, seed=1)
    assert problem(data, "layout").message == "no class folders: labels are read from train.csv"
    assert data.train.classes == ("cat", "dog")
    assert len(data.train) + len(data.validation) + len(data.test) == COUNT


def test_class_folders_have_priority_over_a_table(tmp_path):
    root = write_folder(tmp_path / "pets")
    write_csv(root / "labels.csv", {"image": ["cat/cat0.png"] * 2, "label": ["x", "y"]})
    data = prepare(root, SETTINGS, seed=1)
    assert data.train.classes == ("cat", "dog")
    assert problem(data, "stray").names == ("labels.csv",)


def test_split_folders_with_a_table(tmp_path):
    root = tmp_path / "set"
    paths = []
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for row in range(12):
            Image.fromarray(picture(len(paths))).save(root / split / f"{row}.png")
            paths.append(f"{split}/{row}.png")
    write_csv(root / "labels.csv", {"image": paths, "label": LABELS, "split": [path.split("/")[0] for path in paths]})
    data = prepare(root, SETTINGS, seed=1)
    assert len(data.test) == 12


def test_evaluation_of_a_table_uses_its_test_split(folder):
    splits = ["train"] * 12 + ["test"] * 12
    write_csv(folder / "a.csv", {"image": PATHS, "label": LABELS, "split": splits})
    input_spec = InputSpec(height=10, width=12, channels=3)
    images, _ = open_image_set(folder / "a.csv", input_spec, ("dog", "cat"))
    assert list(images.names) == PATHS[12:]
    assert images.labels.tolist() == [("dog", "cat").index(label) for label in LABELS[12:]]


def test_pattern_selects_rows(folder):
    write_csv(folder / "a.csv", {"image": PATHS, "label": LABELS})
    summary = look(folder / "a.csv", DataSettings(pattern="1*.png,!*/19.png"))
    assert summary.count == 10
    assert "14 of 24 rows" in problem(summary, "pattern").message


def test_real_meter_digits_with_a_table(data_root, tmp_path):
    source = data_root / "meter_digits"
    if not (source / "labels.csv").is_file():
        pytest.skip("no meter_digits in the real data")
    with (source / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:600]
    # 9.9 is close to 0.0: a zero that has almost rotated to it.
    digits = [str(round(float(row["value"])) % 10) for row in rows]
    columns = {"image": [str(source / row["image"]) for row in rows], "value": [row["value"] for row in rows]}
    write_csv(tmp_path / "digits.csv", {**columns, "digit": digits})
    data = prepare(tmp_path / "digits.csv", SETTINGS, seed=1)
    assert data.train.classes == tuple("0123456789")
    expected = dict(zip(columns["image"], digits, strict=True))
    for part in (data.train, data.validation, data.test.open()):
        for row in range(0, len(part), 40):
            assert part.classes[part.labels[row]] == expected[part.name(row)]
            with Image.open(part.name(row)) as image:
                assert np.array_equal(part.images[row], np.asarray(image.convert("RGB")))
    with raises("data-columns"):
        prepare(source, SETTINGS, seed=1)
