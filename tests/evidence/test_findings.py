"""Findings: rules compared with calculations by hand, and runs that learned nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

import thaw
from thaw.evidence import evaluate
from thaw.evidence.findings import (
    Finding,
    constant_loss,
    int8_findings,
    result_findings,
    stuck_findings,
    unified_findings,
)

CLASSES = ("ant", "bee", "cow")


def codes(findings) -> list[str]:
    return [finding.code for finding in findings]


def result(*rows: list[int]) -> list[str]:
    return codes(result_findings(np.array(rows), CLASSES))


def test_good_result_has_no_findings():
    assert result([50, 3, 2], [4, 40, 1], [0, 2, 30]) == []


def test_model_that_always_predicts_one_class():
    found = result_findings(np.array([[70, 0, 0], [20, 0, 0], [10, 0, 0]]), CLASSES, images="test image")
    assert codes(found) == ["largest-class", "class-without-hit"]
    assert found[0].message == (
        "the model did not learn: its accuracy of 70.00% is not significantly better than always predicting ant, "
        "the class of 70.00% of the 100 test images"
    )
    assert found[1].message == ("the model recognized no test image of 2 of 3 classes: bee (20), cow (10)")
    assert found[1].remedies == ("more training images of bee, cow",)
    assert {each.severity for each in found} == {"warning"}


def test_model_that_distinguishes_classes_below_the_largest_share():
    # 65 of 100 are correct, fewer than by always predicting "ant", but all classes are recognized.
    found = result_findings(np.array([[45, 15, 10], [4, 14, 2], [2, 2, 6]]), CLASSES)
    assert codes(found) == ["largest-class"]
    assert "did not learn" not in found[0].message
    assert "it does distinguish classes: its balanced accuracy is 64.76%" in found[0].message


@pytest.mark.parametrize("hits", range(60, 90))
def test_largest_class_is_compared_by_the_binomial_test(hits):
    wrong = 100 - hits
    # 65 ants; all mistakes are bees classified as cows, or ants classified as bees.
    ants = min(65, hits)
    rows = [[ants, 65 - ants, 0], [0, hits - ants, 35 - (hits - ants)], [0, 0, 0]]
    assert np.sum(rows) == 100
    assert wrong == 100 - rows[0][0] - rows[1][1]
    beaten = stats.binom.sf(hits - 1, 100, 0.65) < 0.05
    assert ("largest-class" in result(*rows)) is not beaten


def test_few_images_are_reported():
    found = result_findings(np.array([[2, 0], [0, 2]]), ("ant", "bee"))
    assert codes(found) == ["few-images"]
    assert found[0].severity == "note"
    assert "4 images are too few" in found[0].message
    assert codes(result_findings(np.array([[2, 0], [2, 0]]), ("ant", "bee"))) == ["largest-class", "class-without-hit"]
    assert codes(result_findings(np.array([[20, 0], [0, 20]]), ("ant", "bee"))) == []


def test_class_without_images_is_ignored():
    assert result([30, 2, 0], [1, 30, 0], [0, 0, 0]) == []
    assert result([10, 1, 0], [0, 0, 0], [0, 0, 0]) == [], "a single class cannot be distinguished from others"


def test_predictions_independent_of_the_image_do_not_distinguish_classes():
    # One-sided at 5 %: about 5 % of 400 random results may pass.
    chance, passed = np.random.default_rng(5), 0
    for _ in range(400):
        truth = chance.choice(3, 150, p=(0.6, 0.3, 0.1))
        answers = chance.choice(3, 150, p=(0.5, 0.2, 0.3))
        confusion = np.bincount(truth * 3 + answers, minlength=9).reshape(3, 3)
        found = result_findings(confusion, CLASSES)
        assert found[0].code == "largest-class"
        passed += "distinguish classes" in found[0].message
    assert passed <= 33  # the 99 % point of a binomial with n = 400, p = 0.05 is 31


def test_class_names_are_escaped_and_shortened():
    evil = ("ant\x1b[2J", *(f"c{n}" for n in range(9)))
    confusion = np.zeros((10, 10), int)
    confusion[:, 0] = 5
    confusion[0, 0] = 50
    found = result_findings(confusion, evil)
    assert "\x1b" not in "".join(map(str, found))
    assert found[1].message.endswith("c0 (5), c1 (5), c2 (5), c3 (5), c4 (5) and 4 more")


def test_quality_has_balanced_accuracy_and_findings():
    chance = np.random.default_rng(2)
    labels = chance.choice(3, 200, p=(0.7, 0.2, 0.1))
    probabilities = chance.dirichlet(np.ones(3), 200)
    quality = evaluate(probabilities, labels, CLASSES)
    expected = balanced_accuracy_score(labels, probabilities.argmax(axis=1))
    assert quality.balanced_accuracy == pytest.approx(expected)
    assert quality.as_dict()["balanced_accuracy"] == quality.balanced_accuracy
    assert codes(quality.findings) == ["largest-class"]
    absent = evaluate(np.eye(3)[[0, 0, 1, 0]], np.array([0, 0, 1, 1]), CLASSES)
    assert absent.balanced_accuracy == 0.75


def test_unified_network_below_its_better_submodel():
    labels = np.arange(200) % 2
    better, worse = np.arange(200) >= 20, np.arange(200) >= 100
    # Only the better submodel is correct on 15 images, only the unified network on 2.
    unify_spec = better.copy()
    unify_spec[20:35], unify_spec[:2] = False, True
    submodels = {"original": worse, "augmented": better}
    found = unified_findings(unify_spec, submodels, labels, 2)
    assert codes(found) == ["worse-than-submodels"]
    assert "83.50% of the 200 validation images against 90.00% (augmented" in found[0].message
    p_value = stats.binomtest(15, 17, alternative="greater").pvalue
    assert f"p = {p_value:.2g}" in found[0].message
    # 3 against 2 is chance. A better unified network, or no submodels, gives no finding.
    close = better.copy()
    close[20:23], close[:2] = False, True
    assert unified_findings(close, submodels, labels, 2) == ()
    assert unified_findings(np.ones(200, bool), submodels, labels, 2) == ()
    assert unified_findings(unify_spec, {}, labels, 2) == ()


def test_unified_network_with_the_better_mean_recall_is_not_worse():
    labels = np.repeat([0, 1], [180, 20])
    only_large, all_of_small = labels == 0, labels == 1
    all_of_small[:130] = True
    assert unified_findings(all_of_small, {"original": only_large}, labels, 2) == ()


def test_loss_of_a_constant_prediction():
    shares = np.array([0.7, 0.2, 0.1, 0.0])
    labels = np.repeat(np.arange(4), [70, 20, 10, 0])
    assert constant_loss(shares, 0.0) == pytest.approx(-np.log(shares[labels]).mean())
    # With smoothing, by a search over constant predictions.
    targets = 0.9 * np.eye(4)[labels] + 0.1 / 4
    answers = np.random.default_rng(0).dirichlet(np.ones(4) * 3, 20_000)
    losses = -(np.log(answers) @ targets.T).mean(axis=1)
    assert constant_loss(shares, 0.1) <= losses.min()
    assert constant_loss(shares, 0.1) == pytest.approx(losses.min(), rel=0.02)


def test_loss_that_never_decreased():
    assert codes(stuck_findings({"plain": (1.39, 1.4)})) == ["loss-stuck"]
    assert stuck_findings({"plain": (1.3, 1.4)}) == ()
    assert (
        "original 2.3000 (constant 2.3026)"
        in stuck_findings({"original": (2.3, 2.3026), "b": (0.1, 2.3026)})[0].message
    )


def test_classes_lost_in_int8():
    per_class = [
        {"name": "ant", "float_recall": 0.9, "recall": 0.9, "support": 10},
        {"name": "bee", "float_recall": 0.2, "recall": 0.0, "support": 10},
        {"name": "cow", "float_recall": 0.0, "recall": 0.0, "support": 10},
        {"name": "dog", "float_recall": 0.0, "recall": 0.0, "support": 0},
    ]
    (found,) = int8_findings(per_class)
    assert found.message == "the int8 network lost 1 class: it recognized no test image of bee"
    assert int8_findings(per_class[2:]) == ()


def noise(counts: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise with imbalanced labels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 16, 16), dtype=np.uint8)
    return images, np.array(["ant", "bee", "cow"])[labels]


QUICK = ("sizing.budget=params=1500", "plain.epochs=4")


def test_run_on_noise_reports_that_it_learned_nothing(tmp_path):
    run = thaw.train(noise((140, 40, 20)), overrides=QUICK, out=tmp_path / "run")
    assert run.metrics["recipe"] == "balanced"
    found = run.findings
    assert found[0].code == "largest-class"
    assert found[0].message.startswith("the model did not learn: ")
    stored = run.metrics["findings"]
    assert [finding.code for finding in found] == [finding["code"] for finding in stored]
    assert "--set loss.class_weights=balanced" in stored[0]["try"]
    assert 'overrides=["loss.class_weights=balanced"]' in found[0].remedies
    assert "--recipe balanced" not in stored[0]["try"], "the run already uses it"
    notes = [problem for problem in run.metrics["data"]["problems"] if problem["kind"] == "imbalance"]
    assert len(notes) == 1
    assert "7.2 times" in notes[0]["message"], "101 of 14, in training"
    page = run.report.read_text("utf-8")
    assert 0 < page.index("the model did not learn") < page.index('id="summary"')


def write_folders(root, images, labels) -> None:
    from PIL import Image

    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / label / f"{number}.png")


@pytest.fixture(scope="module")
def half_known(tmp_path_factory):
    """Two classes that differ in brightness, and a few images of a third one that look like the first."""
    root = tmp_path_factory.mktemp("half")
    chance, labels = np.random.default_rng(1), np.repeat([0, 1, 2], [100, 100, 10])
    bright = np.array([40, 160, 40])[labels][:, None, None]
    images = (chance.integers(0, 60, (210, 16, 16)) + bright).astype(np.uint8)
    write_folders(root / "images", images, np.array(["dark", "light", "never"])[labels])
    run = thaw.train(
        root / "images",
        overrides=(*QUICK, "loss.class_weights=none", "plain.epochs=6"),
        out=root / "run",
    )
    return root, run


def test_class_that_cannot_be_learned_is_reported_first(half_known, call):
    root, run = half_known
    (found,) = run.findings
    assert found.code == "class-without-hit"
    assert "recognized no test image of 1 of 3 classes: never (2)" in found.message
    code, out, err = call("evaluate", root / "run", root / "images")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "warning: the model recognized no image of 1 of 3 classes: never (10)"
    assert lines[1] == "  try: more training images of never"
    assert any(line.startswith("balanced accuracy 66.67%") for line in lines)
    code, out, err = call("evaluate", root / "run", root / "images", "--json")
    told = json.loads(out)
    assert codes(map(Finding.from_dict, told["findings"])) == ["class-without-hit"]
    assert told["test"]["balanced_accuracy"] == pytest.approx(2 / 3)


def test_terminal_shows_findings_first(half_known, call):
    root, run = half_known
    code, out, err = call("train", "--resume", root / "run")
    again = json.loads((root / "run" / "metrics.json").read_text("utf-8"))
    assert (again["findings"], again["data"]) == (run.metrics["findings"], run.metrics["data"]), (
        "notes are not repeated"
    )
    assert code == 0, err
    lines = out.strip().splitlines()
    assert lines[0].startswith("warning: the model recognized no test image of 1 of 3 classes")
    assert lines[1].startswith("  try: more training images of never; --set loss.class_weights=balanced; ")
    assert lines[3].startswith("test accuracy ")
    assert lines[4].startswith("balanced accuracy ")


def test_untrained_head_is_reported(tmp_path):
    chance, labels = np.random.default_rng(1), np.repeat(np.arange(4), 60)
    images = (chance.integers(0, 60, (240, 16, 16)) + 50 * labels[:, None, None]).astype(np.uint8)
    run = thaw.train(
        (images, labels),
        recipe="paper",
        overrides=(
            "model.filters=[4, 8]",
            "dual.epochs=12",
            "dual.batch_size=16",
            "dual.learning_rate=0.01",
            'unfreeze.steps=[{unit="all", epochs=1, learning_rate=1e-12}]',
        ),
        out=tmp_path / "run",
    )
    found = {finding.code: finding for finding in run.findings}
    assert {"worse-than-submodels", "loss-stuck"} <= set(found)
    assert "unified" in found["loss-stuck"].message
    assert "original" not in found["loss-stuck"].message
    assert 'recipe="balanced"' in run.findings[0].remedies
    assert 'recipe="balanced"' in found["worse-than-submodels"].remedies[0]
    again = thaw.Run.open(run.path, source=(images, labels)).resume()
    assert again.findings == run.findings, "the results of the submodels are stored"
