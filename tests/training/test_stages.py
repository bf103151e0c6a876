"""Trained and frozen parts of each stage, and gradients compared with those of a single backward pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from error_matching import raises
from torch import nn
from training_samples import CPU, branches_of, digit_set, odd_dual, odd_submodel, snapshot, source, unit_of

from thaw.data.batches import Batch, channels_last
from thaw.data.mix import Mix
from thaw.models.blocks import dropouts
from thaw.models.families import LoopedSpec, PaperSpec, ResidualSpec, SeparableSpec
from thaw.models.unify import DualModel, UnifiedModel, UnifySpec, average, build_dual, unify
from thaw.training.engine import StageRun
from thaw.training.optim import OptimizerSettings
from thaw.training.stages import (
    DualSettings,
    DualStage,
    PlainSettings,
    PlainStage,
    UnfreezeSettings,
    UnfreezeStep,
    unfreeze_stages,
)

ORDERS = {
    "paper": ("head", "dense", "conv2", "conv1"),
    "odd": ("head", "attic", "mixer", "stem"),
    "residual": ("head", "dense", "stage2", "stage1", "stem"),
    "looped": ("head", "dense", "stage2", "stage1", "stem"),
    "shared": ("head", "dense", "loop", "stem"),
    "separable": ("head", "dense", "stage2", "stage1", "stem"),
}
SPECS = {
    "paper": PaperSpec(filters=(4, 6)),
    "residual": ResidualSpec(widths=(4, 6), blocks=(1, 1), dropout=0.2),
    "looped": LoopedSpec(stem=4, widths=(4, 6), passes=(1, 2), mixed=2, dropout=0.2),
    "shared": LoopedSpec(stem=4, widths=(4, 4), passes=(2, 2), shared=True, mixed=2),
    "separable": SeparableSpec(widths=(4, 6), blocks=(1, 1)),
}
EVERY = list(ORDERS)
FAMILIES = ["paper", "odd"]


@pytest.fixture(scope="module")
def parallel():
    with branches_of(2) as made:
        yield made


def a_dual(family: str) -> DualModel:
    torch.manual_seed(0)
    return odd_dual() if family == "odd" else build_dual(SPECS[family], (16, 16, 1), 10)


def a_unified(family: str, scores: str = "softmax") -> UnifiedModel:
    return unify(a_dual(family), UnifySpec(hidden=12, scores=scores))


def steps(*units: str, **values) -> tuple[UnfreezeStep, ...]:
    return tuple(UnfreezeStep(unit=unit, **{"epochs": 1, "learning_rate": 0.1, **values}) for unit in units)


def a_batch(count: int = 24, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = {
        view: channels_last(torch.randn((count, 1, 16, 16), generator=generator)) for view in ("original", "augmented")
    }
    return Batch(views, torch.randint(0, 10, (count,), generator=generator))


def reseed(module: nn.Module, seed: int = 7) -> None:
    for index, (_, dropout) in enumerate(dropouts(module)):
        dropout.reseed(seed + index, CPU)


def gradients(module: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def run_of(stage, parallel) -> StageRun:
    images = digit_set(0, 160)
    train = source(images, stage.batch_size, views=stage.views)
    return StageRun(stage, train, source(digit_set(160, 220), 50), seed=3, parallel=parallel, dtype=torch.float32)


def a_joined(family: str, join: str) -> nn.Module:
    return a_unified(family) if join == "concatenate" else average(a_dual(family))


def order_of(family: str, join: str) -> tuple[str, ...]:
    return ORDERS[family] if join == "concatenate" else ORDERS[family][1:]


@pytest.mark.parametrize("join", ["concatenate", "average"])
@pytest.mark.parametrize("family", EVERY)
def test_frozen_units_are_bit_identical_and_unfrozen_units_change(family, join, parallel):
    model = a_joined(family, join)
    order = order_of(family, join)
    thawed: set[str] = set()
    for stage in unfreeze_stages(model, UnfreezeSettings(steps=steps(*order, epochs=2), batch_size=32)):
        thawed.add(stage.name)
        assert set(stage.trains) == thawed
        before = snapshot(model)
        list(run_of(stage, parallel).epochs())
        after = model.state_dict()
        parameters = dict(model.named_parameters())
        assert before.keys() == after.keys()
        for name, old in before.items():
            same = old.numpy().tobytes() == after[name].numpy().tobytes()
            assert same == (unit_of(name) not in thawed), f"{name} in sub-stage {stage.name}"
            if name in parameters:
                assert parameters[name].requires_grad == (unit_of(name) in thawed)
    assert thawed == set(order)
    # All families except the paper's also test this for statistics.
    assert any("running_mean" in name for name in before) == (family != "paper")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("listed", [("all",), ("head", "all")])
def test_all_unfreezes_the_rest_at_once(family, listed, parallel):
    model = a_unified(family)
    stages = unfreeze_stages(model, UnfreezeSettings(steps=steps(*listed), batch_size=32))
    assert [stage.name for stage in stages] == list(listed)
    assert set(stages[-1].trains) == set(ORDERS[family])
    before = snapshot(model)
    list(run_of(stages[-1], parallel).epochs())
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", EVERY)
def test_dual_stage_trains_everything(family, parallel):
    dual = a_dual(family)
    dual.requires_grad_(False)
    stage = DualStage(dual, DualSettings(epochs=1, batch_size=32))
    before = snapshot(dual)
    list(run_of(stage, parallel).epochs())
    assert all(not torch.equal(before[name], tensor) for name, tensor in dual.state_dict().items())
    assert stage.trains == tuple(reversed(ORDERS[family][1:]))


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_dropout_and_statistics_are_inactive(family):
    model = a_unified(family)
    x = a_batch().views["original"]
    model.eval()
    expected = [model.branch_scores(index, x) for index in (0, 1)]
    stages = unfreeze_stages(model, UnfreezeSettings(steps=steps(*ORDERS[family])))
    model.train()
    stages[0].set_training()
    reseed(model)
    for _ in range(2):
        for index in (0, 1):
            assert torch.equal(model.branch_scores(index, x), expected[index])
    stages[1].set_training()  # the classifiers are unfrozen, including their dropout
    first, second = model.branch_scores(0, x), model.branch_scores(0, x)
    assert not torch.equal(first, second)
    active = {name for name, part in dropouts(model) if part.training}
    last = ORDERS[family][1]
    assert active == {f"branches.0.{last}.dropout", f"branches.1.{last}.dropout"}


@pytest.mark.parametrize("views", [("original", "augmented"), ("augmented", "original"), ("augmented", "augmented")])
@pytest.mark.parametrize("family", FAMILIES)
def test_dual_gradients_are_those_of_the_summed_loss(family, views, parallel):
    dual, batch = a_dual(family), a_batch()
    stage = DualStage(dual, DualSettings(views=views))
    stage.set_training()
    reseed(dual)
    losses = stage.backward(batch, parallel, torch.float32)
    made = gradients(dual)

    plain = a_dual(family).train()
    reseed(plain)
    first, second = plain(batch.views[views[0]], batch.views[views[1]])
    expected = [F.cross_entropy(first, batch.labels), F.cross_entropy(second, batch.labels)]
    (expected[0] + expected[1]).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(made[name], parameter.grad, rtol=1e-5, atol=1e-6, msg=name)
    named = {("augmented", "augmented"): ["augmented 1", "augmented 2"]}
    assert list(losses) == named.get(views, list(views))
    torch.testing.assert_close(list(losses.values()), [loss.detach() for loss in expected])
    assert all(loss.dtype == torch.float32 and not loss.requires_grad for loss in losses.values())


@pytest.mark.parametrize("scores", ["softmax", "logits"])
@pytest.mark.parametrize("thawed", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_unfreeze_gradients_are_those_of_one_backward_pass(family, thawed, scores, parallel):
    model, batch = a_unified(family, scores), a_batch()
    stage = unfreeze_stages(model, UnfreezeSettings(steps=steps(*ORDERS[family]), view="augmented"))[thawed - 1]
    assert stage.views == ("augmented",)
    stage.set_training()
    reseed(model)
    losses = stage.backward(batch, parallel, torch.float32)
    made = gradients(model)

    plain = a_unified(family, scores).eval()
    for name, unit in plain.units():
        if name in ORDERS[family][:thawed]:
            unit.train()
    reseed(plain)
    # Gradients of all units: skipping the frozen ones must not change the others.
    expected = F.cross_entropy(plain(batch.views["augmented"]), batch.labels)
    expected.backward()
    for name, parameter in plain.named_parameters():
        if unit_of(name) in ORDERS[family][:thawed]:
            torch.testing.assert_close(made[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert made[name] is None, name
    assert list(losses) == ["unified"]
    torch.testing.assert_close(losses["unified"], expected.detach())


@pytest.mark.parametrize("thawed", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_submodel_is_unfrozen_with_the_gradients_of_both_halves(family, thawed, parallel):
    model, batch = a_joined(family, "average"), a_batch()
    order = order_of(family, "average")
    stage = unfreeze_stages(model, UnfreezeSettings(steps=steps(*order), view="augmented"))[thawed - 1]
    stage.set_training()
    reseed(model)
    for _ in range(2):  # the second time with existing replicas
        stage.module.zero_grad()
        reseed(model)
        losses = stage.backward(batch, parallel, torch.float32)
    made = gradients(model)

    plain = a_joined(family, "average").eval()
    for name, unit in plain.named_children():
        if name in order[:thawed]:
            unit.train()
    reseed(plain)
    seeds = [dropout.generator.initial_seed() for _, dropout in dropouts(plain)]
    expected = torch.zeros(())
    for number, (x, labels) in enumerate(zip(batch.views["augmented"].chunk(2), batch.labels.chunk(2), strict=True)):
        for seed, (_, dropout) in zip(seeds, dropouts(plain), strict=True):
            dropout.reseed(seed ^ number, CPU)
        expected = expected + F.cross_entropy(plain(x), labels, reduction="sum") / len(batch)
    expected.backward()
    for name, parameter in plain.named_parameters():
        if unit_of(name) in order[:thawed]:
            torch.testing.assert_close(made[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert made[name] is None, name
    torch.testing.assert_close(losses, {"unified": expected.detach()})


def test_one_submodel_has_no_head_to_unfreeze():
    settings = UnfreezeSettings(steps=steps("head", "dense"))
    with raises("usage", "dense, conv2, conv1"):
        unfreeze_stages(a_joined("paper", "average"), settings)


def np_cross_entropy(logits, targets) -> float:
    """The mean cross-entropy of logits and target distributions, both [B, K], by loops."""
    total = 0.0
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        log_sum = np.log(sum(math.exp(value) for value in row))
        total += sum(share * (log_sum - value) for share, value in zip(target, row, strict=True))
    return total / len(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_smoothed_and_mixed_targets_enter_the_losses(mixed, smoothing, parallel):
    torch.manual_seed(4)
    module, batch = nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), a_batch(7)
    shares, partners = torch.tensor([1.0, 0.5, 0.25, 0.9, 0.0, 0.7, 0.3]), torch.tensor([3, 0, 6, 5, 1, 2, 4])
    if mixed:
        batch = Batch(batch.views, batch.labels, {"augmented": Mix(partners, shares)})
    labels = batch.labels.numpy()
    own, other = np.eye(10)[labels], np.eye(10)[labels[partners.numpy()]]
    share = shares.numpy()[:, None] if mixed else 1.0
    targets = (share * own + (1 - share) * other) * (1 - smoothing) + smoothing / 10
    plain = np.eye(10)[labels] * (1 - smoothing) + smoothing / 10

    fit = OptimizerSettings(label_smoothing=smoothing)
    for view, expected in (("augmented", targets), ("original", plain)):
        logits = module(batch.views[view]).detach().numpy()
        stage = PlainStage(module, PlainSettings(view=view, fit=fit))
        loss = stage.backward(batch, parallel, torch.float32)["plain"]
        assert float(loss) == pytest.approx(np_cross_entropy(logits, expected), rel=1e-5)
    dual = DualModel(module, module)
    stage = DualStage(dual, DualSettings(fit=fit))
    for (view, loss), expected in zip(
        stage.backward(batch, parallel, torch.float32).items(), (plain, targets), strict=True
    ):
        logits = module(batch.views[view]).detach().numpy()
        assert float(loss) == pytest.approx(np_cross_entropy(logits, expected), rel=1e-5)


def test_plain_gradients_are_those_of_one_backward_pass(parallel):
    torch.manual_seed(2)
    module, batch = odd_submodel(), a_batch()
    stage = PlainStage(module, PlainSettings(view="augmented"))
    assert stage.views == ("augmented",)
    stage.set_training()
    reseed(module)
    losses = stage.backward(batch, parallel, torch.float32)
    made = gradients(module)
    module.zero_grad()
    reseed(module)
    # Two halves with their own statistics and dropout: the stream of the second is seeded again.
    seeds = [dropout.generator.initial_seed() for _, dropout in dropouts(module)]
    halves = []
    for number, (x, labels) in enumerate(zip(batch.views["augmented"].chunk(2), batch.labels.chunk(2), strict=True)):
        for seed, (_, dropout) in zip(seeds, dropouts(module), strict=True):
            dropout.reseed(seed ^ number, torch.device("cpu"))
        halves.append(F.cross_entropy(module(x), labels, reduction="sum") / len(batch))
    expected = sum(halves)
    expected.backward()
    assert all(torch.allclose(made[name], p.grad, rtol=1e-5, atol=1e-6) for name, p in module.named_parameters())
    torch.testing.assert_close(losses, {"plain": expected.detach()})


def all_stages(family: str):
    dual = a_dual(family)
    model = a_unified(family)
    return [
        DualStage(dual, DualSettings()),
        PlainStage(dual.branches[0], PlainSettings(view="original")),
        *unfreeze_stages(a_joined(family, "average"), UnfreezeSettings(steps=steps(*ORDERS[family][1:]))),
        *unfreeze_stages(model, UnfreezeSettings(steps=steps(*ORDERS[family]))),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_keeps_float32_losses_and_gradients(family, parallel):
    batch = a_batch()
    for stage in all_stages(family):
        stage.set_training()
        made = {}
        for dtype in (torch.float32, torch.bfloat16):
            stage.module.zero_grad(set_to_none=True)
            reseed(stage.module)
            losses = stage.backward(batch, parallel, dtype)
            assert all(loss.dtype == torch.float32 for loss in losses.values())
            flat = [grad.flatten() for grad in gradients(stage.module).values() if grad is not None]
            assert all(grad.dtype == torch.float32 for grad in flat)
            made[dtype] = torch.cat(flat)
        assert F.cosine_similarity(made[torch.float32], made[torch.bfloat16], dim=0) > 0.99
        # Only branches compute in bfloat16; when only the head is trained, its gradients depend on their scores.
        assert not torch.equal(made[torch.float32], made[torch.bfloat16])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_module_in_evaluation(family, parallel):
    x = a_batch().views["original"]
    for stage in all_stages(family):
        stage.set_training()
        made = stage.logits(x, parallel)
        assert all(out.dtype == torch.float32 and not out.requires_grad for out in made.values())
        stage.module.eval()
        with torch.no_grad():
            expected = stage.module(x, x) if stage.kind == "dual" else (stage.module(x),)
        for out, reference in zip(made.values(), expected, strict=True):
            torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-6)
        names = {"dual": ["original", "augmented"], "plain": ["plain"], "unfreeze": ["unified"]}
        assert list(made) == names[stage.kind]


@pytest.mark.parametrize("family", FAMILIES)
def test_optimizers_contain_the_trained_parameters(family):
    settings = UnfreezeSettings(steps=steps(*ORDERS[family], learning_rate=0.03), momentum=0.8)
    model = a_unified(family)
    for stage in unfreeze_stages(model, settings):
        optimizer = stage.optimizer()
        assert isinstance(optimizer, torch.optim.SGD)
        (group,) = optimizer.param_groups
        assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.03, 0.8, False, 0)
        expected = {id(p) for name, p in model.named_parameters() if unit_of(name) in stage.trains}
        assert {id(parameter) for parameter in group["params"]} == expected
    dual = a_dual(family)
    optimizer = DualStage(dual, DualSettings(learning_rate=0.004)).optimizer()
    assert isinstance(optimizer, torch.optim.NAdam)
    assert optimizer.param_groups[0]["lr"] == 0.004
    assert len(optimizer.param_groups[0]["params"]) == len(list(dual.parameters()))


@pytest.mark.parametrize(
    "listed",
    [(), ("head",), ("head", "dense"), ("head", "dense", "conv2", "conv1"), ("all",), ("head", "dense", "all")],
)
def test_accepts_the_unfreezing_order(listed):
    stages = unfreeze_stages(a_unified("paper"), UnfreezeSettings(steps=steps(*listed)))
    assert [stage.name for stage in stages] == list(listed)


@pytest.mark.parametrize(
    "listed",
    [
        ("dense",),
        ("conv1", "head"),
        ("head", "conv2"),
        ("head", "dense", "conv1"),
        ("all", "head"),
        ("head", "all", "dense"),
        ("head", "conv9"),
        ("head", "dense", "conv2", "conv1", "conv0"),
        ("Head",),
    ],
)
def test_rejects_another_unfreezing_order(listed):
    settings = UnfreezeSettings(steps=steps(*listed))
    with raises("usage", ", ".join(listed), "head, dense, conv2, conv1"):
        unfreeze_stages(a_unified("paper"), settings)


def test_expected_order_is_that_of_the_family():
    with raises("usage", "head, attic, mixer, stem"):
        unfreeze_stages(a_unified("odd"), UnfreezeSettings(steps=steps("head", "dense")))


def test_rejects_a_repeated_unit():
    with raises("usage", "steps"):
        UnfreezeSettings(steps=steps("head", "dense", "head"))
