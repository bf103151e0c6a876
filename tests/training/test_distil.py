"""Distillation: the student's loss compared with NumPy, unchanged teachers, and the methods that use it."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from error_matching import raises
from torch import nn
from training_samples import CPU, branches_of, digit_set, method_of, odd_submodel, snapshot, source

from thaw.data.batches import Batch, channels_last
from thaw.data.mix import Mix, Targets
from thaw.errors import RecipeError
from thaw.model.model import Model
from thaw.models.blocks import dropouts
from thaw.models.families import PaperSpec, ResidualSpec
from thaw.recipe.recipe import load_recipe
from thaw.training.distil import DistillStage, DistilSettings
from thaw.training.engine import StageRun
from thaw.training.optim import OptimizerSettings
from thaw.training.replicas import Part
from thaw.training.stages import PlainSettings, PlainStage


@pytest.fixture(scope="module")
def parallel():
    with branches_of(2) as made:
        yield made


def a_submodel(seed: int, filters=(4, 6), dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return PaperSpec(filters=filters, dropout=dropout).build((16, 16, 1), 10)


def a_batch(count: int = 13) -> Batch:
    generator = torch.Generator().manual_seed(count)
    views = {
        view: channels_last(torch.randn((count, 1, 16, 16), generator=generator)) for view in ("original", "augmented")
    }
    return Batch(views, torch.randint(0, 10, (count,), generator=generator))


def np_softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def np_loss(student, teachers, targets, temperature, share) -> float:
    """share * T^2 * KL(mean of the teachers || student) + (1 - share) * cross-entropy, the mean over the rows."""
    taught = sum(np_softmax(logits / temperature) for logits in teachers) / len(teachers)
    given = np_softmax(student / temperature)
    total = 0.0
    for row in range(len(student)):
        divergence = sum(p * math.log(p / q) for p, q in zip(taught[row], given[row], strict=True))
        log_probabilities = np.log(np_softmax(student[row : row + 1])[0])
        total += share * temperature**2 * divergence - (1 - share) * (targets[row] * log_probabilities).sum()
    return total / len(student)


def logits_of(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return module.eval()(x).double().numpy()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("temperature", "share", "smoothing"), [(1.0, 0.5, 0.0), (2.0, 0.7, 0.0), (4.0, 1.0, 0.1), (3.0, 0.2, 0.1)]
)
@pytest.mark.parametrize("count", [1, 2])
def test_loss_agrees_with_numpy(count, temperature, share, smoothing, mixed, parallel):
    student, batch = a_submodel(0), a_batch()
    teachers = [a_submodel(1 + index, (5, 7), dropout=0.4) for index in range(count)]
    partners, shares = torch.arange(13).flip(0), torch.linspace(0.1, 1, 13)
    if mixed:
        batch = Batch(batch.views, batch.labels, {"augmented": Mix(partners, shares)})
    settings = PlainSettings(view="augmented", fit=OptimizerSettings(label_smoothing=smoothing))
    stage = DistillStage(student, settings, teachers, DistilSettings(temperature=temperature, share=share))
    stage.set_training()
    made = float(stage.backward(batch, parallel, torch.float32)["student"])

    x, labels = batch.views["augmented"], batch.labels.numpy()
    own = shares.numpy()[:, None] if mixed else 1.0
    targets = own * np.eye(10)[labels] + (1 - own) * np.eye(10)[labels[partners.numpy()]]
    targets = targets * (1 - smoothing) + smoothing / 10
    every = [logits_of(teacher, x) for teacher in teachers]
    assert made == pytest.approx(np_loss(logits_of(student, x), every, targets, temperature, share), rel=1e-5, abs=1e-5)


def test_gradients_agree_with_the_loss_by_hand(parallel):
    student, teacher, batch = a_submodel(0), a_submodel(1), a_batch()
    stage = DistillStage(student, PlainSettings(), [teacher], DistilSettings(temperature=2.0, share=0.7))
    stage.set_training()
    stage.backward(batch, parallel, torch.float32)
    made = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()
    logits = student(batch.views["augmented"])
    taught = F.softmax(teacher(batch.views["augmented"]) / 2, dim=1)
    # The divergence without the entropy of the teacher, which has no gradient.
    divergence = -(taught * F.log_softmax(logits / 2, dim=1)).sum(1).mean()
    (0.7 * 4 * divergence + 0.3 * F.cross_entropy(logits, batch.labels)).backward()
    torch.testing.assert_close(made, [parameter.grad for parameter in student.parameters()], rtol=1e-4, atol=1e-6)


def test_student_equal_to_its_teacher_has_zero_gradient(parallel):
    student = a_submodel(0)
    stage = DistillStage(student, PlainSettings(), [copy.deepcopy(student)], DistilSettings(share=1.0))
    stage.set_training()
    assert float(stage.backward(a_batch(), parallel, torch.float32)["student"]) == pytest.approx(0.0, abs=1e-6)
    assert all(float(parameter.grad.abs().max()) < 1e-6 for parameter in student.parameters())


def test_zero_weight_of_the_teacher_gives_plain_training(parallel):
    made = []
    for stage in (
        DistillStage(a_submodel(0), PlainSettings(), [a_submodel(1)], DistilSettings(share=0.0)),
        PlainStage(a_submodel(0), PlainSettings(), name="student"),
    ):
        stage.set_training()
        losses = stage.backward(a_batch(), parallel, torch.float32)
        made.append((losses, [parameter.grad for parameter in stage.module.parameters()]))
    torch.testing.assert_close(made[0], made[1])


def test_part_is_taught_by_its_own_images(parallel):
    student, teacher = a_submodel(0), a_submodel(1)
    stage = DistillStage(student, PlainSettings(), [teacher], DistilSettings())
    seen = []
    teacher.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch = a_batch(12)
    stage.set_training()
    stage.backward(batch, parallel, torch.float32)
    seen.sort(key=lambda x: not torch.equal(x, batch.views["augmented"][:6]))
    assert torch.equal(torch.cat(seen), batch.views["augmented"])


def distil_run(stage: DistillStage, parallel) -> StageRun:
    train = source(digit_set(0, 160), stage.batch_size, views=stage.views)
    return StageRun(stage, train, source(digit_set(160, 220), 50), seed=3, parallel=parallel, dtype=torch.float32)


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_teachers_are_unchanged_and_the_student_learns(share, parallel):
    torch.manual_seed(3)
    # Initially in training mode with gradients, so that statistics and dropout would change.
    teachers = [odd_submodel(dropout=0.5).train(), odd_submodel(dropout=0.5).train()]
    student = a_submodel(0)
    settings = PlainSettings(epochs=2, batch_size=32, learning_rate=0.02, fit=OptimizerSettings(ema=0.5))
    stage = DistillStage(student, settings, teachers, DistilSettings(share=share))
    before, student_before = [snapshot(teacher) for teacher in teachers], snapshot(student)
    records = list(distil_run(stage, parallel).epochs())
    for teacher, old in zip(teachers, before, strict=True):
        assert all(
            tensor.numpy().tobytes() == old[name].numpy().tobytes() for name, tensor in snapshot(teacher).items()
        )
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
        assert not any(part.training for part in teacher.modules())
    assert all(not torch.equal(tensor, student_before[name]) for name, tensor in student.state_dict().items())
    assert records[-1].train_loss < records[0].train_loss
    assert (stage.kind, stage.name, list(records[0].losses)) == ("distil", "student", ["student"])


def test_only_the_student_is_optimized_and_saved():
    stage = DistillStage(a_submodel(0), PlainSettings(), [a_submodel(1)], DistilSettings())
    held = {id(parameter) for group in stage.optimizer().param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in stage.module.parameters()}


def test_loss_of_a_part_of_a_batch():
    stage = DistillStage(a_submodel(0), PlainSettings(), [a_submodel(1)], DistilSettings())
    batch = a_batch(4)
    part = Part(batch.views["augmented"][:2], Targets(batch.labels[:2]))
    loss = stage.loss(torch.zeros((2, 10)), part, torch.float32)
    assert loss.shape == ()
    lessons = stage._teach(part.x, torch.float32)
    assert lessons.shape == (2, 10)
    torch.testing.assert_close(lessons.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", math.inf),
        ("teacher_epochs", 0),
        ("share", -0.1),
        ("share", 1.1),
        ("share", math.nan),
    ],
)
def test_settings_reject_invalid_values(name, value):
    with raises("usage", f"DistilSettings.{name} "):
        DistilSettings(**{name: value})


def test_teacher_is_trained_by_the_plain_section():
    plain = PlainSettings(epochs=7, learning_rate=0.1, view="original")
    assert DistilSettings(teacher_epochs=4).teacher(plain) == replace(plain, epochs=4)


# Methods with distillation


def test_larger_network_teaches_in_the_same_run(parallel):
    trainer = method_of(parallel, method="distil")
    assert trainer.settings.stage_epochs == {"teacher": 2, "student": 2}
    assert trainer.settings.unify_spec is None
    records = list(trainer.epochs())
    assert [(record.stage, record.kind) for record in records] == [("teacher", "plain")] * 2 + [
        ("student", "distil")
    ] * 2
    (teacher,) = trainer.teachers
    assert isinstance(trainer.settings.distil.model, ResidualSpec)
    assert teacher[-1].dense.in_features == 6
    assert not any(parameter.requires_grad for parameter in trainer.network.parameters())


def test_both_submodels_of_stage_one_teach_a_new_one(parallel):
    trainer = method_of(parallel, join="distil")
    assert trainer.settings.stage_epochs == {"dual": 1, "student": 2}
    assert trainer.settings.unify_spec is None
    epochs = trainer.epochs()
    assert next(epochs).stage == "dual"
    kept = snapshot(trainer.dual)
    student = snapshot(trainer.network)
    # It has its own initial weights, not those of a submodel.
    for branch in method_of(parallel, join="distil").dual.branches:
        assert not torch.equal(branch.conv1.conv.weight, student["conv1.conv.weight"])
    assert [record.stage for record in epochs] == ["student", "student"]
    assert trainer.teachers == list(trainer.dual.branches)
    assert all(torch.equal(kept[name], tensor) for name, tensor in trainer.dual.state_dict().items())
    assert list(student) == list(trainer.network.state_dict())


def test_submodels_start_equal_only_for_averaging(parallel):
    for join, alike in (("average", True), ("concatenate", False), ("distil", False)):
        first, second = (branch.state_dict() for branch in method_of(parallel, join=join).dual.branches)
        assert torch.equal(first["conv1.conv.weight"], second["conv1.conv.weight"]) == alike


def test_averaged_submodels_are_unfrozen_without_a_head(parallel):
    trainer = method_of(parallel, join="average")
    assert trainer.settings.stage_epochs == {"dual": 1, "dense": 1, "conv2": 1}
    assert trainer.settings.unify_spec is None
    epochs = trainer.epochs()
    next(epochs)
    expected = {
        name: (tensor + trainer.dual.branches[1].state_dict()[name]) / 2
        for name, tensor in snapshot(trainer.dual.branches[0]).items()
    }
    averaged = snapshot(trainer.network)
    torch.testing.assert_close(averaged, expected)
    assert [record.stage for record in epochs] == ["dense", "conv2"]
    assert [summary.trains for summary in trainer.progress.summaries[1:]] == [("dense",), ("dense", "conv2")]
    # Units that were never unfrozen still have the average.
    assert torch.equal(trainer.network.conv1.conv.weight, averaged["conv1.conv.weight"])
    assert not torch.equal(trainer.network.dense.dense.weight, averaged["dense.dense.weight"])


def test_statistics_of_an_average_are_measured_again(parallel):
    trainer = method_of(parallel, join="average", model=ResidualSpec(widths=(4,), blocks=(1,), dropout=0.5))
    next(trainer.epochs())
    branches = [branch.state_dict() for branch in trainer.dual.branches]
    branches[0]["stem.norm.running_mean"].fill_(4)
    branches[1]["stem.norm.running_mean"].fill_(6)
    network = trainer.network
    # Statistics of the stem by an oracle: each batch moves them by a tenth of the difference, as in torch.
    conv = (branches[0]["stem.conv.weight"] + branches[1]["stem.conv.weight"]) / 2
    made = network.stem.norm.running_mean.double().numpy()
    whole = torch.from_numpy(((digit_set(0, 160).images / 255.0 - 0.3) / 0.4).astype(np.float32).transpose(0, 3, 1, 2))
    settled = F.conv2d(whole, conv, padding=1).mean((0, 2, 3)).double().numpy()
    # Five batches of 32: 0.9^5 of the old mean, 5, remains, and batches differ little from the whole.
    np.testing.assert_allclose(made, settled + 0.9**5 * (5 - settled), atol=0.05)
    for name, tensor in network.named_parameters():
        torch.testing.assert_close(tensor, (branches[0][name] + branches[1][name]) / 2)


def test_dropout_is_off_while_statistics_are_measured(parallel):
    trainer = method_of(parallel, join="average", model=ResidualSpec(widths=(4,), blocks=(1,), dropout=0.9))
    next(trainer.epochs())
    seen = []
    for _, dropout in dropouts(trainer.dual):
        dropout.register_forward_hook(lambda module, given, out: seen.append(module.training))
    assert trainer.network is not None
    assert len(seen) == 5
    assert not any(seen)


def test_network_without_statistics_is_not_run(parallel, monkeypatch):
    trainer = method_of(parallel, join="average")
    next(trainer.epochs())
    monkeypatch.setattr(PaperSpec, "build", None)
    monkeypatch.setattr(nn.Sequential, "forward", None)
    assert trainer.network.conv1.conv.weight.device == CPU


# Recipes and runs


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (["unify.join=distil", "plain.epochs=3"], {"dual": 15, "student": 3}),
        (["unify.join=average", 'unfreeze.steps=[{unit="dense", epochs=2}]'], {"dual": 15, "dense": 2}),
        (["unify.join=average", 'unfreeze.steps=[{unit="all", epochs=2}]'], {"dual": 15, "all": 2}),
        (["method=distil", "plain.epochs=3", "distil.teacher_epochs=4"], {"teacher": 4, "student": 3}),
    ],
)
def test_recipes_list_their_stages(overrides, stages):
    recipe = load_recipe("paper", overrides)[1]
    assert recipe.stage_epochs() == stages
    assert recipe.unify_spec is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["unify.join=average"], "expected the order dense, conv2, conv1, which may end early"),
        (["unify.join=average", "unfreeze.steps=[]"], "unfreeze.steps = []: expected at least one, for dense"),
        (["unify.join=vote"], "unify.join = 'vote': expected one of concatenate, average, distil"),
        (['unfreeze.steps=[{unit="dense", epochs=2}]'], "expected the order head, dense, conv2, conv1"),
    ],
)
def test_recipes_reject_the_steps_of_another_join(overrides, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe("paper", overrides)
    assert words in str(caught.value)


@pytest.mark.parametrize("join", ["average", "distil"])
def test_run_gives_one_standalone_submodel(join, call, tmp_path):
    steps = 'unfreeze.steps=[{unit="all", epochs=1}]'
    overrides = [f"unify.join={join}", steps, "dual.epochs=1", "plain.epochs=1", "quantize.qat_threshold=100"]
    options = [word for override in overrides for word in ("--set", override)]
    code, _, err = call("train", "digits", *options, "--out", "run")
    assert code == 0, err
    model = Model.load(tmp_path / "run")
    assert model.unify is None
    assert tuple(name for name, _ in model.module.named_children()) == PaperSpec.units
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [stage["name"] for stage in metrics["stages"]] == ["dual", "all" if join == "average" else "student"]
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.module.parameters())
