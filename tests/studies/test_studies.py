"""`thaw reproduce` and `thaw ablate`, small: what they train, what they keep, and the pages that they write."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import TINY_OVERRIDES, error_of, metrics, stored
from PIL import Image
from sklearn.datasets import load_digits

from thaw.data.prepare import prepare
from thaw.data.settings import DataSettings
from thaw.errors import UsageError
from thaw.models.families import PaperSpec
from thaw.recipe.recipe import load_recipe
from thaw.studies.ablation import _points, page
from thaw.studies.reproduce import PUBLISHED, _page, parse_seeds
from thaw.training.arms import (
    ARMS,
    PLAIN,
    STUDIES,
    ArmTraining,
    at_once,
    fitting_spec,
    without_early_stop,
    without_head,
)
from thaw.training.stages import UnfreezeSettings, UnfreezeStep
from thaw.training.trainer import TrainingContext

# Half of the digits are kept for the test, which leaves less to train on.
EPOCHS = (
    *("--set", "dual.epochs=2", "--set", 'unfreeze.steps=[{unit="head", epochs=1}, {unit="all", epochs=1}]'),
    *("--set", "data.test_fraction=0.5"),
)


@pytest.mark.parametrize(("text", "seeds"), [("0", (0,)), ("0,1,2", (0, 1, 2)), (" 7 , 5 ", (7, 5)), ("10", (10,))])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "-1", "1.5", "1,1", "1,01", "1;2", "²"])
def test_what_are_no_seeds(text):
    with pytest.raises(UsageError, match="such as 0,1,2"):
        parse_seeds(text)


# Arms


@pytest.fixture(scope="module")
def digits_setting():
    data = prepare("digits", DataSettings(), seed=0)
    return data, TrainingContext(
        train=data.train,
        validation=data.validation,
        input_spec=data.input_spec,
        seed=0,
        device=None,
        dtype=None,
        lanes=None,
    )


def dense_parameters(filters, shape, classes):
    """The parameters of a submodel, by hand: two 3x3 convolutions, each pooled by half, and a dense layer."""
    height, width, channels = shape
    first, second = filters
    rows, columns = (((side - 2) // 2 - 2) // 2 for side in (height, width))
    return 9 * channels * first + first + 9 * first * second + second + rows * columns * second * classes + classes


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("filters", [(10, 20), (4, 8), (3, 3), (6, 3), (1, 9)])
def test_plain_networks_are_as_large_as_their_widths_allow(digits_setting, filters, networks):
    data, context = digits_setting
    overrides = [f"model.filters={list(filters)}"]
    settings = load_recipe("paper", overrides)[1].trainer_settings()
    whole = sum(
        parameter.numel() for parameter in ArmTraining(settings, _on_cpu(context)).skeleton(ARMS[-1])[0].parameters()
    )
    spec = fitting_spec(settings, context, networks)
    assert isinstance(spec, PaperSpec)
    assert spec.dropout == settings.model.dropout
    first, second = spec.filters
    size = networks * dense_parameters((first, second), data.train.shape, 10)
    assert size <= whole < networks * dense_parameters((first, second + 1), data.train.shape, 10)
    # Small networks have too few widths to choose from to come any closer.
    assert size > (0.97 if filters == (10, 20) else 0.9) * whole


def _on_cpu(context):
    from dataclasses import replace

    import torch

    return replace(context, device=torch.device("cpu"))


def test_thawing_at_once_takes_as_long(digits_setting):
    settings = load_recipe("paper")[1].unfreeze
    once = at_once(settings)
    assert [step.unit for step in once.steps] == ["all"]
    assert once.steps[0].epochs == sum(step.epochs for step in settings.steps)
    assert once.steps[0].learning_rate == settings.steps[-1].learning_rate


@pytest.mark.parametrize(
    ("listed", "more", "expected"),
    [
        ([("head", 1), ("dense", 2), ("conv2", 3), ("conv1", 4)], 0, [("dense", 3), ("conv2", 3), ("conv1", 4)]),
        ([("head", 2), ("all", 5)], 1, [("all", 8)]),
        ([("head", 2)], 1, [("dense", 3)]),
        ([("all", 5)], 1, [("all", 6)]),
    ],
)
def test_the_head_s_epochs_go_to_what_thaws_next(listed, more, expected):
    steps = tuple(UnfreezeStep(unit=name, epochs=epochs) for name, epochs in listed)
    made = without_head(UnfreezeSettings(steps=steps), "dense", more)
    assert [(step.unit, step.epochs) for step in made.steps] == expected


@pytest.mark.parametrize("arms", STUDIES.values(), ids=list(STUDIES))
def test_arms_of_a_study_have_names_of_their_own(arms):
    assert len({arm.name for arm in arms}) == len(arms)
    assert arms[0].name == PLAIN


def test_no_arm_stops_early():
    settings = without_early_stop(
        load_recipe("paper", ["dual.patience=1", "unfreeze.patience=1"])[1].trainer_settings()
    )
    epochs = settings.dual.epochs + sum(step.epochs for step in settings.unfreeze.steps)
    assert min(settings.dual.patience, settings.unfreeze.patience) >= epochs


# The ablation


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """A small ablation over two seeds: its folder, and what the command printed."""
    from command_line import thaw

    folder = tmp_path_factory.mktemp("ablation")
    done = thaw("ablate", "digits", *EPOCHS, "--seeds", "0,1", "--out", "arms", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "arms", done


def test_the_arms_are_equal_in_parameters_and_passes(ablation):
    _, done = ablation
    result = json.loads(done.stdout)
    names = [arm["name"] for arm in result["arms"]]
    assert names == ["plain", "dual-only", "both-original", "both-augmented", "thawed-at-once", "whole"]
    sizes = {arm["name"]: arm["parameters"] for arm in result["arms"]}
    assert sizes["whole"] == 14862
    for name, size in sizes.items():
        assert 0.97 * sizes["whole"] <= size <= sizes["whole"], name
    epochs: dict[tuple[str, str], list[str]] = {}
    for line in done.stderr.splitlines():
        if " epoch " in line:
            _, seed, arm, stage = line.split()[:4]
            epochs.setdefault((seed, arm), []).append(stage)
    assert result["epochs"] == 4
    for seed in "01":
        assert epochs[seed, "plain"] == ["plain"] * 4
        assert epochs[seed, "dual-only"] == ["dual"] * 4
        for name in ("both-original", "both-augmented"):
            assert epochs[seed, name] == ["dual", "dual", "head", "all"]
        # The whole method and that without gradual thawing begin with the same first stage, trained once.
        assert epochs[seed, "thawed-at-once"] == ["dual", "dual", "all", "all"]
        assert epochs[seed, "whole"] == ["head", "all"]


def test_the_comparison_agrees_with_itself(ablation):
    folder, done = ablation
    result = json.loads(done.stdout)
    assert result == stored(folder / "ablation.json")
    count = result["test_count"]
    assert count == pytest.approx(1797 / 2, abs=5)
    plain = result["arms"][0]
    assert plain["name"] == PLAIN
    assert plain["mcnemar"] == []
    for arm in result["arms"]:
        assert len(arm["accuracies"]) == 2
        assert arm["mean"] == pytest.approx(np.mean(arm["accuracies"]))
        differences = np.subtract(arm["accuracies"], plain["accuracies"])
        assert arm["difference_to_plain"] == pytest.approx(differences.mean())
        # t(0.975) with one degree of freedom is 12.7062.
        half = 12.7062 * differences.std(ddof=1) / np.sqrt(2)
        assert arm["difference_ci95_half_width"] == pytest.approx(half, rel=1e-4)
        for test, difference in zip(arm["mcnemar"], differences, strict=arm["name"] != PLAIN):
            assert test["only_a"] - test["only_b"] == round(difference * count)
            assert 0 <= test["p_value"] <= 1
    text = (folder / "ablation.md").read_text()
    assert text == page(result)
    for arm in result["arms"]:
        cost = f"{arm['parameters']:,} | {arm['macs']:,}"
        assert f"| {arm['name']} | {arm['question']} | {cost} | {arm['mean']:.2%}" in text
    assert "thaw ablate digits" in text


def test_what_is_trained_is_not_trained_again(ablation, call, monkeypatch):
    folder, done = ablation

    def train(*_arguments):
        raise AssertionError("it trains again")

    monkeypatch.setattr(ArmTraining, "train", train)
    code, out, err = call("ablate", "digits", *EPOCHS, "--seeds", "0,1", "--out", folder)
    assert code == 0, err
    assert " epoch " not in err
    result = json.loads((folder / "ablation.json").read_text())
    assert result["arms"] == json.loads(done.stdout)["arms"]
    assert str(folder / "ablation.md") in out


def test_arms_of_another_recipe_are_not_mixed(ablation, call):
    folder, _ = ablation
    words = ["another source or recipe", "--out"]
    error_of(words, call("ablate", "digits", *EPOCHS, "--set", "dual.batch_size=64", "--out", folder), 1)
    error_of(words, call("ablate", "digits", *EPOCHS, "--set", "data.fit=crop", "--out", folder), 1)


# The ways to unify


@pytest.fixture(scope="module")
def unified(tmp_path_factory):
    """A small comparison of one seed, with an odd number of epochs in stage 1."""
    from command_line import thaw

    folder = tmp_path_factory.mktemp("unify")
    done = thaw("ablate", "digits", "--study", "unify", *ODD_EPOCHS, "--seeds", "4", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "unify-digits", done


ODD_EPOCHS = (*EPOCHS, "--set", "dual.epochs=3")


def test_the_ways_to_unify_are_equal_in_parameters_and_passes(unified):
    _, done = unified
    result = json.loads(done.stdout)
    sizes = {arm["name"]: (arm["parameters"], arm["macs"]) for arm in result["arms"]}
    assert list(sizes) == ["plain", "concatenate", "average", "distil", "plain-half", "distil-half"]
    whole, macs = sizes["concatenate"]
    assert (whole, macs) == (14_862, 568_240)
    for name in ("plain", "average", "distil"):
        assert 0.97 * whole <= sizes[name][0] <= whole
    # A half is one of the two submodels: the unified model less its head (1,002 parameters, 960 products), halved.
    assert sizes["plain-half"] == sizes["distil-half"] == ((whole - 1_002) // 2, (macs - 960) // 2)
    # Two of three epochs of stage 1 train two networks of the whole size for one epoch; the third goes to stage 2.
    planned = {
        "plain": ["plain"] * 5,
        "concatenate": ["dual", "dual", "dual", "head", "all"],
        "average": ["dual", "all", "all", "all"],
        "distil": ["dual", "student", "student", "student"],
        "plain-half": ["plain"] * 10,
        # Its teachers are the submodels that were concatenated, trained once.
        "distil-half": ["student"] * 4,
    }
    trained: dict[str, list[str]] = {}
    for line in done.stderr.splitlines():
        if " epoch " in line:
            _, _, arm, stage = line.split()[:4]
            trained.setdefault(arm, []).append(stage)
    assert trained == planned
    assert result["epochs"] == 5


def test_the_ways_to_unify_are_kept_and_written(unified, call, monkeypatch, tmp_path):
    folder, done = unified
    result = json.loads(done.stdout)
    assert result == stored(folder / "unify.json")
    text = (folder / "unify.md").read_text()
    assert text == page(result)
    assert text.startswith("# How should two submodels become one? digits\n")
    for arm in result["arms"]:
        assert f"| {arm['name']} | {arm['question']} |" in text
        assert len(arm["mcnemar"]) == (0 if arm["name"] == PLAIN else 1)
        # One seed has no interval.
        assert arm["ci95_half_width"] is None

    def train(*_arguments):
        raise AssertionError("it trains again")

    monkeypatch.setattr(ArmTraining, "train", train)
    code, out, err = call(
        "ablate", "digits", "--study", "unify", *ODD_EPOCHS, "--seeds", "4", "--out", folder, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["arms"] == result["arms"]


@pytest.mark.parametrize(
    ("study", "override", "words"),
    [
        ("unify", "dual.epochs=1", "dual.epochs 1: expected at least 2"),
        (
            "unify",
            "method=plain",
            "method plain, unify.join concatenate: arms are made of a recipe for the two stages",
        ),
        ("parts", "unify.join=distil", "method two-stage, unify.join distil"),
    ],
)
def test_recipes_that_no_arms_can_be_made_of_are_refused(study, override, words, call):
    error_of([words], call("ablate", "digits", "--study", study, "--set", override), 2)


def test_an_ablation_that_cannot_be_written_is_told(call, tmp_path):
    (tmp_path / "file").write_text("")
    error_of(["cannot write", "--out"], call("ablate", "digits", *EPOCHS, "--out", "file"), 1)


def test_points_have_a_sign():
    assert _points({"difference_to_plain": -0.0123, "difference_ci95_half_width": 0.004}) == "-1.23 ± 0.40"
    assert _points({"difference_to_plain": 0.01, "difference_ci95_half_width": None}) == "+1.00"


# The reproduction


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    """A data root that holds a small mnist, in the layout of the real one."""
    pa = pytest.importorskip("pyarrow")
    import io

    import pyarrow.parquet as pq

    bunch = load_digits()
    root = tmp_path_factory.mktemp("root")
    (root / "mnist").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, rows in (("train", range(400)), ("test", range(400, 500))):
        images = []
        for row in rows:
            pixels = np.zeros((28, 28), dtype=np.uint8)
            pixels[2:26, 2:26] = np.kron(bunch.images[row], np.ones((3, 3))).astype(np.uint8) * 15
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, format="PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        labels = pa.array(bunch.target[list(rows)].tolist())
        table = pa.table({"image": pa.array(images, kind), "label": labels})
        pq.write_table(table, root / "mnist" / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def tiny_recipe(monkeypatch):
    """The reproduction with hardly any training."""
    _, recipe = load_recipe("paper", TINY_OVERRIDES)
    monkeypatch.setattr("thaw.studies.reproduce.load_recipe", lambda _name: ("paper", recipe))


def test_reproduce_goes_on_where_it_was_stopped(call, small_root, tiny_recipe, monkeypatch, tmp_path):
    arguments = ("reproduce", "--dataset", "mnist", "--dataset", "mnist", "--seeds", "0,1", "--data-root", small_root)
    from thaw.training.trainer import MultiStageTrainer

    real, calls = MultiStageTrainer.epochs, []

    def epochs(self):
        """The third epoch of the second run is interrupted."""
        for record in real(self):
            calls.append(record.stage)
            if len(calls) == 5:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(MultiStageTrainer, "epochs", epochs)
    code, out, err = call(*arguments, "--out", "table")
    assert (code, out) == (130, "")
    assert "give the same command again to go on" in err
    assert not (tmp_path / "table" / "reproduce.md").exists()
    first = (tmp_path / "table" / "mnist-seed0" / "model.safetensors").stat().st_mtime_ns

    code, out, err = call(*arguments, "--out", "table", "--json")
    assert code == 0, err
    assert calls[:5] == ["dual", "head", "all", "dual", "head"]
    assert calls[5:] == ["head", "all"], "what was saved is not trained again"
    assert (tmp_path / "table" / "mnist-seed0" / "model.safetensors").stat().st_mtime_ns == first
    result = json.loads(out)
    assert result == stored(tmp_path / "table" / "reproduce.json")
    (row,) = result["rows"]
    runs = [metrics(tmp_path / "table" / f"mnist-seed{seed}") for seed in (0, 1)]
    assert row["accuracies"] == [run["test"]["accuracy"] for run in runs]
    assert row["mean"] == pytest.approx(np.mean(row["accuracies"]))
    assert row["parameters"] == row["published"]["parameters"] == 14862
    assert row["test_count"] == 100
    assert [run["seed"] for run in runs] == [0, 1]

    code, out, err = call(*arguments, "--out", "table")
    assert code == 0, err
    assert len(calls) == 7, "the third time nothing is trained"
    assert f"| MNIST | 99% | **{row['mean']:.2%}" in out
    assert "14,862 (14,862)" in out


def test_reproduce_does_not_mix_recipes(call, small_root, tiny_recipe, monkeypatch, tmp_path):
    arguments = ("reproduce", "--dataset", "mnist", "--seeds", "3", "--data-root", small_root, "--out", "table")
    assert call(*arguments)[0] == 0
    _, other = load_recipe("paper", [*TINY_OVERRIDES, "dual.batch_size=64"])
    monkeypatch.setattr("thaw.studies.reproduce.load_recipe", lambda _name: ("paper", other))
    error_of(["another recipe", "--out"], call(*arguments), 1)


def test_the_page_of_a_reproduction():
    def row(name, accuracies, half):
        return {
            "dataset": name,
            "title": PUBLISHED[name].title,
            "published": {"accuracy": PUBLISHED[name].accuracy, "parameters": PUBLISHED[name].parameters},
            "parameters": PUBLISHED[name].parameters,
            "macs": 568_240,
            "accuracies": accuracies,
            "mean": sum(accuracies) / len(accuracies),
            "ci95_half_width": half,
            "stage_one_validation": [{"original": 0.98, "augmented": 0.97}, {"original": 0.96, "augmented": 0.95}],
            "validation": [0.99, 0.97],
            "test_count": 10_000,
            "median_latency_us": [100.0],
            "model_bytes": 60_000,
            "seconds": [61.0, 63.0],
            "environment": {"cpu": "A fast one", "cores": 2, "os": "x", "python": "3", "torch": "2.13.0", "numpy": "2"},
            "precision": "float32",
        }

    rows = [row("mnist", [0.9905, 0.9915], 0.0064), row("cifar10", [0.66], None)]
    text = _page({"command": "thaw reproduce", "recipe": "paper", "seeds": [0, 1], "rows": rows, "environment": {}})
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| MNIST | 99% | **99.10% ± 0.64%** | 99.05%, 99.15% | 14,862 (14,862) | 568,240 |" in table
    assert "| CIFAR-10 | 65% | **66.00%** | 66.00% | 19,622 (19,622) | 568,240 |" in table
    assert "| MNIST | 97.00% | 96.00% | 98.00% |" in table
    assert "Machine: A fast one, 2 cores" in text
    assert "`thaw reproduce`" in text


def test_what_was_published():
    assert {name: (row.accuracy, row.parameters) for name, row in PUBLISHED.items()} == {
        "mnist": (0.99, 14_862),
        "fashion_mnist": (0.89, 14_862),
        "cifar10": (0.65, 19_622),
    }
