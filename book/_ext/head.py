"""What a page tells a browser, a search engine and whoever shares it: the icon, a description, a card; and the files at
the site's root: a first page, a sitemap, a page for what is not there.

Addresses that have to be absolute are left out until the site has one: see `addresses`.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from docutils import nodes
from sphinx.errors import ExtensionError

from labbook._ext import card, pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LONGEST = 160  # characters of a description that search engines show
CARD = "_static/lab-card.png"
ALT = "The sentence of the book with the arcs of one head's attention, and the circuit that was found."
MISSING = "404"


def describe(app: Sphinx, doctree: nodes.document) -> str:
    """The first words of a page's text, whole sentences as far as they fit."""
    said = ""
    for paragraph in doctree.findall(nodes.paragraph):
        if any(
            isinstance(node, (nodes.table, nodes.raw, nodes.admonition, nodes.figure))
            for node in pages.above(paragraph)
        ):
            continue
        said = f"{said} {' '.join(paragraph.astext().split())}".strip()
        if len(said) >= LONGEST:
            break
    short = said[:LONGEST]
    whole = max(short.rfind(end) for end in (". ", "? ", ": "))
    if len(said) <= LONGEST:
        return said
    return short[: whole + 1] if whole > 60 else f"{short.rpartition(' ')[0]} …"


def fill(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Add to the head of each page."""
    icon = context["pathto"]("_static/lab-icon.svg", resource=True)
    title = re.sub(r"<[^>]*>", "", context.get("title") or "")
    about = pages.collected(app.env, "descriptions").get(page, "")
    facts = {"og:type": "article", "og:site_name": app.config.html_title, "og:title": title, "og:description": about}
    if base := app.config.html_baseurl:
        facts |= {"og:url": urljoin(base, f"{page}.html"), "og:image": urljoin(base, CARD)}
        facts |= {"og:image:width": card.WIDE, "og:image:height": card.HIGH, "og:image:alt": ALT}
    # A server shows the page for what is missing at any address: its links can't count from there.
    lines = [f'<base href="{escape(base)}"/>'] if base and page == MISSING else []
    lines += [f'<link rel="icon" href="{icon}" type="image/svg+xml"/>']
    lines += [f'<meta name="description" content="{escape(about)}"/>'] if about else []
    lines += ['<meta name="twitter:card" content="summary_large_image"/>'] if base else []
    lines += [f'<meta property="{name}" content="{escape(str(value))}"/>' for name, value in facts.items() if value]
    # docutils names the viewport too, and two of them are one too many.
    kept = re.sub(r'<meta [^>]*name="viewport"[^>]*>\s*', "", context.get("metatags", ""))
    context["metatags"] = kept + "".join(lines)


def root(app: Sphinx, error: Exception | None) -> None:
    """The first page at the site's root; where the site has an address, a card, a sitemap and what robots ask for."""
    if error or app.builder.format != "html":
        return
    out, first = Path(app.outdir), str(app.config.root_doc)
    if "/" in first and (out / f"{first}.html").exists():
        before, head, after = (out / f"{first}.html").read_text(encoding="utf8").partition("<head>")
        if not head:
            raise ExtensionError(f"{first}.html has no <head>: the theme has changed, look at it anew")
        # Its links are those of a page one folder down; this makes them lead to the same places from here. Those of the
        # one page that is printed lead there as they are, wherever Sphinx writes it.
        base = "" if app.builder.name == "singlehtml" else f'<base href="{first}.html"/>'
        (out / "index.html").write_text(f"{before}{head}{base}{after}", encoding="utf8")
    if base := app.config.html_baseurl:
        start = (out / f"{first}.html").read_text(encoding="utf8")
        about = re.split(r"(?<=[?.]) ", pages.collected(app.env, "descriptions").get(first, ""))[0]
        (out / CARD).write_bytes(card.made(start, pages.carried(pages.MATHS), app.config.html_title, about))
        found = sorted(app.env.found_docs)
        places = "".join(f"<url><loc>{escape(urljoin(base, f'{name}.html'))}</loc></url>" for name in found)
        sitemap = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{places}</urlset>'
        (out / "sitemap.xml").write_text(f'<?xml version="1.0" encoding="UTF-8"?>{sitemap}', encoding="utf8")
        (out / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {urljoin(base, 'sitemap.xml')}\n")


def setup(app: Sphinx) -> None:
    """Collect the descriptions, and add them."""
    pages.collect(app, "descriptions", describe)
    app.config.html_additional_pages[MISSING] = "missing.html"
    app.connect("html-page-context", fill)
    app.connect("build-finished", root)
