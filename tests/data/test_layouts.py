"""Folders in practice: nested, wrapped, inside a repository, with masks next to the photographs."""

from __future__ import annotations

import itertools

import pytest
from data_samples import SETTINGS, picture, problem, write_folder
from error_matching import raises
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thaw.data.images import InputSpec
from thaw.data.pairs import find_pairs
from thaw.data.pattern import FilePattern
from thaw.data.prepare import open_image_set, prepare
from thaw.data.settings import DataSettings
from thaw.data.summary import look
from thaw.errors import DataError

SEEDS = itertools.count(10_000)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


def write(root, *paths, count=6, suffix=".png"):
    """`count` different images in each folder."""
    for path in paths:
        (root / path).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(picture(next(SEEDS))).save(root / path / f"{path.replace('/', '-')}-{index}{suffix}")
    return root


# Depth


def test_images_at_any_depth_below_their_class(tmp_path):
    root = write(tmp_path / "set", "cat/indoor/2019/a", "cat/garden", "dog", "dog/x/y")
    summary = look(root, SETTINGS)
    assert summary.counts == {"train": {"cat": 12, "dog": 12}}
    assert problem(summary, "layout").names == ("cat",)
    assert problem(summary, "layout").severity == "note"
    assert summary.usable


def test_equal_subfolders_in_every_class_are_reported(tmp_path):
    root = write(tmp_path / "set", "cat/indoor", "cat/garden", "dog/indoor", "dog/garden")
    summary = look(root, SETTINGS)
    assert summary.counts == {"train": {"cat": 12, "dog": 12}}
    told = problem(summary, "layout")
    assert (told.severity, told.names) == ("warning", ("cat", "dog"))
    assert "subfolders garden, indoor" in told.message


@pytest.mark.parametrize("parts", [("learn", "eval"), ("fold1", "fold2"), ("part_1", "part_2"), ("dev", "holdout")])
def test_parts_of_a_data_set_are_not_classes(tmp_path, parts):
    root = write(tmp_path / "set", *(f"{part}/{name}" for part in parts for name in ("cat", "dog")))
    with raises("data-layout", "CLASS/IMAGE", "SPLIT/CLASS/IMAGE"):
        prepare(root, SETTINGS, seed=1)


@pytest.mark.parametrize(
    "splits", [("training_set", "test_set"), ("seg_train", "seg_test"), ("train_images", "val_images", "test_images")]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_split_folders_may_have_longer_names_and_wrap_their_content(tmp_path, splits, wrapped):
    root = tmp_path / "set"
    for split in splits:
        write(root, *(f"{split}/{split}/{name}" if wrapped else f"{split}/{name}" for name in ("cat", "dog")))
    summary = look(root, SETTINGS)
    assert summary.classes == ("cat", "dog")
    assert [sum(counts.values()) for counts in summary.counts.values()] == [12] * len(splits)


def test_wrapper_of_a_single_split_is_skipped_but_a_class_is_not(tmp_path):
    root = write(tmp_path / "a", "train/cat", "train/dog", "test/images/cat", "test/images/dog")
    assert look(root, SETTINGS).counts == {"train": {"cat": 6, "dog": 6}, "test": {"cat": 6, "dog": 6}}
    root = write(tmp_path / "b", "train/cat", "train/dog", "test/cat/x", "test/cat/y")
    assert look(root, SETTINGS).counts == {"train": {"cat": 6, "dog": 6}, "test": {"cat": 12, "dog": 0}}


def test_class_names_that_begin_like_splits_are_classes(tmp_path):
    root = write(tmp_path / "set", "train_station/a", "bus_stop/b")
    assert look(root, SETTINGS).classes == ("bus_stop", "train_station")
    root = write(tmp_path / "tubes", "test_tube", "train_engine")
    assert look(root, SETTINGS).classes == ("test_tube", "train_engine")


def test_split_folders_inside_class_folders(tmp_path):
    root = write(tmp_path / "set", "cat/train", "dog/Train", count=8)
    write(root, "cat/val", "dog/val", "cat/test", "dog/test", count=3)
    data = prepare(root, SETTINGS, seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 6, 6)
    assert data.train.classes == ("cat", "dog")
    assert {part["origin"] for part in data.splits.values()} == {"source"}
    assert "CLASS/SPLIT/IMAGE" in problem(data, "layout").message


# Another folder was intended


@pytest.mark.parametrize("inner", ["photos", "Dataset", "data/raw", "a/b/c"])
def test_suggests_the_intended_folder(tmp_path, inner):
    root = write(tmp_path / "repo", f"{inner}/cat", f"{inner}/dog")
    (root / "README.md").write_text("text")
    (root / "src").mkdir()
    (root / "src" / "train.py").write_text("print()")
    with raises("data-layout", f"{root}/{inner}?"):
        prepare(root, SETTINGS, seed=1)
    assert prepare(root / inner, SETTINGS, seed=1).train.classes == ("cat", "dog")


def test_suggests_the_intended_folder_next_to_pictures_of_a_page(tmp_path):
    root = write(tmp_path / "repo", "Dataset/train/cat", "Dataset/train/dog", "Dataset/test/cat", "Dataset/test/dog")
    write(root, "docs/images", "assets", count=2)
    write(root, ".", count=1)
    with raises("data-layout", f"{root}/Dataset?"):
        prepare(root, SETTINGS, seed=1)


@pytest.mark.parametrize("beside", ["images", "samples", "test_images", "Screenshots"])
def test_suggests_the_intended_folder_next_to_folders_of_single_pictures(tmp_path, beside):
    root = write(tmp_path / "repo", "Dataset/cat", "Dataset/dog", beside)
    with raises("data-layout", f"{root}/Dataset"):
        prepare(root, SETTINGS, seed=1)


def test_errors_include_the_suggested_folder(tmp_path):
    root = write(tmp_path / "repo", "Dataset/cat", "Dataset/dog")
    write(root, "misc", count=2)
    (root / "models").mkdir()
    (root / "models" / "net.pt").write_bytes(b"x")
    with raises(DataError, "misc (2)", f"{root}/Dataset"):
        prepare(root, SETTINGS, seed=1)
    # Evaluation does not need three images per class.
    contract = InputSpec(height=8, width=8, channels=3)
    assert len(open_image_set(root, contract, ("Dataset", "misc"))[0]) == 14


def test_most_images_in_one_folder_are_reported(tmp_path):
    root = write(tmp_path / "set", *(f"Dataset/{name}" for name in "abcdefghij"), count=12)
    write(root, "rest", count=6)
    told = problem(look(root, SETTINGS), "layout")
    assert told.severity == "warning"
    assert f"did you mean {root}/Dataset?" in told.message


def test_folders_without_images_next_to_class_folders_are_ignored(tmp_path):
    root = write(tmp_path / "set", "cat", "dog")
    (root / "annotations").mkdir()
    (root / "annotations" / "cat.xml").write_text("<a/>")
    summary = look(root, SETTINGS)
    assert summary.classes == ("cat", "dog")
    assert problem(summary, "unused").names == ("annotations",)
    assert summary.usable
    (root / "bird").mkdir()
    assert problem(look(root, SETTINGS), "class").names == ("bird",)


# Photographs and masks


def pair(root, *, photo, mask, names=("cat", "dog"), count=6):
    for name, index in itertools.product(names, range(count)):
        for form in (photo, mask):
            path = root / form.format(name=name, index=index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(next(SEEDS))).save(path)
    return root


@pytest.mark.parametrize(
    ("photo", "mask", "proposal"),
    [
        ("{name}/{index}.jpg", "{name}/{index}.png", "*.jpg"),
        ("{name}/{index}.JPG", "{name}/{index}.png", "*.jpg"),
        ("{name}/{name} ({index}).png", "{name}/{name} ({index})_mask.png", "!*_mask*"),
        ("{name}/{index}.png", "{name}/{index}_seg.png", "!*_seg*"),
        ("{name}/{index}.png", "{name}/{index}-labels_1.png", "!*-labels*"),
        ("{name}/images/{index}.png", "{name}/masks/{index}.png", "!*/masks/*"),
        ("{name}/images/{index}.png", "{name}/masks/{index}_mask.png", "!*_mask*"),
        ("{name}/rgb/{index}.jpg", "{name}/gt/{index}.png", "!*/gt/*"),
        ("{name}/{index}.jpg", "{name}/masks/{index}.png", "!*/masks/*"),
        ("{name}/{index}.png", "{name}/mask_{index}.png", "!mask_*"),
        ("{name}/img_{index}.png", "{name}/gt-{index}.png", "!gt-*"),
        ("{name}/{index}.jpg", "{name}/{index}.jpg.png", "*.jpg"),
    ],
)
def test_photograph_and_mask_pairs_are_reported_and_selected(tmp_path, photo, mask, proposal):
    root = pair(tmp_path / "set", photo=photo, mask=mask)
    summary = look(root, SETTINGS)
    told = problem(summary, "pairs")
    assert (summary.count, told.severity, len(told.names)) == (24, "warning", 12)
    assert f"'data.pattern={proposal}'" in told.message
    first = (photo.format(name="cat", index=0), mask.format(name="cat", index=0))
    assert told.names[0] in {" + ".join(first), " + ".join(first[::-1])}
    data = prepare(root, DataSettings(pattern=proposal), seed=1)
    names = {*data.train.names, *data.validation.names, *data.test.open().names}
    assert names == {photo.format(name=name, index=index) for name in ("cat", "dog") for index in range(6)}
    assert "12 of 24 images" in problem(data, "pattern").message


def test_folders_of_photographs_and_masks_are_reported(tmp_path):
    root = pair(tmp_path / "set", photo="images/{index}.jpg", mask="masks/{index}.png", names=("",))
    told = problem(look(root, SETTINGS), "pairs")
    assert "'data.pattern=!masks/*'" in told.message
    assert len(told.names) == 6


@pytest.mark.parametrize(
    "paths",
    [
        ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"],
        ["with_mask/1.jpg", "without_mask/1.jpg"],
        ["train_images/cat/1.jpg", "test_images/cat/1.jpg"],
        ["cat/X.jpg", "cat/x.jpg"],
        ["cat/1_mask.png", "cat/2_mask.png"],
        ["masks/1.png", "nothing/1.png"],
        ["cat/mask.png", "cat/1.png"],
        ["cat/x.1.png", "cat/x.2.png"],
        ["cat/img_1.png", "cat/1.png"],
        ["cat/images/1.png", "cat/1.png"],
        ["cat/mask_1.png", "cat/mask_2.png"],
        ["cat/mask_.png", "cat/1.png"],
    ],
)
def test_images_that_are_not_pairs(paths):
    assert find_pairs(paths) is None


def test_pattern_without_match_lists_the_files(tmp_path):
    root = pair(tmp_path / "set", photo="{name}/{index}.jpg", mask="{name}/{index}.png")
    with raises("data-pattern", "'*.bmp'", "24", "12", ".jpg"):
        prepare(root, DataSettings(pattern="*.bmp"), seed=1)


@pytest.mark.parametrize("text", [",", "*.jpg,,*.png", "!", " , "])
def test_rejects_an_empty_pattern(text):
    with raises("usage"):
        DataSettings(pattern=text)


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("*.jpg", ["a/1.JPG", "a/b/2.jpg"]),
        ("*.jpg, *.png", ["a/1.JPG", "a/b/2.jpg", "a/3_mask.png"]),
        ("!*_mask.*", ["a/1.JPG", "a/b/2.jpg", "c/4.webp"]),
        ("*.png,*.webp,!c/*", ["a/3_mask.png"]),
        ("a/*", ["a/1.JPG", "a/b/2.jpg", "a/3_mask.png"]),
        ("[12].*", ["a/1.JPG", "a/b/2.jpg"]),
        ("", ["a/1.JPG", "a/b/2.jpg", "a/3_mask.png", "c/4.webp"]),
    ],
)
def test_patterns(pattern, chosen):
    assert FilePattern.parse(pattern).select(["a/1.JPG", "a/b/2.jpg", "a/3_mask.png", "c/4.webp"]) == chosen


@given(
    st.lists(st.text(st.sampled_from("ab./_A"), min_size=1, max_size=8), max_size=8), st.sampled_from(["*a*", "b/*"])
)
def test_pattern_and_its_negation_partition_the_files(paths, pattern):
    chosen = FilePattern.parse(pattern).select(paths)
    left = FilePattern.parse(f"!{pattern}").select(paths)
    assert sorted([*chosen, *left]) == sorted(paths)


def test_pattern_rejects_data_without_files():
    with raises("data-pattern", "data.pattern"):
        prepare("digits", DataSettings(pattern="*.jpg"), seed=1)


def test_evaluation_uses_the_pattern_if_it_matches(tmp_path):
    input_spec = InputSpec(height=8, width=8, channels=3)
    settings = DataSettings(pattern="*.jpg")
    root = pair(tmp_path / "set", photo="{name}/{index}.jpg", mask="{name}/{index}.png")
    assert len(open_image_set(root, input_spec, ("cat", "dog"), settings=settings)[0]) == 12
    other = write_folder(tmp_path / "other")
    images, problems = open_image_set(other, input_spec, ("cat", "dog"), settings=settings)
    assert len(images) == 24
    assert next(p for p in problems if p.kind == "pattern").severity == "warning"
    assert len(open_image_set((picture(1, (6, 8, 8)), [0, 1] * 3), input_spec, ("a", "b"), settings=settings)[0]) == 6
