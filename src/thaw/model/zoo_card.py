"""card.json: the record of a model in the zoo; docs/zoo.md describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thaw.data.images import InputSpec
from thaw.errors import ModelFileError, RunError, UsageError
from thaw.files import read_document
from thaw.model.zoo import CARD_FILE, zoo_folders
from thaw.plain import from_plain
from thaw.quoting import shown

CARD_SCHEMA = 1
_LEAST = {"parameters": 1, "macs": 1, "flash_bytes": 0, "ram_bytes": 0, "litert_bytes": 0, "seed": 0, "seconds": 0}
_MACHINE = ("cpu", "os", "python", "thaw", "torch")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An accuracy (0 to 1) on `count` images, with its 95 % Wilson interval."""

    accuracy: float
    accuracy_ci95: tuple[float, float]
    count: int

    def __post_init__(self) -> None:
        low, high = self.accuracy_ci95
        if not 0.0 <= low <= self.accuracy <= high <= 1.0 or self.count < 1:
            raise UsageError(
                f"accuracy {self.accuracy}, interval {low} to {high}, {self.count} images: expected an accuracy from 0 "
                "to 1 inside its interval, and at least 1 image"
            )

    @classmethod
    def of(cls, part: Mapping[str, Any]) -> Measured:
        """Return the figures in a part of metrics.json."""
        low, high = map(float, part["accuracy_ci95"])
        return cls(accuracy=float(part["accuracy"]), accuracy_ci95=(low, high), count=int(part["count"]))

    @property
    def hits(self) -> int:
        """Number of images classified correctly."""
        return round(self.accuracy * self.count)


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """Accuracies (0 to 1) of one seed: on test images in float32 and int8, and on the validation images that chose."""

    seed: int
    accuracy: float
    int8_accuracy: float
    validation_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean accuracy over seeds, and half of its 95 % Student-t interval; None for one seed."""

    mean: float
    ci95_half_width: float | None

    def __post_init__(self) -> None:
        if not 0.0 <= self.mean <= 1.0 or not 0.0 <= (self.ci95_half_width or 0.0) < math.inf:
            raise UsageError(f"mean {self.mean} ± {self.ci95_half_width}: expected an accuracy from 0 to 1")

    def __str__(self) -> str:
        """Such as "98.76% ± 0.12%"."""
        return f"{self.mean:.2%}" + ("" if self.ci95_half_width is None else f" ± {self.ci95_half_width:.2%}")


@dataclass(frozen=True, kw_only=True)
class ZooCard:
    """The record of a model in the zoo.

    Attributes:
        name: the name in "zoo:NAME".
        dataset: the named data set that the model was trained on.
        classes: K class names.
        input: the input specification, as `InputSpec.as_dict` writes it.
        parameters: number of learned parameters.
        macs: multiply-accumulates for one image.
        test: accuracy of this model on the whole test set, in float32.
        int8: accuracy of this model on the whole test set, in int8.
        seeds: results of each seed of the recipe; the model is the one with the best validation accuracy.
        mean: mean over the seeds, in float32.
        int8_mean: mean over the seeds, in int8.
        flash_bytes: weights, biases and multipliers of the int8 network in C, without code.
        ram_bytes: arena of the int8 C code and an allowance for its stack; see `device_ram_bytes`.
        litert_bytes: size of the int8 .tflite file; None if it was not written.
        recipe: name of the shipped recipe.
        overrides: settings that differ from the recipe.
        seed: random seed of this model.
        command: the command that trains this model.
        fingerprint: fingerprint of the data.
        device: training device, "cpu" or "cuda".
        precision: dtype of the convolutions in training.
        normalization: how normalization was computed in training, "fused" or "torch".
        seconds: training time of this model.
        environment: versions and hardware, as `thaw.evidence.environment.environment` returns them.
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
            raise UsageError(f"card.environment.{absent[0]}: expected a string")
        for name, limit in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise UsageError(f"card.{name} = {value}: expected at least {limit}")
        InputSpec.from_dict(self.input)

    @property
    def device_ram_bytes(self) -> int:
        """RAM of the int8 C code on a device: `ram_bytes`, the image, uint8 [H, W, C], and the scores, int8 [K]."""
        image = math.prod(int(self.input[side]) for side in ("height", "width", "channels"))
        return self.ram_bytes + image + len(self.classes)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of card.json."""
        return {"schema": CARD_SCHEMA, **asdict(self)}


def read_card(folder: Path) -> ZooCard:
    """Return the card in the folder of a zoo model.

    Raises:
        ModelFileError: if it cannot be read, or is not a card.
    """
    path = folder / CARD_FILE
    try:
        content = read_document(path, mend="reinstall thaw")
    except RunError as error:
        raise ModelFileError(str(error)) from error
    return card_of(content, path)


def card_of(content: Mapping[str, Any], path: Path) -> ZooCard:
    """Return the card in a JSON object that was read from `path`.

    Raises:
        ModelFileError: for another schema, or naming the value that is missing, unknown or invalid.
    """
    if content.get("schema") != CARD_SCHEMA:
        raise ModelFileError(f"{path} has schema {shown(content.get('schema'))}; this version reads {CARD_SCHEMA}")
    try:
        return from_plain(ZooCard, {key: value for key, value in content.items() if key != "schema"}, "card")
    except UsageError as error:
        raise ModelFileError(f"{path} is not a valid card: {error}") from error


def read_cards() -> tuple[ZooCard, ...]:
    """Return the cards of all models that ship with the package, by data set, the most accurate first."""
    cards = [read_card(folder) for folder in zoo_folders()]
    return tuple(sorted(cards, key=lambda card: (card.dataset, -card.mean.mean, card.name)))
