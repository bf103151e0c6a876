"""Lowering: a trained torch module -> Graph.

torch stores feature maps as [C, H, W] and convolution weights as [C', C, kh, kw]; the graph stores them as (H, W, C)
and [C', kh, kw, C].

Shapes: H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from thaw.errors import UsageError
from thaw.graph.cost import Cost, count_cost
from thaw.graph.graph import Graph
from thaw.graph.ops import (
    Activation,
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    DepthwiseConv2d,
    MaxPool2d,
    Operation,
    Reshape,
    Scale,
    Softmax,
)
from thaw.graph.tensors import IMAGE, LOGITS, PROBABILITIES, FloatArray, Shape, Tensor
from thaw.models.blocks import (
    ChannelScale,
    ConvClassifier,
    ConvNorm,
    ConvReluPool,
    DenseClassifier,
    GlobalPool,
    Halve,
    Loop,
    Norm,
    Pooling,
    Residual,
    Separable,
)
from thaw.models.families import FamilySpec
from thaw.models.unify import HEAD, Head, UnifiedModel, UnifySpec, build_unified
from thaw.quoting import shown


def lower(
    module: nn.Module, *, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float], classes: int
) -> Graph:
    """The graph of `module` in evaluation mode, from raw pixels to class probabilities.

    The graph takes "image", uint8 (H, W, C), scales it by `(x / 255 - mean) / std`, and returns "logits" and
    "probabilities", float32 (K,) each; any other tensor has the name of the operation that writes it. Weights are
    copied as float32, and dropout is omitted.

    Args:
        module: a UnifiedModel, or a submodel (an nn.Sequential of named units); [B, C, H, W] -> logits [B, K].
        shape: (H, W, C) of the image.
        mean: one number per channel, as in the input specification.
        std: one number per channel, above 0.
        classes: K.

    Raises:
        UsageError: for a module without a lowering, or one that does not take `shape` or return `classes` logits.
    """
    trace = _Trace(Tensor(name=IMAGE, shape=shape, dtype="uint8"))
    scale = Scale(
        name="scale", inputs=(IMAGE,), output="scale", mean=tuple(map(float, mean)), std=tuple(map(float, std))
    )
    last = _lower_unit(trace, module, "", trace.add(scale))
    if trace.shape(last) != (classes,):
        raise UsageError(
            f"the model returns scores of shape {trace.shape(last)}: expected ({classes},), one per class",
            code="usage-graph-lower",
        )
    trace.rename_last(LOGITS)
    trace.add(Softmax(name="softmax", inputs=(LOGITS,), output=PROBABILITIES))
    return Graph(
        tensors=tuple(trace.tensors.values()), ops=tuple(trace.ops), input=IMAGE, outputs=(LOGITS, PROBABILITIES)
    )


def layer_table(spec: FamilySpec, unify_spec: UnifySpec | None, shape: tuple[int, int, int], classes: int) -> Cost:
    """The cost of the unified model of `spec` for images (H, W, C) and K classes, before any training.

    Without `unify_spec`, the network is a single submodel of `spec`. No weights are allocated and no random numbers are
    drawn, so that networks of any size can be counted.

    Raises:
        UsageError: when the image is too small for the layers, or `classes` is below 2.
    """
    with torch.device("meta"):
        module = spec.build(shape, classes) if unify_spec is None else build_unified(spec, unify_spec, shape, classes)
    channels = shape[2]
    return count_cost(lower(module, shape=shape, mean=(0.0,) * channels, std=(1.0,) * channels, classes=classes))


class _Trace:
    """The operations so far, and the tensors that they write."""

    def __init__(self, image: Tensor) -> None:
        self.tensors = {image.name: image}
        self.ops: list[Operation] = []

    def add(self, op: Operation) -> str:
        """Append the operation and return the name of its output."""
        written = op.infer([self.tensors[name] for name in op.inputs])
        self._refuse_taken(op.output)
        self.ops.append(op)
        self.tensors[op.output] = written
        return op.output

    def shape(self, name: str) -> Shape:
        """The shape of a tensor."""
        return self.tensors[name].shape

    def rename_last(self, name: str) -> None:
        """Rename the output of the last operation, which nothing has read yet."""
        written = self.tensors.pop(self.ops[-1].output)
        self._refuse_taken(name)
        self.ops[-1] = replace(self.ops[-1], output=name)
        self.tensors[name] = replace(written, name=name)

    def _refuse_taken(self, name: str) -> None:
        if name in self.tensors:
            raise UsageError(f"the name {shown(name)} is taken: rename a unit of the model", code="usage-graph-lower")


def _lower_unit(trace: _Trace, module: nn.Module, name: str, read: str) -> str:
    """Append the operations of `module` on tensor `read`, with names that begin with `name`; return the output."""
    lowering = _LOWERINGS.get(type(module))
    if lowering is None:
        known = ", ".join(kind.__name__ for kind in _LOWERINGS)
        raise UsageError(
            f"{name or 'the model'} is a {type(module).__name__}, which has no lowering: expected one of {known}",
            code="usage-graph-lower",
        )
    return lowering(trace, module, name, read)


def _unified(trace: _Trace, model: UnifiedModel, name: str, read: str) -> str:
    scores = []
    for number, branch in enumerate(model.branches, start=1):
        prefix = _join(name, f"branch{number}")
        score = _lower_unit(trace, branch, prefix, read)
        if model.scores == "softmax":
            softmax = _join(prefix, "softmax")
            score = trace.add(Softmax(name=softmax, inputs=(score,), output=softmax))
        scores.append(score)
    concat = _join(name, "concat")
    combined = trace.add(Concat(name=concat, inputs=tuple(scores), output=concat))
    return _lower_unit(trace, model.head, _join(name, HEAD), combined)


def _sequential(trace: _Trace, submodel: nn.Sequential, name: str, read: str) -> str:
    for unit_name, unit in submodel.named_children():
        read = _lower_unit(trace, unit, _join(name, unit_name), read)
    return read


def _conv_relu_pool(trace: _Trace, unit: ConvReluPool, name: str, read: str) -> str:
    # The unit pools before its ReLU. ReLU is monotone, so the result is the same with ReLU first.
    return _add_halving(trace, _join(name, "pool"), _add_conv(trace, unit.conv, name, read, "relu"))


def _conv_norm(trace: _Trace, unit: ConvNorm, name: str, read: str) -> str:
    return _add_normed(trace, unit.conv, unit.norm, name, read, "relu" if unit.relu else "none")


def _residual(trace: _Trace, unit: Residual, name: str, read: str) -> str:
    first = _lower_unit(trace, unit.first, _join(name, "first"), read)
    second = _lower_unit(trace, unit.second, _join(name, "second"), first)
    return _add_sum(trace, _join(name, "add"), (read, second), "relu")


def _separable(trace: _Trace, unit: Separable, name: str, read: str) -> str:
    filtered = _lower_unit(trace, unit.depthwise, _join(name, "depthwise"), read)
    mixed = _lower_unit(trace, unit.pointwise, _join(name, "pointwise"), filtered)
    return _add_sum(trace, _join(name, "add"), (read, mixed)) if unit.shortcut else mixed


def _loop(trace: _Trace, unit: Loop, name: str, read: str) -> str:
    """Passes are numbered from 1 and share the weights of the first."""
    norms: Iterator[Norm] = iter(unit.norms)  # type: ignore[arg-type]
    base, number, unmixed = "", 0, len(unit.norms) - len(unit.mix)
    mixed = ""
    for group, passes in enumerate(unit.passes):
        if group:
            read = _lower_unit(trace, unit.halve, _join(name, f"halve{group}"), read)
        for _ in range(passes):
            number += 1
            conv = _join(name, f"pass{number}")
            convolved = _add_normed(trace, unit.conv, next(norms), conv, read, "relu", shares=base)
            base = base or conv
            read = _add_sum(trace, _join(conv, "add"), (read, convolved))
            if number > unmixed:
                scale: ChannelScale = unit.mix[number - unmixed - 1]  # type: ignore[assignment]
                # Added right after the state is computed, so that the state need not stay in memory.
                mixed = _add_mixed(trace, scale, _join(name, f"mix{number}"), read, mixed)
    return mixed or read


def _add_mixed(trace: _Trace, scale: ChannelScale, name: str, state: str, mixed: str) -> str:
    """Add a state's scaled mean over all positions to the mixture so far ("" for none)."""
    term = _lower_unit(trace, scale, name, _add_mean(trace, _join(name, "mean"), state))
    return _add_sum(trace, _join(name, "add"), (mixed, term)) if mixed else term


def _halve(trace: _Trace, unit: Halve, name: str, read: str) -> str:
    return _add_halving(trace, name, read, unit.pooling)


def _global_pool(trace: _Trace, _unit: GlobalPool, name: str, read: str) -> str:
    return _add_mean(trace, name, read)


def _channel_scale(trace: _Trace, unit: ChannelScale, name: str, read: str) -> str:
    weights, bias = _array(unit.factor.view(1, 1, -1)), _array(unit.offset)
    return trace.add(DepthwiseConv2d(name=name, inputs=(read,), output=name, weights=weights, bias=bias))


def _dense_classifier(trace: _Trace, unit: DenseClassifier, name: str, read: str) -> str:
    shape, features = trace.shape(read), unit.dense.in_features
    if len(shape) != 3 or math.prod(shape) != features:
        raise UsageError(
            f"{name} takes {features} values, but its input is {shape}: is this the model's image size?",
            code="usage-graph-lower",
        )
    rows, columns, channels = shape
    # torch flattens channel by channel, the graph position by position.
    by_position = unit.dense.weight.reshape(-1, channels, rows, columns).permute(0, 2, 3, 1).flatten(1)
    weights, bias = _array(by_position), _bias(unit.dense.bias, name)
    return trace.add(Dense(name=name, inputs=(_flatten(trace, name, read),), output=name, weights=weights, bias=bias))


def _conv_classifier(trace: _Trace, unit: ConvClassifier, name: str, read: str) -> str:
    convolved = _add_conv(trace, unit.conv, name, read, "none")
    if trace.shape(convolved)[:2] != (1, 1):
        raise UsageError(
            f"{name} returns a map of {trace.shape(convolved)}, not one score per class: is the image size correct?",
            code="usage-graph-lower",
        )
    return _flatten(trace, name, convolved)


def _head(trace: _Trace, head: Head, name: str, read: str) -> str:
    hidden = _add_dense(trace, head.hidden, _join(name, "hidden"), read, "relu")
    return _add_dense(trace, head.output, _join(name, "output"), hidden, "none")


# The modules differ in type, so their common parameter has to be Any; `_lower_unit` looks up by exact type.
_LOWERINGS: Mapping[type[nn.Module], Callable[[_Trace, Any, str, str], str]] = {
    UnifiedModel: _unified,
    nn.Sequential: _sequential,
    ConvReluPool: _conv_relu_pool,
    ConvNorm: _conv_norm,
    Residual: _residual,
    Separable: _separable,
    Loop: _loop,
    Halve: _halve,
    GlobalPool: _global_pool,
    ChannelScale: _channel_scale,
    DenseClassifier: _dense_classifier,
    ConvClassifier: _conv_classifier,
    Head: _head,
}


def _add_conv(trace: _Trace, conv: nn.Conv2d, name: str, read: str, activation: Activation) -> str:
    return _add_convolution(trace, conv, name, read, activation, (conv.weight, conv.bias))


def _add_normed(
    trace: _Trace, conv: nn.Conv2d, norm: Norm, name: str, read: str, activation: Activation, *, shares: str = ""
) -> str:
    """A convolution and the normalization after it as one convolution."""
    if conv.bias is not None:
        raise UsageError(
            f"{name} has a bias before its normalization: expected a convolution without one", code="usage-graph-lower"
        )
    weight, offset = conv.weight.detach(), norm.bias.detach()
    # The meta device has no numbers to fold, and the arithmetic would double the time to count costs.
    if not weight.is_meta:
        factor, offset = norm.affine()
        weight = weight * factor.view(-1, 1, 1, 1)
    return _add_convolution(trace, conv, name, read, activation, (weight, offset), shares=shares)


def _add_convolution(
    trace: _Trace,
    conv: nn.Conv2d,
    name: str,
    read: str,
    activation: Activation,
    numbers: tuple[torch.Tensor, torch.Tensor | None],
    *,
    shares: str = "",
) -> str:
    """A convolution with the geometry of `conv` and the given weights [C', C / groups, kh, kw] and biases."""
    plain = (conv.dilation, conv.padding_mode) == ((1, 1), "zeros")
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
    if not plain or isinstance(conv.padding, str) or not (conv.groups == 1 or depthwise):
        raise UsageError(
            f"{name} is {conv}: expected no dilation, one group or one per channel, and numeric zero padding",
            code="usage-graph-lower",
        )
    rows, columns = conv.padding
    stride_rows, stride_columns = conv.stride
    weights, bias = numbers
    by_position = weights[:, 0].permute(1, 2, 0) if depthwise else weights.permute(0, 2, 3, 1)
    kind = DepthwiseConv2d if depthwise else Conv2d
    return trace.add(
        kind(
            name=name,
            inputs=(read,),
            output=name,
            weights=_array(by_position),
            bias=_bias(bias, name),
            stride=(stride_rows, stride_columns),
            padding=(rows, rows, columns, columns),
            activation=activation,
            shares=shares,
        )
    )


def _add_halving(trace: _Trace, name: str, read: str, pooling: Pooling = "max") -> str:
    kind = MaxPool2d if pooling == "max" else AveragePool2d
    return trace.add(kind(name=name, inputs=(read,), output=name, kernel=(2, 2), stride=(2, 2)))


def _add_mean(trace: _Trace, name: str, read: str) -> str:
    """The mean of each channel over all positions, as a map of one position."""
    rows, columns, _ = trace.shape(read)
    return trace.add(AveragePool2d(name=name, inputs=(read,), output=name, kernel=(rows, columns), stride=(1, 1)))


def _add_sum(trace: _Trace, name: str, reads: tuple[str, str], activation: Activation = "none") -> str:
    return trace.add(Add(name=name, inputs=reads, output=name, activation=activation))


def _add_dense(trace: _Trace, dense: nn.Linear, name: str, read: str, activation: Activation) -> str:
    weights, bias = _array(dense.weight), _bias(dense.bias, name)
    return trace.add(Dense(name=name, inputs=(read,), output=name, weights=weights, bias=bias, activation=activation))


def _flatten(trace: _Trace, name: str, read: str) -> str:
    flatten = _join(name, "flatten")
    values = trace.tensors[read].elements
    return trace.add(Reshape(name=flatten, inputs=(read,), output=flatten, shape=(values,)))


def _bias(bias: torch.Tensor | None, name: str) -> FloatArray:
    if bias is None:
        raise UsageError(f"{name} has no bias: expected a layer with one", code="usage-graph-lower")
    return _array(bias)


def _array(parameter: torch.Tensor) -> FloatArray:
    """A float32 copy, since torch trains in place; for the meta device, zeros that take no memory."""
    if parameter.is_meta:
        return np.broadcast_to(np.zeros((), np.float32), tuple(parameter.shape))
    copied: FloatArray = parameter.detach().to("cpu", torch.float32).numpy().copy()
    return copied


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
