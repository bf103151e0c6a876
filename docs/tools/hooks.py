"""MkDocs hooks: the tutorial notebook becomes a page, and the API page gets every public name."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))

from notebook import as_markdown, read_notebook

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = Path(__file__).parents[1]
NOTEBOOK = DOCS / "tutorial.ipynb"
FRONT = DOCS.parent / "src" / "thaw" / "__init__.py"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page `tutorial.md`, generated from the notebook, which stays there for download."""
    files.append(File.generated(config, "tutorial.md", content=as_markdown(read_notebook(NOTEBOOK))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - the hook's signature
    """Complete the API page, and point links to the notebook, which work on a code host, to its page."""
    if page.file.src_uri == "api.md":
        missing = [name for name in public_names() if f"::: thaw.{name}\n" not in markdown + "\n"]
        return "\n\n".join(
            [markdown, *(["## Other names"] if missing else []), *(f"::: thaw.{name}" for name in missing)]
        )
    return markdown if page.file.src_uri == "tutorial.md" else markdown.replace("(tutorial.ipynb)", "(tutorial.md)")


def public_names() -> list[str]:
    """The functions and classes in `thaw.__all__`, read without importing them."""
    for node in ast.parse(FRONT.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    raise ValueError(f"{FRONT} has no __all__")
