"""A circuit as a drawing: its families at the positions where they act, with the heads that were found."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labcode.heads import Head

COLUMNS = {"S1+1": 30, "S2": 270, "END": 510}
WIDTH, BOX, LINE, GAP = 760, 210, 20, 26
PER_LINE = 5  # heads in one line of a box


@dataclass(frozen=True)
class FamilyBox:
    """A family in the drawing: `title`, `position` (S1+1, S2 or END), its heads and its colour."""

    title: str
    position: str
    heads: Sequence[Head]
    colour: str

    @property
    def lines(self) -> list[str]:
        """What stands in the box under the title."""
        names = [f"{layer}.{head}" for layer, head in self.heads]
        return ["  ".join(names[i : i + PER_LINE]) for i in range(0, len(names), PER_LINE)] or ["none found"]

    @property
    def height(self) -> int:
        """In units of the drawing."""
        return 22 + LINE * (1 + len(self.lines))


def circuit(boxes: Mapping[str, FamilyBox], wires: Sequence[tuple[str, str]]) -> str:
    """An SVG of the circuit in a `<figure>`, in the page's own ink, with everything it shows as a text alternative.

    Args:
        boxes: the families by name, those of each column from top to bottom.
        wires: pairs of names, from a family to one that reads it. Drawn where both have heads.
    """
    places: dict[str, tuple[int, int]] = {}
    for column, x in COLUMNS.items():
        y = 50
        for name, box in boxes.items():
            if box.position == column:
                places[name] = (x, y)
                y += box.height + GAP
    bottom = max((y + boxes[name].height for name, (_, y) in places.items()), default=60) + 16
    drawn = [(a, b) for a, b in wires if boxes[a].heads and boxes[b].heads]
    parts = [f'<text x="{x + BOX // 2}" y="26" font-weight="600">{column}</text>' for column, x in COLUMNS.items()]
    shapes = [_wire(boxes, places, a, b) for a, b in drawn]
    for name, (x, y) in places.items():
        box = boxes[name]
        dash = "" if box.heads else ' stroke-dasharray="5 4"'
        colour = html.escape(box.colour, quote=True)
        shapes.append(
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{box.height}" rx="8" stroke="{colour}" stroke-width="3" '
            f'fill="{colour}" fill-opacity="0.14"{dash}/>'
        )
        parts.append(f'<text x="{x + BOX // 2}" y="{y + 24}" font-weight="600">{html.escape(box.title)}</text>')
        parts += [
            f'<text x="{x + BOX // 2}" y="{y + 24 + LINE * (row + 1)}">{html.escape(line)}</text>'
            for row, line in enumerate(box.lines)
        ]
    return (
        f'<figure class="lab-diagram" role="img" aria-label="{html.escape(_words(boxes, drawn), quote=True)}">'
        f'<svg viewBox="0 0 {WIDTH} {bottom}" xmlns="http://www.w3.org/2000/svg" fill="none" stroke="currentColor" '
        f'font-family="inherit" font-size="14"><defs><marker id="lab-circuit-arrow" viewBox="0 0 8 8" refX="7" '
        'refY="4" markerWidth="8" markerHeight="8" orient="auto" markerUnits="userSpaceOnUse"><path '
        f'd="M0 0 L8 4 L0 8 z" fill="currentColor" stroke="none"/></marker></defs>{"".join(shapes)}'
        f'<g fill="currentColor" stroke="none" text-anchor="middle">{"".join(parts)}</g></svg></figure>'
    )


def _wire(boxes: Mapping[str, FamilyBox], places: Mapping[str, tuple[int, int]], a: str, b: str) -> str:
    """From the right edge of one box to the left edge of another; within a column from bottom to top or by the side."""
    (x1, y1), (x2, y2) = places[a], places[b]
    middle1, middle2 = y1 + boxes[a].height / 2, y2 + boxes[b].height / 2
    if x1 == x2:  # around the right side
        out = x1 + BOX
        path = f"M{out} {middle1:.0f} C{out + 34} {middle1:.0f} {out + 34} {middle2:.0f} {out + 3} {middle2:.0f}"
    else:
        start, half = x1 + BOX, (x1 + BOX + x2) / 2
        path = f"M{start} {middle1:.0f} C{half:.0f} {middle1:.0f} {half:.0f} {middle2:.0f} {x2 - 3} {middle2:.0f}"
    return f'<path d="{path}" stroke-width="1.3" opacity="0.75" marker-end="url(#lab-circuit-arrow)"/>'


def _words(boxes: Mapping[str, FamilyBox], wires: Sequence[tuple[str, str]]) -> str:
    lists = [
        f"{box.title} at {box.position}: {', '.join(f'{layer}.{head}' for layer, head in box.heads) or 'none found'}"
        for box in boxes.values()
    ]
    read = [f"{boxes[b].title} read {boxes[a].title}" for a, b in wires]
    return f"Diagram of the circuit. {'. '.join(lists)}. {'; '.join(read) or 'No family reads another'}."
