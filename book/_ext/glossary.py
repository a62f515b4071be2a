"""Link the first use of each glossary term in a chapter to the glossary, and let the search know who introduces it.

Chapters carry no markup for it, but for words that plain English needs too: those are linked where a chapter means the
term, by the role `{term}`. Terms that share a definition count as one. Headings, code, formulas, captions, tables,
links and numbers that the run put in are left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from labbook._ext import pages
from labbook._ext.chapters import number

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# A word inside one of these isn't running text, or is a link already.
CLOSED = (
    *(nodes.title, nodes.rubric, nodes.literal, nodes.literal_block, nodes.reference, nodes.footnote_reference),
    *(nodes.caption, nodes.legend, nodes.figure, nodes.table, nodes.math, nodes.math_block, nodes.raw),
    *(addnodes.pending_xref, addnodes.glossary),
)
PLAIN_ENGLISH = {"claim", "key", "value"}
RUN_MADE = {"pasted-text", "cell", "cell_output", "cell_input"}


@dataclass(frozen=True)
class Entry:
    """One definition: where it stands, the words for it, and its text."""

    docname: str
    target: str
    words: tuple[str, ...]
    text: str
    since: int = 0  # the chapter that introduces it


def read(app: Sphinx, doctree: nodes.document) -> list[Entry]:
    """The entries of the glossaries on a page; the tooltip is the definition without its chapter in brackets."""
    found = []
    for glossary in doctree.findall(addnodes.glossary):
        for item in glossary.findall(nodes.definition_list_item):
            terms = [term for term in item.children if isinstance(term, nodes.term)]
            definition = next(iter(item.findall(nodes.paragraph)), None)
            text = " ".join(definition.astext().split()).removesuffix("()").rstrip() if definition else ""
            since = min((n for place in item.findall(pages.Place) for n in place["argument"]), default=0)
            found.append(
                Entry(app.env.docname, terms[0]["ids"][0], tuple(term.astext() for term in terms), text, since)
            )
    return found


def pattern(word: str) -> str:
    """A term as it may stand in a sentence: with capitals, a hyphen for a space, and a plural.

    A term with a capital in it, such as OV, L0 or BOS, is met only as it is.
    """
    spaced = re.sub(r"(?:\\?[\s-])+", r"[\\s-]+", re.escape(word))
    if word != word.lower():
        return rf"(?-i:{spaced})(?:s\b|\b)"
    plural = "(?:es|s)?" if not word.endswith("s") else ""
    if word.endswith("y"):
        spaced, plural = spaced[:-1], "(?:y|ies)"
    return rf"{spaced}{plural}\b"


class Words:
    """All terms of a glossary as one expression; the longer of two that begin alike wins."""

    def __init__(self, known: list[Entry], chapter: int) -> None:
        """Sort the words and remember whose they are.

        A plain word, such as *sender*, may mean something else before its own chapter, so it waits for that.
        """
        by_word = {
            word: entry
            for entry in known
            for word in entry.words
            if word not in PLAIN_ENGLISH and (chapter >= entry.since or not re.fullmatch("[a-z]+", word))
        }
        longest = sorted(by_word, key=len, reverse=True)
        self.owner = [by_word[word] for word in longest]
        parts = "|".join(f"({pattern(word)})" for word in longest)
        self.expression = re.compile(rf"(?<![\w.-])(?:{parts})(?!\w|[-+]\w)", re.IGNORECASE) if longest else None

    def find(self, text: str, done: set[str]) -> list[tuple[int, int, Entry]]:
        """Begin, end and entry of each first use in the text; `done` grows by them."""
        found = []
        for match in self.expression.finditer(text) if self.expression else ():
            entry = self.owner[(match.lastindex or 1) - 1]
            if entry.target not in done:
                done.add(entry.target)
                found.append((match.start(), match.end(), entry))
        return found


def is_prose(text: nodes.Text) -> bool:
    """Whether a text stands in a paragraph or a list, and in nothing that must stay as it is."""
    around = list(pages.above(text))
    kept = (isinstance(node, CLOSED) or RUN_MADE & set(node.get("classes", ())) for node in around)
    return any(isinstance(node, nodes.paragraph) for node in around) and not any(kept)


class GlossaryLinks(SphinxPostTransform):
    """Put the links in once every other reference of the page is resolved."""

    default_priority = 200

    def run(self, **kwargs: Any) -> None:
        """Only chapters get links."""
        known = [entry for page in pages.collected(self.env, "glossary").values() for entry in page]
        chapter = number(self.env.docname)
        if not known or chapter is None:
            return
        self.document.insert(0, introduced(self.document, [entry for entry in known if entry.since == chapter]))
        words, done = Words(known, chapter), set[str]()
        by_target = {entry.target: entry for entry in known}
        for marked in [one.parent for one in self.document.findall(nodes.inline) if "std-term" in one["classes"]]:
            if entry := by_target.get(marked.get("refid") or marked.get("refuri", "").partition("#")[2]):
                done.add(entry.target)
                marked.replace_self(self._link(entry, marked.astext()))
        for text in [text for text in self.document.findall(nodes.Text) if is_prose(text)]:
            if found := words.find(str(text), done):
                text.parent.replace(text, self._linked(str(text), found))

    def _link(self, entry: Entry, words: str) -> nodes.reference:
        to: dict[str, Any] = {"anchor": entry.target, "reftitle": entry.text, "classes": ["lab-term"]}
        return pages.link(self.app, self.env.docname, entry.docname, words, **to)

    def _linked(self, text: str, found: list[tuple[int, int, Entry]]) -> list[nodes.Node]:
        parts: list[nodes.Node] = []
        at = 0
        for begin, end, entry in found:
            parts += [nodes.Text(text[at:begin])] if begin > at else []
            parts.append(self._link(entry, text[begin:end]))
            at = end
        return [*parts, nodes.Text(text[at:])] if at < len(text) else parts


# The search


def introduced(document: nodes.document, known: list[Entry]) -> addnodes.index:
    """Entries for the terms that a chapter introduces, where it first has them: the search ranks them first."""
    parts = []
    for section in document.findall(nodes.section):
        own = [node for node in section.children if not isinstance(node, nodes.section | nodes.raw)]
        parts.append((section["ids"][0], " ".join(node.astext() for node in own)))
    entries = []
    for entry in known:
        expression = re.compile("|".join(rf"(?<![\w.-]){pattern(word)}" for word in entry.words), re.IGNORECASE)
        anchor = next((anchor for anchor, text in parts if expression.search(text)), parts[0][0] if parts else "")
        entries += [("single", word, anchor, "main", None) for word in entry.words]
    return addnodes.index(entries=entries)


def add_script(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Results of the search that are terms show what they mean."""
    if page == "search":
        app.add_js_file("labsearch.js", loading_method="defer")


def setup(app: Sphinx) -> None:
    """Collect the definitions when a page is read, and link to them when chapters are written."""
    app.connect("html-page-context", add_script)
    app.add_css_file("course.css")
    app.add_post_transform(GlossaryLinks)
    pages.collect(app, "glossary", read)
