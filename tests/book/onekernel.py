"""Chapters run one after another in one kernel: most of a short run would else go into importing torch and loading.

Little is asked for, since the question is whether the cells run, not what comes out.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager, start_new_kernel
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig
from nbclient import NotebookClient

from labbook._ext.execution import KERNEL_ENVIRONMENT

BOOK = Path(__file__).parents[2] / "book"
FEW = {"LAB_PROMPTS": "4", "LAB_TOKENS": "4096"}
# The names of the last notebook go. The model that it loaded first stays, for the first `models.load` of the next one.
EMPTY = """
%reset -f
from labbook import checks
from labcode import models
checks._setting = None
if not hasattr(models, "_loads"):
    models._loads, models._first = models.load, None
def first(*arguments):
    models.load = models._loads
    models._first = models._first or models.load(*arguments)
    assert not any(place.fwd_hooks for place in models._first.hook_dict.values())
    return models._first
models.load = first
del checks, first, models
"""


def chapter(name: str) -> nbformat.NotebookNode:
    """A chapter as the build reads it."""
    path = BOOK / f"{name}.md"
    reader = create_nb_reader(str(path), MdParserConfig(), NbParserConfig(), path.read_text())
    assert reader is not None
    return reader.read(path.read_text())


@contextlib.contextmanager
def started(model: str, **variables: str) -> Iterator[KernelManager]:
    """A kernel in a folder of its own, for as long as the context lasts: a chapter runs from anywhere."""
    given = {**os.environ, **KERNEL_ENVIRONMENT, **FEW, "LAB_MODEL": model, **variables}
    with tempfile.TemporaryDirectory() as elsewhere:
        manager, channels = start_new_kernel(cwd=elsewhere, env=given)
        channels.stop_channels()
        try:
            yield manager
        finally:
            manager.shutdown_kernel(now=True)


@contextlib.contextmanager
def emptied(kernel: KernelManager, notebook: nbformat.NotebookNode) -> Iterator[NotebookClient]:
    """A client for this notebook on the kernel, from which the names of the last notebook are gone."""
    # Times in the cells' metadata would change the notebook's key in the execution cache.
    runner = NotebookClient(notebook, km=kernel, timeout=600, record_timing=False)
    with runner.setup_kernel():
        notebook.cells.insert(0, nbformat.v4.new_code_cell(EMPTY))
        runner.execute_cell(notebook.cells[0], 0)
        del notebook.cells[0]
        yield runner


def run(runner: NotebookClient, cells: list[nbformat.NotebookNode]) -> None:
    """Execute some cells of the client's notebook."""
    for cell in cells:
        runner.execute_cell(cell, runner.nb.cells.index(cell))
