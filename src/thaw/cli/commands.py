"""What the commands do; `app` holds their options."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from thaw.api import evaluate_source
from thaw.cli.columns import columns
from thaw.cli.interrupt import stopped, watched
from thaw.cli.progress import Progress
from thaw.data.images import InputSpec, parse_shape
from thaw.data.prepare import load_images
from thaw.errors import RunError, TrainingError, UsageError
from thaw.evidence.findings import Finding
from thaw.evidence.quality import Quality
from thaw.graph.cost import CODE_BYTES, Cost
from thaw.graph.lower import layer_table
from thaw.model.model import Model, Prediction
from thaw.model.training_images import SEEN_FILE
from thaw.quoting import csv_line, given, json_text, printable, shell_command
from thaw.recipe.budget import Budget, ram_parts
from thaw.recipe.recipe import default_recipe, grouped, load_recipe
from thaw.run.notes import input_note
from thaw.run.pipeline import Begun, Event, Finished, Started, resume_run, start_run
from thaw.run.request import TrainRequest
from thaw.run.resolve import settle_input, with_network
from thaw.training.compute import keep_freed_memory

FORMATS = ("table", "json", "csv")


def train(  # noqa: PLR0913 - the options of the command
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
    budget: str | None,
    group_by: str | None,
    as_json: bool,
    command: str,
) -> None:
    """`thaw train SOURCE`."""
    request = replace(
        _request(source, recipe, overrides, budget, data_root=data_root, skip_broken=skip_broken, group_by=group_by),
        seed=seed,
        device=device,
        folds=folds,
        command=command,
    )
    with Progress() as progress:
        events = start_run(request, out=out, overwrite=overwrite, progress=progress.decoding)
        finished = _drive(events, progress)
    _finish(finished, as_json=as_json)


def _request(
    source: str,
    recipe: str | None,
    overrides: Sequence[str],
    budget: str | None,
    *,
    data_root: Path | None,
    skip_broken: bool,
    group_by: str | None,
) -> TrainRequest:
    """What `thaw train` and `thaw data` are asked for alike."""
    name, settings = load_recipe(recipe or default_recipe(source, has_budget=budget is not None), overrides)
    return TrainRequest(
        source=source,
        recipe_name=name,
        recipe=grouped(settings, group_by or ""),
        data_root=data_root,
        skip_broken=skip_broken,
        budget=None if budget is None else Budget.parse(budget),
        overrides=tuple(overrides),
    )


def resume(path: Path, *, data_root: Path | None, as_json: bool) -> None:
    """`thaw train --resume DIR`."""
    with Progress() as progress:
        finished = _drive(resume_run(path, data_root=data_root, progress=progress.decoding), progress, resumed=path)
    _finish(finished, as_json=as_json)


def _drive(events: Iterator[Event], progress: Progress, *, resumed: Path | None = None) -> Finished:
    """Show a run's events; an interrupt or a failure ends with how to resume, once there is a run to be resumed."""
    folder: Path | None = None
    # Here and not in the library: it holds for the whole process, which is ours only on the command line.
    keep_freed_memory()
    try:
        for event in watched(events):
            progress.show(event)
            if isinstance(event, Begun | Started):
                folder = event.folder.path
            if isinstance(event, Finished):
                return event
    except KeyboardInterrupt:
        left = folder or resumed
        if left is None:
            raise stopped("stopped before training began") from None
        raise stopped("stopped; every finished epoch is saved", _resume_command(left)) from None
    except TrainingError as error:
        raise TrainingError(f"{error}; the run is in {folder}") from error
    except RunError as error:
        if folder is None:
            raise
        failed = RunError(str(error).splitlines()[0])
        failed.next_command = _resume_command(folder)
        raise failed from error
    raise RuntimeError("a run ended without a result")


def _resume_command(folder: Path) -> str:
    return shell_command(["thaw", "train", "--resume", str(folder)])


def _finish(finished: Finished, *, as_json: bool) -> None:
    if as_json:
        print_json(finished.metrics)
        return
    metrics, folder = finished.metrics, finished.folder
    _print_findings(map(Finding.from_dict, metrics["findings"]))
    test, cost = metrics["test"], metrics["cost"]
    low, high = test["accuracy_ci95"]
    accuracy = f"{test['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}, {test['count']:,} images)"
    in_int8 = metrics["int8"]["test"]
    agreement = f"the same answer for {in_int8['agreement']:.2%} of the images"
    weights = f"{cost['weight_bytes_float32']:,} bytes in float32, {cost['weight_bytes_int8']:,} in int8"
    validation = metrics["validation"]
    on_validation = f"{validation['accuracy']:.2%}, balanced {validation['balanced_accuracy']:.2%}"
    rows = [("test accuracy", accuracy), ("validation accuracy", on_validation)]
    balanced = f"{in_int8['accuracy']:.2%}, balanced {in_int8['balanced_accuracy']:.2%}; {agreement}"
    rows.insert(1, ("in int8", balanced))
    rows.insert(1, ("balanced accuracy", f"{test['balanced_accuracy']:.2%} (mean recall over classes)"))
    if metrics["folds"]:
        folds = metrics["folds"]
        spread = f"standard deviation {folds['std']:.2%} over {folds['count']} folds"
        rows.append(("cross-validation", f"{folds['mean']:.2%}, {spread}; balanced {folds['balanced_mean']:.2%}"))
    rows += [
        ("parameters", f"{metrics['parameters']:,}"),
        ("multiply-accumulates", f"{metrics['macs']:,}"),
        ("weights", weights),
        ("latency", f"{metrics['latency']['median_us']:,.0f} us for one image (median, this machine)"),
        ("time", f"{metrics['seconds']:,.0f} s"),
        ("model", str(folder.model)),
        ("report", str(folder.report)),
    ]
    print_text("\n" + columns(rows))


def _print_findings(findings: Iterable[Finding]) -> None:
    """Before everything else, so that no accuracy is read without them."""
    for finding in findings:
        print_text(str(finding))
        if finding.remedies:
            print_text(f"  try: {printable('; '.join(finding.remedies))}")


def data(  # noqa: PLR0913 - the options of the command
    source: str,
    *,
    recipe: str | None,
    overrides: Sequence[str],
    budget: str | None,
    data_root: Path | None,
    sheet: Path | None,
    skip_broken: bool,
    group_by: str | None,
    as_json: bool,
) -> None:
    """`thaw data SOURCE`."""
    from thaw.data.summary import contact_sheet, look

    request = _request(
        source, recipe, overrides, budget, data_root=data_root, skip_broken=skip_broken, group_by=group_by
    )
    with Progress() as progress:
        request, reason = settle_input(request)
        settings = request.recipe.data
        summary = look(source, settings, data_root=data_root, skip_broken=skip_broken, progress=progress.decoding)
    if reason:
        summary = replace(summary, problems=(*summary.problems, input_note(summary.input, reason)))
    written = None if sheet is None else str(contact_sheet(summary, sheet))
    if as_json:
        print_json(summary.as_dict() | {"recipe": request.recipe_name, "contact_sheet": written})
    else:
        print_text(summary.describe())
        print_text(f"  recipe: {printable(request.recipe_name)}; --recipe, --budget and --set as for thaw train")
        print_text(f"contact sheet: {printable(written or 'none; --sheet FILE.png writes one')}")
    if not summary.usable:
        raise typer.Exit(1)


def predict(run: Path, images: Sequence[Path], *, output_format: str, skip_broken: bool) -> None:
    """`thaw predict RUN IMAGE...`."""
    if output_format not in FORMATS:
        raise UsageError(f"--format {given(output_format)}: expected one of {', '.join(FORMATS)}")
    model = Model.load(run)
    with Progress() as progress:
        pixels, names, problems = load_images(
            images, model.input_spec, skip_broken=skip_broken, progress=progress.decoding
        )
        if output_format != "json":
            for problem in problems:
                progress.say(f"{problem.severity}: {problem}")
    predictions = model.label(pixels, names)
    if output_format == "json":
        print_json(
            {
                "classes": list(model.classes),
                "predictions": [prediction.as_dict() for prediction in predictions],
                "problems": [problem.as_dict() for problem in problems],
            }
        )
    elif output_format == "csv":
        _print_csv(predictions)
    else:
        rows = [(entry.name, entry.label, f"{entry.probability:.2%}") for entry in predictions]
        print_text(columns([("image", "class", "probability"), *rows], right=(2,)))


def _print_csv(predictions: Sequence[Prediction]) -> None:
    classes = predictions[0].classes if predictions else ()
    sys.stdout.write(csv_line(["image", "class", "probability", *classes]))
    for prediction in predictions:
        cells = [prediction.name, prediction.label, prediction.probability, *prediction.probabilities]
        sys.stdout.write(csv_line(cells))


def evaluate(run: Path, source: str, *, data_root: Path | None, skip_broken: bool, as_json: bool) -> None:
    """`thaw evaluate RUN SOURCE`."""
    model = Model.load(run)
    with Progress() as progress:
        quality, problems = evaluate_source(
            model, source, data_root=data_root, skip_broken=skip_broken, progress=progress.decoding
        )
    if as_json:
        print_json(
            {
                "source": source,
                "test": quality.as_dict(),
                "findings": [finding.as_dict() for finding in quality.findings],
                "overlap": None if quality.overlap is None else quality.overlap.as_dict(),
                "problems": [problem.as_dict() for problem in problems],
            }
        )
        return
    _print_findings(quality.findings)
    for problem in problems:
        print_text(f"{problem.severity}: {problem}")
    low, high = quality.accuracy_ci95
    print_text(f"accuracy {quality.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, {quality.count:,} images)")
    print_text(f"balanced accuracy {quality.balanced_accuracy:.2%} (mean recall over the classes that have images)")
    print_text(_overlap_line(quality))
    calibration = f"expected calibration error {quality.expected_calibration_error:.4f}"
    print_text(f"{calibration}, cross-entropy {quality.cross_entropy:.4f}")
    rows = [
        (entry.name, *map(_share, (entry.precision, entry.recall, entry.f1)), f"{entry.support:,}")
        for entry in quality.per_class
    ]
    print_text(columns([("class", "precision", "recall", "F1", "images"), *rows], right=(1, 2, 3, 4)))


def _overlap_line(quality: Quality) -> str:
    """How many of the images the model was trained on."""
    if quality.overlap is None:
        return f"training images unknown: there is no {SEEN_FILE} of this model beside it, as in its run folder"
    return f"{'warning' if quality.overlap.used else 'note'}: {quality.overlap}"


def _share(value: float | None) -> str:
    """A share in percent; "-" for one of nothing."""
    return "-" if value is None else f"{value:.2%}"


def info_run(run: Path, *, as_json: bool) -> None:
    """`thaw info RUN`."""
    model = Model.load(run)
    cost = layer_table(model.spec, model.unify, model.input_spec.shape, len(model.classes))
    if as_json:
        kept = {key: model.header.get(key) for key in ("dataset", "recipe", "seed", "fingerprint")}
        described = {"input": model.input_spec.as_dict(), "classes": list(model.classes), **kept, **cost.as_dict()}
        print_json(described)
        return
    recipe = model.header.get("recipe")
    name = recipe.get("name", "?") if isinstance(recipe, dict) else "?"
    origin = f"trained on {model.header.get('dataset')} with recipe {name}, seed {model.header.get('seed')}"
    print_text(printable(origin))
    taken = f"input {model.input_spec} ({model.input_spec.fit}{model.input_spec.range_in_words})"
    print_text(printable(f"{taken}; classes: {', '.join(model.classes)}"))
    _print_cost(cost)


def info_recipe(
    recipe: str,
    input_shape: str,
    classes: int,
    overrides: Sequence[str],
    *,
    budget: str | None,
    as_json: bool,
) -> None:
    """`thaw info --recipe NAME`."""
    name, settings = load_recipe(recipe, overrides)
    height, width, channels = parse_shape(input_shape)
    input_spec = InputSpec(height=height, width=width, channels=channels)
    allowed = None if budget is None else Budget.parse(budget)
    settled, notes = with_network(settings, allowed, input_spec.shape, classes)
    cost = layer_table(settled.model, settled.unify_spec, input_spec.shape, classes)
    if as_json:
        model, chosen = settled.as_dict()["model"], [note.as_dict() for note in notes]
        described = {"recipe": name, "input": str(input_spec), "classes": classes, "model": model, "chosen": chosen}
        print_json(described | cost.as_dict())
        return
    print_text(f"recipe {printable(name)}, input {input_spec}, {classes} classes")
    for note in notes:
        print_text(f"  {note.severity}: {note}")
    _print_cost(cost)


def _print_cost(cost: Cost) -> None:
    rows = [("layer", "kind", "output", "parameters", "MACs", "activation bytes")]
    for layer in cost.layers:
        output = "x".join(map(str, layer.output))
        numbers = (f"{layer.parameters:,}", f"{layer.macs:,}", f"{layer.activation_bytes:,}")
        rows.append((layer.name, layer.kind, output, *numbers))
    rows.append(("total", "", "", f"{cost.parameters:,}", f"{cost.macs:,}", ""))
    print_text(columns(rows, right=(3, 4, 5)))
    peaks = f"{cost.peak_activation_bytes_float32:,} bytes in float32, {cost.peak_activation_bytes_int8:,} in int8"
    print_text(f"peak activations {peaks}")
    print_text(f"weights {cost.weight_bytes_float32:,} bytes in float32, {cost.weight_bytes_int8:,} in int8")
    print_text(f"RAM for the C in int8 {cost.ram_bytes:,} bytes: {ram_parts(cost)}")
    constants = f"{cost.flash_bytes - CODE_BYTES:,} of constants and {CODE_BYTES:,} allowed for code"
    print_text(f"flash of the C in int8 {cost.flash_bytes:,} bytes: {constants}")


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json_text(content, indent=2) + "\n")


def print_text(text: str) -> None:
    """Lines on standard output."""
    sys.stdout.write(text + "\n")
