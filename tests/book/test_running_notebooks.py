"""Notebooks that run: a student's to its first blank, the solved to its end, and chapters opened by JupyterLab."""

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
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient.exceptions import CellExecutionError
from onekernel import BOOK, chapter, emptied, run, started

from labbook._ext import authoryear, installcell, notebookcells
from labbook._ext.plaininline import Page

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    with started("smollm2") as manager:
        yield manager


def notebook_of(name: str, solved: bool) -> nbformat.NotebookNode:
    works = authoryear.load([BOOK / "refs.bib"])
    page = Page(name, BOOK / f"{name}.md", solved=solved, works=works)
    return notebookcells.assemble(chapter(name), page, installcell.source(ROOT, ""))


@pytest.mark.parametrize("name", [page.stem for page in sorted(BOOK.glob("[0-9][0-9]-*.md"))])
def test_a_students_notebook_stops_at_its_first_blank_and_the_solved_one_runs_to_its_end(name, kernel):
    """In one go, since up to the first blank they are the same cells: the solved one goes on from there."""
    student, solved = notebook_of(name, solved=False), notebook_of(name, solved=True)
    sources = code(student)
    blank = next(i for i, source in enumerate(sources) if "NotImplementedError" in source)
    assert code(solved)[:blank] == sources[:blank]
    message = rf"Exercise {name[:2]}\.1: write your answer in this cell, then run on"
    with emptied(kernel, student) as runner:
        with pytest.raises(CellExecutionError, match=message):
            run(runner, student.cells)
        assert sum(bool(cell.get("execution_count")) for cell in student.cells) == blank + 1
        rest = [cell for cell in solved.cells if cell.cell_type == "code"][blank:]
        runner.nb = solved
        run(runner, rest)
    assert all(cell.execution_count for cell in rest)
    checks = [cell for cell in rest if "course.check(" in cell.source]
    verdicts = ["".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs) for cell in checks]
    assert verdicts
    assert [verdict for verdict in verdicts if not verdict.startswith("✓ ")] == []


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
def test_a_chapter_runs_as_the_notebook_that_jupyterlab_makes_of_it(lab, name, kernel):
    answer = get(f"{lab}/api/contents/{name}.md?type=notebook&content=1")
    assert answer["type"] == "notebook"
    notebook = nbformat.from_dict(answer["content"])
    assert code(notebook) == code(chapter(name))
    with emptied(kernel, notebook) as runner:
        run(runner, notebook.cells)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert any(cell.outputs for cell in cells)
