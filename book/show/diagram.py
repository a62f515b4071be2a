"""A circuit as a drawing: its families at the positions where they act, with the heads that were found."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labcode.heads import Head

COLUMNS = {"S1+1": 10, "S2": 265, "END": 540}
WIDTH, BOX, LINE, GAP = 800, 180, 20, 26
APART = 15  # between arrows that end at one box
PER_LINE = 4  # heads in one line of a box


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


def circuit(boxes: Mapping[str, FamilyBox], wires: Mapping[tuple[str, str], str]) -> str:
    """An SVG of the circuit in a `<figure>`, in the page's own ink, with everything it shows as a text alternative.

    Args:
        boxes: the families by name, those of each column from top to bottom.
        wires: the label of each arrow, by the names of a family and of one that reads it. Drawn where both have heads.
    """
    places: dict[str, tuple[int, int]] = {}
    for column, x in COLUMNS.items():
        y = 50
        for name, box in boxes.items():
            if box.position == column:
                places[name] = (x, y)
                y += box.height + GAP
    bottom = max((y + boxes[name].height for name, (_, y) in places.items()), default=60) + 16
    signs = {pair: re.sub(r"-(?=\d)", "−", label) for pair, label in wires.items()}
    drawn = {(a, b): label for (a, b), label in signs.items() if boxes[a].heads and boxes[b].heads}
    parts = [f'<text x="{x + BOX // 2}" y="26" font-weight="600">{column}</text>' for column, x in COLUMNS.items()]
    shapes: list[str] = []
    for (a, b), label in drawn.items():
        beside = [
            one
            for one, other in drawn
            if other == b and (places[one][0] == places[b][0]) is (places[a][0] == places[b][0])
        ]
        path, text = _wire(boxes, places, a, b, APART * (beside.index(a) - (len(beside) - 1) / 2), label)
        shapes.append(path)
        parts.append(text)
    for name, (x, y) in places.items():
        box = boxes[name]
        dash = "" if box.heads else ' stroke-dasharray="5 4"'
        colour = html.escape(box.colour, quote=True)
        shapes.append(
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{box.height}" rx="8" stroke="{colour}" stroke-width="3" '
            f'fill="{colour}" fill-opacity="0.14"{dash}/>'
        )
        parts.append(
            f'<text x="{x + BOX // 2}" y="{y + 24}" font-weight="600" font-size="12">{html.escape(box.title)}</text>'
        )
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


def _wire(
    boxes: Mapping[str, FamilyBox], places: Mapping[str, tuple[int, int]], a: str, b: str, shift: float, label: str
) -> tuple[str, str]:
    """An arrow and its label, which stands at the reader, where arrows lie apart by `shift`.

    From the right edge of one box to the left edge of another; within a column around the right side.
    """
    (x1, y1), (x2, y2) = places[a], places[b]
    start, end = y1 + boxes[a].height / 2, y2 + boxes[b].height / 2 + shift
    if x1 == x2:
        out = x1 + BOX
        if a == b:  # a loop at the upper corner
            start, end = y1 + 8.0, y1 + 22.0
        path = f"M{out} {start:.0f} C{out + 34} {start:.0f} {out + 34} {end:.0f} {out + 3} {end:.0f}"
        x, y, anchor = out + (6 if a == b else 30), end - (18 if a == b else 5), "start"
    else:
        half = (x1 + BOX + x2) / 2
        path = f"M{x1 + BOX} {start:.0f} C{half:.0f} {start:.0f} {half:.0f} {end:.0f} {x2 - 3} {end:.0f}"
        x, y, anchor = x2 - 12, end - 3, "end"
    arrow = f'<path d="{path}" stroke-width="1.3" opacity="0.75" marker-end="url(#lab-circuit-arrow)"/>'
    text = f'<text x="{x}" y="{y:.0f}" font-size="12" text-anchor="{anchor}">{html.escape(label)}</text>'
    return arrow, text


def _words(boxes: Mapping[str, FamilyBox], wires: Mapping[tuple[str, str], str]) -> str:
    lists = [
        f"{box.title} at {box.position}: {', '.join(f'{layer}.{head}' for layer, head in box.heads) or 'none found'}"
        for box in boxes.values()
    ]
    read = [f"{boxes[b].title} read {boxes[a].title} ({label})" for (a, b), label in wires.items()]
    return f"Diagram of the circuit. {'. '.join(lists)}. {'; '.join(read) or 'No family reads another'}."
