"""The ranges of a float graph's tensors, from images: what an int8 graph's scales are made of.

Calibration sees training images only. How a range is cut is one of a few methods, between which validation data choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph.graph import Graph
from thaw.graph.interpret import BATCH, Array, trace
from thaw.graph.quantize import Range, chooses_scale

ClipMethod = Literal["minmax", "mse"]
METHODS: tuple[ClipMethod, ...] = ("minmax", "mse")
Histogram: TypeAlias = npt.NDArray[np.int64]

_BINS = 4096
_CUTS = np.linspace(0.3, 1.0, 141)
"""Shares of the whole range that "mse" tries."""


def calibrate(graph: Graph, images: npt.NDArray[np.uint8]) -> dict[ClipMethod, dict[str, Range]]:
    """The range of every tensor that will have a scale of its own, by method.

    "minmax" spans everything that was seen. "mse" keeps the share of that range (the same on both sides of 0) that
    makes the mean squared error of 256 steps least, cut-off values included.

    Args:
        graph: float32.
        images: uint8 [N, H, W, C], N at least 1; training images.

    Raises:
        UsageError: without images, or where a value is not finite.
    """
    if not len(images):
        raise UsageError("calibration needs at least one image")
    names = [op.output for op in graph.ops if chooses_scale(op)]
    spans: dict[str, Range] = {name: (np.inf, -np.inf) for name in names}
    for values in _batches(graph, images, names):
        for name in names:
            low, high = spans[name]
            spans[name] = (min(low, float(values[name].min())), max(high, float(values[name].max())))
    for name, span in spans.items():
        if not np.isfinite(span).all():
            raise UsageError(f"tensor {name!r} takes values that are not finite: the network cannot be quantised")
    counts = {name: np.zeros(_BINS, np.int64) for name in names}
    for values in _batches(graph, images, names):
        for name in names:
            counts[name] += np.histogram(values[name], _BINS, range=_histogram_range(spans[name]))[0]
    return {
        "minmax": spans,
        "mse": {name: _least_error_range(spans[name], counts[name]) for name in names},
    }


def _batches(graph: Graph, images: npt.NDArray[np.uint8], names: Sequence[str]) -> Iterator[dict[str, Array]]:
    for start in range(0, len(images), BATCH):
        yield trace(graph, images[start : start + BATCH], keep=names)


def _histogram_range(span: Range) -> Range:
    low, high = span
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _least_error_range(span: Range, counts: Histogram) -> Range:
    """The cut of `span` with the least squared error over the histogram of its values."""
    low, high = _histogram_range(span)
    edges = np.linspace(low, high, _BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2.0
    errors = [_error(centres, counts, (min(span[0], 0.0) * cut, max(span[1], 0.0) * cut)) for cut in _CUTS]
    # The last of equals: cut no more than pays.
    best = float(_CUTS[len(errors) - 1 - int(np.argmin(errors[::-1]))])
    return span[0] * best if span[0] < 0 else span[0], span[1] * best if span[1] > 0 else span[1]


def _error(centres: npt.NDArray[np.float64], counts: Histogram, values: Range) -> float:
    low, high = values
    step = (high - low) / 255.0
    if step <= 0.0:
        return 0.0
    beyond = np.maximum(low - centres, 0.0) + np.maximum(centres - high, 0.0)
    # Within the range an error is spread evenly over a step, whose variance is step^2 / 12.
    return float((counts * np.where(beyond > 0.0, beyond**2, step**2 / 12.0)).sum())
