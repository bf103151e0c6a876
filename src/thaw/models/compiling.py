"""Compile the C that a network trains with."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import nn

from thaw.kernels import depthwise, separable
from thaw.models.blocks import Separable
from thaw.models.depthwise import DepthwiseConv


def compile_kernels(module: nn.Module, dtype: torch.dtype) -> None:
    """Compile the C of convolutions in `module` for maps of `dtype`: all at the same time, before the first step.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    parts = list(module.modules())
    kinds = {(part.kernel_size[0], part.stride[0]) for part in parts if isinstance(part, DepthwiseConv)}
    jobs: list[Callable[[], object]] = [partial(depthwise.compiled, dtype, *kind) for kind in sorted(kinds)]
    if any(isinstance(part, Separable) for part in parts):
        jobs.append(partial(separable.compiled, dtype))
    with ThreadPoolExecutor(max(1, len(jobs)), "thaw-compile") as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result()
