"""A trained torch module -> Graph; the only file of this room that knows torch.

torch keeps feature maps as [C, H, W] and convolution weights as [C', C, kh, kw]; the graph keeps them as (H, W, C) and
[C', kh, kw, C].
Shapes: H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from thaw.errors import UsageError
from thaw.graph.cost import Cost, count_cost
from thaw.graph.graph import Graph
from thaw.graph.operation import Activation
from thaw.graph.ops import Concat, Conv2d, Dense, MaxPool2d, Op, Reshape, Scale, Softmax
from thaw.graph.tensors import IMAGE, LOGITS, PROBABILITIES, FloatArray, Shape, Tensor
from thaw.models.blocks import ConvClassifier, ConvReluPool, DenseClassifier
from thaw.models.families import FamilySpec
from thaw.models.fusion import HEAD, FusionSpec, Head, UnifiedModel, build_unified


def lower(
    module: nn.Module, *, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float], classes: int
) -> Graph:
    """The graph of what `module` computes in evaluation mode, from raw pixels to class probabilities.

    The graph takes "image", uint8 (H, W, C), scales it by `(x / 255 - mean) / std`, and gives "logits" and
    "probabilities", float32 (K,) each; any other tensor has the name of the operation that writes it. Weights are
    copied, as float32, and dropout is left out.

    Args:
        module: a UnifiedModel, or a submodel (an nn.Sequential of named units); [B, C, H, W] -> logits [B, K].
        shape: (H, W, C) of the image.
        mean: one a channel, as in the input contract.
        std: one a channel, above 0.
        classes: K.

    Raises:
        UsageError: for a module that has no lowering, or that does not take `shape` or does not give `classes` logits.
    """
    trace = _Trace(Tensor(name=IMAGE, shape=shape, dtype="uint8"))
    scale = Scale(
        name="scale", inputs=(IMAGE,), output="scale", mean=tuple(map(float, mean)), std=tuple(map(float, std))
    )
    last = _lower_unit(trace, module, "", trace.add(scale))
    if trace.shape(last) != (classes,):
        raise UsageError(f"the model gives scores of shape {trace.shape(last)}: expected ({classes},), one a class")
    trace.rename_last(LOGITS)
    trace.add(Softmax(name="softmax", inputs=(LOGITS,), output=PROBABILITIES))
    return Graph(
        tensors=tuple(trace.tensors.values()), ops=tuple(trace.ops), input=IMAGE, outputs=(LOGITS, PROBABILITIES)
    )


def layer_table(spec: FamilySpec, fusion: FusionSpec, shape: tuple[int, int, int], classes: int) -> Cost:
    """What the unified model of `spec` and `fusion` costs for images (H, W, C) and K classes, before any training.

    No weights are made: no random numbers are drawn, and a network too large for memory can be looked at.

    Raises:
        UsageError: when the image is too small for the layers, or `classes` below 2.
    """
    with torch.device("meta"):
        module = build_unified(spec, fusion, shape, classes)
    channels = shape[2]
    return count_cost(lower(module, shape=shape, mean=(0.0,) * channels, std=(1.0,) * channels, classes=classes))


class _Trace:
    """The operations so far, and the tensors that follow from them."""

    def __init__(self, image: Tensor) -> None:
        self.tensors = {image.name: image}
        self.ops: list[Op] = []

    def add(self, op: Op) -> str:
        """Append the operation; the name of the tensor that it writes."""
        written = op.infer([self.tensors[name] for name in op.inputs])
        self._refuse_taken(op.output)
        self.ops.append(op)
        self.tensors[op.output] = written
        return op.output

    def shape(self, name: str) -> Shape:
        """Of the tensor of that name."""
        return self.tensors[name].shape

    def rename_last(self, name: str) -> None:
        """Give the tensor that the last operation writes another name; nothing has read it yet."""
        written = self.tensors.pop(self.ops[-1].output)
        self._refuse_taken(name)
        self.ops[-1] = replace(self.ops[-1], output=name)
        self.tensors[name] = replace(written, name=name)

    def _refuse_taken(self, name: str) -> None:
        if name in self.tensors:
            raise UsageError(f"the name {name!r} is taken already: a unit of the model needs another one")


def _lower_unit(trace: _Trace, module: nn.Module, name: str, read: str) -> str:
    """Append what `module` does to tensor `read`, under names that begin with `name`; the tensor that it gives."""
    lowering = _LOWERINGS.get(type(module))
    if lowering is None:
        known = ", ".join(kind.__name__ for kind in _LOWERINGS)
        raise UsageError(
            f"{name or 'the model'} is a {type(module).__name__}, which has no lowering: expected one of {known}"
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
    joined = trace.add(Concat(name=concat, inputs=tuple(scores), output=concat))
    return _lower_unit(trace, model.head, _join(name, HEAD), joined)


def _sequential(trace: _Trace, submodel: nn.Sequential, name: str, read: str) -> str:
    for unit_name, unit in submodel.named_children():
        read = _lower_unit(trace, unit, _join(name, unit_name), read)
    return read


def _conv_relu_pool(trace: _Trace, unit: ConvReluPool, name: str, read: str) -> str:
    # The unit pools before its ReLU. ReLU is monotone, so the numbers are equal where it comes with the convolution.
    convolved = _add_conv(trace, unit.conv, name, read, "relu")
    pool = _join(name, "pool")
    return trace.add(MaxPool2d(name=pool, inputs=(convolved,), output=pool, kernel=(2, 2), stride=(2, 2)))


def _dense_classifier(trace: _Trace, unit: DenseClassifier, name: str, read: str) -> str:
    shape, features = trace.shape(read), unit.dense.in_features
    if len(shape) != 3 or math.prod(shape) != features:
        raise UsageError(f"{name} takes {features} values, but {shape} reaches it: is this the model's image size?")
    rows, columns, channels = shape
    # torch flattens channel by channel, the graph position by position.
    by_position = unit.dense.weight.reshape(-1, channels, rows, columns).permute(0, 2, 3, 1).flatten(1)
    weights, bias = _array(by_position), _bias(unit.dense, name)
    return trace.add(Dense(name=name, inputs=(_flatten(trace, name, read),), output=name, weights=weights, bias=bias))


def _conv_classifier(trace: _Trace, unit: ConvClassifier, name: str, read: str) -> str:
    convolved = _add_conv(trace, unit.conv, name, read, "none")
    if trace.shape(convolved)[:2] != (1, 1):
        raise UsageError(
            f"{name} gives a map of {trace.shape(convolved)}, not one score a class: is this the model's image size?"
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
    DenseClassifier: _dense_classifier,
    ConvClassifier: _conv_classifier,
    Head: _head,
}


def _add_conv(trace: _Trace, conv: nn.Conv2d, name: str, read: str, activation: Activation) -> str:
    plain = (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    if not plain or isinstance(conv.padding, str):
        raise UsageError(
            f"{name} is {conv}: expected stride 1, no dilation, one group, and zero padding given in numbers"
        )
    rows, columns = conv.padding
    weights, bias = _array(conv.weight.permute(0, 2, 3, 1)), _bias(conv, name)
    padding = (rows, rows, columns, columns)
    return trace.add(
        Conv2d(
            name=name, inputs=(read,), output=name, weights=weights, bias=bias, padding=padding, activation=activation
        )
    )


def _add_dense(trace: _Trace, dense: nn.Linear, name: str, read: str, activation: Activation) -> str:
    weights, bias = _array(dense.weight), _bias(dense, name)
    return trace.add(Dense(name=name, inputs=(read,), output=name, weights=weights, bias=bias, activation=activation))


def _flatten(trace: _Trace, name: str, read: str) -> str:
    flatten = _join(name, "flatten")
    values = trace.tensors[read].elements
    return trace.add(Reshape(name=flatten, inputs=(read,), output=flatten, shape=(values,)))


def _bias(layer: nn.Conv2d | nn.Linear, name: str) -> FloatArray:
    if layer.bias is None:
        raise UsageError(f"{name} has no bias: expected a layer with one")
    return _array(layer.bias)


def _array(parameter: torch.Tensor) -> FloatArray:
    """A float32 copy, since torch trains in place; a parameter that has no values gives zeros that take no memory."""
    if parameter.is_meta:
        return np.broadcast_to(np.zeros((), np.float32), tuple(parameter.shape))
    copied: FloatArray = parameter.detach().to("cpu", torch.float32).numpy().copy()
    return copied


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
