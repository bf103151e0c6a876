"""Model: a trained network with its input specification and class names, as it is saved, opened and used.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thaw.data.batches import normalize, to_unit
from thaw.data.images import InputSpec
from thaw.data.prediction_images import read_images
from thaw.data.ranges import warn_of
from thaw.errors import ModelFileError, ThawError, UsageError
from thaw.finite import check_finite
from thaw.model.zoo import zoo_folder
from thaw.models.families import FAMILIES, FamilySpec
from thaw.models.unify import UnifySpec, build_network
from thaw.plain import check_numbers, from_plain
from thaw.quoting import shown
from thaw.training.checkpoint import open_tensors, write_tensors

MODEL_VERSION = 1
MODEL_FILE = "model.safetensors"
_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image: a row of probabilities, float64 [K], in the order of `classes`."""

    name: str
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """The probability of `label`, 0 to 1."""
        return float(self.probabilities.max())

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: image, class, probability, and the probabilities of all classes."""
        every = dict(zip(self.classes, map(float, self.probabilities), strict=True))
        return {"image": self.name, "class": self.label, "probability": self.probability, "probabilities": every}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network and everything that is needed to use it.

    Attributes:
        module: float32, in evaluation mode.
        spec: the family of its submodels, or of the one network, and their sizes.
        unify: how two submodels were unified; None where one network stands alone.
        input_spec: what it takes as input.
        classes: K names.
        header: what else the file says: "recipe", "fingerprint" of the data, "seed", ...
        file: where it was opened; None for one that was not.
    """

    module: nn.Module
    spec: FamilySpec
    unify: UnifySpec | None
    input_spec: InputSpec
    classes: tuple[str, ...]
    header: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a run folder, a model file, or a model that ships with the package, such as "zoo:mnist-15k".

        Raises:
            ModelFileError: when there is none, or it is truncated, of another version, or contradicts itself.
        """
        file = zoo_folder(path) or Path(path).expanduser()
        if file.is_dir():
            file = file / MODEL_FILE
            if not file.is_file():
                raise ModelFileError(
                    f"{path} holds no {MODEL_FILE}: its training has not finished, or it is no run folder"
                )
        opened = open_tensors(file, version=MODEL_VERSION)
        try:
            model = cls._from_parts(opened.header, opened.tensors)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RuntimeError, ThawError) as error:
            reason = " ".join((str(error) or type(error).__name__).split())[:300]
            raise ModelFileError(f"{file} is not a model of thaw: {reason}") from error
        # Last, so that a value that cannot be is told by its name.
        opened.check_digest()
        return replace(model, file=file)

    @classmethod
    def _from_parts(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The model that a file's header and tensors describe; refuses what contradicts itself."""
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
        # On torch's meta device sizes are free, so a header that lies about them is found before memory is taken.
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
                "model": asdict(self.spec),
                "unify": None if self.unify is None else asdict(self.unify),
            },
            "input": self.input_spec.as_dict(),
            "classes": list(self.classes),
        }
        write_tensors(path, self.module.state_dict(), header)

    @property
    def digest(self) -> str:
        """SHA-256 over the weights, in hexadecimal digits: what tells two models of one architecture apart."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            found.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def predict(self, images: object, *, skip_broken: bool = False) -> list[Prediction]:
        """Predictions for image files, for all images in folders in natural order, and for images in memory.

        Args:
            images: a path; a `PIL.Image.Image`, of any mode, which is treated as its file would be; an array uint8 or
                uint16, [H, W] or [H, W, C] of one image or [N, H, W] or [N, H, W, C] of several, with C = 1 or 3 (an
                array of three axes is one image where its last axis has 1 or 3 entries); or a list or other iterable
                of these, in any mixture. All are resized, and scaled from 16 bits, as the input specification says.
            skip_broken: leave out images that cannot be decoded.

        Raises:
            DataError: naming what cannot be read, or telling what was given instead of an image.
        """
        pixels, names, problems = read_images(images, self.input_spec, skip_broken=skip_broken)
        warn_of(problems)
        return self.label(pixels, names)

    def label(self, pixels: npt.NDArray[np.uint8], names: Sequence[str]) -> list[Prediction]:
        """Predictions for pixels as `probabilities` takes them, under their N names."""
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
            raise UsageError(f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 [N, {expected}]")
        if not len(pixels):
            return np.zeros((0, len(self.classes)))
        return network_probabilities([self.module], pixels, self.input_spec)

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A call that gives the probabilities of one image, uint8 [H, W, C], with everything prepared, for timing."""
        device = next(self.module.parameters()).device
        pixels = torch.from_numpy(np.array(image[None])).to(device)

        def call() -> object:
            with torch.inference_mode():
                return F.softmax(self.module(normalize(to_unit(pixels), self.input_spec)), dim=1)

        return call


def network_probabilities(
    modules: Sequence[nn.Module], pixels: npt.NDArray[np.uint8], input_spec: InputSpec
) -> npt.NDArray[np.float64]:
    """The mean of the modules' class probabilities, float64 [N, K], for pixels uint8 [N, H, W, C] with N at least 1.

    Raises:
        NotFiniteError: when they are NaN.
    """
    device = next(modules[0].parameters()).device
    rows: list[npt.NDArray[np.float64]] = []
    for module in modules:
        module.eval()
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            chunk = torch.from_numpy(np.array(pixels[start : start + _BATCH])).to(device)
            x = normalize(to_unit(chunk), input_spec)
            total = sum(F.softmax(module(x).double(), dim=1) for module in modules) / len(modules)
            rows.append(torch.as_tensor(total).cpu().numpy())
    made = np.concatenate(rows)
    check_finite(made, "the network")
    return made


def _class_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ModelFileError(f"classes = {shown(value)}: expected a list of texts")
    if len(set(value)) != len(value):
        raise ModelFileError("classes repeat a name: expected names that differ")
    return tuple(value)


def _check_facts(header: Mapping[str, Any]) -> None:
    """What a header says beside the network, which goes into reports and exported files."""
    seed = header.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise ModelFileError(f"seed = {shown(seed)}: expected a whole number from 0")
    for name in ("dataset", "fingerprint"):
        if not isinstance(header.get(name, ""), str):
            raise ModelFileError(f"{name} = {shown(header[name])}: expected a text")
    # The network and its input have limits of their own, by which they were checked.
    check_numbers({key: value for key, value in header.items() if key not in ("architecture", "input")}, "")
