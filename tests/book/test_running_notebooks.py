"""Notebooks that run: a student's to its first blank, and chapters opened by JupyterLab as `make lab` sets it up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from labcode.sphinxext import authoryear, installcell, notebookcells
from labcode.sphinxext.plaininline import Page

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
TOOLS = Path(sys.executable).parent


def chapter(name: str) -> nbformat.NotebookNode:
    """A chapter as the build reads it."""
    path = BOOK / f"{name}.md"
    reader = create_nb_reader(str(path), MdParserConfig(), NbParserConfig(), path.read_text())
    assert reader is not None
    return reader.read(path.read_text())


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: nbformat.NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Few prompts are enough here: the question is whether the cells run, not what comes out.
    for name, value in {"LAB_MODEL": "smollm2", "LAB_PROMPTS": "4", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


def test_a_students_notebook_runs_to_its_first_blank_and_says_what_to_do(tmp_path, monkeypatch):
    name = "01-behaviour"
    works = authoryear.load([BOOK / "refs.bib"])
    page = Page(name, BOOK / f"{name}.md", solved=False, works=works)
    notebook = notebookcells.assemble(chapter(name), page, installcell.source(ROOT, ""))
    with pytest.raises(CellExecutionError, match=r"Exercise 01\.1: write your answer in this cell, then run on"):
        execute(notebook, tmp_path, monkeypatch)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stopped = next(i for i, cell in enumerate(cells) if "NotImplementedError" in cell.source)
    assert all(cell.execution_count for cell in cells[: stopped + 1])
    assert not any(cell.execution_count for cell in cells[stopped + 1 :])


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on the chapters, with the settings that `make lab` makes, in a folder of its own."""
    settings = tmp_path_factory.mktemp("jupyter")
    recipe = (ROOT / "Makefile").read_text()
    viewer = re.search(r"\$\(BIN\)/jupytext-config (.*)", recipe)[1].split()
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(settings)}
    subprocess.run([TOOLS / "jupytext-config", *viewer], env=environment, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", f"--port={port}", "--IdentityProvider.token=", "--allow-root", "--LabApp.news_url=None"]
    server = subprocess.Popen(
        [TOOLS / "jupyter", *re.search(r"\$\(BIN\)/jupyter (lab .*)", recipe)[1].split(), *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                get(f"{address}/api")
                break
            except OSError:
                assert server.poll() is None, "JupyterLab ended"
                assert time.monotonic() < deadline, "JupyterLab did not start"
                time.sleep(0.5)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def get(address: str) -> dict:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.load(answer)


def test_a_double_click_opens_a_chapter_as_a_notebook(lab):
    settings = get(f"{lab}/lab/api/settings/@jupyterlab/docmanager-extension:plugin")
    viewers = settings["schema"]["properties"]["defaultViewers"]["default"]
    assert viewers["markdown"] == "Jupytext Notebook"


@pytest.mark.parametrize("name", ["01-behaviour", "02-residual-stream"])
def test_a_chapter_runs_as_the_notebook_that_jupyterlab_makes_of_it(lab, name, monkeypatch):
    answer = get(f"{lab}/api/contents/{name}.md?type=notebook&content=1")
    assert answer["type"] == "notebook"
    notebook = nbformat.from_dict(answer["content"])
    assert code(notebook) == code(chapter(name))
    execute(notebook, BOOK, monkeypatch)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert any(cell.outputs for cell in cells)
