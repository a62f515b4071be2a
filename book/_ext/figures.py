"""Plotly figures as HTML: a JSON payload that `labplotly.js` draws when the reader comes near it.

A figure must say in words what it shows, in `layout.meta["alt"]`; without that the build warns.
"""

from __future__ import annotations

import copy
import html
import json
from typing import TYPE_CHECKING, Any

from docutils import nodes

if TYPE_CHECKING:
    from myst_nb.core.render import MimeData, NbElementRenderer

MIME = "application/vnd.plotly.v1+json"
HEIGHT = 450  # Plotly's own default, in pixels


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
    """The figure's element: role, text alternative, reserved height, payload, and words where scripts are off."""
    layout = figure.get("layout", {})
    alt = alternative(figure)
    height = int(layout.get("height") or HEIGHT)
    label = html.escape(alt, quote=True)
    return (
        f'<div class="lab-figure" role="figure" aria-label="{label}" style="min-height:{height}px">'
        f'<script type="application/json">{payload(figure)}</script>'
        f'<noscript><p class="lab-alt">{html.escape(alt)}</p></noscript></div>'
    )


def alternative(figure: dict[str, Any]) -> str:
    """The figure's text alternative, or nothing."""
    meta = figure.get("layout", {}).get("meta")
    return str(meta.get("alt") or "").strip() if isinstance(meta, dict) else ""


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
        for key in ("plotly.min.js", "labplotly.js"):
            renderer.add_js_file(key, key, {"defer": "defer"})  # only on pages that have figures
        return [nodes.raw("", element(figure), format="html")]
