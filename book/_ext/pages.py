"""What a page needs that shows something of the whole book.

What each page says is collected when it is read; a place that a directive or role leaves is filled when all have been
read. Both live in Sphinx's environment, so pages that come from its cache take part.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

Cell: TypeAlias = str | nodes.Node | list[nodes.Node]
Fill = Callable[["Sphinx", str, Any], list[nodes.Node]]
FILLS: dict[str, Fill] = {}
MATHS = ("ziamath", "fonts/STIXTwoMath-Regular.ttf")  # the font of the formulas


class Place(nodes.Element):
    """A place with the `name` of what fills it and an `argument` for that."""


def add_directive(app: Sphinx, name: str, fill: Fill) -> None:
    """Add a directive that leaves a place; `fill(app, docname, argument)` makes its content for the page `docname`."""

    class Leave(SphinxDirective):
        optional_arguments = 1

        def run(self) -> list[nodes.Node]:
            return [Place(name=name, argument=self.arguments[0] if self.arguments else "")]

    FILLS[name] = fill
    app.add_directive(name, Leave)


def collect(app: Sphinx, name: str, read: Callable[[Sphinx, nodes.document], Any]) -> None:
    """Keep what `read` finds on each page, if it finds anything, until the page is read anew or goes."""

    def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        collected(env, name).pop(docname, None)

    def keep(app: Sphinx, doctree: nodes.document) -> None:
        forget(app, app.env, app.env.docname)
        if found := read(app, doctree):
            collected(app.env, name)[app.env.docname] = found

    app.connect("doctree-read", keep)
    app.connect("env-purge-doc", forget)


def collected(env: BuildEnvironment, name: str) -> dict[str, Any]:
    """What is kept of each page under this name, by docname."""
    stored: dict[str, dict[str, Any]] = env.__dict__.setdefault("lab_collected", {})
    return stored.setdefault(name, {})


def has(name: str) -> Callable[[Sphinx, nodes.document], bool]:
    """To collect the pages with a place of this name."""
    return lambda app, doctree: any(place["name"] == name for place in doctree.findall(Place))


def load_script(app: Sphinx, script: str, *names: str) -> None:
    """Load a script, and name the page and the model for it, on pages of which something is kept under these names."""

    def load(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
        if not any(page in collected(app.env, name) for name in names):
            return
        facts = {"lab-page": page, "lab-model": app.config.lab_subject.get("title", "")}
        tags = "".join(f'<meta name="{name}" content="{escape(str(value))}"/>' for name, value in facts.items())
        if tags not in context.get("metatags", ""):
            context["metatags"] = context.get("metatags", "") + tags
        app.add_js_file(script, loading_method="defer")

    app.connect("html-page-context", load)


def in_order(env: BuildEnvironment, name: str) -> list[tuple[str, Any]]:
    """Docname and what is kept of the page, in the order of the table of contents."""
    kept = collected(env, name)
    return [(docname, kept[docname]) for docname in env.collect_relations() if docname in kept]


def above(node: nodes.Node) -> Iterator[nodes.Element]:
    """The elements that a node stands in, the innermost first."""
    while (node := node.parent) is not None:
        yield node


def carried(file: tuple[str, str]) -> Path:
    """A file that an installed package carries, found without importing the package."""
    package, inside = file
    found = importlib.util.find_spec(package)
    return Path(str(found and found.origin)).parent / inside


def link(
    app: Sphinx, here: str, docname: str, words: str | nodes.Node = "", anchor: str = "", **more: Any
) -> nodes.reference:
    """A link from the page `here` to another, with that page's title for words if none are given."""
    title = app.env.titles[docname].astext()
    shown = words if isinstance(words, nodes.Node) else nodes.Text(words or title)
    address = app.builder.get_relative_uri(here, docname) + (f"#{anchor}" if anchor else "")
    return nodes.reference("", "", shown, refuri=address, internal=True, **{"reftitle": title, **more})


def table(headings: Iterable[Cell], rows: Iterable[Iterable[Cell]], *classes: str) -> nodes.table:
    """A table; a cell is a text, a node or several."""
    head = _row(headings)
    width = len(head)
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in range(width)), cols=width)
    group += [nodes.thead("", head), nodes.tbody("", *map(_row, rows))]
    return nodes.table("", group, classes=["lab-ledger", *classes])


def _row(cells: Iterable[Cell]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        inside = [nodes.Text(cell)] if isinstance(cell, str) else cell if isinstance(cell, list) else [cell]
        row += nodes.entry("", nodes.paragraph("", "", *inside))
    return row


def _fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for place in list(doctree.findall(Place)):
        place.replace_self(FILLS[place["name"]](app, docname, place["argument"]))


def _skip(translator: Any, node: nodes.Element) -> None:
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Fill the places before a page is written."""
    app.add_node(Place, html=(_skip, None), latex=(_skip, None), text=(_skip, None))
    app.connect("doctree-resolved", _fill)
