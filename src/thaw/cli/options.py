"""Options and arguments shared by several commands, and which of them were given."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from thaw.errors import UsageError


def _not_empty(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise UsageError(f"budget {value!r}: expected limits such as params=15000,ram=8KB")
    return value


Source = Annotated[
    str,
    typer.Argument(
        help="digits, mnist, fashion_mnist, cifar10; a folder of class folders; a .csv or .jsonl file of paths and "
        "labels; a parquet file or folder; an .npz file; a Hub id.",
        show_default=False,
    ),
]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, a model file, or zoo:NAME.", show_default=False)
]
DataRoot = Annotated[
    Path | None, typer.Option(envvar="THAW_DATA", help="Folder that holds the named data sets.", show_default=False)
]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave out images that cannot be read, and list them.")]
Json = Annotated[bool, typer.Option("--json", help="Print only one JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ArtifactFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the exported files; default RUN/export, for zoo:NAME ./NAME-export.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Replace a setting of the recipe; repeatable.", show_default=False),
]
Seeds = Annotated[str, typer.Option(help="Seeds, separated by commas.")]
Limits = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="LIMITS",
        callback=_not_empty,
        help="Upper limits on the network's cost, such as params=15000,ram=8KB,flash=32KB,macs=1M; any of them. ram "
        "includes the input image unless image=excluded is added. KB is 1,024 bytes, k is 1,000, M is 1,000,000. The "
        "recipe balanced finds the best network that fits; other recipes are refused if theirs does not.",
        show_default=False,
    ),
]
GroupBy = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN|PATTERN",
        help="Keep images of one group (a person, a part, a recording) in one split: a table's column, folder for the "
        r"folder that contains the image, or a regular expression for its name or path, such as '^(person\d+)_'.",
        show_default=False,
    ),
]


def given_options(context: typer.Context, besides: Collection[str]) -> list[str]:
    """The options and arguments on the command line, except those named in `besides`."""
    names = []
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in besides:
            names.append(name)
    return names
