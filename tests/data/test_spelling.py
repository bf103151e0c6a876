"""Class names that differ only in case or Unicode form are one class, and reported."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from data_samples import SETTINGS, picture, problem, write_folder, write_parquet
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thaw.data.images import InputSpec
from thaw.data.labels import encode_labels
from thaw.data.prepare import open_image_set, prepare
from thaw.data.settings import DataSettings
from thaw.data.spelling import folded, one_spelling

COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


def write(root, counts):
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(picture(1000 * place + index)).save(root / name / f"{place}-{index}.png")
    return root


def test_folders_with_spellings_of_one_name_are_one_class_and_reported(tmp_path):
    root = write(tmp_path / "set", {DECOMPOSED: 8, COMPOSED: 4, "Dogs": 3, "dogs": 9})
    data = prepare(root, SETTINGS, seed=1)
    assert data.train.classes == (COMPOSED, "dogs")
    assert len(data.train) + len(data.validation) + len(data.test) == 24
    told = problem(data, "spelling")
    assert told.severity == "warning"
    assert told.names == (
        rf"{DECOMPOSED} [Cafe\u0301] (8) and {COMPOSED} [Caf\xe9] (4) are {COMPOSED}",
        "Dogs (3) and dogs (9) are dogs",
    )


def test_folders_with_spellings_in_two_splits_are_one_class(tmp_path):
    write(tmp_path / "set" / "train", {"Cats": 12, "dogs": 12})
    write(tmp_path / "set" / "test", {"cats": 3, "DOGS": 3})
    data = prepare(tmp_path / "set", SETTINGS, seed=1)
    assert data.train.classes == ("Cats", "dogs")
    assert np.bincount(data.test.open().labels).tolist() == [3, 3]
    assert problem(data, "spelling").names == ("Cats (12) and cats (3) are Cats", "DOGS (3) and dogs (12) are dogs")


def test_single_letters_and_disabled_merging_stay_separate(tmp_path):
    root = write(tmp_path / "letters", {"a": 6, "A": 6, "\u00e9": 3, "e\u0301": 3, "\u00c9": 6})
    data = prepare(root, SETTINGS, seed=1)
    assert data.train.classes == ("A", "a", "\u00c9", "\u00e9")
    words = write(tmp_path / "words", {"Cats": 6, "cats": 6})
    assert prepare(words, DataSettings(merge_spellings=False), seed=1).train.classes == ("Cats", "cats")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Stra\u00dfe", "STRASSE", False),
        ("Ma\u00dfe", "Masse", False),
        ("\u0130stanbul", "istanbul", False),
        ("\u0131l\u0131k", "ilik", False),
        ("ISPARTA", "isparta", True),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2", True),
        ("\u00c9T\u00c9", "e\u0301te\u0301", True),
        ("\ufb01n", "fin", False),
        ("a", "A", False),
        ("aa", "AA", True),
        ("", "", True),
    ],
)
def test_names_that_are_equal(one, other, same):
    assert (folded(one) == folded(other)) is same


@given(st.text(max_size=12))
def test_folding_is_idempotent_and_equal_for_all_forms(name):
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    assert folded(forms[0]) == folded(forms[1])
    if len(folded(name)) != 1:
        assert folded(folded(name)) == folded(name)
    if name.isascii() and len(name) > 1:
        assert folded(name) == name.lower()


@given(st.dictionaries(st.text(st.sampled_from("aAbB\u00e9\u0301e"), max_size=3), st.integers(0, 5), max_size=12))
def test_one_spelling_selects_the_most_frequent_name(counts):
    names, problems = one_spelling(counts)
    groups = {}
    for name in counts:
        groups.setdefault(folded(name), []).append(name)
    for members in groups.values():
        (chosen,) = {names[name] for name in members}
        most = max(counts[name] for name in members)
        assert chosen in {unicodedata.normalize("NFC", name) for name in members if counts[name] == most}
    assert sum(len(p.names) for p in problems) == sum(len(members) > 1 for members in groups.values())


@pytest.mark.parametrize("source", ["arrays", "parquet"])
def test_labels_of_arrays_and_tables_are_merged(tmp_path, source):
    labels = ["Cat", "cat", "cat", "dog"] * 9
    if source == "parquet":
        write_parquet(tmp_path / "a.parquet", labels)
        given_ = tmp_path / "a.parquet"
    else:
        given_ = (picture(1, (36, 8, 8)), labels)
    data = prepare(given_, SETTINGS, seed=1)
    assert data.train.classes == ("cat", "dog")
    assert problem(data, "spelling").names == ("Cat (9) and cat (18) are cat",)


def test_declared_names_are_merged_in_order():
    found = encode_labels({"train": [0, 1, 2, 2, 1]}, {"train": list("abcde")}, ["zebra", "Cat", "cat"])
    assert found.classes == ("zebra", "Cat")
    assert found.labels["train"].tolist() == [0, 1, 1, 1, 1]
    texts = encode_labels({"train": ["CAT", "zebra", "CAT"]}, {"train": list("abc")}, ["zebra", "cat"])
    assert (texts.classes, texts.labels["train"].tolist()) == (("zebra", "cat"), [1, 0, 1])
    letters = encode_labels({"train": [0, 1]}, {"train": list("ab")}, ["a", "A"])
    assert letters.classes == ("a", "A")


def test_numbers_and_their_text_are_one_class():
    found = encode_labels({"train": [1, "1", 2]}, {"train": list("abc")})
    assert (found.classes, found.labels["train"].tolist()) == (("1", "2"), [0, 0, 1])


def test_evaluation_matches_names_as_training_does(tmp_path):
    root = write_folder(tmp_path / "set", classes=("CAT", DECOMPOSED))
    input_spec = InputSpec(height=8, width=8, channels=3)
    images, _ = open_image_set(root, input_spec, (COMPOSED, "cat"))
    assert np.bincount(images.labels).tolist() == [12, 12]
    exact = write_folder(tmp_path / "exact", classes=("cat", "dog"))
    images, _ = open_image_set(exact, input_spec, ("Cat", "cat", "dog"))
    assert np.bincount(images.labels).tolist() == [0, 12, 12]
