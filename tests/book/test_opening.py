"""Every page opens in Jupyter as a notebook, and none of its cells needs the folder that it lies in."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "book").rglob("*.md"))
# A name in quotes that is opened or made a path, and doesn't begin at the root; `DATA / "name"` is how data are read.
RELATIVE = re.compile(r"""\b(?:open|Path|read_json|np\.load)\(\s*f?["'](?!/)|os\.chdir|%cd""")


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_a_page_opens_as_a_notebook_that_runs_anywhere(page):
    notebook = jupytext.read(page)
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    asked = page.read_text(encoding="utf8").count("```{code-cell}")
    assert len(cells) >= asked
    assert [cell for cell in cells if RELATIVE.search(cell)] == []
