"""A Plotly figure as inline SVG: what a page shows until its reader asks for more, and what prints.

It draws what `labcode.plots` makes of one pair of axes: lines, bands, markers, bars, histograms, heat maps, error bars,
straight lines and notes. Text stays text. Ink, grid and ground are the page's, by CSS classes, so both colour schemes
and paper work; values of a heat map are shades of two colours over whatever the ground is. Each mark has its hover text
as its title.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from labcode.report import SIGN

WIDE, NARROW = 700, 350  # drawn for the text column, and for a phone
LETTER = 6.6  # pixels of a letter at 12 px, with some air
LINE = 16
DASHES = {"dash": "6 4", "dot": "2 3", "dashdot": "6 3 2 3"}
GRADIENT = itertools.count()
MINUS = str.maketrans("-", "−")


@dataclass
class Axis:
    """One axis: its range in data, its ticks, and where it lies in pixels."""

    low: float
    high: float
    ticks: list[tuple[float, str]]
    title: str
    first: float = 0.0  # pixel of `low`
    last: float = 1.0
    named: bool = False  # its ticks are names and not numbers
    zero: bool = True
    below: bool = False  # each row has its name above its marks

    def at(self, value: float) -> float:
        """The pixel of a value."""
        if not self.below:
            return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)
        row = math.floor(value + 0.5)
        unit = (self.last - self.first) / (self.high - self.low)
        return self.first + (row - self.low) * unit + 9 + 0.5 * abs(unit) * (value - row) * (1 if unit > 0 else -1)


@dataclass
class Plot:
    """A figure's traces as bare marks, in data."""

    bars: list[dict[str, Any]] = field(default_factory=list)  # rectangles: x0, x1, y0, y1, fill, opacity, title
    traces: list[dict[str, Any]] = field(default_factory=list)  # Plotly's scatter traces
    whiskers: list[tuple[float, float, float, float, str]] = field(default_factory=list)  # x0, y0, x1, y1, colour


class Unknown(ValueError):
    """A figure that is more than this module draws."""


def still(figure: dict[str, Any], width: int) -> str:
    """The figure as one `<svg>` of this width in pixels and the figure's own height.

    Raises:
        Unknown: traces or values that are not drawn here, such as pies, dates and several pairs of axes.
    """
    layout = figure.get("layout", {})
    try:
        return _drawn([_whole(trace) for trace in figure.get("data", [])], layout, width)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise Unknown(f"{type(error).__name__}: {error}") from error


def _whole(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace with what Plotly would add to it: places that count from 0, and one colour."""
    if "x2" in str(trace.get("xaxis")) or "y2" in str(trace.get("yaxis")):
        raise Unknown("several pairs of axes")
    if trace.get("type") == "heatmap":
        return trace
    for name, other in (("x", "y"), ("y", "x")):
        if trace.get(name) is None and trace.get("type") != "histogram":
            trace = {**trace, name: list(range(len(trace[other])))}
        if any(isinstance(value, str) for value in trace.get(name) or ()):
            raise Unknown("values that are no numbers")
    colour = _get(trace, "line", "color") or "#0072B2"  # markers of a line have its colour
    return {**trace, "marker": {"color": colour, **trace.get("marker", {})}} if trace.get("type") else trace


def _drawn(data: list[dict[str, Any]], layout: dict[str, Any], width: int) -> str:
    plot = _plot(data, layout)
    x, y = _axis("x", plot, data, layout), _axis("y", plot, data, layout)
    heat = next((trace for trace in data if trace.get("type") == "heatmap"), None)
    legend = _legend(data, layout, width)
    above = y.named and width < WIDE and max((len(text) for _, text in y.ticks), default=0) * LETTER > 0.34 * width
    height = float(layout.get("height") or 420)
    if above:  # names stand above their rows, which need room for them
        height = max(height, 90 + 46 * len(y.ticks))
    top = 10 + LINE * legend.rows + (22 if heat else 0) + (18 if layout.get("annotations") else 0)
    left = 12 if above else 14 + LETTER * max((len(text) for _, text in y.ticks), default=1)
    side = _lines(y.title, height - top - 60)  # less what may stand under the plot
    left += 4 + 16 * len(side) if side else 0
    x.first, x.last = left, width - 14.0
    x.ticks, tilt = _spaced(x.ticks, x.last - x.first)
    if tilt:  # the first of the tilted texts begins at the left of its tick
        value, text = x.ticks[0]
        x.first += max(0.0, 0.72 * LETTER * len(text) - x.at(value))
    longest = max((len(text) for _, text in x.ticks), default=1)
    bottom = (10 + 0.72 * LETTER * longest if tilt else 20) + (
        22 * len(_lines(x.title, x.last - x.first)) if x.title else 0
    )
    y.first, y.last = (top, height - bottom) if _falls(layout, "y") else (height - bottom, top)
    if _falls(layout, "x"):
        x.first, x.last = x.last, x.first
    y.below = above
    parts = [
        *_ground(x, y, side, heat is not None, above, tilt, width, height),
        *_marks(plot, x, y),
        *_notes(layout, x, y),
    ]
    parts += [legend.draw(width), *([_scale(heat, width)] if heat else [])]
    return (
        f'<svg class="lab-still" viewBox="0 0 {width} {_n(height)}" width="{width}" height="{_n(height)}" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )


# From a figure to marks


def _plot(data: list[dict[str, Any]], layout: dict[str, Any]) -> Plot:
    plot, heap = Plot(), dict[float, float]()
    beside = [trace for trace in data if trace.get("type") == "bar"]
    for trace in data:
        match trace.get("type", "scatter"):
            case "heatmap":
                plot.bars += _cells(trace)
            case "histogram":
                plot.bars += _counted(trace, heap if layout.get("barmode", "stack") == "stack" else {})
            case "bar":
                _barred(plot, trace, beside.index(trace), len(beside))
            case "scatter":
                plot.traces.append(trace)
                _errors(plot, trace, str(_get(trace, "marker", "color") or ""))
            case other:
                raise Unknown(f"a trace of type {other!r}")
    return plot


def _cells(trace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    low, high = float(trace["zmin"]), float(trace["zmax"])
    hover = trace.get("hovertext") or itertools.repeat(itertools.repeat(""))
    for row, (values, texts) in enumerate(zip(trace["z"], hover, strict=False)):
        for column, (value, text) in enumerate(zip(values, texts, strict=False)):
            box = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5, "title": text}
            if value is None or not math.isfinite(value):
                yield box | {"fill": "", "opacity": 1.0}
                continue
            shade = min(1.0, abs(value) / (max(abs(low), abs(high)) or 1.0))
            yield box | {"fill": _ends(trace)[value >= 0], "opacity": shade}


def _ends(trace: dict[str, Any]) -> tuple[str, str]:
    """The opaque colours of the low and the high end of a colour scale."""
    scale = [_opaque(colour) for _, colour in trace["colorscale"]]
    return scale[0], scale[-1]


def _opaque(colour: str) -> str:
    found = re.fullmatch(r"rgba\((\d+), ?(\d+), ?(\d+), ?[\d.]+\)", colour)
    return "#" + "".join(f"{int(part):02x}" for part in found.groups()) if found else colour


def _counted(trace: dict[str, Any], heap: dict[float, float]) -> Iterator[dict[str, Any]]:
    size, start = float(trace["xbins"]["size"]), float(trace["xbins"].get("start", 0))
    counts: dict[int, int] = {}
    for value in trace["x"]:
        at = math.floor((value - start) / size + 1e-9)
        counts[at] = counts.get(at, 0) + 1
    for at, count in sorted(counts.items()):
        x0, base = start + at * size, heap.get(at, 0.0)
        heap[at] = base + count
        title = f"{trace.get('name') or ''} {x0:.2f} to {x0 + size:.2f}: {count}".strip()
        inner = {"x0": x0 + 0.03 * size, "x1": x0 + 0.97 * size, "y0": base, "y1": base + count}
        yield inner | {"fill": trace["marker"]["color"], "opacity": float(trace.get("opacity", 1)), "title": title}


def _barred(plot: Plot, trace: dict[str, Any], number: int, of: int) -> None:
    across = trace.get("orientation") == "h"
    along, values = (trace["y"], trace["x"]) if across else (trace["x"], trace["y"])
    colours, hover = trace["marker"]["color"], trace.get("hovertext")
    width = 0.8 / of
    for index, (place, value) in enumerate(zip(along, values, strict=True)):
        a = place - 0.4 + width * number
        sides = (0.0, value, a, a + width) if across else (a, a + width, 0.0, value)
        box = dict(zip(("x0", "x1", "y0", "y1"), sides, strict=True))
        fill = colours[index] if isinstance(colours, list) else colours
        plot.bars.append(box | {"fill": fill, "opacity": 1.0, "title": hover[index] if hover else ""})
    _errors(plot, trace, "")


def _errors(plot: Plot, trace: dict[str, Any], colour: str) -> None:
    for key, other in (("error_x", "y"), ("error_y", "x")):
        error = trace.get(key)
        if not error or not error.get("array"):
            continue
        values, places = trace[key[-1]], trace[other]
        minus = error.get("arrayminus") or error["array"]
        for value, place, more, less in zip(values, places, error["array"], minus, strict=True):
            ends = (value - less, place, value + more, place)
            plot.whiskers.append((*(ends if key == "error_x" else (place, ends[0], place, ends[2])), colour))


# Axes


def _axis(name: str, plot: Plot, data: list[dict[str, Any]], layout: dict[str, Any]) -> Axis:
    given: dict[str, Any] = layout.get(f"{name}axis", {})
    title = given.get("title") or ""
    title = _plain(title.get("text") or "" if isinstance(title, dict) else title)
    values = list(_extent(name, plot, layout))
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    heat = any(trace.get("type") == "heatmap" for trace in data)
    named = "tickvals" in given
    # Bars stand on the line; marks and lines keep a distance from the frame.
    air = 0.0 if heat else 0.05 * (high - low)
    pad_low = 0.0 if heat or (plot.bars and low == 0) else air
    pad_high = 0.0 if heat or (plot.bars and high == 0) else air
    if named and not heat:
        pad_low = pad_high = 0.25 if not plot.bars else 0.1
    low, high = low - pad_low, high + pad_high
    if given.get("range"):
        low, high = map(float, given["range"])
    if named:
        ticks = [(float(v), _plain(t)) for v, t in zip(given["tickvals"], given["ticktext"], strict=True)]
    else:
        ticks = [(v, text) for v, text in _round(low, high)]
    return Axis(low, high, ticks, title, named=named, zero=given.get("zeroline", True) is not False)


def _extent(name: str, plot: Plot, layout: dict[str, Any]) -> Iterator[float]:
    for bar in plot.bars:
        yield from (bar[f"{name}0"], bar[f"{name}1"])
    for trace in plot.traces:
        yield from (float(v) for v in trace[name] if v is not None and math.isfinite(v))
    for x0, y0, x1, y1, _ in plot.whiskers:
        yield from (v for v in ((x0, x1) if name == "x" else (y0, y1)) if math.isfinite(v))
    for shape in layout.get("shapes", []):
        if shape.get(f"{name}ref", name) == name:
            yield from (float(shape[f"{name}0"]), float(shape[f"{name}1"]))


def _round(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Five or so ticks at round values."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    digits = next(n for n in range(12) if abs(round(step, n) - step) < 1e-9 * step or n == 11)
    for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield i * step, f"{i * step + 0.0:.{digits}f}".translate(MINUS)


def _falls(layout: dict[str, Any], name: str) -> bool:
    return bool(layout.get(f"{name}axis", {}).get("autorange") == "reversed")


def _spaced(ticks: list[tuple[float, str]], room: float) -> tuple[list[tuple[float, str]], bool]:
    """Ticks that do not run into each other, and whether they have to be tilted for that."""
    longest = max((len(text) for _, text in ticks), default=1) * LETTER + 6
    if longest * len(ticks) <= room:
        return ticks, False
    tilt = longest > 34
    step = math.ceil(len(ticks) * (LINE if tilt else longest) / room)
    return ticks[::step], tilt


# Drawing


def _ground(
    x: Axis, y: Axis, side: list[str], heat: bool, above: bool, tilt: bool, width: int, height: float
) -> Iterator[str]:
    left, right = sorted((x.first, x.last))
    top, bottom = sorted((y.first, y.last))
    grid = [f"M{_n(x.at(v))} {_n(top)}V{_n(bottom)}" for v, _ in x.ticks if not heat]
    grid += [f"M{_n(left)} {_n(y.at(v))}H{_n(right)}" for v, _ in y.ticks if not heat and not above]
    yield f'<path class="lab-grid" d="{"".join(grid)}"/>'
    zero = [f"M{_n(x.at(0))} {_n(top)}V{_n(bottom)}"] if x.zero and not x.named and x.low < 0 < x.high else []
    zero += [f"M{_n(left)} {_n(y.at(0))}H{_n(right)}"] if y.zero and not y.named and y.low < 0 < y.high else []
    yield f'<path class="lab-axis" d="{"".join(zero)}"/>' if zero and not heat else ""
    for value, text in x.ticks:
        place = f'x="{_n(x.at(value))}" y="{_n(bottom + 15)}"'
        if tilt:
            at = f"{_n(x.at(value) + 4)} {_n(bottom + 12)}"
            yield f'<text text-anchor="end" transform="translate({at}) rotate(-45)">{_safe(text)}</text>'
        else:
            yield f'<text text-anchor="middle" {place}>{_safe(text)}</text>'
    for value, text in y.ticks:
        if above:
            yield f'<text x="{_n(left)}" y="{_n(y.at(value) - 20)}">{_safe(_short(text, right - left))}</text>'
        else:
            yield f'<text text-anchor="end" x="{_n(left - 6)}" y="{_n(y.at(value) + 4)}">{_safe(text)}</text>'
    said = _lines(x.title, right - left)
    for number, line in enumerate(said):
        below = height - 6 - 16 * (len(said) - 1 - number)
        place = f'x="{_n((left + right) / 2)}" y="{_n(below)}"'
        yield f'<text class="lab-axis-title" text-anchor="middle" {place}>{_safe(line)}</text>'
    for number, line in enumerate(side):
        at = f"translate({13 + 16 * number} {_n((top + bottom) / 2)}) rotate(-90)"
        yield f'<text class="lab-axis-title" text-anchor="middle" transform="{at}">{_safe(line)}</text>'


def _marks(plot: Plot, x: Axis, y: Axis) -> Iterator[str]:
    for bar in plot.bars:
        a, b = sorted((x.at(bar["x0"]), x.at(bar["x1"])))
        c, d = sorted((y.at(bar["y0"]), y.at(bar["y1"])))
        look = f'fill="{_safe(bar["fill"])}"' if bar["fill"] else 'class="lab-missing"'
        look += f' fill-opacity="{bar["opacity"]:.2f}"' if bar["opacity"] < 1 else ""
        box = f'x="{_n(a)}" y="{_n(c)}" width="{_n(b - a)}" height="{_n(d - c)}"'
        yield f"<rect {box} {look}>{_title(bar['title'])}</rect>"
    for x0, y0, x1, y1, colour in plot.whiskers:
        a, b, c, d = x.at(x0), y.at(y0), x.at(x1), y.at(y1)
        cap = (
            f"M{_n(a)} {_n(b - 4)}v8M{_n(c)} {_n(d - 4)}v8"
            if y0 == y1
            else f"M{_n(a - 4)} {_n(b)}h8M{_n(c - 4)} {_n(d)}h8"
        )
        look = f'stroke="{_safe(colour)}"' if colour else 'class="lab-whisker"'
        yield f'<path fill="none" stroke-width="1.6" {look} d="M{_n(a)} {_n(b)}L{_n(c)} {_n(d)}{cap}"/>'
    for trace in plot.traces:
        yield from _traced(trace, x, y)
    yield from _labels(plot.traces, x, y)


def _seen(trace: dict[str, Any], x: Axis, y: Axis) -> list[tuple[float, float, int]]:
    """The points of a trace that can be drawn, in pixels, each with its number."""
    return [
        (x.at(a), y.at(b), i)
        for i, (a, b) in enumerate(zip(trace["x"], trace["y"], strict=True))
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]


def _labels(traces: list[dict[str, Any]], x: Axis, y: Axis) -> Iterator[str]:
    """The names of points, each above its point or where there is room around it; one without room is in its title."""
    left, right = sorted((x.first, x.last))
    named = [trace for trace in traces if "text" in str(trace.get("mode")) and trace.get("text")]
    points = [(a, b, _plain(trace["text"][i])) for trace in named for a, b, i in _seen(trace, x, y)]
    taken: list[tuple[float, float, float]] = []  # middle, baseline and width of each name

    def free(at: float, line: float, w: float, marks: bool) -> bool:
        if marks and any(b - 6 < line < b + 13 and abs(at - a) < w / 2 + 4 for a, b, _ in points):
            return False
        return all(abs(line - d) >= LINE - 3 or abs(at - c) >= (w + v) / 2 for c, d, v in taken)

    for a, b, text in points:
        w = len(text) * LETTER
        around = [(a, b - 8), (a + w / 2 + 7, b + 5), (a - w / 2 - 7, b + 5), (a, b + 18)]
        places = [(min(max(at, left + w / 2), right - w / 2), line, w) for at, line in around if text]
        place = next((one for marks in (True, False) for one in places if free(*one, marks)), None)
        if place:  # off the marks too, if it can be
            taken.append(place)
            yield f'<text text-anchor="middle" x="{_n(place[0])}" y="{_n(place[1])}">{_safe(text)}</text>'


def _traced(trace: dict[str, Any], x: Axis, y: Axis) -> Iterator[str]:
    points = _seen(trace, x, y)
    mode, line = str(trace.get("mode", "lines")), trace.get("line", {})
    path = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b, _ in points)
    if trace.get("fill") == "toself":
        red, green, blue, alpha = re.findall(r"[\d.]+", trace["fillcolor"])
        yield f'<path fill="rgb({red},{green},{blue})" fill-opacity="{alpha}" d="{path}z"/>'
    elif "lines" in mode and points:
        dash = f' stroke-dasharray="{DASHES[line["dash"]]}"' if line.get("dash") in DASHES else ""
        stroke = _safe(line.get("color") or "currentColor")
        yield f'<path fill="none" stroke="{stroke}" stroke-width="2"{dash} d="{path}"/>'
    if "markers" not in mode:
        return
    marker = trace.get("marker", {})
    colour = marker.get("color") or line.get("color") or "currentColor"
    hover, size = trace.get("hovertext"), float(marker.get("size", 6)) / 2
    for a, b, i in points:
        fill = colour[i] if isinstance(colour, list) else colour
        title = _title(hover[i] if isinstance(hover, list) else "")
        yield f'<path fill="{_safe(fill)}" d="{_symbol(marker.get("symbol", 0), a, b, size)}">{title}</path>'


# Plotly's symbols by number, as corners for a radius of 1; a circle has none.
SYMBOLS: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "cross": (
        *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
        *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
    ),
    "x": (
        *((-1, -0.6), (-0.6, -1), (0, -0.4), (0.6, -1), (1, -0.6), (0.4, 0)),
        *((1, 0.6), (0.6, 1), (0, 0.4), (-0.6, 1), (-1, 0.6), (-0.4, 0)),
    ),
    "triangle-up": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
}


def _symbol(symbol: Any, a: float, b: float, r: float) -> str:
    """The path of a marker of radius `r`."""
    kind = [*SYMBOLS][symbol % len(SYMBOLS)] if isinstance(symbol, int) else str(symbol)
    if corners := SYMBOLS.get(kind):
        return "M" + "L".join(f"{_n(a + r * x)} {_n(b + r * y)}" for x, y in corners) + "z"
    return f"M{_n(a - r)} {_n(b)}a{_n(r)} {_n(r)} 0 1 0 {_n(2 * r)} 0a{_n(r)} {_n(r)} 0 1 0 {_n(-2 * r)} 0"


def _notes(layout: dict[str, Any], x: Axis, y: Axis) -> Iterator[str]:
    def ends(shape: dict[str, Any], name: str, axis: Axis) -> tuple[float, float]:
        a, b = float(shape[f"{name}0"]), float(shape[f"{name}1"])
        if shape.get(f"{name}ref", name) == name:
            return axis.at(a), axis.at(b)
        return axis.first + a * (axis.last - axis.first), axis.first + b * (axis.last - axis.first)

    for shape in layout.get("shapes", []):
        (a, b), (c, d) = ends(shape, "x", x), ends(shape, "y", y)
        dash = f' stroke-dasharray="{DASHES[shape["line"]["dash"]]}"' if shape["line"].get("dash") in DASHES else ""
        colour = _safe(shape["line"].get("color") or "currentColor")
        yield f'<path fill="none" stroke="{colour}" stroke-width="1.5"{dash} d="M{_n(a)} {_n(c)}L{_n(b)} {_n(d)}"/>'
    for note in layout.get("annotations", []):
        up = "paper" in str(note.get("yref", "y")) or "domain" in str(note.get("yref", "y"))
        at = (min(y.first, y.last) if note["y"] == 1 else max(y.first, y.last)) if up else y.at(float(note["y"]))
        shift = -5 if note.get("yanchor", "middle") == "bottom" else 4
        place = f'x="{_n(x.at(float(note["x"])))}" y="{_n(at + shift)}"'
        yield f'<text text-anchor="middle" {place}>{_safe(_plain(note["text"]))}</text>'


@dataclass
class Legend:
    """The names of a figure's traces, in rows above the plot."""

    entries: list[tuple[str, str, Any, bool]]  # name, colour, symbol, whether a line
    places: list[tuple[float, int]]
    rows: int

    def draw(self, width: int) -> str:
        """Its marks and names."""
        out = []
        for (name, colour, symbol, line), (left, row) in zip(self.entries, self.places, strict=True):
            at = 14 + LINE * row
            if line:
                out.append(f'<path stroke="{_safe(colour)}" stroke-width="2" d="M{_n(left)} {at - 4}h18"/>')
            out.append(f'<path fill="{_safe(colour)}" d="{_symbol(symbol, left + 9, at - 4, 4.5)}"/>')
            out.append(f'<text x="{_n(left + 23)}" y="{at}">{_safe(_short(name, width - left - 30))}</text>')
        return "".join(out)


def _legend(data: list[dict[str, Any]], layout: dict[str, Any], width: int) -> Legend:
    shown = [t for t in data if t.get("showlegend") is not False and t.get("type") != "heatmap"]
    if layout.get("showlegend") is False or (len(shown) < 2 and not layout.get("showlegend")):
        return Legend([], [], 0)
    entries, places, left, row = [], [], 4.0, 0
    for trace in shown:
        name = _plain(trace.get("name") or "")
        colour = _get(trace, "marker", "color") or _get(trace, "line", "color") or "currentColor"
        bar = trace.get("type") in ("bar", "histogram")
        symbol = 1 if bar else _get(trace, "marker", "symbol") or 0
        room = 36 + len(name) * LETTER
        if left + room > width and left > 4:
            left, row = 4.0, row + 1
        entries.append(
            (name, colour[0] if isinstance(colour, list) else colour, symbol, "lines" in trace.get("mode", ""))
        )
        places.append((left, row))
        left += room
    return Legend(entries, places, row + 1)


def _scale(trace: dict[str, Any], width: int) -> str:
    """The colour scale of a heat map, above it."""
    low, high, name = float(trace["zmin"]), float(trace["zmax"]), f"lab-scale-{next(GRADIENT)}"
    unit = _plain(_get(trace, "colorbar", "title", "text") or "")
    ends = _ends(trace)
    stops = f'<stop offset="0" stop-color="{ends[0]}" stop-opacity="{1 if low < 0 else 0}"/>'
    if low < 0:
        stops += "".join(f'<stop offset="0.5" stop-color="{colour}" stop-opacity="0"/>' for colour in ends)
    stops += f'<stop offset="1" stop-color="{ends[1]}"/>'
    length, left = 150, width - 14 - 150 - 40
    marks = [f"{low:.2g}".translate(MINUS), f"{high:.2g}".translate(MINUS)]
    return (
        f'<linearGradient id="{name}">{stops}</linearGradient>'
        f'<text text-anchor="end" x="{left - 44}" y="15">{_safe(_short(unit, left - 50))}</text>'
        f'<text text-anchor="end" x="{left - 5}" y="15">{marks[0]}</text>'
        f'<rect class="lab-frame" x="{left}" y="5" width="{length}" height="11" fill="url(#{name})"/>'
        f'<text x="{left + length + 5}" y="15">{marks[1]}</text>'
    )


# Text


def _plain(text: Any) -> str:
    """Plotly's text, which may hold a few tags and entities, as it reads."""
    return html.unescape(re.sub(r"<[^>]+>", " ", str(text))).strip()


def _safe(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _title(text: Any) -> str:
    return f"<title>{_safe(SIGN.sub('−', _plain(text)))}</title>" if text else ""


def _short(text: str, room: float) -> str:
    fits = max(4, int(room / LETTER))
    return text if len(text) <= fits else f"{text[: fits - 1].rstrip()}…"


def _lines(text: str, room: float) -> list[str]:
    """A title in lines that fit."""
    rows, row = [], ""
    for word in text.split():
        if row and (len(row) + len(word) + 1) * LETTER > room:
            rows.append(row)
            row = word
        else:
            row = f"{row} {word}".strip()
    return [*rows, row] if row else rows


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _get(of: Any, *keys: str) -> Any:
    for key in keys:
        of = of.get(key) if isinstance(of, dict) else None
    return of


def both(figure: dict[str, Any]) -> str:
    """The figure for the text column and for a phone; CSS shows one of them."""
    return f'<div class="lab-wide">{still(figure, WIDE)}</div><div class="lab-narrow">{still(figure, NARROW)}</div>'


__all__: Sequence[str] = ("Unknown", "both", "still")
