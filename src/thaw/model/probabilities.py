"""Class probabilities of images, and the prediction for one image.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from thaw.data.batches import normalize, to_unit
from thaw.data.images import InputSpec
from thaw.finite import check_finite

_BATCH = 512


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction:
    """The prediction for one image.

    Attributes:
        name: name of the image: its path, or its index among the given images, such as "[0]".
        classes: K names.
        probabilities: float64 [K], 0 to 1, in the order of `classes`.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """The probability of `label`, 0 to 1."""
        return float(self.probabilities.max())

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: image, class, probability, and the probabilities of all classes."""
        every = dict(zip(self.classes, map(float, self.probabilities), strict=True))
        return {"image": self.name, "class": self.label, "probability": self.probability, "probabilities": every}

    def __repr__(self) -> str:
        return f"Prediction({self.label!r}, {self.probability:.2%}, name={self.name!r})"


def network_probabilities(
    modules: Sequence[nn.Module], pixels: npt.NDArray[np.uint8], input_spec: InputSpec
) -> npt.NDArray[np.float64]:
    """The mean of the modules' class probabilities, float64 [N, K], for pixels uint8 [N, H, W, C] with N at least 1.

    Raises:
        NotFiniteError: when they are NaN.
    """
    device = next(modules[0].parameters()).device
    rows: list[npt.NDArray[np.float64]] = []
    for module in modules:
        module.eval()
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            chunk = torch.from_numpy(np.array(pixels[start : start + _BATCH])).to(device)
            x = normalize(to_unit(chunk), input_spec)
            total = sum(F.softmax(module(x).double(), dim=1) for module in modules) / len(modules)
            rows.append(torch.as_tensor(total).cpu().numpy())
    made = np.concatenate(rows)
    check_finite(made, "the network")
    return made
