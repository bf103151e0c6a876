"""The library's front to deployment: `thaw export`, `thaw verify` and `thaw bench` from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thaw.deploy.bench import Bench, bench
from thaw.deploy.export import Export, TrainedRun, export
from thaw.deploy.verify import Verification, verify
from thaw.export.card import Precision


def export_run(
    run: str | Path,
    targets: Sequence[str] | None = None,
    *,
    precision: Precision | None = None,
    out: str | Path | None = None,
    prefix: str | None = None,
    source: Any = None,
    data_root: str | Path | None = None,
) -> Export:
    """Write what runs on a device, as `thaw export` does.

    Args:
        run: a run folder, "zoo:NAME", or a model file (then float32 only, and with `out`).
        targets: "onnx", "litert", "c", "web"; None for all but the web page.
        precision: "float" or "int8"; None for both where the target has both.
        out: the folder; RUN/export by default, and for "zoo:NAME" ./NAME-export.
        prefix: what symbols, macros and files of the C begin with, a C identifier; by default from the run's name.
        source: only for a run that was trained from arrays: those arrays.
        data_root: folder that holds the named data sets; by default where they were in training.

    Raises:
        ThawError: for what cannot be exported, or a folder that cannot be written. A package that is missing is told
            in the result's `missing`.
    """
    opened = TrainedRun.open(Path(run), data_root=_path(data_root), source=source)
    return export(opened, targets=targets, precision=precision, out=_path(out), prefix=prefix)


def verify_run(
    run: str | Path,
    targets: Sequence[str] = (),
    *,
    images: int | None = None,
    out: str | Path | None = None,
    source: Any = None,
    data_root: str | Path | None = None,
) -> Verification:
    """Compare every artifact with the model on the run's test images, as `thaw verify` does.

    Args:
        run: a run folder, or "zoo:NAME".
        targets: emulated cores to run the C on as well, such as "cortex-m4".
        images: so many test images; None for all, and 1,000 on an emulated core.
        out: the folder of the artifacts; RUN/export by default, where everything is exported if nothing is there.
        source: only for a run that was trained from arrays: those arrays.
        data_root: folder that holds the named data sets; by default where they were in training.

    Raises:
        ThawError: for a run without its data. What differs, fails or is missing is told in the result's `checks`.
    """
    opened = TrainedRun.open(Path(run), data_root=_path(data_root), source=source)
    return verify(opened, boards=targets, images=images, out=_path(out))


def bench_run(
    run: str | Path,
    *,
    out: str | Path | None = None,
    source: Any = None,
    data_root: str | Path | None = None,
) -> Bench:
    """Time one image through torch, onnxruntime, LiteRT and the C, as `thaw bench` does; arguments as `verify_run`."""
    opened = TrainedRun.open(Path(run), data_root=_path(data_root), source=source)
    return bench(opened, out=_path(out))


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
