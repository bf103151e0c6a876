"""`thaw train`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thaw.cli.options import (
    DataRoot,
    Device,
    GroupBy,
    Json,
    Limits,
    Overrides,
    SkipBroken,
    given_options,
)
from thaw.errors import RunError, TrainingError, UsageError

if TYPE_CHECKING:
    import thaw
    from thaw.cli.training_progress import TrainingProgress


def train(  # noqa: PLR0913, PLR0917 - the options are the parameters
    context: typer.Context,
    source: Annotated[str | None, typer.Argument(help="Data to train on; see `thaw data`.", show_default=False)] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name or file; default balanced, but without --budget digits for digits, and paper for "
            "mnist, fashion_mnist and cifar10.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; default runs/<source>-<recipe>-<n>.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    device: Device = "auto",
    folds: Annotated[
        int, typer.Option(min=0, help="Folds of a cross-validation in addition to the model; 0 for none.")
    ] = 0,
    data_root: DataRoot = None,
    skip_broken: SkipBroken = False,
    budget: Limits = None,
    group_by: GroupBy = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Resume an interrupted run.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model and write a run folder with its report."""
    if (source is None) == (resume is None):
        raise UsageError("expected either a source to train on, or --resume with the folder of an interrupted run")
    if resume is not None and given_options(context, besides=("resume", "as_json")):
        raise UsageError("--resume uses the options of the run: it can be combined with --json only")
    import thaw
    from thaw.cli.output import print_json
    from thaw.cli.training_progress import TrainingProgress

    with TrainingProgress() as progress, _resumable(progress, resume):
        if resume is not None:
            run = thaw.Run.open(resume, data_root=data_root).resume(on_event=progress)
        else:
            run = thaw.train(
                source,
                recipe=recipe or "",
                overrides=overrides or (),
                seed=seed,
                out=out,
                overwrite=overwrite,
                device=device,
                folds=folds,
                data_root=data_root,
                skip_broken=skip_broken,
                budget=budget or "",
                group_by=group_by or "",
                on_event=progress,
            )
    if as_json:
        print_json(run.metrics)
    else:
        _print_summary(run)


@contextlib.contextmanager
def _resumable(progress: TrainingProgress, resumed: Path | None) -> Iterator[None]:
    """Add the command that resumes the run to the error of an interrupt or a failure."""
    from thaw.cli.interrupt import stopped
    from thaw.quoting import shell_command

    def resume_command() -> str:
        return shell_command(["thaw", "train", "--resume", str(progress.run_folder or resumed)])

    try:
        yield
    except KeyboardInterrupt:
        if (progress.run_folder or resumed) is None:
            raise stopped("interrupted before training started") from None
        raise stopped("interrupted; every finished epoch is saved", resume_command()) from None
    except TrainingError as error:
        raise TrainingError(f"{error}; the run is in {progress.run_folder}") from error
    except RunError as error:
        if progress.run_folder is None:
            raise
        failed = RunError(str(error).splitlines()[0])
        failed.next_command = resume_command()
        raise failed from error


def _print_summary(run: thaw.Run) -> None:
    from thaw.cli.output import columns, print_findings, print_text

    print_findings(run.findings)
    metrics = run.metrics
    test, cost, validation, int8 = metrics["test"], metrics["cost"], metrics["validation"], metrics["int8"]["test"]
    low, high = test["accuracy_ci95"]
    agreement = f"the same prediction for {int8['agreement']:.2%} of the images"
    rows = [
        ("test accuracy", f"{test['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}, {test['count']:,} images)"),
        ("balanced accuracy", f"{test['balanced_accuracy']:.2%} (mean recall over classes)"),
        (
            "in int8",
            f"{int8['accuracy']:.2%}, balanced {int8['balanced_accuracy']:.2%}; {agreement}",
        ),
        ("validation accuracy", f"{validation['accuracy']:.2%}, balanced {validation['balanced_accuracy']:.2%}"),
    ]
    if metrics["folds"]:
        folds = metrics["folds"]
        spread = f"standard deviation {folds['std']:.2%} over {folds['count']} folds"
        rows.append(("cross-validation", f"{folds['mean']:.2%}, {spread}; balanced {folds['balanced_mean']:.2%}"))
    rows += [
        ("parameters", f"{metrics['parameters']:,}"),
        ("multiply-accumulates", f"{metrics['macs']:,}"),
        ("weights", f"{cost['weight_bytes_float32']:,} bytes in float32, {cost['weight_bytes_int8']:,} in int8"),
        ("latency", f"{metrics['latency']['median_us']:,.0f} us per image (median, this machine)"),
        ("time", f"{metrics['seconds']:,.0f} s"),
        ("model", str(run.path / metrics["files"]["model"])),
        ("report", str(run.report)),
    ]
    print_text("\n" + columns(rows))
