"""Batches on a device: one view of the images, or the pair (original, augmented).

Shapes: N images, B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thaw.data.augment import AugmentSettings, augment, draw_changes
from thaw.data.images import ImageSet, InputSpec
from thaw.data.mix import Mix, mix_images
from thaw.kernels.augmentation import Changes
from thaw.kernels.augmentation import views as compiled_views
from thaw.seeds import derive, numpy_generator

View = Literal["original", "augmented"]

# Images that are fetched and augmented at once: enough to amortize the cost of a call, few enough (1024 x 32x32x3
# float32 = 12 MB) to stay near the caches.
CHUNK_IMAGES = 1024


@dataclass(frozen=True)
class Batch:
    """Images and labels of one training step.

    Attributes:
        views: the images, float32 [B, C, H, W], channels last and normalized by the input specification.
        labels: int64 [B], the own label of each image, also if it was mixed with another.
        mixes: how the images of a view were mixed; views that were not mixed have no entry.
    """

    views: dict[View, Tensor]
    labels: Tensor
    mixes: Mapping[View, Mix] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """The batches of one ImageSet.

    Attributes:
        images: the images.
        input_spec: how pixels are normalized.
        batch_size: images per batch; the last batch may be smaller.
        device: where the batches are.
        augment: the changes of the augmented view.
        views: the views of a batch.
        compiled: whether views are computed in compiled C (`thaw.kernels.augmentation`), on the CPU.
    """

    images: ImageSet
    input_spec: InputSpec
    batch_size: int
    device: torch.device
    augment: AugmentSettings
    views: tuple[View, ...] = ("original",)
    compiled: bool = False

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self.images) // self.batch_size)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """One epoch in an order given by `seed`."""
        order = numpy_generator(seed, "order").permutation(len(self.images))
        # Mixing has its own random stream, so that switching it on does not change the other augmentations.
        mixing = numpy_generator(seed, "mix")
        return (self._mixed(batch, mixing) for batch in self._batches(order, seed))

    def ordered(self) -> Iterator[Batch]:
        """Every image once, in the order of the set and not mixed."""
        return self._batches(np.arange(len(self.images)), seed=0)

    def _batches(self, order: np.ndarray[tuple[int], np.dtype[np.int64]], seed: int) -> Iterator[Batch]:
        generator = torch.Generator(device=self.device).manual_seed(derive(seed, "augment"))
        step = max(1, CHUNK_IMAGES // self.batch_size) * self.batch_size
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            labels = torch.from_numpy(self.images.labels[chosen]).to(self.device)
            pixels = torch.from_numpy(self.images.images[chosen]).to(self.device)
            views = {view: self._view(view, pixels, generator) for view in dict.fromkeys(self.views)}
            for first in range(0, len(chosen), self.batch_size):
                part = slice(first, first + self.batch_size)
                yield Batch({view: x[part] for view, x in views.items()}, labels[part])

    def _mixed(self, batch: Batch, generator: np.random.Generator) -> Batch:
        """The batch with its augmented view mixed, if the settings ask for that."""
        if "augmented" not in batch.views:
            return batch
        x, mix = mix_images(batch.views["augmented"], self.augment, generator)
        if mix is None:
            return batch
        return Batch({**batch.views, "augmented": channels_last(x)}, batch.labels, {"augmented": mix})

    def _view(self, view: View, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """One view of images uint8 [B, H, W, C]."""
        count, height, width, _ = pixels.shape
        if self.compiled:
            changes: Changes | None = Changes()
            if view == "augmented":
                changes = draw_changes(self.augment, count, (height, width), generator)
            if changes is not None:
                return channels_last(compiled_views(pixels, changes, self.input_spec.mean, self.input_spec.std))
        unit = to_unit(pixels)
        x = augment(unit, self.augment, generator) if view == "augmented" else unit
        return normalize(x, self.input_spec)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in 0..1, channels last in memory."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.preserve_format).div_(255.0)


def normalize(x: Tensor, input_spec: InputSpec) -> Tensor:
    """(x - mean) / std per channel: float32 [B, C, H, W], channels last in memory."""
    count, channels, height, width = x.shape
    # Rows of W * C numbers: several times as fast as broadcasting over C alone.
    mean, std = (torch.tensor(each, device=x.device).repeat(width) for each in (input_spec.mean, input_spec.std))
    rows = channels_last(x).permute(0, 2, 3, 1).reshape(count * height, width * channels)
    return channels_last((rows - mean).div_(std).view(count, height, width, channels).permute(0, 3, 1, 2))


def channels_last(x: Tensor) -> Tensor:
    """`x` with channels last in memory, and with the strides of that order for one channel too."""
    _, channels, height, width = x.shape
    if channels == 1:
        return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))
    return x.contiguous(memory_format=torch.channels_last)


def sample_views(
    images: ImageSet, settings: AugmentSettings, *, count: int, seed: int
) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], str]]:
    """Up to `count` images, cycling through the classes: (original, augmented, class name), both uint8 [H, W, C]."""
    ranks = _rank_in_class(images.labels)
    chosen = np.lexsort((images.labels, ranks))[:count]
    pixels = np.ascontiguousarray(images.images[chosen])
    unit = augment(to_unit(torch.from_numpy(pixels)), settings, torch.Generator().manual_seed(seed))
    augmented = (unit * 255.0).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    names = [images.classes[label] for label in images.labels[chosen]]
    return list(zip(pixels, augmented, names, strict=True))


def _rank_in_class(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each image, the number of earlier images of its class."""
    ranks = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        ranks[of_class] = np.arange(int(of_class.sum()))
    return ranks
