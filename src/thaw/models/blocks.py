"""The building blocks of model families.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thaw.kernels import conv_relu_pool, dropout_dense
from thaw.kernels.normalization import After, Running, can_fuse, normalize
from thaw.kernels.separable import Learned, separable
from thaw.kernels.separable import can_fuse as can_fuse_separable
from thaw.models.depthwise import DepthwiseConv, in_autocast_dtype

Pooling = Literal["max", "average"]
StemReduction = Literal["none", "pool", "stride"]
"""How a stem halves rows and columns: not at all, by 2x2 pooling after it, or by a stride of 2."""

_NORM_EPSILON = 1e-5
_NORM_MOMENTUM = 0.1
_LEAST_SCALE = 1e-6
"""Smallest scale of a positive normalization: a scale of 0 cannot be folded into the scales of int8 weights."""


class ConvReluPool(nn.Module):
    """3x3 convolution without padding, max pooling 2x2, ReLU: [B, C, H, W] -> [B, C', (H-2)//2, (W-2)//2].

    Papers put the ReLU before the pooling. Both orders give the same result, since ReLU is monotone, and this one
    applies it to a quarter of the values.

    Attributes:
        compiled: use compiled C for inputs that it supports (see `thaw.kernels.conv_relu_pool`).
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.compiled = False
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', (H-2)//2, (W-2)//2]."""
        weight, bias = self.conv.weight, self.conv.bias
        if self.compiled and bias is not None and conv_relu_pool.can_compute(x, weight):
            return conv_relu_pool.conv_relu_pool(x, weight, bias)
        return F.relu(F.max_pool2d(self.conv(x), 2))

    @staticmethod
    def output_side(side: int) -> int:
        """Rows (or columns) of the output for `side` of the input; below 1 if the layer does not fit."""
        return (side - 2) // 2


class Dropout(nn.Module):
    """Dropout with its own random generator.

    Branches that train in parallel would share the global generator, and their random numbers would depend on which
    branch came first. The training loop seeds `generator` at the start of each epoch; `beginnings` counts the epochs.

    The generator draws one number per batch, which selects the mask (`thaw.kernels.dropout_dense`).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator: torch.Generator | None = None
        self.beginnings = 0

    def reseed(self, seed: int, device: torch.device) -> None:
        """Restart the random numbers from `seed` on `device`."""
        if self.generator is None or self.generator.device != device:
            self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed)
        self.beginnings += 1

    @property
    def drops(self) -> bool:
        """Whether the forward pass drops values."""
        return self.training and self.probability > 0.0

    def draw(self, device: torch.device) -> Tensor:
        """Draw the key of the next mask, an int64 scalar."""
        return torch.randint(dropout_dense.KEYS, (), generator=self.generator, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape: in training mode, zero values with `probability` and scale the rest by 1 / (1 - probability)."""
        if not self.drops:
            return x
        kept = dropout_dense.kept(x.shape, self.probability, self.draw(x.device))
        return x * kept.to(x.dtype).div_(1.0 - self.probability)

    def extra_repr(self) -> str:
        """For `print(module)`."""
        return f"probability={self.probability}"


class DenseClassifier(nn.Module):
    """The last unit of a submodel: dropout, then one dense layer on the features: [B, C, H, W] -> logits [B, K].

    Attributes:
        compiled: use compiled C for inputs that it supports (see `thaw.kernels.dropout_dense`).
    """

    def __init__(self, features: tuple[int, int, int], classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.compiled = False
        channels, height, width = features
        self.dropout = Dropout(dropout)
        self.dense = nn.Linear(channels * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        if self.compiled:
            weight = self.dense.weight.view(-1, *self.features)
            if dropout_dense.can_compute(x, weight):
                return _dropout_dense(x, weight, self.dense.bias, self.dropout)
        logits: Tensor = self.dense(self.dropout(x.flatten(1)))
        return logits


class ConvClassifier(nn.Module):
    """A `DenseClassifier` as one convolution over the whole feature map: same weights, same outputs.

    The dense weight of class k and flattened feature (c, y, x) becomes the kernel's weight [k, c, y, x].

    Attributes:
        compiled: use compiled C for inputs that it supports (see `thaw.kernels.dropout_dense`).
    """

    def __init__(self, features: tuple[int, int, int], classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.compiled = False
        channels, height, width = features
        self.dropout = Dropout(dropout)
        self.conv = nn.Conv2d(channels, classes, kernel_size=(height, width))

    @classmethod
    def from_dense(cls, classifier: DenseClassifier) -> ConvClassifier:
        """A convolution with a copy of the dense classifier's weights."""
        dense = classifier.dense
        made = cls(classifier.features, dense.out_features, classifier.dropout.probability)
        with torch.no_grad():
            made.conv.weight.copy_(dense.weight.view(made.conv.weight.shape))
            made.conv.bias.copy_(dense.bias)  # type: ignore[union-attr]
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        if self.compiled and dropout_dense.can_compute(x, self.conv.weight):
            return _dropout_dense(x, self.conv.weight, self.conv.bias, self.dropout)
        scores: Tensor = self.conv(self.dropout(x))
        return scores.flatten(1)


def _dropout_dense(x: Tensor, weight: Tensor, bias: Tensor | None, dropout: Dropout) -> Tensor:
    assert bias is not None, "a classifier has a bias"
    drop = dropout_dense.Drop(dropout.probability, int(dropout.draw(x.device))) if dropout.drops else None
    return dropout_dense.dropout_dense(x, weight, bias, drop)


class Norm(nn.Module):
    """Batch normalization and the operations after it: [B, C, H, W] -> the same shape.

    The running mean and variance are those of torch's BatchNorm2d with momentum 0.1. There is no count of batches, so
    all tensors of a model are float32.

    Args:
        channels: C.
        positive: use the absolute value of the scale. Convolutions that share weights but have different normalizations
            then differ by one positive factor per channel, which goes into the scales of the int8 weights, so a device
            stores the weights once.

    Attributes:
        compiled: in training mode, use compiled C for inputs that it supports (see `thaw.kernels.normalization`).
    """

    def __init__(self, channels: int, *, positive: bool = False) -> None:
        super().__init__()
        self.positive = positive
        self.compiled = False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @property
    def scale(self) -> Tensor:
        """The scale that is applied, float32 [C]."""
        return self.weight.abs().clamp(min=_LEAST_SCALE) if self.positive else self.weight

    @property
    def running(self) -> Running:
        """The running statistics."""
        return Running(self.running_mean, self.running_var, _NORM_MOMENTUM, _NORM_EPSILON)

    def affine(self) -> tuple[Tensor, Tensor]:
        """(factor, offset), float32 [C] each, of the evaluation mode: `x * factor + offset`."""
        factor = self.scale / torch.sqrt(self.running_var + _NORM_EPSILON)
        return factor, self.bias - self.running_mean * factor

    def forward(self, x: Tensor, after: After = "nothing", shortcut: Tensor | None = None) -> Tensor:
        """[B, C, H, W], and a shortcut of the same shape if `after` adds one -> [B, C, H, W]."""
        assert (shortcut is not None) == (after in {"add relu", "relu add"}), (
            "a shortcut is given if and only if it is added"
        )
        scale = self.scale
        if self.compiled and self.training and scale.dtype == torch.float32 and can_fuse(x, shortcut):
            return normalize(x, scale, self.bias, self.running, after, shortcut)
        y = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            scale,
            self.bias,
            self.training,
            momentum=_NORM_MOMENTUM,
            eps=_NORM_EPSILON,
        )
        if shortcut is None:
            return F.relu(y) if after == "relu" else y
        return F.relu(shortcut + y) if after == "add relu" else shortcut + F.relu(y)


class ConvNorm(nn.Module):
    """Zero-padded convolution, normalization, and optionally ReLU: [B, C, H, W] -> [B, C', H', W'].

    H' is H at stride 1 and (H + 1) // 2 at stride 2; W' likewise.

    Args:
        channels_in: C.
        channels_out: C'.
        kernel: side of the kernel, odd.
        stride: 1 or 2.
        groups: 1, or C for a depthwise convolution (then C' = C).
        relu: whether to end with a ReLU.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = (
            DepthwiseConv(channels_in, kernel, stride)
            if groups > 1
            else nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        )
        self.norm = Norm(channels_out)
        self.relu = relu

    @property
    def learned(self) -> Learned:
        """The parameters and the running statistics."""
        return Learned(self.conv.weight, self.norm.scale, self.norm.bias, self.norm.running)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        y: Tensor = self.norm(self.conv(x), "relu" if self.relu else "nothing")
        return y


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut, ReLU after the addition: [B, C, H, W] -> the same (arXiv 1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = ConvNorm(channels, channels, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        y: Tensor = self.second.norm(self.second.conv(self.first(x)), "add relu", x)
        return y


class Separable(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each normalized and followed by ReLU: [B, C, H, W] -> [B, C', H, W].

    If C' = C there is a shortcut around both, and the ReLU of the second comes before the addition.

    Attributes:
        compiled: in training mode, use compiled C for inputs that it supports (see `thaw.kernels.separable`).
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels_in, channels_in, groups=channels_in)
        self.pointwise = ConvNorm(channels_in, channels_out, kernel=1)
        self.shortcut = channels_in == channels_out
        self.compiled = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        if self.compiled and self.training and self.pointwise.conv.weight.dtype == torch.float32:
            x = in_autocast_dtype(x)
            if can_fuse_separable(x):
                return separable(x, self.depthwise.learned, self.pointwise.learned, shortcut=self.shortcut)
        filtered = self.depthwise(x)
        if not self.shortcut:
            y: Tensor = self.pointwise(filtered)
        else:
            y = self.pointwise.norm(self.pointwise.conv(filtered), "relu add", x)
        return y


class Loop(nn.Module):
    """One 3x3 convolution applied many times, with a separate normalization per pass: [B, C, H, W] -> [B, C, H', W'].

    Every pass adds to the state: `x <- x + relu(norm_p(conv(x)))`. Between groups of passes the state is pooled 2x2.

    Args:
        channels: C.
        passes: passes at each resolution; (6, 6) is 6 passes, a pooling, and 6 more.
        pooling: "max" or "average".
        mixed: 0 to return the last state; otherwise the last `mixed` states are averaged over their positions, scaled
            by learned factors per channel, and added: [B, C, H, W] -> [B, C, 1, 1].
    """

    def __init__(self, channels: int, passes: tuple[int, ...], *, pooling: Pooling = "max", mixed: int = 0) -> None:
        super().__init__()
        self.passes = passes
        self.halve = Halve(pooling)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([Norm(channels, positive=True) for _ in range(sum(passes))])
        self.mix = nn.ModuleList([ChannelScale(channels, 1.0 / mixed) for _ in range(mixed)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W'], or [B, C, 1, 1] if states are mixed."""
        norms = iter(self.norms)
        states = []
        for group, passes in enumerate(self.passes):
            x = self.halve(x) if group else x
            for _ in range(passes):
                x = next(norms)(self.conv(x), "relu add", x)
                states.append(x)
        if not self.mix:
            return x
        kept = states[-len(self.mix) :]
        terms = [scale(state.mean((2, 3), keepdim=True)) for scale, state in zip(self.mix, kept, strict=True)]
        return torch.stack(terms).sum(0)


class Halve(nn.Module):
    """2x2 pooling: [B, C, H, W] -> [B, C, H // 2, W // 2].

    Args:
        pooling: "max" for the largest of the four, "average" for their mean.
    """

    def __init__(self, pooling: Pooling = "max") -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H // 2, W // 2]."""
        return F.max_pool2d(x, 2) if self.pooling == "max" else F.avg_pool2d(x, 2)

    def extra_repr(self) -> str:
        """For `print(module)`."""
        return f"pooling={self.pooling!r}"


def make_stem(channels_in: int, channels_out: int, reduction: StemReduction, pooling: Pooling) -> nn.Module:
    """The first convolution: [B, C, H, W] -> [B, C', H', W'], with sides as in `reduced_side`."""
    conv = ConvNorm(channels_in, channels_out, stride=2 if reduction == "stride" else 1)
    return nn.Sequential(OrderedDict(conv=conv, halve=Halve(pooling))) if reduction == "pool" else conv


def reduced_side(side: int, reduction: StemReduction) -> int:
    """Rows (or columns) of a stem's output for `side` of the image."""
    return {"none": side, "pool": side // 2, "stride": (side + 1) // 2}[reduction]


class GlobalPool(nn.Module):
    """The mean of each channel: [B, C, H, W] -> [B, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 1, 1]."""
        return x.mean((2, 3), keepdim=True)


class ChannelScale(nn.Module):
    """A learned factor and offset per channel: [B, C, H, W] -> the same."""

    def __init__(self, channels: int, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels,), factor))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return x * self.factor.view(1, -1, 1, 1) + self.offset.view(1, -1, 1, 1)


def learned_parameters(module: nn.Module) -> int:
    """The number of parameters, after folding normalizations into convolutions.

    A normalization that folds into the convolution before it counts as that convolution's bias, C numbers, since its
    scale goes into the weights. The normalizations of a `Loop` with several passes cannot fold into the shared weights,
    so all of their parameters count.
    """
    loops = [loop for loop in module.modules() if isinstance(loop, Loop) and len(loop.norms) > 1]
    whole = {norm for loop in loops for norm in loop.norms}
    counted = sum(parameter.numel() for parameter in module.parameters())
    return counted - sum(
        norm.weight.numel() for norm in module.modules() if isinstance(norm, Norm) and norm not in whole
    )


_COMPILED = (ConvReluPool, DepthwiseConv, Norm, Separable)
"""Blocks with compiled kernels in all networks."""


def use_kernels(module: nn.Module, *, compiled: bool) -> None:
    """Make the blocks of `module` that have compiled kernels use them, or torch's operations."""
    parts = list(module.modules())
    # In other families, the dense layer is a small part of a step.
    dense = any(isinstance(part, ConvReluPool) for part in parts)
    for part in parts:
        if isinstance(part, _COMPILED) or (dense and isinstance(part, (ConvClassifier, DenseClassifier))):
            part.compiled = compiled


def dropouts(module: nn.Module) -> list[tuple[str, Dropout]]:
    """The dropouts in `module`, each with its qualified name."""
    return [(name, part) for name, part in module.named_modules() if isinstance(part, Dropout)]
