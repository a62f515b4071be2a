"""Two notebooks for each chapter, written with its page and offered under its title.

`notebooks/NAME.ipynb` is the student's: blanks in place of the solutions, outputs cleared, checks in.
`notebooks/NAME-solved.ipynb` has solutions and the outputs from the execution cache. The words come from Sphinx's
resolved tree, so numbers, citations and references are those of the page; a chapter is a page whose name begins with
its number.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from sphinx.util.osutil import relative_uri
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_node, solution_node

from labbook._ext import addresses, execution, figures, installcell
from labbook._ext.chapters import number
from labbook._ext.plainmarkdown import PlainMarkdown, escaped

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

FOLDER = "notebooks"
KINDS = {"student": "", "solved": "-solved"}
GLUED = "application/papermill.record/"
CHECK = "checks.check"
STARTER = "starter"  # the tag of a cell that an answer begins with
STUDENT_NOTE = (
    "> **Student notebook.** Values appear when you run the book: where a sentence has … in it, the cells around it "
    "compute the number. Each exercise has an empty cell that stops the run until you fill it. The solutions are in "
    "the notebook *{solved}*."
)
SOLVED_NOTE = "> **Solved notebook.** The numbers, figures and solutions are those of one run{on}."


def name_of(docname: str) -> str:
    """The name of a chapter's notebooks."""
    return PurePosixPath(docname).name


def offer(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the links to a chapter's notebooks under its title."""
    title = next(iter(doctree.findall(nodes.title)), None)
    if app.builder.format != "html" or number(docname) is None or title is None:
        return
    here = app.builder.get_target_uri(docname)
    links = " · ".join(
        f'<a href="{relative_uri(here, f"{FOLDER}/{name_of(docname)}{suffix}.ipynb")}" download '
        f'aria-label="Download the {kind} notebook">{kind}</a>'
        for kind, suffix in KINDS.items()
    )
    for service, address in addresses.elsewhere(app.config.lab_repository, f"{name_of(docname)}.ipynb").items():
        links += f' · <a href="{escape(address)}" aria-label="Open the student notebook in {service}">{service}</a>'
    link = nodes.raw("", f'<p class="lab-notebooks">Notebook: {links}</p>', format="html")
    title.parent.insert(title.parent.index(title) + 1, link)


def write(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Write a chapter's notebooks, if they changed."""
    if app.builder.format != "html" or number(docname) is None:
        return
    env, folder = app.env, Path(app.outdir) / FOLDER
    chapter = executed(env, docname)
    install = installcell.source(Path(app.srcdir), app.config.lab_repository)
    for suffix in KINDS.values():
        pages = {}
        for other in env.found_docs - {docname}:
            file = f"{name_of(other)}{suffix}.ipynb" if number(other) is not None else ""
            pages[app.builder.get_relative_uri(docname, other)] = file
        words = PlainMarkdown(bool(suffix), pages, env.toc_fignumbers.get(docname, {}))
        maker = Maker(name_of(docname), chapter, words)
        made = maker.notebook(doctree, install, app.config.lab_subject.get("title", ""))
        text, target = nbformat.writes(made) + "\n", folder / f"{maker.name}{suffix}.ipynb"
        if not target.is_file() or target.read_text(encoding="utf8") != text:
            nbformat.validate(made)
            folder.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf8")


def clear(app: Sphinx, failure: Exception | None) -> None:
    """Take away the notebooks of chapters that are gone."""
    known = {f"{name_of(page)}{suffix}.ipynb" for page in app.env.found_docs for suffix in KINDS.values()}
    for old in (Path(app.outdir) / FOLDER).glob("*.ipynb"):
        if old.name not in known and failure is None:
            old.unlink()


def executed(env: BuildEnvironment, docname: str) -> NotebookNode:
    """The page's cells, with their outputs if they were executed."""
    settings = env.mystnb_config  # type: ignore[attr-defined]
    notebook = execution.notebook(env, docname) or nbformat.v4.new_notebook()
    if settings.execution_mode != "cache" or not notebook.cells:
        return notebook
    return get_cache(settings.execution_cache_path).merge_match_into_notebook(notebook)[1]


class Maker:
    """One notebook: its cells so far, the words that wait for theirs, and the exercise that is open."""

    def __init__(self, name: str, chapter: NotebookNode, words: PlainMarkdown) -> None:
        self.name = name
        self.source = chapter.cells
        self.words = words
        self.solved = words.solved
        self.cells: list[NotebookNode] = []
        self.waiting: list[str] = []
        self.number = ""  # of the exercise
        self.open = self.hidden = False  # in an exercise without a blank as yet; in a solution that isn't shown
        self.blank: NotebookNode | None = None
        self.checks: list[str] = []

    def notebook(self, doctree: nodes.document, install: str, ran_on: str = "") -> NotebookNode:
        """Make the notebook.

        Args:
            doctree: The page, resolved.
            install: The source of the first cell.
            ran_on: The title of the run's model, for the line at the top.
        """
        self.code(install)
        on = f" on {ran_on}" if ran_on else ""
        self.say(SOLVED_NOTE.format(on=on) if self.solved else STUDENT_NOTE.format(solved=f"{self.name}-solved.ipynb"))
        self.flush()
        self.walk(doctree.children, 0)
        if self.words.cited:
            self.say("## Works cited\n\n" + "\n".join(f"* {escaped(work)}" for work in self.words.cited.values()))
        self.flush()
        kernel = {"name": "python3", "display_name": "Python 3"}
        metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        return nbformat.v4.new_notebook(cells=self.cells, metadata=metadata)

    def say(self, text: str) -> None:
        if text.strip() and not self.hidden:
            self.waiting.append(text)

    def flush(self) -> None:
        """Put the words that wait into a cell."""
        if self.waiting:
            self._add(nbformat.v4.new_markdown_cell("\n\n".join(self.waiting)))
        self.waiting = []

    def code(self, source: str, **parts: Any) -> NotebookNode:
        return self._add(nbformat.v4.new_code_cell(source, **parts))

    def _add(self, cell: NotebookNode) -> NotebookNode:
        # Not random, so that a build that changes nothing writes nothing.
        cell.id = f"{self.name[:48]}-{len(self.cells)}"
        self.cells.append(cell)
        return cell

    def walk(self, parts: list[nodes.Node], depth: int) -> None:
        """Take what a part of the page holds: cells and exercises one by one, all else as words."""
        for node in parts:
            if isinstance(node, nodes.section):
                self.walk(node.children, depth + 1)
            elif isinstance(node, nodes.title) and isinstance(node.parent, nodes.section):
                self.say(f"{'#' * depth} {self.words.inside(node)}")
            elif isinstance(node, exercise_node | exercise_enumerable_node):
                self.exercise(node, depth)
            elif isinstance(node, solution_node):
                self.hidden = not self.solved
                self.say(f"#### Solution of exercise {self.number}")
                self.walk(node.children[1:], depth)
                self.hidden = False
                self._kept_checks()
            elif _is_cell(node):
                self.cell(self.source[node["cell_index"]], node)
            elif any(node.findall(_is_cell)):
                self.walk(node.children, depth)
            else:
                self.say(self.words.of(node))

    def exercise(self, node: nodes.Element, depth: int) -> None:
        title, *body = node.children
        self.number = self.words.number("exercise", node)
        named = self.words.inside(title).strip().removeprefix("(").removesuffix(")")
        self.say(f"### Exercise {self.number}{': ' if named else ''}{named}")
        self.open, self.blank, self.checks = not self.solved, None, []
        self.walk(body, depth)
        if self.open:
            self._blank()

    def cell(self, cell: NotebookNode, node: nodes.Element) -> None:
        """Take a code cell, and its figure's caption as the words after it."""
        if self.hidden:
            self.checks += _checks(cell.source)
            return
        self.flush()
        if self.open and STARTER in cell.metadata.get("tags", []):
            self._blank(cell.source)
            return
        if self.open and CHECK in cell.source:
            self._blank()
        metadata = {key: value for key, value in cell.metadata.items() if key != "mystnb"}
        if "hide-input" in metadata.get("tags", []):
            metadata["jupyter"] = {"source_hidden": True}
        made = self.code(cell.source, metadata=metadata)
        if self.solved:
            made.outputs = [_shown(output) for output in cell.get("outputs", []) if not _silent(output)]
            made.execution_count = cell.get("execution_count")
        for caption in node.findall(nodes.caption):
            self.say(self.words.of(caption))

    def _blank(self, starter: str = "") -> None:
        self.flush()
        message = f"Exercise {self.number}: write your answer in this cell, then run on"
        begun = f"{starter.rstrip()}\n\n\n" if starter else ""
        begun += "# your answer here, in place of the next line"
        self.blank = self.code(f'{begun}\nraise NotImplementedError("{message}")\n')
        self.open = False

    def _kept_checks(self) -> None:
        """After a solution that a student doesn't see: its checks, and in the blank the names that they read."""
        if not self.checks:
            return
        source = "\n".join(dict.fromkeys(self.checks))
        names = sorted(_arguments(source))
        if self.blank is not None and names:
            begun, stop, rest = self.blank.source.rpartition("raise NotImplementedError")
            self.blank.source = f"{begun}# the check in the next cell reads: {', '.join(names)}\n{stop}{rest}"
        self.code(source)
        self.checks = []


def _is_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def _silent(output: NotebookNode) -> bool:
    """Whether an output only carries a value to a sentence, and shows nothing."""
    return output.get("metadata", {}).get("scrapbook", {}).get("mime_prefix") == GLUED


def _shown(output: NotebookNode) -> NotebookNode:
    """The output; a figure also in words, for where no figure can be drawn."""
    data = output.get("data", {})
    if figures.MIME not in data or "text/plain" in data:
        return output
    words = f"Figure: {figures.alternative(data[figures.MIME])}"
    return nbformat.from_dict({**output, "data": {**data, "text/plain": words}})


def _checks(source: str) -> list[str]:
    """The statements of a cell that check an answer."""
    found = [node for node in ast.parse(source).body if CHECK in ast.unparse(node)] if CHECK in source else []
    return [ast.get_source_segment(source, node) or "" for node in found]


def _arguments(source: str) -> set[str]:
    """The names that the checks are given."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    given = [value for call in calls if ast.unparse(call.func) == CHECK for value in [*call.args, *call.keywords]]
    return {name.id for value in given for name in ast.walk(value) if isinstance(name, ast.Name)}


def setup(app: Sphinx) -> None:
    """Register the links and the writing."""
    app.connect("doctree-resolved", offer)
    app.connect("doctree-resolved", write, priority=900)  # when the other modules have had the page
    app.connect("build-finished", clear)
