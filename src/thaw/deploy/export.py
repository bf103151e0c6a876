"""A trained run, opened to be deployed, and its export: what `thaw export` does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.data.prepare import PreparedData, prepare
from thaw.errors import MissingDependencyError, ModelFileError, RunError, UsageError
from thaw.export.c_names import check_prefix, prefix_of_name
from thaw.export.card import ModelCard, Precision
from thaw.export.folder import ALL_TARGETS, TARGETS, ExportedTarget, read_target, write_target
from thaw.export.to_c import export_c
from thaw.export.to_litert import export_litert
from thaw.export.to_onnx import export_onnx
from thaw.export.to_web import export_web
from thaw.graph.graph import Graph
from thaw.graph.graph_file import read_graph, write_graph
from thaw.graph.interpret import run as run_reference
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.model.model import Model
from thaw.model.zoo import zoo_folder
from thaw.model.zoo_card import ZooCard, read_card
from thaw.quoting import shown
from thaw.recipe.recipe import recipe_from_dict
from thaw.run.deployment import Part, update_deployment
from thaw.run.folder import EXPORT_FOLDER, RunFolder, locked, open_for_resume, read_json
from thaw.run.metrics_file import read_metrics
from thaw.run.pipeline import MODEL_DIGEST, DecodeProgress, quantize_run
from thaw.run.quantization import float_graph, graph_header
from thaw.run.report import rewrite_deployment
from thaw.run.request import TrainRequest
from thaw.seeds import numpy_generator

PRECISIONS: tuple[Precision, ...] = ("float", "int8")
_Exporter = Callable[[Mapping[Precision, Graph], ModelCard], dict[str, bytes]]
_EXPORTERS: Mapping[str, _Exporter] = {
    "onnx": export_onnx,
    "litert": export_litert,
    "web": export_web,
}


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an export wrote.

    Attributes:
        out: the folder.
        targets: what was written, in the order in which it was asked for.
        missing: by target, why it could not be written: the package that it needs.
        memory: of an int8 network: "arena_bytes" and "constant_bytes" as the C has them.
    """

    out: Path
    targets: tuple[ExportedTarget, ...]
    missing: Mapping[str, str]
    memory: Mapping[str, int]

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked for is there."""
        return not self.missing

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: the `export` part of deployment.json, and the folder."""
        return {"out": str(self.out), **self.record()}

    def record(self) -> dict[str, Any]:
        """The `export` part of deployment.json."""
        return {
            "targets": {each.target: each.as_dict() for each in self.targets},
            "missing": dict(self.missing),
            "memory": dict(self.memory),
        }


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run, a model of the zoo, or a bare model file, with what it takes to export and verify it.

    Attributes:
        path: as it was given.
        model: the trained model.
        folder: of the run; None for a model of the zoo and for a bare model file, which are only read.
        zoo: the card of a model of the zoo, which tells of its data what run.json tells of a run's; else None.
        data_root: folder of the named data sets; None for where they were.
        source: the data themselves, for a run that was trained from arrays.
        progress: told how many images are decoded.
    """

    path: Path
    model: Model
    folder: RunFolder | None
    zoo: ZooCard | None = None
    data_root: Path | None = None
    source: Any = None
    progress: DecodeProgress | None = None

    @classmethod
    def open(
        cls, path: Path, *, data_root: Path | None = None, source: Any = None, progress: DecodeProgress | None = None
    ) -> TrainedRun:
        """Open a run folder, a model of the zoo ("zoo:NAME"), or a model file.

        Raises:
            ModelFileError: when there is no model, or it is not one.
        """
        path = path.expanduser()
        shipped = zoo_folder(path)
        folder = RunFolder(path) if path.is_dir() and RunFolder(path).request.is_file() else None
        return cls(
            path=path,
            model=Model.load(path),
            folder=folder if shipped is None else None,
            zoo=None if shipped is None else read_card(shipped),
            data_root=data_root,
            source=source,
            progress=progress,
        )

    def needs_folder(self, purpose: str) -> RunFolder:
        """The run's folder.

        Raises:
            RunError: for a model without one, naming the purpose.
        """
        if self.folder is None:
            raise RunError(
                f"{self.path} is a model without its run folder: {purpose} needs the run's data\n"
                "give the folder that thaw train wrote, with its run.json"
            )
        return self.folder

    def needs_run(self, purpose: str) -> None:
        """See that it is known what the model was trained on, and which int8 network is its own.

        Raises:
            RunError: for a bare model file, naming the purpose.
        """
        if self.zoo is None:
            self.needs_folder(purpose)

    def c_prefix(self) -> str:
        """What names in its C begin with by default: from the run folder's name, or the model's in the zoo."""
        name = self.zoo.name if self.zoo is not None else self.path.resolve().name
        return prefix_of_name(name)

    def default_out(self) -> Path:
        """Where the artifacts are: in the run's folder, or for a model of the zoo in the working folder."""
        if self.zoo is not None:
            return Path(f"{self.zoo.name}-{EXPORT_FOLDER}")
        if self.folder is None:
            raise UsageError(f"{self.path} is no run folder: say with --out where the artifacts go")
        return self.folder.path / EXPORT_FOLDER

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder, if there is one, against other processes."""
        with locked(self.folder) if self.folder is not None else contextlib.nullcontext():
            yield

    @cached_property
    def request(self) -> TrainRequest:
        """What the run was asked for.

        Raises:
            RunError: for a bare model file, or a run that was trained from arrays when they are not given again.
        """
        if self.zoo is not None:
            return TrainRequest(
                source=self.zoo.dataset,
                recipe_name=self.zoo.recipe,
                recipe=recipe_from_dict(self.model.header["recipe"]["settings"]),
                seed=self.zoo.seed,
                command=self.zoo.command,
            )
        _, kept = open_for_resume(self.needs_folder("this").path)
        if kept.get("source") is None and self.source is None:
            raise RunError(
                f"{self.path} was trained from arrays in memory, which are needed here again\n"
                "do this from Python, with source=... as it was trained"
            )
        return TrainRequest.from_dict(kept, self.source)

    @cached_property
    def data(self) -> PreparedData:
        """The data that the run was trained on, prepared again.

        Raises:
            RunError: as for `request`, or for data that are others than the run's.
            DataError: for data that cannot be found or read.
        """
        request = self.request
        data = prepare(
            request.source,
            request.recipe.data,
            seed=request.seed,
            data_root=self.data_root or request.data_root,
            skip_broken=request.skip_broken,
            folds=request.folds,
            progress=self.progress,
        )
        if data.fingerprint != self._fingerprint:
            raise RunError(
                f"the data of {self.path} have changed since it was trained\n"
                "give their folder with --data-root, as they were"
            )
        return data

    @property
    def _fingerprint(self) -> object:
        """Of the data that the model was trained on."""
        if self.zoo is not None:
            return self.zoo.fingerprint
        return read_json(self.needs_folder("this").request).get("fingerprint")

    def graph(self, precision: Precision) -> Graph:
        """The float32 or the int8 graph, with one output: the scores.

        Raises:
            NotFiniteError: when the float32 network computes NaN or infinity.
        """
        graph = self._float_graph if precision == "float" else self._int8_graph
        return replace(graph, outputs=graph.outputs[-1:])

    @cached_property
    def _float_graph(self) -> Graph:
        graph = float_graph(self.model)
        run_reference(graph, probe_images(graph.tensor(graph.input).shape))
        return graph

    @cached_property
    def _int8_graph(self) -> Graph:
        shipped = zoo_folder(self.path)
        if shipped is not None:
            return self._own_int8(RunFolder(shipped), mend="install thaw anew")
        folder = self.needs_folder("the int8 network")
        if folder.int8.is_file():
            return self._own_int8(folder, mend="remove it, and it is made anew")
        graph, header = quantize_run(self.model, self.data, self.request)
        # Kept, since it takes a while, and so that whatever is asked next is asked of the same graph.
        write_graph(folder.int8, graph, header)
        return graph

    def _own_int8(self, folder: RunFolder, mend: str) -> Graph:
        """The int8 graph in a folder, which has to be that of the model beside it."""
        try:
            graph, header = read_graph(folder.int8)
        except ModelFileError as error:
            raise ModelFileError(f"{error}\n{mend}") from error
        made_of = header.facts.get(MODEL_DIGEST, self.model.digest)
        mine = (self.model.classes, self.model.input_spec.shape, self.model.digest)
        if (header.classes, header.input_spec.shape, made_of) != mine:
            raise ModelFileError(f"{folder.int8} belongs to another model than {folder.model.name}\n{mend}")
        return graph

    def card(self) -> ModelCard:
        """What the artifacts say of themselves."""
        facts: dict[str, Any] = {}
        if self.zoo is not None:
            facts = {
                "parameters": self.zoo.parameters,
                "macs": self.zoo.macs,
                "test accuracy": _rounded(self.zoo.test.accuracy),
                "test accuracy in int8": _rounded(self.zoo.int8.accuracy),
            }
        elif self.folder is not None and self.folder.metrics.is_file():
            metrics = read_metrics(self.folder.metrics)
            facts = {
                "parameters": metrics["parameters"],
                "macs": metrics["macs"],
                "test accuracy": _rounded(metrics["test"]["accuracy"]),
                "test accuracy in int8": _rounded(metrics["int8"]["test"]["accuracy"]),
            }
        header = graph_header(self.model, facts)
        return ModelCard(name=header.name, classes=header.classes, input_spec=header.input_spec, facts=header.facts)


def probe_images(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Black, white and noise, uint8 [3, H, W, C]: a network that answers one of them with NaN is not exported."""
    noise = numpy_generator(0, "probe").integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def asked_for(targets: Sequence[str] | None, precision: Precision | None) -> dict[str, tuple[Precision, ...]]:
    """Precisions by target, for what was asked; None asks for what runs on devices.

    Raises:
        UsageError: for a target that is not known, or that has nothing in that precision.
    """
    names = list(TARGETS) if targets is None else list(dict.fromkeys(targets))
    unknown = [name for name in names if name not in ALL_TARGETS]
    if unknown or not names:
        what = f"there is no target {shown(unknown[0])}" if unknown else "no target was given"
        raise UsageError(f"{what}: expected {', '.join(ALL_TARGETS)}")
    asked = {name: tuple(each for each in ALL_TARGETS[name] if precision in (None, each)) for name in names}
    without = [name for name, precisions in asked.items() if not precisions]
    if without and targets is not None:
        raise UsageError(
            f"the {without[0]} target is {ALL_TARGETS[without[0]][0]} only: leave out --{precision}, or the target"
        )
    return {name: precisions for name, precisions in asked.items() if precisions}


def export(
    run: TrainedRun,
    *,
    targets: Sequence[str] | None = None,
    precision: Precision | None = None,
    out: Path | None = None,
    prefix: str | None = None,
) -> Export:
    """Write the artifacts of a run.

    Args:
        run: what to export.
        targets: "onnx", "litert", "c", "web"; None for all but the web page.
        precision: "float" or "int8"; None for both where the target has both.
        out: the folder; RUN/export by default, and for zoo:NAME ./NAME-export.
        prefix: what names in the C begin with; by default from the run's name (`thaw.export.c_names`).

    Raises:
        UsageError: for targets, a precision or a prefix that cannot be.
        RunError: for int8 from a bare model file, or a folder that cannot be written.
    """
    asked = asked_for(targets, precision)
    if prefix is not None:
        check_prefix(prefix)
        if "c" not in asked:
            raise UsageError("a prefix is for the names in C, which is not asked for: add c to the targets")
    folder = run.default_out() if out is None else out.expanduser()
    with run.locked():
        return write_export(run, asked, folder, prefix=prefix)


def write_export(
    run: TrainedRun, asked: Mapping[str, Sequence[Precision]], out: Path, *, prefix: str | None = None
) -> Export:
    """The export itself, with the run's folder held."""
    needed = [each for each in PRECISIONS if any(each in precisions for precisions in asked.values())]
    graphs = {each: run.graph(each) for each in needed}
    card = run.card()
    exporters: Mapping[str, _Exporter] = {**_EXPORTERS, "c": partial(export_c, prefix=prefix or run.c_prefix())}
    written, missing = [], {}
    for target, precisions in asked.items():
        try:
            files = exporters[target]({each: graphs[each] for each in precisions}, card)
        except MissingDependencyError as error:
            missing[target] = str(error)
            continue
        written.append(write_target(out, target, precisions, files))
    result = Export(out=out, targets=tuple(written), missing=missing, memory=_memory(graphs))
    if run.folder is not None:
        kept = {target: each for target in ALL_TARGETS if (each := _kept(out, target)) is not None}
        keep(run, "export", {**result.record(), "targets": kept})
    return result


def keep(run: TrainedRun, part: Part, content: Mapping[str, Any]) -> None:
    """Put what was found into the run's deployment.json and report, if it has a folder, which is held already."""
    if run.folder is None:
        return
    folder = run.folder
    known = update_deployment(folder.path, part, content)
    if folder.metrics.is_file():
        rewrite_deployment(folder.path, read_metrics(folder.metrics), known)


def _kept(out: Path, target: str) -> dict[str, Any] | None:
    """What lies in `out` of a target, as the record keeps it; None where nothing whole does."""
    with contextlib.suppress(ModelFileError):
        found = read_target(out, target)
        return None if found is None else found.as_dict()
    return None


def _memory(graphs: Mapping[Precision, Graph]) -> dict[str, int]:
    if "int8" not in graphs:
        return {}
    graph = graphs["int8"]
    return {"arena_bytes": plan_memory(graph).arena_bytes, "constant_bytes": constant_bytes(graph)}


def _rounded(share: float) -> float:
    """A share to a hundredth of a point: what a card says is read by people, and takes room on devices."""
    return round(share, 4)
