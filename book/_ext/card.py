"""The picture that a shared link shows: the start page's own drawings, as 1200 by 630 pixels.

A card has to be a PNG, and nothing that the book installs draws one. So this draws the few kinds of marks which the two
drawings consist of, as filled outlines: each is a set of polygons, painted where their winding number is not zero. The
letters are those of the maths font.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import textwrap
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from fontTools.misc.transform import Transform
from fontTools.pens.basePen import BasePen
from fontTools.svgLib.path import parse_path
from fontTools.ttLib import TTFont

WIDE, HIGH = 1200, 630
FINE = 3  # samples of a pixel, in each direction
INK, PAPER = "#24292f", "#ffffff"
DRAWING = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
INHERITED = ("fill", "stroke", "stroke-width", "font-size", "text-anchor")
Outline = Sequence[tuple[float, float]]


class _Flat(BasePen):  # type: ignore[misc]
    """A path as polygons."""

    def __init__(self, glyphs: Any = None, steps: int = 32) -> None:
        super().__init__(glyphs)
        self.steps = steps
        self.outlines: list[list[tuple[float, float]]] = []

    def _moveTo(self, pt: tuple[float, float]) -> None:
        self.outlines.append([pt])

    def _lineTo(self, pt: tuple[float, float]) -> None:
        self.outlines[-1].append(pt)

    def _curveToOne(self, pt1: Any, pt2: Any, pt3: Any) -> None:
        x0, y0 = self._getCurrentPoint()
        for t in (step / self.steps for step in range(1, self.steps + 1)):
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            x = a * x0 + b * pt1[0] + c * pt2[0] + d * pt3[0]
            self.outlines[-1].append((x, a * y0 + b * pt1[1] + c * pt2[1] + d * pt3[1]))

    def _closePath(self) -> None:
        self.outlines[-1].append(self.outlines[-1][0])


class Card:
    """Paper, and what is painted on it."""

    def __init__(self, font: Path) -> None:
        self.paper = np.full((HIGH * FINE, WIDE * FINE, 3), _colour(PAPER), dtype=np.float32)
        self.font = TTFont(font)
        self.glyphs, self.names = self.font.getGlyphSet(), self.font.getBestCmap()

    def fill(self, outlines: Iterable[Outline], colour: str, opacity: float = 1.0) -> None:
        """Paint polygons, in pixels of the card, wherever they wind around."""
        edges = [(*a, *b) for line in outlines for a, b in zip(line, [*line[1:], line[0]], strict=True)]
        ends = np.array(edges, dtype=np.float64).reshape(-1, 4) * FINE
        if not len(ends):
            return
        left, right = max(0, int(ends[:, ::2].min())), min(WIDE * FINE, int(ends[:, ::2].max()) + 2)
        top, bottom = max(0, int(ends[:, 1::2].min())), min(HIGH * FINE, int(ends[:, 1::2].max()) + 2)
        if left >= right or top >= bottom:
            return
        turns = np.zeros((bottom - top, right - left + 1), dtype=np.int32)
        x0, y0, x1, y1 = ends[ends[:, 1] != ends[:, 3]].T
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5).astype(int), top, bottom)  # the rows that each side crosses
        count = np.clip(np.ceil(np.maximum(y0, y1) - 0.5).astype(int), top, bottom) - first
        side = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(side)) - np.repeat(np.cumsum(count) - count, count) + first[side]
        x = x0[side] + (row + 0.5 - y0[side]) / (y1 - y0)[side] * (x1 - x0)[side]
        column = np.clip(np.ceil(x - 0.5).astype(int) - left, 0, right - left)
        np.add.at(turns, (row - top, column), np.where(y1 > y0, 1, -1)[side])
        inside = np.cumsum(turns, axis=1)[:, :-1] != 0
        part = self.paper[top:bottom, left:right]
        part[inside] = (1 - opacity) * part[inside] + opacity * _colour(colour)

    def line(self, outlines: Iterable[Outline], width: float, colour: str, opacity: float = 1.0) -> None:
        """Paint along polygons: a rectangle for each side, and a disc for each corner of a thick line."""
        sides: list[Outline] = []
        for line in outlines:
            for (x0, y0), (x1, y1) in itertools.pairwise(line):
                long = math.hypot(x1 - x0, y1 - y0) or 1.0
                dx, dy = (x1 - x0) / long * width / 2, (y1 - y0) / long * width / 2
                sides.append([(x0 - dy, y0 + dx), (x0 + dy, y0 - dx), (x1 + dy, y1 - dx), (x1 - dy, y1 + dx)])
            for x, y in line[1:-1] if width > 4 else ():
                turn = [-math.tau * i / 12 for i in range(12)]
                disc = [(x + math.cos(a) * width / 2, y + math.sin(a) * width / 2) for a in turn]
                sides.append(disc if _area(disc) * _area(sides[-1]) > 0 else disc[::-1])
        self.fill(sides, colour, opacity)

    def letters(self, text: str, at: Transform, size: float, anchor: str, bold: bool = False) -> list[Outline]:
        """The outlines of a text whose baseline begins, is centred or ends at the origin of `at`."""
        scale = size / self.font["head"].unitsPerEm
        x, placed = 0.0, []
        for letter in text:
            name = self.names.get(ord(letter))
            if name:
                pen = _Flat(self.glyphs, 4)
                self.glyphs[name].draw(pen)
                placed += [(x, line) for line in pen.outlines]
                x += self.glyphs[name].width
        start = {"middle": -x / 2, "end": -x}.get(anchor, 0.0)
        whole = [at.transformPoints([(scale * (start + x + a), -scale * b) for a, b in line]) for x, line in placed]
        if bold:
            whole += [[(a + 0.6, b) for a, b in line] for line in whole]
        return whole

    def draw(self, node: ElementTree.Element, at: Transform, given: dict[str, str], opacity: float = 1.0) -> None:
        """Paint an element of a drawing and what it holds."""
        mine = {**given, **{name: node.attrib[name] for name in INHERITED if name in node.attrib}}
        opacity *= float(node.get("opacity", 1))
        match node.tag:
            case "g" | "svg":
                for inside in node:
                    self.draw(inside, at, mine, opacity)
            case "rect" | "path":
                pen = _Flat()
                parse_path(node.get("d") or _rectangle(node), pen)
                self._mark([at.transformPoints(line) for line in pen.outlines], node, mine, opacity, at.xx)
            case "text":
                x, y, size = float(node.get("x", 0)), float(node.get("y", 0)), float(mine.get("font-size", 14))
                weight = node.get("font-weight", "")
                words = "".join(node.itertext())
                lines = self.letters(
                    words, at.translate(x, y), size, mine.get("text-anchor", ""), weight not in ("", "400")
                )
                if node.get("paint-order"):
                    self.line(lines, at.xx * float(mine.get("stroke-width", 1)), PAPER)
                self.fill(lines, _seen(mine.get("fill", INK)) or INK, opacity)

    def _mark(
        self, lines: list[Outline], node: ElementTree.Element, mine: dict[str, str], opacity: float, scale: float
    ) -> None:
        if fill := _seen(mine.get("fill", INK)):
            self.fill(lines, fill, opacity * float(node.get("fill-opacity", 1)))
        if stroke := _seen(mine.get("stroke", "none")):
            width = max(0.7, scale * float(mine.get("stroke-width", 1)))
            self.line(lines, width, stroke, opacity * float(node.get("stroke-opacity", 1)))

    def png(self) -> bytes:
        """The card as a file."""
        pixels = self.paper.reshape(HIGH, FINE, WIDE, FINE, 3).mean(axis=(1, 3)).round().astype(np.uint8)
        rows = b"".join(b"\0" + row.tobytes() for row in pixels)
        parts = (
            (b"IHDR", struct.pack(">IIBBBBB", WIDE, HIGH, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows, 9)),
            (b"IEND", b""),
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )


def made(page: str, font: Path, title: str, words: str) -> bytes:
    """The card of a site whose start page is `page`, with the drawings that the page has.

    Args:
        page: the built start page, whose first view of a head and whose circuit are drawn.
        font: a file with the letters.
        title: the large words.
        words: a sentence, which is broken into lines.
    """
    drawings = [ElementTree.fromstring(found) for found in DRAWING.findall(page)]
    arcs = next((one for one in drawings if (one.get("aria-label") or "").startswith("Head ")), None)
    circuit = next((one for one in drawings if one.get("class") == "lab-broad"), None)
    card = Card(font)
    card.fill(card.letters(title, Transform().translate(50, 140), 76, "start", bold=True), INK)
    for row, line in enumerate(textwrap.wrap(words, 34)[:5]):
        card.fill(card.letters(line, Transform().translate(50, 205 + 40 * row), 28, "start"), INK)
    for drawing, (left, top, wide, high) in ((arcs, (40, 410, 540, 190)), (circuit, (590, 80, 580, 530))):
        if drawing is None:
            continue
        x, y, width, height = map(float, drawing.get("viewBox", "0 0 1 1").split())
        scale = min(wide / width, high / height)
        card.draw(drawing, Transform().translate(left, top).scale(scale).translate(-x, -y), {})
    return card.png()


def _area(line: Outline) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(line, [*line[1:], line[0]], strict=True))


def _rectangle(node: ElementTree.Element) -> str:
    x, y, width, height = (float(node.get(name, 0)) for name in ("x", "y", "width", "height"))
    r = min(float(node.get("rx", 0)), width / 2, height / 2)
    corner = f"a{r} {r} 0 0 1"
    return (
        f"M{x + r} {y}h{width - 2 * r}{corner} {r} {r}v{height - 2 * r}{corner} {-r} {r}"
        f"h{2 * r - width}{corner} {-r} {-r}v{2 * r - height}{corner} {r} {-r}z"
    )


def _seen(colour: str) -> str:
    """A colour as six digits; nothing for none."""
    if colour == "none":
        return ""
    return colour if colour.startswith("#") else PAPER if "background" in colour else INK


def _colour(digits: str) -> Any:
    return np.array([int(digits[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)
