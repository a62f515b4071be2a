"""Prediction boxes: a stable name for each, and the `predictions` directive, which lists them all.

What a reader types stays in the reader's browser; `assets/predictions.js` does that. Here each box of a chapter gets an
id from the section that it stands in, which survives rewording and another model, and its question is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from docutils import nodes

from labbook._ext import pages
from labbook._ext.chapters import number

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CLASS = "predict"


@dataclass(frozen=True)
class PredictionBox:
    """One prediction box: its id on the page and what it asks, as plain text."""

    name: str
    question: str


def name_boxes(doctree: nodes.document) -> list[PredictionBox]:
    """Give each box of a page its id and return what it asks.

    The id is that of the section around the box, with a count where a section has several.
    """
    found: list[PredictionBox] = []
    for box in doctree.findall(nodes.admonition):
        if CLASS not in box["classes"]:
            continue
        sections = (one for one in pages.above(box) if isinstance(one, nodes.section) and one["ids"])
        section = next(sections, None)
        base = f"{CLASS}-{section['ids'][0]}" if section is not None else CLASS
        taken = sum(one.name == base or one.name.startswith(f"{base}--") for one in found)
        name = f"{base}--{taken + 1}" if taken else base
        box["ids"].insert(0, name)
        words = [child.astext() for child in box.children if not isinstance(child, nodes.title)]
        found.append(PredictionBox(name, " ".join(" ".join(words).split())))
    return found


def _read(app: Sphinx, doctree: nodes.document) -> list[PredictionBox]:
    return name_boxes(doctree) if number(app.env.docname) is not None else []


def fill(app: Sphinx, here: str, argument: str) -> list[nodes.Node]:
    """Each question under its chapter, with a link to its box."""
    content: list[nodes.Node] = [nodes.raw("", '<div id="lab-log"></div>', format="html")]
    asked = pages.in_order(app.env, "predictions")
    if not asked:
        content.append(nodes.paragraph("", "No chapter of this book asks for a prediction."))
    for docname, boxes in asked:
        section = nodes.section("", nodes.title("", app.env.titles[docname].astext()))
        section["ids"] = [f"log-{docname.rpartition('/')[2]}"]
        for box in boxes:
            address = f"{app.builder.get_relative_uri(here, docname)}#{box.name}"
            entry = (
                f'<div class="lab-log-entry" data-page="{escape(docname)}" data-box="{escape(box.name)}">'
                f'<p class="lab-log-question"><a href="{escape(address)}">{escape(box.question)}</a></p></div>'
            )
            section += nodes.raw("", entry, format="html")
        content.append(section)
    return content


def setup(app: Sphinx) -> None:
    """Register the directive and the collection of boxes."""
    pages.add_directive(app, "predictions", fill)
    pages.collect(app, "predictions", _read)
    pages.collect(app, "prediction lists", pages.has("predictions"))
    pages.load_script(app, "predictions.js", "predictions", "prediction lists")
