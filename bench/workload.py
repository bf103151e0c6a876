"""What every contender of the benchmark trains, and how the benchmark talks to it; free of any framework.

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
    """Stage 1 on pairs (original, augmented): the same network, optimizer, batch and augmentation for everyone.

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
        """The form that `from_json` takes back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """The inverse of `as_json`."""
        values = json.loads(text)
        return cls(**{**values, "filters": tuple(values["filters"])})

    def load(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Images uint8 [N, H, W, C] and labels int64 [N]."""
        return np.load(Path(self.folder) / "images.npy"), np.load(Path(self.folder) / "labels.npy")

    def warm_up_pairs(self, count: int) -> int:
        """How many of `count` pairs warm up: some 20 steps, the last of them as large as the last one of an epoch."""
        return min(count, 20 * self.batch_size + count % self.batch_size)


class Contender(Protocol):
    """One way to train, in a process of its own."""

    def about(self) -> dict[str, Any]:
        """What it is: "parameters" (int) and "versions" (name -> version); more is passed on into the JSON."""

    def train(self, variant: str, *, warm_up: bool) -> dict[str, float]:
        """Train an epoch, or the warm-up; "seconds" (float), "pairs" (int) and the mean "loss" of the epoch (float)."""


def serve(build: type[Any]) -> None:
    """Make the contender `build(workload)` and train epochs as standard input tells, one JSON object a line.

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
