"""The notebooks of the real chapters: what is in them, and that they run: a student's to its first blank, the solved to
its end, and chapters that JupyterLab opens as notebooks.
"""

from __future__ import annotations

import ast
import base64
import builtins
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
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from jupyter_client.manager import KernelManager
from nbclient.exceptions import CellExecutionError
from onekernel import BOOK, chapter, emptied, run, started

from labbook._ext.notebooks import STARTER

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
NAMES = [page.stem for page in sorted(BOOK.glob("[0-9][0-9]-*.md"))]
MYST = re.compile(r"\{[a-z:]+\}`|^:::|^`{3,}\{|^\([\w-]+\)=$|<div|<svg|</?figure", re.M)


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    with started("smollm2") as manager:
        yield manager


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of the notebooks that a build writes which executes no cell: all is there but the numbers."""
    folder = tmp_path_factory.mktemp("written")
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"]["execute_notebooks"] = "off"
    config["sphinx"]["config"]["lab_model"] = False
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    pages = [{"file": f"book/{name}"} for name in [*NAMES, "glossary"]]
    toc = {"format": "jb-book", "root": "book/bibliography", "chapters": pages}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    for name in ("book", "labcode", "pyproject.toml", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run([TOOLS / "jupyter-book", "build", "."], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "_build" / "html" / "notebooks"


@pytest.fixture(params=NAMES, scope="module")
def pair(request, written) -> tuple[str, nbformat.NotebookNode, nbformat.NotebookNode]:
    """A chapter's name, the student's notebook and the solved one."""
    files = (written / f"{request.param}{suffix}.ipynb" for suffix in ("", "-solved"))
    return request.param, *(nbformat.read(file, as_version=4) for file in files)


def test_a_chapter_is_translated_whole(pair):
    name, *both = pair
    for notebook in both:
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                outside = re.sub(r"^```\w*$.*?^```$|`[^`\n]*`", "", cell.source, flags=re.M | re.S)
                assert not MYST.search(outside), MYST.search(outside)
                for drawing in re.findall(r"base64,([^\"]*)", cell.source):
                    assert ElementTree.fromstring(base64.b64decode(drawing)).tag == "{http://www.w3.org/2000/svg}svg"
    assert code(both[1])[1:] == code(chapter(name))


def test_a_student_gets_the_blanks_and_no_solution(pair):
    name, student, solved = pair
    words = ["\n".join(cell.source for cell in one.cells if cell.cell_type == "markdown") for one in (student, solved)]
    text = (BOOK / f"{name}.md").read_text()
    assert words[0].count("### Exercise ") == text.count("{exercise-start}")
    assert sum("NotImplementedError" in cell for cell in code(student)) == text.count("{exercise-start}")
    assert "Solution of exercise" not in words[0]
    assert words[1].count("Solution of exercise") == text.count("{solution-start}")
    assert all(not cell.outputs for cell in student.cells if cell.cell_type == "code")
    kept, hidden, starters, inside = [], [], [], False
    for cell in chapter(name).cells:
        if cell.cell_type == "code":
            starter = STARTER in cell.metadata.get("tags", [])
            (hidden if inside else starters if starter else kept).append(cell.source)
        else:
            gates = re.findall(r"\{solution-(start|end)\}", cell.source)
            inside = gates[-1] == "start" if gates else inside
    assert hidden
    own = [cell for cell in code(student)[1:] if "NotImplementedError" not in cell]
    assert not set(hidden) & set(own)
    assert [cell for cell in own if cell in kept] == kept
    blanks = [cell for cell in code(student) if "NotImplementedError" in cell]
    assert all(any(blank.startswith(starter.rstrip()) for blank in blanks) for starter in starters)


def test_a_students_cells_need_no_name_of_a_solution(pair):
    made, needed = set(dir(builtins)), {}
    for cell in code(pair[1]):
        if "checks.check(" in cell or "NotImplementedError" in cell:
            continue  # what these read is the student's to define
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Name):
                if isinstance(node.ctx, ast.Store):
                    made.add(node.id)
                else:
                    needed.setdefault(node.id, cell)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                made.add(node.name)
            elif isinstance(node, ast.arg):
                made.add(node.arg)
            elif isinstance(node, ast.alias):
                made.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                made.add(node.name)
    assert {name: cell for name, cell in needed.items() if name not in made} == {}


def test_a_students_notebook_stops_at_its_first_blank_and_the_solved_one_runs_to_its_end(pair, kernel):
    """In one go, since up to the first blank they are the same cells: the solved one goes on from there."""
    name, student, solved = pair
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
    checks = [cell for cell in rest if "checks.check(" in cell.source]
    verdicts = ["".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs) for cell in checks]
    assert verdicts
    assert [verdict for verdict in verdicts if not verdict.startswith("✓ ")] == []


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on the chapters, with the settings that `make lab` makes, in a folder of its own."""
    settings = tmp_path_factory.mktemp("jupyter")
    recipe = (ROOT / "Makefile").read_text()
    viewer = re.search(r"\$\(RUN\) (jupytext_config .*)", recipe)[1].split()
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(settings)}
    subprocess.run([sys.executable, "-m", *viewer], env=environment, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", f"--port={port}", "--IdentityProvider.token=", "--allow-root", "--LabApp.news_url=None"]
    server = subprocess.Popen(
        [sys.executable, "-m", *re.search(r"\$\(RUN\) (jupyterlab .*)", recipe)[1].split(), *options],
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


@pytest.mark.parametrize("name", ["01-behaviour", "03-residual-stream"])
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
