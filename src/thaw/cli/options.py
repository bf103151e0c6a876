"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ArtifactFolder = Annotated[
    Path | None,
    typer.Option(
        help="The folder of the artifacts; default RUN/export, of zoo:NAME ./NAME-export.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a setting of the recipe; repeatable.", show_default=False),
]

Limits = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="LIMITS",
        help="Upper limits on the network, such as params=15000,ram=8KB,flash=32KB,macs=1M; only those named bind. ram "
        "counts the image that the caller holds; image=excluded leaves it out. A KB is 1,024 bytes, k is 1,000 and M "
        "1,000,000. balanced looks for the best network that fits; another recipe is refused if its network does not.",
        show_default=False,
    ),
]
GroupBy = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN|PATTERN",
        help="Keep images of one group (a person, a part, a recording) in one split: a table's column, folder for the "
        r"folder that an image lies in, or a regular expression for its name or path, such as '^(person\d+)_'.",
        show_default=False,
    ),
]
