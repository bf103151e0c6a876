"""Quantization-aware training: a further stage, on a module that computes in int8 arithmetic.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import partial

import torch
from torch import Tensor, nn

from thaw.data.batches import Batch, View
from thaw.plain import Count, checked_dataclass
from thaw.training.compute import ParallelBranches
from thaw.training.optim import OptimizerSettings, make_optimizer
from thaw.training.optimizer import AnyOptimizer
from thaw.training.replicas import Part, split
from thaw.training.schedule import Schedule
from thaw.training.stages import Rate, Stage

# Parts that a batch is computed in on every machine, so that sums do not depend on the number of cores.
_PARTS = 2


@checked_dataclass(frozen=True, kw_only=True)
class QatSettings:
    """Quantization-aware training: NAdam on the cross-entropy of the int8 logits."""

    epochs: Count = 5
    """Maximum number of epochs."""
    batch_size: Count = 128
    """Images per step."""
    learning_rate: Rate = 0.0002
    """Learning rate; small, since the network is already trained."""
    schedule: Schedule = field(default_factory=lambda: Schedule(kind="cosine"))
    """How the learning rate changes."""
    patience: Count = 3
    """Epochs without improvement on the validation images after which training stops."""
    view: View = "original"
    """View of the images to train on: "original" or "augmented"."""


class QatStage(Stage):
    """Trains all weights of a module that maps normalized images [B, C, H, W] to logits [B, K]."""

    kind = "qat"

    def __init__(self, module: nn.Module, settings: QatSettings) -> None:
        self.name = "qat"
        self.module = module
        self.epochs = settings.epochs
        self.batch_size = settings.batch_size
        self.learning_rate = settings.learning_rate
        self.schedule = settings.schedule
        self.patience = settings.patience
        self.views = (settings.view,)
        self.trains = ("all",)

    def optimizer(self) -> AnyOptimizer:
        """Return NAdam over all parameters."""
        return make_optimizer(self.module, OptimizerSettings(), self.learning_rate, compiled=self.compiled)

    def set_training(self) -> None:
        """Train everything."""
        self.module.requires_grad_(True).train()

    def backward(self, batch: Batch, parallel: ParallelBranches, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG002
        """Compute the cross-entropy of the logits, in float32, which represents int8 values exactly."""
        parameters = list(self.module.parameters())

        def job(part: Part) -> tuple[Tensor, Sequence[Tensor]]:
            loss = part.targets.cross_entropy(self.module(part.x), weights=self.class_weights)
            loss = loss * (len(part.targets) / len(batch))
            # Each part has its own gradients, which are then added in order.
            return loss.detach(), torch.autograd.grad(loss, parameters)

        done = parallel.run([partial(job, part) for part in split(batch, self.views[0], _PARTS)])
        for parameter, *gradients in zip(parameters, *(gradients for _, gradients in done), strict=True):
            parameter.grad = torch.stack(gradients).sum(0)
        return {"int8": torch.stack([loss for loss, _ in done]).sum()}

    def logits(self, x: Tensor, parallel: ParallelBranches) -> dict[str, Tensor]:
        """Return the dequantized int8 logits."""
        self.module.eval()

        def job(part: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = self.module(part)
            return logits

        return {"int8": torch.cat(parallel.run([partial(job, part) for part in _parts(x)]))}


def _parts(x: Tensor) -> Sequence[Tensor]:
    return x.chunk(_PARTS)
