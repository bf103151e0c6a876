"""Images mixed with others of their batch, and the loss for them: mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899).

Shapes: B batch, C channels, H rows, W columns, K classes. Random numbers come from a NumPy generator, whose Beta
distribution torch has not, and are drawn on the CPU whatever the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from thaw.data.augment import AugmentSettings


@dataclass(frozen=True)
class Mix:
    """What a batch of images was mixed with.

    Attributes:
        partners: int64 [B], the other image of each, by its place in the batch.
        shares: float32 [B] in 0..1, how much of each is its own: its weight in a blend, or its part of the area.
    """

    partners: Tensor
    shares: Tensor


def mix_images(x: Tensor, settings: AugmentSettings, generator: np.random.Generator) -> tuple[Tensor, Mix | None]:
    """Mix images float32 [B, C, H, W] with others of the batch; each draws its own share.

    Returns:
        New images of the same shape, and how they came about; or `x` itself and None where the settings ask for no
        mixing or the batch draws none.
    """
    kinds = [kind for kind, alpha in (("mixup", settings.mixup), ("cutmix", settings.cutmix)) if alpha]
    if not kinds or generator.random() >= settings.mix_probability:
        return x, None
    kind = kinds[int(generator.integers(len(kinds)))]
    partners = torch.from_numpy(generator.permutation(len(x))).to(x.device)
    if kind == "mixup":
        return _blended(x, partners, settings.mixup, generator)
    return _pasted(x, partners, settings.cutmix, generator)


def _blended(x: Tensor, partners: Tensor, alpha: float, generator: np.random.Generator) -> tuple[Tensor, Mix]:
    """Mixup: share * own + (1 - share) * partner."""
    shares = torch.from_numpy(generator.beta(alpha, alpha, len(x))).to(x)
    return torch.lerp(_chosen(x, partners), x, shares.view(-1, 1, 1, 1)), Mix(partners, shares)


def _pasted(x: Tensor, partners: Tensor, alpha: float, generator: np.random.Generator) -> tuple[Tensor, Mix]:
    """CutMix: a rectangle of the partner, in the same place; the share is the area that is left of the image's own."""
    count, channels, height, width = x.shape
    down, across = rectangles(generator.beta(alpha, alpha, count), height, width, generator)
    shares = 1.0 - np.diff(down)[:, 0] * np.diff(across)[:, 0] / (height * width)
    rows, columns = (_between(spans, side) for spans, side in ((down, height), (across, width)))
    # A mask of W * C numbers a row, as the images lie: it is much faster than one that is broadcast over C.
    pasted = (rows[:, :, None] & columns.repeat_interleave(channels, dim=1)[:, None, :]).to(x.device)
    pasted = pasted.view(count, height, width, channels).permute(0, 3, 1, 2)
    mix = Mix(partners, torch.from_numpy(shares).to(x.device, torch.float32))
    return torch.where(pasted, _chosen(x, partners), x), mix


def rectangles(
    shares: npt.NDArray[np.float64], height: int, width: int, generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rectangles with the image's shape and 1 - share of its area, at random centers, clipped at the borders.

    Returns:
        The first row and the row after the last, int64 [B, 2], and the same for columns.
    """
    spans = []
    for side in (height, width):
        lengths = np.rint(side * np.sqrt(1.0 - shares)).astype(np.int64)
        first = generator.integers(side, size=len(shares)) - lengths // 2
        spans.append(np.stack([first, first + lengths], axis=1).clip(0, side))
    return spans[0], spans[1]


def _between(spans: npt.NDArray[np.int64], side: int) -> Tensor:
    """Which positions along a side lie in spans [B, 2] (first, after the last): bool [B, side]."""
    positions = np.arange(side)
    return torch.from_numpy((positions >= spans[:, :1]) & (positions < spans[:, 1:]))


def _chosen(x: Tensor, where: Tensor) -> Tensor:
    """`x[where]`, as whole images are copied fastest when they are channels-last."""
    return x.permute(0, 2, 3, 1).index_select(0, where).permute(0, 3, 1, 2)


def cross_entropy(
    logits: Tensor, labels: Tensor, mix: Mix | None, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """The mean over the batch of share * CE(own label) + (1 - share) * CE(partner's label), in nats.

    With weights, each CE is multiplied by the weight of its label, and the sum is still divided by B: torch divides by
    the sum of the weights, and parts of a batch would then no longer add up to the whole.

    Args:
        logits: float [B, K].
        labels: int64 [B] in 0..K-1, each image's own.
        mix: how the images were mixed; None where they were not.
        label_smoothing: the part of each target that is spread evenly over all classes, 0 to 1.
        weights: float32 [K], of an image by its label; None where all are 1.

    Returns:
        A scalar; with none of the three it is `torch.nn.functional.cross_entropy(logits, labels)` to the bit.
    """
    return Targets.of(labels, mix).cross_entropy(logits, label_smoothing, weights)


@dataclass(frozen=True)
class Targets:
    """What images show, those that were mixed included; unlike a `Mix`, a part of a batch has its own.

    Attributes:
        labels: int64 [B], each image's own.
        partners: int64 [B], the label of the image that it was mixed with; None where none was.
        shares: float32 [B] in 0..1, how much of each image is its own; None where none was mixed.
    """

    labels: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None

    @classmethod
    def of(cls, labels: Tensor, mix: Mix | None) -> Targets:
        """Of a whole batch."""
        return cls(labels) if mix is None else cls(labels, labels[mix.partners], mix.shares)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Targets:
        if self.partners is None or self.shares is None:
            return Targets(self.labels[part])
        return Targets(self.labels[part], self.partners[part], self.shares[part])

    def cross_entropy(self, logits: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
        """As the function of this name, for logits float [B, K]."""
        if self.partners is None or self.shares is None:
            if weights is None:
                return F.cross_entropy(logits, self.labels, label_smoothing=label_smoothing)
            return _of_each(logits, self.labels, label_smoothing, weights).mean()
        own, partners = (_of_each(logits, chosen, label_smoothing, weights) for chosen in (self.labels, self.partners))
        return (self.shares * own + (1.0 - self.shares) * partners).mean()


def _of_each(logits: Tensor, labels: Tensor, label_smoothing: float, weights: Tensor | None) -> Tensor:
    """The cross-entropy of each image, times the weight of its label: float [B]."""
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return losses if weights is None else losses * weights[labels]
