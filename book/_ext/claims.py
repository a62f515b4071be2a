"""Sentences that are claims, and blocks that speak of one model.

A claim is `[The answer is +1.2.]{.claim #answer-is-positive}`. A cell calls `report.claim` with the key; its record is
joined to the sentence when the page is read. The sentence then carries its verdict, and the ledger takes its words. The
directive `{edition}` with a model's name holds sentences that are shown only where that model was built; the model is
that of `execution.chosen`.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from docutils import nodes
from myst_nb.ext.glue.utils import PendingGlueReference
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from labbook._ext import pages
from labcode.models import KNOWN

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CLASS = "claim"
EDITION = "lab-edition"
UNTOLD = "lab_untold"  # while a page is read: the keys in its blocks about other models
KEYS = re.compile(r"\]\{[^{}]*\.claim\b[^{}]*\}")
UNCERTIFIED = "Not certified: nobody has checked what this book says of {title}, and a claim may have its cross."
HOW = "how-to-use"  # the page that says what it takes
NO_EDITION = "What was measured is above; nobody has written the story of this model yet."
YES, NO = "holds on this run", "does not hold on this run"
logger = logging.getLogger(__name__)


class Sentence(nodes.inline):
    """A sentence with the `record` of what was claimed by it."""


class Edition(SphinxDirective):
    """Sentences about one model, parsed only where that model was built."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The content, or a line that says that there is none for this model; without a model nothing."""
        wanted, subject = self.arguments[0], self.config.lab_subject
        if wanted not in KNOWN:
            logger.warning("edition %s: no such model; use %s", wanted, ", ".join(KNOWN), location=self.get_location())
        if subject.get("edition") == wanted:
            block = nodes.container(classes=[EDITION])
            self.set_source_info(block)
            self.state.nested_parse(self.content, self.content_offset, block)
            return [block]
        untold = self.env.temp_data.setdefault(UNTOLD, set())
        untold |= {name for mark in KEYS.findall("\n".join(self.content)) for name in re.findall(r"#([\w-]+)", mark)}
        return [nodes.paragraph("", NO_EDITION, classes=["lab-no-edition"])] if subject else []


def settle(docname: str, doctree: nodes.document, claims: list[dict[str, Any]], untold: set[str]) -> None:
    """Join the claims of a page to its sentences; those in blocks about other models leave the list.

    Each claim with a key gets the `text` of its sentence, and whether it stands in an `edition`.
    """
    claims[:] = [one for one in claims if one.get("key") not in untold]
    waiting: dict[str, dict[str, Any]] = {}
    for one in claims:
        if key := one.get("key"):
            if key in waiting:
                logger.warning("the claim #%s is made twice", key, location=docname)
            waiting[key] = one
            one["text"] = key
    for span in [node for node in doctree.findall(nodes.inline) if CLASS in node["classes"]]:
        key = (span["names"] or span["dupnames"] or [""])[0]
        span["classes"].remove(CLASS)
        if key in waiting:
            _say(doctree, span, waiting.pop(key))
        elif not key:
            logger.warning("a claim needs a key: [...]{.claim #some-key}", location=span)
        else:
            logger.warning("no cell of this page claims #%s, or two sentences have this key", key, location=span)
    for key in waiting:
        logger.warning("no sentence of this page says what is claimed: [...]{.claim #%s}", key, location=docname)


def _say(doctree: nodes.document, span: nodes.inline, record: dict[str, Any]) -> None:
    if any(isinstance(part, pages.Place | PendingGlueReference) for part in span.findall()):
        logger.warning(
            "the claim #%s takes something from another page: the ledger can't have it", record["key"], location=span
        )
    record["text"] = " ".join(span.astext().split())
    record["edition"] = any(EDITION in node["classes"] for node in pages.above(span) if "classes" in node)
    sentence = Sentence("", "", *span.children, record=record, **span.attributes)
    sentence.source, sentence.line = span.source, span.line
    span.replace_self(sentence)
    for name in sentence["ids"]:
        doctree.ids[name] = sentence


def evidence(record: dict[str, Any]) -> list[str]:
    """How a claim was judged, in words: the method and the null, then the source, then where the values come from."""
    against = f", against {record['against']}" if record.get("against") else ""
    source = [f"replicates {record['source']}"] if record.get("source") else []
    origin = "from recorded evidence" if record.get("origin") == "recorded" else "measured in this build"
    return [f"{record['method']}{against}", *source, origin]


def _open(translator: Any, node: Sentence) -> None:
    holds = str(node["record"]["holds"]).lower()
    translator.body.append(translator.starttag(node, "span", "", CLASS="lab-said", **{"data-holds": holds}))


def _close(translator: Any, node: Sentence) -> None:
    record = node["record"]
    tip, holds = f"how--{record['key']}", record["holds"]
    words = "" if holds else f'<span class="lab-mark-words"> {NO}</span>'
    method, *more = map(escape, evidence(record))
    translator.body.append(
        f'<span class="lab-mark" tabindex="0" role="img" aria-label="{YES if holds else NO}" aria-describedby="{tip}">'
        f'{"✓" if holds else "✗"}{words}</span><span class="lab-how" role="tooltip" id="{tip}">'
        f'<span class="lab-verdict">{"✓" if holds else "✗"} {YES if holds else NO}</span> '
        f'<span class="lab-method">{method}</span> <span class="lab-more">{"; ".join(more)}</span></span></span>'
    )


def _pass(translator: Any, node: Sentence) -> None:
    pass


def certified(app: Sphinx) -> bool:
    """Whether a cross is a fault of the book: for a model whose edition was checked, and where there is no model."""
    return bool(app.config.lab_subject.get("certified", not app.config.lab_subject))


def own_up(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Say at the top of each executed page, and of the ledger, that the build's model is not certified."""
    title = next(iter(doctree.findall(nodes.title)), None)
    listed = any(place["name"] == "ledger" for place in doctree.findall(pages.Place))
    ran = NbMetadataCollector.get_exec_data(app.env, docname)  # type: ignore[arg-type]
    if certified(app) or title is None or not (listed or ran):
        return
    line = nodes.paragraph("", UNCERTIFIED.format(title=app.config.lab_subject["title"]), classes=["lab-uncertified"])
    for name in [name for name in app.env.found_docs if name.rpartition("/")[2] == HOW]:
        line += [nodes.Text(" See "), pages.link(app, docname, name), nodes.Text(".")]
    if certified_at := app.config.lab_certified:
        there = nodes.reference("", "here", refuri=urljoin(certified_at, f"{docname}.html"))
        line += [nodes.Text(" The certified edition of this page is "), there, nodes.Text(".")]
    title.parent.insert(title.parent.index(title) + 1, line)


def setup(app: Sphinx) -> None:
    """Register the directive and the sentences."""
    app.add_node(Sentence, html=(_open, _close), latex=(_pass, _pass), text=(_pass, _pass))
    app.add_directive("edition", Edition)
    app.connect("doctree-resolved", own_up, priority=400)  # while the place of the ledger is there
