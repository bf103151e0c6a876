"""Photographs and candidates for the tests of budgets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from thaw.graph.lower import layer_table
from thaw.models.families import ResidualSpec
from thaw.recipe.candidates import Candidate


def draw_photos(folder, sizes, *, gray=False, each=10):
    """Class folders of noise, with a tint per class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("one", "three", "two")):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            height, width = sizes[number % len(sizes)]
            pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
            pixels[..., label] += 100
            image = Image.fromarray(pixels)
            (image.convert("L") if gray else image).save(folder / name / f"{number}.png")
    return folder


def made_candidate(side, parameters, macs, evenness, stem="none"):
    spec = ResidualSpec(stem_reduction=stem)
    cost = replace(layer_table(spec, None, (16, 16, 3), 3), parameters=parameters, macs=macs)
    return Candidate(shape=(side, side, 3), spec=spec, cost=cost, evenness=evenness)
