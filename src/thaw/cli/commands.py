"""What the commands do; `app` holds their options."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thaw.cli.progress import Progress
from thaw.data.images import parse_shape
from thaw.data.prepare import open_image_set
from thaw.errors import TrainingError, UsageError
from thaw.evidence.quality import evaluate as evaluate_quality
from thaw.graph.cost import Cost
from thaw.graph.lower import layer_table
from thaw.training.model import Model, Prediction
from thaw.workflow.pipeline import Event, Finished, Started, TrainRequest, resume_run, start_run
from thaw.workflow.recipe import Recipe, default_recipe, load_recipe

FORMATS = ("table", "json", "csv")


def train(
    source: str,
    *,
    recipe: str | None,
    overrides: Sequence[str],
    seed: int,
    out: Path | None,
    overwrite: bool,
    device: str,
    folds: int,
    data_root: Path | None,
    skip_broken: bool,
    as_json: bool,
    command: str,
) -> None:
    """`thaw train SOURCE`."""
    name, settings = load_recipe(recipe or default_recipe(source), overrides)
    request = TrainRequest(
        source=source,
        recipe_name=name,
        recipe=settings,
        seed=seed,
        device=device,
        folds=folds,
        data_root=data_root,
        skip_broken=skip_broken,
        command=command,
    )
    with Progress() as progress:
        events = start_run(request, out=out, overwrite=overwrite, progress=progress.decoding)
        finished = _drive(events, progress)
    _finish(finished, as_json=as_json)


def resume(path: Path, *, as_json: bool) -> None:
    """`thaw train --resume DIR`."""
    with Progress() as progress:
        finished = _drive(resume_run(path, progress=progress.decoding), progress)
    _finish(finished, as_json=as_json)


def _drive(events: Iterator[Event], progress: Progress) -> Finished:
    """Show a run's events; an interrupt or a failure ends with how to resume."""
    folder: Path | None = None
    try:
        for event in events:
            progress.show(event)
            if isinstance(event, Started):
                folder = event.folder.path
            if isinstance(event, Finished):
                return event
    except KeyboardInterrupt:
        progress.close()
        if folder is None:
            sys.stderr.write("stopped before training began\n")
        else:
            sys.stderr.write(f"stopped; every finished epoch is saved\nresume with: thaw train --resume {folder}\n")
        raise
    except TrainingError as error:
        raise TrainingError(f"{error}\nthe run is in {folder}") from error
    raise RuntimeError("a run ended without a result")


def _finish(finished: Finished, *, as_json: bool) -> None:
    if as_json:
        print_json(finished.metrics)
        return
    console = Console(highlight=False)
    metrics = finished.metrics
    test, cost = metrics["test"], metrics["cost"]
    low, high = test["accuracy_ci95"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("test accuracy", f"{test['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}, {test['count']:,} images)")
    table.add_row("validation accuracy", f"{metrics['validation']['accuracy']:.2%}")
    if metrics["folds"]:
        folds = metrics["folds"]
        table.add_row("cross-validation", f"{folds['mean']:.2%}, standard deviation {folds['std']:.2%} over {folds['count']} folds")
    table.add_row("parameters", f"{metrics['parameters']:,}")
    table.add_row("multiply-accumulates", f"{metrics['macs']:,}")
    table.add_row("weights", f"{cost['weight_bytes_float32']:,} bytes in float32, {cost['weight_bytes_int8']:,} in int8")
    table.add_row("latency", f"{metrics['latency']['median_us']:,.0f} us for one image (median, this machine)")
    table.add_row("time", f"{metrics['seconds']:,.0f} s")
    table.add_row("model", str(finished.folder.model))
    table.add_row("report", str(finished.folder.report))
    console.print()
    console.print(table, soft_wrap=True)


def data(
    source: str,
    *,
    data_root: Path | None,
    overrides: Sequence[str],
    sheet: Path | None,
    skip_broken: bool,
    as_json: bool,
) -> None:
    """`thaw data SOURCE`."""
    from thaw.data.summary import contact_sheet, look

    _, recipe = load_recipe(default_recipe(source), overrides)
    with Progress() as progress:
        summary = look(source, recipe.data, data_root=data_root, skip_broken=skip_broken, progress=progress.decoding)
    target = sheet if sheet is not None else Path(f"{summary.name}-sheet.png")
    contact_sheet(summary, target)
    if as_json:
        print_json(summary.as_dict() | {"contact_sheet": str(target)})
        return
    console = Console(highlight=False)
    console.print(summary.describe(), markup=False, soft_wrap=True)
    console.print(f"contact sheet: {target}", markup=False, soft_wrap=True)


def predict(run: Path, images: Sequence[Path], *, output_format: str, skip_broken: bool) -> None:
    """`thaw predict RUN IMAGE...`."""
    if output_format not in FORMATS:
        raise UsageError(f"--format {output_format}: expected one of {', '.join(FORMATS)}")
    predictions = Model.load(run).predict(images, skip_broken=skip_broken)
    if output_format == "json":
        sys.stdout.write(json.dumps([prediction.as_dict() for prediction in predictions], indent=2, ensure_ascii=False) + "\n")
    elif output_format == "csv":
        _print_csv(predictions)
    else:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("image", "class", "probability"):
            table.add_column(column, overflow="fold", justify="right" if column == "probability" else "left")
        for prediction in predictions:
            table.add_row(prediction.name, prediction.label, f"{prediction.probability:.2%}")
        Console(highlight=False, markup=False).print(table)


def _print_csv(predictions: Sequence[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    classes = predictions[0].classes if predictions else ()
    writer.writerow(["image", "class", "probability", *classes])
    for prediction in predictions:
        every = [f"{probability:.6f}" for probability in prediction.probabilities]
        writer.writerow([prediction.name, prediction.label, f"{prediction.probability:.6f}", *every])


def evaluate(run: Path, source: str, *, data_root: Path | None, skip_broken: bool, as_json: bool) -> None:
    """`thaw evaluate RUN SOURCE`."""
    model = Model.load(run)
    with Progress() as progress:
        images, problems = open_image_set(
            source,
            model.contract,
            model.classes,
            data_root=data_root,
            skip_broken=skip_broken,
            progress=progress.decoding,
        )
    names = [images.name(index) for index in range(len(images))]
    quality = evaluate_quality(model.probabilities(images.images), images.labels, images.classes, names)
    if as_json:
        print_json({"source": source, "test": quality.as_dict(), "problems": [problem.as_dict() for problem in problems]})
        return
    console = Console(highlight=False, markup=False)
    for problem in problems:
        console.print(f"{problem.severity}: {problem}", soft_wrap=True)
    low, high = quality.accuracy_ci95
    console.print(f"accuracy {quality.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, {quality.count:,} images)")
    console.print(f"expected calibration error {quality.expected_calibration_error:.4f}, cross-entropy {quality.cross_entropy:.4f}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("class", "precision", "recall", "F1", "images"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for entry in quality.per_class:
        table.add_row(entry.name, f"{entry.precision:.2%}", f"{entry.recall:.2%}", f"{entry.f1:.2%}", f"{entry.support:,}")
    console.print(table)


def info_run(run: Path, *, as_json: bool) -> None:
    """`thaw info RUN`."""
    model = Model.load(run)
    cost = layer_table(model.spec, model.fusion, model.contract.shape, len(model.classes))
    described = {
        "input": model.contract.as_dict(),
        "classes": list(model.classes),
        **{key: model.header.get(key) for key in ("dataset", "recipe", "seed", "fingerprint")},
        "cost": cost.as_dict(),
    }
    if as_json:
        print_json(described)
        return
    recipe = model.header.get("recipe")
    name = recipe.get("name", "?") if isinstance(recipe, dict) else "?"
    console = Console(highlight=False, markup=False)
    console.print(f"trained on {model.header.get('dataset')} with recipe {name}, seed {model.header.get('seed')}", soft_wrap=True)
    console.print(f"input {model.contract} ({model.contract.fit}); classes: {', '.join(model.classes)}", soft_wrap=True)
    _print_cost(console, cost)


def info_recipe(recipe: str, input_shape: str, classes: int, overrides: Sequence[str], *, as_json: bool) -> None:
    """`thaw info --recipe NAME`."""
    name, settings = load_recipe(recipe, overrides)
    cost = recipe_cost(settings, input_shape, classes)
    if as_json:
        print_json({"recipe": name, "input": input_shape, "classes": classes, **cost.as_dict()})
        return
    console = Console(highlight=False, markup=False)
    console.print(f"recipe {name}, input {input_shape}, {classes} classes")
    _print_cost(console, cost)


def recipe_cost(recipe: Recipe, input_shape: str, classes: int) -> Cost:
    """What the recipe's network costs for an input such as "28x28x1"."""
    return layer_table(recipe.model, recipe.fusion, parse_shape(input_shape), classes)


def _print_cost(console: Console, cost: Cost) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("layer", "kind", "output", "parameters", "MACs", "activation bytes"):
        table.add_column(column, justify="left" if column in ("layer", "kind", "output") else "right")
    for layer in cost.layers:
        output = "x".join(map(str, layer.output))
        table.add_row(layer.name, layer.kind, output, f"{layer.parameters:,}", f"{layer.macs:,}", f"{layer.activation_bytes:,}")
    table.add_row("total", "", "", f"{cost.parameters:,}", f"{cost.macs:,}", "")
    console.print(table)
    console.print(
        f"peak activations {cost.peak_activation_bytes_float32:,} bytes in float32, {cost.peak_activation_bytes_int8:,} in int8; "
        f"weights {cost.weight_bytes_float32:,} bytes in float32, {cost.weight_bytes_int8:,} in int8",
        soft_wrap=True,
    )


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
