"""Writes FlatBuffers in which equal objects are written once: the format of `.tflite` files.

A FlatBuffer is a tree of tables, vectors and strings that refer to one another by offsets, so references may share an
object. Networks repeat themselves (shapes, scales, options), and sharing saves thousands of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import MissingDependencyError

_DATA_ALIGNMENT = 16
"""Alignment of buffer contents in the `.tflite` schema."""


class FlatWriter:
    """Writes leaves first: each method returns the offset of what it wrote.

    Raises:
        MissingDependencyError: when the package `flatbuffers` is missing.
    """

    def __init__(self) -> None:
        try:
            import flatbuffers
        except ImportError:
            raise MissingDependencyError(
                "writing LiteRT files needs flatbuffers and ai-edge-litert: pip install 'thaw-cnn[litert]'"
            ) from None
        self._builder: Any = flatbuffers.Builder(1024)
        self._written: dict[Hashable, int] = {}

    def text(self, value: str) -> int:
        """A string."""
        return self._once(("text", value), lambda: self._builder.CreateString(value))

    def numbers(self, values: Sequence[int] | Sequence[float] | npt.NDArray[Any], dtype: str) -> int:
        """A vector of numbers of a NumPy dtype, such as "<i4"."""
        array = np.ascontiguousarray(values, dtype)
        return self._once(
            ("numbers", array.dtype.str, array.tobytes()),
            lambda: self._vector(array.tobytes(), array.itemsize, len(array)),
        )

    def data(self, content: bytes) -> int:
        """A vector of bytes, aligned for any numeric type."""
        return self._once(("data", content), lambda: self._vector(content, 1, len(content), _DATA_ALIGNMENT))

    def offsets(self, values: Sequence[int]) -> int:
        """A vector of references to tables or strings."""
        return self._once(("offsets", *values), lambda: self._offsets(values))

    def table(self, schema: ModuleType, kind: str, **fields: Any) -> int:
        """A table of a kind of `schema`, with the given fields."""

        def write() -> int:
            getattr(schema, f"{kind}Start")(self._builder)
            for field, value in fields.items():
                getattr(schema, f"{kind}Add{field}")(self._builder, value)
            return int(getattr(schema, f"{kind}End")(self._builder))

        return self._once((kind, *fields.items()), write)

    def slots(self, **fields: tuple[int, str, Any]) -> int:
        """A table without a schema module: by field, its slot, its type ("offset", "byte", "uint") and its value."""

        def write() -> int:
            builder = self._builder
            builder.StartObject(1 + max((slot for slot, _, _ in fields.values()), default=-1))
            for slot, holds, value in fields.values():
                match holds:
                    case "offset":
                        builder.PrependUOffsetTRelativeSlot(slot, value, 0)
                    case "byte":
                        builder.PrependInt8Slot(slot, value, 0)
                    case _:
                        builder.PrependUint32Slot(slot, value, 0)
            return int(builder.EndObject())

        return self._once(("slots", *fields.items()), write)

    def finish(self, root: int, identifier: str) -> bytes:
        """The finished buffer, with its four-letter identifier."""
        self._builder.Finish(root, file_identifier=identifier.encode())
        return bytes(self._builder.Output())

    def _once(self, key: Hashable, write: Callable[[], int]) -> int:
        if key not in self._written:
            self._written[key] = write()
        return self._written[key]

    def _vector(self, content: bytes, size: int, count: int, alignment: int | None = None) -> int:
        builder = self._builder
        builder.StartVector(size, count, alignment or size)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        return int(builder.EndVector())

    def _offsets(self, values: Sequence[int]) -> int:
        builder = self._builder
        builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            builder.PrependUOffsetTRelative(value)
        return int(builder.EndVector())
