"""Calibration: the ranges of a float graph's tensors on training images, from which int8 scales follow.

Several methods clip the ranges differently; the validation data choose between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph.graph import Graph
from thaw.graph.interpret import BATCH, trace
from thaw.graph.tensors import Array, Range
from thaw.quoting import shown

ClipMethod = Literal["minmax", "mse"]
METHODS: tuple[ClipMethod, ...] = ("minmax", "mse")
Histogram: TypeAlias = npt.NDArray[np.int64]

_BINS = 4096
_SHARES = np.linspace(0.05, 1.0, 191)
"""Fractions of the smallest and of the largest value that "mse" tries as ends of the range."""


def calibrate(graph: Graph, images: npt.NDArray[np.uint8]) -> dict[ClipMethod, dict[str, Range]]:
    """The range of every tensor whose operation chooses its scale, by method.

    "minmax" is the range of all values. "mse" scales down either end to minimize the mean squared error of 256 steps,
    clipped values included; exact zeros, which every scale represents exactly, do not count.

    Args:
        graph: float32.
        images: uint8 [N, H, W, C], N at least 1; training images.

    Raises:
        UsageError: without images, or when a value is not finite.
    """
    if not len(images):
        raise UsageError("calibration needs at least one image", code="usage-graph-calibrate")
    names = [op.output for op in graph.ops if op.output_scale == "chosen"]
    spans: dict[str, Range] = dict.fromkeys(names, (np.inf, -np.inf))
    for values in _batches(graph, images, names):
        for name in names:
            low, high = float(values[name].min()), float(values[name].max())
            if not np.isfinite((low, high)).all():
                raise UsageError(
                    f"tensor {shown(name)} has values that are not finite: the network cannot be quantized",
                    code="usage-graph-calibrate",
                )
            spans[name] = (min(spans[name][0], low), max(spans[name][1], high))
    counts = {name: np.zeros(_BINS, np.int64) for name in names}
    for values in _batches(graph, images, names):
        for name in names:
            seen = values[name][values[name] != 0].astype(np.float64)
            counts[name] += np.histogram(seen, _BINS, range=_histogram_range(spans[name]))[0]
    return {
        "minmax": spans,
        "mse": {name: _least_error_range(spans[name], counts[name]) for name in names},
    }


def _batches(graph: Graph, images: npt.NDArray[np.uint8], names: Sequence[str]) -> Iterator[dict[str, Array]]:
    for start in range(0, len(images), BATCH):
        yield trace(graph, images[start : start + BATCH], keep=names)


def _histogram_range(span: Range) -> Range:
    # Bins need a width above 0 even if all values are equal.
    margin = max(abs(span[0]), abs(span[1]), float(np.finfo(np.float32).tiny)) * 1e-6
    return span[0] - margin, span[1] + margin


def _least_error_range(span: Range, counts: Histogram) -> Range:
    """`span` with its ends scaled down to minimize the squared error over the histogram."""
    edges = np.linspace(*_histogram_range(span), _BINS + 1)
    centers = (edges[:-1] + edges[1:]) / 2.0
    lows, highs = min(span[0], 0.0) * _SHARES, max(span[1], 0.0) * _SHARES
    errors = _errors(lows, highs, _cut_off(-centers, counts, -lows), _cut_off(centers, counts, highs), counts.sum())
    # Among equals, the last one clips least.
    last = errors.size - 1 - int(np.argmin(errors[::-1, ::-1]))
    low, high = float(lows[last // len(highs)]), float(highs[last % len(highs)])
    return low if span[0] < 0 else span[0], high if span[1] > 0 else span[1]


def _cut_off(
    values: npt.NDArray[np.float64], counts: Histogram, ends: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The summed squared error of clipping the values beyond each of `ends`."""
    return (np.maximum(values - ends[:, None], 0.0) ** 2) @ counts


def _errors(
    lows: npt.NDArray[np.float64],
    highs: npt.NDArray[np.float64],
    below: npt.NDArray[np.float64],
    above: npt.NDArray[np.float64],
    count: int,
) -> npt.NDArray[np.float64]:
    """The summed squared error of every pair of ends, [lows, highs].

    Within the range the error is uniform over a step, with variance step^2 / 12. Clipped values also count with this
    variance: there are few of them, and the two ends can then be evaluated independently.
    """
    steps = (highs[None, :] - lows[:, None]) / 255.0
    return count * steps**2 / 12.0 + below[:, None] + above[None, :]
