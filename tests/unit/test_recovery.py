"""What a killed build leaves, and what else can be in the way of the next one: the cache, the folder, the kernel."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from test_sphinxext_build import NUMBER, book, build, ran

from labbook._ext import execution


def page(source: str = "1 + 1") -> nbformat.NotebookNode:
    """A page of one cell, executed."""
    output = nbformat.v4.new_output(
        "execute_result", {"text/plain": "2\nlines", "application/vnd.plotly.v1+json": {"x": [1.5]}}
    )
    cell = nbformat.v4.new_code_cell(source, outputs=[output], execution_count=1)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("words"), cell])


@pytest.fixture
def cache(tmp_path):
    """A cache with one page."""
    made = execution.opened(tmp_path / "cache")
    execution.keep(made, page(), tmp_path / "page.md", {"execution_seconds": 1.0})
    assert execution.kept(made, page())
    made.db.dispose()
    return made


def stored(cache) -> Path:
    return next(cache.path.glob("executed/*/base.ipynb"))


@pytest.mark.parametrize("left", [b"", b"garbage" * 1000])
def test_a_damaged_database_makes_the_cache_anew(cache, left):
    (cache.path / "global.db").write_bytes(left)
    anew = execution.opened(cache.path)
    assert not execution.kept(anew, page())
    execution.keep(anew, page(), Path("page.md"), {})
    assert execution.kept(execution.opened(cache.path), page())


def test_a_database_that_was_cut_off_makes_the_cache_anew(cache):
    database = cache.path / "global.db"
    database.write_bytes(database.read_bytes()[:5000])
    assert not execution.kept(execution.opened(cache.path), page())


def test_a_database_that_cannot_be_opened_stops_with_a_sentence(cache, caplog):
    database = cache.path / "global.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SystemExit):
            execution.opened(cache.path)
    assert "global.db can't be opened (database is locked)" in caplog.text
    assert stored(cache).is_file(), "it says nothing of the outputs"
    database.unlink()
    database.mkdir()
    with pytest.raises(SystemExit):
        execution.opened(cache.path)
    assert "(unable to open database file): end what uses it, or delete" in caplog.text
    assert "build-folder" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text(file.read_text().replace("2\\n", "3\\n")),
        lambda file: file.write_text("[]"),
    ],
    ids=["missing", "truncated", "empty", "altered", "no notebook"],
)
def test_damaged_or_altered_outputs_count_as_none_and_can_be_replaced(cache, damage):
    damage(stored(cache))
    assert not execution.kept(cache, page())
    execution.keep(cache, page(), Path("page.md"), {})
    assert execution.kept(cache, page())


def test_line_ends_are_not_an_alteration(cache):
    stored(cache).write_bytes(stored(cache).read_bytes().replace(b"\n", b"\r\n"))
    assert execution.kept(cache, page())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recovered")
    two = "# Two\n\n```{code-cell} python3\nimport sys\nsys.executable\n```\n"
    book(folder, index="# Start\n", one="# One\n" + NUMBER + "\nIt is {glue:text}`n:d`.\n", two=two)
    kernel = folder / "elsewhere" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/no/such/python", "{connection_file}"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return folder, *build(folder, JUPYTER_PATH=str(folder / "elsewhere"))


def test_a_kernel_is_this_python_whatever_jupyter_path_says(small):
    folder, status, output = small
    assert status == 0, output
    assert sys.executable in (folder / "_build" / "html" / "two.html").read_text()


def test_a_build_executes_again_what_was_altered_although_no_page_changed(small):
    folder = small[0]
    caches = folder / "_build" / ".jupyter_cache"
    one = next(path for path in caches.glob("*/executed/*/base.ipynb") if "17" in path.read_text())
    one.write_text(one.read_text().replace("17", "71"))
    status, output = build(folder)
    assert (status, ran(output)) == (0, ["one"]), output
    assert "damaged or were altered" in output
    assert "71" not in one.read_text()


def test_a_chapter_saved_as_a_notebook_does_not_join_the_build(small):
    folder = small[0]
    saved = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Another one")])
    places = [folder / "one.ipynb", folder / ".ipynb_checkpoints" / "one-checkpoint.ipynb", folder / "three.ipynb"]
    places[1].parent.mkdir()
    for place in places:
        nbformat.write(saved, place)
    status, output = build(folder)
    assert (status, ran(output)) == (0, []), output
    assert "Another one" not in (folder / "_build" / "html" / "one.html").read_text()
    assert not (folder / "_build" / "html" / "three.html").exists()


def test_two_builds_in_one_folder_are_told_apart(small):
    folder = small[0]
    with FileLock(folder / "_build" / ".lock"):
        status, output = build(folder)
    assert status != 0
    assert "another build is at work in" in output
    assert "Traceback" not in output
    assert build(folder)[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_root_left_is_named():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "html").mkdir(mode=0o755)
        reading, writing = os.pipe()
        if not (child := os.fork()):
            os.setuid(65534)
            os.write(writing, str(execution.unwritable(folder)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 1000).decode() == str(folder / "html")


def test_everything_of_ones_own_can_be_written(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("")
    assert execution.unwritable(tmp_path) is None
    assert execution.unwritable(tmp_path / "not there") is None
