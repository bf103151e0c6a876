"""Small data and a family of submodels for the tests of training."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from thaw.data.augment import AugmentSettings
from thaw.data.batches import BatchSource
from thaw.data.images import ImageSet, InputSpec
from thaw.models.blocks import DenseClassifier, Dropout
from thaw.models.families import FamilySpec, PaperSpec, ResidualSpec
from thaw.models.unify import DualModel, UnifySpec
from thaw.training.compute import ParallelBranches
from thaw.training.distil import DistilSettings
from thaw.training.optim import OptimizerSettings
from thaw.training.stages import DualSettings, PlainSettings, UnfreezeSettings, UnfreezeStep
from thaw.training.trainer import MultiStageTrainer, TrainerSettings, TrainingContext

CPU = torch.device("cpu")
SIDE = 16
CONTRACT = InputSpec(height=SIDE, width=SIDE, channels=1, mean=(0.3,), std=(0.4,))


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, every pixel doubled in both directions: uint8 [1797, 16, 16, 1] and labels."""
    bunch = load_digits()
    images = np.kron(bunch.images, np.ones((1, 2, 2))) * 15.0
    return images.astype(np.uint8)[..., None], bunch.target.astype(np.int64)


def digit_set(first: int, last: int) -> ImageSet:
    images, labels = digits()
    return ImageSet(images=images[first:last], labels=labels[first:last], classes=tuple("0123456789"))


def source(images: ImageSet, batch_size: int = 32, views=("original",), **ranges) -> BatchSource:
    return BatchSource(
        images=images,
        input_spec=CONTRACT,
        batch_size=batch_size,
        device=CPU,
        augment=AugmentSettings(**ranges),
        views=views,
    )


def odd_submodel(classes: int = 10, dropout: float = 0.25) -> nn.Sequential:
    """A family outside the package: normalized units, other names, a dropout in the middle; for 16x16x1."""
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU())
    mixer = nn.Sequential(
        Dropout(dropout), nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU()
    )
    attic = DenseClassifier((6, SIDE // 4, SIDE // 4), classes, dropout)
    return nn.Sequential(OrderedDict(stem=stem, mixer=mixer, attic=attic))


def odd_dual(classes: int = 10, dropout: float = 0.25) -> DualModel:
    return DualModel(odd_submodel(classes, dropout), odd_submodel(classes, dropout))


def method_of(
    parallel: ParallelBranches,
    *,
    method: str = "two-stage",
    join: str = "concatenate",
    model: FamilySpec | None = None,
    seed: int = 0,
) -> MultiStageTrainer:
    """A trainer on 160 digits with minimal training: one epoch of stage 1, and one epoch per unfrozen unit."""
    spec = PaperSpec(filters=(4, 6), dropout=0.2) if model is None else model
    unify_spec = UnifySpec(join=join, hidden=12)
    order = unify_spec.unfreezing_order(spec.units)[:2]
    settings = TrainerSettings(
        method=method,
        model=spec,
        unify=unify_spec,
        augment=AugmentSettings(rotation_degrees=5.0, mixup=0.2),
        dual=DualSettings(epochs=1, batch_size=32, learning_rate=0.01),
        unfreeze=UnfreezeSettings(steps=tuple(UnfreezeStep(unit=unit, epochs=1) for unit in order), batch_size=32),
        plain=PlainSettings(
            epochs=2, batch_size=32, fit=OptimizerSettings(optimizer="muon", ema=0.9, label_smoothing=0.1)
        ),
        distil=DistilSettings(model=ResidualSpec(widths=(4, 6), blocks=(1, 0)), teacher_epochs=2),
    )
    context = TrainingContext(
        train=digit_set(0, 160),
        validation=digit_set(1400, 1460),
        input_spec=CONTRACT,
        seed=seed,
        device=CPU,
        dtype=torch.float32,
        parallel=parallel,
    )
    return MultiStageTrainer(settings, context)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def unit_of(name: str) -> str:
    """The unit of a tensor: "branches.1.conv2.conv.weight" belongs to conv2."""
    parts = name.split(".")
    return parts[2] if parts[0] == "branches" else parts[0]


@contextlib.contextmanager
def branches_of(count: int) -> Iterator[ParallelBranches]:
    """Parallel branches as on a machine with `count` cores: no threads for 1, one thread per branch for 2."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with ParallelBranches(count, CPU) as parallel:
            yield parallel
    finally:
        torch.set_num_threads(before)
