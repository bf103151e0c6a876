"""The workload of every contender, and the protocol of the benchmark; independent of any framework.

Shapes: N images, H rows, W columns, C channels.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Stage 1 on pairs (original, augmented), with the same network, optimizer, batch size and augmentation for all.

    Attributes:
        folder: holds images.npy, uint8 [N, H, W, C], and labels.npy, int64 [N].
        mean: of the pixels (0 to 1) over the images, subtracted from every pixel.
        deviation: of the same pixels, by which the difference is divided.
        classes: number of classes.
        batch_size: pairs a step.
        learning_rate: NAdam's.
        filters: of the two convolutions of a submodel.
        dropout: probability before the dense layer.
        rotation_degrees: rotation by up to this much either way.
        zoom: scaling by a factor from 1 - zoom to 1 + zoom.
        translation: shift by up to this share of either side; what comes in from outside is black.
        brightness: change by up to this share either way.
        device: "auto", "cpu" or "cuda", for the contenders on PyTorch.
        options: what only one contender understands.
    """

    folder: str
    mean: float
    deviation: float
    classes: int = 10
    batch_size: int = 128
    learning_rate: float = 0.002
    filters: tuple[int, int] = (10, 20)
    dropout: float = 0.1
    rotation_degrees: float = 5.0
    zoom: float = 0.1
    translation: float = 0.06
    brightness: float = 0.1
    device: str = "cpu"
    options: Mapping[str, Any]

    def as_json(self) -> str:
        """Return the input of `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """The inverse of `as_json`."""
        values = json.loads(text)
        return cls(**{**values, "filters": tuple(values["filters"])})

    def load(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return images uint8 [N, H, W, C] and labels int64 [N]."""
        return np.load(Path(self.folder) / "images.npy"), np.load(Path(self.folder) / "labels.npy")

    def warm_up_pairs(self, count: int) -> int:
        """Return the number of warm-up pairs: about 20 steps, with a last batch as large as that of an epoch."""
        return min(count, 20 * self.batch_size + count % self.batch_size)


class Contender(Protocol):
    """One way to train, in its own process."""

    def about(self) -> dict[str, Any]:
        """Return "parameters" (int), "versions" (name -> version), and any other entries for the JSON."""

    def train(self, variant: str, *, warm_up: bool) -> dict[str, float]:
        """Train one epoch, or the warm-up; return "seconds" (float), "pairs" (int) and the mean "loss" (float)."""


def serve(build: type[Any]) -> None:
    """Create the contender `build(workload)` and train epochs on request: one JSON object per line of standard input.

    To each answer it adds "cpu_seconds", of all threads of this process but not of processes that it starts.
    The answers go to what was standard output when the process began; anything that a library prints goes to standard
    error instead.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    contender: Contender = build(Workload.from_json(sys.argv[1]))
    print(json.dumps(contender.about()), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.process_time()
        answer = contender.train(request["variant"], warm_up=request["warm_up"])
        answer["cpu_seconds"] = time.process_time() - started
        print(json.dumps(answer), file=answers)
