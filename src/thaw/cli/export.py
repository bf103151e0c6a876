"""`thaw export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from thaw.cli.options import ArtifactFolder, DataRoot, Json, RunPath
from thaw.errors import UsageError

if TYPE_CHECKING:
    from thaw.deploy.export import Export


def export(
    run: RunPath,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMATS",
            help="onnx, litert, c, web, separated by commas; all except web by default.",
            show_default=False,
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Only the int8 network.")] = False,
    float_: Annotated[bool, typer.Option("--float", help="Only the float32 network.")] = False,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Prefix of the C symbols, macros and files, so that several models link into one program; by default "
            "derived from the run's name.",
            show_default=False,
        ),
    ] = None,
    out: ArtifactFolder = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Write formats that run on devices: ONNX and LiteRT (.tflite) in float32 and int8, C99 in int8; or a web page."""
    if int8 and float_:
        raise UsageError("--int8 and --float exclude each other: without either, both are written")
    from thaw.cli.interrupt import STOPPED, told_when_stopped
    from thaw.cli.opening import open_run
    from thaw.cli.output import print_json
    from thaw.cli.progress import Progress

    formats = None if to is None else [name.strip() for name in to.split(",") if name.strip()]
    precision: Literal["float", "int8"] | None = "int8" if int8 else "float" if float_ else None
    with Progress() as progress, told_when_stopped(STOPPED):
        result = open_run(run, data_root).export(formats, precision=precision, out=out, prefix=prefix)
        progress.say_missing(result.missing)
    if as_json:
        print_json({**result.as_dict(), "complete": result.is_complete})
    else:
        _print_export(result)
    if not result.is_complete:
        raise typer.Exit(1)


def _print_export(result: Export) -> None:
    from thaw.cli.output import columns, print_text
    from thaw.export.c_names import prefix_of_files

    rows = [("file", "bytes")]
    for exported in result.formats:
        rows += [(str(result.out / exported.format / name), f"{len(data):,}") for name, data in exported.files.items()]
    print_text(columns(rows, right=(1,)))
    for exported in result.formats:
        if exported.format == "c":
            prefix = prefix_of_files(exported.files)
            print_text(f"names in the C begin with {prefix}_ or {prefix.upper()}_; --prefix NAME chooses another")
    if result.memory:
        memory = result.memory
        print_text(
            f"int8 on a microcontroller: {memory['constant_bytes']:,} bytes of weights in flash, "
            f"{memory['arena_bytes']:,} bytes of arena in RAM; code and stack: thaw verify --board"
        )
