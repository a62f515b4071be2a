"""The Sphinx extension of the book: it puts the other modules of this package together.

Add `labbook._ext.ext` to the extensions in `_config.yml`.
"""

from __future__ import annotations

import gc
import re
import shutil
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode, depart_HideCellInput
from pybtex.plugin import find_plugin, register_plugin
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator

from labbook._ext import (
    addresses,
    api,
    bench,
    chapters,
    claims,
    closing,
    coursemap,
    execution,
    glossary,
    head,
    ledger,
    literature,
    maths,
    notebooks,
    pages,
    predictions,
    weight,
)
from labcode import __version__, report

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ASSETS = Path(__file__).with_name("assets")
# From installed packages, so that the site asks no other host and this repository carries nobody's files.
PLOTLY = ("plotly", "package_data/plotly.min.js")
# A name that hides the words shown, a button without a name, a part of the page that is none.
TOGGLE = '<summary><span class="toctree-toggle"'  # only where a page has pages inside
MENDS = {
    ' title="Search" aria-label="Search" data-bs-placement=': ' title="Search" data-bs-placement=',
    TOGGLE: '<summary aria-label="Show the pages inside"><span class="toctree-toggle"',
    'id="pst-primary-sidebar" class=': 'id="pst-primary-sidebar" role="complementary" aria-label="All pages" class=',
}
PER_CENT = re.compile(r"(?:(?<=[\d\]])|^) %")  # also behind a number that the run put there
POWER = re.compile(r"(\d)e([+-]?)0*(\d+)")  # 1e-05
RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "+")
TEMPLATES = Path(__file__).with_name("templates")
PARTS = (
    addresses,
    pages,
    execution,
    maths,
    claims,
    ledger,
    literature,
    chapters,
    coursemap,
    api,
    glossary,
    head,
    predictions,
    bench,
    notebooks,
    closing,
    weight,
)


def copy_assets(app: Sphinx) -> None:
    """Put the style sheets, the scripts and one plotly.min.js into `_static`; the maths font comes last."""
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    for source in [*sorted(ASSETS.iterdir()), pages.carried(PLOTLY)]:
        target = static / source.name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copyfile(source, target)


def typeset(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Numbers in sentences: minus signs and powers of ten as they are printed; what belongs together isn't parted."""
    code = nodes.literal, nodes.literal_block, nodes.raw, nodes.math
    for text in list(doctree.findall(nodes.Text)):
        if PER_CENT.search(text) and not isinstance(text.parent, code):
            text.parent.replace(text, nodes.Text(PER_CENT.sub("\u00a0%", text)))
    for pasted in doctree.findall(nodes.inline):
        if "pasted-text" not in pasted["classes"]:
            continue
        for text in list(pasted.findall(nodes.Text)):
            typed = POWER.sub(lambda found: f"{found[1]} × 10{(found[2] + found[3]).translate(RAISED)}", text)
            text.parent.replace(text, nodes.Text(report.SIGN.sub("−", typed).replace("“ ", "“\u00a0")))
        if report.SPAN.fullmatch(pasted.astext()):
            pasted["classes"].append("lab-whole")


def print_as_html(app: Sphinx, config: object) -> None:
    """Let the one page that is printed write all nodes as the site's pages do.

    Sphinx takes what is registered for a builder's own name *instead* of what is for HTML: an extension that names
    `singlehtml` takes from it every node of all others.
    """
    registered = app.registry.translation_handlers
    registered["singlehtml"] = registered["html"] | registered.get("singlehtml", {})


def visit_fold(translator: Any, node: nodes.Element) -> None:
    """Begin a cell or an output that is folded: as MyST-NB does, without a name that hides the words shown."""
    classes = " ".join(["admonition", "hide", *node["classes"]])
    words = (
        (f"{state} admonition-title", node[f"prompt_{verb}"])
        for state, verb in (("collapsed", "show"), ("expanded", "hide"))
    )
    shown = "".join(f'<p class="{kind}">{escape(text)}</p>\n' for kind, text in words)
    translator.body.append(f'<details class="{classes}">\n<summary>\n{shown}</summary>\n')


def visit_citation(translator: Any, node: nodes.Element) -> None:
    """Begin an entry of the bibliography: as docutils does, without roles that are no more."""
    if not isinstance(node.previous_sibling(), nodes.citation):
        translator.body.append('<div class="citation-list">\n')
    translator.body.append(translator.starttag(node, "div", classes=[node.tagname]))


def mend_theme(app: Sphinx, error: Exception | None) -> None:
    """Write the pages again without what the theme tells a screen reader wrongly.

    Raises:
        ExtensionError: no page has one of these, or had it when it was written: the theme has changed.
    """
    if error or app.builder.format != "html":
        return
    missing = set(MENDS)
    for path in Path(app.outdir).rglob("*.html"):
        page = mended = path.read_text(encoding="utf8")
        for wrong, right in MENDS.items():
            mended = mended.replace(wrong, right)
            if right in mended:
                missing.discard(wrong)
        if mended != page:
            path.write_text(mended, encoding="utf8")
    inside = app.env.toctree_includes
    if not any(inside.get(name) for name in inside.get(app.config.root_doc, ())):
        missing.discard(TOGGLE)
    if missing and app.builder.name == "html":
        raise ExtensionError(f"the theme has changed, no page has {' or '.join(sorted(missing))}: look at MENDS anew")


def write_font(app: Sphinx, error: Exception | None) -> None:
    """The maths font with the signs of the pages' formulas and their stretched forms: 1.5 MB become a few KB."""
    if error or app.builder.format != "html":
        return
    from fontTools import subset

    signs = sorted(set().union(*pages.collected(app.env, "signs").values()))
    target = Path(app.outdir) / "_static" / "maths.woff"
    options = subset.Options(flavor="woff", notdef_outline=True, layout_features=["*"], drop_tables=["DSIG", "GSUB"])
    font = subset.load_font(str(pages.carried(pages.MATHS)), options)
    made = subset.Subsetter(options)
    made.populate(text="".join(signs) + "0123456789()")
    made.subset(font)
    subset.save_font(font, str(target), options)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    # Python's collector went through all of Sphinx's trees again and again: a quarter of a build with nothing changed.
    gc.set_threshold(200_000, 50, 100)
    # Each citation asks for this one, and each time all installed packages were searched for it.
    register_plugin("pybtex.backends", "plaintext", find_plugin("pybtex.backends", "plaintext"), force=True)
    app.config.templates_path.insert(0, str(TEMPLATES))
    app.add_css_file("labicons.css")
    for name in ("lab", "labboard", "labdashboards", "labgame", "labgraph"):
        app.add_css_file(f"{name}.css")
        app.add_js_file(f"{name}.js", loading_method="defer")
    # Of some pages alone, or without a script. Here all the same: the sheets are joined into one, and what a page adds
    # while it is written is not in it.
    for name in ("labattention", "labbench", "predictions"):
        app.add_css_file(f"{name}.css")
    for part in PARTS:
        part.setup(app)
    app.connect("config-inited", print_as_html)
    app.connect("builder-inited", copy_assets)
    app.connect("doctree-resolved", typeset)
    app.add_node(HideCodeCellNode, override=True, html=(visit_fold, depart_HideCellInput))
    app.add_node(nodes.citation, override=True, html=(visit_citation, HTML5Translator.depart_citation))
    app.connect("build-finished", mend_theme)
    app.connect("build-finished", write_font)
    return {"version": __version__, "env_version": 2, "parallel_read_safe": False, "parallel_write_safe": True}
