"""Sphinx's resolved tree as the Markdown that JupyterLab and Colab show: no roles, no directives, no HTML of the site.

A visitor with one method for each kind of node, as in docutils. A kind without a method shows what is inside it.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import indent

from docutils import nodes
from sphinx.locale import admonitionlabels

UNKNOWN_YET = "…"
SILENT = ("Invisible", "system_message", "colspec")
MARKS = {"title": "**{}**", "strong": "**{}**", "emphasis": "*{}*", "superscript": "<sup>{}</sup>"}
MARKS |= {"term": "**{}**", "rubric": "**{}**", "subscript": "<sub>{}</sub>", "footnote_reference": "<sup>{}</sup>"}
LANGUAGES = {"ipython3": "python", "default": "", "none": ""}
DIAGRAM = re.compile(r'<figure\b[^>]*?aria-label="(?P<words>[^"]*)"[^>]*>\s*<svg(?P<drawing>.*</svg>)', re.DOTALL)
WIDTH = 760  # pixels; on a narrower page JupyterLab makes a picture smaller


@dataclass
class PlainMarkdown:
    """Translates the nodes of one page.

    Attributes:
        solved: Whether the values of the run are shown; else a mark stands in for each.
        pages: For the address of each other page, as links have it, the file of its notebook; nothing if it has none.
        numbers: Sphinx's numbers of figures, formulas and exercises, by kind and id.
        cited: What was cited so far: the entry in plain words, by its address.
    """

    solved: bool
    pages: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, tuple[int | str, ...]]] = field(default_factory=dict)
    cited: dict[str, str] = field(default_factory=dict)

    def of(self, node: nodes.Node) -> str:
        """The Markdown of one node."""
        for name in (kind.__name__ for kind in type(node).__mro__):
            if name in SILENT:
                return ""
            if name in MARKS:
                return MARKS[name].format(self.inside(node))
            if visit := getattr(self, f"visit_{name}", None):
                return str(visit(node))
        return self.inside(node) if isinstance(node, nodes.TextElement) else self.blocks(node.children)

    def inside(self, node: nodes.Node) -> str:
        """The words of a node."""
        return "".join(map(self.of, node.children))

    def blocks(self, parts: list[nodes.Node]) -> str:
        """Paragraphs and other blocks, with a blank line between them."""
        return "\n\n".join(text for text in map(self.of, parts) if text.strip())

    def number(self, kind: str, node: nodes.Element) -> str:
        """The number that Sphinx gave a node, as "7" or "2.7", or nothing."""
        known = self.numbers.get(kind, {})
        return next((".".join(map(str, known[name])) for name in node["ids"] if name in known), "")

    def visit_Text(self, node: nodes.Text) -> str:
        return escaped(re.sub(r"\s*\n\s*", " ", node.astext()))

    def visit_paragraph(self, node: nodes.paragraph) -> str:
        # A sign that would begin a list, a heading or a quotation.
        return re.sub(r"^(\d*)(?=[-+#.)]\s|>)", r"\1\\", self.inside(node).strip())

    def visit_inline(self, node: nodes.inline) -> str:
        if "pasted-text" in node["classes"] and not self.solved:
            return UNKNOWN_YET
        words = self.inside(node)
        return words.replace(r"\[", "(").replace("]", ")") if "bibtex-citation" in node["classes"] else words

    def visit_Sentence(self, node: nodes.Element) -> str:
        verdict = " ✓" if node["record"]["holds"] else " ✗ (does not hold on this run)"
        return self.inside(node) + (verdict if self.solved else "")

    def visit_literal(self, node: nodes.literal) -> str:
        text = " ".join(node.astext().split("\n"))
        ticks = _longer_than("`+", text, 1)
        return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"

    def visit_math(self, node: nodes.math) -> str:
        return f"${node.astext().strip()}$"

    def visit_math_block(self, node: nodes.math_block) -> str:
        latex, number = node.astext().strip(), self.number("displaymath", node) or node.get("number")
        if node.get("nowrap"):  # an environment that is a display of its own
            return latex
        return f"$$\n{latex} \\tag{{{number}}}\n$$" if number else f"$$\n{latex}\n$$"

    def visit_reference(self, node: nodes.reference) -> str:
        words, address = self.inside(node), node.get("refuri", "")
        page = address.partition("#")[0]
        if "bibtex-citation" in node.parent.get("classes", ()):
            self.cited[address] = node.get("reftitle", "")
            return words
        if not node.get("internal") and ":" in address:
            return f"<{address}>" if node.astext() == address else f"[{words}]({address})"
        if self.pages.get(page):
            return f"[{words}]({self.pages[page]})"
        # Words that the build itself links to the glossary and to the API say enough.
        elsewhere = page in self.pages and not {"lab-term", "lab-code"} & set(node["classes"])
        return f"{words} (in the book)" if elsewhere else words

    def visit_image(self, node: nodes.image) -> str:
        words = escaped(node.get("alt", "")) or "a picture"
        return f"![{words}]({node['uri']})" if "://" in node["uri"] else f"*{words}* (in the book)"

    def visit_caption(self, node: nodes.caption) -> str:
        number = self.number("figure", node.parent)
        return f"_Fig. {number}: {self.inside(node)}_" if number else f"_{self.inside(node)}_"

    def visit_literal_block(self, node: nodes.literal_block) -> str:
        language = LANGUAGES.get(node.get("language", ""), node.get("language", ""))
        if not language and node.get("source", "").endswith(".py"):
            language = "python"
        text = node.astext().strip("\n")
        fence = _longer_than("`{3,}", text, 3)
        return f"{fence}{language}\n{text}\n{fence}"

    def visit_bullet_list(self, node: nodes.Element, first: int | None = None) -> str:
        items = []
        for place, item in enumerate(node.children, first or 0):
            mark = "* " if first is None else f"{place}. "
            items.append(mark + indent(self.of(item), " " * len(mark)).lstrip())
        return "\n".join(items)

    def visit_enumerated_list(self, node: nodes.enumerated_list) -> str:
        return self.visit_bullet_list(node, node.get("start", 1))

    def visit_block_quote(self, node: nodes.block_quote) -> str:
        return quoted(self.blocks(node.children))

    def visit_Admonition(self, node: nodes.Element) -> str:
        first, *rest = node.children
        titled = isinstance(first, nodes.title)
        body = self.blocks(rest if titled else node.children)
        if "dropdown" in node["classes"]:
            return folded(first.astext() if titled else "More", body)
        return quoted(f"{self.of(first) if titled else f'**{admonitionlabels.get(node.tagname)}**'}\n\n{body}")

    def visit_dropdown_main(self, node: nodes.Element) -> str:
        title, *body = node.children  # sphinx-design's; beside the title's words stands a sign of the site
        return folded(title.children[0].astext(), self.blocks(body))

    def visit_table(self, node: nodes.table) -> str:
        rows = [[self._cell(entry) for entry in row.children] for row in node.findall(nodes.row)]
        if next(node.findall(nodes.thead), None) is None:
            rows.insert(0, [""] * len(rows[0]))
        rows.insert(1, ["---"] * len(rows[0]))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def _cell(self, entry: nodes.Node) -> str:
        return self.of(entry).replace("\n\n", "<br>").replace("\n", " ").replace("|", r"\|")

    def visit_raw(self, node: nodes.raw) -> str:
        """A diagram becomes a picture, since JupyterLab takes `<svg>` out of Markdown; other HTML is the site's alone.

        The picture can't take the font and the colours of the page that it is shown on, so it brings its own.
        """
        found = DIAGRAM.match(node.astext().strip())
        if not found:
            return ""
        drawing = found["drawing"].replace('"inherit"', '"sans-serif"')
        source = base64.b64encode(f'<svg style="background:#fff;color:#24292f"{drawing}'.encode()).decode()
        return f'<img alt="{found["words"]}" src="data:image/svg+xml;base64,{source}" width="{WIDTH}"/>'


def escaped(text: str) -> str:
    """Text such that Markdown shows it letter by letter; an underline inside a word is no mark."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")
    return re.sub(r"([\\`*\[$~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def quoted(text: str) -> str:
    """A box as a quotation."""
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def folded(title: str, text: str) -> str:
    """What opens at a click."""
    return f"<details><summary>{html.escape(title, quote=False)}</summary>\n\n{text}\n\n</details>"


def _longer_than(run: str, text: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall(run, text)), default=0))
