"""The parts that families are built of.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvReluPool(nn.Module):
    """3x3 convolution without padding, max pooling 2x2, ReLU: [B, C, H, W] -> [B, C', (H-2)//2, (W-2)//2].

    Papers write the ReLU before the pooling. Both orders give equal numbers, since ReLU is monotone, and this one
    applies it to a quarter of the values.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', (H-2)//2, (W-2)//2]."""
        return F.relu(F.max_pool2d(self.conv(x), 2))

    @staticmethod
    def output_side(side: int) -> int:
        """Rows (or columns) that come out where `side` go in; below 1 when the layer does not fit."""
        return (side - 2) // 2


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own.

    The global generator would be shared by branches that train at the same time, and the numbers drawn would then
    depend on which came first. Whoever trains seeds `generator` at the start of each epoch.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator: torch.Generator | None = None

    def reseed(self, seed: int, device: torch.device) -> None:
        """Start the stream of random numbers anew from `seed` on `device`."""
        if self.generator is None or self.generator.device != device:
            self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape: while training, zeros with `probability`, and what is kept scaled by 1 / (1 - probability)."""
        if not self.training or self.probability == 0.0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.probability
        return x * kept.to(x.dtype).div_(1.0 - self.probability)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"probability={self.probability}"


class DenseClassifier(nn.Module):
    """The last unit of a submodel: dropout, then one dense layer on the features: [B, C, H, W] -> logits [B, K]."""

    def __init__(self, features: tuple[int, int, int], classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        channels, height, width = features
        self.dropout = Dropout(dropout)
        self.dense = nn.Linear(channels * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        logits: Tensor = self.dense(self.dropout(x.flatten(1)))
        return logits


class ConvClassifier(nn.Module):
    """A `DenseClassifier` written as one convolution over the whole feature map: the same weights, equal outputs.

    The dense weight of class k and flattened feature (c, y, x) becomes the kernel's weight [k, c, y, x].
    """

    def __init__(self, features: tuple[int, int, int], classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        channels, height, width = features
        self.dropout = Dropout(dropout)
        self.conv = nn.Conv2d(channels, classes, kernel_size=(height, width))

    @classmethod
    def from_dense(cls, classifier: DenseClassifier) -> ConvClassifier:
        """Take over the weights of a dense classifier, which stays as it is."""
        dense = classifier.dense
        made = cls(classifier.features, dense.out_features, classifier.dropout.probability)
        with torch.no_grad():
            made.conv.weight.copy_(dense.weight.view(made.conv.weight.shape))
            made.conv.bias.copy_(dense.bias)  # type: ignore[union-attr]
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        scores: Tensor = self.conv(self.dropout(x))
        return scores.flatten(1)


def dropouts(module: nn.Module) -> list[tuple[str, Dropout]]:
    """The dropouts in `module`, each with its qualified name."""
    return [(name, part) for name, part in module.named_modules() if isinstance(part, Dropout)]
