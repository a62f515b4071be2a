"""Citations as words, "Wang et al., 2023", for places where no bibliography can be linked.

Used by the notebooks of every chapter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pybtex.database import parse_file
from pybtex.richtext import Text

FEW = 2  # so many authors are named; of more only the first


@dataclass(frozen=True)
class Work:
    """One entry of the bibliography, in plain words.

    Attributes:
        names: The authors' last names, at the most the first few; "et al." stands last where there are more.
        year: As the entry has it.
        title: Without LaTeX.
        place: Journal, book, publisher or note, whichever comes first; perhaps nothing.
    """

    names: str
    year: str
    title: str
    place: str

    @property
    def parenthesis(self) -> str:
        """What stands in brackets: "Wang et al., 2023"."""
        return f"{self.names}, {self.year}"

    @property
    def textual(self) -> str:
        """What is part of a sentence: "Wang et al. (2023)"."""
        return f"{self.names} ({self.year})"

    @property
    def full(self) -> str:
        """A line of a list of works, in Markdown."""
        end = f" {self.place}." if self.place else ""
        return f"{self.textual}. *{self.title}*.{end}"


def load(files: Iterable[Path]) -> dict[str, Work]:
    """Read BibTeX files: a work for each key."""
    return {key: _work(entry) for file in files for key, entry in parse_file(str(file)).entries.items()}


def _work(entry: Any) -> Work:
    fields = entry.fields
    places = (fields.get(name) for name in ("journal", "booktitle", "publisher", "howpublished", "note"))
    return Work(
        names=_names(entry.persons.get("author") or entry.persons.get("editor") or []),
        year=fields.get("year", "no year"),
        title=_words(fields.get("title", "untitled")),
        place=_words(next((place for place in places if place), "")),
    )


def _names(people: list[Any]) -> str:
    last = [" ".join(str(part) for part in [*p.rich_prelast_names, *p.rich_last_names]) for p in people]
    if not last:
        return "Anonymous"
    if len(last) > FEW or "others" in last:
        return f"{last[0]} et al."
    return " and ".join(last)


def _words(latex: str) -> str:
    return str(Text.from_latex(latex))
