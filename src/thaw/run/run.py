"""Run: a run folder, finished or interrupted; resume, predict, evaluate, export, verify, bench."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from thaw.errors import RunError
from thaw.events import OnEvent, decoding_to, steps_to
from thaw.export.card import Precision
from thaw.model.metrics_file import read_metrics
from thaw.model.model import Model
from thaw.model.probabilities import Prediction
from thaw.quoting import shell_command, xml_text
from thaw.run.folder import EXPORT_FOLDER, RunFolder, locked, open_for_resume
from thaw.run.request import TrainRequest
from thaw.wording import for_the_reader

if TYPE_CHECKING:
    from thaw.data.prepare import PreparedData
    from thaw.deploy.bench import Bench
    from thaw.deploy.export import Export
    from thaw.deploy.verify import Verification
    from thaw.evidence.findings import Finding
    from thaw.evidence.quality import Quality


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Run:
    """A run folder, finished or interrupted. `thaw.train` returns one, `Run.open` opens one.

    Attributes:
        path: the run folder.
        source: the data, for a run that was trained on data in memory; else None.
        data_root: folder that holds the named data sets; None for the folder used in training.
    """

    path: Path
    source: Any = None
    data_root: Path | None = None

    @classmethod
    def open(cls, path: str | Path, *, source: Any = None, data_root: str | Path | None = None) -> Self:
        """Open a run folder.

        Args:
            path: the folder that `thaw.train` or `thaw train` wrote.
            source: the data, needed to resume, verify or export a run that was trained on data in memory.
            data_root: folder that holds the named data sets; by default the folder used in training.

        Raises:
            RunError: when it is not a run folder, or belongs to another version.
        """
        folder, _ = open_for_resume(Path(path))
        root = None if data_root is None else Path(data_root).expanduser()
        return cls(path=folder.path, source=source, data_root=root)

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete. If not, `resume` completes it."""
        return self._folder.metrics.is_file()

    @property
    def metrics(self) -> dict[str, Any]:
        """The measurements (docs/metrics.md).

        Raises:
            RunError: when the run is not finished, or the file is damaged.
        """
        if not self.is_finished:
            raise RunError(
                f"{self.path} is not finished\n"
                f"resume it with: {shell_command(['thaw', 'train', '--resume', str(self.path)])}",
                code="run-unfinished",
            )
        return read_metrics(self._folder.metrics)

    @property
    def report(self) -> Path:
        """The HTML page of the run."""
        return self._folder.report

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Problems that the accuracy hides, such as a model that learned nothing; usually empty."""
        from thaw.evidence.findings import Finding

        found = map(Finding.from_dict, self.metrics["findings"])
        return tuple(replace(each, remedies=tuple(map(for_the_reader, each.remedies))) for each in found)

    @property
    def history(self) -> dict[str, npt.NDArray[Any]]:
        """The training history by epoch: column -> array of one entry per epoch, ready to plot.

        Columns are those of history.jsonl (docs/metrics.md), such as "stage" and "validation_accuracy". Values by
        output become one column per output, such as "losses.original", with NaN in epochs without it.
        """
        return _columns(self._records())

    @cached_property
    def model(self) -> Model:
        """The trained model.

        Raises:
            ModelFileError: when training has not finished.
        """
        return Model.load(self.path)

    def resume(self, *, on_event: OnEvent | None = None) -> Run:
        """Resume an interrupted run after its last finished epoch. A finished run is only measured again.

        Args:
            on_event: called with each event of the run (`thaw.run.events`) and each `Decoding`.

        Returns:
            The finished run.

        Raises:
            RunError: when the data have changed since the run started.
            TrainingError: when the loss is not finite.
        """
        from thaw.run.pipeline import resume_run

        events = resume_run(self.path, source=self.source, data_root=self.data_root, progress=decoding_to(on_event))
        return drive(events, on_event, source=self.source, data_root=self.data_root)

    def predict(
        self, images: object, *, skip_broken: bool = False, on_event: OnEvent | None = None
    ) -> list[Prediction]:
        """Predict the class of images; see `Model.predict`."""
        return self.model.predict(images, skip_broken=skip_broken, on_event=on_event)

    def evaluate(self, source: Any, *, skip_broken: bool = False, on_event: OnEvent | None = None) -> Quality:
        """Measure the model on other data; see `Model.evaluate`."""
        return self.model.evaluate(source, data_root=self.data_root, skip_broken=skip_broken, on_event=on_event)

    def export(
        self,
        formats: Sequence[str] | None = None,
        *,
        precision: Precision | None = None,
        out: str | Path | None = None,
        prefix: str | None = None,
    ) -> Export:
        """Export the model as `Model.export` does, by default to RUN/export, and record it in the report.

        If the int8 network is needed and its file is missing, the model is quantized again with the run's data.
        """
        from thaw.deploy.export import export, select_formats

        chosen = select_formats(formats, precision, prefix)
        with self._held() as model:
            self._prepare_graphs({each for precisions in chosen.values() for each in precisions})
            result = export(model, chosen, self._export_folder(out), prefix=prefix)
            self._record_export(result)
        return result

    def verify(
        self,
        boards: Sequence[str] = (),
        *,
        images: int | None = None,
        out: str | Path | None = None,
        data_root: str | Path | None = None,
        on_event: OnEvent | None = None,
    ) -> Verification:
        """Verify the exported files on the run's test images, as `Model.verify` does, and record it in the report.

        Raises:
            RunError: when the data have changed since training.
        """
        from thaw.deploy.verify import check_boards, verify

        check_boards(boards, images)
        folder, tell = self._export_folder(out), steps_to(on_event)
        with self._held() as model:
            test = self._data(on_event, data_root).test.open()
            missing = self._export_if_none(folder, on_event)
            result = verify(model, test, folder, boards=boards, images=images, missing=missing, tell=tell)
            self._record("verify", result.as_dict())
        return result

    def bench(
        self,
        *,
        out: str | Path | None = None,
        rounds: int = 20,
        repeats: int = 100,
        on_event: OnEvent | None = None,
    ) -> Bench:
        """Time one image in every runtime, as `Model.bench` does, and record it in the report."""
        from thaw.deploy.bench import bench

        folder, tell = self._export_folder(out), steps_to(on_event)
        with self._held() as model:
            missing = self._export_if_none(folder, on_event)
            result = bench(model, folder, missing=missing, rounds=rounds, repeats=repeats, tell=tell)
            self._record("bench", result.as_dict())
        return result

    def __repr__(self) -> str:
        if not self.is_finished:
            return f"Run({str(self.path)!r}, not finished, {len(self._records())} epochs done)"
        metrics = self.metrics
        return f"Run({str(self.path)!r}, {metrics['dataset']}, test accuracy {metrics['test']['accuracy']:.2%})"

    def _repr_html_(self) -> str:
        """A summary with the training curves, for notebooks."""
        from thaw.run.notebook import summary_html

        return summary_html(self.metrics, self.history) if self.is_finished else f"<p>{xml_text(repr(self))}</p>"

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(self.path)

    @cached_property
    def _stored(self) -> dict[str, Any]:
        return open_for_resume(self.path)[1]

    @property
    def request(self) -> TrainRequest:
        """The resolved request of the run.

        Raises:
            RunError: when run.json is damaged, or data in memory were not given again.
        """
        return TrainRequest.from_dict(self._stored, self.source)

    def _records(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in self._folder.history.read_text("utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {self._folder.history}: {error}") from error

    @contextlib.contextmanager
    def _held(self) -> Iterator[Model]:
        """The model, with the run folder locked against other processes. A run without a model is an error."""
        model = self.model
        with locked(self._folder):
            yield model

    def _export_folder(self, out: str | Path | None) -> Path:
        return self.path / EXPORT_FOLDER if out is None else Path(out).expanduser()

    def _data(self, on_event: OnEvent | None, data_root: str | Path | None = None) -> PreparedData:
        """Prepare the data of the run again."""
        from thaw.data.prepare import prepare
        from thaw.model.origin import check_fingerprint

        request = self.request
        data = prepare(
            request.source,
            request.recipe.data,
            seed=request.seed,
            data_root=data_root or self.data_root or request.data_root,
            skip_broken=request.skip_broken,
            folds=request.folds,
            progress=decoding_to(on_event),
        )
        check_fingerprint(data, self._stored.get("fingerprint"), self.path)
        return data

    def _prepare_graphs(self, precisions: set[Precision], on_event: OnEvent | None = None) -> None:
        """Quantize again, with the same result, if the int8 network is needed and its file is missing."""
        if "int8" not in precisions or self._folder.int8.is_file():
            return
        from thaw.graph.graph_file import write_graph
        from thaw.run.pipeline import quantize_run

        write_graph(self._folder.int8, *quantize_run(self.model, self._data(on_event), self.request))

    def _export_if_none(self, folder: Path, on_event: OnEvent | None) -> dict[str, str]:
        """Export all default formats if there is no export; return format -> why it could not be written."""
        from thaw.deploy.export import export_if_none

        self._prepare_graphs({"int8"}, on_event)
        made = export_if_none(self.model, folder, steps_to(on_event))
        if made is None:
            return {}
        self._record_export(made)
        return dict(made.missing)

    def _record_export(self, result: Export) -> None:
        from thaw.run.deployment import exported_files

        self._record("export", {**result.record(), "formats": exported_files(result.out)})

    def _record(self, part: Any, content: dict[str, Any]) -> None:
        """Store results in deployment.json and in the report. The folder must be locked."""
        from thaw.run.deployment import update_deployment
        from thaw.run.report import rewrite_deployment

        known = update_deployment(self.path, part, content)
        if self.is_finished:
            rewrite_deployment(self.path, self.metrics, known)


def drive(
    events: Generator[object, None, None], on_event: OnEvent | None, *, source: Any, data_root: Path | None
) -> Run:
    """Run a pipeline to its end and return the finished run."""
    from thaw.run.events import Finished

    in_memory = None if isinstance(source, str | Path) else source
    # Closed also if `on_event` raises. Otherwise the folder would stay locked as long as the traceback exists.
    with contextlib.closing(events):
        for event in events:
            if on_event is not None:
                on_event(event)
            if isinstance(event, Finished):
                return Run(path=event.path, source=in_memory, data_root=data_root)
    raise RuntimeError("a run ended without a result")


def _columns(records: Sequence[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """Records of epochs as columns. A value that is a mapping becomes one column per key."""
    flat: list[dict[str, Any]] = []
    for record in records:
        row: dict[str, Any] = {}
        for key, value in record.items():
            row |= (
                {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
            )
        flat.append(row)
    names = dict.fromkeys(name for row in flat for name in row)
    return {name: np.array([row.get(name, np.nan) for row in flat]) for name in names}
