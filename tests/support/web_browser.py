"""Drives the web page in a browser, and makes images for it."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from web_samples import exif_block, png_file

SECONDS = 60
SEEN = """
const canvas = document.getElementById("seen");
const copy = document.createElement("canvas");
[copy.height, copy.width] = [canvas.height, canvas.width];
const context = copy.getContext("2d", { willReadFrequently: true });
context.drawImage(canvas, 0, 0);
return Array.from(context.getImageData(0, 0, copy.width, copy.height).data);
"""
PROBABILITIES = "return Array.from(document.querySelectorAll('#probabilities data'), (each) => each.value)"


class Page:
    """The page in the browser, with the actions of a user."""

    def __init__(self, driver: Any, url: str, downloads: Path) -> None:
        self.driver, self.url, self.downloads = driver, url, downloads
        driver.get_log("browser")
        driver.get_log("performance")
        self.show(1280)
        driver.get(url)
        self.until(lambda: not self.script("return document.getElementById('main').hidden"))

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, name: str) -> str:
        return self.script("return document.getElementById(arguments[0]).textContent", name)

    def until(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, self.script("return document.body.innerText")
            time.sleep(0.05)
        return found

    def show(self, width: int, scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def give(self, path: Path) -> None:
        """Choose an image, and wait for the result."""
        self.script("document.getElementById('source').textContent = ''")
        self.find("#choose").send_keys(str(path))
        self.until(lambda: self.text("source").startswith(path.name) or self.text("trouble"))

    def give_many(self, paths: list[Path], by: str = "#choose-many") -> None:
        self.find(by).send_keys("\n".join(map(str, paths)))
        self.until(lambda: self.text("batch-state").endswith("."))

    def drop(self, *paths: Path) -> None:
        """Drop files or folders of the disk on the page."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 300, "y": 200, "data": data}
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)

    def seen(self) -> np.ndarray:
        """The model input, uint8 [h, w, 3]."""
        shape = self.script("const { height, width } = document.getElementById('seen'); return [height, width]")
        return np.array(self.script(SEEN), np.uint8).reshape(*shape, 4)[..., :3]

    def probabilities(self) -> np.ndarray:
        return np.array([float(value or "nan") for value in self.script(PROBABILITIES)])

    def saved(self) -> list[dict[str, str]]:
        """The CSV."""
        target = self.downloads / "predictions.csv"
        target.unlink(missing_ok=True)
        self.find("#save").click()
        self.until(target.is_file)
        return list(csv.DictReader(io.StringIO(target.read_bytes().decode())))

    def check_quiet(self, *, besides: str = "") -> None:
        """Check that the console has no errors, and that no request left the origin."""
        told = [each for each in self.driver.get_log("browser") if each["level"] in {"SEVERE", "WARNING"}]
        assert [each for each in told if not besides or besides not in each["message"]] == []
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        asked = [each["request"]["url"] for each in sent]
        origin = re.match(r"http://[^/]+/", self.url).group()
        assert asked
        assert [url for url in asked if not url.startswith((origin, f"blob:{origin}"))] == []


def draw(page: Page, points: list[tuple[float, float]]) -> None:
    """Draw a stroke with the mouse, through points in the frame, 0 to 1."""
    from selenium.webdriver import ActionChains

    pad = page.find("#pad")
    page.script("arguments[0].scrollIntoView({ block: 'center' })", pad)
    width, height = pad.size["width"], pad.size["height"]
    places = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in points]
    chain = ActionChains(page.driver, duration=20).move_to_element_with_offset(pad, *places[0]).click_and_hold()
    for place in places[1:]:
        chain = chain.move_to_element_with_offset(pad, *place)
    chain.release().perform()


def digit_images(folder: Path) -> list[Path]:
    """200 PNG files of bundled digits with unusual sizes, modes and names."""
    rng = np.random.default_rng(8)
    paths = []
    for number, digit in enumerate(load_digits().images[-200:]):
        image = Image.fromarray((digit * 15.9).astype(np.uint8))
        image = image.resize(tuple(int(side) for side in rng.integers(5, 300, 2)), Image.Resampling.BILINEAR)
        mode = ("L", "RGB", "RGBA", "LA", "P", "I;16")[number % 6]
        wide = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        image = wide if mode == "I;16" else image.convert(mode)
        if mode in {"LA", "RGBA"}:
            image.putalpha(Image.fromarray(rng.integers(0, 256, image.size[::-1], dtype=np.uint8)))
        name = ("мышь {}.png", 'a "{}", b.png', "{} %20 #?&.png", "=1+{}.png", "x{}.png")[number % 5].format(number)
        image.save(folder / name)
        paths.append(folder / name)
    return paths


def encoded(kind: str, **options: Any) -> bytes:
    rows, columns = np.mgrid[0:75, 0:101]
    values = np.stack([rows * 3 % 256, columns * 2, (rows + columns) % 256], axis=-1).astype(np.uint8)
    image = Image.fromarray(values)
    if kind == "GIF":
        image = image.quantize(64)
    if kind.startswith("alpha "):
        kind = kind.removeprefix("alpha ")
        image.putalpha(Image.fromarray((columns * 2 % 256).astype(np.uint8)))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def huge_png() -> bytes:
    small = png_file(np.zeros((1, 1, 1), int), 8, 0)
    return small[:16] + (100_000).to_bytes(4, "big") * 2 + small[24:]


LOSSY = 3
"""Maximum difference, in levels, of two JPEG or WebP decoders after an image is reduced."""

IMAGES = [
    ("photo.jpg", encoded("JPEG", quality=90), LOSSY),
    *((f"turned{n}.jpg", encoded("JPEG", quality=95, exif=exif_block(n)), LOSSY) for n in range(2, 9)),
    ("gray.jpg", encoded("JPEG", quality=95, subsampling=0), LOSSY),
    ("photo.webp", encoded("WEBP", quality=95), LOSSY),
    ("exact.webp", encoded("WEBP", lossless=True), 0),
    ("alpha.webp", encoded("alpha WEBP", lossless=True), 1),
    ("palette.gif", encoded("GIF"), 0),
    ("plain.bmp", encoded("BMP"), 0),
    ("alpha.png", encoded("alpha PNG"), 0),
    ("profile.png", encoded("PNG", icc_profile=b"nonsense"), 0),
    ("turned.png", encoded("PNG", exif=exif_block(6)), 0),
    ("one.png", png_file(np.array([[[200, 10, 90]]]), 8, 2), 0),
    ("tall.png", png_file(np.random.default_rng(0).integers(0, 256, (900, 1, 1)), 8, 0), 0),
]
