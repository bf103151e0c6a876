"""Image files and folders without labels, for prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thaw.data.checks import LEFT_OUT_KINDS, as_skippable
from thaw.data.chunks import Target, join_facts
from thaw.data.folders import path_batches, split_images
from thaw.data.images import InputSpec
from thaw.data.ingest import conversions
from thaw.data.problems import Problem, raise_errors
from thaw.data.ranges import use_problems
from thaw.data.walk import shown_path, walk_files, why_missing
from thaw.data.workers import SMALLEST_PARALLEL, decode_chunks, usual_workers
from thaw.errors import DataError
from thaw.quoting import encodable, listed, shown

Progress = Callable[[int, int], None]


def load_images(
    paths: Sequence[str | Path],
    input_spec: InputSpec,
    *,
    skip_broken: bool = False,
    may_be_none: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[npt.NDArray[np.uint8], list[str], tuple[Problem, ...]]:
    """Read images without labels, for prediction.

    Args:
        paths: image files, and folders, whose images are read recursively in natural order.
        input_spec: the input of the model.
        skip_broken: skip images that cannot be read.
        may_be_none: whether no readable image is acceptable.
        workers: number of decoding processes; by default one per core.
        progress: called with the number of decoded images and of all images.

    Returns:
        uint8 [N, h, w, c], N names, and problems.

    Raises:
        DataError: for a missing path, a broken image, or no images.
    """
    files, found = _list_images(paths)
    names = [encodable(file) for file in files]
    problems = [problem for problem in found if problem.kind not in LEFT_OUT_KINDS]
    problems += as_skippable((problem for problem in found if problem.kind in LEFT_OUT_KINDS), skip_broken=skip_broken)
    processes = (usual_workers() if workers is None else workers) if len(names) >= SMALLEST_PARALLEL else 1
    parts, facts, kept, broken, done = [], [], [], [], 0
    rules: dict[str, list[str]] = {}
    for chunk in decode_chunks(path_batches(Path(), files), Target.of(input_spec), processes, names):
        parts.append(chunk.pixels)
        facts.append(chunk.facts)
        kept += [names[done + place] for place in chunk.kept]
        broken += [f"{names[done + place]} ({reason})" for place, reason in sorted(chunk.failures.items())]
        for rule, places in chunk.rules.items():
            rules.setdefault(rule, []).extend(names[done + place] for place in places)
        done += len(chunk.kept) + len(chunk.failures)
        if progress is not None:
            progress(done, len(names))
    if broken:
        unreadable = Problem("unreadable", "error", "images that cannot be read", tuple(broken))
        problems += as_skippable([unreadable], skip_broken=skip_broken)
    problems += [*conversions(rules), *use_problems(join_facts(facts), kept, input_spec.range)]
    raise_errors("images", problems)
    if not kept and not may_be_none:
        message = f"no images in {listed(paths) or 'an empty list'}: expected image files or folders"
        raise DataError(message, code="data-empty")
    pixels = np.concatenate(parts) if parts else np.empty((0, *input_spec.shape), np.uint8)
    return pixels, kept, tuple(problems)


def _list_images(paths: Sequence[str | Path]) -> tuple[list[str], list[Problem]]:
    names: list[str] = []
    problems: list[Problem] = []
    for given in paths:
        try:
            path = Path(given).expanduser()
            is_folder, is_file = path.is_dir(), path.is_file()
        # As for `open_source`.
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read {shown(str(given))}: {reason}", code="data-source") from None
        if is_folder:
            images, stray = split_images(path, walk_files(path).files)
            names += [str(path / image) for image in images]
            problems += stray
        elif is_file:
            names.append(str(path))
        else:
            reason = why_missing(path) if path.is_symlink() else "does not exist or is not a file"
            raise DataError(f"{shown_path(given)} {reason}: expected image files or folders", code="data-source")
    return names, problems
