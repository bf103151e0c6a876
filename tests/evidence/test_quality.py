"""Quality measures, compared with scikit-learn, SciPy and calculations by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from error_matching import raises
from scipy import stats
from sklearn import metrics as sk

from thaw.evidence import evaluate, mcnemar, mean_interval, wilson_interval
from thaw.evidence.quality import MAX_MISTAKES


def random_case(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.4), size=count)
    guess = probabilities.argmax(axis=1)
    labels = np.where(rng.random(count) < 0.7, guess, rng.integers(0, classes, count))
    return probabilities, labels, tuple(f"class {index}" for index in range(classes))


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (50, 2), (997, 10), (2000, 100)])
def test_evaluate_agrees_with_scikit_learn(count: int, classes: int) -> None:
    probabilities, labels, names = random_case(count, classes, seed=count)
    quality = evaluate(probabilities, labels, names)
    predicted = probabilities.argmax(axis=1)
    every = np.arange(classes)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    # scikit-learn's F1 of a predicted class without images is 0; here it is None.
    f1 = np.where(support == 0, np.nan, f1)
    assert quality.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
    assert quality.count == count
    assert np.array_equal(quality.confusion, sk.confusion_matrix(labels, predicted, labels=every))
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        found = [getattr(entry, name) for entry in quality.per_class]
        assert [np.nan if value is None else value for value in found] == pytest.approx(expected, nan_ok=True)
    assert [entry.support for entry in quality.per_class] == support.tolist()
    assert quality.cross_entropy == pytest.approx(sk.log_loss(labels, probabilities, labels=every))


def test_calibration_error_agrees_with_a_loop() -> None:
    probabilities, labels, names = random_case(500, 4, seed=3)
    quality = evaluate(probabilities, labels, names)
    expected = 0.0
    for number in range(1, 16):
        low, high = (number - 1) / 15, number / 15
        rows = [row for row in range(500) if low < probabilities[row].max() <= high]
        if rows:
            hits = np.mean([probabilities[row].argmax() == labels[row] for row in rows])
            expected += len(rows) / 500 * abs(hits - np.mean([probabilities[row].max() for row in rows]))
    assert quality.expected_calibration_error == pytest.approx(expected)
    assert sum(part.count for part in quality.calibration) == 500


def test_calibration_error_by_hand() -> None:
    # Two images at 0.9, one of them correct, and two at 0.6, both correct: (|0.5 - 0.9| + |1 - 0.6|) / 2.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert evaluate(probabilities, np.array([0, 1, 0, 0]), ("a", "b")).expected_calibration_error == pytest.approx(0.4)


def test_confidence_on_an_edge_belongs_to_the_lower_bin() -> None:
    probabilities = np.array([[0.2] * 5, [1.0, 0, 0, 0, 0]])
    parts = evaluate(probabilities, np.array([0, 0]), tuple("abcde")).calibration
    assert [index for index, part in enumerate(parts) if part.count] == [2, 14]


def test_undefined_ratios_are_none() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0, 0.0], [0.8, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    quality = evaluate(probabilities, np.array([0, 1, 0]), ("seen", "missed", "absent", "only predicted"))
    seen, missed, absent, predicted = quality.per_class
    assert (seen.precision, seen.recall, seen.f1, seen.support) == (0.5, 0.5, 0.5, 2)
    assert (missed.precision, missed.recall, missed.f1, missed.support) == (None, 0.0, 0.0, 1)
    assert (absent.precision, absent.recall, absent.f1, absent.support) == (None, None, None, 0)
    assert (predicted.precision, predicted.recall, predicted.f1, predicted.support) == (0.0, None, None, 0)
    assert json.loads(json.dumps(quality.as_dict(), allow_nan=False))["per_class"][2]["recall"] is None


def test_mistakes_are_the_most_confident_wrong_ones() -> None:
    probabilities, labels, names = random_case(997, 5, seed=9)
    quality = evaluate(probabilities, labels, names, names=[f"picture {index}" for index in range(997)])
    wrong = [row for row in range(997) if probabilities[row].argmax() != labels[row]]
    wrong.sort(key=lambda row: -probabilities[row].max())
    assert len(quality.mistakes) == MAX_MISTAKES == 24
    assert [mistake.index for mistake in quality.mistakes] == wrong[:24]
    first = quality.mistakes[0]
    assert first.name == f"picture {wrong[0]}"
    assert first.true == names[labels[wrong[0]]]
    assert first.predicted == names[probabilities[wrong[0]].argmax()]
    assert first.confidence == probabilities[wrong[0]].max()


def test_ties_use_the_first_class_and_unnamed_images_their_index() -> None:
    quality = evaluate(np.full((2, 2), 0.5, dtype=np.float32), np.array([0, 1], dtype=np.uint8), ("a", "b"))
    assert quality.accuracy == 0.5
    assert [mistake.name for mistake in quality.mistakes] == ["[1]"]


def test_true_class_with_probability_zero_gives_finite_cross_entropy() -> None:
    assert evaluate(np.array([[1.0, 0.0]]), np.array([1]), ("a", "b")).cross_entropy == pytest.approx(12 * np.log(10))


def test_perfect_result_has_no_mistakes_and_an_interval_up_to_one() -> None:
    quality = evaluate(np.eye(3), np.arange(3), ("a", "b", "c"))
    assert quality.mistakes == ()
    assert quality.accuracy_ci95[1] == 1.0
    assert quality.cross_entropy == 0.0


def test_as_dict_is_json() -> None:
    probabilities, labels, names = random_case(40, 3, seed=1)
    quality = evaluate(probabilities, labels, names)
    read = json.loads(json.dumps(quality.as_dict(), allow_nan=False))
    assert read["confusion"] == quality.confusion.tolist()
    assert read["accuracy_ci95"] == list(quality.accuracy_ci95)
    assert set(read["mistakes"][0]) == {"index", "name", "true", "predicted", "confidence"}
    assert set(read["per_class"][0]) == {"name", "precision", "recall", "f1", "support"}


def test_eight_bit_probabilities_are_accepted() -> None:
    probabilities, labels, names = random_case(300, 10, seed=5)
    rounded = np.round(probabilities * 256).clip(0, 255) / 256
    assert evaluate(rounded, labels, names).count == 300


GOOD = np.array([[0.5, 0.5], [0.25, 0.75]])
LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    ("probabilities", "labels", "classes", "names", "code", "facts"),
    [
        (np.array([[np.nan, 1], [0.5, 0.5]]), LABELS, "ab", None, "usage-quality", ("row 0",)),
        (np.array([[np.inf, 0], [0.5, 0.5]]), LABELS, "ab", None, "usage-quality", ("row 0",)),
        (GOOD[0], LABELS, "ab", None, "usage-quality", ("float [N, K]",)),
        (GOOD.astype(int), LABELS, "ab", None, "usage-quality", ("float [N, K]",)),
        (GOOD, LABELS, "abc", None, "usage-quality", ("2 classes", "3 class")),
        (GOOD[:, :0], LABELS, "", None, "usage-quality", ("0 class",)),
        (GOOD, LABELS[:1], "ab", None, "usage-quality", ("int64 [1]",)),
        (GOOD, LABELS.astype(float), "ab", None, "usage-quality", ("float64 [2]",)),
        (GOOD, LABELS, "ab", ["one"], "usage-quality", ("1 names", "2 images")),
        (GOOD[:0], LABELS[:0], "ab", None, "data-quality", ()),
        (GOOD, np.array([0, 2]), "ab", None, "data-quality", ("0 to 2",)),
        (GOOD, np.array([-1, 1]), "ab", None, "data-quality", ("-1 to 1",)),
        (np.array([[2.5, -1.5], [0.5, 0.5]]), LABELS, "ab", None, "usage-quality", ("row 0", "-1.5")),
        (np.array([[0.5, 0.5], [0.9, 0.9]]), LABELS, "ab", None, "usage-quality", ("row 1",)),
    ],
)
def test_rejects_invalid_input(probabilities, labels, classes, names, code, facts) -> None:
    with raises(code, *facts):
        evaluate(probabilities, labels, tuple(classes), names)


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 360), (351, 360), (9898, 10_000), (1, 2)])
def test_wilson_interval_agrees_with_scipy(successes: int, count: int) -> None:
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_rejects_invalid_counts(successes: int, count: int) -> None:
    with raises("usage-quality"):
        wilson_interval(successes, count)


def paired(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    return first, np.repeat([True, False, True, False], [both, only_a, only_b, neither])


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (3, 11), (120, 87), (5100, 4900)])
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    result = mcnemar(*paired(50, only_a, only_b, 7))
    pairs = only_a + only_b
    tail = sum(math.comb(pairs, chosen) for chosen in range(min(only_a, only_b) + 1))
    assert (result.only_a, result.only_b) == (only_a, only_b)
    assert result.p_value == pytest.approx(min(1.0, 2 * tail / 2**pairs), rel=1e-9)
    assert json.loads(json.dumps(result.as_dict()))["only_a"] == only_a


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.array([True]), np.array([True, False])),
        (np.array([1, 0]), np.array([True, False])),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool)),
        (np.zeros(0, bool), np.zeros(0, bool)),
    ],
)
def test_mcnemar_rejects_unpaired_input(first: np.ndarray, second: np.ndarray) -> None:
    with raises("usage-quality"):
        mcnemar(first, second)


# The 97.5 % points of Student's t distribution from printed tables, by degrees of freedom.
T_TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 30: 2.042}


@pytest.mark.parametrize("degrees", T_TABLE)
def test_mean_interval_agrees_with_the_tables(degrees: int) -> None:
    values = np.linspace(0.2, 0.9, degrees + 1) ** 2
    mean, half = mean_interval(values)
    deviation = math.sqrt(sum((value - values.mean()) ** 2 for value in values) / degrees)
    assert mean == pytest.approx(sum(values) / len(values))
    assert half == pytest.approx(T_TABLE[degrees] * deviation / math.sqrt(degrees + 1), rel=2e-4)


@pytest.mark.parametrize("values", [(), (0.5,), (0.5, float("nan"))])
def test_mean_interval_rejects_single_values(values: tuple[float, ...]) -> None:
    with raises("usage-quality"):
        mean_interval(values)
