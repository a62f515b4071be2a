"""A chapter as two notebooks: for a student, with blanks to fill, and solved, with the outputs of a run.

Used by the notebooks of every chapter.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import nbformat
from nbformat import NotebookNode

from labbook._ext import plainblocks
from labbook._ext.plainblocks import Piece
from labbook._ext.plaininline import Page

GLUED = "application/papermill.record/"
PLOTLY = "application/vnd.plotly.v1+json"
CHECK = "course.check"
STARTER = "starter"  # the tag of a cell that an answer begins with
LABEL = re.compile(r"ex-(\d+)-(\d+)\Z")
EQUATION = re.compile(r"\$\$\s*\(([\w:-]+)\)|^\s*:label:\s*([\w:-]+)\s*$", re.M)
STUDENT_NOTE = (
    "> **Student notebook.** Values appear when you run the book: where a sentence has … in it, the cells around it "
    "compute the number. Each exercise has an empty cell that stops the run until you fill it. The solutions are in "
    "the notebook *{solved}*."
)
SOLVED_NOTE = "> **Solved notebook.** The numbers, figures and solutions are those of one run{on}."


def assemble(chapter: NotebookNode, page: Page, install: str, ran_on: str = "") -> NotebookNode:
    """Make one notebook of a chapter.

    Args:
        chapter: The page as myst-nb reads it; for a solved notebook its code cells have their outputs.
        page: What its sentences refer to, and whether the notebook is to be solved. Gets `problems`.
        install: The source of the first cell.
        ran_on: The title of the run's model, for the line at the top.
    """
    page.equations.update(_equations(chapter))
    maker = _Maker(page)
    maker.code(install)
    on = f" on {ran_on}" if ran_on else ""
    note = SOLVED_NOTE.format(on=on) if page.solved else STUDENT_NOTE.format(solved=f"{page.name}-solved.ipynb")
    maker.say(note)
    maker.flush()
    for cell in chapter.cells:
        if cell.cell_type == "markdown":
            for piece in plainblocks.pieces(cell.source, page):
                maker.piece(piece)
            maker.flush()
        else:
            maker.cell(cell)
    if page.cited:
        maker.say("## Works cited\n\n" + "\n".join(f"* {page.works[key].full}" for key in sorted(page.cited)))
    maker.flush()
    kernel = {"name": "python3", "display_name": "Python 3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=maker.cells, metadata=metadata)


def values(chapter: NotebookNode) -> dict[str, str]:
    """What an executed chapter glued, as `repr`, by name."""
    found = {}
    for cell in chapter.cells:
        for output in cell.get("outputs", []):
            mark = output.get("metadata", {}).get("scrapbook")
            if mark:
                text = output["data"].get(f"{mark['mime_prefix']}text/plain", "")
                found[mark["name"]] = "".join(text)
    return found


class _Maker:
    """The notebook so far, the words that wait for their cell, and the exercise that is open."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.cells: list[NotebookNode] = []
        self.words: list[str] = []
        self.inside = ""  # "exercise", "solution" or nothing
        self.number = ""
        self.blank: NotebookNode | None = None
        self.checks: list[str] = []
        self.exercises = 0

    def say(self, text: str) -> None:
        if text.strip():
            self.words.append(text.strip("\n"))

    def flush(self) -> None:
        """Put the words that wait into a cell."""
        if self.words:
            self._add(nbformat.v4.new_markdown_cell("\n\n".join(self.words)))
        self.words = []

    def code(self, source: str, **parts: Any) -> NotebookNode:
        return self._add(nbformat.v4.new_code_cell(source, **parts))

    def _add(self, cell: NotebookNode) -> NotebookNode:
        # Not random, so that a build that changes nothing writes nothing.
        cell.id = f"{self.page.name[:48]}-{len(self.cells)}"
        self.cells.append(cell)
        return cell

    @property
    def hidden(self) -> bool:
        return self.inside == "solution" and not self.page.solved

    def piece(self, piece: Piece) -> None:
        """Take a stretch of text, or open or close an exercise or a solution."""
        if piece.kind == "text":
            if not self.hidden:
                self.say(piece.text)
        elif piece.kind == "exercise-start":
            self.inside, self.blank, self.checks = "exercise", None, []
            self.exercises += 1
            self.number = _number(piece.label) or f"{self.page.name[:2]}.{self.exercises}"
            self.say(f"### Exercise {self.number}: {piece.text}" if piece.text else f"### Exercise {self.number}")
        elif piece.kind == "exercise-end":
            if not self.page.solved and self.blank is None:
                self._blank()
            self.inside = ""
        elif piece.kind == "solution-start":
            self.inside = "solution"
            if self.page.solved:
                self.say(f"#### Solution of exercise {_number(piece.text) or self.number}")
        else:
            self.inside = ""
            self._kept_checks()

    def cell(self, cell: NotebookNode) -> None:
        """Take a code cell, and its figure's caption as the words after it."""
        if self.hidden:
            self.checks += _checks(cell.source)
            return
        self.flush()
        if self.inside == "exercise" and not self.page.solved and self.blank is None:
            if STARTER in cell.metadata.get("tags", []):
                self._blank(cell.source)
                return
            if CHECK in cell.source:
                self._blank()
        metadata = {key: value for key, value in cell.metadata.items() if key != "mystnb"}
        if "hide-input" in metadata.get("tags", []):
            metadata["jupyter"] = {"source_hidden": True}
        made = self.code(cell.source, metadata=metadata)
        if self.page.solved:
            made.outputs = [_shown(output) for output in cell.get("outputs", []) if not _silent(output)]
            made.execution_count = cell.get("execution_count")
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if figure.get("caption"):
            number = self.page.labels.get(figure.get("name", ""), ("", ""))[1]
            self.say(plainblocks.caption(f"{number}: {figure['caption']}" if number else figure["caption"], self.page))

    def _blank(self, starter: str = "") -> None:
        self.flush()
        message = f"Exercise {self.number}: write your answer in this cell, then run on"
        begun = f"{starter.rstrip()}\n\n\n" if starter else ""
        self.blank = self.code(
            f'{begun}# your answer here, in place of the next line\nraise NotImplementedError("{message}")\n'
        )

    def _kept_checks(self) -> None:
        """After a solution that a student doesn't see: its checks, and in the blank the names that they read."""
        if not self.checks or self.page.solved:
            return
        source = "\n".join(dict.fromkeys(self.checks))
        names = sorted(_arguments(source))
        if self.blank is not None and names:
            begun, here, rest = self.blank.source.rpartition("# your answer here")
            first, rest = rest.split("\n", 1)
            self.blank.source = f"{begun}{here}{first}\n# the check in the next cell reads: {', '.join(names)}\n{rest}"
        self.code(source)
        self.checks = []


def _number(label: str) -> str:
    """ "05.1" for the label ex-05-1, and nothing for other labels."""
    found = LABEL.match(label)
    return f"{found[1]}.{found[2]}" if found else ""


def _equations(chapter: NotebookNode) -> dict[str, int]:
    texts = [cell.source for cell in chapter.cells if cell.cell_type == "markdown"]
    labels = [found[1] or found[2] for text in texts for found in EQUATION.finditer(text)]
    return {label: number for number, label in enumerate(dict.fromkeys(labels), start=1)}


def _silent(output: NotebookNode) -> bool:
    """Whether an output only carries a value to a sentence, and shows nothing."""
    return output.get("metadata", {}).get("scrapbook", {}).get("mime_prefix") == GLUED


def _shown(output: NotebookNode) -> NotebookNode:
    """The output; a figure also in words, for where no figure can be drawn."""
    data = output.get("data", {})
    if PLOTLY not in data or "text/plain" in data:
        return output
    words = (data[PLOTLY].get("layout", {}).get("meta") or {}).get("alt", "")
    return nbformat.from_dict({**output, "data": {**data, "text/plain": f"Figure: {words}"}})


def _checks(source: str) -> list[str]:
    """The statements of a cell that check an answer, and the imports that they need."""
    if CHECK not in source:
        return []
    body = ast.parse(source).body
    checking = [
        node for node in body if CHECK in ast.unparse(node) and not isinstance(node, ast.ImportFrom | ast.Import)
    ]
    used = {name.id for node in checking for name in ast.walk(node) if isinstance(name, ast.Name)}
    imports = [
        node
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and used & {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    ]
    return [ast.get_source_segment(source, node) or ast.unparse(node) for node in [*imports, *checking]]


def _arguments(source: str) -> set[str]:
    """The names that the checks are given."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    given = [value for call in calls if ast.unparse(call.func) == CHECK for value in [*call.args, *call.keywords]]
    return {name.id for value in given for name in ast.walk(value) if isinstance(name, ast.Name)}
