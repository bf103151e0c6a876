"""Mixing of images within a batch, and the loss for it: mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899).

Shapes: B batch, C channels, H rows, W columns, K classes. Random numbers are drawn on the CPU by a NumPy generator, for
its Beta distribution.
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
    """How a batch of images was mixed.

    Attributes:
        partners: int64 [B], the position in the batch of the image that each was mixed with.
        shares: float32 [B] in 0..1, the share of the own image: its weight (mixup) or its area (CutMix).
    """

    partners: Tensor
    shares: Tensor


def mix_images(x: Tensor, settings: AugmentSettings, generator: np.random.Generator) -> tuple[Tensor, Mix | None]:
    """Mix images float32 [B, C, H, W] with others of the batch; each draws its own share.

    Returns:
        New images of the same shape, and how they were mixed; or `x` itself and None if this batch is not mixed.
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
    """CutMix: paste a rectangle of the partner in the same place; the share is the remaining own area."""
    count, channels, height, width = x.shape
    down, across = rectangles(generator.beta(alpha, alpha, count), height, width, generator)
    shares = 1.0 - np.diff(down)[:, 0] * np.diff(across)[:, 0] / (height * width)
    rows, columns = (_between(spans, side) for spans, side in ((down, height), (across, width)))
    # A mask with rows of W * C numbers is much faster than one that is broadcast over C.
    pasted = (rows[:, :, None] & columns.repeat_interleave(channels, dim=1)[:, None, :]).to(x.device)
    pasted = pasted.view(count, height, width, channels).permute(0, 3, 1, 2)
    mix = Mix(partners, torch.from_numpy(shares).to(x.device, torch.float32))
    return torch.where(pasted, _chosen(x, partners), x), mix


def rectangles(
    shares: npt.NDArray[np.float64], height: int, width: int, generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rectangles with the image's aspect ratio and 1 - share of its area, at random centers, clipped at the borders.

    Returns:
        The first row and the end row (exclusive), int64 [B, 2], and the same for columns.
    """
    spans = []
    for side in (height, width):
        lengths = np.rint(side * np.sqrt(1.0 - shares)).astype(np.int64)
        first = generator.integers(side, size=len(shares)) - lengths // 2
        spans.append(np.stack([first, first + lengths], axis=1).clip(0, side))
    return spans[0], spans[1]


def _between(spans: npt.NDArray[np.int64], side: int) -> Tensor:
    """Which positions along a side lie in spans [B, 2] (first, end): bool [B, side]."""
    positions = np.arange(side)
    return torch.from_numpy((positions >= spans[:, :1]) & (positions < spans[:, 1:]))


def _chosen(x: Tensor, where: Tensor) -> Tensor:
    """`x[where]`; copying whole images is fastest with channels last."""
    return x.permute(0, 2, 3, 1).index_select(0, where).permute(0, 3, 1, 2)


def cross_entropy(
    logits: Tensor, labels: Tensor, mix: Mix | None, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """The mean over the batch of share * CE(own label) + (1 - share) * CE(partner's label), in nats.

    With weights, each CE is multiplied by the weight of its label, and the sum is divided by B. (torch divides by the
    sum of the weights, so that the parts of a batch would not add up to the whole.)

    Args:
        logits: float [B, K].
        labels: int64 [B] in 0..K-1, the own labels.
        mix: how the images were mixed; None if they were not.
        label_smoothing: the share of each target that is spread evenly over all classes, 0 to 1.
        weights: float32 [K], weights by label; None if all are 1.

    Returns:
        A scalar; without the three options it is bit-identical to `torch.nn.functional.cross_entropy(logits, labels)`.
    """
    return Targets.of(labels, mix).cross_entropy(logits, label_smoothing, weights)


@dataclass(frozen=True)
class Targets:
    """The targets of a batch, mixed or not; unlike a `Mix`, they can be sliced.

    Attributes:
        labels: int64 [B], the own labels.
        partners: int64 [B], the labels of the images that each was mixed with; None without mixing.
        shares: float32 [B] in 0..1, the share of the own image; None without mixing.
    """

    labels: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None

    @classmethod
    def of(cls, labels: Tensor, mix: Mix | None) -> Targets:
        """The targets of a whole batch."""
        return cls(labels) if mix is None else cls(labels, labels[mix.partners], mix.shares)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Targets:
        if self.partners is None or self.shares is None:
            return Targets(self.labels[part])
        return Targets(self.labels[part], self.partners[part], self.shares[part])

    def cross_entropy(self, logits: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
        """`thaw.data.mix.cross_entropy` for logits float [B, K]."""
        if self.partners is None or self.shares is None:
            if weights is None:
                return F.cross_entropy(logits, self.labels, label_smoothing=label_smoothing)
            return _of_each(logits, self.labels, label_smoothing, weights).mean()
        own, partners = (_of_each(logits, chosen, label_smoothing, weights) for chosen in (self.labels, self.partners))
        return (self.shares * own + (1.0 - self.shares) * partners).mean()


def _of_each(logits: Tensor, labels: Tensor, label_smoothing: float, weights: Tensor | None) -> Tensor:
    """The cross-entropy of each image times the weight of its label: float [B]."""
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return losses if weights is None else losses * weights[labels]
