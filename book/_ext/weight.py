"""What a page must fetch and build before it shows: one style sheet, no script, few elements.

The theme and the extensions bring 18 style sheets, 0.6 MB of rules for sites of any kind, and as many scripts in the
way of the text: with them a phone on a slow line shows its first word after 2.4 s, without them after 1.1 s. Two
thirds of a chapter's elements were words of code that look like the code around them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tinycss2
from pygments.formatters import HtmlFormatter
from pygments.token import Name, Punctuation, Text, Whitespace
from sphinx.errors import ExtensionError
from sphinx.highlighting import PygmentsBridge

from labbook._ext import pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SHEET = "_static/book.css"
THEME = ("basic.css", "styles/pydata-sphinx-theme.css")  # what the theme's template links by itself
PAGE_OF_RESULTS = "search"  # its scripts stand in the text and need those of the head at once
PLAIN = {Name, Punctuation, Text, Whitespace}  # both colour schemes print them as they print code
# How the theme lets the keyboard reach boxes that scroll: a layout for each box. `lab.js` does it with one for all.
THEME_SCRIPT = ("pydata_sphinx_theme", "theme/pydata_sphinx_theme/static/scripts/pydata-sphinx-theme.js")
SCROLLERS = re.compile(r'"complete"===document\.readyState\?(\w+)\(\):window\.addEventListener\("load",\1\)')
LINK = re.compile(r"_static/book\.css(\?v=\w*)?")


def words(html: str) -> set[str]:
    """The classes and ids of a page."""
    return set(" ".join(re.findall(r'\b(?:class|id)="([^"]*)"', html)).split())


def _uses(selector: str, known: set[str]) -> bool:
    """Whether each class and id that a selector asks for may occur; what stands in brackets is let through.

    A known word that ends with a hyphen is what a script begins a class with, `tip-${side}` say: all that begin so may.
    """
    bare, inner = selector, ""
    while bare != inner:
        inner, bare = bare, re.sub(r"\([^()]*\)|\[[^]]*\]", "", bare)
    names = [name.replace("\\", "") for name in re.findall(r"[.#]((?:\\.|[\w-])+)", bare)]
    return all(
        name in known or any(name[: at + 1] in known for at, sign in enumerate(name) if sign == "-") for name in names
    )


def used(sheet: str, known: set[str]) -> str:
    """A style sheet without its comments and without rules for classes and ids that are not in `known`."""
    return _rules(tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True), known)


def _rules(nodes: Iterable[Any], known: set[str]) -> str:
    kept = []
    for node in nodes:
        if node.type == "qualified-rule":
            selectors = _split(node.prelude)
            if found := [one for one in selectors if _uses(one, known)]:
                kept.append(f"{','.join(found)}{{{tinycss2.serialize(node.content).strip()}}}")
        elif node.type == "at-rule" and node.lower_at_keyword in ("media", "supports") and node.content is not None:
            inner = _rules(tinycss2.parse_rule_list(node.content, skip_comments=True, skip_whitespace=True), known)
            if inner:
                kept.append(f"@{node.at_keyword}{tinycss2.serialize(node.prelude)}{{{inner}}}")
        elif node.type == "at-rule" and node.lower_at_keyword not in ("charset", "import"):
            text = node.serialize()
            if "url(../vendor" not in text:  # the icon fonts; `labicons.css` draws the icons
                kept.append(text)
    return "\n".join(kept)


def _split(prelude: list[Any]) -> list[str]:
    """The selectors of a rule; a comma in brackets is inside one token and separates nothing."""
    selectors: list[list[Any]] = [[]]
    for token in prelude:
        if token.type == "literal" and token.value == ",":
            selectors.append([])
        else:
            selectors[-1].append(token)
    return [tinycss2.serialize(one).strip() for one in selectors]


def lighten(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Let the scripts of the head wait for the text; `templates/layout.html` links the one sheet in place of all."""
    if page != PAGE_OF_RESULTS:
        context["script_files"] = [deferred(script) for script in context["script_files"]]


def deferred(script: Any) -> Any:
    """A script of the head that runs when the page is parsed, in the order of the head."""
    attributes = dict(script.attributes)
    if script.filename and not {"defer", "async"} & set(attributes):
        attributes["defer"] = "defer"
    elif attributes.get("body", "").startswith("DOCUMENTATION_OPTIONS."):
        attributes["type"] = "module"  # an inline script waits for those before it only if it is a module
    return type(script)(script.filename, priority=script.priority, **attributes)


class Sparse(HtmlFormatter):  # type: ignore[type-arg]
    """Code whose plain words have no element of their own."""

    def _get_css_classes(self, ttype: Any) -> str:
        return "" if ttype in PLAIN else super()._get_css_classes(ttype)


def trim_theme(app: Sphinx, error: Exception | None) -> None:
    """Take out of the theme's script what one of ours does in less time.

    Raises:
        ExtensionError: it isn't there: the theme has changed.
    """
    if error or app.builder.format != "html":
        return
    source = pages.carried(THEME_SCRIPT)
    text, n = SCROLLERS.subn("void 0", source.read_text(encoding="utf8"))
    if n != 1:
        raise ExtensionError(f"{source} begins {n} times to make boxes scroll, and once is known: look at it anew")
    (Path(app.outdir) / "_static" / "scripts" / source.name).write_text(text, encoding="utf8")


def write_sheet(app: Sphinx, error: Exception | None) -> None:
    """Join the style sheets, without the rules that no page needs, and put the sheet's version into the links."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    written = {path: path.read_text(encoding="utf8") for path in sorted(out.rglob("*.html"))}
    known = set().union(*map(words, written.values()))
    for script in (out / "_static").rglob("*.js"):  # any word of theirs may be a class
        if script.name != "plotly.min.js":  # it brings its own styles
            text = script.read_text(encoding="utf8")
            known.update(word for word in re.findall(r"[\w-]+", text) if not word.endswith("-"))
            known.update(re.findall(r"[\w-]+-(?=\$\{)", text))
    builder: Any = app.builder
    names = [*THEME, *(str(sheet.filename).removeprefix("_static/") for sheet in builder._css_files)]
    sheets = [used((out / "_static" / name).read_text(encoding="utf8"), known) for name in dict.fromkeys(names)]
    joined = "\n".join(sheets)
    (out / SHEET).write_text(joined, encoding="utf8")
    link = f"{SHEET}?v={zlib.crc32(joined.encode()):08x}"
    for path, page in written.items():
        if (new := LINK.sub(link, page)) != page:
            path.write_text(new, encoding="utf8")


def setup(app: Sphinx) -> None:
    """Change the heads of the pages, and write the sheet when all pages are there."""
    PygmentsBridge.html_formatter = Sparse
    app.connect("html-page-context", lighten, priority=900)  # when all scripts of the page are known
    app.connect("build-finished", trim_theme)
    app.connect("build-finished", write_sheet, priority=800)
