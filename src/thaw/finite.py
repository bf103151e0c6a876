"""What a network answers has to be finite: of NaN, `argmax` makes class 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import NotFiniteError


def check_finite(answers: npt.NDArray[Any], what: str) -> None:
    """Refuse answers that are no numbers.

    Args:
        answers: scores or probabilities [N, ...] of N images, of any dtype.
        what: computed them, such as "the network".

    Raises:
        NotFiniteError: when one of them is NaN or infinite.
    """
    if answers.dtype.kind != "f" or np.isfinite(answers).all():
        return
    rows = ~np.isfinite(answers.reshape(len(answers), -1)).all(axis=1)
    raise NotFiniteError(
        f"{what} computes NaN or infinity for {int(rows.sum()):,} of {len(rows):,} images\n"
        "its weights are damaged or its training diverged: restore the model file, or train again"
    )
