"""An int8 graph -> a folder of C99 without heap or libraries, with one static arena of known size.

`thaw.graph.plan` determines the steps and the layout of the arena. The kernels are handwritten, in `thaw/export/c`, and
only those that a network needs are included. The arithmetic is that of the reference interpreter, so that every byte is
equal. All names begin with the model's prefix (`thaw.export.c_names`).
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np

from thaw.data.scaling import FULL_RANGE
from thaw.errors import UsageError
from thaw.export.c_layers import KERNELS, Emitted, emit_step
from thaw.export.c_names import FIXED_PREFIX, check_prefix, with_prefix
from thaw.export.card import ModelCard, Precision
from thaw.graph.graph import Graph
from thaw.graph.ops import Conv2d
from thaw.graph.plan import MemoryPlan, plan_memory
from thaw.graph.tensors import Tensor
from thaw.quoting import c_comment, c_string, json_text, markdown_text

_DIGEST_DIGITS = 8
"""Hexadecimal digits of a header's digest: 32 bits, which every preprocessor can compare."""


def export_c(graphs: Mapping[Precision, Graph], card: ModelCard, *, prefix: str = FIXED_PREFIX) -> dict[str, bytes]:
    """The folder of C for the int8 graph: PREFIX.h, PREFIX.c, main.c, Makefile and README.md.

    With a prefix other than "model", model.h and model.c are added, which include those two.

    Args:
        graphs: must contain the "int8" graph; C has no other precision.
        card: class names and input specification for the header.
        prefix: prefix of all symbols and macros (in capitals), and the name of header and source.

    Raises:
        UsageError: without an int8 graph, for one whose sums could exceed 30 bits, or for an invalid prefix.
    """
    check_prefix(prefix)
    if "int8" not in graphs:
        raise UsageError("C is int8 only: expected an int8 graph", code="usage-c")
    graph = replace(graphs["int8"], outputs=graphs["int8"].outputs[-1:])
    if graph.tensor(graph.input).shape != card.input_spec.shape:
        raise UsageError(
            f"the network takes {graph.tensor(graph.input).shape}, the card says {card.input_spec.shape}",
            code="usage-c",
        )
    program = _Program(graph, plan_memory(graph), card, prefix)
    source = program.source()
    texts = {
        f"{prefix}.h": program.header(source),
        f"{prefix}.c": source,
        "main.c": program.fill("main.c"),
        "Makefile": program.fill("Makefile"),
        "README.md": program.readme(),
    }
    # Some file systems ignore case.
    if prefix.lower() != FIXED_PREFIX:
        texts |= {f"{FIXED_PREFIX}{kind}": program.fill(f"fixed_name{kind}") for kind in (".h", ".c")}
    return {name: text.encode() for name, text in texts.items()}


@dataclass(frozen=True)
class _Program:
    graph: Graph
    plan: MemoryPlan
    card: ModelCard
    prefix: str

    def fill(self, fragment: str, values: Mapping[str, str] | None = None) -> str:
        """A template with the names of this model and the given values."""
        return _fill(self._named(_fragment(fragment)), {"PREFIX": self.prefix, **(values or {})})

    def _named(self, text: str) -> str:
        return with_prefix(text, self.prefix)

    @property
    def result(self) -> Tensor:
        """The output of the network."""
        return self.graph.tensor(self.graph.outputs[0])

    @property
    def result_type(self) -> str:
        """The C type of one score."""
        return "int32_t" if self.result.dtype == "int32" else "int8_t"

    def header(self, source: str) -> str:
        """PREFIX.h of the model with this PREFIX.c."""
        height, width, channels = self.card.input_spec.shape
        low, high = self.card.input_spec.range or FULL_RANGE
        quantization = self.result.quantization
        values = {
            "NAME": c_comment(self.card.name),
            "HEIGHT": str(height),
            "WIDTH": str(width),
            "CHANNELS": str(channels),
            "INPUT_BYTES": str(height * width * channels),
            "FIT_CROP": "1" if self.card.input_spec.fit == "crop" else "0",
            "RANGE_LOW": f"{low}U",
            "RANGE_HIGH": f"{high}U",
            "SCORES": str(self.result.elements),
            "CLASSES": str(len(self.card.classes)),
            "ARENA_BYTES": str(self.plan.arena_bytes),
            "SCORE_TYPE": self.result_type,
            "SCORE_SCALE": "1" if quantization is None else float_literal(quantization.scale),
            "SCORE_ZERO_POINT": "0" if quantization is None else str(quantization.zero_point),
            "PREPROCESS": self._named(_fragment("preprocess.h")).strip(),
        }
        digest = hashlib.sha256(f"{json.dumps(values)}\n{source}".encode()).hexdigest()
        return self.fill("model.h", {**values, "DIGEST": f"0x{digest[:_DIGEST_DIGITS]}U"})

    def source(self) -> str:
        """PREFIX.c: kernels, constants, and the calls in order."""
        layers = [emit_step(self.graph, self.plan, index) for index in range(len(self.plan.steps))]
        used = {kernel for layer in layers for kernel in layer.kernels}
        kernels = "\n".join(_fragment(name) for name in KERNELS if name in used)
        constants = "\n".join(layer.constants for layer in layers if layer.constants)
        calls = "\n".join(_traced(index, layer) for index, layer in enumerate(layers))
        values = {
            "NAME": c_comment(self.card.name),
            "INCLUDES": self._named(_wide_memory(self.plan)) if "convolution.c" in used else "",
            "KERNELS": self._named(kernels).rstrip(),
            "CONSTANTS": self._named(constants).rstrip(),
            "NAMES": ",\n".join(f"    {c_string(name)}" for name in self.card.classes),
            "CALLS": self._named(calls),
            "RESULT": self._named(f"thaw_arena.bytes + {self.plan.offsets[self.result.name]}"),
            "PREPROCESS": self._named(_fragment("preprocess.c")).rstrip(),
        }
        return self.fill("model.c", values)

    def readme(self) -> str:
        """README.md of the folder."""
        card = json_text(self.card.as_dict(), indent=2, sort_keys=True)
        values = {
            "NAME": markdown_text(self.card.name),
            "ARENA_BYTES": f"{self.plan.arena_bytes:,}",
            "INPUT": "x".join(map(str, self.card.input_spec.shape)),
            "CARD": textwrap.indent(card, "    "),
        }
        return self.fill("README.md", values)


def _wide_memory(plan: MemoryPlan) -> str:
    """The header and the sizes of the largest layer, which the AVX2 kernels need."""
    layers = [step.op for step in plan.steps if isinstance(step.op, Conv2d)]
    filters = max((layer.channels for layer in layers), default=1)
    weights = max((layer.padded_taps * -(-layer.channels // 8) * 8 for layer in layers), default=1)
    return (
        "#if !defined(THAW_PORTABLE) && defined(__AVX2__)\n#include <immintrin.h>\n"
        f"#define THAW_MOST_FILTERS {filters}\n#define THAW_MOST_WEIGHTS {weights}\n#endif\n"
    )


def _traced(index: int, layer: Emitted) -> str:
    written = f"thaw_arena.bytes + {layer.offset}"
    return f"    {layer.call}\n    THAW_TRACE_STEP({index}, {written}, {layer.size});"


def traced_tensors(graph: Graph) -> list[str]:
    """The tensor that each step of the exported C writes, in order, as a build with THAW_TRACE reports them."""
    plan = plan_memory(replace(graph, outputs=graph.outputs[-1:]))
    return [step.writes for step in plan.steps]


def float_literal(value: float) -> str:
    """A float32 number as C text that reads back as the same number."""
    return f"{np.float32(value):.9g}" + ("f" if re.search(r"[.e]", f"{np.float32(value):.9g}") else ".0f")


def _fragment(name: str) -> str:
    return (resources.files("thaw.export") / "c" / name).read_text("utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with every @KEY@ replaced once; values are not searched again."""

    def value(match: re.Match[str]) -> str:
        return values[match[1]]

    return re.sub(r"@([A-Z_]+)@", value, template)
