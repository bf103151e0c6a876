"""Helpers for the tests of the web page: modules in node, the page in a browser, and PNG files of every kind."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WEB = Path(str(resources.files("thaw") / "web"))
NODE = shutil.which("node")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed: the page's modules cannot be run")
needs_vendor = pytest.mark.skipif(
    not (WEB / "vendor" / "VERSION").is_file(), reason="onnxruntime-web is not there: make web fetches it"
)

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))

# Input and output of a case are files of bytes.
_PRELUDE = """
import { readFileSync, writeFileSync } from "node:fs";
const cases = JSON.parse(readFileSync("cases.json", "utf-8"));
const bytesOf = (name) => new Uint8Array(readFileSync(name));
const told = [];
for (const [number, each] of cases.entries()) {
    try {
        const result = await answer(each, number);
        writeFileSync(`out-${number}`, result.data);
        const bits = 8 * result.data.BYTES_PER_ELEMENT;
        told.push({ height: result.height, width: result.width, channels: result.channels, bits });
    } catch (error) {
        told.push({ error: error.message });
    }
}
writeFileSync("told.json", JSON.stringify(told));
"""


def images_by_node(folder: Path, imports: str, answer: str, cases: list[dict[str, Any]]) -> list[np.ndarray | str]:
    """Results of the page's modules for the cases: uint8 or uint16 [H, W, C], or the message of an error.

    `answer` is the body of `async (each, number) => image`; a case's "bytes" are in the file `in-<number>`.
    """
    for module in WEB.glob("*.js"):
        shutil.copy(module, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    for number, case in enumerate(cases):
        (folder / f"in-{number}").write_bytes(case.pop("bytes"))
    (folder / "cases.json").write_text(json.dumps(cases))
    script = f"{imports}\nconst answer = async (each, number) => {{ {answer} }};\n{_PRELUDE}"
    (folder / "run.js").write_text(script)
    done = subprocess.run([NODE, "run.js"], cwd=folder, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    results: list[np.ndarray | str] = []
    for number, told in enumerate(json.loads((folder / "told.json").read_text())):
        if "error" in told:
            results.append(told["error"])
            continue
        data = np.frombuffer((folder / f"out-{number}").read_bytes(), f"u{told['bits'] // 8}")
        results.append(data.reshape(told["height"], told["width"], told["channels"]))
    return results


def png_file(
    pixels: np.ndarray,
    depth: int,
    color_type: int,
    *,
    interlaced: bool = False,
    palette: bytes = b"",
    transparency: bytes | None = None,
    exif: bytes = b"",
    xmp: str = "",
    seed: int = 0,
) -> bytes:
    """A PNG file of samples [H, W, S] below 2 ** depth, with a random filter per row."""
    height, width, _ = pixels.shape
    rng = np.random.default_rng(seed)
    step = max(1, pixels.shape[2] * depth // 8)
    body = b""
    for top, left, down, across in PASSES if interlaced else ((0, 0, 1, 1),):
        part = pixels[top::down, left::across]
        if part.size:
            body += _filtered(part, depth, step, rng)
    content = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced))
    content += _chunk(b"PLTE", palette) if palette else b""
    content += _chunk(b"tRNS", transparency) if transparency is not None else b""
    content += _chunk(b"eXIf", exif) if exif else b""
    content += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()) if xmp else b""
    packed = zlib.compress(body)
    middle = len(packed) // 2
    content += _chunk(b"IDAT", packed[:middle]) + _chunk(b"IDAT", packed[middle:])
    return b"\x89PNG\r\n\x1a\n" + content + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _filtered(part: np.ndarray, depth: int, step: int, rng: np.random.Generator) -> bytes:
    rows = []
    above = None
    for samples in part.reshape(len(part), -1):
        if depth == 16:
            row = samples.astype(">u2").view(np.uint8).astype(int)
        else:
            bits = (samples[:, None] >> np.arange(depth)[::-1]) & 1
            row = np.packbits(bits.astype(np.uint8).ravel()).astype(int)
        above = np.zeros_like(row) if above is None else above
        kind = int(rng.integers(5))
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]])[: len(row)] for line in (row, above))
        guess = left + above - corner
        near = np.abs(np.stack([guess - left, guess - above, guess - corner]))
        paeth = np.choose(np.argmin(near, axis=0), [left, above, corner])
        predicted = (0 * row, left, above, (left + above) // 2, paeth)[kind]
        rows.append(bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(rows)


@contextmanager
def chromium(profile: Path, downloads: Path | None = None) -> Iterator[Any]:
    """Headless Chromium of Debian that records console and network messages."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: no look at the page")
    if not CHROMIUM or not CHROMEDRIVER:
        pytest.skip("chromium and chromedriver are not both installed: no look at the page in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=CHROMEDRIVER))
    try:
        if downloads is not None:
            allowed = {"behavior": "allow", "downloadPath": str(downloads)}
            driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
        yield driver
    finally:
        driver.quit()


def exif_block(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """An Exif block with one orientation, in either byte order."""
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1)
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    other = struct.pack(f"{order}HHII", 0x0100, 4, 1, 7)
    return mark + struct.pack(f"{order}HIH", 42, 8, 2) + other + entry + value + struct.pack(f"{order}I", 0)
