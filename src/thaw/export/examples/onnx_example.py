"""Classify an image: `python example.py IMAGE [MODEL]`. Requires NumPy, Pillow and onnxruntime."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime
from preprocess import fit, printable, read_image

FOLDER = Path(__file__).parent


def main(arguments: list[str]) -> None:
    """Print the most likely class of an image file and its probability."""
    if len(arguments) not in (1, 2):
        sys.exit("usage: python example.py IMAGE [MODEL.onnx]")
    # The last by name: the int8 model if there is one.
    model = arguments[1] if len(arguments) == 2 else max(FOLDER.glob("model-*.onnx"))
    options = onnxruntime.SessionOptions()
    # x86 processors without VNNI add int8 products in 16 bits, which saturates; this keeps the sums exact.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    # The model contains its class names and a description of its input.
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}

    # The input is raw pixels, 0 to 255: the model includes scaling and offset.
    pixels = fit(read_image(arguments[0]), facts["input"])
    (probabilities,) = session.run(["probabilities"], {"image": pixels[None]})

    best = int(probabilities[0].argmax())
    # With NaN, argmax would return the first class.
    if not 0.0 <= probabilities[0, best] <= 1.001:
        sys.exit(f"{model} computes NaN or infinity: export the model again")
    print(f"{printable(facts['classes'][best])} {probabilities[0, best]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
