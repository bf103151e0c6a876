"""Links in folders of images: folders linked twice, loops, broken links, and pointers that were not fetched."""

from __future__ import annotations

import os

import numpy as np
import pytest
from data_samples import SETTINGS, picture, problem, write_folder, write_parquet
from error_matching import raises
from PIL import Image

from thaw.data import walk
from thaw.data.image_files import load_images
from thaw.data.images import InputSpec
from thaw.data.prepare import prepare
from thaw.data.settings import DataSettings
from thaw.data.sources import open_source
from thaw.data.summary import look
from thaw.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


def test_two_splits_linked_to_one_folder_are_used_and_reported(tmp_path):
    write_folder(tmp_path / "pool")
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        (tmp_path / "set" / split).symlink_to(tmp_path / "pool")
    summary = look(tmp_path / "set", SETTINGS)
    assert summary.counts == {"train": {"cat": 12, "dog": 12}, "test": {"cat": 12, "dog": 12}}
    told = problem(summary, "duplicate")
    assert (told.severity, len(told.names)) == ("warning", 24)
    assert "train/cat/cat0.png = test/cat/cat0.png" in told.names


def test_class_folders_linked_to_one_folder_are_used_and_reported(tmp_path):
    pool = write_folder(tmp_path / "pool", classes=("cat",))
    write_folder(tmp_path / "set", classes=("dog",), start=500)
    for name in ("cat", "kitten"):
        (tmp_path / "set" / name).symlink_to(pool / "cat")
    summary = look(tmp_path / "set", SETTINGS)
    assert summary.counts == {"train": {"cat": 12, "dog": 12, "kitten": 12}}
    told = problem(summary, "duplicate")
    assert told.names[0] == "cat/cat0.png = kitten/cat0.png (cat, kitten)"
    assert len(told.names) == 12


def test_test_image_in_training_with_another_class_is_reported(tmp_path):
    write_folder(tmp_path / "set" / "train")
    write_folder(tmp_path / "set" / "test", count=3, start=500)
    Image.fromarray(picture(7)).save(tmp_path / "set" / "test" / "dog" / "again.png")
    told = problem(look(tmp_path / "set", SETTINGS), "duplicate")
    assert told.names == ("train/cat/cat7.png = test/dog/again.png (cat, dog)",)


def test_links_to_a_parent_folder_end(tmp_path):
    root = write_folder(tmp_path / "set")
    (root / "cat" / "up").symlink_to("..")
    (root / "dog" / "self").symlink_to("self")
    (root / "dog" / "out").symlink_to(tmp_path)
    found = walk.walk_files(root)
    assert found.loops == ["cat/up", "dog/out/set"]
    assert sum(file.path.endswith(".png") for file in found.files) == 24
    summary = look(root, SETTINGS)
    assert summary.count == 24
    told = next(p for p in summary.problems if "not followed" in p.message)
    assert (told.severity, told.names) == ("note", ("cat/up", "dog/out/set"))
    broken = next(p for p in summary.problems if p.severity == "error")
    assert broken.names == ("dog/self (broken link: self does not exist)",)


def test_links_that_multiply_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "_MOST_FOLDERS_AGAIN", 500)
    for level in range(40):
        (tmp_path / "set" / f"d{level}").mkdir(parents=True)
    for level in range(39):
        for name in "ab":
            (tmp_path / "set" / f"d{level}" / name).symlink_to(f"../d{level + 1}")
    with raises("data-link") as caught:
        open_source(tmp_path / "set", SETTINGS)
    assert len(str(caught.value)) < 500


def test_parquet_files_behind_a_link_are_found(tmp_path):
    write_parquet(tmp_path / "pool" / "0.parquet", [0, 1] * 8)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "pool")
    assert prepare(tmp_path / "set", SETTINGS, seed=1).train.classes == ("0", "1")


@pytest.mark.parametrize("others", [0, 12])
def test_broken_links_stop_the_run_by_name(tmp_path, others):
    root = tmp_path / "set"
    for name in ("cat", "dog"):
        write_folder(root, classes=(name,), count=others, start=len(name) * ord(name[0]))
        (root / name / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    with raises("data-unreadable", "2", "skip_broken=True", "cat/gone.jpg", "/nowh"):
        prepare(root, SETTINGS, seed=1)
    if others:
        left_out = prepare(root, SETTINGS, seed=1, skip_broken=True).left_out
        assert left_out == tuple(
            f"{n}/gone.jpg (broken link: /nowhere/gone.jpg does not exist)" for n in ("cat", "dog")
        )


def test_repaired_link_is_read_again(tmp_path):
    root = write_folder(tmp_path / "set")
    (root / "cat" / "late.png").symlink_to(tmp_path / "late.png")
    assert look(root, SETTINGS).count == 24
    Image.fromarray(picture(99)).save(tmp_path / "late.png")
    assert look(root, SETTINGS).count == 25


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("../.git/annex/objects/Xk/9/SHA256E-s9--1.jpg", "fetch it with git annex get"),
        ("../.dvc/cache/files/md5/00/11", "fetch it with dvc pull"),
    ],
)
def test_links_into_stores_name_the_command_that_fetches(tmp_path, target, hint):
    root = write_folder(tmp_path / "set")
    (root / "cat" / "x.jpg").symlink_to(target)
    assert problem(look(root, SETTINGS), "unreadable").names == (
        f"cat/x.jpg (broken link: {target} does not exist; {hint})",
    )


def test_broken_folder_links_stop_the_run_by_name(tmp_path):
    root = write_folder(tmp_path / "set")
    (root / "bird").symlink_to("/mnt/old/bird")
    (root / "v1.5").symlink_to("/mnt/old/v1.5")
    (root / "cat" / "notes.txt").symlink_to("/nowhere/notes.txt")
    with raises("data-link", "2", "skip_broken=True", "/mnt/old/bird"):
        prepare(root, SETTINGS, seed=1)
    data = prepare(root, SETTINGS, seed=1, skip_broken=True)
    assert data.train.classes == ("cat", "dog")
    assert len(data.left_out) == 2
    assert problem(data, "stray").names == ("cat/notes.txt (broken link: /nowhere/notes.txt does not exist)",)


def test_only_broken_folder_links(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to("/mnt/old/cat")
    with raises("data-layout", "/mnt"):
        open_source(tmp_path / "set", SETTINGS)
    (tmp_path / "moved").symlink_to("/mnt/old")
    with raises("data-link", "/mnt/old"):
        open_source(tmp_path / "moved", SETTINGS)


def test_broken_link_for_prediction(tmp_path):
    input_spec = InputSpec(height=8, width=8, channels=3)
    (tmp_path / "x.jpg").symlink_to("/nowhere/x.jpg")
    with raises("data-source", "/nowhere/x.jpg"):
        load_images([tmp_path / "x.jpg"], input_spec)
    (tmp_path / "set").mkdir()
    (tmp_path / "x.jpg").rename(tmp_path / "set" / "x.jpg")
    with raises("data-unreadable", "/nowhere/x.jpg"):
        load_images([tmp_path / "set"], input_spec)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer, .*git lfs pull"),
        (b"/annex/objects/SHA256E-s9--00.jpg\n", "a git-annex pointer, .*git annex get"),
        (b"\n<!DOCTYPE html><html>", "a web page, not an image"),
    ],
)
def test_pointers_name_the_command_that_fetches(tmp_path, content, reason):
    root = write_folder(tmp_path / "set")
    (root / "cat" / "x.jpg").write_bytes(content)
    with raises("data-unreadable"):
        prepare(root, SETTINGS, seed=1)


def test_folder_with_dvc_files_that_were_not_pulled(tmp_path):
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "dog").mkdir()
    (tmp_path / "set" / "images.dvc").write_text("outs:\n- md5: 00\n")
    with raises("data-empty", ".dvc"):
        prepare(tmp_path / "set", SETTINGS, seed=1)


def test_table_that_names_missing_files(tmp_path):
    root = write_folder(tmp_path / "set")
    paths = [f"{name}/{name}{i}.png" for i in range(12) for name in ("cat", "dog")]
    paths[3] = "dog/none.png"
    write_parquet(root / "a.parquet", ["cat", "dog"] * 12, image="file", images=paths)
    settings = DataSettings(image_column="file", label_column="label")
    with raises("data-unreadable"):
        prepare(root / "a.parquet", settings, seed=1)
    data = prepare(root / "a.parquet", settings, seed=1, skip_broken=True)
    assert len(data.left_out) == 1
    Image.fromarray(picture(999)).save(root / "dog" / "none.png")
    assert prepare(root / "a.parquet", settings, seed=1).left_out == ()


def test_inaccessible_file_is_reported(tmp_path):
    root = write_folder(tmp_path / "set")
    if os.geteuid() == 0:
        pytest.skip("root can read everything")
    (root / "cat").chmod(0o600)
    try:
        with raises(DataError, "Permission denied"):
            prepare(root, SETTINGS, seed=1)
    finally:
        (root / "cat").chmod(0o700)


def test_images_behind_links_equal_the_images(tmp_path):
    pool = write_folder(tmp_path / "pool")
    root = tmp_path / "set"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for path in (pool / name).iterdir():
            (root / name / f"link-{path.name}").symlink_to(path)
    data = prepare(root, SETTINGS, seed=1)
    for row in range(len(data.train)):
        assert np.array_equal(data.train.images[row], np.asarray(Image.open(root / data.train.name(row))))


def test_other_broken_links_are_reported_with_their_target(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "st.john").symlink_to(tmp_path / "gone")
    told = problem(look(root, SETTINGS), "stray")
    assert told.names == (f"st.john (broken link: {tmp_path}/gone does not exist)",)
