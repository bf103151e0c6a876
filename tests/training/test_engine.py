"""The training loop: learning, measurements, early stopping, and resuming with the same bits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from error_matching import raises
from sklearn.metrics import accuracy_score, log_loss
from training_samples import branches_of, digit_set, method_of, odd_dual, snapshot, source

from thaw.errors import TrainingError
from thaw.models.blocks import dropouts
from thaw.models.families import PaperSpec, ResidualSpec
from thaw.models.unify import UnifySpec, average, build_dual, unify, unit_names
from thaw.training import engine
from thaw.training.checkpoint import read_tensors, write_tensors
from thaw.training.distil import DistillStage, DistilSettings
from thaw.training.engine import StageRun
from thaw.training.optim import OptimizerSettings
from thaw.training.schedule import Schedule
from thaw.training.stages import (
    DualSettings,
    DualStage,
    PlainSettings,
    PlainStage,
    UnfreezeSettings,
    UnfreezeStep,
    unfreeze_stages,
)
from thaw.training.trainer import MultiStageTrainer

FAMILIES = ["paper", "odd"]


@pytest.fixture(scope="module")
def parallel():
    with branches_of(2) as made:
        yield made


def a_dual(family: str, seed: int = 0, dropout: float = 0.3):
    torch.manual_seed(seed)
    if family == "odd":
        return odd_dual(dropout=dropout)
    return build_dual(PaperSpec(filters=(5, 8), dropout=dropout), (16, 16, 1), 10)


def dual_run(parallel, *, family="paper", seed=0, images=200, dropout=0.3, dtype=torch.float32, **values) -> StageRun:
    stage = DualStage(
        a_dual(family, seed, dropout), DualSettings(**{"epochs": 3, "batch_size": 32, "learning_rate": 0.01, **values})
    )
    train = source(digit_set(0, images), stage.batch_size, views=stage.views)
    return StageRun(stage, train, source(digit_set(1400, 1500), 64), seed=11, parallel=parallel, dtype=dtype)


def unfreeze_run(parallel, *, family="paper", seed=0, images=200, dtype=torch.float32, unit="all", **values):
    torch.manual_seed(seed)
    model = unify(a_dual(family, seed), UnifySpec())
    numbers = {"epochs": 3, "learning_rate": 0.1, **values}
    step = UnfreezeStep(unit=unit, epochs=numbers.pop("epochs"), learning_rate=numbers.pop("learning_rate"))
    settings = UnfreezeSettings(steps=(step,), **{"batch_size": 32, "view": "augmented", **numbers})
    (stage,) = unfreeze_stages(model, settings)
    train = source(digit_set(0, images), stage.batch_size, views=stage.views)
    return StageRun(stage, train, source(digit_set(1400, 1500), 64), seed=11, parallel=parallel, dtype=dtype)


def averaged_run(parallel, *, family="paper", seed=0, images=200, dtype=torch.float32, **values) -> StageRun:
    """One submodel, the average of two, with a frozen first unit."""
    model = average(a_dual(family, seed))
    numbers = {"epochs": 3, "learning_rate": 0.1, **values}
    epochs, rate = numbers.pop("epochs"), numbers.pop("learning_rate")
    steps = tuple(UnfreezeStep(unit=unit, epochs=epochs, learning_rate=rate) for unit in unit_names(model)[:2])
    settings = UnfreezeSettings(steps=steps, **{"batch_size": 32, "view": "augmented", **numbers})
    _, stage = unfreeze_stages(model, settings)
    train = source(digit_set(0, images), stage.batch_size, views=stage.views, mixup=0.4)
    return StageRun(stage, train, source(digit_set(1400, 1500), 64), seed=11, parallel=parallel, dtype=dtype)


FIT = OptimizerSettings(optimizer="muon", momentum=0.95, weight_decay=0.01, ema=0.9, label_smoothing=0.1)


def plain_settings(**values) -> PlainSettings:
    return PlainSettings(**{"epochs": 3, "batch_size": 32, "fit": FIT, **values})


def plain_run(parallel, *, family="paper", seed=0, images=200, dtype=torch.float32, **values) -> StageRun:
    """Muon, a running mean of the weights, smoothed labels and mixed images."""
    stage = PlainStage(a_dual(family, seed).branches[0], plain_settings(**values))
    train = source(digit_set(0, images), stage.batch_size, views=stage.views, mixup=0.4, cutmix=1.0)
    return StageRun(stage, train, source(digit_set(1400, 1500), 64), seed=11, parallel=parallel, dtype=dtype)


def student_run(parallel, *, family="paper", seed=0, images=200, dtype=torch.float32, **values) -> StageRun:
    """A network taught by two others, whose weights are also part of a checkpoint."""
    teachers = a_dual(family, seed)
    stage = DistillStage(
        a_dual(family, seed + 1).branches[0], plain_settings(**values), list(teachers.branches), DistilSettings()
    )
    train = source(digit_set(0, images), stage.batch_size, views=stage.views)
    return StageRun(stage, train, source(digit_set(1400, 1500), 64), seed=11, parallel=parallel, dtype=dtype)


RUNS = {
    "dual": dual_run,
    "unfreeze": unfreeze_run,
    "averaged": averaged_run,
    "plain": plain_run,
    "student": student_run,
}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and tensor.numpy().tobytes() == second[name].numpy().tobytes()
        for name, tensor in first.items()
    )


def without_times(record) -> dict:
    return replace(record, seconds=0.0, images_per_second=0.0).as_dict()


def test_training_learns_digits(parallel):
    run = dual_run(parallel, images=1200, epochs=6, learning_rate=0.005, dropout=0.1)
    records = list(run.epochs())
    assert [record.epoch for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1].train_loss < 0.35 * records[0].train_loss
    assert records[-1].validation_accuracy > 0.85
    run.load_best()
    unified = unify(run.stage.module, UnifySpec())
    settings = UnfreezeSettings(
        steps=(UnfreezeStep(unit="head", epochs=5, learning_rate=0.3), UnfreezeStep(unit="all", epochs=2)),
        batch_size=32,
    )
    train, validation = source(digit_set(0, 1200), 32), run.validation
    for stage in unfreeze_stages(unified, settings):
        after = StageRun(stage, train, validation, seed=1, parallel=parallel, dtype=torch.float32)
        losses = [record.train_loss for record in after.epochs()]
        assert losses[-1] < losses[0]
    assert after.best.accuracy > 0.85


def test_plain_network_learns_digits(parallel):
    settings = PlainSettings(
        epochs=4, learning_rate=0.01, view="original", schedule=Schedule(), fit=OptimizerSettings(optimizer="nadam")
    )
    stage = PlainStage(a_dual("paper", dropout=0.0).branches[0], settings)
    run = StageRun(
        stage,
        source(digit_set(0, 600), 32),
        source(digit_set(1400, 1500)),
        seed=0,
        parallel=parallel,
        dtype=torch.float32,
    )
    losses = [record.train_loss for record in run.epochs()]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", list(RUNS))
def test_resume_from_any_epoch_gives_the_same_bits(kind, dtype, family, parallel, tmp_path):
    schedule = Schedule(kind="cosine", warmup=0.4, final=0.1)

    def fresh(seed: int) -> StageRun:
        return RUNS[kind](parallel, family=family, seed=seed, images=110, dtype=dtype, schedule=schedule)

    def save(run: StageRun) -> None:
        tensors, numbers = run.state()
        write_tensors(tmp_path / f"{run.epoch}.safetensors", tensors, {"version": 1, "run": numbers})

    whole = fresh(seed=0)
    save(whole)
    records = []
    for record in whole.epochs():
        records.append(record)
        save(whole)
    tensors, numbers = whole.state()

    for epoch in range(4):
        # Different initial weights and another state of the global generator, which must have no effect.
        again = fresh(seed=100 + epoch)
        assert not same_bits(snapshot(again.stage.module), snapshot(whole.stage.module))
        loaded, header = read_tensors(tmp_path / f"{epoch}.safetensors", version=1)
        again.restore(loaded, header["run"])
        assert again.epoch == epoch
        rest = list(again.epochs())
        assert [without_times(record) for record in rest] == [without_times(record) for record in records[epoch:]]
        again_tensors, again_numbers = again.state()
        assert same_bits(again_tensors, tensors)
        assert again_numbers == numbers


METHODS = [("two-stage", "concatenate"), ("two-stage", "average"), ("two-stage", "distil"), ("plain", "concatenate")]


@pytest.mark.parametrize("family", ["paper", "residual"])
@pytest.mark.parametrize(("method", "join"), [*METHODS, ("distil", "concatenate")])
def test_trainer_resumes_from_any_epoch_with_the_same_bits(method, join, family, parallel, tmp_path):
    model = ResidualSpec(widths=(4, 6), blocks=(1, 0), dropout=0.1) if family == "residual" else None

    def fresh() -> MultiStageTrainer:
        return method_of(parallel, method=method, join=join, model=model)

    def save(at: MultiStageTrainer, number: int) -> None:
        tensors, numbers = at.state()
        write_tensors(tmp_path / f"{number}.safetensors", tensors, {"version": 1, "method": numbers})

    whole, records = fresh(), []
    for record in whole.epochs():
        records.append(record)
        save(whole, len(records))
    planned = [stage for stage, epochs in whole.settings.stage_epochs.items() for _ in range(epochs)]
    assert [record.stage for record in records] == planned
    for number in range(1, len(records) + 1):
        again = fresh()
        loaded, header = read_tensors(tmp_path / f"{number}.safetensors", version=1)
        again.restore(loaded, header["method"])
        assert len(list(again.epochs())) == len(records) - number
        assert list(map(without_times, again.progress.records)) == list(map(without_times, records))
        assert same_bits(snapshot(again.network), snapshot(whole.network))
        assert [summary.name for summary in again.progress.summaries] == list(whole.settings.stage_epochs)


def test_saved_weights_are_the_running_mean(parallel):
    run = plain_run(parallel, epochs=1, images=120)
    list(run.epochs())
    own = snapshot(run.stage.module)
    assert all(torch.equal(run.best.weights[name], tensor) for name, tensor in run.average.tensors.items())
    run.load_best()
    assert all(not torch.equal(own[name], tensor) for name, tensor in run.stage.module.state_dict().items())


def test_bits_depend_on_the_seed_of_the_run(parallel):
    made = []
    for seed in (11, 11, 12):
        run = dual_run(parallel, epochs=1)
        run.seed = seed
        list(run.epochs())
        made.append(snapshot(run.stage.module))
    assert same_bits(made[0], made[1])
    assert not same_bits(made[0], made[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", list(RUNS))
def test_number_of_threads_does_not_change_a_bit(kind, dtype):
    # Operations have one thread in both cases; only the concurrency of branches differs.
    made = []
    for count in (1, 2):
        with branches_of(count) as parallel:
            assert (parallel._pool is not None) == (count == 2)
            run = RUNS[kind](parallel, epochs=2, dtype=dtype)
            records = [without_times(record) for record in run.epochs()]
            made.append((records, run.state()[0]))
    assert made[0][0] == made[1][0]
    assert same_bits(made[0][1], made[1][1])


def test_patience_ends_a_stage(parallel):
    # A rate this small changes no weight, so no epoch is better than the first.
    run = dual_run(parallel, epochs=9, patience=2, learning_rate=1e-30)
    records = list(run.epochs())
    assert [record.best for record in records] == [True, False, False]
    assert run.stopped_early
    assert run.finished
    assert list(run.epochs()) == []
    assert run.best.epoch == 1


def hits(accuracy: float) -> np.ndarray:
    """Whether each of 100 validation images is classified correctly, for this accuracy."""
    return np.arange(100) < round(100 * accuracy)


def test_patience_restarts_with_each_better_epoch(parallel, monkeypatch):
    scripted = iter([0.5, 0.4, 0.6, 0.6, 0.5, 0.1])
    monkeypatch.setattr(StageRun, "_validate", lambda self: ({"a": hits(next(scripted))}, 1.0))
    run = dual_run(parallel, images=40, epochs=9, patience=3)
    assert [record.best for record in run.epochs()] == [True, False, True, False, False, False]
    assert run.epoch == 6


def test_all_epochs_run_within_patience(parallel):
    run = dual_run(parallel, images=40, epochs=2, patience=1)
    assert len(list(run.epochs())) == 2
    assert run.finished


def test_best_epoch_is_restored(parallel, monkeypatch):
    # By accuracy, then by the smaller loss; the fourth epoch equals the third and is not better.
    scripted = iter([(0.5, 1.0), (0.9, 2.0), (0.9, 1.5), (0.9, 1.5), (0.7, 0.1)])

    def validate(run):
        accuracy, loss = next(scripted)
        return {"original": hits(accuracy - 0.05), "augmented": hits(accuracy + 0.05)}, loss

    monkeypatch.setattr(StageRun, "_validate", validate)
    run = dual_run(parallel, family="odd", images=64, epochs=5, patience=5)
    weights = {}
    for record in run.epochs():
        weights[record.epoch] = snapshot(run.stage.module)
        assert record.validation_accuracy == pytest.approx(sum(record.validation.values()) / 2)
    assert run.best.epoch == 3
    assert (run.best.accuracy, run.best.loss) == (pytest.approx(0.9), 1.5)
    assert same_bits(snapshot(run.stage.module), weights[5])
    run.load_best()
    assert same_bits(snapshot(run.stage.module), weights[3])
    assert not same_bits(weights[3], weights[5])
    # Further training does not change the best weights.
    with torch.no_grad():
        for tensor in run.stage.module.state_dict().values():
            tensor.add_(1)
    assert same_bits(run.best.weights, weights[3])


def test_load_best_needs_an_epoch(parallel):
    with pytest.raises(RuntimeError, match="before the first epoch"):
        dual_run(parallel).load_best()


def normalized(images) -> torch.Tensor:
    return torch.from_numpy(((images.images / 255.0 - 0.3) / 0.4).astype(np.float32).transpose(0, 3, 1, 2))


def probabilities(branch, images) -> np.ndarray:
    branch.eval()
    with torch.no_grad():
        return branch(normalized(images)).double().softmax(1).numpy()


def test_validation_scores_agree_with_scikit_learn(parallel):
    run = dual_run(parallel, epochs=1)
    (record,) = run.epochs()
    images = digit_set(1400, 1500)
    made = [probabilities(branch, images) for branch in run.stage.module.branches]
    accuracies = [accuracy_score(images.labels, guess.argmax(1)) for guess in made]
    losses = [log_loss(images.labels, guess, labels=np.arange(10)) for guess in made]
    assert list(record.validation.values()) == pytest.approx(accuracies)
    assert record.validation_accuracy == pytest.approx(np.mean(accuracies))
    assert record.validation_loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_training_losses_are_means_over_all_images(parallel):
    # 150 = 4 batches of 32 and one of 22, which must weigh less; the rate does not change the weights.
    run = dual_run(parallel, images=150, epochs=1, dropout=0.0, learning_rate=1e-30, views=("original", "original"))
    (record,) = run.epochs()
    images = digit_set(0, 150)
    expected = [
        log_loss(images.labels, probabilities(branch, images), labels=np.arange(10))
        for branch in run.stage.module.branches
    ]
    assert list(record.losses.values()) == pytest.approx(expected, rel=1e-5)
    assert record.train_loss == pytest.approx(sum(expected), rel=1e-5)


def test_record_describes_the_epoch(parallel):
    schedule = Schedule(kind="cosine")
    run = unfreeze_run(parallel, images=128, epochs=2, learning_rate=0.2, schedule=schedule, unit="head")
    records = list(run.epochs())
    # 4 batches an epoch, 8 steps in all: the last of each epoch are steps 3 and 7.
    assert [record.learning_rate for record in records] == pytest.approx(
        [0.1 * (1 + math.cos(math.pi * step / 8)) for step in (3, 7)]
    )
    for number, record in enumerate(records, start=1):
        assert (record.stage, record.kind, record.epoch, record.epochs) == ("head", "unfreeze", number, 2)
        assert list(record.losses) == list(record.validation) == ["unified"]
        assert 0 < 128 / record.images_per_second <= record.seconds
        assert record.as_dict()["validation_loss"] == record.validation_loss


@pytest.mark.parametrize("kind", list(RUNS))
def test_loss_that_is_not_finite_stops_the_stage(kind, parallel):
    run = RUNS[kind](parallel, epochs=4, learning_rate=1e30)
    with pytest.raises(TrainingError) as caught:
        list(run.epochs())
    message = str(caught.value)
    assert "not finite" in message
    assert f"stage {run.stage.name}, epoch {run.epoch + 1}" in message
    assert "lower learning rate (now 1e+30)" in message
    assert len(message.splitlines()) == 2
    # A failed epoch is not counted, and its weights are not stored as the best.
    assert run.best is None or all(tensor.isfinite().all() for tensor in run.best.weights.values())


def test_loss_that_is_not_finite_is_detected_before_the_epoch_ends(parallel, monkeypatch):
    monkeypatch.setattr(engine, "CHECK_EVERY", 3)
    run = dual_run(parallel, images=1000)
    done = []
    real = run.stage.backward

    def backward(*args):
        done.append(len(done))
        losses = real(*args)
        return {**losses, "augmented": losses["augmented"] * math.nan} if len(done) == 2 else losses

    run.stage.backward = backward
    with raises("training", "stage dual, epoch 1", "training loss"):
        list(run.epochs())
    assert (len(done), run.epoch) == (3, 0)


def test_validation_loss_that_is_not_finite_stops_the_stage(parallel, monkeypatch):
    monkeypatch.setattr(StageRun, "_validate", lambda self: ({"a": hits(0.5)}, math.inf))
    run = dual_run(parallel, images=40)
    with raises("training", "validation loss"):
        list(run.epochs())
    assert run.best is None


def test_training_continues_after_evaluation(parallel):
    # Validation puts the module into evaluation mode; the next epoch must put dropout and statistics back to work.
    run = dual_run(parallel, family="odd", epochs=2)
    modes, real = [], run.stage.backward

    def backward(*args):
        modes.append(all(part.training for part in run.stage.module.modules()))
        return real(*args)

    run.stage.backward = backward
    list(run.epochs())
    assert len(modes) == 2 * len(run.train)
    assert all(modes)


def test_every_epoch_and_stage_draws_its_own_numbers(parallel):
    seen = []
    for name in ("dual", "another"):
        run = dual_run(parallel, images=64, epochs=2)
        run.stage.name = name
        real = run.stage.backward

        def backward(batch, *args, real=real, run=run):
            masks = [part.generator.get_state() for _, part in dropouts(run.stage.module)]
            view = batch.views["augmented"]
            seen.append((batch.labels.tolist(), view.sum().item(), *(mask.sum().item() for mask in masks)))
            return real(batch, *args)

        run.stage.backward = backward
        list(run.epochs())
    firsts = seen[::2]  # two batches per epoch, two epochs in each of two stages
    assert len(firsts) == 4
    for part in zip(*firsts, strict=True):
        assert len({str(value) for value in part}) == 4
