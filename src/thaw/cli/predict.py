"""`thaw predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thaw.cli.options import RunPath, SkipBroken
from thaw.errors import UsageError
from thaw.quoting import given

if TYPE_CHECKING:
    import thaw

_FORMATS = ("table", "json", "csv")


def predict(
    run: RunPath,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files and folders.", show_default=False)
    ],
    output_format: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    skip_broken: SkipBroken = False,
) -> None:
    """Predict the class of images, with the probability of the class."""
    output_format = "json" if as_json else output_format
    if output_format not in _FORMATS:
        raise UsageError(f"--format {given(output_format)}: expected one of {', '.join(_FORMATS)}")
    import thaw
    from thaw.cli.output import columns, print_json, print_text
    from thaw.cli.progress import ProblemProgress

    model = thaw.Model.load(run)
    with ProblemProgress(is_quiet=output_format == "json") as progress:
        predictions = model.predict(images, skip_broken=skip_broken, on_event=progress)
    if output_format == "json":
        print_json(
            {
                "classes": list(model.classes),
                "predictions": [prediction.as_dict() for prediction in predictions],
                "problems": [problem.as_dict() for problem in progress.problems],
            }
        )
    elif output_format == "csv":
        _print_csv(predictions)
    else:
        rows = [(entry.name, entry.label, f"{entry.probability:.2%}") for entry in predictions]
        print_text(columns([("image", "class", "probability"), *rows], right=(2,)))


def _print_csv(predictions: Sequence[thaw.Prediction]) -> None:
    from thaw.quoting import csv_line

    classes = predictions[0].classes if predictions else ()
    sys.stdout.write(csv_line(["image", "class", "probability", *classes]))
    for prediction in predictions:
        cells = [prediction.name, prediction.label, prediction.probability, *prediction.probabilities]
        sys.stdout.write(csv_line(cells))
