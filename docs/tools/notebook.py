"""The tutorial notebook: run its cells, store what they print, and turn it into Markdown.

    python docs/tools/notebook.py    # run docs/tutorial.ipynb in a temporary folder and store its output

A notebook is JSON, and a cell is a string of Python, so neither Jupyter nor a kernel is needed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "tutorial.ipynb"


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook at `path` (nbformat 4)."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The code cells, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell: dict[str, Any]) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def run_cells(notebook: dict[str, Any]) -> list[str]:
    """Run the code cells in the working directory; return what each printed, with the value of its last expression.

    Raises:
        Exception: whatever a cell raises.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    return [_run(source_of(cell), namespace) for cell in code_cells(notebook)]


def _run(source: str, namespace: dict[str, Any]) -> str:
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "<cell>", "exec"), namespace)  # noqa: S102 - our own notebook
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace) if last else None  # noqa: S307
        if value is not None:
            printed.write(f"{value!r}\n")
    return printed.getvalue()


def with_outputs(notebook: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
    """A copy of the notebook whose code cells have these outputs."""
    copy: dict[str, Any] = json.loads(json.dumps(notebook))
    for number, (cell, text) in enumerate(zip(code_cells(copy), outputs, strict=True), start=1):
        cell["execution_count"] = number
        lines = text.splitlines(keepends=True)
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if text else []
    return copy


def as_markdown(notebook: dict[str, Any]) -> str:
    """The notebook as a Markdown page: code in fenced blocks, each followed by its stored output."""
    parts = []
    for cell in notebook["cells"]:
        source = source_of(cell)
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [f"```text\n{''.join(output['text']).rstrip()}\n```" for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run the notebook in a temporary folder and store its output in it."""
    notebook = read_notebook(NOTEBOOK)
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            outputs = run_cells(notebook)
        finally:
            os.chdir(before)
    text = json.dumps(with_outputs(notebook, outputs), indent=1, ensure_ascii=False)
    NOTEBOOK.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
