"""Small `thaw reproduce` and `thaw ablate`: runs, stored results, and pages."""

from __future__ import annotations

import json
import shlex
import shutil

import numpy as np
import pytest
from command_line import TINY_OVERRIDES, assert_same_run, error_of, metrics, reseal, stored
from error_matching import raises
from PIL import Image
from sklearn.datasets import load_digits

import thaw as library
from thaw.cli.study_progress import parse_seeds
from thaw.models.families import PaperSpec
from thaw.recipe.recipe import load_recipe
from thaw.recipe.sizing import network_cost
from thaw.studies.ablation import _points, page
from thaw.studies.arms import PLAIN, arms_of, equal_submodel, overrides_between, without_head
from thaw.studies.reproduce import PUBLISHED, _page
from thaw.studies.runs import RunStarted, StudyRun, mean_over_seeds, read_runs
from thaw.training.stages import UnfreezeSettings, UnfreezeStep

# Half of the digits are test images, which leaves fewer for training.
EPOCHS = (
    *("--set", "dual.epochs=2", "--set", 'unfreeze.steps=[{unit="head", epochs=1}, {unit="all", epochs=1}]'),
    *("--set", "data.test_fraction=0.5", "--set", "quantize.qat_threshold=100"),
)


@pytest.mark.parametrize(("text", "seeds"), [("0", (0,)), ("0,1,2", (0, 1, 2)), (" 7 , 5 ", (7, 5)), ("10", (10,))])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "-1", "1.5", "1;2", "²"])
def test_rejects_invalid_seeds(text):
    with raises("usage", repr(text[:40])):
        parse_seeds(text)


# Arms


PAPER = load_recipe("paper")[1]
SHAPE, CLASSES = (28, 28, 1), 10


def dense_parameters(filters, shape, classes):
    """The parameters of a submodel, by hand: two 3x3 convolutions with 2x2 pooling, and a dense layer."""
    height, width, channels = shape
    first, second = filters
    rows, columns = (((side - 2) // 2 - 2) // 2 for side in (height, width))
    return 9 * channels * first + first + 9 * first * second + second + rows * columns * second * classes + classes


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("filters", [(10, 20), (4, 8), (3, 3), (6, 3), (1, 9)])
def test_plain_networks_are_as_large_as_their_widths_allow(filters, shape):
    _, recipe = load_recipe("paper", [f"model.filters={list(filters)}"])
    whole = 2 * dense_parameters(filters, shape, CLASSES) + 20 * 32 + 32 + 32 * 10 + 10
    spec = equal_submodel(recipe, shape, CLASSES)
    assert isinstance(spec, PaperSpec)
    assert spec.dropout == recipe.model.dropout
    first, second = spec.filters
    size = dense_parameters((first, second), shape, CLASSES)
    assert size <= whole < dense_parameters((first, second + 1), shape, CLASSES)
    assert size > 0.97 * whole


@pytest.mark.parametrize(
    ("listed", "more", "expected"),
    [
        ([("head", 1), ("dense", 2), ("conv2", 3), ("conv1", 4)], 0, [("dense", 3), ("conv2", 3), ("conv1", 4)]),
        ([("head", 2), ("all", 5)], 1, [("all", 8)]),
        ([("head", 2)], 1, [("dense", 3)]),
        ([("all", 5)], 1, [("all", 6)]),
    ],
)
def test_epochs_of_the_head_go_to_the_next_unit(listed, more, expected):
    steps = tuple(UnfreezeStep(unit=name, epochs=epochs) for name, epochs in listed)
    made = without_head(UnfreezeSettings(steps=steps), "dense", more)
    assert [(step.unit, step.epochs) for step in made.steps] == expected


def test_arms_of_the_parts_study_have_equal_passes_and_parameters():
    arms = {arm.name: arm.recipe for arm in arms_of("parts", PAPER, SHAPE, CLASSES)}
    assert list(arms) == ["plain", "head-only", "both-original", "both-augmented", "unfrozen-at-once", "whole"]
    stages = {name: recipe.stage_epochs() for name, recipe in arms.items()}
    whole = PAPER.stage_epochs()
    assert stages.pop("plain") == {"plain": 30}
    assert stages.pop("head-only") == {"dual": 29, "head": 1}
    assert stages.pop("unfrozen-at-once") == {"dual": 15, "all": 15}
    assert set(map(str, stages.values())) == {str(whole)}
    assert arms["unfrozen-at-once"].unfreeze.steps[0].learning_rate == PAPER.unfreeze.steps[-1].learning_rate
    assert arms["both-original"].dual.views == ("original", "original")
    assert arms["both-augmented"].dual.views == ("augmented", "augmented")
    for name, recipe in arms.items():
        size = network_cost(recipe.model, recipe.unify_spec, SHAPE, CLASSES).parameters
        assert 0.97 * 14_862 <= size <= 14_862, name


def test_arms_of_the_unify_study_have_equal_passes_and_parameters():
    steps = 'unfreeze.steps=[{unit="head", epochs=1}, {unit="all", epochs=1}]'
    recipe = load_recipe("paper", ["dual.epochs=3", steps])[1]
    arms = {arm.name: arm.recipe for arm in arms_of("unify", recipe, SHAPE, CLASSES)}
    # Two of three epochs of stage 1 train two networks of full size for one epoch; the third goes to stage 2.
    assert {name: each.stage_epochs() for name, each in arms.items()} == {
        "plain": {"plain": 5},
        "concatenate": {"dual": 3, "head": 1, "all": 1},
        "average": {"dual": 1, "all": 3},
        "distil": {"dual": 1, "student": 3},
        "plain-half": {"plain": 10},
        "distil-half": {"dual": 3, "student": 4},
    }
    costs = {name: network_cost(each.model, each.unify_spec, SHAPE, CLASSES) for name, each in arms.items()}
    whole, macs = costs["concatenate"].parameters, costs["concatenate"].macs
    assert (whole, macs) == (14_862, 568_240)
    for name in ("plain", "average", "distil"):
        assert 0.97 * whole <= costs[name].parameters <= whole
    # A half is one of the two submodels: the unified model without its head (1,002 parameters, 960 products), halved.
    for name in ("plain-half", "distil-half"):
        assert (costs[name].parameters, costs[name].macs) == ((whole - 1_002) // 2, (macs - 960) // 2)


@pytest.mark.parametrize("study", ["parts", "unify"])
def test_overrides_of_an_arm_give_its_recipe(study):
    given = ["dual.patience=1", "unfreeze.patience=1", "dual.fit.optimizer=adamw", "plain.most_steps=7"]
    base = load_recipe("paper", given)[1]
    arms = arms_of(study, base, SHAPE, CLASSES)
    assert arms[0].name == PLAIN
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        assert load_recipe("paper", [*given, *overrides_between(base, arm.recipe)])[1] == arm.recipe
        assert min(arm.recipe.dual.patience, arm.recipe.unfreeze.patience) >= 30, "no arm may stop early"


@pytest.mark.parametrize(
    ("study", "override", "words"),
    [
        ("unify", "dual.epochs=1", "dual.epochs 1"),
        ("unify", "method=plain", "method plain"),
        ("parts", "unify.join=distil", "unify.join distil"),
        ("parts", "sizing.network=largest", "sizing.network=fixed"),
    ],
)
def test_rejects_recipes_without_arms(study, override, words, call):
    error_of([words], call("ablate", "digits", "--study", study, "--set", override), 2)


# The ablation


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """A small study of one seed: its folder, and the output of the command."""
    from command_line import thaw

    folder = tmp_path_factory.mktemp("ablation")
    done = thaw("ablate", "digits", "--study", "unify", *EPOCHS, "--seeds", "4", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "unify-digits", done


def test_study_compares_its_runs(ablation):
    folder, done = ablation
    result = json.loads(done.stdout)
    assert result == stored(folder / "unify.json")
    assert result["epochs"] == 4
    plain = result["arms"][0]
    assert (plain["name"], plain["mcnemar"]) == (PLAIN, [])
    for arm in result["arms"]:
        run = folder / f"{arm['name']}-seed4"
        found = metrics(run)
        assert (run / "report.html").is_file()
        assert arm["accuracies"] == [found["test"]["accuracy"]]
        assert arm["int8_accuracies"] == [found["int8"]["test"]["accuracy"]]
        assert (arm["parameters"], arm["macs"]) == (found["parameters"], found["macs"])
        assert {stage["name"]: stage["epochs"] for stage in found["stages"]} == arm["stages"]
        # One seed has no interval.
        assert (arm["mean"], arm["ci95_half_width"]) == (arm["accuracies"][0], None)
        difference = arm["accuracies"][0] - plain["accuracies"][0]
        assert arm["difference_to_plain"] == pytest.approx(difference)
        for test in arm["mcnemar"]:
            assert test["only_a"] - test["only_b"] == round(difference * result["test_count"])
            assert 0 <= test["p_value"] <= 1
    text = (folder / "unify.md").read_text()
    assert text == page(result)
    assert text.startswith("# How should two submodels become one? digits\n")
    for arm in result["arms"]:
        cost = f"{arm['parameters']:,} | {arm['macs']:,}"
        assert f"| {arm['name']} | {arm['description']} | {cost} | {arm['mean']:.2%}" in text


def test_finished_runs_are_not_trained_again(ablation, call):
    folder, done = ablation
    code, out, err = call("ablate", "digits", "--study", "unify", *EPOCHS, "--seeds", "4", "--out", folder, "--json")
    assert code == 0, err
    assert " epoch " not in err
    assert json.loads(out)["arms"] == json.loads(done.stdout)["arms"]


def test_ablation_from_python(ablation):
    folder, done = ablation
    steps = [{"unit": "head", "epochs": 1}, {"unit": "all", "epochs": 1}]
    overrides = {
        "dual": {"epochs": 2},
        "unfreeze.steps": steps,
        "data.test_fraction": 0.5,
        "quantize.qat_threshold": 100,
    }
    events = []
    study = library.ablate(
        "digits", study="unify", overrides=overrides, seeds=[4], out=str(folder), on_event=events.append
    )
    assert study.page == folder / "unify.md"
    assert study.result == stored(folder / "unify.json")
    assert study.result["arms"] == json.loads(done.stdout)["arms"]
    assert repr(study) == f"Study({str(study.page)!r}, seeds 4)"
    assert not any(isinstance(event, RunStarted) for event in events), "finished runs are not trained again"
    assert study.result["command"].endswith("--seeds 4")


@pytest.mark.parametrize("seeds", [[], [0, 0], [-1], [True], ["0"], "01", [0.0]])
def test_rejects_seeds_that_are_not_distinct_integers(seeds):
    for study in (library.reproduce, lambda **options: library.ablate("digits", **options)):
        with raises("usage", "seeds"):
            study(seeds=seeds, out="none")


def test_rejects_other_arguments_of_a_study():
    with raises("usage", "some of mnist"):
        library.reproduce(["mnist", "digits"])
    with raises("usage", "one of parts, unify"):
        library.ablate("digits", study="all")
    with raises("usage", "a name, a path or a Hub id"):
        library.ablate((np.zeros((2, 8, 8), np.uint8), [0, 1]))


def test_command_of_an_arm_trains_it_alone(ablation, call, tmp_path):
    run = ablation[0] / "average-seed4"
    words = shlex.split(metrics(run)["command"])
    code, _, err = call(*words[1:], "--out", tmp_path / "again")
    assert code == 0, err
    assert_same_run(run, tmp_path / "again")


def test_rejects_runs_of_another_recipe(ablation, call):
    folder, _ = ablation
    for override, what in (("dual.batch_size=64", "recipe"), ("data.fit=crop", "recipe")):
        arguments = ("--study", "unify", *EPOCHS, "--seeds", "4", "--set", override, "--out", folder)
        error_of([f"another {what}", "--out"], call("ablate", "digits", *arguments), 1)


def test_unwritable_study_is_reported(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = call("ablate", "digits", *EPOCHS, "--out", "file")
    assert (code, out) == (1, "")
    assert err.splitlines()[-2].startswith("error: cannot create run folder file")
    assert "--out" in err.splitlines()[-1]


def test_interval_over_seeds():
    assert mean_over_seeds([0.5]) == (0.5, None)
    mean, half = mean_over_seeds([0.9, 0.96])
    # t(0.975) with one degree of freedom is 12.7062.
    assert (mean, half) == (pytest.approx(0.93), pytest.approx(12.7062 * np.std([0.9, 0.96], ddof=1) / np.sqrt(2)))


@pytest.mark.parametrize("name", ["precision", "kernels", "device"])
def test_rejects_runs_that_were_computed_differently(ablation, tmp_path, name):
    runs = [StudyRun(title="", path=tmp_path / each, request=None) for each in ("plain-seed4", "distil-seed4")]
    for run in runs:
        shutil.copytree(ablation[0] / run.path.name, run.path)
    assert [each["seed"] for each in read_runs(runs)] == [4, 4]
    reseal(runs[1].path / "metrics.json", metrics(runs[1].path) | {name: "other"})
    with raises("run-study", name):
        read_runs(runs)


def test_points_have_a_sign():
    assert _points({"difference_to_plain": -0.0123, "difference_ci95_half_width": 0.004}) == "-1.23 ± 0.40"
    assert _points({"difference_to_plain": 0.01, "difference_ci95_half_width": None}) == "+1.00"


# The reproduction


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    """A data root with a small mnist, in the layout of the real one."""
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
    """The reproduction with minimal training."""
    _, recipe = load_recipe("paper", TINY_OVERRIDES)
    monkeypatch.setattr("thaw.studies.reproduce.load_recipe", lambda _name: ("paper", recipe))


def test_reproduce_resumes(call, small_root, tiny_recipe, monkeypatch, tmp_path):
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
    assert "same command again" in err
    assert not (tmp_path / "table" / "reproduce.md").exists()
    first = (tmp_path / "table" / "mnist-seed0" / "model.safetensors").stat().st_mtime_ns

    code, out, err = call(*arguments, "--out", "table", "--json")
    assert code == 0, err
    assert calls[:5] == ["dual", "head", "all", "dual", "head"]
    assert calls[5:] == ["head", "all"], "saved epochs are not trained again"
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


def test_reproduce_rejects_other_recipes(call, small_root, tiny_recipe, monkeypatch, tmp_path):
    arguments = ("reproduce", "--dataset", "mnist", "--seeds", "3", "--data-root", small_root, "--out", "table")
    assert call(*arguments)[0] == 0
    _, other = load_recipe("paper", [*TINY_OVERRIDES, "dual.batch_size=64"])
    monkeypatch.setattr("thaw.studies.reproduce.load_recipe", lambda _name: ("paper", other))
    error_of(["another recipe", "--out"], call(*arguments), 1)


def test_page_of_a_reproduction():
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


def test_published_results():
    assert {name: (row.accuracy, row.parameters) for name, row in PUBLISHED.items()} == {
        "mnist": (0.99, 14_862),
        "fashion_mnist": (0.89, 14_862),
        "cifar10": (0.65, 19_622),
    }
