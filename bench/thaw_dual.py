"""Contender: stage 1 by thaw, as `thaw train` runs it, or without one of its optimizations."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from workload import Workload, serve

from thaw import __version__
from thaw.data import batches
from thaw.data.augment import AugmentSettings
from thaw.data.images import ImageSet, InputSpec
from thaw.models.blocks import learned_parameters
from thaw.models.families import PaperSpec
from thaw.training.compute import (
    ComputeSettings,
    ParallelBranches,
    precision_name,
    resolve_arithmetic,
    resolve_device,
)
from thaw.training.engine import StageRun
from thaw.training.stages import DualSettings, DualStage
from thaw.training.trainer import TrainingContext, seeded_dual

AS_IT_IS = "thaw"
FOREVER = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The optimizations that are on; thaw uses all of them."""

    kernels: bool = True
    parallel: bool = True
    large_chunks: bool = True
    augmented: bool = True


NOTHING = Measures(**{field.name: field.name == "augmented" for field in fields(Measures)})

VARIANTS: dict[str, Measures] = {
    AS_IT_IS: Measures(),
    "operations of torch": Measures(kernels=False),
    "both submodels in one thread after the other": Measures(parallel=False),
    "augmentation a batch at a time": Measures(large_chunks=False),
    "all of the above": NOTHING,
    "no augmentation (what it costs)": Measures(augmented=False),
}


class ThawDual:
    """The training. Option "variants" lists names in VARIANTS."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.device = resolve_device(workload.device)
        self.threads = torch.get_num_threads()
        images, labels = workload.load()
        classes = tuple(str(label) for label in range(workload.classes))
        self.images = ImageSet(images=images, labels=labels, classes=classes)
        self.runs = {name: self._run(VARIANTS[name]) for name in workload.options["variants"]}

    def _run(self, measures: Measures) -> StageRun:
        workload = self.workload
        height, width, channels = self.images.shape
        mean, std = (workload.mean,) * channels, (workload.deviation,) * channels
        # ParallelBranches divides the number of threads that it finds, for the whole process.
        torch.set_num_threads(self.threads)
        compute = ComputeSettings(kernels="auto" if measures.kernels else "torch")
        arithmetic = resolve_arithmetic(compute, self.device, {"convolution"}, threads=1)
        context = TrainingContext(
            train=self.images,
            validation=_first(self.images, workload.batch_size),
            input_spec=InputSpec(height=height, width=width, channels=channels, mean=mean, std=std),
            seed=0,
            device=self.device,
            dtype=arithmetic.dtype,
            compiled=arithmetic.compiled,
            parallel=ParallelBranches(2 if measures.parallel else 1, self.device),
        )
        dual = seeded_dual(PaperSpec(filters=workload.filters, dropout=workload.dropout), context)
        settings = DualSettings(
            epochs=FOREVER, patience=FOREVER, batch_size=workload.batch_size, learning_rate=workload.learning_rate
        )
        return context.run(DualStage(dual, settings), self._augment(measures))

    def _augment(self, measures: Measures) -> AugmentSettings:
        workload = self.workload
        if not measures.augmented:
            return AugmentSettings(rotation_degrees=0.0, zoom=0.0, translation=0.0, brightness=0.0)
        return AugmentSettings(
            rotation_degrees=workload.rotation_degrees,
            zoom=workload.zoom,
            translation=workload.translation,
            brightness=workload.brightness,
            fill="zeros",
        )

    def about(self) -> dict[str, Any]:
        """Versions and settings."""
        first = next(iter(self.runs.values()))
        return {
            "parameters": learned_parameters(first.stage.module),
            "versions": {"thaw": __version__, "torch": torch.__version__, "numpy": np.__version__},
            "precision": {name: precision_name(run.dtype) for name, run in self.runs.items()},
            "device": self.device.type,
            "threads": self.threads,
        }

    def train(self, variant: str, *, warm_up: bool) -> dict[str, float]:
        """Train one epoch over all pairs, or over the pairs of the warm-up."""
        run, measures = self.runs[variant], VARIANTS[variant]
        whole = run.train
        part = _first(self.images, self.workload.warm_up_pairs(len(self.images)))
        run.train = replace(whole, images=part) if warm_up else whole
        torch.set_num_threads(max(1, self.threads // 2) if measures.parallel else self.threads)
        with contextlib.ExitStack() as stack:
            if not measures.large_chunks:
                stack.enter_context(patch.object(batches, "CHUNK_IMAGES", self.workload.batch_size))
            record = next(run.epochs())
        pairs = len(run.train.images)
        run.train = whole
        if not math.isfinite(record.train_loss):
            raise RuntimeError(f"{variant}: the loss is {record.train_loss}")
        # The record's rate is that of training alone; validation is not part of what is compared.
        return {"seconds": pairs / record.images_per_second, "pairs": pairs, "loss": record.train_loss}


def _first(images: ImageSet, count: int) -> ImageSet:
    return ImageSet(images=images.images[:count], labels=images.labels[:count], classes=images.classes)


if __name__ == "__main__":
    serve(ThawDual)
