"""Classify an image: `python example.py IMAGE [MODEL]`. Requires NumPy, Pillow and ai-edge-litert."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter
from preprocess import fit, printable, read_image

FOLDER = Path(__file__).parent


def main(arguments: list[str]) -> None:
    """Print the most likely class of an image file and its probability."""
    if len(arguments) not in (1, 2):
        sys.exit("usage: python example.py IMAGE [MODEL.tflite]")
    # The last by name: the int8 model if there is one.
    model = arguments[1] if len(arguments) == 2 else max(FOLDER.glob("model-*.tflite"))
    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    (image,), (scores,) = interpreter.get_input_details(), interpreter.get_output_details()

    # The model contains its class names and a description of its input.
    card = json.loads(zipfile.ZipFile(model).read("card.json"))

    # The input is raw pixels, 0 to 255: the model includes scaling and offset.
    pixels = fit(read_image(arguments[0]), card["input"])
    interpreter.set_tensor(image["index"], pixels[None])
    interpreter.invoke()
    numbers = interpreter.get_tensor(scores["index"])[0]

    best = int(numbers.argmax())
    # An int8 score represents scale * (number - zero point); a float model's scale is 0.
    scale, zero_point = scores["quantization"]
    probability = scale * (int(numbers[best]) - zero_point) if scale else float(numbers[best])
    # With NaN, argmax would return the first class.
    if not 0.0 <= probability <= 1.001:
        sys.exit(f"{model} computes NaN or infinity: export the model again")
    print(f"{printable(card['classes'][best])} {probability:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
