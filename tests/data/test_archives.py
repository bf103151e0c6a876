"""NumPy archives as data sets."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from data_samples import SETTINGS, picture
from error_matching import raises

from thaw.data.prepare import prepare


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


IMAGES = picture(1, (60, 9, 9))


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X", "y", "X_test", "y_test"),
        ("images", "labels", "images.testing", "labels.testing"),
    ],
)
def test_archives(tmp_path, names):
    labels = np.arange(60) % 3
    arrays = dict(zip(names, (IMAGES[:48], labels[:48], IMAGES[48:], labels[48:, None]), strict=True))
    data = prepare(
        archive(tmp_path / "a.npz", **arrays, history=np.array([{"x": 1}])[:0].astype(str)), SETTINGS, seed=1
    )
    test = data.test.open()
    assert np.array_equal(test.images[..., 0], IMAGES[48:])
    assert test.labels.tolist() == labels[48:].tolist()
    assert (data.name, len(data.train) + len(data.validation)) == ("a", 48)
    assert prepare(tmp_path / "a.npz", SETTINGS, seed=1).fingerprint == data.fingerprint


def test_archive_labels_as_integral_floats(tmp_path):
    path = archive(tmp_path / "a.npz", images=IMAGES, labels=(np.arange(60) % 3).astype(np.float32))
    same = archive(tmp_path / "b.npz", images=IMAGES, labels=np.arange(60) % 3)
    assert prepare(path, SETTINGS, seed=1).train.classes == ("0", "1", "2")
    assert prepare(path, SETTINGS, seed=1).fingerprint == prepare(same, SETTINGS, seed=1).fingerprint
    for odd, fact in (
        (0.5, "float64"),
        (np.inf, "inf"),
        (np.nan, "1 image "),
    ):
        labels = np.where(np.arange(60) == 7, odd, np.arange(60) % 3)
        with raises("data-label", fact):
            prepare(archive(tmp_path / f"{odd}.npz", images=IMAGES, labels=labels), SETTINGS, seed=1)


def test_archive_class_names_and_groups(tmp_path):
    path = archive(
        tmp_path / "a.npz", images=IMAGES, labels=np.arange(60) % 3, classes=["a", "b", "c"], groups=np.arange(60) // 6
    )
    data = prepare(path, SETTINGS, seed=1)
    assert data.train.classes == ("a", "b", "c")
    assert data.grouping["count"] == 10


def test_rejects_invalid_archives(tmp_path):
    cases = {
        "objects": (
            {"images": np.array([{}, {}], dtype=object), "labels": [0, 1]},
            "data-file",
            "pickled",
        ),
        "lacking": ({"images": IMAGES}, "data-arrays", "train labels"),
        "twice": ({"x": IMAGES, "images": IMAGES, "y": [0]}, "data-arrays", "train images"),
        "others": ({"weights": IMAGES}, "data-arrays", "weights"),
        "floats": ({"x": IMAGES / 255, "y": np.arange(60) % 3}, "data-arrays", "float64"),
    }
    for name, (arrays, code, fact) in cases.items():
        with raises(code, fact):
            prepare(archive(tmp_path / f"{name}.npz", **arrays), SETTINGS, seed=1)
    whole = archive(tmp_path / "a.npz", images=IMAGES, labels=np.arange(60) % 3).read_bytes()
    for name, content in {"cut": whole[:900], "empty": b"", "text": b"hello", "damaged": damaged(whole)}.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with raises("data-file", ".npz"):
            prepare(tmp_path / f"{name}.npz", SETTINGS, seed=1)


def damaged(whole):
    """The archive with a header that claims more data than fits into memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(
                name, content.replace(b"(60, 9, 9)", b"(9" + b"9" * 7 + b",)") if name == "images.npy" else content
            )
    return buffer.getvalue()
