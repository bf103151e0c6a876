"""One network on parts of a batch: gradients, statistics and dropout, compared with sequential passes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_samples import CPU, branches_of, odd_submodel, snapshot

from thaw.data.batches import Batch, channels_last
from thaw.data.mix import Mix
from thaw.models.blocks import Dropout, dropouts
from thaw.models.families import LoopedSpec, PaperSpec, ResidualSpec
from thaw.training.replicas import Part, Replicas, split

MAKERS = {
    "paper": lambda: PaperSpec(filters=(3, 4), dropout=0.3).build((16, 16, 1), 10),
    "odd": odd_submodel,
    "residual": lambda: ResidualSpec(widths=(4, 4), blocks=(1, 1), dropout=0.1).build((16, 16, 1), 10),
    "looped": lambda: LoopedSpec(stem=4, widths=(4, 4), passes=(1, 2)).build((16, 16, 1), 10),
}


@pytest.fixture(scope="module")
def parallel():
    with branches_of(2) as made:
        yield made


def a_module(family: str) -> nn.Module:
    torch.manual_seed(5)
    module = MAKERS[family]()
    reseed(module, 20)
    return module.train()


def reseed(module: nn.Module, seed: int) -> None:
    for index, (_, dropout) in enumerate(dropouts(module)):
        dropout.reseed(seed + index, CPU)


def a_batch(count: int = 22) -> Batch:
    generator = torch.Generator().manual_seed(count)
    x = channels_last(torch.randn((count, 1, 16, 16), generator=generator))
    return Batch({"original": x}, torch.randint(0, 10, (count,), generator=generator))


def loss(module: nn.Module, part: Part) -> torch.Tensor:
    return part.targets.cross_entropy(module(part.x))


def one_after_the_other(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """The loss of both halves, its gradients in `module`, and the first statistics after either half."""
    first = snapshot(module)
    seeds = [dropout.generator.initial_seed() for _, dropout in dropouts(module)]
    half = -(-len(batch) // 2)
    total, buffers = torch.zeros(()), []
    for number, part in enumerate((slice(0, half), slice(half, None))):
        module.load_state_dict(first)
        for seed, (_, dropout) in zip(seeds, dropouts(module), strict=True):
            dropout.reseed(seed ^ number, CPU)
        labels = batch.labels[part]
        value = F.cross_entropy(module(batch.views["original"][part]), labels) * (len(labels) / len(batch))
        value.backward()
        total = total + value.detach()
        buffers.append({name: tensor.clone() for name, tensor in module.named_buffers()})
    return total, buffers


@pytest.mark.parametrize("count", [22, 23])
@pytest.mark.parametrize("family", list(MAKERS))
def test_gradients_and_statistics_agree_with_both_halves(family, count, parallel):
    module, batch = a_module(family), a_batch(count)
    reference = copy.deepcopy(module)
    reseed(reference, 20)
    value = Replicas(module).backward(loss, split(batch, "original", 2), parallel)
    expected, buffers = one_after_the_other(reference, batch)
    torch.testing.assert_close(value, expected)
    for (name, made), parameter in zip(module.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(made.grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert (family == "paper") == (not buffers[0])
    for name, made in module.named_buffers():
        if made.is_floating_point():
            torch.testing.assert_close(made, (buffers[0][name] + buffers[1][name]) / 2, msg=name)
            assert not torch.equal(buffers[0][name], buffers[1][name])


def test_halves_agree_with_the_whole_without_statistics_and_dropout(parallel):
    torch.manual_seed(6)
    module, batch = PaperSpec(filters=(3, 4), dropout=0.0).build((16, 16, 1), 10), a_batch(31)
    value = Replicas(module).backward(loss, split(batch, "original", 2), parallel)
    made = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    expected = F.cross_entropy(module(batch.views["original"]), batch.labels)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(made, [parameter.grad for parameter in module.parameters()], rtol=1e-4, atol=1e-6)


def test_gradients_are_accumulated(parallel):
    module, batch = a_module("residual"), a_batch()
    replicas = Replicas(module)
    made = []
    for times in (1, 2):
        module.zero_grad(set_to_none=True)
        for _ in range(times):
            reseed(module, 20)
            replicas.backward(loss, split(batch, "original", 2), parallel)
        made.append([parameter.grad.clone() for parameter in module.parameters()])
    for once, twice in zip(*made, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-5, atol=1e-7)


def test_replicas_share_weights_mode_and_statistics(parallel):
    module, batch = a_module("odd"), a_batch()
    replicas = Replicas(module)
    parts = split(batch, "original", 2)
    replicas.backward(loss, parts, parallel)
    (other,) = replicas._others
    assert {id(parameter) for parameter in other.parameters()} == {id(parameter) for parameter in module.parameters()}
    module.eval()
    with torch.no_grad():
        for buffer in module.buffers():
            buffer.fill_(3)
    replicas.backward(loss, parts, parallel)
    assert replicas._others == [other]
    assert not other.training
    # In evaluation mode nothing changes, bit for bit.
    assert all(bool((buffer == 3).all()) for whole in (module, other) for buffer in whole.buffers())


def test_frozen_parameters_get_no_gradient(parallel):
    module, batch = a_module("residual"), a_batch()
    module.stem.requires_grad_(False)
    Replicas(module).backward(loss, split(batch, "original", 2), parallel)
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == name.startswith("stem."), name


class _Seen(nn.Module):
    """Records the values that dropout keeps, by part."""

    def __init__(self, seen: dict[int, list[torch.Tensor]]) -> None:
        super().__init__()
        self.dropout = Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = seen

    def __deepcopy__(self, memo):
        made = _Seen(self.seen)
        made.scale = memo[id(self.scale)]
        return made

    def forward(self, x):
        kept = self.dropout(torch.ones(100))
        self.seen.setdefault(id(self), []).append(kept)
        return (x.flatten(1)[:, :10] + kept.sum()) * self.scale


def test_every_part_and_epoch_has_its_own_dropout(parallel):
    seen: dict[int, list[torch.Tensor]] = {}
    module = _Seen(seen).train()
    replicas, parts = Replicas(module), split(a_batch(), "original", 2)
    for seed in (1, 2, 1):
        reseed(module, seed)
        for _ in range(2):
            replicas.backward(loss, parts, parallel)
    first, second = seen.values()
    draws = [tuple(kept.tolist()) for kept in (*first[:4], *second[:4])]
    assert len(set(draws)) == 8, "two steps of two epochs, in two parts"
    for made in (first, second):
        assert all(torch.equal(again, once) for again, once in zip(made[4:], made[:2], strict=True))


@pytest.mark.parametrize("family", list(MAKERS))
def test_number_of_threads_changes_no_bit(family):
    made = []
    for count in (1, 2):
        with branches_of(count) as parallel:
            module = a_module(family)
            replicas = Replicas(module)
            values = [replicas.backward(loss, split(a_batch(), "original", 2), parallel) for _ in range(2)]
            made.append((values, [parameter.grad for parameter in module.parameters()], list(module.buffers())))
    for one, two in zip(*made, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("count", "parts", "sizes"),
    [(8, 2, [4, 4]), (9, 2, [5, 4]), (4, 2, [2, 2]), (3, 2, [3]), (1, 2, [1]), (8, 1, [8]), (9, 3, [3, 3, 3])],
)
def test_batch_is_split_without_single_images(count, parts, sizes):
    batch = a_batch(count)
    made = split(batch, "original", parts)
    assert [len(part.targets) for part in made] == sizes
    assert torch.equal(torch.cat([part.x for part in made]), batch.views["original"])
    assert torch.equal(torch.cat([part.targets.labels for part in made]), batch.labels)


def test_parts_of_a_mixed_batch_keep_their_partners():
    batch = a_batch(6)
    partners, shares = torch.tensor([5, 4, 3, 2, 1, 0]), torch.linspace(0, 1, 6)
    batch = Batch({"augmented": batch.views["original"]}, batch.labels, {"augmented": Mix(partners, shares)})
    parts = split(batch, "augmented", 2)
    # The partner of the first image is in the other half.
    assert torch.equal(torch.cat([part.targets.partners for part in parts]), batch.labels.flip(0))
    assert torch.equal(torch.cat([part.targets.shares for part in parts]), shares)
