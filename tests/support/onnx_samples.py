"""Graphs and cards for the tests of ONNX models."""

from __future__ import annotations

from functools import cache

import numpy as np
from graph_samples import random_images

from thaw.data.images import InputSpec
from thaw.export.card import ModelCard
from thaw.export.to_onnx import export_onnx
from thaw.graph.calibrate import calibrate
from thaw.graph.lower import lower
from thaw.graph.quantize import quantize
from thaw.models.families import PaperSpec
from thaw.models.unify import UnifySpec, build_unified


def card_for(graph, **changes):
    rows, columns, channels = graph.tensor(graph.input).shape
    input_spec = InputSpec(height=rows, width=columns, channels=channels, **changes)
    classes = tuple(f"class {index}" for index in range(graph.tensor(graph.outputs[-1]).elements))
    return ModelCard(name="sample", classes=classes, input_spec=input_spec, facts={"parameters": 14_862})


def exported(graph, precision):
    return export_onnx({precision: graph}, card_for(graph))[f"model-{precision}.onnx"]


@cache
def paper_graphs():
    """The paper's network with random weights, float and int8, for 28x28 gray images."""
    import torch

    torch.manual_seed(3)
    module = build_unified(PaperSpec(), UnifySpec(), (28, 28, 1), 10).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3.0)
    graph = lower(module, shape=(28, 28, 1), mean=(0.13,), std=(0.31,), classes=10)
    images = random_images(np.random.default_rng(0), graph, 40)
    return {"float": graph, "int8": quantize(graph, calibrate(graph, images)["minmax"])}
