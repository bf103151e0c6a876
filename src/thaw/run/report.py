"""Write the report of a finished run: one self-contained HTML page without scripts.

It shows the content of metrics.json and history.jsonl (docs/metrics.md), and a few images.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from thaw.errors import RunError, UsageError
from thaw.files import write_atomically
from thaw.quoting import xml_text
from thaw.run.deployment import read_deployment
from thaw.run.report_plots import Panel, accuracy_curves, curves_panel, heat, heat_paths, loss_curves

FILE_NAME = "report.html"
NO_BREAK = "\N{NO-BREAK SPACE}"  # keeps a number and its unit on one line
WIDE, PHONE = 960.0, 360.0  # SVG units, about the CSS pixels of a plot on either kind of screen
LARGEST_THUMBNAIL = 192  # pixels per side; larger images are scaled down
PIXELATED_UP_TO = 96  # pixels per side; images up to this size are enlarged without smoothing
MOST_CONFUSED = 10
LARGEST_PLAIN_MATRIX = 20  # classes; larger matrices are preceded by an overview
# Export, verify and bench update the section between these comments.
DEPLOYMENT_BEGIN, DEPLOYMENT_END = "<!-- deployment: begin -->", "<!-- deployment: end -->"

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ReportPictures:
    """The images of a report, each uint8 [H, W, C] with C = 1 or 3; both sequences may be empty.

    Attributes:
        mistakes: the images of metrics["test"]["mistakes"], in the same order.
        samples: (original, augmented, class name).
    """

    mistakes: Sequence[Picture] = ()
    samples: Sequence[tuple[Picture, Picture, str]] = ()

    def __post_init__(self) -> None:
        pictures = [
            *self.mistakes,
            *(view for original, augmented, _ in self.samples for view in (original, augmented)),
        ]
        for picture in pictures:
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3) or 0 in picture.shape:
                raise UsageError(
                    f"an image for the report is {picture.dtype} {list(picture.shape)}: "
                    "expected uint8 [H, W, C] with C = 1 or 3",
                    code="usage-pictures",
                )


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An image of the page: a `data:` URL of a PNG, and whether it is enlarged without smoothing."""

    address: str
    width: int
    height: int
    pixelated: bool


def write_report(
    run_dir: Path, metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]], pictures: ReportPictures
) -> Path:
    """Write `run_dir`/report.html atomically.

    The resolved recipe is read from `run_dir`, by the name in metrics["files"]["recipe"] (or recipe.toml).

    Args:
        run_dir: the folder of the run.
        metrics: the content of metrics.json.
        history: the records of history.jsonl, in order; may be empty.
        pictures: mistakes and samples.

    Returns:
        The path of the report.

    Raises:
        UsageError: when the number of images differs from the number of mistakes and is not 0.
        RunError: when a part of the metrics (docs/metrics.md) is missing, or the file cannot be written.
    """
    run_dir = Path(run_dir)
    page = render_report(
        metrics,
        history,
        pictures,
        recipe_text=_recipe_text(run_dir, metrics),
        deployment=read_deployment(run_dir),
    )
    path = run_dir / FILE_NAME
    write_atomically(path, page)
    return path


def rewrite_deployment(run_dir: Path, metrics: Mapping[str, Any], deployment: Mapping[str, Any]) -> bool:
    """Update the deployment section of `run_dir`/report.html; the rest of the page is unchanged.

    Args:
        run_dir: the folder of the run.
        metrics: the content of metrics.json.
        deployment: the content of deployment.json.

    Returns:
        False if there is no report or it has no such section.

    Raises:
        RunError: when a part of the content is missing, or the file cannot be written.
    """
    path = Path(run_dir) / FILE_NAME
    if not path.is_file():
        return False
    before, begin, rest = path.read_text("utf-8").partition(DEPLOYMENT_BEGIN)
    _, end, after = rest.partition(DEPLOYMENT_END)
    if not begin or not end:
        return False
    with _missing_parts():
        section = _environment().get_template("deployment.html.j2").render(m=metrics, d=deployment)
    write_atomically(path, f"{before}{begin}\n{section}\n{end}{after}")
    return True


def render_report(
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    pictures: ReportPictures,
    *,
    recipe_text: str | None = None,
    deployment: Mapping[str, Any] | None = None,
) -> str:
    """The page as text; arguments and errors as in `write_report`."""
    mistakes = metrics.get("test", {}).get("mistakes", [])
    if len(pictures.mistakes) not in (0, len(mistakes)):
        raise UsageError(
            f"{len(pictures.mistakes)} images for {len(mistakes)} mistakes: expected one per mistake, or none",
            code="usage-pictures",
        )
    with _missing_parts():
        return (
            _environment()
            .get_template("report.html.j2")
            .render(
                m=metrics,
                d=deployment or {},
                recipe_text=recipe_text,
                wide=_panels(metrics, history, WIDE),
                phone=_panels(metrics, history, PHONE),
                confusion=_confusion(metrics),
                mistakes=_with_thumbnails(mistakes, pictures.mistakes),
                samples=[(_thumbnail(a), _thumbnail(b), name) for a, b, name in pictures.samples],
                deployment_marks=(DEPLOYMENT_BEGIN, DEPLOYMENT_END),
            )
        )


@contextmanager
def _missing_parts() -> Iterator[None]:
    """Report missing parts of the metrics as a RunError."""
    try:
        yield
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        message = f"cannot write the report, since the metrics of this run are incomplete: {error}; see docs/metrics.md"
        raise RunError(message, code="run-metrics") from error


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    def load(name: str) -> str:
        return resources.files("thaw.run").joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        finalize=_quoted,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "percent": _percent,
        "share": lambda value: f"{100 * value:.1f}",
        "size": _size,
        "time": _time,
        "micro": _micro,
        "rate": lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.2g}",
        "shape": lambda value: " × ".join(str(side) for side in value),
    }
    return environment


def _quoted(value: Any) -> Any:
    """Quote the strings of a template with `xml_text`; autoescape does not change the result."""
    return Markup(xml_text(value)) if isinstance(value, str) and not isinstance(value, Markup) else value  # noqa: S704


def _percent(value: float, decimals: int = 2) -> str:
    return f"{100 * value:.{decimals}f}{NO_BREAK}%"


def _size(size_bytes: float) -> str:
    """Bytes in the largest binary unit with a value of at least 1."""
    if size_bytes < 1024:
        return f"{size_bytes:,}{NO_BREAK}B"
    power = min(4, int(math.log2(size_bytes) // 10))
    return f"{size_bytes / 1024**power:,.1f}{NO_BREAK}{('', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f}{NO_BREAK}min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _micro(microseconds: float) -> str:
    if microseconds >= 10_000:
        return f"{microseconds / 1000:,.1f}{NO_BREAK}ms"
    return f"{microseconds / 1000:.2f}{NO_BREAK}ms" if microseconds >= 1000 else f"{microseconds:.0f}{NO_BREAK}µs"


def _panels(metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]], width: float) -> list[Panel]:
    best = {str(stage["name"]): int(stage["best_epoch"]) for stage in metrics["stages"]}
    panels = []
    if losses := loss_curves(history):
        panels.append(curves_panel("Loss", losses, history, best, width=width, percent=False))
    if accuracies := accuracy_curves(history):
        test = float(metrics["test"]["accuracy"])
        panels.append(
            curves_panel("Validation accuracy", accuracies, history, best, width=width, percent=True, reference=test)
        )
    return panels


def _confusion(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The confusion matrix with its shades, and the most confused pairs."""
    counts = metrics["test"]["confusion"]
    classes = [str(entry["name"]) for entry in metrics["test"]["per_class"]]
    pairs = sorted(
        (
            (count, heat(count, sum(row)) ** 2, classes[true], classes[predicted])
            for true, row in enumerate(counts)
            for predicted, count in enumerate(row)
            if count and true != predicted
        ),
        key=lambda pair: (-pair[0], -pair[1]),
    )
    large = len(classes) > LARGEST_PLAIN_MATRIX
    return {
        "classes": classes,
        "rows": [[(count, heat(count, sum(row))) for count in row] for row in counts],
        "large": large,
        "short_names": all(len(name) <= 3 for name in classes),
        "hits": heat_paths(counts, right=True) if large else (),
        "errors": heat_paths(counts, right=False) if large else (),
        "pairs": pairs[:MOST_CONFUSED],
        "predicted": [sum(row[column] for row in counts) for column in range(len(classes))],
    }


def _with_thumbnails(
    mistakes: Sequence[Mapping[str, Any]], pictures: Sequence[Picture]
) -> list[tuple[Mapping[str, Any], Thumbnail | None]]:
    thumbnails: list[Thumbnail | None] = [_thumbnail(picture) for picture in pictures] or [None] * len(mistakes)
    return list(zip(mistakes, thumbnails, strict=True))


def _thumbnail(picture: Picture) -> Thumbnail:
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    image.thumbnail((LARGEST_THUMBNAIL, LARGEST_THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return Thumbnail(
        address="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        width=image.width,
        height=image.height,
        pixelated=max(image.size) <= PIXELATED_UP_TO,
    )


def _recipe_text(run_dir: Path, metrics: Mapping[str, Any]) -> str | None:
    """The resolved recipe of the run; None if the folder has none."""
    name = (metrics.get("files") or {}).get("recipe", "recipe.toml")
    try:
        return (run_dir / Path(name).name).read_text(encoding="utf-8")
    except OSError:
        return None
