"""MkDocs hooks: the tutorial notebook becomes a page when the site is built."""

from __future__ import annotations

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

NOTEBOOK = Path(__file__).parents[1] / "tutorial.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page `tutorial.md`, generated from the notebook, which stays there for download."""
    files.append(File.generated(config, "tutorial.md", content=as_markdown(read_notebook(NOTEBOOK))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - the hook's signature
    """Point links to the notebook, which work on a code host, to its page."""
    return markdown if page.file.src_uri == "tutorial.md" else markdown.replace("(tutorial.ipynb)", "(tutorial.md)")
