"""Stage 1 on more than two cores: a batch in parts has the gradients of the whole."""

from __future__ import annotations

import pytest
import torch
from training_samples import CPU

from thaw.data.batches import Batch, channels_last
from thaw.models.families import PaperSpec
from thaw.models.unify import build_dual
from thaw.training.compute import ParallelBranches, threads
from thaw.training.stages import DualSettings, DualStage


def a_batch(count: int) -> Batch:
    draw = torch.Generator().manual_seed(1)
    views = {view: channels_last(torch.randn((count, 1, 16, 16), generator=draw)) for view in ("original", "augmented")}
    return Batch(views, torch.randint(0, 10, (count,), generator=draw))


def dual_gradients(count: int, *, images: int = 70) -> dict[str, torch.Tensor | None]:
    """The gradients of stage 1 on a batch, with `count` jobs at the same time, without dropout."""
    torch.manual_seed(0)
    dual = build_dual(PaperSpec(filters=(3, 5), dropout=0.0), (16, 16, 1), 10)
    stage = DualStage(dual, DualSettings())
    stage.set_training()
    with threads(count), ParallelBranches(count, CPU) as parallel:
        losses = stage.backward(a_batch(images), parallel, torch.float32)
        logits = stage.logits(a_batch(images).views["original"], parallel)
    found = {name: each.grad for name, each in dual.named_parameters()} | {
        f"loss {name}": loss for name, loss in losses.items()
    }
    return found | {f"logits {name}": each for name, each in logits.items()}


@pytest.mark.parametrize("count", [4, 7])
def test_a_batch_in_more_parts_has_the_same_gradients(count):
    whole, parts, again = dual_gradients(2), dual_gradients(count), dual_gradients(count)
    assert all(torch.equal(value, again[name]) for name, value in parts.items())
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_small_batches_are_not_divided():
    whole, parts = dual_gradients(2, images=20), dual_gradients(4, images=20)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items() if not name.startswith("logits"))
