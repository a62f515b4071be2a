"""The `ledger` directive: all claims, comparisons and numbers of the book as tables.

`{ledger}` shows all three; `{ledger} claims`, `{ledger} comparisons` and `{ledger} numbers` show one each, so that
the page can put its own headings between them. Used by the page "Ledger".
"""

from __future__ import annotations

import ast
from html import escape
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from labbook._ext.ledger import Page, in_order

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PARTS = ("claims", "comparisons", "numbers")


class LedgerNode(nodes.General, nodes.Element):
    """The place of a table that is known only when all pages have been read."""


class Ledger(SphinxDirective):
    """Leave a place for one or all of the ledger's tables."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Check the argument."""
        part = directives.choice(self.arguments[0], PARTS) if self.arguments else ""
        return [LedgerNode(part=part)]


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the tables where the directives stand."""
    for place in list(doctree.findall(LedgerNode)):
        wanted = [place["part"]] if place["part"] else list(PARTS)
        content: list[nodes.Node] = []
        for part in wanted:
            if not place["part"]:
                content.append(nodes.rubric("", part.capitalize()))
            content += TABLES[part](app, docname)
        place.replace_self(content)


def _claims(app: Sphinx, here: str) -> list[nodes.Node]:
    rows = [
        [_mark(claim["holds"]), claim["text"], str(claim.get("evidence") or ""), _chapter(app, here, name)]
        for name, page in in_order(app.env)
        for claim in page.claims
    ]
    return _table(["On this run", "Claim", "Evidence", "Chapter"], rows, "claims")


def _comparisons(app: Sphinx, here: str) -> list[nodes.Node]:
    rows = [
        [
            row["quantity"],
            _value(row["measured"]),
            _published(row),
            row.get("source") or "",
            _verdict(row["verdict"]),
            _chapter(app, here, name),
        ]
        for name, page in in_order(app.env)
        for row in page.comparisons
    ]
    return _table(["Quantity", "This run", "Published", "Source", "Verdict", "Chapter"], rows, "comparisons")


def _numbers(app: Sphinx, here: str) -> list[nodes.Node]:
    content: list[nodes.Node] = []
    for name, page in in_order(app.env):
        if page.numbers:
            content += [
                nodes.raw(
                    "", f'<details class="lab-numbers"><summary>{_summary(app, name, page)}</summary>', format="html"
                ),
                *_table(
                    ["Name", "Value"],
                    [[nodes.literal("", key), _value(_plain(text))] for key, text in page.numbers.items()],
                    "numbers",
                ),
                nodes.raw("", "</details>", format="html"),
            ]
    return content or _table([], [], "numbers")


TABLES = {"claims": _claims, "comparisons": _comparisons, "numbers": _numbers}


def _summary(app: Sphinx, docname: str, page: Page) -> str:
    return f"{escape(app.env.titles[docname].astext())} ({len(page.numbers)})"


def _chapter(app: Sphinx, here: str, docname: str) -> nodes.Node:
    address = app.builder.get_relative_uri(here, docname)
    return nodes.reference("", app.env.titles[docname].astext(), refuri=address, internal=True)


def _mark(holds: bool) -> nodes.Node:
    return nodes.inline("", "✓ holds" if holds else "✗ doesn't", classes=["lab-yes" if holds else "lab-no"])


def _verdict(verdict: str) -> nodes.Node:
    known = {"agrees": "lab-yes", "differs": "lab-no"}
    return nodes.inline("", verdict, classes=[known.get(verdict, "lab-other")])


def _published(row: dict[str, Any]) -> str:
    tolerance = row.get("tolerance")
    value = f"{row.get('bound') or ''} {_value(row.get('published'))}".strip()
    return value + ("" if tolerance is None else f" ± {_value(tolerance)}")


def _plain(text: str) -> Any:
    """What was glued: a number or a text, of which the page stores the repr."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " to ".join(_value(item) for item in value)
    return "" if value is None else str(value)


def _table(headings: list[str], rows: list[list[nodes.Node | str]], what: str) -> list[nodes.Node]:
    if not rows:
        return [nodes.paragraph("", f"No chapter has reported any {what}.")]
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    head, body = nodes.thead(), nodes.tbody()
    head += _row(list(headings))
    body += [_row(row) for row in rows]
    group += [head, body]
    return [nodes.table("", group, classes=["lab-ledger", f"lab-ledger-{what}"])]


def _row(cells: list[nodes.Node | str]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        content = nodes.Text(cell) if isinstance(cell, str) else cell
        row += nodes.entry("", nodes.paragraph("", "", content))
    return row


def _skip(translator: Any, node: LedgerNode) -> None:
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_node(LedgerNode, html=(_skip, None), latex=(_skip, None), text=(_skip, None))
    app.add_directive("ledger", Ledger)
    app.connect("doctree-resolved", fill)
