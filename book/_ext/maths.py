r"""Maths as MathML, converted while the book is built: nothing to load, and screen readers can read it.

`math-core` converts LaTeX to MathML Core, the part that all browsers show. A formula that it can't convert is a
warning that names the formula.
"""

from __future__ import annotations

import contextlib
import re
from functools import cache
from html import escape, unescape
from typing import TYPE_CHECKING, Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

from labbook._ext import pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx

logger = logging.getLogger(__name__)

# These number their own lines; in the book Sphinx gives the numbers, so they are read as their starred forms.
NUMBERING = re.compile(r"\\(begin|end)\{(equation|align|gather|multline)\}")
LABEL = re.compile(r"\\(?:label\{[^}]*\}|nonumber|notag)")


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML(fancy_error=False)


def to_mathml(latex: str, *, display: bool) -> str:
    """A `<math>` element whose `alttext` is the LaTeX source.

    Raises:
        LatexError: The formula has a mistake or a command that MathML can't show; the message says where.
    """
    source = latex.strip()
    tex = NUMBERING.sub(r"\\\1{\2*}", LABEL.sub("", source))
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    tex = tex.replace(r"\begin{split}", r"\begin{aligned}").replace(r"\end{split}", r"\end{aligned}")
    element: str = _converter().convert_with_local_state(tex, displaystyle=display)
    return element.replace("<math", f'<math alttext="{escape(source, quote=True)}"', 1)


def _shown(node: nodes.Element, *, display: bool) -> str:
    latex = node.astext()
    try:
        return to_mathml(latex, display=display)
    except LatexError as error:
        logger.warning(
            "a formula can't be shown: %s\n    %s", error, latex.strip(), location=node, type="lab", subtype="math"
        )
        return f"<code>{escape(latex)}</code>"


def visit_inline(translator: Any, node: nodes.Element) -> None:
    """Write an inline formula."""
    translator.body.append(f'<span class="math">{_shown(node, display=False)}</span>')
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.Element) -> None:
    """Write a displayed formula in a box that scrolls by itself, with Sphinx's number and link if it has one."""
    body = translator.body
    body.append(translator.starttag(node, "div", CLASS="math lab-display"))
    body.append(f'<div class="lab-formula">{_shown(node, display=True)}</div>')
    if node.get("number"):
        body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')  # type: ignore[arg-type]
        translator.add_permalink_ref(node, "Link to this equation")
        body.append("</span>")
    body.append("</div>\n")
    raise nodes.SkipNode


def signs(app: Sphinx, doctree: nodes.document) -> set[str]:
    """The characters that a page's formulas show; the maths font of the site has these and no others."""
    found: set[str] = set()
    for node in (*doctree.findall(nodes.math), *doctree.findall(nodes.math_block)):
        with contextlib.suppress(LatexError):
            found |= set(unescape(re.sub(r"<[^>]*>", "", to_mathml(node.astext(), display=False))))
    return found


def setup(app: Sphinx) -> None:
    """Make this the book's maths renderer: the only one besides Sphinx's own, so Sphinx takes it."""
    pages.collect(app, "signs", signs)
    app.add_html_math_renderer("labcode_mathml", (visit_inline, None), (visit_block, None))
