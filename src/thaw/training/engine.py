"""The training loop: it trains one stage and yields a record per epoch. The caller logs, saves and stops.

All random numbers of an epoch derive from the run's seed, the stage and the epoch's number, so that a run that is
resumed from a checkpoint continues bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import StrictBool, StrictStr
from torch import Tensor

from thaw.data.balance import class_counts, mean_recall
from thaw.data.batches import BatchSource
from thaw.errors import TrainingError
from thaw.models.blocks import dropouts
from thaw.plain import Real, Whole, from_plain
from thaw.quoting import shown
from thaw.seeds import derive
from thaw.training.compute import ParallelBranches
from thaw.training.loss import Score
from thaw.training.optim import WeightAverage
from thaw.training.schedule import learning_rate
from thaw.training.stages import Stage

# Steps between two checks for a finite loss; on a GPU, a check waits for the device.
CHECK_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The results of an epoch, a line of history.jsonl; `docs/metrics.md` describes the fields."""

    stage: StrictStr
    kind: StrictStr
    epoch: Whole
    epochs: Whole
    train_loss: Real
    losses: dict[StrictStr, Real]
    validation_accuracy: Real
    validation_balanced_accuracy: Real
    validation_loss: Real
    validation: dict[StrictStr, Real]
    learning_rate: Real
    images_per_second: Real
    seconds: Real
    best: StrictBool
    best_by: Score

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


@dataclass
class _BestFigures:
    """The figures of the best epoch in a checkpoint's header; see `Best`."""

    epoch: Whole
    accuracy: Real
    balanced_accuracy: Real
    loss: Real


@dataclass
class Best:
    """The best epoch so far: the one with the highest validation score, then the lowest validation loss.

    Attributes:
        epoch: number of the epoch, from 1.
        accuracy: mean accuracy over the outputs, 0 to 1.
        balanced_accuracy: mean over the outputs of the mean recall over classes, 0 to 1.
        loss: mean cross-entropy over images and outputs, in nats.
        weights: the weights that `load_best` loads.
        hits: by output, which validation images are classified correctly, bool [N].
    """

    epoch: int
    accuracy: float
    balanced_accuracy: float
    loss: float
    weights: dict[str, Tensor]
    hits: dict[str, npt.NDArray[np.bool_]]

    def rank(self, score: Score) -> tuple[float, float]:
        """Return a value that is higher for a better epoch."""
        return (self.accuracy if score == "accuracy" else self.balanced_accuracy), -self.loss


class StageRun:
    """The training of one stage: `epochs()` continues from where `restore` left it; `score` selects the best epoch."""

    def __init__(
        self,
        stage: Stage,
        train: BatchSource,
        validation: BatchSource,
        *,
        seed: int,
        parallel: ParallelBranches,
        dtype: torch.dtype,
        score: Score = "accuracy",
    ) -> None:
        self.stage = stage
        self.train = train
        self.validation = validation
        self.seed = seed
        self.parallel = parallel
        self.dtype = dtype
        self.score: Score = score
        self.optimizer = stage.optimizer()
        self.average = WeightAverage(stage.module, stage.ema) if stage.ema else None
        self.epoch = 0
        self.best: Best | None = None

    @property
    def stopped_early(self) -> bool:
        """Whether the stage ran out of patience."""
        return self.best is not None and self.epoch - self.best.epoch >= self.stage.patience

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.stage.epochs or self.stopped_early

    def epochs(self) -> Iterator[EpochRecord]:
        """Train until the stage's number of epochs is reached or its patience runs out.

        Raises:
            TrainingError: if a loss is not finite.
        """
        while not self.finished:
            yield self._one_epoch()

    def load_best(self) -> None:
        """Load the best epoch's weights into the module; the next stage starts from them."""
        if self.best is None:
            raise RuntimeError("load_best() before the first epoch")
        self.stage.module.load_state_dict(self.best.weights)

    def _one_epoch(self) -> EpochRecord:
        started = time.perf_counter()
        losses, rate = self._train_epoch()
        seconds = time.perf_counter() - started
        # The weights that are saved are the ones that are validated: their moving average, if there is one.
        with self.average.applied() if self.average else contextlib.nullcontext():
            hits, loss = self._validate()
            if not math.isfinite(loss):
                raise self._not_finite("validation loss")
            self.epoch += 1
            accuracies = {name: int(each.sum()) / len(each) for name, each in hits.items()}
            found = Best(self.epoch, _mean(accuracies.values()), self._balanced(hits), loss, {}, hits)
            better = self.best is None or found.rank(self.score) > self.best.rank(self.score)
            if better:
                self.best = found
                found.weights = {name: each.detach().clone() for name, each in self.stage.module.state_dict().items()}
        return EpochRecord(
            stage=self.stage.name,
            kind=self.stage.kind,
            epoch=self.epoch,
            epochs=self.stage.epochs,
            train_loss=sum(losses.values()),
            losses=losses,
            validation_accuracy=found.accuracy,
            validation_balanced_accuracy=found.balanced_accuracy,
            validation_loss=loss,
            validation=accuracies,
            learning_rate=rate,
            images_per_second=len(self.train.images) / seconds,
            seconds=time.perf_counter() - started,
            best=better,
            best_by=self.score,
        )

    def _train_epoch(self) -> tuple[dict[str, float], float]:
        """Train one epoch; return the mean training loss by output, and the last learning rate."""
        stage, count = self.stage, len(self.train)
        stage.set_training()
        for name, dropout in dropouts(stage.module):
            dropout.reseed(derive(self.seed, stage.name, self.epoch, "dropout", name), self.train.device)
        sums: dict[str, Tensor] = {}
        rate = stage.learning_rate
        for index, batch in enumerate(self.train.shuffled(derive(self.seed, stage.name, self.epoch, "batches"))):
            rate = learning_rate(stage.schedule, stage.learning_rate, self.epoch * count + index, stage.epochs * count)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad()
            for name, loss in stage.backward(batch, self.parallel, self.dtype).items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss * len(batch)
            if (index + 1) % CHECK_EVERY == 0 and not all(math.isfinite(float(total)) for total in sums.values()):
                raise self._not_finite("training loss")
            self.optimizer.step()
            if self.average:
                self.average.update()
        means = {name: float(total) / len(self.train.images) for name, total in sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise self._not_finite("training loss")
        return means, rate

    def _validate(self) -> tuple[dict[str, npt.NDArray[np.bool_]], float]:
        """Return by output which validation images are classified correctly, bool [N], and the mean cross-entropy."""
        hits: dict[str, list[npt.NDArray[np.bool_]]] = {}
        total_loss = 0.0
        for batch in self.validation.ordered():
            for name, logits in self.stage.logits(batch.views["original"], self.parallel).items():
                hits.setdefault(name, []).append((logits.argmax(1) == batch.labels).cpu().numpy())
                total_loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        count = len(self.validation.images)
        return {name: np.concatenate(parts) for name, parts in hits.items()}, total_loss / (count * len(hits))

    def _balanced(self, hits: dict[str, npt.NDArray[np.bool_]]) -> float:
        """Return the mean over the outputs of the mean recall over classes."""
        labels, classes = self.validation.images.labels, len(self.validation.images.classes)
        counts = class_counts(labels, classes)
        return _mean([mean_recall(class_counts(labels[each], classes), counts) for each in hits.values()])

    def _not_finite(self, what: str) -> TrainingError:
        return TrainingError(
            f"stage {self.stage.name}, epoch {self.epoch + 1}: the {what} is not finite\n"
            f"start a new run with a lower learning rate (now {self.stage.learning_rate:g}) or with "
            "compute.precision=float32"
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and JSON-ready numbers for `restore`."""
        tensors = {f"module.{name}": tensor for name, tensor in self.stage.module.state_dict().items()}
        numbers: dict[str, Any] = {"stage": self.stage.name, "epoch": self.epoch, "best": None}
        if self.best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.weights.items()}
            tensors |= {f"hits.{name}": torch.from_numpy(each) for name, each in self.best.hits.items()}
            figures = ("epoch", "accuracy", "balanced_accuracy", "loss")
            numbers["best"] = {name: getattr(self.best, name) for name in figures}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
            numbers["average_steps"] = self.average.steps
        if self.stage.frozen is not None:
            tensors |= {f"frozen.{name}": tensor for name, tensor in self.stage.frozen.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if value is not None}
        return tensors, numbers

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Continue from the result of `state`.

        Raises:
            ValueError: if the state does not fit this stage; also KeyError, TypeError or RuntimeError.
        """
        module = under(tensors, "module.")
        self.stage.module.load_state_dict(module)
        if self.average is not None:
            self.average.restore(under(tensors, "average."), numbers["average_steps"])
        if self.stage.frozen is not None:
            self.stage.frozen.load_state_dict(under(tensors, "frozen."))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under(tensors, "optimizer.").items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = tensor
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        for at, each in slots.items():
            if any(tensor.shape not in {(), parameters[at].shape} for tensor in each.values()):
                raise ValueError("optimizer state has another shape than its parameter")
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.epoch = numbers["epoch"]
        if type(self.epoch) is not int or not 0 <= self.epoch <= self.stage.epochs:
            raise ValueError(f"epoch {shown(self.epoch)}: expected 0 to {self.stage.epochs}")
        if numbers["best"] is not None:
            hits = {name: tensor.numpy() for name, tensor in under(tensors, "hits.").items()}
            figures = from_plain(_BestFigures, numbers["best"], "best")
            self.best = Best(**vars(figures), weights=under(tensors, "best."), hits=hits)
            if not 1 <= self.best.epoch <= self.epoch or _shapes(self.best.weights) != _shapes(module):
                raise ValueError(f"best epoch {self.best.epoch}: expected one up to {self.epoch}, of this network")


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
