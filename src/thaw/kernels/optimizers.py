"""Steps of NAdam and SGD for all parameters in one call of C.

Networks with some ten thousand parameters have few values per tensor, so torch's optimizers spend their time in calls,
a dozen for each tensor. Here Python only reads the addresses of a tensor and its gradient.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from thaw.kernels.library import FLOAT, INT, POINTER, SIZE, Signatures, load_library

_SIGNATURES: Signatures = {name: [POINTER, SIZE, POINTER] for name in ("thaw_nadam", "thaw_sgd")}


class NAdamStep(ctypes.Structure):
    """The numbers of a NAdam step, by which a parameter changes by (gradient_rate gradient + mean_rate mean) / root."""

    _names = ("decay", "one_minus_beta1", "beta2", "one_minus_beta2", "bias2", "epsilon", "gradient_rate", "mean_rate")
    _fields_ = tuple((name, FLOAT) for name in _names)


class SGDStep(ctypes.Structure):
    """The numbers of a step of SGD with momentum; `rate` is the negative learning rate."""

    _fields_ = (("decay", FLOAT), ("momentum", FLOAT), ("rate", FLOAT), ("nesterov", INT))


class _Item(ctypes.Structure):
    _fields_ = (*((name, POINTER) for name in ("parameter", "gradient", "first", "second")), ("count", SIZE))


class Slots(NamedTuple):
    """A parameter and its moments, float32 of one shape and in one memory format; SGD has no second moment."""

    parameter: Tensor
    first: Tensor
    second: Tensor | None = None


@cache
def compiled() -> ctypes.CDLL:
    """The C, compiled for this machine on the first call.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    # A square root that reports errors cannot be vectorized.
    return load_library("optimizers.c", _SIGNATURES, ["-fno-math-errno"])


def can_step(parameters: Iterable[Tensor]) -> bool:
    """Whether a `Table` supports these: dense, float32, on the CPU."""
    return all(
        each.device.type == "cpu" and each.dtype == torch.float32 and torch.empty_like(each).stride() == each.stride()
        for each in parameters
    )


def in_format_of(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, or a copy of it with the strides of `parameter`."""
    return tensor if tensor.stride() == parameter.stride() else torch.empty_like(parameter).copy_(tensor)


class Table:
    """Where parameters and their moments are, for the C."""

    def __init__(self, slots: Sequence[Slots]) -> None:
        self._slots = slots
        self._items = (_Item * len(slots))()
        for item, each in zip(self._items, slots, strict=True):
            item.parameter, item.first = each.parameter.data_ptr(), each.first.data_ptr()
            item.second = None if each.second is None else each.second.data_ptr()

    def step(self, numbers: NAdamStep | SGDStep) -> None:
        """Take one step; parameters without a gradient are skipped.

        Raises:
            RuntimeError: when a parameter has another type, shape or memory format than its moments.
        """
        # Copies of gradients have to exist until the C has read them.
        gradients, changed = [], []
        for item, (parameter, first, _) in zip(self._items, self._slots, strict=True):
            gradient = parameter.grad
            item.count = 0 if gradient is None else parameter.numel()
            if gradient is None:
                continue
            if item.parameter != parameter.data_ptr():
                _check_alike(parameter, first)
                item.parameter = parameter.data_ptr()
            gradients.append(in_format_of(parameter, gradient))
            item.gradient = gradients[-1].data_ptr()
            changed.append(parameter)
        function = compiled().thaw_nadam if isinstance(numbers, NAdamStep) else compiled().thaw_sgd
        function(self._items, len(self._items), ctypes.byref(numbers))
        # A backward pass that needs the old values then raises an error, as after a step of torch's optimizers.
        increment_version(changed)


def _check_alike(parameter: Tensor, moment: Tensor) -> None:
    if (parameter.dtype, parameter.shape, parameter.stride()) != (moment.dtype, moment.shape, moment.stride()):
        raise RuntimeError(
            f"a parameter is {parameter.dtype} {list(parameter.shape)}, strides {list(parameter.stride())}: its "
            f"optimizer expected {moment.dtype} {list(moment.shape)}, strides {list(moment.stride())}; make a new one"
        )
