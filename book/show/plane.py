"""Points and directions of a plane, one square beside the other, as SVG that needs no script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labcode.errors import ReportError
from labcode.plots import TOWARDS

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

HALF = 110  # of a square's side
INK = "currentColor"


@dataclass(frozen=True)
class Picture:
    """One square: a title, points, and arrows from the centre; the second line says what the arrows are."""

    title: str
    points: Float[Tensor, "point 2"]
    directions: Float[Tensor, "direction 2"]
    note: str = ""


def draw(pictures: Sequence[Picture], *, alt: str, caption: str) -> str:
    """A figure of squares on one scale; the axes are the two neurons. On a narrow page they stand below each other.

    Raises:
        ReportError: nothing to draw, or anything that is not in a plane or not finite.
    """
    drawn = [table for one in pictures for table in (one.points, one.directions)]
    if not drawn or any(table.ndim != 2 or table.shape[-1] != 2 or not table.isfinite().all() for table in drawn):
        raise ReportError("a picture of a plane takes points and directions of two finite numbers each")
    reach = max([float(table.abs().max()) for table in drawn if len(table)], default=1.0)
    squares = "".join(_square(one, 0.86 * HALF / max(reach, 1e-9)) for one in pictures)
    return (
        f'<figure class="lab-plane" style="margin:1.4rem 0">'
        f'<div role="img" aria-label="{html.escape(alt, quote=True)}" '
        f'style="display:flex;flex-wrap:wrap;gap:.6rem;justify-content:center">{squares}</div>'
        f"<figcaption><p>{html.escape(caption)}</p></figcaption></figure>"
    )


def _square(one: Picture, scale: float) -> str:
    axes = f'<path d="M{-HALF} 0H{HALF}M0 {-HALF}V{HALF}" stroke-opacity=".35"/>'
    dots = "".join(f"M{scale * x:.1f} {-scale * y:.1f}h0" for x, y in one.points.tolist())
    arrows = "".join(_arrow(scale * v) for v in one.directions)
    words = (
        f'<text y="{-HALF - 26}" font-weight="bold">{html.escape(one.title)}</text>'
        f'<text y="{-HALF - 8}">{html.escape(one.note)}</text>'
    )
    return (
        f'<svg viewBox="{-HALF - 5} {-HALF - 44} {2 * HALF + 10} {2 * HALF + 50}" fill="none" '
        f'stroke="{INK}" font-family="inherit" font-size="13" aria-hidden="true" '
        f'style="flex:1 1 11rem;max-width:15rem;height:auto">{axes}'
        f'<path d="{dots}" stroke="{TOWARDS}" stroke-opacity=".55" stroke-width="4" stroke-linecap="round"/>'
        f'<g stroke-width="2.2">{arrows}</g><g fill="{INK}" stroke="none" text-anchor="middle">{words}</g></svg>'
    )


def _arrow(tip: Float[Tensor, " 2"]) -> str:
    """From the centre; a direction too short for a head is a dot, so that it is seen."""
    length = float(tip.norm())
    if length < 8:
        return f'<circle cx="{float(tip[0]):.1f}" cy="{-float(tip[1]):.1f}" r="2.5" fill="{INK}"/>'
    along = tip / length
    across = torch.stack([-along[1], along[0]])
    ends = [tip - 9 * along + side * across for side in (4.5, -4.5)]
    head = " ".join(f"{float(x):.1f} {-float(y):.1f}" for x, y in (ends[0], tip, ends[1]))
    return f'<path d="M0 0L{float(tip[0]):.1f} {-float(tip[1]):.1f}M{head}"/>'
