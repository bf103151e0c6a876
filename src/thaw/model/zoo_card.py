"""card.json: the record of a model in the zoo; docs/zoo.md describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictStr, model_validator

from thaw.data.images import InputSpec
from thaw.errors import ModelFileError, RunError, UsageError
from thaw.files import read_document
from thaw.model.zoo import CARD_FILE, ZOO_PREFIX, folder_of, zoo_folders
from thaw.plain import Count, Real, Share, Whole, as_plain, checked_dataclass, from_plain
from thaw.quoting import shown

CARD_SCHEMA = 1
_Size = Annotated[Whole, Field(ge=0)]
_MACHINE = ("cpu", "os", "python", "thaw", "torch")


@checked_dataclass(frozen=True, kw_only=True)
class Measured:
    """An accuracy (0 to 1) on `count` images, with its 95 % Wilson interval."""

    accuracy: Share
    accuracy_ci95: tuple[Share, Share]
    count: Count

    @model_validator(mode="after")
    def _check_interval(self) -> Measured:
        low, high = self.accuracy_ci95
        if not low <= self.accuracy <= high:
            raise ValueError(f"accuracy = {self.accuracy}: expected a number from {low} to {high}")
        return self

    @classmethod
    def of(cls, part: Mapping[str, Any]) -> Measured:
        """Return the figures in a part of metrics.json."""
        low, high = map(float, part["accuracy_ci95"])
        return cls(accuracy=float(part["accuracy"]), accuracy_ci95=(low, high), count=int(part["count"]))

    @property
    def hits(self) -> int:
        """Number of images classified correctly."""
        return round(self.accuracy * self.count)


@checked_dataclass(frozen=True, kw_only=True)
class SeedResult:
    """The result of one seed: test accuracy in float32 and in int8, and validation accuracy (0 to 1)."""

    seed: _Size
    accuracy: Share
    int8_accuracy: Share
    validation_accuracy: Share


@checked_dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean accuracy over seeds, and half of its 95 % Student-t interval; None for a single seed."""

    mean: Share
    ci95_half_width: Annotated[Real, Field(ge=0)] | None

    def __str__(self) -> str:
        """Such as "98.76% ± 0.12%"."""
        return f"{self.mean:.2%}" + ("" if self.ci95_half_width is None else f" ± {self.ci95_half_width:.2%}")


@checked_dataclass(frozen=True, kw_only=True)
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
        kernels: what computed the training, "compiled" kernels or "torch" alone.
        seconds: training time of this model.
        environment: versions and hardware, as `thaw.evidence.environment.environment` returns them.
    """

    name: StrictStr
    dataset: StrictStr
    classes: tuple[StrictStr, ...]
    input: Mapping[StrictStr, Any]
    parameters: Count
    macs: Count
    test: Measured
    int8: Measured
    seeds: tuple[SeedResult, ...]
    mean: Mean
    int8_mean: Mean
    flash_bytes: _Size
    ram_bytes: _Size
    litert_bytes: _Size | None
    recipe: StrictStr
    overrides: tuple[StrictStr, ...]
    seed: _Size
    command: StrictStr
    fingerprint: StrictStr
    device: StrictStr
    precision: StrictStr
    kernels: StrictStr
    seconds: Annotated[Real, Field(ge=0)]
    environment: Mapping[StrictStr, Any]

    @model_validator(mode="after")
    def _check_environment(self) -> ZooCard:
        absent = [key for key in _MACHINE if not isinstance(self.environment.get(key), str)]
        if absent:
            raise ValueError(f"environment.{absent[0]} = {shown(self.environment.get(absent[0]))}: expected a string")
        try:
            InputSpec.from_dict(self.input)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def device_ram_bytes(self) -> int:
        """RAM of the int8 C code on a device: `ram_bytes`, the image, uint8 [H, W, C], and the scores, int8 [K]."""
        image = math.prod(int(self.input[side]) for side in ("height", "width", "channels"))
        return self.ram_bytes + image + len(self.classes)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of card.json."""
        return {"schema": CARD_SCHEMA, **as_plain(self)}


def read_card(folder: Path) -> ZooCard:
    """Return the card in the folder of a zoo model.

    Raises:
        ModelFileError: if it cannot be read, or is not a card.
    """
    path = folder / CARD_FILE
    try:
        content = read_document(path, remedy="reinstall thaw")
    except RunError as error:
        raise ModelFileError(str(error), code="model-file-card") from error
    return card_of(content, path)


def card_of(content: Mapping[str, Any], path: Path) -> ZooCard:
    """Return the card in a JSON object that was read from `path`.

    Raises:
        ModelFileError: for another schema, or naming the value that is missing, unknown or invalid.
    """
    if content.get("schema") != CARD_SCHEMA:
        raise ModelFileError(
            f"{path} has schema {shown(content.get('schema'))}; this version reads {CARD_SCHEMA}",
            code="model-file-card",
        )
    try:
        return from_plain(ZooCard, {key: value for key, value in content.items() if key != "schema"}, "card")
    except UsageError as error:
        raise ModelFileError(f"{path} is not a valid card: {error}", code="model-file-card") from error


def zoo_card(name: str) -> ZooCard:
    """Return the card of a model that ships with the package. `thaw.Model.load("zoo:NAME")` loads the model.

    Args:
        name: its name, with or without "zoo:".

    Raises:
        ModelFileError: when there is no such model, or its card is damaged.
    """
    return read_card(folder_of(name.removeprefix(ZOO_PREFIX)))


def zoo_cards() -> tuple[ZooCard, ...]:
    """Return the cards of all models that ship with the package, by data set, the most accurate first."""
    cards = [read_card(folder) for folder in zoo_folders()]
    return tuple(sorted(cards, key=lambda card: (card.dataset, -card.mean.mean, card.name)))
