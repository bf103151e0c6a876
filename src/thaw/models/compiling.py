"""Compile the C that a network trains with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from thaw.kernels import depthwise, separable
from thaw.kernels.library import compile_all
from thaw.models.blocks import Separable
from thaw.models.depthwise import DepthwiseConv


def compile_kernels(module: nn.Module, dtype: torch.dtype) -> None:
    """Compile the C of convolutions in `module` for maps of `dtype`: all at the same time, before the first step.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    parts = list(module.modules())
    kinds = {(part.kernel_size[0], part.stride[0]) for part in parts if isinstance(part, DepthwiseConv)}
    loaders: list[Callable[[], object]] = [partial(depthwise.compiled, dtype, *kind) for kind in sorted(kinds)]
    if any(isinstance(part, Separable) for part in parts):
        loaders.append(partial(separable.compiled, dtype))
    compile_all(loaders)
