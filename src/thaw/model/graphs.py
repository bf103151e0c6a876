"""A trained model as inference graphs, and the metadata of their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError, RunError
from thaw.export.card import ModelCard
from thaw.graph.graph import Graph
from thaw.graph.graph_file import GraphHeader, read_graph
from thaw.graph.interpret import run as run_reference
from thaw.graph.lower import lower
from thaw.model.metrics_file import METRICS_FILE, read_metrics
from thaw.model.zoo_card import read_card
from thaw.seeds import numpy_generator

if TYPE_CHECKING:
    from thaw.model.model import Model

INT8_FILE = "model-int8.safetensors"
MODEL_DIGEST = "model"
"""The key in the header of an int8 graph that holds the digest of its float model."""


def float_graph(model: Model) -> Graph:
    """The float32 graph of a trained model, from raw pixels to "logits" and "probabilities"."""
    spec = model.input_spec
    return lower(model.module, shape=spec.shape, mean=spec.mean, std=spec.std, classes=len(model.classes))


def checked_float_graph(model: Model) -> Graph:
    """The float32 graph, after a test inference.

    Raises:
        NotFiniteError: when the network computes NaN or infinity.
    """
    graph = float_graph(model)
    run_reference(graph, probe_images(graph.tensor(graph.input).shape))
    return graph


def probe_images(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Black, white and noise, uint8 [3, H, W, C]. A network that returns NaN for one of them is not exported."""
    noise = numpy_generator(0, "probe").integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def int8_graph(model: Model) -> Graph:
    """The int8 graph in the file next to the model file.

    Raises:
        RunError: when there is no such file.
        ModelFileError: when it is damaged or was made from another model.
    """
    path = None if model.file is None else model.file.with_name(INT8_FILE)
    if path is None or not (model.zoo or path.is_file()):
        raise RunError(
            f"{model.file or 'the model'} has no int8 network: there is no {INT8_FILE} next to it\n"
            "open the run folder with its run.json, which can quantize again, or choose the float32 network",
            code="run-int8",
        )
    return _read_own(path, model)


def _read_own(path: Path, model: Model) -> Graph:
    remedy = "install thaw again" if model.zoo else "remove it; it will be made again"
    try:
        graph, header = read_graph(path)
    except ModelFileError as error:
        raise ModelFileError(f"{error}\n{remedy}") from error
    made_of = header.facts.get(MODEL_DIGEST, model.digest)
    if (header.classes, header.input_spec.shape, made_of) != (model.classes, model.input_spec.shape, model.digest):
        raise ModelFileError(f"{path} belongs to another model than {model.file}\n{remedy}", code="model-file-other")
    return graph


def graph_header(model: Model, facts: Mapping[str, Any]) -> GraphHeader:
    """The metadata of a model's graph file; `facts` follow those of the model."""
    header = model.header
    recipe = header.get("recipe")
    words = [header.get("dataset"), recipe.get("name") if isinstance(recipe, dict) else None]
    known = {key: header[key] for key in ("dataset", "seed") if key in header}
    if "fingerprint" in header:
        # Enough to distinguish data sets, in files that are stored on small devices.
        known["fingerprint"] = str(header["fingerprint"])[:16]
    return GraphHeader(
        name="-".join(str(word) for word in words if word) or "model",
        classes=model.classes,
        input_spec=model.input_spec,
        facts={**known, **facts},
    )


def model_card(model: Model) -> ModelCard:
    """The metadata of exported files: name, classes, input, and measurements."""
    header = graph_header(model, _measured(model))
    return ModelCard(name=header.name, classes=header.classes, input_spec=header.input_spec, facts=header.facts)


def _measured(model: Model) -> dict[str, Any]:
    """Size and accuracies, from the zoo card or from metrics.json next to the model file."""
    if model.file is None:
        return {}
    metrics_path = model.file.with_name(METRICS_FILE)
    if model.zoo:
        card = read_card(model.file.parent)
        parameters, macs, accuracies = card.parameters, card.macs, (card.test.accuracy, card.int8.accuracy)
    elif metrics_path.is_file():
        metrics = read_metrics(metrics_path)
        parameters, macs = metrics["parameters"], metrics["macs"]
        accuracies = metrics["test"]["accuracy"], metrics["int8"]["test"]["accuracy"]
    else:
        return {}
    # Rounded to a hundredth of a point: cards are for readers, and use space on devices.
    return {
        "parameters": parameters,
        "macs": macs,
        "test accuracy": round(accuracies[0], 4),
        "test accuracy in int8": round(accuracies[1], 4),
    }
