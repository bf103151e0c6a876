"""The model card that every exported file contains: name, input, classes, facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from thaw._version import __version__
from thaw.data.images import InputSpec

Precision = Literal["float", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float", "int8")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Metadata of an exported network.

    Attributes:
        name: any text, such as "mnist-paper".
        classes: K names, in the order of the scores.
        input_spec: the network's input. Normalization is part of the exported network, so a caller only needs size,
            channels, fit and the range of 16-bit images.
        facts: other information, such as "parameters" or "test accuracy"; strings or numbers.
    """

    name: str
    classes: tuple[str, ...]
    input_spec: InputSpec
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form, without the normalization."""
        input_spec = self.input_spec.as_dict()
        return {
            "name": self.name,
            "made_by": f"thaw {__version__}",
            "classes": list(self.classes),
            "input": {
                key: input_spec[key] for key in ("height", "width", "channels", "fit", "range") if key in input_spec
            },
            **{key: value for key, value in self.facts.items() if key not in {"name", "classes", "input"}},
        }
