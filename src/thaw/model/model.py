"""Model: a trained network with its input specification and class names; predict, evaluate, export, verify, bench.

Imports that a single method needs are inside it, so that a prediction loads no exporters and no training code.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thaw.data.batches import normalize, to_unit
from thaw.data.images import InputSpec
from thaw.data.prediction_images import read_images
from thaw.data.ranges import warn_of
from thaw.errors import ModelFileError, RunError, ThawError, UsageError
from thaw.events import OnEvent, decoding_to, steps_to
from thaw.model.probabilities import Prediction, network_probabilities
from thaw.model.zoo import zoo_folder
from thaw.models.blocks import learned_parameters
from thaw.models.families import FAMILIES, FamilySpec
from thaw.models.unify import UnifySpec, build_network
from thaw.plain import check_numbers, from_plain
from thaw.quoting import shown
from thaw.training.checkpoint import open_tensors, write_tensors

if TYPE_CHECKING:
    from thaw.deploy.bench import Bench
    from thaw.deploy.export import Export
    from thaw.deploy.page_server import PageServer
    from thaw.deploy.verify import Verification
    from thaw.evidence.quality import Quality
    from thaw.export.card import ModelCard, Precision
    from thaw.graph.cost import Cost
    from thaw.graph.graph import Graph

MODEL_VERSION = 1
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Model:
    """A trained network with its input specification and class names.

    Attributes:
        module: float32, in evaluation mode.
        spec: the family and sizes of its submodels, or of the single network.
        unify: how two submodels were unified; None for a single network.
        input_spec: how an image becomes the input.
        classes: K names.
        header: other metadata of its file: "recipe", "fingerprint" of the data, "seed", ...
        file: the file that it was loaded from; None if it was not loaded.
        name: name of the zoo model, or of the folder or file that it was loaded from.
        zoo: whether it ships with the package.
    """

    module: nn.Module
    spec: FamilySpec
    unify: UnifySpec | None
    input_spec: InputSpec
    classes: tuple[str, ...]
    header: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    name: str = "model"
    zoo: bool = False

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a model from a run folder, a model file, or the zoo ("zoo:mnist-15k").

        Raises:
            ModelFileError: when there is none, or it is truncated, of another version, or contradicts itself.
        """
        shipped = zoo_folder(path)
        file = shipped or Path(path).expanduser()
        name = file.resolve().name
        if file.is_dir():
            file = file / MODEL_FILE
            if not file.is_file():
                raise ModelFileError(
                    f"{path} contains no {MODEL_FILE}: training has not finished, or it is not a run folder",
                    code="model-file-missing",
                )
        opened = open_tensors(file, version=MODEL_VERSION)
        try:
            model = cls._from_parts(opened.header, opened.tensors)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RuntimeError, ThawError) as error:
            reason = " ".join((str(error) or type(error).__name__).split())[:300]
            raise ModelFileError(f"{file} is not a model of thaw: {reason}", code="model-file-model") from error
        # The digest is checked last, so that an invalid value is reported by name.
        opened.check_digest()
        return replace(model, file=file, name=name, zoo=shipped is not None)

    @classmethod
    def _from_parts(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The model that a file's header and tensors describe, if they are consistent."""
        architecture = header["architecture"]
        input_spec = InputSpec.from_dict(header["input"])
        classes = _class_names(header["classes"])
        _check_facts(header)
        family = architecture["family"]
        if not isinstance(family, str) or family not in FAMILIES:
            raise ModelFileError(f"architecture.family = {shown(family)}: expected one of {', '.join(FAMILIES)}")
        spec = from_plain(FAMILIES[family], architecture["model"], "architecture.model")
        found = architecture["unify"]
        unify_spec = None if found is None else from_plain(UnifySpec, found, "architecture.unify")
        # The meta device allocates nothing, so that false sizes in a header are detected before memory is used.
        with torch.device("meta"):
            module = build_network(spec, unify_spec, input_spec.shape, len(classes))
        module.load_state_dict(tensors, strict=True, assign=True)
        if any(tensor.dtype != torch.float32 or not torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise ModelFileError("it holds weights that are not finite float32 numbers")
        module.requires_grad_(False).eval()
        return cls(module=module, spec=spec, unify=unify_spec, input_spec=input_spec, classes=classes, header=header)

    def save(self, path: Path) -> None:
        """Write weights and header, atomically."""
        header = {
            **self.header,
            "version": MODEL_VERSION,
            "architecture": {
                "family": self.spec.family,
                "model": {name: value for name, value in asdict(self.spec).items() if name != "family"},
                "unify": None if self.unify is None else asdict(self.unify),
            },
            "input": self.input_spec.as_dict(),
            "classes": list(self.classes),
        }
        write_tensors(path, self.module.state_dict(), header)

    def __repr__(self) -> str:
        size = f"{learned_parameters(self.module):,} parameters"
        return f"Model({self.name!r}, {self.spec.family}, {size}, input {self.input_spec}, {len(self.classes)} classes)"

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the weights. It distinguishes models of the same architecture."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            found.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    @property
    def cost(self) -> Cost:
        """Parameters, multiply-accumulates and memory, layer by layer."""
        from thaw.graph.lower import layer_table

        return layer_table(self.spec, self.unify, self.input_spec.shape, len(self.classes))

    def predict(
        self, images: object, *, skip_broken: bool = False, on_event: OnEvent | None = None
    ) -> list[Prediction]:
        """Predict the class of image files, of all images in folders in natural order, and of images in memory.

        Args:
            images: a path; a `PIL.Image.Image` of any mode, treated like its file; an array uint8 or uint16, [H, W] or
                [H, W, C] for one image or [N, H, W] or [N, H, W, C] for several, with C = 1 or 3 (an array with three
                axes is one image if its last axis has length 1 or 3); or an iterable of these, also mixed. Images are
                resized, and scaled from 16 bits, by the input specification.
            skip_broken: leave out images that cannot be decoded.
            on_event: called with each `Decoding` and each `Problem`. Without it, problems with the depth of 16-bit
                images become Python warnings.

        Raises:
            DataError: for an image that cannot be read, or an object that is not an image.
        """
        pixels, names, problems = read_images(
            images, self.input_spec, skip_broken=skip_broken, progress=decoding_to(on_event)
        )
        if on_event is None:
            warn_of(problems)
        else:
            for problem in problems:
                on_event(problem)
        return [
            Prediction(name=name, classes=self.classes, probabilities=row)
            for name, row in zip(names, self.probabilities(pixels), strict=True)
        ]

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Class probabilities, float64 [N, K], for pixels of the input specification's size, uint8 [N, H, W, C].

        Raises:
            UsageError: for another type or shape.
            NotFiniteError: when the network computes NaN or infinity.
        """
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != self.input_spec.shape:
            expected = ", ".join(map(str, self.input_spec.shape))
            raise UsageError(
                f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 [N, {expected}]", code="usage-images"
            )
        if not len(pixels):
            return np.zeros((0, len(self.classes)))
        return network_probabilities([self.module], pixels, self.input_spec)

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A function that predicts one image, uint8 [H, W, C], already prepared, for timing."""
        device = next(self.module.parameters()).device
        pixels = torch.from_numpy(np.array(image[None])).to(device)

        def call() -> object:
            with torch.inference_mode():
                return F.softmax(self.module(normalize(to_unit(pixels), self.input_spec)), dim=1)

        return call

    def evaluate(
        self,
        source: Any,
        *,
        data_root: str | Path | None = None,
        skip_broken: bool = False,
        on_event: OnEvent | None = None,
    ) -> Quality:
        """Measure the model on a source: on its test split if it has one, otherwise on all of it.

        The result's `overlap` counts the images that the model was trained on, and has the accuracy on the others. It
        is None if the training images are unknown, as for a model file without its run folder.

        Args:
            source: as for `thaw.load`.
            data_root: folder that holds the named data sets; the environment's THAW_DATA by default.
            skip_broken: leave out images that cannot be decoded.
            on_event: as for `predict`.

        Raises:
            DataError: for invalid data, such as a class that the model does not know.
        """
        from thaw.model.origin import evaluate_model

        root = None if data_root is None else Path(data_root).expanduser()
        return evaluate_model(self, source, data_root=root, skip_broken=skip_broken, on_event=on_event)

    def graph(self, precision: Precision) -> Graph:
        """The float32 or int8 network as inference operations with one output: the scores.

        Raises:
            RunError: for int8, when there is no file of the int8 network next to the model file.
            NotFiniteError: when the float32 network computes NaN or infinity.
        """
        graph = self._float_graph if precision == "float" else self._int8_graph
        return replace(graph, outputs=graph.outputs[-1:])

    @cached_property
    def _float_graph(self) -> Graph:
        from thaw.model.graphs import checked_float_graph

        return checked_float_graph(self)

    @cached_property
    def _int8_graph(self) -> Graph:
        from thaw.model.graphs import int8_graph

        return int8_graph(self)

    def card(self) -> ModelCard:
        """The metadata of exported files."""
        from thaw.model.graphs import model_card

        return model_card(self)

    def export(
        self,
        formats: Sequence[str] | None = None,
        *,
        precision: Precision | None = None,
        out: str | Path | None = None,
        prefix: str | None = None,
    ) -> Export:
        """Export the model to formats that run on devices.

        Args:
            formats: any of "onnx", "litert", "c", "web"; None for all except the web page.
            precision: "float" or "int8"; None for both if the format supports both.
            out: the folder; for a model of the zoo ./NAME-export by default.
            prefix: prefix of C symbols, macros and files, a C identifier; by default derived from the name.

        Raises:
            UsageError: for an unknown format, a format without that precision, an invalid prefix, or no folder.
            RunError: for int8 when no int8 network is stored next to the model, or when the folder cannot be written.
                Missing packages are reported in the result's `missing`.
        """
        from thaw.deploy.export import export, select_formats

        return export(self, select_formats(formats, precision, prefix), self.export_folder(out), prefix=prefix)

    def verify(
        self,
        boards: Sequence[str] = (),
        *,
        images: int | None = None,
        out: str | Path | None = None,
        data_root: str | Path | None = None,
        on_event: OnEvent | None = None,
    ) -> Verification:
        """Run the exported files of a zoo model on the test images and compare them with the reference interpreter.

        Without an earlier export, the model is exported first. For your own model, use `Run.verify`: a run knows its
        data.

        Args:
            boards: emulated boards that also run the C, such as "cortex-m4".
            images: number of test images; all by default, and 1,000 on an emulated board.
            out: the folder of the exported files; ./NAME-export by default.
            data_root: folder that holds the named data sets; the environment's THAW_DATA by default.
            on_event: called with each `Decoding` and each `Step`.

        Raises:
            UsageError: for an unknown board or no images.
            RunError: for a model that is not in the zoo, or data that have changed. Differences, failures and missing
                packages are reported in the result's `checks`.
        """
        from thaw.deploy.export import export_if_none
        from thaw.deploy.verify import check_boards, verify
        from thaw.model.origin import zoo_test_images

        check_boards(boards, images)
        if not self.zoo:
            raise RunError(
                f"{self.file} is a model without its run folder: verification needs the run's data\n"
                "open the run folder, with its run.json, instead",
                code="run-folder",
            )
        root = None if data_root is None else Path(data_root).expanduser()
        folder, tell = self.export_folder(out), steps_to(on_event)
        test = zoo_test_images(self, data_root=root, on_event=on_event)
        made = export_if_none(self, folder, tell)
        return verify(self, test, folder, boards=boards, images=images, missing=made.missing if made else {}, tell=tell)

    def bench(
        self,
        *,
        out: str | Path | None = None,
        rounds: int = 20,
        repeats: int = 100,
        on_event: OnEvent | None = None,
    ) -> Bench:
        """Time inference of one image in torch, onnxruntime, LiteRT and C: alternating, on one thread.

        Without an earlier export, the model is exported first.

        Args:
            out: the folder of the exported files; for a zoo model ./NAME-export by default.
            rounds: number of times that each runtime is timed, at least 1.
            repeats: timed inferences per round, at least 1.
            on_event: called with each `Step`.
        """
        from thaw.deploy.bench import bench
        from thaw.deploy.export import export_if_none

        folder, tell = self.export_folder(out), steps_to(on_event)
        made = export_if_none(self, folder, tell)
        return bench(self, folder, missing=made.missing if made else {}, rounds=rounds, repeats=repeats, tell=tell)

    def demo(self, *, host: str = "127.0.0.1", port: int | None = None) -> PageServer:
        """Open the server of a web page that classifies drawings and image files in the browser.

        Call `serve_forever()` on the result, a context manager whose `url` is the page's address. Nothing is written.

        Args:
            host: an address or a name of this machine; the default can be reached only from it.
            port: 0 for any free one; None for 8000 or the next free one.

        Raises:
            RunError: when the port is in use, or the address is not one of this machine.
            MissingDependencyError: when `onnx` or onnxruntime-web is missing.
        """
        from thaw.deploy.demo import demo_files
        from thaw.deploy.page_server import start_server

        return start_server(demo_files(self), host=host, port=port)

    def export_folder(self, out: str | Path | None) -> Path:
        """The folder of the exported files: `out`, or ./NAME-export for a zoo model.

        Raises:
            UsageError: when neither is known.
        """
        if out is not None:
            return Path(out).expanduser()
        if not self.zoo:
            raise UsageError(
                f"{self.file} is not a run folder: name the folder of the exported files with --out",
                code="usage-folder",
            )
        return Path(f"{self.name}-export")


def _class_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ModelFileError(f"classes = {shown(value)}: expected a list of strings")
    if len(set(value)) != len(value):
        raise ModelFileError("classes repeat a name: expected distinct names")
    return tuple(value)


def _check_facts(header: Mapping[str, Any]) -> None:
    """Check the metadata of a header that is copied to reports and exported files."""
    seed = header.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise ModelFileError(f"seed = {shown(seed)}: expected an integer of at least 0")
    for name in ("dataset", "fingerprint"):
        if not isinstance(header.get(name, ""), str):
            raise ModelFileError(f"{name} = {shown(header[name])}: expected a string")
    # The network and its input were checked against their own limits.
    check_numbers({key: value for key, value in header.items() if key not in ("architecture", "input")}, "")
