"""The page in a real browser: predictions agree with `thaw predict`, and errors are shown on the page."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import FinishedRun
from export_samples import card_of, paper_graph
from PIL import Image
from sklearn.datasets import load_digits
from web_browser import IMAGES, SECONDS, Page, digit_images, draw, encoded, huge_png
from web_samples import chromium, needs_vendor, png_file

from thaw.data.decode import decode_image
from thaw.data.image_files import load_images
from thaw.data.resize import resize
from thaw.deploy.demo import demo_files
from thaw.deploy.page_server import PageServer, start_server
from thaw.export.to_web import export_web
from thaw.graph.interpret import run as run_graph
from thaw.model.model import Model
from thaw.run.run import Run

pytestmark = [needs_vendor, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), downloads) as driver:
        yield driver


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[dict[str, bytes]], str]]:
    servers: list[PageServer] = []

    def start(files: dict[str, bytes]) -> str:
        server = start_server(files, host="127.0.0.1", port=0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.url

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def digits_url(finished: FinishedRun, serve: Any) -> str:
    return serve(demo_files(Model.load(finished.path)))


@pytest.fixture
def page(browser: Any, digits_url: str, downloads: Path) -> Iterator[Page]:
    opened = Page(browser, digits_url, downloads)
    yield opened
    opened.check_quiet()


@pytest.fixture(scope="module")
def color_files() -> dict[str, bytes]:
    graph = paper_graph((32, 40, 3), "float")
    graph = replace(graph, outputs=graph.outputs[-1:])
    card = card_of(graph)
    card = replace(card, input_spec=replace(card.input_spec, fit="crop"), classes=('<b>&"cat"', *card.classes[1:]))
    return export_web({"float": graph}, card)


def test_drawing_a_stroke_changes_the_prediction(page: Page) -> None:
    assert page.text("best") == "–"
    draw(page, [(0.5, 0.2), (0.5, 0.5), (0.5, 0.8)])
    page.until(lambda: page.text("source") == "Your drawing")
    one, seen = page.probabilities(), page.seen()
    assert one.sum() == pytest.approx(1, abs=1e-5)
    assert seen.max() == 255
    assert "ms inference time, float32" in page.text("latency")
    page.until(lambda: "%" in page.text("spoken"))
    draw(page, [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8), (0.2, 0.2)])
    page.until(lambda: not np.array_equal(page.probabilities(), one))
    assert not np.array_equal(page.seen(), seen)
    page.find("#undo").click()
    page.until(lambda: np.array_equal(page.probabilities(), one))
    page.find("#center").click()
    page.until(lambda: not np.array_equal(page.probabilities(), one))
    page.find("#clear").click()
    page.until(lambda: page.text("best") == "–")
    assert np.isnan(page.probabilities()).all()


def test_every_example_digit_is_classified(page: Page) -> None:
    answers = set()
    for digit in range(10):
        before = page.seen()
        page.find(f"[aria-label='Draw a {digit}']").click()
        page.until(lambda before=before: not np.array_equal(page.seen(), before))
        answers.add(page.text("best")[0])
    assert len(answers) >= 3  # the model of the tests is barely trained


def test_keyboard_drawing(page: Page) -> None:
    from selenium.webdriver import Keys

    body = page.find("body")
    for _ in range(20):
        body.send_keys(Keys.TAB)
        if page.script("return document.activeElement.id") == "pad":
            break
        body = page.driver.switch_to.active_element
    pad = page.driver.switch_to.active_element
    assert pad.get_attribute("id") == "pad"
    assert page.script("return getComputedStyle(arguments[0]).outlineStyle", pad) == "solid"
    pad.send_keys(Keys.ARROW_UP * 8)
    assert page.text("best") == "–"
    pad.send_keys(Keys.SPACE)
    page.until(lambda: page.text("pad-state") == "Pen down.")
    pad.send_keys(Keys.ARROW_DOWN * 16)
    page.until(lambda: page.text("source") == "Your drawing")
    page.until(lambda: page.seen()[..., 0].max(axis=1).astype(bool).sum() > 15)
    pad.send_keys(Keys.SPACE, Keys.ARROW_RIGHT, "z")
    page.until(lambda: page.text("best") == "–")


def test_200_images_agree_with_predict(page: Page, finished: FinishedRun, tmp_path: Path) -> None:
    paths = digit_images(tmp_path)
    model = Model.load(finished.path)
    pixels, names, problems = load_images(paths, model.input_spec)
    assert len(pixels) == 200
    del problems
    # A name that a spreadsheet would evaluate as a formula begins with an apostrophe in the CSV.
    listed = [f"'{Path(name).name}" if Path(name).name.startswith("=") else Path(name).name for name in names]
    expected = dict(zip(listed, model.predict(pixels), strict=True))
    page.give_many(paths)
    # Some of the 200 have 16 bits per channel, which the page reports.
    assert page.text("batch-state").startswith("200 images")
    rows = page.saved()
    assert [row["image"] for row in rows] != sorted(row["image"] for row in rows)
    confidences = [float(row["probability"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)
    assert {row["image"] for row in rows} == set(expected)
    for row in rows:
        prediction = expected[row["image"]]
        assert row["class"] == prediction.label
        found = [float(row[name]) for name in model.classes]
        assert found == pytest.approx(list(prediction.probabilities), abs=1e-5)
    page.script("document.getElementById('order').value = 'least'")
    page.script("document.getElementById('order').dispatchEvent(new Event('change'))")
    assert page.script("return document.querySelector('#grid .name').title") == page.saved()[0]["image"].removeprefix(
        "'"
    )
    assert float(page.saved()[0]["probability"]) == min(confidences)


def test_real_test_images_agree_with_predict(
    page: Page, finished: FinishedRun, data_root: Path, tmp_path: Path
) -> None:
    from thaw.data.prepare import prepare
    from thaw.data.settings import DataSettings

    if not (data_root / "mnist").is_dir():
        pytest.skip("no MNIST in the folder of real data")
    test = prepare("mnist", DataSettings(), seed=0, data_root=data_root).test.open()
    paths = [tmp_path / f"{number}.png" for number in range(200)]
    for path, image in zip(paths, test.images[:200], strict=True):
        Image.fromarray(image[..., 0]).save(path)
    model = Model.load(finished.path)
    expected = model.predict(np.ascontiguousarray(test.images[:200]))
    page.give_many(paths)
    found = {row["image"]: row for row in page.saved()}
    for path, prediction in zip(paths, expected, strict=True):
        row = found[path.name]
        assert row["class"] == prediction.label
        assert [float(row[name]) for name in model.classes] == pytest.approx(list(prediction.probabilities), abs=1e-5)


def test_int8_network_can_be_selected(page: Page, finished: FinishedRun, tmp_path: Path) -> None:
    run = Run.open(finished.path)
    image = np.asarray(Image.fromarray((load_digits().images[7] * 15.9).astype(np.uint8)).resize((28, 28)))
    Image.fromarray(image).save(tmp_path / "digit.png")
    page.give(tmp_path / "digit.png")
    page.give_many([tmp_path / "digit.png"] * 2)
    page.find("[name=precision][value=int8]").click()
    page.until(lambda: page.text("latency").endswith("int8"))
    page.until(lambda: not page.script("return document.getElementById('precisions').disabled"))
    scores = next(iter(run_graph(run.model.graph("int8"), image[None, ..., None]).values()))[0].astype(float)
    expected = (scores + 128) / 256
    # onnxruntime rounds differently, and a softmax can amplify this.
    assert page.probabilities() == pytest.approx(expected, abs=0.1)
    assert float(page.saved()[0]["probability"]) == pytest.approx(page.probabilities().max(), abs=1e-6)


@pytest.mark.parametrize(("name", "content", "tolerance"), IMAGES, ids=[name for name, *_ in IMAGES])
def test_model_input_in_the_browser_agrees_with_python(
    browser: Any,
    serve: Any,
    color_files: dict[str, bytes],
    downloads: Path,
    tmp_path: Path,
    name: str,
    content: bytes,
    tolerance: int,
) -> None:
    if not hasattr(serve, "color"):
        serve.color = serve(color_files)
    page = Page(browser, serve.color, downloads)
    (tmp_path / name).write_bytes(content)
    page.give(tmp_path / name)
    assert page.text("trouble") == ""
    graph = paper_graph((32, 40, 3), "float")
    input_spec = replace(card_of(graph).input_spec, fit="crop")
    pixels = decode_image(content).pixels
    assert f"{name}, {pixels.shape[1]} × {pixels.shape[0]} pixels" == page.text("source")
    expected = resize(pixels, input_spec)
    found = page.seen()
    assert np.abs(found.astype(int) - expected).max() <= tolerance
    outputs = run_graph(replace(graph, outputs=graph.outputs[-1:]), np.ascontiguousarray(found)[None])
    assert page.probabilities() == pytest.approx(next(iter(outputs.values()))[0], abs=1e-5)
    assert not page.script("return document.getElementById('drawing').checkVisibility()")
    assert page.text("name") == "sample"
    page.check_quiet()


def test_names_are_shown_as_text(
    browser: Any, serve: Any, color_files: dict[str, bytes], downloads: Path, tmp_path: Path
) -> None:
    page = Page(browser, serve(color_files), downloads)
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_bytes(encoded("PNG"))
    (tmp_path / f"not {name}").write_text("no image")
    page.give(tmp_path / name)
    page.give_many([tmp_path / name, tmp_path / f"not {name}"])
    assert page.script("return document.querySelectorAll('img, b').length") == 0
    assert '<b>&"cat"' in page.text("card")
    assert page.text("batch-state") == "1 image, 1 could not be read."
    assert f"not {name}: not an image" in page.text("unreadable")
    page.check_quiet()


WRONG = [
    ("text.txt", b"no image at all", "text.txt: not an image, or in a format that this browser cannot read."),
    ("empty.png", b"", "empty.png: an empty file."),
    ("huge.png", huge_png(), "huge.png: too large: 100000 × 100000 pixels (limit 89,478,485 pixels"),
    (
        "cut.png",
        png_file(np.arange(4800).reshape(40, 40, 3) % 251, 8, 2)[:200],
        "cut.png: a damaged PNG file",
    ),
    ("cut.jpg", encoded("JPEG")[:150], "cut.jpg: not an image"),
    ("page.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "page.svg: not an image"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[name for name, *_ in WRONG])
def test_file_errors_are_shown_on_the_page(page: Page, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    page.give(tmp_path / "good.png")
    (tmp_path / name).write_bytes(content)
    page.give(tmp_path / name)
    page.until(lambda: page.text("trouble"))
    assert page.text("trouble").startswith(message)
    assert page.find("#trouble").get_attribute("role") == "alert"
    assert page.text("best") == "–"
    page.give(tmp_path / "good.png")
    assert page.text("trouble") == ""


def test_images_can_be_dropped_pasted_and_chosen_as_a_folder(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "one.png").write_bytes(encoded("PNG"))
    (folder / "deep" / "two.JPG").write_bytes(encoded("JPEG"))
    (folder / "deep" / "er" / "three.webp").write_bytes(encoded("WEBP"))
    (folder / "deep" / "broken.png").write_bytes(b"no")
    (folder / "notes.txt").write_text("not meant as an image")
    (folder / ".hidden.png").write_bytes(encoded("PNG"))
    page.drop(folder / "one.png")
    page.until(lambda: page.text("source").startswith("one.png"))

    page.drop(folder)
    page.until(lambda: page.text("batch-state").endswith("."))
    assert page.text("batch-state") == "3 images, 1 could not be read, 2 other files ignored."
    names = {"photos/one.png", "photos/deep/two.JPG", "photos/deep/er/three.webp"}
    assert {row["image"] for row in page.saved()} == names
    page.find("#forget").click()
    assert page.text("batch-state") == ""
    page.give_many([folder], by="#choose-folder")
    assert {row["image"] for row in page.saved()} == names

    paste = """
        const [content, type, text] = arguments;
        const data = new DataTransfer();
        if (content) data.items.add(new File([new Uint8Array(content)], "pasted.png", { type }));
        if (text) data.setData("text/plain", text);
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
    """
    page.script(paste, list(encoded("PNG")), "image/png", "")
    page.until(lambda: page.text("source").startswith("pasted.png, 101 × 75"))
    page.script(paste, None, "", "words")
    page.until(lambda: page.text("trouble") == "The clipboard does not contain an image.")


def test_photograph_button_uses_the_camera(page: Page) -> None:
    field = page.find("#photograph")
    assert (field.get_attribute("accept"), field.get_attribute("capture")) == ("image/*", "environment")


LIMITS = """
const luminance = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
    const [r, g, b] = parts.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const background = (node) => {
    for (let each = node; each; each = each.parentElement) {
        const color = getComputedStyle(each).backgroundColor;
        if (!/, 0\\)$/.test(color) && color !== "transparent") return color;
    }
    return getComputedStyle(document.documentElement).backgroundColor;
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const poor = [];
while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility({ opacityProperty: true })) continue;
    const [one, other] = [luminance(getComputedStyle(node).color), luminance(background(node))].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < 4.5) poor.push([node.outerHTML.slice(0, 80), contrast]);
}
return poor;
"""

UNNAMED = """
const fields = document.querySelectorAll("button, input, select, canvas, [tabindex]");
return Array.from(fields).filter((each) => each.checkVisibility() && !(each.textContent.trim() || each.ariaLabel ||
    each.labels?.[0]?.textContent.trim() || each.role === "presentation")).map((each) => each.outerHTML);
"""


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_page_fits_a_phone_and_has_a_dark_mode(page: Page, tmp_path: Path, width: int, scheme: str) -> None:
    page.show(width, scheme)
    page.find("[aria-label='Draw a 3']").click()
    page.until(lambda: page.text("source") == "Your drawing")
    for number in range(3):
        (tmp_path / f"a rather long name that goes on and on {number}.png").write_bytes(encoded("PNG"))
    (tmp_path / "wrong.png").write_bytes(b"")
    page.give_many(list(tmp_path.iterdir()))
    page.script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.script("return document.documentElement.scrollWidth") <= width
    assert page.script(LIMITS) == []
    assert page.script(UNNAMED) == []
    background = page.script("return getComputedStyle(document.body).backgroundColor")
    brightness = max(int(value) for value in re.findall(r"\d+", background)[:3])
    assert brightness > 200 if scheme == "light" else brightness < 60
    small = "return [...document.querySelectorAll('button, .button, select')].filter(e => e.checkVisibility() && "
    assert page.script(f"{small} e.offsetHeight < 44)") == []


def test_touch_drawing(page: Page) -> None:
    page.show(390)
    page.script("document.getElementById('pad').scrollIntoView({ block: 'center' })")
    box = page.script("return document.getElementById('pad').getBoundingClientRect()")
    places = [(box["left"] + box["width"] / 2, box["top"] + box["height"] * y) for y in (0.2, 0.4, 0.8)]
    before = page.script("return scrollY")
    for kind, place in zip(("touchStart", "touchMove", "touchMove"), places, strict=True):
        points = [{"x": place[0], "y": place[1]}]
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.until(lambda: page.text("source") == "Your drawing")
    page.until(lambda: page.seen()[..., 0].max(axis=1).astype(bool).sum() > 15)
    assert page.script("return scrollY") == before


def test_folder_works_on_any_web_server(browser: Any, finished: FinishedRun, downloads: Path, tmp_path: Path) -> None:
    """Below a path, with the media types of a simple server, and with the policy only in the page."""
    run = shutil.copytree(finished.path, tmp_path / "run")  # the export changes the run
    result = Run.open(run).export(formats=["web"], out=tmp_path / "site")
    (exported,) = result.formats
    assert exported.precisions == ("float", "int8")
    assert {path.name for path in (tmp_path / "site" / "web").iterdir()} == {*exported.files, "export.json"}

    class Plain(SimpleHTTPRequestHandler):
        def guess_type(self, path: str) -> str:
            types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
            return types.get(Path(path).suffix, "application/octet-stream")

        def log_message(self, *_: Any) -> None:
            pass

    handler = partial(Plain, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = Page(browser, f"http://127.0.0.1:{server.server_address[1]}/site/web/", downloads)
        page.find("[aria-label='Draw a 3']").click()
        page.until(lambda: page.text("source") == "Your drawing")
        asked = """
            const done = arguments[0];
            addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
            fetch("http://127.0.0.1:9/").catch(() => {});
        """
        assert browser.execute_async_script(asked) == "connect-src"
        page.check_quiet(besides="Content Security Policy")
        server.shutdown()


def test_browser_without_webassembly_shows_an_error(digits_url: str, tmp_path: Path) -> None:
    with chromium(tmp_path) as driver:
        script = {"source": "delete globalThis.WebAssembly"}
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
        driver.get(digits_url)
        end = time.monotonic() + SECONDS
        while not (text := driver.find_element("id", "problem").text):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert "WebAssembly" in text
        assert driver.find_element("id", "problem").get_attribute("role") == "alert"
