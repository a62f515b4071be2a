"""Plotly figures as HTML: a picture that is there at once, and a JSON payload for a reader who wants to explore it.

The picture needs no script, prints, and follows the page's light or dark scheme; see `still`. `labplotly.js` fetches
Plotly when a reader first asks for it. A figure must say in words what it shows, in `layout.meta["alt"]`; without that
the build warns.
"""

from __future__ import annotations

import copy
import html
import json
from typing import TYPE_CHECKING, Any

from docutils import nodes

from labbook._ext import still
from labcode.report import SIGN

if TYPE_CHECKING:
    from myst_nb.core.render import MimeData, NbElementRenderer

MIME = "application/vnd.plotly.v1+json"
PLOTLY = "plotly.min.js"  # a page fetches it when a reader asks


def payload(figure: dict[str, Any]) -> str:
    """The figure as JSON that is safe inside a `<script>` element.

    The figure keeps what it sets itself. Of its template only the order of colours and the colour scales stay:
    fonts, axes and backgrounds are the page's, because they follow its light or dark scheme. So is the width.
    """
    layout = copy.copy(figure.get("layout", {}))
    layout.pop("width", None)
    template = layout.pop("template", None) or {}
    own = {key: value for key, value in template.get("layout", {}).items() if key in ("colorway", "colorscale")}
    content = {"data": figure.get("data", []), "layout": layout, "colors": own}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    # Without "<" neither </script> nor <!-- can end or change the script element.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def element(figure: dict[str, Any]) -> str:
    """The figure's element: role, text alternative, its picture, and the payload."""
    label = html.escape(alternative(figure), quote=True)
    try:
        picture = still.both(figure)
    except still.Unknown:  # a figure of a reader's own may be anything
        picture = f'<p class="lab-alt">{label or "A figure without words."}</p>'
    return (
        f'<div class="lab-figure" role="figure" aria-label="{label}">{picture}'
        f'<script type="application/json">{payload(figure)}</script></div>'
    )


def alternative(figure: dict[str, Any]) -> str:
    """The figure's text alternative, or nothing."""
    meta = figure.get("layout", {}).get("meta")
    return SIGN.sub("−", str(meta.get("alt") or "").strip()) if isinstance(meta, dict) else ""


class PlotlyMime:
    """The myst-nb plugin, declared as an entry point in pyproject.toml."""

    mime_priority_overrides = tuple((builder, MIME, 5) for builder in ("html", "dirhtml", "singlehtml"))

    @staticmethod
    def handle_mime(renderer: NbElementRenderer, data: MimeData, inline: bool) -> list[nodes.Element] | None:
        """Turn a Plotly output into its element; leave all other outputs to myst-nb."""
        if data.mime_type != MIME or inline:
            return None
        figure = data.content if isinstance(data.content, dict) else json.loads(data.string)
        if not alternative(figure):
            renderer.logger.warning(
                "a Plotly figure has no text alternative: set fig.update_layout(meta={'alt': ...})",
                subtype="plotly_alt",
                line=data.line,
            )
        renderer.add_js_file("labplotly.js", "labplotly.js", {"defer": "defer"})  # only on pages that have figures
        return [nodes.raw("", element(figure), format="html")]
