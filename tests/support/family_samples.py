"""Small networks of every family with random weights, for the tests of deployment."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from graph_samples import random_images

from thaw.graph.calibrate import calibrate
from thaw.graph.lower import lower
from thaw.graph.quantize import quantize
from thaw.models.blocks import ChannelScale, Norm
from thaw.models.families import LoopedSpec, PaperSpec, ResidualSpec, SeparableSpec
from thaw.models.unify import UnifySpec, build_unified

CLASSES = 5
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)

SPECS = {
    "paper": PaperSpec(filters=(3, 5)),
    "residual": ResidualSpec(widths=(4, 5, 8), blocks=(2, 1, 0)),
    "residual, one stage": ResidualSpec(widths=(3,), blocks=(2,)),
    "residual, average": ResidualSpec(widths=(4, 6, 8), blocks=(1, 0, 0), pooling="average"),
    "residual, stem stride": ResidualSpec(widths=(4, 6), blocks=(1, 0), stem_reduction="stride"),
    "residual, stem pool": ResidualSpec(widths=(5, 4), blocks=(1, 1), stem_reduction="pool"),
    "looped": LoopedSpec(stem=4, widths=(4, 6), passes=(2, 3), mixed=2),
    "looped, wide": LoopedSpec(stem=3, widths=(5, 8), passes=(0, 3), mixed=0),
    "looped, one convolution": LoopedSpec(stem=6, widths=(6, 6, 6), passes=(2, 0, 2), shared=True, mixed=3),
    "looped, one convolution, average": LoopedSpec(
        stem=6, widths=(6, 6), passes=(1, 2), pooling="average", shared=True, mixed=2
    ),
    "looped, one convolution, stem pool": LoopedSpec(
        stem=6, widths=(6, 6), passes=(1, 2), pooling="average", shared=True, mixed=0, stem_reduction="pool"
    ),
    "separable": SeparableSpec(widths=(4, 8), blocks=(2, 1)),
    "separable, one channel": SeparableSpec(widths=(1, 3), blocks=(1, 2)),
    "separable, stem stride": SeparableSpec(widths=(4, 6), blocks=(1, 2), stem_reduction="stride"),
}
SHAPES = ((12, 12, 3), (16, 16, 1), (28, 28, 1))


def randomize(module, seed=0):
    """Set statistics, scales and factors that differ from those of a new network, so that folding matters."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=draw) * (high - low) + low)

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, Norm):
                # Scales of either sign: a positive normalization takes the absolute value.
                uniform(part.weight, -1.5, 1.5)
                uniform(part.bias, -0.5, 0.8)
                uniform(part.running_mean, -0.5, 0.5)
                uniform(part.running_var, 0.1, 2.0)
            elif isinstance(part, ChannelScale):
                uniform(part.factor, -0.5, 1.0)
                uniform(part.offset, -0.5, 0.5)
    return module


@cache
def family_module(name, shape, *, fused=False, seed=0):
    """A submodel, or a unified model of two, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        spec = SPECS[name]
        module = build_unified(spec, UnifySpec(hidden=6), shape, CLASSES) if fused else spec.build(shape, CLASSES)
    return randomize(module, seed).eval()


@cache
def family_graph(name, shape, *, fused=False, precision="int8"):
    """The "float" or "int8" graph of `family_module`."""
    module = family_module(name, shape, fused=fused)
    channels = shape[2]
    graph = lower(module, shape=shape, mean=MEAN[:channels], std=STD[:channels], classes=CLASSES)
    if precision == "float":
        return graph
    return quantize(graph, calibrate(graph, random_images(np.random.default_rng(2), graph, 48))["minmax"])


def as_batch(images):
    """uint8 [N, H, W, C] -> input of a module, float32 [N, C, H, W]."""
    channels = images.shape[-1]
    scaled = (images / 255.0 - np.array(MEAN[:channels])) / np.array(STD[:channels])
    return torch.from_numpy(scaled.astype(np.float32)).permute(0, 3, 1, 2)
