"""Prediction boxes: a stable name for each, and the page that lists them all.

What a reader types stays in the reader's browser; `assets/predictions.js` does that. Here each box of a chapter gets
an id from the section that it stands in, which survives rewording and another model, and its question is kept for
the `predictions` directive. Used by every chapter and shown on the page "Predictions".
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from labbook._ext.chapters import number, skip

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

CLASS = "predict"
FILES = ("predictions.css", "predictions.js")


@dataclass(frozen=True)
class Box:
    """One prediction box: its id on the page and what it asks, as plain text."""

    name: str
    question: str


class PredictionsNode(nodes.General, nodes.Element):
    """The place of the list, which is known only when all pages have been read."""


class Predictions(SphinxDirective):
    """Leave a place for the list."""

    def run(self) -> list[nodes.Node]:
        """Note that this page needs the script."""
        _listing(self.env).add(self.env.docname)
        return [PredictionsNode()]


def boxes(env: BuildEnvironment) -> dict[str, list[Box]]:
    """The boxes of each chapter by docname; they live in Sphinx's environment, with the pages."""
    if not hasattr(env, "lab_predictions"):
        env.lab_predictions = {}  # type: ignore[attr-defined]
    stored: dict[str, list[Box]] = env.lab_predictions  # type: ignore[attr-defined]
    return stored


def _listing(env: BuildEnvironment) -> set[str]:
    if not hasattr(env, "lab_prediction_lists"):
        env.lab_prediction_lists = set()  # type: ignore[attr-defined]
    stored: set[str] = env.lab_prediction_lists  # type: ignore[attr-defined]
    return stored


def name_boxes(doctree: nodes.document) -> list[Box]:
    """Give each box of a page its id and return what it asks.

    The id is that of the section around the box, with a count where a section has several.
    """
    found: list[Box] = []
    for box in doctree.findall(nodes.admonition):
        if CLASS not in box["classes"]:
            continue
        section = box.parent
        while section is not None and not (isinstance(section, nodes.section) and section["ids"]):
            section = section.parent
        base = f"{CLASS}-{section['ids'][0]}" if section is not None else CLASS
        taken = sum(one.name == base or one.name.startswith(f"{base}--") for one in found)
        name = f"{base}--{taken + 1}" if taken else base
        box["ids"].insert(0, name)
        words = [child.astext() for child in box.children if not isinstance(child, nodes.title)]
        found.append(Box(name, " ".join(" ".join(words).split())))
    return found


def _collect(app: Sphinx, doctree: nodes.document) -> None:
    docname = app.env.docname
    boxes(app.env).pop(docname, None)
    if number(docname) is not None and (found := name_boxes(doctree)):
        boxes(app.env)[docname] = found


def _forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    boxes(env).pop(docname, None)
    _listing(env).discard(docname)


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the list where the directive stands: each question under its chapter, with a link to its box."""
    for place in list(doctree.findall(PredictionsNode)):
        stored = boxes(app.env)
        order = [name for name in app.env.collect_relations() if name in stored]
        content: list[nodes.Node] = [nodes.raw("", '<div id="lab-log"></div>', format="html")]
        for chapter in order:
            content.append(_section(app, docname, chapter, stored[chapter]))
        if not order:
            content.append(nodes.paragraph("", "No chapter of this book asks for a prediction."))
        place.replace_self(content)


def _section(app: Sphinx, here: str, docname: str, asked: list[Box]) -> nodes.section:
    title = app.env.titles[docname].astext()
    section = nodes.section("", nodes.title("", title), ids=[f"log-{docname.rpartition('/')[2]}"])
    for box in asked:
        address = f"{app.builder.get_relative_uri(here, docname)}#{box.name}"
        section += nodes.raw(
            "",
            f'<div class="lab-log-entry" data-page="{escape(docname)}" data-box="{escape(box.name)}">'
            f'<p class="lab-log-question"><a href="{escape(address)}">{escape(box.question)}</a></p></div>',
            format="html",
        )
    return section


def add_script(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Name the page and the model for the script, and load it only where there is something to do."""
    if page not in boxes(app.env) and page not in _listing(app.env):
        return
    model = app.config.lab_subject.get("title", "")
    facts = {"lab-page": page, "lab-model": model}
    context["metatags"] = context.get("metatags", "") + "".join(
        f'<meta name="{name}" content="{escape(str(value))}"/>' for name, value in facts.items()
    )
    app.add_css_file(FILES[0])
    app.add_js_file(FILES[1], loading_method="defer")


def setup(app: Sphinx) -> None:
    """Register the directive and the collection of boxes."""
    app.add_node(PredictionsNode, html=(skip, None), latex=(skip, None), text=(skip, None))
    app.add_directive("predictions", Predictions)
    app.connect("doctree-read", _collect)
    app.connect("env-purge-doc", _forget)
    app.connect("doctree-resolved", fill)
    app.connect("html-page-context", add_script)
