"""The pictures of figures: marks where the numbers are, text as text, and no script."""

from __future__ import annotations

import itertools
import json
import re
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest

from labbook._ext import figures, still
from labcode import metrics, plots

TEXT = "{http://www.w3.org/2000/svg}text"


def picture(fig: go.Figure, width: int = still.WIDE) -> ElementTree.Element:
    made = still.still(json.loads(fig.to_json()), width)
    return ElementTree.fromstring(made.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))


def marks(root: ElementTree.Element, kind: str) -> dict[str, ElementTree.Element]:
    """The marks of a kind by the text of their title."""
    found = root.iter(f"{{http://www.w3.org/2000/svg}}{kind}")
    return {
        title.text or "": node
        for node in found
        if (title := node.find("{http://www.w3.org/2000/svg}title")) is not None
    }


def interval(mean: float) -> metrics.Interval:
    return metrics.Interval(mean, mean - 1, mean + 1, 9)


def test_bars_are_as_long_as_their_values():
    root = picture(plots.bars(["a", "b"], [1.0, -2.0], alt="Two.", value_title="v", low=[0.5, -3], high=[1.5, -1]))
    up, down = (next(node for title, node in marks(root, "rect").items() if title.startswith(name)) for name in "ab")
    assert float(down.get("height")) == pytest.approx(2 * float(up.get("height")), abs=0.2)
    assert float(up.get("y")) + float(up.get("height")) == pytest.approx(float(down.get("y")), abs=0.2)
    assert (up.get("fill"), down.get("fill")) == (plots.TOWARDS, plots.AGAINST)
    whiskers = [
        node.get("d") for node in root.iter("{http://www.w3.org/2000/svg}path") if node.get("class") == "lab-whisker"
    ]
    assert len(whiskers) == 2


def test_a_heat_map_fades_into_the_ground_at_zero_and_leaves_gaps_open():
    fig = plots.heatmap(
        [[0.0, 2.0], [-1.0, float("nan")]], x=["a", "b"], y=["c", "d"], alt="Four.", x_title="x", y_title="y", unit="u"
    )
    cells = marks(picture(fig), "rect")
    zero, top, low = cells["y c, x a: +0.00"], cells["y c, x b: +2.00"], cells["y d, x a: −1.00"]
    assert float(zero.get("fill-opacity")) == 0
    assert top.get("fill-opacity") is None
    assert float(low.get("fill-opacity")) == 0.5
    assert (top.get("fill").upper(), low.get("fill").upper()) == (plots.TOWARDS, plots.AGAINST)
    assert cells["y d, x b: +nan"].get("class") == "lab-missing"


def test_points_lie_on_one_scale_with_their_intervals():
    fig = plots.points(
        ["a", "b"],
        {"one": [interval(0.0), interval(4.0)], "two": [interval(2.0), interval(2.0)]},
        alt="Four.",
        value_title="v",
    )
    for width in (still.WIDE, still.NARROW):
        root = picture(fig, width)
        at = {}
        for title, node in marks(root, "path").items():
            numbers = list(map(float, re.findall(r"-?[\d.]+", node.get("d"))))
            at[title.partition(":")[0]] = numbers[0]
        assert at["b, one"] - at["a, two"] == pytest.approx(
            at["a, two"] - at["a, one"], abs=12
        )  # markers of two shapes
        assert [node.text for node in root.iter(TEXT)].count("one") == 1


def test_lines_are_told_apart_by_their_marks_and_in_the_legend():
    fig = plots.lines(["1", "2"], {"one": [1, 2], "two": [3, 4]}, alt="Two.", value_title="v", label_title="l")
    fills = {node.get("fill") for node in picture(fig).iter() if node.get("fill") in plots.SERIES}
    assert fills == set(plots.SERIES[:2])
    for colour in plots.SERIES[:2]:
        assert sum(node.get("fill") == colour for node in picture(fig).iter()) == 3, "two marks and the legend"


def test_counts_of_a_histogram_add_up():
    fig = plots.histogram({"g": [0.1, 0.2, 0.7, 0.71, 0.72], "h": [0.15]}, alt="Six.", value_title="v", bin_width=0.5)
    counted = [int(title.rpartition(" ")[2]) for title in marks(picture(fig), "rect")]
    assert sorted(counted) == [1, 2, 3]


def test_names_that_leave_no_room_on_a_phone_stand_above_their_rows():
    labels = ["a rather long name of a row that needs room", "another one of about the same length"]
    fig = plots.points(labels, {"s": [interval(0.0), interval(1.0)]}, alt="Two.", value_title="v")
    wide, narrow = picture(fig), picture(fig, still.NARROW)
    ends = [[node for node in root.iter(TEXT) if node.text == labels[0]] for root in (wide, narrow)]
    assert ends[0][0].get("text-anchor") == "end"
    assert ends[1][0].get("text-anchor") is None


def test_no_word_of_a_title_or_a_tilted_label_is_lost():
    labels = [f"{number} <|a long token|>" for number in range(16)]
    title = "worth (logit difference, in nats, over all prompts)"
    fig = plots.bars(labels, [float(n) for n in range(16)], alt="Bars.", value_title=title).update_layout(height=280)
    root = picture(fig, still.NARROW)
    said = [node.text for node in root.iter(TEXT) if node.get("class") == "lab-axis-title"]
    assert " ".join(said) == title
    assert len(said) > 1
    first = next(node for node in root.iter(TEXT) if node.text == labels[0])
    place = re.fullmatch(r"translate\(([\d.]+) [\d.]+\) rotate\(-45\)", first.get("transform"))
    assert float(place[1]) > 0.7 * still.LETTER * len(labels[0])


@pytest.mark.parametrize("value", ["2.5", "0.25"])
def test_ticks_are_written_with_the_digits_that_they_need(value):
    step = float(value)
    fig = plots.points(["a"], {"s": [metrics.Interval(2 * step, 0.0, 4 * step, 9)]}, alt="One.", value_title="v")
    assert value in [node.text for node in picture(fig).iter(TEXT)]


def test_markup_in_labels_stays_text():
    fig = plots.bars(["<script>alert(1)</script>", "&amp;"], [1.0, 2.0], alt="Two.", value_title="<b>v</b>")
    made = still.both(json.loads(fig.to_json()))
    assert "<script" not in made
    assert "<b>" not in made


def test_a_figure_that_is_more_than_we_draw_is_told_in_words():
    fig = go.Figure(go.Pie(labels=["a"], values=[1]))
    fig.update_layout(meta={"alt": "A <pie>."})
    figure = json.loads(fig.to_json())
    with pytest.raises(still.Unknown):
        still.both(figure)
    assert '<p class="lab-alt">A &lt;pie&gt;.</p>' in figures.element(figure)
    with pytest.raises(still.Unknown):
        still.both(json.loads(go.Figure(go.Scatter(x=["2020-01-01"], y=[1])).to_json()))


def test_no_name_of_a_point_lies_on_another():
    near = [0.90, 0.905, 0.91, 0.90, 0.2]
    labels = ["19.2", "19.4", "16.0", "11.1", "5.6"]
    fig = plots.scatter(near, near, labels, groups=list("ababa"), alt="Five.", x_title="v", y_title="w")
    for width in (still.WIDE, still.NARROW):
        named = [node for node in picture(fig, width).iter(TEXT) if node.text in labels]
        assert len(named) >= 4, "one without room is left out"
        for one, other in itertools.combinations(named, 2):
            across, down = (abs(float(one.get(key)) - float(other.get(key))) for key in "xy")
            assert across >= 4 * still.LETTER or down >= 12, (one.text, other.text)


@pytest.mark.parametrize("length", range(10, 130, 3))
@pytest.mark.parametrize("width", [still.WIDE, still.NARROW])
def test_the_title_of_an_axis_lies_below_its_ticks(length, width):
    title = ("of it " * 30)[:length]
    rows = ["strongest tenth", "weaker half"]
    fig = plots.points(rows, {"s": [interval(0.1), interval(0.9)]}, alt="Two.", value_title=title)
    texts = [node for node in picture(fig, width).iter(TEXT) if node.get("y")]
    titles = [float(node.get("y")) for node in texts if node.get("class") == "lab-axis-title"]
    ticks = [float(node.get("y")) for node in texts if re.fullmatch(r"[−\d.]+", node.text)]
    assert min(titles) - max(ticks) >= 13
