"""Networks and cards for the tests of exporters and of what runs them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from thaw.data.images import InputSpec
from thaw.export.card import ModelCard
from thaw.graph.calibrate import calibrate
from thaw.graph.lower import lower
from thaw.graph.quantize import quantize
from thaw.models.families import PaperSpec
from thaw.models.unify import UnifySpec, build_unified


@lru_cache(maxsize=4)
def paper_graph(shape, precision="int8"):
    """The paper's network for images (H, W, C) and 10 classes with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = build_unified(PaperSpec(), UnifySpec(), shape, 10).eval()
    graph = lower(module, shape=shape, mean=(0.3,) * shape[2], std=(0.25,) * shape[2], classes=10)
    if precision == "float":
        return graph
    images = np.random.default_rng(2).integers(0, 256, (64, *shape), np.uint8)
    return quantize(graph, calibrate(graph, images)["minmax"])


def card_of(graph, name="sample"):
    """A card that fits a graph."""
    height, width, channels = graph.tensor(graph.input).shape
    scores = graph.tensor(graph.outputs[-1])
    input_spec = InputSpec(
        height=height, width=width, channels=channels, fit="stretch", mean=(0.3,) * channels, std=(0.25,) * channels
    )
    count = max(2, scores.elements) if scores.dtype != "int32" else 5
    return ModelCard(name=name, classes=tuple(f"class{index}" for index in range(count)), input_spec=input_spec)
