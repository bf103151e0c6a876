"""The commands of `thaw` and how their errors end."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from thaw._version import __version__
from thaw.cli.interrupt import StoppedError, exit_code, handle_signals, stopped, was_stopped
from thaw.cli.machine import in_words, open_streams, silence_output
from thaw.cli.options import (
    ArtifactFolder,
    DataRoot,
    Device,
    GroupBy,
    Json,
    Limits,
    Overrides,
    RunPath,
    SkipBroken,
    Source,
)
from thaw.cli.terminal import guarded_streams
from thaw.cli.zoo import zoo_app
from thaw.errors import ThawError, UsageError
from thaw.quoting import NAME_LENGTH, clipped, error_text, printable, shell_command

EXIT_INTERRUPTED = StoppedError.exit_code
EXIT_INTERNAL = 70

app = typer.Typer(
    name="thaw",
    help="Build lightweight CNN image classifiers for constrained devices.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error; allowed anywhere.")] = False,
) -> None:
    del debug  # `main` takes it from wherever it stands
    if version:
        typer.echo(f"thaw {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _given(context: typer.Context, besides: Collection[str]) -> list[str]:
    """The options and arguments that stand on the command line, but for those named `besides`."""
    names = []
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in besides:
            names.append(name)
    return names


@app.command()
def train(  # noqa: PLR0913, PLR0917 - the options are the parameters
    context: typer.Context,
    source: Annotated[str | None, typer.Argument(help="What to train on; see `thaw data`.", show_default=False)] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name or file; default balanced, but without --budget digits for digits, and paper for "
            "mnist, fashion_mnist and cifar10.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random in the run.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; default runs/<source>-<recipe>-<n>.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out names.")] = False,
    device: Device = "auto",
    folds: Annotated[int, typer.Option(min=0, help="Folds of a cross-validation besides the model; 0 for none.")] = 0,
    data_root: DataRoot = None,
    skip_broken: SkipBroken = False,
    budget: Limits = None,
    group_by: GroupBy = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with a run that was stopped.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model and write a run folder with its report."""
    from thaw.cli import commands

    if (source is None) == (resume is None):
        raise UsageError("give either a source to train on, or --resume with the folder of a run that was stopped")
    if resume is not None:
        if _given(context, besides=("resume", "as_json")):
            raise UsageError("--resume goes on as the run began: of the other options it takes only --json")
        commands.resume(resume, data_root=data_root, as_json=as_json)
        return
    commands.train(
        source or "",
        recipe=recipe,
        overrides=overrides or [],
        seed=seed,
        out=out,
        overwrite=overwrite,
        device=device,
        folds=folds,
        data_root=data_root,
        skip_broken=skip_broken,
        budget=budget,
        group_by=group_by,
        as_json=as_json,
        command=shell_command(["thaw", *sys.argv[1:]]),
    )


@app.command()
def data(  # noqa: PLR0913, PLR0917 - the options are the parameters
    source: Source,
    recipe: Annotated[
        str | None,
        typer.Option(help="The recipe that is to train; by default the one of `thaw train`.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    budget: Limits = None,
    data_root: DataRoot = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a contact sheet there, a PNG of some images.", show_default=False),
    ] = None,
    skip_broken: SkipBroken = False,
    group_by: GroupBy = None,
    as_json: Json = False,
) -> None:
    """Look at a source as training would: counts, classes, sizes, balance, problems; fails where there are errors."""
    from thaw.cli import commands

    commands.data(
        source,
        recipe=recipe,
        overrides=overrides or [],
        budget=budget,
        data_root=data_root,
        sheet=sheet,
        skip_broken=skip_broken,
        group_by=group_by,
        as_json=as_json,
    )


@app.command()
def predict(
    run: RunPath,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files and folders.", show_default=False)
    ],
    output_format: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    skip_broken: SkipBroken = False,
) -> None:
    """Say what images show: the class and its probability."""
    from thaw.cli import commands

    commands.predict(run, images, output_format="json" if as_json else output_format, skip_broken=skip_broken)


@app.command()
def evaluate(
    run: RunPath, source: Source, data_root: DataRoot = None, skip_broken: SkipBroken = False, as_json: Json = False
) -> None:
    """Measure a model on a source: its test split if it has one, else all of it."""
    from thaw.cli import commands

    commands.evaluate(run, source, data_root=data_root, skip_broken=skip_broken, as_json=as_json)


@app.command()
def info(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder or a model file.", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Instead of a run: a recipe's name or file.", show_default=False)
    ] = None,
    input_shape: Annotated[str, typer.Option("--input", help="Input size for --recipe.")] = "28x28x1",
    classes: Annotated[int, typer.Option(min=2, max=100_000, help="Classes for --recipe.")] = 10,
    overrides: Overrides = None,
    budget: Limits = None,
    as_json: Json = False,
) -> None:
    """Show a model, or what a recipe would make: layers, parameters, multiply-accumulates, memory."""
    from thaw.cli import commands

    if (run is None) == (recipe is None):
        raise UsageError("give either a run folder, or --recipe with a recipe's name")
    if run is not None:
        if _given(context, besides=("run", "as_json")):
            raise UsageError("--input, --classes, --set and --budget go with --recipe: a run has its own")
        commands.info_run(run, as_json=as_json)
    else:
        commands.info_recipe(recipe or "", input_shape, classes, overrides or [], budget=budget, as_json=as_json)


@app.command()
def export(
    run: RunPath,
    to: Annotated[
        str | None,
        typer.Option(help="onnx, litert, c, web, with commas between; all but web by default.", show_default=False),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Only the int8 network.")] = False,
    float_: Annotated[bool, typer.Option("--float", help="Only the float32 network.")] = False,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What symbols, macros and files of the C begin with, so that several models link into one program; "
            "default from the run's name.",
            show_default=False,
        ),
    ] = None,
    out: ArtifactFolder = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Write what runs on a device: ONNX, LiteRT (.tflite) and C99, float32 and int8; or a page (--to web)."""
    from thaw.cli import deploy

    if int8 and float_:
        raise UsageError("--int8 and --float exclude each other: without either, both are written")
    precision: Literal["float", "int8"] | None = "int8" if int8 else "float" if float_ else None
    deploy.export(run, to, precision, prefix=prefix, out=out, data_root=data_root, as_json=as_json)


@app.command()
def verify(
    run: RunPath,
    boards: Annotated[
        list[str] | None,
        typer.Option("--target", help="An emulated core too: cortex-m4, cortex-m7, ...; repeatable."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="So many test images; all by default, and 1,000 on a --target.", show_default=False),
    ] = None,
    out: ArtifactFolder = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Prove that every artifact computes what the model computes, on the test images; fails where one does not."""
    from thaw.cli import deploy

    deploy.verify(run, boards or [], images, out=out, data_root=data_root, as_json=as_json)


@app.command()
def bench(run: RunPath, out: ArtifactFolder = None, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Time one image through torch, onnxruntime, LiteRT and the C, in turns, on one thread."""
    from thaw.cli import deploy

    deploy.bench(run, out=out, data_root=data_root, as_json=as_json)


@app.command()
def reproduce(
    datasets: Annotated[
        list[str] | None, typer.Option("--dataset", help="mnist, fashion_mnist, cifar10; repeatable; all by default.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the table.")] = Path("runs/reproduce"),
    device: Device = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Run the paper's data sets and write their figures beside the published ones. Goes on where it was stopped."""
    from thaw.cli import studies

    studies.reproduce(datasets, seeds, out=out, device=device, data_root=data_root, as_json=as_json)


@app.command()
def ablate(  # noqa: PLR0913, PLR0917 - the options are the parameters
    source: Source,
    recipe: Annotated[str, typer.Option(help="A recipe's name or file.")] = "paper",
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them.")] = "0,1,2",
    study: Annotated[
        Literal["parts", "unify"],
        typer.Option(help="Whether each part of the method pays, or which way to unify two submodels does best."),
    ] = "parts",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default runs/ablate-<source>, or runs/unify-<source>.")
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Ask whether each idea of the method pays: every arm with equal parameters and equal image passes."""
    from thaw.cli import studies

    studies.ablate(
        source,
        recipe,
        overrides or [],
        seeds,
        study=study,
        out=out,
        device=device,
        data_root=data_root,
        as_json=as_json,
    )


@app.command()
def demo(
    run: RunPath,
    host: Annotated[str, typer.Option(help="Where to serve; the default is reachable from here only.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Default 8000, or the next free one; 0 for any.", show_default=False),
    ] = None,
    opens: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open a browser; by default on a desktop.", show_default=False),
    ] = None,
) -> None:
    """Serve a page that runs the model in the browser: draw, or give it images."""
    from thaw.cli import demo as page

    page.demo(run, host=host, port=port, opens=opens)


app.add_typer(zoo_app, name="zoo")


def run() -> NoReturn:
    """The program: `main`, but a signal ends the process at once, with everything that has to be on disk there.

    The interpreter's own end would wait for threads in the middle of an operation, and may abort over one.
    """
    handle_signals()
    try:
        main()
    except SystemExit as end:
        if not was_stopped() or end.code != exit_code():
            raise
    except KeyboardInterrupt:
        pass  # it came after the command had ended
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(exit_code())


def main() -> NoReturn:
    """Run the command line; errors that a user can mend end in one or two lines on standard error."""
    given = sys.argv[1:]
    options_end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:options_end]
    arguments = [argument for argument in given[:options_end] if argument != "--debug"] + given[options_end:]
    open_streams()
    with guarded_streams():
        code = _run(arguments, debug=debug)
    sys.exit(code)


def _run(arguments: list[str], *, debug: bool) -> int:
    """The exit code of a command line, whose errors are told."""
    try:
        result = app(args=arguments, prog_name="thaw", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
        # That is how some versions of typer tell of an interrupt; others raise, as below.
        return _tell(stopped("stopped"), debug=False) if code == EXIT_INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return _tell(stopped("stopped"), debug=debug)
    except BrokenPipeError:
        silence_output()
        return 1
    except ThawError as error:
        return _tell(error, debug=debug)
    except Exception as error:  # noqa: BLE001 - the last resort: no traceback unless it was asked for
        return _tell(stopped("stopped") if was_stopped() else _in_words(error), debug=debug)


def _tell(error: ThawError, *, debug: bool) -> int:
    """Show an error and how to go on; its exit code."""
    is_stop = isinstance(error, StoppedError)
    lines = [("" if is_stop else "error: ") + error_text(str(error))]
    if error.next_command:
        lines.append(f"{'' if is_stop else 'fix this, then '}resume with: {error.next_command}")
    # A terminal that was closed takes nothing more.
    with contextlib.suppress(OSError):
        if debug:
            traceback.print_exc()
        sys.stderr.write("\n".join(lines) + "\n")
    return error.exit_code


def _in_words(error: Exception) -> ThawError:
    """Any other error as one of ours, with its exit code."""
    # What typer raises for a wrong option derives from its own copy of click's exceptions, or from click's, by its
    # version; both have these two attributes.
    format_message, code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if format_message is not None and isinstance(code, int):
        # It repeats words of the command line at any length.
        told = UsageError(re.sub(r"\S+", lambda word: clipped(word[0], NAME_LENGTH), format_message()))
        told.exit_code = code
        return told
    foreseen = in_words(error)
    if foreseen is not None:
        silence_output()
        return ThawError(foreseen)
    what = clipped(printable(f"{type(error).__name__}: {error}".splitlines()[0]))
    told = UsageError(f"unexpected {what}\nrun again with --debug for the details")
    told.exit_code = EXIT_INTERNAL
    return told
