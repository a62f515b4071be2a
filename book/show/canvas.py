"""The circuit sketch as a drawing, once for wide columns and once for narrow ones, with all that it shows in words.

Wide, the sentence lies in one line at the bottom, and the circuit rises from it to the answer. Narrow, the sentence
runs down in three lines, and what acts at the last word of a line stands below it. Arrows have heads of their own
instead of markers, so that no two drawings of a page share an id. Colours are the families' and the page's own ink.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from labbook.show.growth import BOXES, INPUTS, NEWS, SHOWN, WHOLE, Box, Known, Row, Wire, boxes, side, tells, wires
from labcode.families import FAMILIES
from labcode.heads import Head
from labcode.plots import POSITION_COLOURS
from labcode.report import signed

INK, PAPER = "currentColor", "var(--pst-color-background, Canvas)"
HALO = f' paint-order="stroke" stroke="{PAPER}" stroke-width="3.5" stroke-linejoin="round"'


class Rect(NamedTuple):
    """A place in the drawing: its upper left corner and its size."""

    x: float
    y: float
    w: float
    h: float

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.w

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.h

    @property
    def cx(self) -> float:
        """Its middle, across."""
        return self.x + self.w / 2

    @property
    def cy(self) -> float:
        """Its middle, down."""
        return self.y + self.h / 2


class Text(NamedTuple):
    """A line of a box: its text, and whether it is bold or italic."""

    text: str
    style: str = ""


@dataclass
class Scene:
    """A drawing in the making: its size, its letters, what has been put where, and its marks from back to front."""

    width: float
    size: float
    height: float = 0.0
    places: dict[str, Rect] = field(default_factory=dict)
    texts: dict[str, list[Text]] = field(default_factory=dict)
    back: list[str] = field(default_factory=list)
    front: list[str] = field(default_factory=list)

    @property
    def line(self) -> float:
        """From one line of text to the next."""
        return round(self.size * 1.3)

    def need(self, key: str, texts: Sequence[Text], width: float) -> float:
        """Wrap the text of a box to its width; its height."""
        self.texts[key] = [
            Text(part, one.style) for one in texts for part in _wrapped(one, width - 10, self.size)
        ]  # fmt: skip
        return self.line * len(self.texts[key]) + 13

    def words(
        self,
        x: float,
        y: float,
        text: str,
        style: str = "",
        anchor: str = "middle",
        small: float = 0,
        halo: bool = False,
    ) -> None:
        """A line of text, in front of everything; with the page's ground around it where arrows pass."""
        look = {"bold": ' font-weight="650"', "italic": ' font-style="italic"'}.get(style, "")
        size = f' font-size="{self.size - small:g}"' if small else ""
        self.front.append(
            f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{look}{size}{HALO if halo else ""}>'
            f"{html.escape(text)}</text>"
        )

    def ground(self, x: float, y: float, w: float, size: float, at: int | None = None) -> None:
        """The page's ground under a line of text, so that arrows pass behind it and not through its words.

        Args:
            at: where among the marks in front; the next one if None.
        """
        place = f'x="{x - 5:.0f}" y="{y - size:.0f}" width="{w + 10:.0f}" height="{size * 1.45:.0f}"'
        self.front.insert(len(self.front) if at is None else at, f'<rect {place} fill="{PAPER}"/>')


def _wide(text: str, size: float, bold: bool = False) -> float:
    """About how wide a text is."""
    narrow = sum(letter in " .,;:'!|ijltfr" for letter in text)
    return size * ((0.69 if bold else 0.62) * (len(text) - narrow) + (0.4 if bold else 0.35) * narrow)


def _wrapped(one: Text, width: float, size: float) -> list[str]:
    lines: list[str] = []
    for word in one.text.replace("-", "-\0").replace("\0", "\0").split(" "):
        for i, part in enumerate(word.split("\0")):
            glue = "" if i else " "
            if lines and _wide(lines[-1] + glue + part, size, one.style == "bold") <= width:
                lines[-1] += glue + part
            else:
                lines.append(part)
    return lines


def _lines(box: Box, known: Known) -> list[Text]:
    texts = [Text(box.title, "bold")] if box.title else []
    if box.heads:
        ours = [head for head in box.heads if head not in box.against]
        if ours and box.against:
            texts += [Text(f"for: {_listed(ours, SHOWN - 1)}"), Text(f"against: {_listed(box.against, SHOWN - 1)}")]
        else:
            texts.append(Text(_listed(box.heads, SHOWN)))
    elif box.title:
        texts.append(Text("none found" if known.found else "not measured here", "italic"))
    if box.says:
        texts.append(Text(f"“{box.says}”", "italic"))
    return texts + ([Text(box.asks, "italic")] if box.asks else [])


def _listed(heads: Sequence[Head], most: int) -> str:
    more = len(heads) - most
    return ", ".join(f"{layer}.{head}" for layer, head in heads[:most]) + (f" +{more} more" if more > 0 else "")


def _rows(known: Known, chapter: int) -> tuple[dict[Row, list[Box]], str]:
    """The boxes of each row that get a place, and a line on those writers that were not found."""
    rows: dict[Row, list[Box]] = {"S1+1": [], "S2": [], "END": [], "writers": []}
    for box in boxes(known, chapter):
        rows[box.row].append(box)
    missing = [box for box in rows["writers"] if box.key in FAMILIES and not box.heads]
    rest = [box for box in rows["writers"] if box not in missing]
    if not missing:
        return rows, ""
    titles = ", ".join(box.title for box in missing)
    if any(box.heads for box in rest):
        rows["writers"] = rest
        return rows, f"{'not described' if known.source else 'not found'}: {titles}"
    one = replace(missing[0], title=titles[:1].upper() + titles[1:])
    rows["writers"] = [one, *rest]
    return rows, ""


def _broad(known: Known, chapter: int) -> Scene:
    """The sentence in one line at the bottom, the circuit above it, from left to right and upwards to the answer."""
    scene = Scene(776, 12.5)
    columns = {
        "S1+1": Rect(12, 0, 102, 0),
        "S2": Rect(138, 0, 146, 0),
        "END": Rect(380, 0, 386, 0),
    }  # arrows and labels between
    rows, missing = _rows(known, chapter)
    by_key = {box.key: box for row in rows.values() for box in row}
    arrows = [one for one in wires(known, chapter) if one.sender in by_key]
    # Heights first, then from the bottom (0) upwards.
    chips = {row: _chip(known, row, chapter) for row in columns if row != "S1+1" or rows["S1+1"]}
    chip = max(scene.need(f"chip {row}", texts, columns[row].w) for row, texts in chips.items())
    floor = -chip - 26.0
    top = floor
    for row in ("S1+1", "S2"):
        y = floor
        for box in rows[row]:
            h = scene.need(box.key, _lines(box, known), columns[row].w)
            y -= h
            scene.places[box.key] = Rect(columns[row].x, y, columns[row].w, h)
            y -= 22
        top = min(top, y + 22)
    end = _side_by_side(scene, rows["END"], known, columns["END"], 200)
    writers = _side_by_side(scene, rows["writers"], known, columns["END"], 250)
    y = floor - end
    for box in rows["END"]:
        scene.places[box.key] = scene.places[box.key]._replace(y=y, h=end)
    roof = y - 64 - writers
    for box in rows["writers"]:
        scene.places[box.key] = scene.places[box.key]._replace(y=roof, h=writers)
    top = min(roof - 46, top - (66 if missing else 34), -200.0)
    answer = 44 if known.lead is not None else 30
    shift = answer + 10 + 40 - top
    scene.places = {key: place._replace(y=place.y + shift) for key, place in scene.places.items()}
    bottom = shift - 6
    frame = Rect(4, top + shift, 768, bottom - top - shift)
    scene.places["logits"] = Rect(columns["END"].cx - 110, 8, 220, answer)
    _answer(scene, known)
    _frame(scene, frame, known, closed=chapter == 1)
    if missing:
        for i, text in enumerate(_wrapped(Text(missing), 290, scene.size)):
            scene.words(16, top + shift + 40 + 15 * i, text, "italic", "start", small=1)
    word_y = bottom + 74
    centres = _sentence(scene, known, 22, word_y, 16)
    if chapter == 1:
        x = centres.get("END", 380.0)
        scene.back += [_path([(x, word_y - 20), (x, bottom)], 2, 0.8)]
        scene.back += [_path([(columns["END"].cx, frame.y), (columns["END"].cx, 8.0 + answer)], 2, 0.8)]
    else:
        for row in chips:
            place = Rect(columns[row].x, bottom - chip - 6, columns[row].w, chip)
            scene.places[f"chip {row}"] = place
            tint, new = POSITION_COLOURS.get(row), chapter == NEWS and len(chips[row]) > 1
            _box(scene, f"chip {row}", tint or INK, 3 if new else 1, 0.16 if tint else 0.07, plain=True)
            if row in centres:
                x, y1, y2 = centres[row], word_y - 18, place.bottom
                half = (y1 + y2) / 2
                scene.back.append(
                    f'<path d="M{x:.0f} {y1:.0f}C{x:.0f} {half:.0f} {place.cx:.0f} {half:.0f} {place.cx:.0f} {y2:.0f}" '
                    f'stroke="{POSITION_COLOURS.get(row, INK)}" stroke-width="4" opacity=".55"/>'
                )
        if chapter >= NEWS and known.layers:
            a, b = scene.places["chip S2"], scene.places["chip END"]
            for i in range(len(known.layers)):
                y = a.cy + 11 * (i - (len(known.layers) - 1) / 2)
                scene.back.append(_path([(a.right, y), (b.x, y)], 2.2 if chapter == NEWS else 1.4, 0.8))
    for box in by_key.values():
        _family(scene, box)
    if chapter > 1:
        _connect(scene, by_key, arrows, chapter, _route_broad)
    scene.height = word_y + 34
    return scene


def _tall(known: Known, chapter: int) -> Scene:
    """The sentence in three lines, each with the boxes of its last word below it, from top to bottom to the answer."""
    scene = Scene(340, 12.2)
    rows, missing = _rows(known, chapter)
    by_key = {box.key: box for row in rows.values() for box in row}
    arrows = [one for one in wires(known, chapter) if one.sender in by_key]
    passing_by = sum(by_key[one.sender].row == "S2" and _row(by_key, one.receiver) in ("END", "writers")
                     for one in arrows)  # fmt: skip
    lanes = 7 * passing_by + 4 if passing_by else 0
    y = 0.0
    for row in ("S1+1", "S2", "END", "writers"):
        column = Rect(6 + (lanes if row == "END" else 0), 0, 328 - (lanes if row == "END" else 0), 0)
        if row != "writers":
            left = 10 + (lanes if row == "END" else 0)
            y = _segment(scene, known, row, left, y)
            if chapter >= NEWS and known.layers and row in ("S2", "END"):
                text = _chip(known, row, chapter)[-1].text
                scene.ground(left, y + 12, _wide(text, scene.size), scene.size)
                scene.words(left, y + 12, text, "italic", "start")
                y += scene.line + 4
        if not rows[row] or chapter == 1:
            continue
        wide = 170 if row == "S1+1" else 230
        told = any(_row(by_key, one.receiver) == row != _row(by_key, one.sender) for one in arrows)
        if row == "writers":
            y += 34 if chapter > BOXES["at END"][1] else 8
        else:
            y += 28 if told else 8  # the labels of arrows stand above the boxes
        h = _side_by_side(scene, rows[row], known, column, wide)
        for box in rows[row]:
            scene.places[box.key] = scene.places[box.key]._replace(y=y, h=h)
        y += h + (
            0 if row == "writers" else max(34, 16 + 5 * passing_by) if arrows and chapter >= BOXES["at S2"][1] else 14
        )
    if chapter == 1:
        frame = Rect(6, y + 24, 328, 90)
        _frame(scene, frame, known, closed=True)
        scene.back += [_path([(170, y - 4), (170, frame.y)], 2, 0.8)]
        scene.back += [_path([(170, frame.bottom), (170, frame.bottom + 40)], 2, 0.8)]
        y = frame.bottom - 6
    scene.places["logits"] = Rect(50, y + 60, 240, 44 if known.lead is not None else 30)
    _answer(scene, known)
    for box in by_key.values():
        _family(scene, box)
    if chapter > 1:
        _connect(scene, by_key, arrows, chapter, _route_tall)
    y = scene.places["logits"].bottom
    for text in _wrapped(Text(missing), 322, scene.size) if missing else []:
        y += scene.line + 4
        scene.words(170, y, text, "italic")
    scene.height = y + 8
    return scene


def _side_by_side(scene: Scene, row: Sequence[Box], known: Known, column: Rect, most: float) -> float:
    """Share a row's width among its boxes; the height of the highest."""
    if not row:
        return 0.0
    gap = 10 if scene.width > 500 else 6
    room = column.w - gap * (len(row) - 1)
    widths = [min(most, w) for w in _shares([_longest(_lines(box, known), scene.size) for box in row], room)]
    x = column.cx - (sum(widths) + gap * (len(row) - 1)) / 2
    heights = [scene.need(box.key, _lines(box, known), w) for box, w in zip(row, widths, strict=True)]
    for box, w, h in zip(row, widths, heights, strict=True):
        scene.places[box.key] = Rect(x, 0, w, h)
        x += w + gap
    return max(heights)


def _longest(texts: Sequence[Text], size: float) -> float:
    """The width that a box needs so that each of its words fits."""
    parts = [(part, one.style == "bold") for one in texts for part in re.split(r"(?<=-)| ", one.text)]
    return max((0.9 * _wide(part, size, bold) for part, bold in parts), default=0.0) + 10


def _shares(needs: Sequence[float], room: float) -> list[float]:
    """The room in equal parts, but for those that need more; where all would, in proportion to what they need."""
    larger: dict[int, float] = {}
    while len(larger) < len(needs):
        part = (room - sum(larger.values())) / (len(needs) - len(larger))
        more = {i: need for i, need in enumerate(needs) if i not in larger and need > part}
        if not more:
            return [larger.get(i, part) for i in range(len(needs))]
        larger |= more
    return [room * need / sum(needs) for need in needs]


def _chip(known: Known, row: Row, chapter: int) -> list[Text]:
    texts = [Text(f"at {row}", "bold")]
    if chapter >= NEWS and known.layers:
        first, last = known.layers[0], known.layers[-1]
        layers = f"layers {first} and {last}" if first != last else f"layer {first}"
        texts += {"S2": [Text(f"the news waits until layer {first}")], "END": [Text(f"it arrives in {layers}")]}.get(
            row, []
        )
    return texts


# ---------------------------------------------------------------------------------------------------------------------
# Marks
# ---------------------------------------------------------------------------------------------------------------------


def _family(scene: Scene, box: Box) -> None:
    if box.key not in scene.places:
        return
    if not box.heads:
        _box(scene, box.key, INK, 2 if box.new else 1.2, 0.0, dots="1.5 5" if box.new else "1 5", plain=True)
    elif not box.colour:
        _box(scene, box.key, INK, 3 if box.new else 1.2, 0.07 if box.new else 0.03)
    else:
        _box(scene, box.key, box.colour, 3.4 if box.new else 1.6, 0.26 if box.new else 0.12)


def _box(scene: Scene, key: str, colour: str, stroke: float, fill: float, dots: str = "", plain: bool = False) -> None:
    """A box that hides what runs behind it, and its text, as one group."""
    place, texts = scene.places[key], scene.texts[key]
    at = f'x="{place.x:.0f}" y="{place.y:.0f}" width="{place.w:.0f}" height="{place.h:.0f}" rx="9"'
    line = f' stroke-dasharray="{dots}" stroke-linecap="round"' if dots else ""
    name = "" if key.startswith("chip") or (plain and not dots) else f' data-box="{html.escape(key, quote=True)}"'
    scene.front.append(f'<g><rect {at} fill="{PAPER}" stroke="none"/>')
    scene.front.append(
        f'<rect {at} fill="{colour}" fill-opacity="{fill:g}" stroke="{colour}" stroke-width="{stroke:g}"{line}{name}/>'
    )
    y = place.cy - scene.line * len(texts) / 2 + scene.line * 0.76
    for text in texts:
        wide = _wide(text.text, scene.size, text.style == "bold")
        scene.words(place.cx, y, text.text, text.style, small=min(max(scene.size * (1 - (place.w - 8) / wide), 0), 1))
        y += scene.line
    scene.front.append("</g>")


def _frame(scene: Scene, place: Rect, known: Known, closed: bool) -> None:
    name, layers, heads = known.model
    scene.back.append(
        f'<rect x="{place.x:.0f}" y="{place.y:.0f}" width="{place.w:.0f}" height="{place.h:.0f}" rx="14" fill="{INK}" '
        f'fill-opacity="{0.1 if closed else 0.025}" stroke="{INK}" stroke-opacity="{0.8 if closed else 0.25}" '
        f'stroke-width="{3 if closed else 1}"/>'
    )
    if closed:
        scene.words(place.cx, place.cy - 8, name, "bold")
        scene.words(place.cx, place.cy + 10, f"{layers} layers of {heads} heads")
        scene.words(place.cx, place.cy + 28, "what happens in here?", "italic")
    else:
        scene.words(place.x + 12, place.y + 20, name, "", "start", small=1)


def _answer(scene: Scene, known: Known) -> None:
    texts = [Text(known.answer, "bold")]
    if known.lead is not None:
        ahead = "ahead of" if known.lead >= 0 else "behind"
        texts.append(Text(f"{abs(known.lead):.2f} nats {ahead} {known.other}"))
    scene.texts["logits"] = texts
    _box(scene, "logits", POSITION_COLOURS["IO"], 1.6, 0.22, plain=True)


def _sentence(scene: Scene, known: Known, x: float, y: float, size: float) -> dict[str, float]:
    """The words from x on; the middle of each that has a position."""
    return _row_of_words(scene, known.words, x, y, size)


def _segment(scene: Scene, known: Known, row: Row, x: float, y: float) -> float:
    """The words up to a position and after the one before, from x on; the y below them."""
    ends = [at for at, (_, name) in enumerate(known.words) if name in ("S1+1", "S2", "END")]
    stop = next((at for at, (_, name) in enumerate(known.words) if name == row), None)
    if stop is None:
        return y
    start = max([at + 1 for at in ends if at < stop], default=0)
    lines: list[list[tuple[str, str]]] = [[]]
    for word in known.words[start : stop + 1]:
        if lines[-1] and sum(_wide(text, 15) + 10 for text, _ in [*lines[-1], word]) > 320 - x:
            lines.append([])
        lines[-1].append(word)
    for line in lines:
        _row_of_words(scene, line, x, y + 20, 15)
        y += 46
    return y


def _row_of_words(scene: Scene, words: Iterable[tuple[str, str]], x: float, y: float, size: float) -> dict[str, float]:
    centres: dict[str, float] = {}
    first, at = x, len(scene.front)
    for text, name in words:
        w, colour = _wide(text, size), POSITION_COLOURS.get(name)
        if text in (",", ".") and not name:
            x -= size * 0.3
        if colour:
            x += size * 0.25
            scene.front.append(
                f'<rect x="{x - 4:.0f}" y="{y - size:.0f}" width="{w + 8:.0f}" '
                f'height="{size * 1.45:.0f}" rx="3" fill="{colour}" fill-opacity=".25"/>'
                f'<path d="M{x - 4:.0f} {y + size * 0.45:.0f}h{w + 8:.0f}" '
                f'stroke="{colour}" stroke-width="2.5"/>'
            )
        scene.front.append(
            f'<text x="{x + w / 2:.0f}" y="{y:.0f}" text-anchor="middle" font-size="{size:g}">'
            f"{html.escape(text)}</text>"
        )
        if name and name != "S1+1":
            scene.words(x + w / 2, y + size * 0.45 + scene.size + 2, name, "bold", small=1, halo=True)
        if name:
            centres[name] = x + w / 2
        x += w + size * (0.75 if name in POSITION_COLOURS else 0.5)
    scene.ground(first, y, x - first - size * 0.5, size, at)
    return centres


Point = tuple[float, float]


def _path(points: Sequence[Point], width: float, opacity: float, curve: bool = False) -> str:
    """A line with round corners, or a curve of four points, with an arrow's head at its end."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-6)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    tip, half = 5 + width, 3.2 + width * 0.75
    base = (x1 - ux * tip, y1 - uy * tip)
    stops = [*points[:-1], base]
    if curve:
        path = f"M{_xy(stops[0])}C{_xy(stops[1])} {_xy(stops[2])} {_xy(stops[3])}"
    else:
        path = f"M{_xy(stops[0])}"
        for before, corner, after in zip(stops, stops[1:], stops[2:], strict=False):
            near, far = _towards(corner, before), _towards(corner, after)
            path += f"L{_xy(near)}Q{_xy(corner)} {_xy(far)}"
        path += f"L{_xy(base)}"
    head = [(x1, y1), (base[0] - uy * half, base[1] + ux * half), (base[0] + uy * half, base[1] - ux * half)]
    return (
        f'<g opacity="{opacity:g}"><path d="{path}" stroke-width="{width:.1f}"/>'
        f'<path d="M{_xy(head[0])}L{_xy(head[1])}L{_xy(head[2])}z" fill="{INK}" stroke="none"/></g>'
    )


def _xy(point: Point) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _towards(corner: Point, other: Point, radius: float = 9) -> Point:
    length = abs(other[0] - corner[0]) + abs(other[1] - corner[1])
    share = min(radius, length / 2) / max(length, 1e-6)
    return corner[0] + (other[0] - corner[0]) * share, corner[1] + (other[1] - corner[1]) * share


class Route(NamedTuple):
    """The way of an arrow, whether it is a curve, and where its label stands."""

    points: list[Point]
    curve: bool
    label: Point
    anchor: str


Router = Callable[[Scene, Mapping[str, Box], Sequence[Wire], Wire], Route]


def _connect(scene: Scene, by_key: Mapping[str, Box], arrows: Sequence[Wire], chapter: int, route: Router) -> None:
    """Draw the arrows behind the boxes, and their labels in front."""
    for one in arrows:
        way = route(scene, by_key, arrows, one)
        worth = chapter >= WHOLE and one.exact
        width = min(9.0, 1 + 3.2 * abs(one.nats)) if worth else 2.6 if one.new else 1.5
        mark = _path(way.points, width, 0.9 if one.new or chapter >= WHOLE else 0.55, way.curve)
        name = f'<g data-arrow="{one.sender} &gt; {one.receiver}">'
        scene.back.append(f"{name}{mark}</g>")
        label = one.into if one.receiver != "logits" else "" if worth else side(one, by_key[one.sender])
        if worth:
            label = f"{label} {signed(one.nats)}".strip().replace("-", "−")
        if scene.width < 500 and one.receiver in by_key and by_key[one.receiver].row == "writers":
            label = one.into  # no room for numbers between many arrows
        scene.front.append(name)
        scene.words(*way.label, label, "bold" if one.new else "", way.anchor, 1, halo=True)
        scene.front.append("</g>")


def _spread(scene: Scene, arrows: Sequence[Wire], one: Wire, at: str, by: float, room: float) -> float:
    """How far from the middle of an edge an arrow leaves (at "sender") or ends (at "receiver")."""
    key = getattr(one, at)
    other = "receiver" if at == "sender" else "sender"
    same = [wire for wire in arrows if getattr(wire, at) == key and wire.sender != wire.receiver]
    same = [wire for wire in same if _kind(scene, wire) == _kind(scene, one)]
    same.sort(key=lambda wire: (scene.places[getattr(wire, other)].cx, scene.places[getattr(wire, other)].cy))
    step = min(by, room / max(len(same), 1))
    return step * (same.index(one) - (len(same) - 1) / 2)


def _kind(scene: Scene, wire: Wire) -> str:
    """Arrows that share an edge."""
    if wire.receiver == "logits":
        return "up"
    a, b = scene.places[wire.sender], scene.places[wire.receiver]
    return "across" if a.right < b.x or (b.right < a.x and scene.width > 500) else "up"


def _loop(place: Rect, tall: bool) -> Route:
    """From a box to itself, around its right upper corner."""
    x, y = place.right, place.y
    points = [(x, y + 20), (x + 26, y + 20), (x - 16, y - 28), (x - 16, y)]
    return Route(points, True, *(((x + 7, y - 10), "start") if tall else ((x - 24, y - 6), "end")))


def _row(by_key: Mapping[str, Box], key: str) -> Row:
    return by_key[key].row if key in by_key else key


def _past(scene: Scene, by_key: Mapping[str, Box], arrows: Sequence[Wire], rows: Sequence[Row]) -> list[Wire]:
    """The arrows from S2 that need a lane of their own to one of these rows, those that go furthest first."""
    crossing = [one for one in arrows if _row(by_key, one.sender) == "S2" and _row(by_key, one.receiver) in rows]
    upwards = scene.width > 500

    def order(one: Wire) -> tuple[float, ...]:
        a, b = scene.places[one.sender], scene.places[one.receiver]
        return b.y if upwards else -b.y, b.x, a.y, a.x

    return sorted(crossing, key=order)


def _rise(start: Point, end: Point, label: Point, anchor: str = "start") -> Route:
    """A curve that leaves and arrives upright."""
    half = (start[1] + end[1]) / 2
    return Route([start, (start[0], half), (end[0], half), end], True, label, anchor)


def _beside(one: Wire, out: float, into: float, y: float) -> tuple[Point, str]:
    """The label of an arrow to the logits: where it leaves, on the side that it turns away from."""
    away = 5 + 2 * min(abs(one.nats), 2.5)
    return ((out - away, y), "end") if into > out + 1 else ((out + away, y), "start")


def _route_broad(scene: Scene, by_key: Mapping[str, Box], arrows: Sequence[Wire], one: Wire) -> Route:
    a, b = scene.places[one.sender], scene.places[one.receiver]
    if one.sender == one.receiver:
        return _loop(a, False)
    here, there = _row(by_key, one.sender), _row(by_key, one.receiver)
    if here == "S2" and there in ("END", "writers"):
        lanes = _past(scene, by_key, arrows, ("END", "writers"))
        same = [other for other in lanes if other.receiver == one.receiver]
        at, nth = lanes.index(one), same.index(one)
        lane = a.right + 7 + min(9.0, 30 / len(lanes)) * at  # the labels stand between them and the boxes
        out = a.cy + _spread(scene, arrows, one, "sender", 10, a.h - 16)
        if b.x == min(scene.places[key].x for key, box in by_key.items() if box.row == there):  # nothing is in the way
            into = b.cy + min(20.0, (b.h - 14) / len(same)) * (nth - (len(same) - 1) / 2)
            return Route([(a.right, out), (lane, out), (lane, into), (b.x, into)], False, (b.x - 11, into - 5), "end")
        x, channel = b.x + 14 + 12 * nth, b.bottom + 18 + 5 * at
        points = [(a.right, out), (lane, out), (lane, channel), (x, channel), (x, b.bottom)]
        return Route(points, False, (x - 6, channel + 13), "end")
    if here == "S1+1":
        points = [(a.right, a.cy), (a.right + 14, a.cy), (b.x - 24, b.cy), (b.x, b.cy)]
        return Route(points, True, (b.x - 7, b.cy - 10), "end")
    out = a.cx + _spread(scene, arrows, one, "sender", 26, a.w - 20)
    into = b.cx + _spread(scene, arrows, one, "receiver", 40, b.w - 20)
    if a.y > b.bottom:
        if there == "logits":
            return _rise((out, a.y), (into, b.bottom), *_beside(one, out, into, a.y - 6))
        return _rise((out, a.y), (into, b.bottom), (into + 8, b.bottom + 17))
    return _over(a, b, -34)


def _route_tall(scene: Scene, by_key: Mapping[str, Box], arrows: Sequence[Wire], one: Wire) -> Route:
    a, b = scene.places[one.sender], scene.places[one.receiver]
    if one.sender == one.receiver:
        return _loop(a, True)
    out = a.cx + _spread(scene, arrows, one, "sender", 20, a.w - 16)
    apart = 26 if _row(by_key, one.receiver) in ("writers", "logits") else 60
    into = b.cx + _spread(scene, arrows, one, "receiver", apart, b.w - 16)
    lanes = _past(scene, by_key, arrows, ("END", "writers"))
    if one in lanes:  # at the left of the sentence
        there = _row(by_key, one.receiver)
        at, nth = lanes.index(one), [other for other in lanes if other.receiver == one.receiver].index(one)
        turn = [other for other in lanes if _row(by_key, other.receiver) == there].index(one)
        lane, below, above = 5 + 7 * at, a.bottom + 10 + 5 * at, b.y - 18 - 6 * turn
        x = b.x + 10 + (60 if there == "END" else 18) * nth
        points = [(out, a.bottom), (out, below), (lane, below), (lane, above), (x, above), (x, b.y)]
        return Route(points, False, (x + 6, b.y - 5), "start")
    if _row(by_key, one.sender) == "S1+1" and _row(by_key, one.receiver) == "S2":  # at its right
        beside = sorted(
            (other for other in arrows if other.sender == one.sender), key=lambda o: scene.places[o.receiver].x
        )
        at = beside.index(one)
        lane, above, leaves = 334 - 6 * at, b.y - 18 - 5 * (len(beside) - 1 - at), a.cy - 6 * at
        return Route(
            [(a.right, leaves), (lane, leaves), (lane, above), (into, above), (into, b.y)],
            False,
            (into + 7, b.y - 5),
            "start",
        )
    if b.y > a.bottom:
        if one.receiver == "logits":
            return _rise((out, a.bottom), (into, b.y), *_beside(one, out, into, a.bottom + 13))
        ended = sum(other.receiver == one.receiver for other in lanes)  # the lanes end at the left
        into = max(into, b.x + 14 + 18 * ended) if ended else into
        return _rise((out, a.bottom), (into, b.y), (into + 7, b.y - 5))
    return _over(a, b, 34)


def _over(a: Rect, b: Rect, by: float) -> Route:
    """Between boxes of one row: over them, or below."""
    start, end = (a.y, b.y) if by < 0 else (a.bottom, b.bottom)
    far = min(start, end) + by if by < 0 else max(start, end) + by
    turn = 14 if b.cx > a.cx else -14  # beside what leaves in the middle
    points = [(a.cx + turn, start), (a.cx + turn, far), (b.cx - turn, far), (b.cx - turn, end)]
    return Route(points, True, ((a.cx + b.cx) / 2 + 22, far + (0 if by < 0 else 5)), "start")  # off the other labels


STYLE = (
    "<style>.lab-sketch{container-type:inline-size;margin:1.4rem 0}"
    ".lab-sketch svg{display:block;width:100%;height:auto}"
    ".lab-sketch .lab-tall{display:none;max-width:26rem;margin:auto}"
    "@container (max-width:560px){.lab-sketch .lab-broad{display:none}.lab-sketch .lab-tall{display:block}}"
    "@media print{.lab-sketch{break-inside:avoid}}</style>"
)


def draw(known: Known, chapter: int, title: str = "", note: str = "", again: bool = False) -> str:
    """The figure of one chapter: both drawings, all that they show as a text alternative, and a note below.

    Args:
        title: above it, if any.
        note: in place of what is new in this chapter.
        again: whether a later chapter shows it once more; what is new is then said with the number of its chapter.
    """
    chapter = max(1, chapter)
    here, everything = tells(known, chapter, again)
    here = note or here
    svgs = ""
    for name, scene in (("broad", _broad(known, chapter)), ("tall", _tall(known, chapter))):
        style = STYLE if name == "broad" else ""
        svgs += (
            f'<svg class="lab-{name}" viewBox="0 0 {scene.width:g} {scene.height:.0f}" fill="none" stroke="{INK}" '
            f'font-family="inherit" font-size="{scene.size:g}" aria-hidden="true">{style}{"".join(scene.back)}'
            f'<g><g fill="{INK}" stroke="none">{"".join(scene.front)}</g></g></svg>'
        )
    legend = "" if chapter > WHOLE else _legend(known, chapter)
    head = f"<b>{html.escape(title)}.</b> " if title else ""
    return (
        f'<figure class="lab-sketch"><div role="img" aria-label="{html.escape(everything, quote=True)}">{svgs}</div>'
        f"<figcaption><p>{head}{html.escape(here)} <small>{legend}</small></p></figcaption></figure>"
    )


def _legend(known: Known, chapter: int) -> str:
    """What the lines mean that are drawn."""
    seen = [box for row in _rows(known, chapter)[0].values() for box in row]
    arrows = wires(known, chapter)
    fresh = [one.new for one in arrows] + [box.new for box in seen if box.heads]
    new = any(fresh)
    said = ["bold is new"] if new else []
    said += ["calm was found before"] if new and not all(fresh) else []
    said += ["dotted has no known head"] if any(not box.heads for box in seen) else []
    told = [", ".join(said)] if said else []
    told += ["q, k, v: read through queries, keys, values"] if any(one.into in INPUTS for one in arrows) else []
    return " ".join(f"{one[:1].upper()}{one[1:]}." if one[0] != "q" else f"{one}." for one in told)
