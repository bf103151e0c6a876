"""Windows over a feature map, for convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thaw.graph.tensors import Array, Tensor


def count_windows(size: Sequence[int], kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """Number of windows that fit into (rows, columns), per direction; below 1 if none fits."""
    rows, columns = ((side - window) // step + 1 for side, window, step in zip(size, kernel, stride, strict=True))
    return rows, columns


def sliding_windows(x: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """[N, H, W, C] -> [N, H', W', kh, kw, C], a view."""
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1]].transpose(0, 1, 2, 4, 5, 3)


def lead_of_windows(
    read: Tensor, written: Tensor, stride: tuple[int, int], origin: tuple[int, int] = (0, 0), ahead: int = 0
) -> int:
    """Bytes by which the output must begin before the input, so that no number is overwritten before it is read.

    Windows are computed row by row.

    Args:
        read: the input.
        written: the output.
        stride: (rows, columns) of the input from one position of the output to the next.
        origin: (rows, columns) of padding before the first window.
        ahead: positions that are read before the first one is written: 1 for a kernel that gathers a window first.
    """
    rows, columns, channels = written.shape
    _, in_columns, in_channels = read.shape
    index = np.arange(rows * columns - ahead)
    row, column = np.divmod(index + ahead, columns)
    top, left = origin
    # Later rows begin further left, but never above this one.
    first = np.maximum(0, row * stride[0] - top) * in_columns + np.maximum(0, column * stride[1] - left)
    below = np.where(row + 1 < rows, np.maximum(0, (row + 1) * stride[0] - top) * in_columns, first)
    needed = (index + 1) * channels - np.minimum(first, below) * in_channels
    return int(needed.max(initial=-read.elements))
