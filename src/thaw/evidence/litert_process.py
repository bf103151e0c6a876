"""The LiteRT interpreter, and the program that runs it in a process of its own.

LiteRT aborts the whole process on some invalid files. `run_litert.LiteRtRunner` therefore runs this file as a program,
which reads requests from standard input and writes replies to standard output. It imports nothing from thaw, so that
it starts fast.

A message is a line of JSON, followed by the bytes of its arrays.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Images = npt.NDArray[np.uint8]

_OUTPUTS_FIELD = 8
"""Position of the list of outputs in the vtable of a subgraph: two 16-bit sizes, then the third field."""
_MOST_ADDRESS_BYTES = 1 << 34
_STDOUT, _STDERR = 1, 2
_quiet_lock = threading.Lock()


class LiteRtModel:
    """A model in LiteRT, in this process.

    Args:
        model: the content of a .tflite file that takes uint8 [1, H, W, C].
        reference: use the reference kernels, which are bit-exact to the int8 specification, instead of the fast ones
            (XNNPACK), which may differ by a unit in the last place.
        threads: for one operation, at least 1.

    Raises:
        ValueError: for an invalid file that LiteRT detects.
        RuntimeError: for a model that LiteRT cannot prepare.
    """

    def __init__(self, model: bytes, *, reference: bool = False, threads: int = 1) -> None:
        self._model, self._reference, self._threads = model, reference, threads
        self._interpreter = self._prepare(model)
        self._all_outputs: Any = None
        (image,), (scores,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if image["dtype"] != np.uint8 or len(image["shape"]) != 4 or image["shape"][0] != 1:
            raise ValueError(f"it takes {image['dtype'].__name__} {list(image['shape'])}: expected uint8 [1, H, W, C]")
        self._image, self._scores = image["index"], scores["index"]
        self.shape = tuple(int(side) for side in image["shape"][1:])
        self._output = np.empty((0, *scores["shape"][1:]), scores["dtype"])

    def run(self, images: Images) -> Array:
        """Scores [N, K], float32 or int8, for images uint8 [N, H, W, C]."""
        scores = np.empty((len(images), *self._output.shape[1:]), self._output.dtype)
        for index in range(len(images)):
            scores[index] = self._run_one(self._interpreter, images[index : index + 1])
        return scores

    def tensors(self, image: Images) -> dict[str, Array]:
        """Every tensor that an operator writes, by name, [1, ...], for one image [1, H, W, C].

        They are outputs of a copy of the model, so that the kernels are those of `run`.
        """
        if self._all_outputs is None:
            self._all_outputs = self._prepare(_with_all_outputs(self._model))
        self._run_one(self._all_outputs, image)
        outputs = self._all_outputs.get_output_details()
        return {tensor["name"]: self._all_outputs.get_tensor(tensor["index"]) for tensor in outputs}

    def predict_one(self, image: Images) -> Callable[[], object]:
        """A function that runs the model on one image, uint8 [H, W, C], already prepared."""
        pixels = np.ascontiguousarray(image[None])
        return lambda: self._run_one(self._interpreter, pixels)

    def _run_one(self, interpreter: Any, image: Images) -> Array:
        interpreter.set_tensor(self._image, np.ascontiguousarray(image))
        interpreter.invoke()
        scores: Array = interpreter.get_tensor(self._scores)
        return scores

    def _prepare(self, model: bytes) -> Any:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kernels = OpResolverType.BUILTIN_REF if self._reference else OpResolverType.AUTO
        with _quiet():
            interpreter = Interpreter(
                model_content=model, num_threads=self._threads, experimental_op_resolver_type=kernels
            )
            interpreter.allocate_tensors()
        return interpreter


def _with_all_outputs(model: bytes) -> bytes:
    """A copy of a model whose outputs are all tensors that operators write.

    It appends a new list of outputs and changes only the offset that refers to it.
    """
    from ai_edge_litert import schema_py_generated

    graph = schema_py_generated.Model.GetRootAs(model, 0).Subgraphs(0)
    operators = (graph.Operators(index) for index in range(graph.OperatorsLength()))
    numbers = sorted(int(operator.Outputs(0)) for operator in operators)
    place = graph._tab.Pos + graph._tab.Offset(_OUTPUTS_FIELD)  # noqa: SLF001 (as generated code does)
    start = len(model) + -len(model) % 4
    listed = struct.pack(f"<I{len(numbers)}i", len(numbers), *numbers)
    return (model[:place] + struct.pack("<I", start - place) + model[place + 4 :]).ljust(start, b"\0") + listed


@contextmanager
def _quiet() -> Iterator[None]:
    """Discard LiteRT's startup messages, which bypass Python's standard error."""
    with _quiet_lock, warnings.catch_warnings(), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        warnings.simplefilter("ignore")
        sys.stderr.flush()
        kept = os.dup(_STDERR)
        os.dup2(nowhere.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)


def send(stream: BinaryIO, content: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a message."""
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    stream.write(json.dumps({**content, "arrays": described}).encode() + b"\n")
    stream.writelines(array.tobytes() for array in arrays.values())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read a message.

    Raises:
        EOFError: when the other side has ended.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    content = json.loads(line)
    arrays = {}
    for name, dtype, shape in content.pop("arrays"):
        arrays[name] = np.empty(shape, dtype)
        size = arrays[name].nbytes
        if size and stream.readinto(arrays[name].reshape(-1).view(np.uint8)) < size:  # type: ignore[attr-defined]
            raise EOFError
    return content, arrays


def main() -> None:
    """Serve one model: the first message is the model, later ones request scores or tensors."""
    import resource

    # A file that requests absurd amounts of memory fails here and does not affect other processes.
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESS_BYTES, _MOST_ADDRESS_BYTES))
    replies = os.fdopen(os.dup(_STDOUT), "wb")
    os.dup2(_STDERR, _STDOUT)
    model: LiteRtModel | None = None
    while True:
        try:
            request, arrays = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if model is None:
                model = LiteRtModel(arrays["model"].tobytes(), **request)
                send(replies, {"shape": model.shape}, {})
            elif request["asks"] == "scores":
                send(replies, {}, {"scores": model.run(arrays["images"])})
            else:
                send(replies, {}, model.tensors(arrays["images"]))
        except Exception as error:  # noqa: BLE001 (whatever it is, the other side reports it)
            send(replies, {"error": " ".join(str(error).split())[:200] or type(error).__name__}, {})


if __name__ == "__main__":
    main()
