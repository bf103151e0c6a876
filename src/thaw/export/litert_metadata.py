"""The metadata of a `.tflite` file: TensorFlow Lite metadata, labels and the model card.

The metadata are a separate FlatBuffer (schema "M001", version 1.1.0) in a buffer of the model. The files that they
name are in an uncompressed ZIP archive at the end of the file, which metadata readers and ZIP programs can open.
"""

from __future__ import annotations

import io
import zipfile

from thaw.export.card import ModelCard
from thaw.export.flat_writer import FlatWriter
from thaw.quoting import json_text, printable

LABELS_FILE = "labels.txt"
CARD_FILE = "card.json"

_IDENTIFIER = "M001"
_PARSER_VERSION = "1.0.0"
# Enumerations and union members of the schema.
_DESCRIPTIONS, _TENSOR_AXIS_LABELS, _TENSOR_VALUE_LABELS = 1, 2, 3
_RGB, _GRAY = 1, 2
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES = 1, 2
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time stamp of archived files; constant, so that equal models give equal files."""


def metadata(card: ModelCard, *, image: str, scores: str, gives_index: bool) -> bytes:
    """The metadata of a model with one input and one output.

    Args:
        card: the model card.
        image: name of the input tensor, which takes raw pixels.
        scores: name of the output tensor.
        gives_index: the output is a class index instead of one score per class.
    """
    writer = FlatWriter()
    text = writer.text
    labels_kind = _TENSOR_VALUE_LABELS if gives_index else _TENSOR_AXIS_LABELS
    labels = writer.slots(name=(0, "offset", text(LABELS_FILE)), type=(2, "byte", labels_kind))
    card_file = writer.slots(name=(0, "offset", text(CARD_FILE)), type=(2, "byte", _DESCRIPTIONS))
    output = writer.slots(
        name=(0, "offset", text(scores)),
        content=(3, "offset", writer.slots(kind=(0, "byte", _FEATURE_PROPERTIES), value=(1, "offset", writer.slots()))),
        files=(6, "offset", writer.offsets([labels])),
    )
    subgraph = writer.slots(
        inputs=(2, "offset", writer.offsets([_image(writer, card, image)])),
        outputs=(3, "offset", writer.offsets([output])),
    )
    model = writer.slots(
        name=(0, "offset", text(printable(card.name))),
        subgraphs=(3, "offset", writer.offsets([subgraph])),
        files=(6, "offset", writer.offsets([card_file])),
        parser=(7, "offset", text(_PARSER_VERSION)),
    )
    return writer.finish(model, _IDENTIFIER)


def with_files(model: bytes, card: ModelCard) -> bytes:
    """The model followed by an archive of its labels, one per line, and its card."""
    files = {
        LABELS_FILE: "".join(f"{printable(name)}\n" for name in card.classes),
        CARD_FILE: json_text(card.as_dict()),
    }
    whole = io.BytesIO(model)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EARLIEST), content.encode())
    return whole.getvalue()


def _image(writer: FlatWriter, card: ModelCard, name: str) -> int:
    """The metadata of the input: size and colors, without normalization."""
    input_spec = card.input_spec
    size = writer.slots(width=(0, "uint", input_spec.width), height=(1, "uint", input_spec.height))
    colors = _GRAY if input_spec.channels == 1 else _RGB
    properties = writer.slots(colors=(0, "byte", colors), size=(1, "offset", size))
    content = writer.slots(kind=(0, "byte", _IMAGE_PROPERTIES), value=(1, "offset", properties))
    return writer.slots(
        name=(0, "offset", writer.text(name)),
        content=(3, "offset", content),
    )
