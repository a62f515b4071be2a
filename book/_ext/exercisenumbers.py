"""Exercises under the numbers that `course.check` knows them by: "Exercise 09.1" and not the 25th of the book.

sphinx-exercise also gives the inside of each exercise, and of each solution, the same id; a page may have an id once.

Used by every chapter, through the build.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LABEL = re.compile(r"ex-(\d\d)-(\d+)\Z")


INSIDE = ("exercise-content", "solution-content")


def renumber(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give the page's exercises the number in their label; the writer reads it from there."""
    inside = (part for part in doctree.findall(nodes.section) if part["ids"] and part["ids"][0] in INSIDE)
    for place, part in enumerate(inside, start=1):
        part["ids"] = [f"{part['ids'][0]}-{place}"]
    numbers = app.env.toc_fignumbers.get(docname, {}).get("exercise", {})
    for label in numbers:
        if found := LABEL.match(label):
            numbers[label] = found.groups()  # type: ignore[assignment]


def setup(app: Sphinx) -> None:
    """Register the event."""
    app.connect("doctree-resolved", renumber)
