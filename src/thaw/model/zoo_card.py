"""card.json: the card of a model of the zoo; docs/zoo.md describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.images import InputSpec
from thaw.errors import ModelFileError, RunError, UsageError
from thaw.files import read_document
from thaw.model.zoo import CARD_FILE, zoo_folders
from thaw.plain import from_plain
from thaw.quoting import shown

CARD_SCHEMA = 1
_HALF_WIDTH = {"ci95_half_width": "half_width"}
_LEAST = {"parameters": 1, "macs": 1, "flash_bytes": 0, "ram_bytes": 0, "litert_bytes": 0, "seed": 0, "seconds": 0}
_MACHINE = ("cpu", "os", "python", "thaw", "torch")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An accuracy on `count` images (0 to 1), and its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    count: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.accuracy <= self.high <= 1.0 or self.count < 1:
            raise UsageError(
                f"accuracy {self.accuracy}, {self.low} to {self.high}, on {self.count} images: expected shares from 0 "
                "to 1 in order, and a count from 1"
            )

    @property
    def hits(self) -> int:
        """Images that were classified correctly."""
        return round(self.accuracy * self.count)

    @classmethod
    def of(cls, part: Mapping[str, Any]) -> Measured:
        """From a part of metrics.json or card.json that has "accuracy", "accuracy_ci95" and "count"."""
        low, high = part["accuracy_ci95"]
        return cls(accuracy=float(part["accuracy"]), low=float(low), high=float(high), count=int(part["count"]))

    def as_dict(self) -> dict[str, Any]:
        """The inverse of `of`."""
        return {"accuracy": self.accuracy, "accuracy_ci95": [self.low, self.high], "count": self.count}


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """The result of one seed, 0 to 1: test accuracies in float32 and int8, and the validation accuracy that selects."""

    seed: int
    accuracy: float
    int8_accuracy: float
    validation_accuracy: float

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "seed": self.seed,
            "accuracy": self.accuracy,
            "int8_accuracy": self.int8_accuracy,
            "validation_accuracy": self.validation_accuracy,
        }


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds, and half of its 95 % Student-t interval; None for a single seed."""

    mean: float
    half_width: float | None

    def __post_init__(self) -> None:
        if not 0.0 <= self.mean <= 1.0 or not 0.0 <= (self.half_width or 0.0) < math.inf:
            raise UsageError(f"mean {self.mean} ± {self.half_width}: expected shares from 0 to 1")

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {"mean": self.mean, "ci95_half_width": self.half_width}


@dataclass(frozen=True, kw_only=True)
class ZooCard:
    """A model of the zoo.

    Attributes:
        name: as in "zoo:NAME".
        dataset: the named data set that it was trained on.
        classes: K names.
        input: the input specification, as its `as_dict`.
        parameters: learned numbers.
        macs: multiply-accumulates for one image.
        test: of this model on the whole test set, in float32.
        int8: the same in int8.
        seeds: the result of each seed; the model is the one that was best on validation images.
        mean: over the seeds, in float32.
        int8_mean: over the seeds, in int8.
        flash_bytes: weights, biases and multipliers of the int8 C, without code.
        ram_bytes: the arena of the int8 C and an allowance for its stack, without input image and scores
            (`device_ram_bytes` includes them).
        litert_bytes: size of the int8 .tflite file; None if it was not written.
        recipe: name of the shipped recipe.
        overrides: settings replaced in it.
        seed: of this model.
        command: makes the model again.
        fingerprint: of the data.
        device: it was trained on, "cpu" or "cuda".
        precision: of the convolutions in training.
        normalization: what computed it in training, "fused" or "torch".
        seconds: duration of its training.
        environment: versions and hardware, as `thaw.evidence.environment.environment`.
    """

    name: str
    dataset: str
    classes: tuple[str, ...]
    input: Mapping[str, Any]
    parameters: int
    macs: int
    test: Measured
    int8: Measured
    seeds: tuple[SeedResult, ...]
    mean: Mean
    int8_mean: Mean
    flash_bytes: int
    ram_bytes: int
    litert_bytes: int | None
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    command: str
    fingerprint: str
    device: str
    precision: str
    normalization: str
    seconds: float
    environment: Mapping[str, Any]

    def __post_init__(self) -> None:
        absent = [key for key in _MACHINE if not isinstance(self.environment.get(key), str)]
        if absent:
            raise UsageError(f"card.environment.{absent[0]}: expected a text")
        for name, limit in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise UsageError(f"card.{name} = {value}: expected a number from {limit}")

    @property
    def device_ram_bytes(self) -> int:
        """RAM of the int8 C on a device: `ram_bytes`, the input image, uint8 [H, W, C], and the scores, int8 [K]."""
        image = math.prod(int(self.input[side]) for side in ("height", "width", "channels"))
        return self.ram_bytes + image + len(self.classes)

    def as_dict(self) -> dict[str, Any]:
        """What card.json holds."""
        return {
            "schema": CARD_SCHEMA,
            "name": self.name,
            "dataset": self.dataset,
            "classes": list(self.classes),
            "input": dict(self.input),
            "parameters": self.parameters,
            "macs": self.macs,
            "test": self.test.as_dict(),
            "int8": self.int8.as_dict(),
            "seeds": [each.as_dict() for each in self.seeds],
            "mean": self.mean.as_dict(),
            "int8_mean": self.int8_mean.as_dict(),
            "flash_bytes": self.flash_bytes,
            "ram_bytes": self.ram_bytes,
            "litert_bytes": self.litert_bytes,
            "recipe": self.recipe,
            "overrides": list(self.overrides),
            "seed": self.seed,
            "command": self.command,
            "fingerprint": self.fingerprint,
            "device": self.device,
            "precision": self.precision,
            "normalization": self.normalization,
            "seconds": self.seconds,
            "environment": dict(self.environment),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ZooCard:
        """The inverse of `as_dict`.

        Raises:
            UsageError: naming what is missing, unknown or of the wrong type.
        """
        tree = {key: value for key, value in content.items() if key != "schema"}
        for name in ("test", "int8"):
            part = tree.get(name)
            interval = part.get("accuracy_ci95") if isinstance(part, dict) else None
            if not isinstance(part, dict) or not isinstance(interval, list) or len(interval) != 2:
                raise UsageError(f"{name}.accuracy_ci95 is not a pair of numbers")
            rest = {key: value for key, value in part.items() if key != "accuracy_ci95"}
            tree[name] = {**rest, "low": interval[0], "high": interval[1]}
        for name in ("mean", "int8_mean"):
            part = tree.get(name)
            if isinstance(part, dict):
                tree[name] = {_HALF_WIDTH.get(key, key): value for key, value in part.items()}
        card = from_plain(cls, tree, "card")
        InputSpec.from_dict(card.input)
        return card


def read_card(folder: Path) -> ZooCard:
    """The card in the folder of a model of the zoo.

    Raises:
        ModelFileError: when it cannot be read, or is not a card.
    """
    path = folder / CARD_FILE
    remedy = f"install thaw again, or seal your own edit: thaw zoo seal {folder.name}"
    try:
        content = read_document(path, mend=remedy)
    except RunError as error:
        raise ModelFileError(str(error)) from error
    return card_of(content, path)


def card_of(content: Mapping[str, Any], path: Path) -> ZooCard:
    """The card in a JSON object that was read from `path`.

    Raises:
        ModelFileError: when it has another schema, or is not a card.
    """
    if content.get("schema") != CARD_SCHEMA:
        raise ModelFileError(
            f"{path} has schema {shown(content.get('schema'))}; this version of thaw reads {CARD_SCHEMA}"
        )
    try:
        return ZooCard.from_dict(content)
    except UsageError as error:
        raise ModelFileError(f"{path} is not a card of a model: {error}") from error


def read_cards() -> tuple[ZooCard, ...]:
    """The cards of all models that ship with the package, by data set, and the most accurate first."""
    cards = [read_card(folder) for folder in zoo_folders()]
    return tuple(sorted(cards, key=lambda card: (card.dataset, -card.mean.mean, card.name)))
