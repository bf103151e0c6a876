"""`thaw reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thaw.cli.options import DataRoot, Device, Json, Seeds


def reproduce(
    datasets: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="mnist, fashion_mnist or cifar10; repeatable. [default: all]"),
    ] = None,
    seeds: Seeds = "0,1,2",
    out: Annotated[Path, typer.Option(help="Folder for the runs and the table.")] = Path("runs/reproduce"),
    device: Device = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Train the paper's networks and compare their accuracy with the published figures.

    Running the command again resumes an interrupted study.
    """
    from thaw.cli.study_progress import show_study
    from thaw.studies.reproduce import PUBLISHED, parse_seeds
    from thaw.studies.reproduce import reproduce as run_reproduction

    show_study(
        run_reproduction,
        list(datasets or PUBLISHED),
        parse_seeds(seeds),
        out=out,
        device=device,
        data_root=data_root,
        as_json=as_json,
    )
