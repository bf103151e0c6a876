"""One network on several parts of a batch at the same time: replicas with shared weights and their own statistics.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from thaw.data.batches import Batch, View
from thaw.data.mix import Targets
from thaw.models.blocks import Dropout, dropouts
from thaw.training.compute import ParallelBranches

# Parts that a batch of one network is computed in on every machine, so that sums do not depend on the number of cores.
# The parts of stage 1 depend on the number of threads, which a run records and a resume restores.
_PARTS = 2

Job = Callable[[], tuple[Tensor, Sequence[Tensor]]]
"""Computes the mean loss of a part, times the part's share of the batch, and its gradients."""


@dataclass(frozen=True)
class Part:
    """A part of a batch: images float32 [B, C, H, W] of one view, and their targets."""

    x: Tensor
    targets: Targets


def split(batch: Batch, view: View, parts: int) -> list[Part]:
    """Split a batch into up to `parts` parts. Only the last may be smaller; none has a single image if avoidable."""
    count = len(batch)
    parts = parts if count >= 2 * parts else 1
    step = -(-count // parts)
    targets = Targets.of(batch.labels, batch.mixes.get(view))
    slices = [slice(first, first + step) for first in range(0, count, step)]
    return [Part(batch.views[view][part], targets[part]) for part in slices]


def parts_of(batch: Batch, view: View) -> list[Part]:
    """Return a batch as a single submodel is trained on it: in parts on a CPU, otherwise whole."""
    return split(batch, view, _PARTS if batch.labels.device.type == "cpu" else 1)


def logits_by_parts(module: nn.Module, x: Tensor, parallel: ParallelBranches) -> Tensor:
    """Return logits float32 [B, K] of one submodel for images [B, C, H, W], computed in parallel."""
    return torch.cat(parallel.run([partial(without_gradients, module, part) for part in x.chunk(_PARTS)]))


def without_gradients(module: nn.Module, x: Tensor) -> Tensor:
    """Return logits float32 [B, K] for images [B, C, H, W]."""
    with torch.no_grad():
        logits: Tensor = module(x)
    return logits.float()


class Replicas:
    """Computes the gradients of `module` on the parts of a batch in parallel, and adds them in a fixed order.

    Running statistics of normalizations become the mean over the parts. Each part has its own dropout.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._others: list[nn.Module] = []

    def backward(
        self, loss: Callable[[nn.Module, Part], Tensor], parts: Sequence[Part], parallel: ParallelBranches
    ) -> Tensor:
        """Add the gradients of the batch's mean loss and return it, a scalar; `loss` returns the mean over a part."""
        return self.join(parallel.run(self.jobs(loss, parts)))

    def jobs(self, loss: Callable[[nn.Module, Part], Tensor], parts: Sequence[Part]) -> list[Job]:
        """Return what computes the gradients of the parts, to be run at the same time; `join` takes the results."""
        total = sum(len(part.targets) for part in parts)
        modules = self._modules(len(parts))
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]

        def job(module: nn.Module, part: Part) -> tuple[Tensor, Sequence[Tensor]]:
            value = loss(module, part) * (len(part.targets) / total)
            # Each part has its own gradients, which are then added in order.
            return value.detach(), torch.autograd.grad(value, trained)

        return [partial(job, *pair) for pair in zip(modules, parts, strict=True)]

    def join(self, done: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> Tensor:
        """Add the gradients of the parts, in their order, and return the batch's mean loss, a scalar."""
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        for parameter, *gradients in zip(trained, *(gradients for _, gradients in done), strict=True):
            whole = gradients[0]
            for gradient in gradients[1:]:
                whole = whole + gradient
            parameter.grad = whole if parameter.grad is None else parameter.grad + whole
        self._average_statistics([self.module, *self._others[: len(done) - 1]])
        return torch.stack([value for value, _ in done]).sum()

    def _modules(self, count: int) -> list[nn.Module]:
        """Return the module and `count - 1` replicas in the same mode and with the same statistics."""
        shared = {id(parameter): parameter for parameter in self.module.parameters()}
        while len(self._others) < count - 1:
            self._others.append(copy.deepcopy(self.module, memo=dict(shared)))
            for _, dropout in dropouts(self._others[-1]):
                dropout.generator, dropout.beginnings = None, 0
        replicas = self._others[: count - 1]
        for number, replica in enumerate(replicas, start=1):
            replica.train(self.module.training)
            _copy_buffers(self.module, replica)
            for (_, mine), (_, own) in zip(dropouts(replica), dropouts(self.module), strict=True):
                _follow_dropout(own, mine, number)
        return [self.module, *replicas]

    def _average_statistics(self, modules: Sequence[nn.Module]) -> None:
        """Set the module's buffers to the mean over all modules."""
        if len(modules) == 1:
            return
        with torch.no_grad():
            for mine, *others in zip(*(module.buffers() for module in modules), strict=True):
                if mine.is_floating_point():
                    mine.copy_(torch.stack([mine, *others]).mean(0))


def _follow_dropout(own: Dropout, replica: Dropout, number: int) -> None:
    """If the module's dropout was reseeded, reseed the replica's from it."""
    if own.generator is not None and replica.beginnings != own.beginnings:
        replica.reseed(own.generator.initial_seed() ^ number, own.generator.device)
        replica.beginnings = own.beginnings


@torch.no_grad()
def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    for mine, given in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(given)
