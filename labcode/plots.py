"""Plotly figures with one palette, one sign convention and a required text alternative.

Effects use one diverging scale centred on 0: blue towards the right answer, orange against it. Attention uses one
sequential scale. Colours come from the Okabe-Ito palette, which the usual forms of colour blindness keep apart. Text,
grid and background are left to the page, which draws them for its light and dark schemes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labcode.errors import ReportError
from labcode.inputs import guard

if TYPE_CHECKING:
    import plotly.graph_objects as go

TOWARDS, AGAINST, NEUTRAL = "#0072B2", "#D55E00", "#7F7F7F"
# Zero is the ground of the page, light or dark: the colours fade into it.
_CLEAR, _BLUE, _ORANGE = "rgba(0,114,178,0)", "rgba(0,114,178,1)", "rgba(213,94,0,1)"
DIVERGING = [[0, _ORANGE], [0.5, "rgba(213,94,0,0)"], [0.5, _CLEAR], [1, _BLUE]]
SEQUENTIAL = [[0, _CLEAR], [1, _BLUE]]
POSITION_COLOURS = {"IO": "#009E73", "S1": "#E69F00", "S2": "#CC79A7", "END": "#56B4E9"}
# Lines and groups that are no effects: the lighter half of Paul Tol's "muted" scheme, apart from all colours above.
SERIES = ("#44AA99", "#CC6677", "#999933", "#AA4499", "#DDCC77", "#88CCEE")
# Those that stand apart from a position's colour, also for the colour-blind.
APART = {
    "IO": ("#999933", "#AA4499", "#DDCC77", "#88CCEE"),
    "S1": ("#44AA99", "#AA4499", "#DDCC77", "#88CCEE"),
    "S2": ("#999933", "#DDCC77", "#88CCEE"),
    "END": ("#CC6677", "#999933", "#AA4499", "#DDCC77"),
}


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    alt: str,
    value_title: str,
    label_title: str = "",
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    horizontal: bool = False,
) -> go.Figure:
    """Signed bars, coloured by sign, with intervals where `low` and `high` are given.

    Raises:
        ReportError: lists of different lengths, or one end of the intervals without the other.
    """
    import plotly.graph_objects as go

    if (low is None) != (high is None):
        raise ReportError("an interval has two ends: give both low=... and high=..., or neither")
    _as_many(("labels", labels), ("values", values), ("low", low), ("high", high))
    error = None
    if low is not None and high is not None:
        error = _whiskers(NEUTRAL, values, low, high)  # the page draws it in the colour of its text
    colours = [TOWARDS if v >= 0 else AGAINST for v in values]
    ends = zip(low, high, strict=True) if low is not None and high is not None else ()
    spans = [f" [{lo:.2f}, {hi:.2f}]" for lo, hi in ends] or [""] * len(values)
    hover = [f"{_text(label)}: {v:+.2f}{span}" for label, v, span in zip(labels, values, spans, strict=True)]
    ticks = [_text(label) for label in labels]
    common: dict[str, Any] = {"marker_color": colours, "hovertext": hover, "hoverinfo": "text"}
    index = list(range(len(values)))
    value_axis = {"title": {"text": value_title}, "zeroline": True}
    label_axis = {"title": {"text": label_title}, "tickvals": index, "ticktext": ticks}
    if horizontal:
        fig = go.Figure(go.Bar(x=list(values), y=index, orientation="h", error_x=error, **common))
        fig.update_layout(xaxis=value_axis, yaxis={**label_axis, "autorange": "reversed"})
        return _finish(fig, alt, height=max(260, 70 + 24 * len(values)))
    fig = go.Figure(go.Bar(x=index, y=list(values), error_y=error, **common))
    fig.update_layout(yaxis=value_axis, xaxis=label_axis)
    return _finish(fig, alt)


def histogram(groups: Mapping[str, Sequence[float]], *, alt: str, value_title: str, bin_width: float) -> go.Figure:
    """Counts of prompts by value, one colour a group, with a line at 0.

    Raises:
        ReportError: a bin without a width, or more groups than there are colours.
    """
    import plotly.graph_objects as go

    fig = go.Figure()
    for (name, values), colour in zip(groups.items(), _colours(groups), strict=True):
        fig.add_trace(
            go.Histogram(
                x=list(values), name=name, marker_color=colour, opacity=0.85, xbins={"size": bin_width, "start": -40}
            )
        )
    fig.add_vline(x=0, line_color=NEUTRAL, line_dash="dash")
    fig.update_layout(barmode="stack", xaxis_title=value_title, yaxis_title="prompts", bargap=0.05)
    return _finish(fig, alt)


def lines(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    alt: str,
    value_title: str,
    label_title: str,
    low: Mapping[str, Sequence[float]] | None = None,
    high: Mapping[str, Sequence[float]] | None = None,
) -> go.Figure:
    """One line a series over labelled stages, with bands where `low` and `high` have the series.

    Raises:
        ReportError: lists of different lengths, one end of a band without the other, or more series than colours.
    """
    import plotly.graph_objects as go

    if set(low or ()) != set(high or ()):
        raise ReportError("a band has two ends: give low=... and high=... for the same series")
    fig = go.Figure()
    index = list(range(len(labels)))
    for name, values in series.items():
        ends = [("low", (low or {}).get(name)), ("high", (high or {}).get(name))]
        _as_many(("labels", labels), (name, values), *ends)
    for (name, values), colour in zip(series.items(), _colours(series), strict=True):
        if low and high and name in low:
            edge = [*high[name], *reversed(low[name])]
            red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
            band = {
                "mode": "lines",
                "fill": "toself",
                "fillcolor": f"rgba({red},{green},{blue},0.18)",
                "line_width": 0,
                "hoverinfo": "skip",
            }
            fig.add_trace(go.Scatter(x=[*index, *reversed(index)], y=edge, showlegend=False, **band))
        hover = [f"{_text(label)}: {v:+.2f}" for label, v in zip(labels, values, strict=True)]
        fig.add_trace(
            go.Scatter(
                x=index,
                y=list(values),
                name=name,
                mode="lines+markers",
                line_color=colour,
                marker_size=4,
                hovertext=hover,
                hoverinfo="text+name",
            )
        )
    step = max(1, len(labels) // 16)
    ticks = {"tickvals": index[::step], "ticktext": [_text(label) for label in labels[::step]], "tickangle": -45}
    fig.add_hline(y=0, line_color=NEUTRAL, line_dash="dash")
    fig.update_layout(xaxis={"title": {"text": label_title}, **ticks}, yaxis={"title": {"text": value_title}})
    return _finish(fig, alt)


def heatmap(
    values: Sequence[Sequence[float]],
    *,
    x: Sequence[str],
    y: Sequence[str],
    alt: str,
    x_title: str,
    y_title: str,
    unit: str,
    hover: Sequence[Sequence[str]] | None = None,
    diverging: bool = True,
    height: int = 460,
) -> go.Figure:
    """A grid of effects (diverging, centred on 0) or of attention (sequential, 0 to 1).

    `x` and `y` label columns and rows; tokens may repeat. The hover text names both, or is `hover`. A NaN is a hole.

    Raises:
        ReportError: another number of rows or columns than labels, or an infinite value.
    """
    import plotly.graph_objects as go

    rows = [list(map(float, row)) for row in values]
    _as_many(("y", y), ("rows", rows), ("hover", hover))
    for number, row in enumerate(rows):
        _as_many(("x", x), ("row", row), ("hover", hover and hover[number]))
    largest = max((abs(v) for row in rows for v in row if not math.isnan(v)), default=1.0) or 1.0
    if math.isinf(largest):
        raise ReportError("an infinite value in a heat map: every other cell would have no colour beside it")
    text = hover or [
        [f"{y_title} {_text(label)}, {x_title} {_text(column)}: {v:+.2f}" for column, v in zip(x, row, strict=True)]
        for label, row in zip(y, rows, strict=True)
    ]
    scale: dict[str, Any] = {"colorscale": DIVERGING, "zmin": -largest, "zmax": largest}
    if not diverging:
        scale = {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": max(1.0, largest)}
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 12}
    fig = go.Figure(go.Heatmap(z=rows, hovertext=text, hoverinfo="text", colorbar=bar, **scale))
    fig.update_layout(
        xaxis={"title": {"text": x_title}, **_ticks(x)},
        yaxis={"title": {"text": y_title}, "autorange": "reversed", **_ticks(y)},
    )
    return _finish(fig, alt, height)


def scatter(
    x: Sequence[float],
    y: Sequence[float],
    labels: Sequence[str],
    *,
    alt: str,
    x_title: str,
    y_title: str,
    groups: Sequence[str] | None = None,
    named: int = 8,
) -> go.Figure:
    """One point for each labelled thing, with the line on which both measures agree; those furthest out are named.

    Args:
        groups: the group of each point; groups differ in colour and mark, and stand in the legend.

    Raises:
        ReportError: lists of different lengths, or more groups than there are colours.
    """
    import plotly.graph_objects as go

    _as_many(("x", x), ("y", y), ("labels", labels), ("groups", groups))
    _colours(dict.fromkeys(groups or ()))

    far = sorted(range(len(labels)), key=lambda i: -max(abs(x[i]), abs(y[i])))[:named]
    text = [_text(label) if i in far else "" for i, label in enumerate(labels)]
    hover = [f"{_text(label)}: {a:+.2f}, {b:+.2f}" for label, a, b in zip(labels, x, y, strict=True)]
    edges = [min([*x, *y, 0.0]), max([*x, *y, 0.0])]
    dash = {"color": NEUTRAL, "dash": "dash"}
    fig = go.Figure(go.Scatter(x=edges, y=edges, mode="lines", line=dash, hoverinfo="skip", showlegend=False))
    for number, group in enumerate(dict.fromkeys(groups or [""])):
        own = [i for i in range(len(labels)) if groups is None or groups[i] == group]
        fig.add_trace(
            go.Scatter(
                x=[x[i] for i in own],
                y=[y[i] for i in own],
                name=group,
                mode="markers+text",
                text=[text[i] for i in own],
                textposition="top center",
                marker={"color": SERIES[number], "size": 7, "symbol": number},
                hovertext=[hover[i] for i in own],
                hoverinfo="text",
            )
        )
    fig.update_layout(showlegend=groups is not None, xaxis_title=x_title, yaxis_title=y_title)
    return _finish(fig, alt, height=440)


def points(
    labels: Sequence[str],
    series: Mapping[str, Sequence[Any]],
    *,
    alt: str,
    value_title: str,
    label_title: str = "",
) -> go.Figure:
    """Means with their intervals, several series side by side for each label. `series` holds `metrics.Interval`s.

    Raises:
        ReportError: a series of another length than the labels, or of no intervals; more series than colours.
    """
    import plotly.graph_objects as go

    for name, values in series.items():
        _as_many(("labels", labels), (name, values))
        _intervals(name, values)
    fig = go.Figure()
    for number, ((name, values), colour) in enumerate(zip(series.items(), _colours(series), strict=True)):
        shift = 0.7 * ((number + 0.5) / len(series) - 0.5)
        fig.add_trace(
            go.Scatter(
                x=[v.mean for v in values],
                y=[i + shift for i in range(len(values))],
                name=name,
                mode="markers",
                marker={"color": colour, "size": 9, "symbol": number},
                error_x=_whiskers(colour, *_ends(values)),
                hovertext=[f"{_text(label)}, {name}: {v}" for label, v in zip(labels, values, strict=True)],
                hoverinfo="text",
            )
        )
    fig.add_vline(x=0, line_color=NEUTRAL, line_dash="dash")
    rows: dict[str, Any] = {"tickvals": list(range(len(labels))), "ticktext": [_text(label) for label in labels]}
    rows |= {"title": label_title, "autorange": "reversed", "zeroline": False}
    fig.update_layout(xaxis_title=value_title, yaxis=rows)
    return _finish(fig, alt, height=max(320, 110 + 52 * len(labels)))


def fronts(
    series: Mapping[str, Sequence[tuple[float, Any]]], *, alt: str, value_title: str, label_title: str
) -> go.Figure:
    """Lines through points, each a number above 0 and a `metrics.Interval`; numbers are spaced by their doublings.

    Raises:
        ReportError: no point, a number that is not above 0, no intervals, or more series than colours.
    """
    import plotly.graph_objects as go

    for name, points in series.items():
        _intervals(name, [value for _, value in points])
    if not min((at for points in series.values() for at, _ in points), default=0) > 0:
        raise ReportError("doublings start above 0: give points, each with a number above 0")
    fig = go.Figure()
    for number, ((name, points), colour) in enumerate(zip(series.items(), _colours(series), strict=True)):
        found = [value for _, value in points]
        fig.add_trace(
            go.Scatter(
                x=[math.log2(at) for at, _ in points],
                y=[value.mean for value in found],
                name=name,
                mode="lines+markers",
                line_color=colour,
                marker={"color": colour, "size": 8, "symbol": number},
                error_y=_whiskers(colour, *_ends(found)),
                hovertext=[f"{_text(name)}, {at:.1f}: {value}" for at, value in points],
                hoverinfo="text",
            )
        )
    every = [at for points in series.values() for at, _ in points]
    inside = range(math.ceil(math.log2(min(every))), math.floor(math.log2(max(every))) + 1)
    ticks = {"tickvals": [*inside], "ticktext": [f"{2.0**power:g}" for power in inside]}
    fig.update_layout(xaxis={"title": {"text": label_title}, **ticks}, yaxis={"title": {"text": value_title}})
    return _finish(fig, alt, height=440)


def prompt_html(tokens: Sequence[str], positions: Mapping[str, int]) -> str:
    """A prompt's tokens as HTML, its named positions in their colours and with their names."""
    names = {at: name for name, at in positions.items() if name in POSITION_COLOURS}
    spans = []
    for index, token in enumerate(tokens):
        shown = html.escape(token).replace("\n", "\\n")
        name = names.get(index)
        if name is None:
            spans.append(f'<span class="tok">{shown}</span>')
        else:
            spans.append(f'<span class="tok tok-{name.lower()}">{shown}<sub>{name}</sub></span>')
    return f'<p class="lab-prompt">{"".join(spans)}</p>'


def _finish(fig: go.Figure, alt: str, height: int = 420) -> go.Figure:
    if not alt.strip():
        raise ReportError("a figure needs alt=..., one or two sentences that say what it shows")
    fig.update_layout(
        meta={"alt": alt},
        height=height,
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    )
    return fig


def _as_many(*lists: tuple[str, Any]) -> None:
    """Raises `ReportError` where lists that belong together differ in length; None is no list."""
    sizes = [(name, len(one)) for name, one in lists if one is not None]
    if len({n for _, n in sizes}) > 1:
        told = ", ".join(f"{n} in {name}" for name, n in sizes)
        raise ReportError(f"what belongs together differs in length: {told}; give one for each")


def _ends(intervals: Sequence[Any]) -> list[list[float]]:
    return [[getattr(one, part) for one in intervals] for part in ("mean", "low", "high")]


def _whiskers(colour: str, middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    up = [h - m for h, m in zip(high, middle, strict=True)]
    down = [m - lo for lo, m in zip(low, middle, strict=True)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": colour, "thickness": 1.5}


def _intervals(name: str, values: Sequence[Any]) -> None:
    for value in values:
        if not all(hasattr(value, part) for part in ("mean", "low", "high")):
            raise ReportError(f"{name}: a {type(value).__name__} is no interval, as metrics.bootstrap gives them")


def _ticks(labels: Sequence[str]) -> dict[str, Any]:
    step = max(1, len(labels) // 32)
    chosen = range(0, len(labels), step)
    return {"tickvals": list(chosen), "ticktext": [_text(labels[i]) for i in chosen]}


def _text(label: str) -> str:
    # Plotly reads a few HTML tags in texts, and tokens are the model's own: they must stay text.
    return html.escape(label).replace("\n", "\\n")


def _colours(names: Mapping[str, Any]) -> list[str]:
    # A named position keeps its colour through the whole book.
    near = [name for name in names if name in APART]
    free = iter(sorted(SERIES, key=lambda colour: sum(colour not in APART[name] for name in near)))
    if len(set(names) - set(POSITION_COLOURS)) > len(SERIES):
        raise ReportError(f"{len(names)} series, and {len(SERIES)} colours that can be told apart: draw fewer")
    return [POSITION_COLOURS[name] if name in POSITION_COLOURS else next(free) for name in names]


guard(globals(), ReportError)
