"""The chapters by their number: links in running text, what each says of itself, and the numbers of its exercises.

Roles: `{chapter}` with a number is a link such as "chapter 7", and plain words where that chapter isn't in the book;
`{chapter-title}` gives number and title; `{hours}` with numbers, as in `1-6, 9`, adds up the chapters' own minutes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from labbook._ext import pages

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
EXERCISE = re.compile(r"ex-(\d\d)-(\d+)\Z")
INSIDE = ("exercise-content", "solution-content")


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
    return {chapter.number: chapter for _, chapter in sorted(pages.collected(env, "chapters").items())}


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


def links(app: Sphinx, here: str, wanted: list[int], words: str = "{number}") -> list[nodes.Node]:
    """The chapters with these numbers as links from the page `here`, a comma between two."""
    known = chapters(app.env)
    shown: list[nodes.Node] = []
    for n in wanted:
        shown += [nodes.Text(", ")] if shown else []
        if n in known:
            said = words.format(number=n, title=known[n].title)
            shown.append(pages.link(app, here, known[n].docname, said))
        else:
            shown.append(nodes.Text(f"chapter {n}" if "{title}" in words else words.format(number=n)))
    return shown


class NumberTitle(SphinxTransform):
    """A chapter's title begins with its number wherever it stands: sidebar, heading, previous and next, search."""

    default_priority = 700

    def apply(self, **kwargs: Any) -> None:
        """Only chapters have one."""
        title = next(iter(self.document.findall(nodes.title)), None)
        if title is not None and (n := number(self.env.docname)):
            title.insert(0, nodes.Text(f"{n}. "))


class ChapterRole(SphinxRole):
    """Check the numbers and leave a place for what is known when all pages have been read."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """A warning, and the text as it is, for what holds no numbers."""
        try:
            return [pages.Place(name=self.name, argument=numbers(self.text))], []
        except ValueError:
            logger.warning("%s takes numbers of chapters, not %r", self.name, self.text, location=self.get_location())
            return [nodes.Text(self.text)], []


def _hours(app: Sphinx, here: str, named: list[int]) -> list[nodes.Node]:
    known = chapters(app.env)
    absent = [str(n) for n in named if n not in known]
    without = f" (without {', '.join(absent)})" if absent else ""
    return [nodes.Text(hours(minutes(known, named)) + without)]


def _read(app: Sphinx, doctree: nodes.document) -> Chapter | None:
    docname = app.env.docname
    if number(docname) is None:
        return None
    source = Path(app.env.doc2path(docname)).read_text(encoding="utf8")
    return describe(docname, app.env.titles[docname].astext().removeprefix(f"{number(docname)}. "), source)


def renumber_exercises(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Show exercises under the numbers that `checks.check` knows them by: "Exercise 10.1", not the 25th of the book.

    sphinx-exercise also gives the inside of each exercise, and of each solution, one id, which a page may have once.
    """
    inside = (part for part in doctree.findall(nodes.section) if part["ids"] and part["ids"][0] in INSIDE)
    for place, part in enumerate(inside, start=1):
        part["ids"] = [f"{part['ids'][0]}-{place}"]
    known = app.env.toc_fignumbers.get(docname, {}).get("exercise", {})
    for label in known:  # the writer reads the number from there
        if found := EXERCISE.match(label):
            known[label] = found.groups()  # type: ignore[assignment]


def setup(app: Sphinx) -> None:
    """Register the roles."""
    app.add_transform(NumberTitle)
    pages.collect(app, "chapters", _read)
    app.connect("doctree-resolved", renumber_exercises)
    fills = {
        "chapter": lambda app, here, named: links(app, here, named, "chapter {number}"),
        "chapter-title": lambda app, here, named: links(app, here, named, "{number}. {title}"),
        "hours": _hours,
    }
    for name, fill in fills.items():
        pages.FILLS[name] = fill
        app.add_role(name, ChapterRole())
