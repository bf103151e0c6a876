"""Class imbalance: loss weights compared with scikit-learn and NumPy, and selection by mean recall."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from error_matching import raises
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from training_samples import branches_of, digit_set, method_of, odd_dual, odd_submodel, snapshot, source

from thaw.data.balance import class_counts, class_weights, imbalance, is_uneven, mean_recall
from thaw.data.mix import Mix, Targets, cross_entropy
from thaw.models.families import PaperSpec
from thaw.models.unify import UnifySpec, unify
from thaw.training.distil import DistillStage, DistilSettings
from thaw.training.engine import StageRun
from thaw.training.loss import LossSettings
from thaw.training.optim import OptimizerSettings
from thaw.training.qat import QatSettings, QatStage
from thaw.training.stages import (
    DualSettings,
    DualStage,
    PlainSettings,
    PlainStage,
    UnfreezeSettings,
    UnfreezeStep,
    unfreeze_stages,
)

LABELS = np.repeat(np.arange(5), [70, 12, 0, 6, 1])
COUNTS = class_counts(LABELS, 5)


def test_balanced_weights_agree_with_scikit_learn():
    weights = class_weights(COUNTS, "balanced")
    present = np.unique(LABELS)
    assert weights[present] == pytest.approx(compute_class_weight("balanced", classes=present, y=LABELS), rel=1e-6)
    assert weights[2] == 1.0
    assert weights.dtype == np.float32


@pytest.mark.parametrize("kind", ["balanced", "sqrt"])
def test_weights_have_mean_one_over_images(kind):
    weights = class_weights(COUNTS, kind)
    assert weights[LABELS].astype(np.float64).mean() == pytest.approx(1.0, abs=1e-6)
    assert (np.diff(weights[[0, 1, 3, 4]]) > 0).all()


def test_sqrt_weights_are_between_none_and_balanced():
    # 9 and 4 images: weights in the ratio 2 to 3, and 9 a + 4 b = 13.
    assert class_weights(np.array([9, 4]), "sqrt") == pytest.approx([2 * 13 / 30, 3 * 13 / 30])


def test_balanced_classes_have_no_weights():
    for kind in ("none", "sqrt", "balanced", "auto"):
        assert class_weights(np.array([7, 7, 0, 7]), kind) is None
    assert class_weights(COUNTS, "none") is None
    # An explicit kind applies to any imbalance; "auto" ignores small ones.
    assert class_weights(np.array([3, 2]), "balanced") is not None
    assert class_weights(np.array([3, 2]), "auto") is None
    assert class_weights(np.array([31, 20]), "auto") is not None


def test_threshold_of_imbalance():
    assert not is_uneven(np.array([3, 2, 0]))
    assert is_uneven(np.array([31, 20]))
    assert imbalance(COUNTS) == 70


def test_mean_recall_agrees_with_scikit_learn():
    chance = np.random.default_rng(0)
    predicted = chance.integers(0, 5, len(LABELS))
    kept = np.isin(predicted, LABELS)  # scikit-learn warns of predictions outside the true classes
    labels, predicted = LABELS[kept], predicted[kept]
    counts = class_counts(labels, 5)
    found = mean_recall(class_counts(labels[labels == predicted], 5), counts)
    assert found == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_rejects_unknown_settings():
    with raises("usage", "class_weights", "'much'"):
        LossSettings(class_weights="much")
    with raises("usage", ".select"):
        LossSettings(select="recall")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_weighted_loss_of_mixed_and_smoothed_targets(smoothing, mixed):
    chance = np.random.default_rng(3)
    logits = chance.normal(size=(6, 4))
    labels, weights = np.array([0, 1, 1, 3, 2, 0]), np.array([0.5, 2.0, 1.0, 3.0])
    partners, shares = np.array([5, 4, 3, 2, 1, 0]), chance.uniform(size=6)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = 0.0
    for row in range(6):
        pairs = [(labels[row], 1.0)]
        if mixed:
            pairs = [(labels[row], shares[row]), (labels[partners[row]], 1.0 - shares[row])]
        for label, share in pairs:
            target = np.full(4, smoothing / 4)
            target[label] += 1.0 - smoothing
            expected -= share * weights[label] * (target * logs[row]).sum() / 6
    mix = Mix(torch.from_numpy(partners), torch.tensor(shares, dtype=torch.float32)) if mixed else None
    given = (torch.tensor(logits, dtype=torch.float32), torch.from_numpy(labels), mix)
    whole = torch.tensor(weights, dtype=torch.float32)
    assert float(cross_entropy(*given, smoothing, whole)) == pytest.approx(expected, rel=1e-5)
    # The losses of the parts sum to the loss of the batch. Division by the weights of each part would break this.
    targets = Targets.of(given[1], mix)
    parts = [targets[part].cross_entropy(given[0][part], smoothing, whole) for part in (slice(0, 4), slice(4, 6))]
    assert float(parts[0]) * 4 / 6 + float(parts[1]) * 2 / 6 == pytest.approx(expected, rel=1e-5)


def stages() -> list:
    """Stages of every kind whose loss contains labels."""
    dual, fit = odd_dual(dropout=0.0), OptimizerSettings(label_smoothing=0.1)
    plain = PlainSettings(epochs=1, fit=fit, view="original")
    steps = UnfreezeSettings(steps=(UnfreezeStep(unit="all", epochs=1),))
    distil = DistilSettings(share=0.0)
    return [
        DualStage(dual, DualSettings(epochs=1, views=("original", "original"), fit=fit)),
        unfreeze_stages(unify(odd_dual(dropout=0.0), UnifySpec(hidden=8)), steps)[0],
        unfreeze_stages(odd_submodel(dropout=0.0), steps)[0],
        PlainStage(odd_submodel(dropout=0.0), plain),
        DistillStage(odd_submodel(dropout=0.0), plain, [odd_submodel()], distil),
        QatStage(odd_submodel(dropout=0.0), QatSettings()),
    ]


@pytest.mark.parametrize("place", range(6))
def test_every_stage_weights_its_loss(place):
    torch.manual_seed(1)
    stage = stages()[place]
    batch = next(iter(source(digit_set(0, 32), 32).ordered()))
    with branches_of(1) as parallel:
        stage.set_training()

        def losses(weights) -> list[float]:
            stage.class_weights = weights
            stage.module.zero_grad()
            return [float(loss) for loss in stage.backward(batch, parallel, torch.float32).values()]

        plain = losses(None)
        of_each = [losses(F.one_hot(torch.tensor(label), 10).float()) for label in range(10)]
        assert losses(torch.ones(10)) == pytest.approx(plain, rel=1e-5)
        # The loss is linear in the weights: the losses with weight 1 on single classes sum to the whole loss.
        assert np.sum(of_each, axis=0) == pytest.approx(plain, rel=1e-4)
        assert np.dot(np.arange(10), of_each) == pytest.approx(losses(torch.arange(10.0)), rel=1e-4)


def uneven_digits():
    images = digit_set(0, 400)
    kept = np.flatnonzero((images.labels == 0) | (np.arange(400) % 6 == 0))
    return replace(images, images=images.images[kept], labels=images.labels[kept])


def test_stages_use_the_weights_of_their_training_images():
    with branches_of(1) as parallel:
        setting = replace(method_of(parallel).context, train=uneven_digits())
        assert setting.class_weights is None, "no weights unless a recipe asks for them"
        assert setting.score == "balanced_accuracy"
        weighted = replace(setting, loss=LossSettings(class_weights="balanced", select="accuracy"))
        run = weighted.run(PlainStage(odd_submodel(), PlainSettings()), method_of(parallel).settings.augment)
        labels = weighted.train.labels
        expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
        assert run.stage.class_weights.numpy() == pytest.approx(expected, rel=1e-6)
        assert run.score == "accuracy"


def test_weights_change_no_bit_for_balanced_classes():
    even = digit_set(0, 400)
    rows = np.concatenate([np.flatnonzero(even.labels == label)[:12] for label in range(10)])
    even = replace(even, images=even.images[rows], labels=even.labels[rows])
    found = []
    for loss in (LossSettings(), LossSettings(class_weights="balanced", select="accuracy")):
        with branches_of(1) as parallel:
            trainer = method_of(parallel, method="plain", model=PaperSpec(filters=(3, 4)))
            trainer = type(trainer)(trainer.settings, replace(trainer.context, train=even, loss=loss))
            list(trainer.epochs())
            found.append(snapshot(trainer.network))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(("score", "best"), [("accuracy", 1), ("balanced_accuracy", 2)])
def test_score_that_selects_the_best_epoch(monkeypatch, score, best):
    # 40 images of one class and 9 x 4 of the others.
    labels = np.concatenate([np.zeros(40, np.int64), np.repeat(np.arange(1, 10), 4)])
    images = digit_set(0, len(labels))
    validation, is_zero = replace(images, labels=labels), labels == 0
    odd = np.arange(len(labels)) % 2 == 1
    # First only the large class; then half of it, and half of each other class.
    scripted = iter([({"a": is_zero}, 1.0), ({"a": odd}, 1.0)])
    monkeypatch.setattr(StageRun, "_validate", lambda self: next(scripted))
    with branches_of(1) as parallel:
        stage = PlainStage(odd_submodel(), PlainSettings(epochs=2, batch_size=32, view="original"))
        train = source(digit_set(0, 40))
        run = StageRun(stage, train, source(validation), seed=0, parallel=parallel, dtype=torch.float32, score=score)
        records = list(run.epochs())
    assert run.best.epoch == best
    assert {record.best_by for record in records} == {score}
    found = [(record.validation_accuracy, record.validation_balanced_accuracy) for record in records]
    assert found == [(pytest.approx(40 / 76), pytest.approx(0.1)), (0.5, 0.5)]
