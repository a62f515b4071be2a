"""The chapters by their number: links in running text, and what each says of itself in its first lines.

Roles: `{chapter}` with a number is a link such as "chapter 7", and plain words where that chapter isn't in the book;
`{chapter-title}` gives number and title, `{chapter-number}` the number alone; `{hours}` with numbers, as in `1-6, 9`,
adds up the chapters' own minutes. Used by the pages at the back of the book.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

logger = logging.getLogger(__name__)
NUMBERED = re.compile(r"(?:^|/)(\d\d)-[^/]+$")
MODEL_ROW = re.compile(
    r"^\|[^|\n]*model_title[^|\n]*\|\s*(\d+) minutes\s*\|\s*(\d+) minutes\s*\|(?P<builds>.*)\|\s*$", re.MULTILINE
)
LINKED = re.compile(r"\]\((?:[^()\s]*/)?(\d\d)-[^()\s]*\)")
QUESTION = re.compile(r"^# .+\n+\*\*([^\n]+\?)\*\*", re.MULTILINE)


@dataclass(frozen=True)
class Chapter:
    """One numbered page, as its own source describes it.

    Attributes:
        number: The two digits that its file name begins with.
        docname: Sphinx's name for the page.
        title: Its heading.
        question: The question that it opens with, or nothing.
        reading: Minutes to read it, or None if its first lines don't say.
        doing: Minutes to work through it, or None.
        builds_on: The numbers of the chapters that it names as prerequisites.
    """

    number: int
    docname: str
    title: str
    question: str
    reading: int | None
    doing: int | None
    builds_on: tuple[int, ...]


def number(docname: str) -> int | None:
    """The chapter's number, None for a page that isn't a chapter."""
    found = NUMBERED.search(docname)
    return int(found[1]) if found else None


def describe(docname: str, title: str, source: str) -> Chapter:
    """Read a chapter's question, minutes and prerequisites from its source."""
    row, question = MODEL_ROW.search(source), QUESTION.search(source)
    return Chapter(
        number=number(docname) or 0,
        docname=docname,
        title=title,
        question=question[1] if question else "",
        reading=int(row[1]) if row else None,
        doing=int(row[2]) if row else None,
        builds_on=tuple(sorted({int(n) for n in LINKED.findall(row["builds"])})) if row else (),
    )


def chapters(env: BuildEnvironment) -> dict[int, Chapter]:
    """All chapters of this book by number, in order."""
    found = {}
    for docname in env.found_docs:
        if (n := number(docname)) is not None and docname in env.titles:
            source = Path(env.doc2path(docname)).read_text(encoding="utf8")
            found[n] = describe(docname, env.titles[docname].astext(), source)
    return dict(sorted(found.items()))


def numbers(text: str) -> list[int]:
    """The numbers that a text such as "1-3, 9" names: here 1, 2, 3 and 9.

    Raises:
        ValueError: The text is something else.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def minutes(known: dict[int, Chapter], wanted: list[int]) -> int:
    """Reading and doing together, for those of the chapters that are there and say it."""
    return sum((known[n].reading or 0) + (known[n].doing or 0) for n in wanted if n in known)


def hours(total: int) -> str:
    """Minutes as a reader plans them: "45 min", "2 h", "2 h 15 min", to five minutes."""
    whole, rest = divmod(5 * round(total / 5), 60)
    return " ".join(([f"{whole} h"] if whole else []) + ([f"{rest} min"] if rest or not whole else []))


class ChapterNode(nodes.Inline, nodes.TextElement):
    """The place of a link or a sum that is known only when all pages have been read."""


class ChapterRole(SphinxRole):
    """Check the numbers and leave a place for what the builder will find."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """A warning, and the text as it is, for what holds no numbers."""
        try:
            named = numbers(self.text)
        except ValueError:
            logger.warning("%s takes numbers of chapters, not %r", self.name, self.text, location=self.get_location())
            return [nodes.Text(self.text)], []
        return [ChapterNode(kind=self.name, numbers=named)], []


def link(app: Sphinx, here: str, chapter: Chapter, words: str) -> nodes.Node:
    """A link from the page `here` to a chapter."""
    address = app.builder.get_relative_uri(here, chapter.docname)
    return nodes.reference("", words, refuri=address, internal=True, reftitle=chapter.title)


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put links and sums where the roles stand."""
    places = list(doctree.findall(ChapterNode))
    known = chapters(app.env) if places else {}
    for place in places:
        place.replace_self(_shown(app, docname, known, place["kind"], place["numbers"]))


def _shown(app: Sphinx, here: str, known: dict[int, Chapter], kind: str, named: list[int]) -> list[nodes.Node]:
    if kind == "hours":
        absent = [str(n) for n in named if n not in known]
        without = f" (without {', '.join(absent)})" if absent else ""
        return [nodes.Text(hours(minutes(known, named)) + without)]
    shown: list[nodes.Node] = []
    for n in named:
        words = str(n) if kind == "chapter-number" else f"chapter {n}"
        if kind == "chapter-title" and n in known:
            words = f"{n}. {known[n].title}"
        shown += [nodes.Text(", ")] if shown else []
        shown.append(link(app, here, known[n], words) if n in known else nodes.Text(words))
    return shown


def skip(translator: Any, node: nodes.Element) -> None:
    """Write nothing for a place that no handler filled."""
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the roles."""
    app.add_node(ChapterNode, html=(skip, None), latex=(skip, None), text=(skip, None))
    for name in ("chapter", "chapter-title", "chapter-number", "hours"):
        app.add_role(name, ChapterRole())
    app.connect("doctree-resolved", fill)
