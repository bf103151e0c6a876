"""An int8 graph -> a folder of C99 that needs no heap, no library, and one static arena of a size known beforehand.

What runs, in which order and where in the arena, is `thaw.graph.plan`'s; how weights lie is `thaw.graph.packing`'s; the
kernels are written by hand in `thaw/export/c`, and only those that a network needs are taken. The arithmetic is that of
the referee, so that every byte is equal.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np

from thaw.data.scaling import FULL_RANGE
from thaw.errors import UsageError
from thaw.export.c_layers import KERNELS, Emitted, emit_step
from thaw.export.card import ModelCard, Precision
from thaw.graph.graph import Graph
from thaw.graph.ops import Conv2d
from thaw.graph.packing import padded_taps
from thaw.graph.plan import MemoryPlan, plan_memory
from thaw.graph.tensors import Tensor
from thaw.quoting import c_comment, c_string, json_text, markdown_text


def export_c(graphs: Mapping[Precision, Graph], card: ModelCard) -> dict[str, bytes]:
    """The folder of C for the int8 graph: model.h, model.c, main.c, Makefile and README.md.

    Args:
        graphs: its "int8" graph is written; the target knows no other precision.
        card: class names and input contract, which stand in model.h.

    Raises:
        UsageError: without an int8 graph, or for one whose sums could leave 30 bits.
    """
    if "int8" not in graphs:
        raise UsageError("the C target is int8: it takes no float network")
    graph = replace(graphs["int8"], outputs=graphs["int8"].outputs[-1:])
    if graph.tensor(graph.input).shape != card.contract.shape:
        raise UsageError(f"the network takes {graph.tensor(graph.input).shape}, the card says {card.contract.shape}")
    program = _Program(graph, plan_memory(graph), card)
    texts = {
        "model.h": program.header(),
        "model.c": program.source(),
        "main.c": _fragment("main.c"),
        "Makefile": _fragment("Makefile"),
        "README.md": program.readme(),
    }
    return {name: text.encode() for name, text in texts.items()}


@dataclass(frozen=True)
class _Program:
    graph: Graph
    plan: MemoryPlan
    card: ModelCard

    @property
    def result(self) -> Tensor:
        """What the network gives."""
        return self.graph.tensor(self.graph.outputs[0])

    @property
    def result_type(self) -> str:
        """The C type of one score."""
        return "int32_t" if self.result.dtype == "int32" else "int8_t"

    def header(self) -> str:
        """model.h."""
        height, width, channels = self.card.contract.shape
        low, high = self.card.contract.range or FULL_RANGE
        quantization = self.result.quantization
        values = {
            "NAME": c_comment(self.card.name),
            "HEIGHT": str(height),
            "WIDTH": str(width),
            "CHANNELS": str(channels),
            "FIT_CROP": "1" if self.card.contract.fit == "crop" else "0",
            "RANGE_LOW": f"{low}U",
            "RANGE_HIGH": f"{high}U",
            "SCORES": str(self.result.elements),
            "CLASSES": str(len(self.card.classes)),
            "ARENA_BYTES": str(self.plan.arena_bytes),
            "SCORE_TYPE": self.result_type,
            "SCORE_SCALE": "1" if quantization is None else float_literal(quantization.scale),
            "SCORE_ZERO_POINT": "0" if quantization is None else str(quantization.zero_point),
            "PREPROCESS": _fragment("preprocess.h").strip(),
        }
        return _fill(_fragment("model.h"), values)

    def source(self) -> str:
        """model.c: the kernels that are needed, the constants, and the calls in order."""
        layers = [emit_step(self.graph, self.plan, index) for index in range(len(self.plan.steps))]
        used = {kernel for layer in layers for kernel in layer.kernels}
        kernels = [_fragment(name) for name in KERNELS if name in used]
        values = {
            "NAME": c_comment(self.card.name),
            "INCLUDES": _wide_memory(self.plan) if "convolution.c" in used else "",
            "KERNELS": "\n".join(kernels).rstrip(),
            "CONSTANTS": "\n".join(layer.constants for layer in layers if layer.constants).rstrip(),
            "NAMES": ",\n".join(f"    {c_string(name)}" for name in self.card.classes),
            "CALLS": "\n".join(_traced(index, layer) for index, layer in enumerate(layers)),
            "RESULT": f"arena.bytes + {self.plan.offsets[self.result.name]}",
            "SCORE_TYPE": self.result_type,
            "PREPROCESS": _fragment("preprocess.c").rstrip(),
        }
        return _fill(_fragment("model.c"), values)

    def readme(self) -> str:
        """README.md of the folder."""
        card = json_text(self.card.as_dict(), indent=2, sort_keys=True)
        values = {
            "NAME": markdown_text(self.card.name),
            "ARENA_BYTES": f"{self.plan.arena_bytes:,}",
            "INPUT": "x".join(map(str, self.card.contract.shape)),
            "CARD": textwrap.indent(card, "    "),
        }
        return _fill(_fragment("README.md"), values)


def _wide_memory(plan: MemoryPlan) -> str:
    """What the kernels for AVX2 need beside the arena: a header, and the sizes of the largest layer."""
    layers = [step.op for step in plan.steps if isinstance(step.op, Conv2d)]
    filters = max((layer.channels for layer in layers), default=1)
    weights = max((padded_taps(layer) * -(-layer.channels // 8) * 8 for layer in layers), default=1)
    return (
        "#if !defined(THAW_PORTABLE) && defined(__AVX2__)\n#include <immintrin.h>\n"
        f"#define THAW_MOST_FILTERS {filters}\n#define THAW_MOST_WEIGHTS {weights}\n#endif\n"
    )


def _traced(index: int, layer: Emitted) -> str:
    written = f"arena.bytes + {layer.offset}"
    return f"    {layer.call}\n    THAW_TRACE_STEP({index}, {written}, {layer.size});"


def traced_tensors(graph: Graph) -> list[str]:
    """The tensor that each step of the emitted C writes, in order: what a build with THAW_TRACE tells of."""
    plan = plan_memory(replace(graph, outputs=graph.outputs[-1:]))
    return [step.writes for step in plan.steps]


def float_literal(value: float) -> str:
    """A float32 number as C text that reads back as the same number."""
    return f"{np.float32(value):.9g}" + ("f" if re.search(r"[.e]", f"{np.float32(value):.9g}") else ".0f")


def _fragment(name: str) -> str:
    return (resources.files("thaw.export") / "c" / name).read_text("utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with every @KEY@ replaced, once: what is filled in is not looked at again."""

    def value(match: re.Match[str]) -> str:
        return values[match[1]]

    return re.sub(r"@([A-Z_]+)@", value, template)
