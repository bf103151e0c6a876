"""Groups of images, such as those of one person: splits and folds keep them together and report the effects."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from command_line import TINY
from data_samples import SETTINGS, picture, problem, write_parquet
from error_matching import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import thaw as library
from thaw.data import groups as groups_module
from thaw.data.group_splits import cut_off_groups, group_folds, join_groups
from thaw.data.groups import groups_by_pattern
from thaw.data.prepare import open_image_set, prepare
from thaw.data.settings import DataSettings
from thaw.data.summary import look
from thaw.errors import DataError
from thaw.run.request import build_request

PERSON = r"^(person\d+)_"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


def write_people(root, people=10, each=3, names=("cat", "dog"), start=0):
    """`<class>/person<p>_<i>.png`: every person has images of every class."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for person, index in itertools.product(range(people), range(each)):
            seed = start + 10_000 * place + 100 * person + index
            Image.fromarray(picture(seed)).save(root / name / f"person{person}_{index}.png")
    return root


def people_of(images):
    return {name.rpartition("/")[2].partition("_")[0] for name in images.names}


def assert_apart(data):
    parts = [people_of(part) for part in (data.train, data.validation, data.test)]
    assert all(parts)
    assert all(not one & other for one, other in itertools.combinations(parts, 2))
    assert [data.grouping[split] for split in ("train", "validation", "test")] == [len(part) for part in parts]


# Splits of a source


def test_splits_keep_groups_together(tmp_path):
    root = write_people(tmp_path / "set")
    for seed in range(4):
        data = prepare(root, DataSettings(group_by=PERSON), seed=seed)
        assert_apart(data)
        assert data.grouping["by"] == rf"the pattern '{PERSON}'"
        assert np.bincount(data.train.labels, minlength=2).tolist() == [21, 21]
        assert (len(data.test), len(data.validation)) == (12, 6)
        assert problem(data, "groups").message.endswith("train 7, validation 1, test 2")
    one, two = (prepare(root, DataSettings(group_by=PERSON), seed=1) for _ in range(2))
    assert one.test.names == two.test.names
    assert "person" in "".join(one.test.names)


def test_without_groups_persons_are_separated_and_splits_are_unchanged(tmp_path):
    root = write_people(tmp_path / "set")
    data = prepare(root, SETTINGS, seed=1)
    assert data.grouping is None
    assert people_of(data.test) & people_of(data.train)


def test_fingerprint_depends_on_groups_but_not_on_their_names(tmp_path):
    root = write_people(tmp_path / "set")
    bare, grouped, other = (
        prepare(root, DataSettings(group_by=by), seed=1).fingerprint for by in ("", PERSON, r"_(\d)\.png$")
    )
    assert len({bare, grouped, other}) == 3
    assert prepare(root, DataSettings(group_by=r"person(\d+)"), seed=2).fingerprint == grouped


def test_pattern_is_searched_in_names_then_in_paths(tmp_path):
    paths = {"train": ["cat/person1/a.png", "cat/person2/b.png", "dog/person1/c.png"]}
    for by in (r"person\d", r"(person\d)", r"/(person\d)/", r"(?:cat|dog)/(person\d)/[abc]\.png$"):
        found, problems = groups_by_pattern(paths, by)
        assert (found.names, found.numbers["train"].tolist(), problems) == (("person1", "person2"), [0, 1, 0], [])
    folders, _ = groups_by_pattern(paths, "folder")
    assert folders.names == ("person1", "person2")


def test_images_without_a_match_are_an_error(tmp_path):
    root = write_people(tmp_path / "set")
    Image.fromarray(picture(999_999)).save(root / "cat" / "nobody.png")
    with raises("data-group", "1", "cat/nobody.png"):
        prepare(root, DataSettings(group_by=PERSON), seed=1)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("(((", "(missing )"),
        (r"(person)(\d)", "has 2 groups"),
        ("persn", r"'persn' matches none of 60 images, such as cat/person0_0.png"),
        ("x" * 5000, "matches none of 60 images"),
    ],
)
def test_invalid_patterns(tmp_path, by, message):
    root = write_people(tmp_path / "set")
    with raises("usage-groups", message) as caught:
        prepare(root, DataSettings(group_by=by), seed=1)
    assert len(str(caught.value)) < 500


def test_slow_pattern_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(groups_module, "_SEARCH_SECONDS", 1)
    paths = {"train": [f"{'a' * 40}{row}.png" for row in range(3)]}
    with raises("usage-groups-time", "1", "3"):
        groups_by_pattern(paths, "^(a+)+$")


def test_names_that_are_not_utf_8_are_grouped():
    paths = {"train": ["cat/\udcff1_a.png", "cat/\udcff1_b.png", "cat/\u82b12_a.png"]}
    found, _ = groups_by_pattern(paths, "^(.*)_")
    assert found.numbers["train"].tolist() == [0, 0, 1]
    assert found.names[0] == r"\xff1"


def test_identical_images_merge_their_groups(tmp_path):
    root = write_people(tmp_path / "set")
    for person in (1, 2, 3):
        Image.fromarray(picture(31_337)).save(root / "cat" / f"person{person}_same.png")
    for seed in range(4):
        data = prepare(root, DataSettings(group_by=PERSON), seed=seed)
        assert data.grouping["count"] == 8
        assert len({part for part in ("train", "validation", "test") for name in getattr(data, part).names
                    if "_same" in name}) == 1  # fmt: skip


@pytest.mark.parametrize("people", [1, 2])
def test_too_large_groups_are_rejected(tmp_path, people):
    root = write_people(tmp_path / "set", people=people)
    with raises("data-group", "3 parts", f"6 of {6 * people} images", f"cat ({people}), dog ({people})"):
        prepare(root, DataSettings(group_by=PERSON), seed=1)
    summary = look(root, DataSettings(group_by=PERSON))
    assert not summary.usable
    assert problem(summary, "group").severity == "error"


def test_deviation_from_the_requested_fraction_is_reported(tmp_path):
    data = prepare(write_people(tmp_path / "set", people=3), DataSettings(group_by=PERSON), seed=1)
    assert_apart(data)
    told = [problem.message for problem in data.problems if problem.severity == "warning"]
    assert told == [
        "the test split has 33% of the images instead of 20%, since groups stay together",
        "the validation split has 50% of the images instead of 10%, since groups stay together",
    ]


def test_groups_in_two_splits_of_the_source_are_an_error(tmp_path):
    write_people(tmp_path / "set" / "train")
    write_people(tmp_path / "set" / "test", people=2, start=500_000)
    with raises("data-group", "person0", "person1"):
        prepare(tmp_path / "set", DataSettings(group_by=PERSON), seed=1)
    assert len(prepare(tmp_path / "set", SETTINGS, seed=1).test) == 12


def test_look_reports_groups_and_splits(tmp_path):
    root = write_people(tmp_path / "set")
    text = look(root, DataSettings(group_by=PERSON)).describe()
    assert rf"note: groups by the pattern '{PERSON}' are kept together: train 7, validation 1, test 2" in text


# Columns and arrays


def test_groups_by_a_column(tmp_path):
    rows = 60
    people = [f"person{row // 6}_" for row in range(rows)]
    write_parquet(tmp_path / "a.parquet", [0, 1] * 30, extra={"person": people})
    settings_ = DataSettings(group_by="person", label_column="label")
    data = prepare(tmp_path / "a.parquet", settings_, seed=1)
    owner = lambda part: {people[int(name[6:-1])] for name in part.names}  # noqa: E731
    assert not owner(data.train) & owner(data.test)
    assert not owner(data.train) & owner(data.validation)
    assert data.grouping == {"by": "column 'person'", "count": 10, "train": 7, "validation": 1, "test": 2}


def test_column_named_group_is_used_and_reported(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, 1] * 30, extra={"group": [row // 6 for row in range(60)]})
    data = prepare(tmp_path / "a.parquet", SETTINGS, seed=1)
    assert data.grouping["count"] == 10
    assert "--group-by none" in problem(data, "groups").message
    assert prepare(tmp_path / "a.parquet", DataSettings(group_by="none", label_column="label"), seed=1).grouping is None


def test_images_without_a_group_are_their_own_groups_and_reported(tmp_path):
    owners = [None if row < 12 else str(row // 6) for row in range(60)]
    write_parquet(tmp_path / "a.parquet", [0, 1] * 30, extra={"person": owners})
    data = prepare(tmp_path / "a.parquet", DataSettings(group_by="person"), seed=1)
    assert data.grouping["count"] == 12 + 8
    assert problem(data, "group").message.startswith("12 images have no group by column 'person'")


@pytest.mark.parametrize("owners", [np.arange(60) // 6, [f"p{row // 6}" for row in range(60)]])
def test_groups_of_arrays(owners):
    images, labels = picture(1, (60, 9, 9)), np.arange(60) % 3
    data = prepare((images, labels, owners), SETTINGS, seed=1)
    assert data.grouping == {"by": "the groups", "count": 10, "train": 7, "validation": 1, "test": 2}
    for one, other in itertools.combinations((data.train, data.validation, data.test), 2):
        own = [{int(name[6:-1]) // 6 for name in part.names} for part in (one, other)]
        assert not own[0] & own[1]
    assert prepare((images, labels, owners), DataSettings(group_by="none"), seed=1).grouping is None
    with raises(DataError, "[59]", "[60]"):
        prepare((images, labels, owners[:59]), SETTINGS, seed=1)


@pytest.mark.parametrize("source", ["digits", (picture(1, (60, 9, 9)), np.arange(60) % 3)])
def test_data_without_columns_and_paths_cannot_be_grouped(source):
    with raises("usage-groups"):
        prepare(source, DataSettings(group_by=PERSON), seed=1)


def test_evaluation_needs_no_groups(tmp_path):
    input_spec = prepare(write_people(tmp_path / "set"), SETTINGS, seed=1).input_spec
    images, _ = open_image_set(tmp_path / "set", input_spec, ("cat", "dog"), settings=DataSettings(group_by="nothing"))
    assert len(images) == 60


# The search


members = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=150)
@given(members, st.sampled_from([0.1, 0.2, 0.5]), st.integers(1, 3), st.integers(0, 9))
def test_cut_is_found_if_brute_force_finds_one(found, fraction, left, seed):
    labels, groups = (np.array(column) for column in zip(*found, strict=True))
    kept, cut, lacking = cut_off_groups(labels, groups, fraction, seed, "test", left=left)
    assert sorted([*kept.tolist(), *cut.tolist()]) == list(range(len(labels)))
    assert not set(groups[kept]) & set(groups[cut])
    per_class = {label: {*groups[labels == label].tolist()} for label in set(labels.tolist())}
    possible = any(
        all(len(own & set(chosen)) >= 1 and len(own - set(chosen)) >= left for own in per_class.values())
        for count in range(len(set(groups.tolist())) + 1)
        for chosen in itertools.combinations(sorted(set(groups.tolist())), count)
    )
    assert possible is (not lacking)
    if possible:
        for own in per_class.values():
            assert own & set(groups[cut].tolist())
            assert len(own & set(groups[kept].tolist())) >= left


@settings(deadline=None, max_examples=40)
@given(st.integers(20, 60), st.integers(2, 5), st.integers(0, 99))
def test_many_small_groups_give_nearly_the_fraction(count, classes, seed):
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), generator.integers(3, 9, count))
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, len(groups) - classes)])
    _, cut, lacking = cut_off_groups(labels, groups, 0.2, seed, "test", left=1)
    assert not lacking
    assert abs(len(cut) / len(labels) - 0.2) < 0.05
    shares = np.bincount(labels[cut], minlength=classes) / np.bincount(labels, minlength=classes)
    assert np.abs(shares - 0.2).max() < 0.2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_joined_groups_are_connected_components(pairs):
    one, other = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    # By repeated merging, without a graph algorithm.
    expected = list(range(len(pairs)))
    for _ in pairs:
        for a, b in itertools.combinations(range(len(pairs)), 2):
            if pairs[a][0] == pairs[b][0] or pairs[a][1] == pairs[b][1]:
                low = min(expected[a], expected[b])
                expected = [low if value in (expected[a], expected[b]) else value for value in expected]
    ranks = {value: rank for rank, value in enumerate(dict.fromkeys(expected))}
    assert join_groups(one, other).tolist() == [ranks[value] for value in expected]


def test_folds_keep_groups_and_train_on_every_class():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    labels = generator.integers(0, 3, 120)
    folds = group_folds(labels, 5, 3, groups)
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(120))
    for kept, held in folds:
        assert not set(groups[kept]) & set(groups[held])
        assert set(labels[kept]) == {0, 1, 2}
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, group_folds(labels, 5, 3, groups), strict=True))
    with raises("data-folds", "4", "5"):
        group_folds(labels, 5, 3, np.repeat(np.arange(4), 30))


def test_enough_groups_remain_for_the_folds(tmp_path):
    root = write_people(tmp_path / "set", people=5)
    data = prepare(root, DataSettings(group_by=PERSON), seed=1, folds=3)
    assert data.grouping == {"by": f"the pattern '{PERSON}'", "count": 5, "train": 3, "validation": 1, "test": 1}
    with raises("data-group", "6"):
        prepare(root, DataSettings(group_by=PERSON), seed=1, folds=4)


# A run


def test_run_keeps_groups_together_in_splits_folds_and_resume(tmp_path, call, monkeypatch):
    root = write_people(tmp_path / "set", people=8)
    code, out, err = call("data", root, "--group-by", PERSON, "--json")
    assert code == 0, err
    assert any(found["kind"] == "groups" for found in json.loads(out)["problems"])
    small = ("--recipe", "paper", *TINY, "--folds", "2", "--group-by", PERSON)
    code, out, err = call("train", root, *small, "--out", "run", "--json")
    assert code == 0, err
    metrics = json.loads(out)
    assert metrics["data"]["groups"] == {
        "by": rf"the pattern '{PERSON}'", "count": 8, "train": 5, "validation": 1, "test": 2
    }  # fmt: skip
    assert metrics["folds"]["count"] == 2
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["recipe"]["data"]["group_by"] == PERSON
    assert kept["fingerprint"] == prepare(root, DataSettings(group_by=PERSON), seed=0).fingerprint
    (tmp_path / "run" / "metrics.json").unlink()
    resumed = library.Run.open(tmp_path / "run").resume()
    assert resumed.metrics["test"] == metrics["test"]
    assert resumed.metrics["data"]["groups"] == metrics["data"]["groups"]
    data = library.load(root, recipe="paper", group_by=PERSON)
    assert data.grouping == metrics["data"]["groups"]


def test_command_of_a_run_from_python_includes_the_grouping():
    request = build_request("photos", recipe="paper", group_by=PERSON)
    assert request.command == f"thaw train photos --recipe paper --seed 0 --group-by '{PERSON}'"
