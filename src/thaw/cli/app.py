"""The commands of `thaw`, and how their errors are shown."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from thaw._version import __version__
from thaw.cli.ablate import ablate
from thaw.cli.bench import bench
from thaw.cli.data import data
from thaw.cli.demo import demo
from thaw.cli.evaluate import evaluate
from thaw.cli.export import export
from thaw.cli.info import info
from thaw.cli.interrupt import StoppedError, exit_code, handle_signals, stopped, was_stopped
from thaw.cli.machine import in_words, open_streams, silence_output
from thaw.cli.predict import predict
from thaw.cli.reproduce import reproduce
from thaw.cli.terminal import guarded_streams
from thaw.cli.train import train
from thaw.cli.verify import verify
from thaw.cli.zoo import zoo_app
from thaw.errors import ThawError, UsageError
from thaw.quoting import NAME_LENGTH, clipped, error_text, printable
from thaw.wording import naming_options

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
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error; may be anywhere.")] = False,
) -> None:
    del debug  # `main` takes it, wherever it is on the command line
    if version:
        typer.echo(f"thaw {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (train, data, predict, evaluate, info, export, verify, bench, reproduce, ablate, demo):
    app.command()(_command)
app.add_typer(zoo_app, name="zoo")


def run() -> NoReturn:
    """Run `main`; a signal ends the process at once. Everything that must be saved is on disk by then.

    The interpreter's own shutdown would wait for threads in the middle of an operation, and may abort because of one.
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
    """Run the command line. Errors that the user can fix are shown in one or two lines on standard error."""
    given = sys.argv[1:]
    options_end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:options_end]
    arguments = [argument for argument in given[:options_end] if argument != "--debug"] + given[options_end:]
    open_streams()
    with guarded_streams(), naming_options():
        code = _run(arguments, debug=debug)
    sys.exit(code)


def _run(arguments: list[str], *, debug: bool) -> int:
    """Run a command line, show its error, if any, and return the exit code."""
    try:
        result = app(args=arguments, prog_name="thaw", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
        # Some versions of typer return this code after an interrupt; others raise, as below.
        return _tell(stopped("interrupted"), debug=False) if code == EXIT_INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return _tell(stopped("interrupted"), debug=debug)
    except BrokenPipeError:
        silence_output()
        return 1
    except ThawError as error:
        return _tell(error, debug=debug)
    except Exception as error:  # noqa: BLE001 - the last resort: no traceback unless it was asked for
        return _tell(stopped("interrupted") if was_stopped() else _in_words(error), debug=debug)


def _tell(error: ThawError, *, debug: bool) -> int:
    """Show an error and how to continue; return its exit code."""
    is_stop = isinstance(error, StoppedError)
    lines = [("" if is_stop else "error: ") + error_text(str(error))]
    if error.next_command:
        lines.append(f"{'' if is_stop else 'fix this, then '}resume with: {error.next_command}")
    # The terminal may have been closed.
    with contextlib.suppress(OSError):
        if debug:
            traceback.print_exc()
        sys.stderr.write("\n".join(lines) + "\n")
    return error.exit_code


def _in_words(error: Exception) -> ThawError:
    """Any other error as a `ThawError` with its exit code."""
    # Depending on its version, typer raises click's exceptions or its own copies of them; both have these attributes.
    format_message, code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if format_message is not None and isinstance(code, int):
        # The message quotes the command line, which may be long.
        usage = UsageError(re.sub(r"\S+", lambda word: clipped(word[0], NAME_LENGTH), format_message()))
        usage.exit_code = code
        return usage
    foreseen = in_words(error)
    if foreseen is not None:
        silence_output()
        return ThawError(foreseen)
    what = clipped(printable(f"{type(error).__name__}: {error}".splitlines()[0]))
    internal = UsageError(f"unexpected {what}\nrun again with --debug for details")
    internal.exit_code = EXIT_INTERNAL
    return internal
