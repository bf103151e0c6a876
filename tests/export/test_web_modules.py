"""The page's modules treat pixels and PNG files byte-identically to training and `thaw predict`."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hostile_text import PIECES
from PIL import Image
from web_samples import (
    GRAY,
    GRAY_ALPHA,
    NODE,
    PALETTE,
    RGB,
    RGBA,
    SAMPLES,
    WEB,
    exif_block,
    images_by_node,
    needs_node,
    png_file,
)

from thaw.data.decode import UnreadableImageError, decode_image, orient
from thaw.data.images import InputSpec
from thaw.data.resize import resize
from thaw.quoting import csv_line

pytestmark = needs_node

RESIZE = 'import { resize } from "./resize.js";'
PNG = 'import { decodePng } from "./png.js";'


def resize_cases() -> list[tuple[np.ndarray, InputSpec]]:
    rng = np.random.default_rng(11)
    sizes = [(1, 1), (1, 700), (1000, 1), (28, 28), (32, 32), (27, 29), (1000, 700), (700, 1000), (640, 480), (2, 3)]
    sizes += [tuple(int(side) for side in rng.integers(1, 120, 2)) for _ in range(50)]
    sizes += [(int(rng.integers(1, 1001)), int(rng.integers(1, 701))) for _ in range(12)]
    cases = []
    for number, (height, width) in enumerate(sizes):
        image = rng.integers(0, 256, (height, width, (1, 3)[number % 2]), dtype=np.uint8)
        side = (28, 32, 1, 96, 7)[number % 5]
        other = side if number % 3 else int(rng.integers(1, 64))
        for fit in ("stretch", "crop"):
            channels = (1, 3)[number // 2 % 2]
            cases.append((image, InputSpec(height=side, width=other, channels=channels, fit=fit)))
    # Extremes of every intermediate value.
    cases += [(np.full((901, 3, 3), 255, np.uint8), InputSpec(height=1024, width=1024, channels=3))]
    cases += [(np.full((3, 32768, 1), 255, np.uint8), InputSpec(height=5, width=1023, channels=1))]
    return cases + wide_cases()


def wide_cases() -> list[tuple[np.ndarray, InputSpec]]:
    """16-bit images in and around the range of a model, and all 65,536 values in an image of the target size."""
    rng = np.random.default_rng(12)
    cases = []
    for number, value_range in enumerate([(29500, 30300), (0, 1023), None, (0, 1), (65534, 65535), (7, 60001)]):
        low, high = value_range or (0, 65535)
        margin = (high - low) // 8 + 1
        channels, target = (1, 3)[number % 2], (1, 3)[number // 2 % 2]
        values = rng.integers(low - margin, high + margin, (37, 41, channels)).clip(0, 65535).astype(np.uint16)
        cases.append((values, InputSpec(height=28, width=30, channels=target, fit="crop", range=value_range)))
        every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
        cases.append((every, InputSpec(height=256, width=256, channels=1, range=value_range)))
    return cases


def test_resizing_is_byte_identical(tmp_path: Path) -> None:
    cases = resize_cases()
    given = [
        {
            "bytes": image.tobytes(),
            "shape": dict(zip(("height", "width", "channels"), image.shape, strict=True)),
            "input_spec": input_spec.as_dict(),
            "isWide": image.dtype == np.uint16,
        }
        for image, input_spec in cases
    ]
    answer = (
        "const bytes = bytesOf(`in-${number}`);"
        "const data = each.isWide ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2) : bytes;"
        "return resize({ ...each.shape, data }, each.input_spec);"
    )
    found = images_by_node(tmp_path, RESIZE, answer, given)
    for result, (image, input_spec) in zip(found, cases, strict=True):
        assert np.array_equal(result, resize(image, input_spec)), (image.shape, input_spec)


def test_page_warns_of_another_depth_or_range(tmp_path: Path) -> None:
    script = """
import { depthWarning } from "./resize.js";
const cases = [
    [Uint8Array, [5, 6], null], [Uint16Array, [5, 6], null],
    [Uint8Array, [5, 6], [0, 9]], [Uint16Array, [5, 60], [0, 9]], [Uint16Array, [5, 10, 11], [0, 9]],
];
const told = cases.map(([kind, values, range]) => depthWarning({ data: kind.from(values) }, range ? { range } : {}));
process.stdout.write(JSON.stringify(told));
"""
    shutil.copy(WEB / "resize.js", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(script)
    done = subprocess.run([NODE, "run.js"], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    same, wide, narrow, inside, outside = json.loads(done.stdout)
    assert not same
    assert not inside
    assert "16-bit image" in wide
    assert "8-bit image" in narrow
    assert "range of 0 to 9" in outside


def png_cases() -> dict[str, bytes]:
    rng = np.random.default_rng(5)
    cases = {}
    kinds = [(GRAY, depth) for depth in (1, 2, 4, 8, 16)] + [(PALETTE, depth) for depth in (1, 2, 4, 8)]
    kinds += [(kind, depth) for kind in (RGB, GRAY_ALPHA, RGBA) for depth in (8, 16)]
    for kind, depth in kinds:
        palette = rng.integers(0, 256, 3 * 2**depth, dtype=np.uint8).tobytes() if kind == PALETTE else b""
        for number, (height, width) in enumerate([(1, 1), (1, 9), (13, 1), (2, 3), (17, 23), (40, 31)]):
            pixels = rng.integers(0, 2**depth, (height, width, SAMPLES[kind]))
            for interlaced in (False, True):
                cases[f"{kind} {depth} {height}x{width} {interlaced}"] = png_file(
                    pixels, depth, kind, interlaced=interlaced, palette=palette, seed=number
                )
        few = rng.integers(0, 2, (9, 11, SAMPLES[kind])) * (2**depth - 1)
        if kind in (GRAY, RGB):
            for value in (0, 1, 255, 2**depth - 1):
                hidden = struct.pack(">H", value) * SAMPLES[kind]
                cases[f"{kind} {depth} hides {value}"] = png_file(few, depth, kind, transparency=hidden)
            cases[f"{kind} {depth} hides nothing"] = png_file(few, depth, kind, transparency=b"\0")
        if kind == PALETTE:
            pixels = rng.integers(0, 2**depth, (20, 20, 1))
            for name, alphas in {
                "some": rng.integers(0, 256, 2**depth, dtype=np.uint8).tobytes(),
                "one": b"\xff\x00",
                "first": b"\x00",
                "half": b"\x80",
            }.items():
                cases[f"palette {depth} alpha {name}"] = png_file(
                    pixels, depth, kind, palette=palette, transparency=alphas
                )
            if depth > 1:
                short = palette[: 3 * 2 ** (depth - 1)]
                cases[f"palette {depth} short"] = png_file(pixels, depth, kind, palette=short)
    pixels = rng.integers(0, 256, (5, 7, 3))
    for orientation in range(10):
        cases[f"orientation {orientation}"] = png_file(pixels, 8, RGB, exif=exif_block(orientation))
        cases[f"big-endian {orientation}"] = png_file(pixels, 8, RGB, exif=exif_block(orientation, ">", 4))
        packet = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
        cases[f"xmp {orientation}"] = png_file(pixels, 8, RGB, xmp=packet)
    cases["exif cut short"] = png_file(pixels, 8, RGB, exif=exif_block(6)[:19])
    cases["exif is none"] = png_file(pixels, 8, RGB, exif=b"?")
    cases["junk after the end"] = png_file(pixels, 8, RGB) + b"junk" * 9
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        file = io.BytesIO()
        picture = Image.fromarray(rng.integers(0, 256, (33, 21, 4), dtype=np.uint8), "RGBA")
        picture = picture.convert("L").convert("I") if mode == "I;16" else picture
        picture.convert(mode).save(file, "PNG")
        cases[f"Pillow's {mode}"] = file.getvalue()
    frames = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), "RGB") for _ in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    return {**cases, "animated": file.getvalue()}


@pytest.mark.filterwarnings("ignore")
def test_png_decoding_is_byte_identical(tmp_path: Path) -> None:
    cases = png_cases()
    given = [{"bytes": content} for content in cases.values()]
    found = images_by_node(tmp_path, PNG, "return decodePng(bytesOf(`in-${number}`));", given)
    differing = []
    for (name, content), result in zip(cases.items(), found, strict=True):
        try:
            expected = decode_image(content).pixels
        except UnreadableImageError as error:
            expected = str(error)
        if isinstance(result, str) or isinstance(expected, str):
            if type(result) is not type(expected):
                differing.append((name, str(result)[:40], str(expected)[:40]))
            continue
        # An image with equal channels is gray there; the result is the same.
        if expected.shape[2] != result.shape[2]:
            expected = expected.repeat(3, axis=2)
        if result.dtype != expected.dtype or not np.array_equal(result, expected):
            differing.append((name, result[0, :3].tolist(), expected[0, :3].tolist()))
    assert differing == []


def test_rejects_damaged_png_files(tmp_path: Path) -> None:
    whole = png_file(np.random.default_rng(0).integers(0, 256, (40, 40, 3)), 8, RGB)
    header = whole[:33]
    damaged = {
        "cut": whole[: len(whole) // 2],
        "header only": header,
        "less than a header": whole[:20],
        "no palette": png_file(np.zeros((2, 2, 1), int), 8, PALETTE),
        "no pixels": whole[:16] + struct.pack(">I", 0) + whole[20:],
        "odd depth": whole[:24] + b"\x03" + whole[25:],
        "bytes changed": whole[:60] + bytes(20) + whole[80:],
    }
    given = [{"bytes": content} for content in damaged.values()]
    found = images_by_node(tmp_path, PNG, "return decodePng(bytesOf(`in-${number}`));", given)
    for name, message in zip(damaged, found, strict=True):
        assert isinstance(message, str), name
        assert message.startswith(("a damaged PNG file", "a truncated PNG file")), (name, message)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_agrees_with_the_decoder(tmp_path: Path, orientation: int) -> None:
    image = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    given = [{"bytes": image.tobytes(), "shape": {"height": 4, "width": 6, "channels": 3}}]
    answer = f"return orient({{ ...each.shape, data: bytesOf(`in-${{number}}`) }}, {orientation});"
    (result,) = images_by_node(tmp_path, 'import { orient } from "./exif.js";', answer, given)
    assert np.array_equal(result, orient(image, orientation))


def test_csv_equals_that_of_predict(tmp_path: Path) -> None:
    names = ["plain.png", 'quote".png', "a,b.png", "two\nlines.png", "мышь 鼠.png", "", " space.png", "-1.png", "\t=1"]
    names += PIECES
    classes = ["cat", 'the "dog"', "=a,b"]
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(3), len(names)).astype(np.float32)
    entries = [
        {"name": name, "label": classes[best], "probability": float(row[best]), "probabilities": row.tolist()}
        for name, row, best in zip(names, shares, map(int, shares.argmax(axis=1)), strict=True)
    ]
    (tmp_path / "csv.mjs").write_text((WEB / "csv.js").read_text())
    (tmp_path / "entries.json").write_text(json.dumps([classes, entries]))
    script = (
        'import { csvText } from "./csv.mjs"; import { readFileSync } from "node:fs";'
        'process.stdout.write(csvText(...JSON.parse(readFileSync("entries.json"))));'
    )
    (tmp_path / "run.mjs").write_text(script)
    done = subprocess.run([NODE, "run.mjs"], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    expected = [csv_line(["image", "class", "probability", *classes])]
    expected += [
        csv_line([each["name"], each["label"], each["probability"], *each["probabilities"]]) for each in entries
    ]
    assert done.stdout.decode() == "".join(expected)


def test_drawing_is_centered_like_mnist_and_keeps_its_pen(tmp_path: Path) -> None:
    imports = 'import { centered, rendered } from "./strokes.js"; import { resize } from "./resize.js";'
    strokes = {
        "small in a corner": [[[0.05, 0.05], [0.1, 0.2], [0.15, 0.05]]],
        "large": [[[0.1, 0.05], [0.1, 0.95]], [[0.9, 0.05], [0.9, 0.95]]],
        "a dot": [[[0.9, 0.9]]],
    }
    input_specs = [InputSpec(height=28, width=28, channels=1), InputSpec(height=32, width=16, channels=1)]
    cases = [
        {"bytes": b"", "strokes": each, "input_spec": input_spec.as_dict(), "isBright": is_bright}
        for each in strokes.values()
        for input_spec in input_specs
        for is_bright in (True, False)
    ]
    answer = (
        "const { width, height } = each.input_spec;"
        "const drawn = rendered(centered(each.strokes, width / height), each.input_spec, each.isBright);"
        "return resize(drawn, each.input_spec);"
    )
    found = images_by_node(tmp_path, imports, answer, [dict(case) for case in cases])
    for case, image in zip(cases, found, strict=True):
        ink = image[..., 0].astype(float) if case["isBright"] else 255.0 - image[..., 0]
        height, width = ink.shape
        assert ink.sum() > 0
        rows, columns = np.nonzero(ink > 8)
        middle_y, middle_x = ((np.arange(side) + 0.5) @ ink.sum(axis=axis) for side, axis in ((height, 1), (width, 0)))
        # Crossing strokes count once in the image and twice along the strokes.
        assert middle_y / ink.sum() == pytest.approx(height / 2, abs=0.8)
        assert middle_x / ink.sum() == pytest.approx(width / 2, abs=0.8)
        if case["strokes"] != strokes["a dot"]:
            longest = max(np.ptp(rows) + 1, np.ptp(columns) + 1)
            assert longest == pytest.approx(20 / 28 * min(height, width), abs=2.1)
