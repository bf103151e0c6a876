"""The inference operations, one module per operation. torch is imported only for training.

A module defines all of its operation: shape inference, float32 and int8 execution, the trainable (fake-quantized)
form, the bound on rounding, and the memory of its C kernel. Exporters are in `thaw.export`.
"""

from __future__ import annotations

from collections.abc import Mapping

from thaw.graph.ops.add import Add
from thaw.graph.ops.argmax import ArgMax
from thaw.graph.ops.concat import Concat
from thaw.graph.ops.conv2d import Conv2d
from thaw.graph.ops.convolution import Convolution
from thaw.graph.ops.dense import Dense
from thaw.graph.ops.depthwise_conv2d import DepthwiseConv2d
from thaw.graph.ops.operation import Activation, Operation
from thaw.graph.ops.pool import AveragePool2d, MaxPool2d
from thaw.graph.ops.relu import Relu
from thaw.graph.ops.requantize import Requantize
from thaw.graph.ops.reshape import Reshape
from thaw.graph.ops.scale import Scale
from thaw.graph.ops.softmax import Softmax
from thaw.graph.ops.weighted import Weighted

OPERATIONS: Mapping[str, type[Operation]] = {
    operation.kind: operation
    for operation in (
        *(Scale, Conv2d, DepthwiseConv2d, Dense, MaxPool2d, AveragePool2d, Add, Relu, Softmax, ArgMax, Concat),
        *(Reshape, Requantize),
    )
}
"""By kind."""

__all__ = [
    "OPERATIONS",
    "Activation",
    "Add",
    "ArgMax",
    "AveragePool2d",
    "Concat",
    "Conv2d",
    "Convolution",
    "Dense",
    "DepthwiseConv2d",
    "MaxPool2d",
    "Operation",
    "Relu",
    "Requantize",
    "Reshape",
    "Scale",
    "Softmax",
    "Weighted",
]
