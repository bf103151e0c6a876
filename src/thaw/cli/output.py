"""Standard output of the commands: text, tables of any width, one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from thaw.quoting import json_text, printable

if TYPE_CHECKING:
    from thaw.evidence.findings import Finding
    from thaw.graph.cost import Cost


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object."""
    sys.stdout.write(json_text(content, indent=2) + "\n")


def print_text(text: str) -> None:
    """Print lines of text."""
    sys.stdout.write(text + "\n")


def columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Format rows as lines of aligned columns. Nothing is truncated or wrapped, so that paths can be copied.

    Args:
        rows: the cells, the same number in every row.
        right: indices of the right-aligned columns.
    """
    from rich.cells import cell_len

    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        parts = [
            gap + cell if index in right else cell + gap
            for index, (cell, gap) in enumerate(zip(row, gaps, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print findings. Commands do this first, so that no accuracy is read without them."""
    for finding in findings:
        print_text(str(finding))
        if finding.remedies:
            print_text(f"  try: {printable('; '.join(finding.remedies))}")


def print_cost(cost: Cost) -> None:
    """Print the layers of a network and its cost on a device."""
    from thaw.graph.cost import CODE_BYTES
    from thaw.recipe.budget import ram_parts

    rows = [("layer", "kind", "output", "parameters", "MACs", "activation bytes")]
    for layer in cost.layers:
        output = "x".join(map(str, layer.output))
        numbers = (f"{layer.parameters:,}", f"{layer.macs:,}", f"{layer.activation_bytes:,}")
        rows.append((layer.name, layer.kind, output, *numbers))
    rows.append(("total", "", "", f"{cost.parameters:,}", f"{cost.macs:,}", ""))
    print_text(columns(rows, right=(3, 4, 5)))
    peaks = f"{cost.peak_activation_bytes_float32:,} bytes in float32, {cost.peak_activation_bytes_int8:,} in int8"
    print_text(f"peak activations {peaks}")
    print_text(f"weights {cost.weight_bytes_float32:,} bytes in float32, {cost.weight_bytes_int8:,} in int8")
    print_text(f"RAM for the int8 C {cost.ram_bytes:,} bytes: {ram_parts(cost)}")
    constants = f"constants {cost.flash_bytes - CODE_BYTES:,}, code {CODE_BYTES:,} (allowance)"
    print_text(f"flash for the int8 C {cost.flash_bytes:,} bytes: {constants}")


def share(value: float | None) -> str:
    """A share in percent; "-" for None."""
    return "-" if value is None else f"{value:.2%}"
