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
    import thaw
    from thaw.cli.interrupt import RESUMABLE, told_when_stopped
    from thaw.cli.study_progress import StudyProgress, parse_seeds, print_study

    with StudyProgress() as progress, told_when_stopped(RESUMABLE):
        study = thaw.reproduce(
            datasets, seeds=parse_seeds(seeds), out=out, device=device, data_root=data_root, on_event=progress
        )
    print_study(study, as_json=as_json)
