"""Comparison of exported files with the reference interpreter on test images: `thaw verify`.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thaw.data.images import ImageSet
from thaw.deploy.export import Deployable
from thaw.deploy.formats import FORMATS, Runtime, default_formats, runtime_versions, runtimes
from thaw.errors import MissingDependencyError, ModelFileError, ThawError, UsageError
from thaw.evidence.emulate import BOARDS, Emulation, emulate
from thaw.evidence.environment import environment
from thaw.evidence.verify import FloatComparison, Int8Comparison, compare_float, compare_int8, verify_int8
from thaw.export.card import Precision
from thaw.export.folder import ExportedFormat, read_format
from thaw.graph.cost import count_macs
from thaw.graph.graph import Graph
from thaw.graph.interpret import run as run_reference
from thaw.quoting import shown

EMULATED_IMAGES = 1000
"""Default number of images on an emulated board, where an image takes 10 ms or more."""

Result = Literal["equal", "close", "differs", "failed", "missing"]
Tell = Callable[[str], None]
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One exported file in one runtime.

    Attributes:
        format: "onnx", "litert" or "c".
        precision: "float" or "int8".
        runtime: the runtime.
        must_be_equal: whether every byte must equal the reference interpreter's; otherwise it must be close.
        comparison: with the reference interpreter; None if it did not run.
        accuracy: fraction of correctly classified images, 0 to 1; None if it did not run.
        emulation: results of an emulated board, as `Emulation.as_dict`, and "instructions_per_mac".
        problem: why it did not run; "" if it ran.
        is_missing: whether a package or program is missing.
    """

    format: str
    precision: Precision
    runtime: str
    must_be_equal: bool
    comparison: FloatComparison | Int8Comparison | None = None
    accuracy: float | None = None
    emulation: Mapping[str, Any] | None = None
    problem: str = ""
    is_missing: bool = False

    @property
    def result(self) -> Result:
        """The outcome in one word."""
        if self.comparison is None:
            return "missing" if self.is_missing else "failed"
        if isinstance(self.comparison, Int8Comparison) and self.comparison.is_equal:
            return "equal"
        return "close" if self.comparison.is_close and not self.must_be_equal else "differs"

    @property
    def statement(self) -> str:
        """The result of the comparison, or why it did not run."""
        return "; ".join(self.problem.splitlines()) if self.comparison is None else self.comparison.statement

    @property
    def is_verified(self) -> bool:
        """Whether the file gives the expected results."""
        return self.result in {"equal", "close"}

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "format": self.format,
            "precision": self.precision,
            "runtime": self.runtime,
            "must_be_equal": self.must_be_equal,
            "result": self.result,
            "statement": self.statement,
            "problem": self.problem,
            "accuracy": self.accuracy,
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
            "emulation": None if self.emulation is None else dict(self.emulation),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Verification:
    """The result of a verification.

    Attributes:
        images: number of test images that ran on this machine.
        test_images: total number of test images.
        checks: one for each exported file and runtime.
        changed: files that changed after the export, as "format/name".
    """

    images: int
    test_images: int
    checks: tuple[Check, ...]
    changed: tuple[str, ...]

    @property
    def is_verified(self) -> bool:
        """Whether all files ran and give the expected results."""
        return bool(self.checks) and all(check.is_verified for check in self.checks)

    def __repr__(self) -> str:
        verified = sum(check.is_verified for check in self.checks)
        return f"Verification({verified} of {len(self.checks)} verified on {self.images:,} images)"

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: the `verify` part of deployment.json."""
        return {
            "verified": self.is_verified,
            "images": self.images,
            "test_images": self.test_images,
            "checks": [check.as_dict() for check in self.checks],
            "changed": list(self.changed),
            "environment": environment("cpu"),
            "runtimes": dict(runtime_versions()),
        }


def check_boards(boards: Sequence[str], images: int | None) -> None:
    """Check the arguments of `verify` before any data are read.

    Raises:
        UsageError: for an unknown board, or no images.
    """
    unknown = [board for board in boards if board not in BOARDS]
    if unknown:
        raise UsageError(f"unknown board {shown(unknown[0])}: expected one of {', '.join(BOARDS)}", code="usage-verify")
    if images is not None and images < 1:
        raise UsageError(f"{images} images: expected at least 1", code="usage-verify")


def verify(
    model: Deployable,
    test: ImageSet,
    out: Path,
    *,
    boards: Sequence[str] = (),
    images: int | None = None,
    missing: Mapping[str, str] | None = None,
    tell: Tell = lambda _: None,
) -> Verification:
    """Run all files exported to `out` on test images and compare them with the reference interpreter.

    Args:
        model: the exported model.
        test: labeled images of the model's input size.
        out: the folder of the exported files.
        boards: emulated boards that also run the C, checked by `check_boards`.
        images: number of test images, spread evenly over the test set; None for all, and 1,000 on a board.
        missing: format -> why it could not be exported.
        tell: called with a line of text for each step.

    Raises:
        UsageError: for boards when no C was exported.
    """
    exported, failed = read_exports(out)
    failed += [
        _failed(name, FORMATS[name].precisions[-1], "", MissingDependencyError(why))
        for name, why in (missing or {}).items()
    ]
    wanted = list(dict.fromkeys(boards))
    if wanted and "c" not in exported and not any(check.format == "c" for check in failed):
        raise UsageError(f"{out} holds no C for {wanted[0]}\nexport it first: thaw export --to c", code="usage-verify")
    work = _Verifier(model, test, spread(len(test), images), exported, tell)
    checks = [*failed, *work.on_this_machine()]
    if "c" in exported:
        checks += work.on_boards(wanted, images)
    changed = tuple(f"{each.format}/{name}" for each in exported.values() for name in each.changed)
    return Verification(images=len(work.rows), test_images=len(test), checks=tuple(checks), changed=changed)


def spread(count: int, wanted: int | None) -> npt.NDArray[np.int64]:
    """`wanted` of the numbers 0 to count - 1, evenly spread; all of them if `wanted` is larger or None."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.arange(wanted) * count // wanted


def read_exports(out: Path) -> tuple[dict[str, ExportedFormat], list[Check]]:
    """The exports in `out`, by format, and a failed check for each one that cannot be read."""
    found: dict[str, ExportedFormat] = {}
    failed: list[Check] = []
    for name in default_formats():
        try:
            exported = read_format(out, name)
        except ModelFileError as error:
            failed.append(_failed(name, FORMATS[name].precisions[-1], "", error))
            continue
        if exported is not None:
            found[name] = exported
    return found, failed


def _failed(name: str, precision: Precision, runtime: str, error: ThawError) -> Check:
    return Check(
        format=name,
        precision=precision,
        runtime=runtime,
        must_be_equal=False,
        problem=str(error),
        is_missing=isinstance(error, MissingDependencyError),
    )


class _Verifier:
    """The images and the reference interpreter's scores for them, computed once per precision."""

    def __init__(
        self,
        model: Deployable,
        test: ImageSet,
        rows: npt.NDArray[np.int64],
        exported: Mapping[str, ExportedFormat],
        tell: Tell,
    ) -> None:
        self.model = model
        self.rows = rows
        self.images = np.ascontiguousarray(test.images[rows])
        self.labels = np.asarray(test.labels)[rows]
        self.exported = exported
        self.tell = tell
        self._expected: dict[Precision, Array] = {}

    def expected(self, precision: Precision) -> Array:
        """The reference interpreter's scores, [N, K]."""
        if precision not in self._expected:
            self.tell(f"the reference interpreter, {precision}: {len(self.images):,} images")
            graph = self.model.graph(precision)
            self._expected[precision] = run_reference(graph, self.images)[graph.outputs[-1]]
        return self._expected[precision]

    def on_this_machine(self) -> Iterator[Check]:
        """A check for every runtime that can run an exported file."""
        for name, runtime in runtimes():
            exported = self.exported.get(name)
            if exported is not None and runtime.precision in exported.precisions:
                # Outside the try block: without the reference interpreter nothing can be verified.
                self.expected(runtime.precision)
                try:
                    yield self._check(runtime, exported)
                except ThawError as error:
                    failed = _failed(name, runtime.precision, runtime.name, error)
                    yield replace(failed, must_be_equal=runtime.is_exact)

    def _check(self, runtime: Runtime, exported: ExportedFormat) -> Check:
        expected, graph = self.expected(runtime.precision), self.model.graph(runtime.precision)
        self.tell(f"{exported.format} {runtime.precision}, {runtime.name}: {len(self.images):,} images")
        runner = runtime.open(exported.files, graph, True)
        try:
            scores = runner.run(self.images)
            comparison: FloatComparison | Int8Comparison
            if runtime.precision == "float":
                comparison = compare_float(expected, scores)
            else:
                comparison = verify_int8(
                    graph, expected, scores, runner, self.images, is_exact=runtime.is_exact, labels=self.labels
                )
        finally:
            runner.close()
        return Check(
            format=exported.format,
            precision=runtime.precision,
            runtime=runtime.name,
            must_be_equal=runtime.is_exact,
            comparison=comparison,
            accuracy=self._accuracy(scores, self.labels),
        )

    def on_boards(self, boards: Sequence[str], images: int | None) -> Iterator[Check]:
        """A check for every emulated board."""
        chosen = spread(len(self.images), EMULATED_IMAGES if images is None else images)
        if boards:
            self.expected("int8")
        for board in boards:
            try:
                yield self._emulated(board, chosen)
            except ThawError as error:
                yield replace(_failed("c", "int8", board, error), must_be_equal=True)

    def _emulated(self, board: str, chosen: npt.NDArray[np.int64]) -> Check:
        expected = self.expected("int8")[chosen]
        self.tell(f"c int8, {board}: {len(chosen):,} images")
        emulation = emulate(self.exported["c"].files, self.images[chosen], board)
        return Check(
            format="c",
            precision="int8",
            runtime=board,
            must_be_equal=True,
            comparison=compare_int8(expected, emulation.scores),
            accuracy=self._accuracy(emulation.scores, self.labels[chosen]),
            emulation=_with_macs(emulation, self.model.graph("int8")),
        )

    @staticmethod
    def _accuracy(scores: Array, labels: Array) -> float:
        return float((scores.argmax(axis=1) == labels).mean())


def _with_macs(emulation: Emulation, graph: Graph) -> dict[str, Any]:
    macs = count_macs(graph)
    return {
        **emulation.as_dict(),
        "macs": macs,
        "instructions_per_mac": emulation.instructions_per_inference / macs if macs else None,
    }
