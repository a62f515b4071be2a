"""Diagrams as pictures: JupyterLab takes `<svg>` out of Markdown, but shows the same drawing in an `<img>`.

Used by the notebooks of every chapter.
"""

from __future__ import annotations

import base64
import html
import re

FIGURE = re.compile(
    r"(?:<figure\b(?P<outer>[^>]*)>\s*)?<svg\b(?P<inner>[^>]*)>(?P<body>.*?)</svg>(?P<rest>.*?</figure>)?", re.DOTALL
)
SCRIPT = re.compile(r"<(script|style)\b.*?</\1>", re.DOTALL)
IN_XML = ("&amp;", "&lt;", "&gt;", "&quot;", "&apos;")  # all other names of signs are HTML's alone
WIDTH = 760  # pixels; on a narrower page JupyterLab makes a picture smaller


def pictures(markup: str, problems: list[str]) -> str:
    """Replace each drawing by a picture whose text alternative is the drawing's `aria-label`.

    The picture has a white ground: it can't take the colours of the page that it is shown on.

    Args:
        markup: HTML of a page. What else is in it stays, but not scripts and styles, which Jupyter doesn't run.
        problems: Gets a line for each drawing without a text alternative.
    """

    def one(found: re.Match[str]) -> str:
        label = re.search(r'aria-label="([^"]*)"', f"{found['outer'] or ''} {found['inner']}")
        if not label:
            problems.append("a diagram has no aria-label, so it says nothing where pictures are off")
        source = base64.b64encode(_alone(found["inner"], found["body"]).encode()).decode()
        words = label[1] if label else ""
        picture = f'<img alt="{words}" src="data:image/svg+xml;base64,{source}" width="{WIDTH}"/>'
        beside = re.sub(r"</figure>\Z", "", found["rest"] or "").strip() if found["outer"] is not None else ""
        return picture + beside + ("" if found["outer"] is not None else found["rest"] or "")

    return FIGURE.sub(one, SCRIPT.sub("", markup))


def _alone(attributes: str, body: str) -> str:
    """The drawing as a document: nothing is inherited there."""
    attributes = attributes.replace('"inherit"', '"sans-serif"')
    if "xmlns=" not in attributes:
        attributes += ' xmlns="http://www.w3.org/2000/svg"'
    text = f'<svg{attributes} style="background:#fff;color:#24292f">{body}</svg>'
    return re.sub(r"&\w+;", lambda sign: sign[0] if sign[0] in IN_XML else html.unescape(sign[0]), text)
