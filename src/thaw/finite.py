"""Reject outputs that are not finite: `argmax` of NaN would be class 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import NotFiniteError


def check_finite(outputs: npt.NDArray[Any], what: str) -> None:
    """Reject outputs that contain NaN or infinity.

    Args:
        outputs: scores or probabilities [N, ...] of N images, of any dtype.
        what: the source of the outputs, for the message, such as "the network".

    Raises:
        NotFiniteError: when a value is NaN or infinite.
    """
    if outputs.dtype.kind != "f" or np.isfinite(outputs).all():
        return
    rows = ~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    raise NotFiniteError(
        f"{what} computes NaN or infinity for {int(rows.sum()):,} of {len(rows):,} images\n"
        "The weights are damaged or training diverged: restore the model file, or train again."
    )
