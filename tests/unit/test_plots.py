"""Figures: a text alternative is required, colours have one meaning, tokens stay text."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from labcode import metrics, plots
from labcode.errors import ReportError


def grid(alt="a grid", **more):
    return plots.heatmap(
        [[1.0, -3.0], [0.0, 2.0]],
        x=[" a", " a"],
        y=["0", "1"],
        x_title="token",
        y_title="layer",
        unit="u",
        alt=alt,
        **more,
    )


def test_no_figure_without_a_text_alternative():
    for make in (
        lambda: grid(alt=" "),
        lambda: plots.bars(["a"], [1.0], alt="", value_title="v"),
        lambda: plots.histogram({"a": [1.0]}, alt="", value_title="v", bin_width=1),
        lambda: plots.lines(["a"], {"s": [1.0]}, alt="", value_title="v", label_title="l"),
    ):
        with pytest.raises(ReportError, match="alt="):
            make()
    assert grid().layout.meta["alt"] == "a grid"


def test_effects_are_centred_on_zero_and_attention_is_not():
    effects = grid().data[0]
    assert (effects.zmin, effects.zmax) == (-3, 3)
    attention = grid(diverging=False).data[0]
    assert attention.zmin == 0


def test_repeated_tokens_keep_their_columns():
    fig = grid()
    assert list(fig.layout.xaxis.tickvals) == [0, 1]
    assert list(fig.layout.xaxis.ticktext) == [" a", " a"]


def test_bars_are_coloured_by_sign_and_carry_their_interval():
    bar = plots.bars(["a", "b"], [1.0, -2.0], alt="x", value_title="v", low=[0.5, -3.0], high=[2.0, -1.5]).data[0]
    assert list(bar.marker.color) == [plots.TOWARDS, plots.AGAINST]
    assert list(bar.error_y.array) == [1.0, 0.5]
    assert list(bar.error_y.arrayminus) == [0.5, 1.0]
    assert "[0.50, 2.00]" in bar.hovertext[0]


def test_fronts_space_numbers_by_their_doublings_and_carry_intervals():
    half, most = metrics.Interval(0.5, 0.4, 0.7, 8), metrics.Interval(0.8, 0.7, 0.9, 8)
    fig = plots.fronts(
        {"a": [(16, half), (64, most)], "b": [(30, half), (90, half)]}, alt="x", value_title="v", label_title="l"
    )
    assert list(fig.data[0].x) == [4, 6]
    assert list(fig.data[0].error_y.array) == pytest.approx([0.2, 0.1])
    assert list(fig.data[0].error_y.arrayminus) == pytest.approx([0.1, 0.1])
    assert list(fig.layout.xaxis.ticktext) == ["16", "32", "64"], "no tick outside of the points"
    assert len({trace.line.color for trace in fig.data}) == len({trace.marker.symbol for trace in fig.data}) == 2


def test_text_that_a_model_wrote_is_escaped():
    evil = "<script>alert(1)</script>"
    page = plots.prompt_html([evil, " John"], {"S1": 1, "S1+1": 0})
    assert "<script>" not in page
    assert 'class="tok tok-s1"' in page
    for fig in (
        plots.heatmap([[1.0]], x=[evil], y=[evil], x_title="t", y_title="l", unit="u", alt="x"),
        plots.bars([evil], [1.0], alt="x", value_title="v"),
        plots.lines([evil], {"s": [1.0]}, alt="x", value_title="v", label_title="l"),
    ):
        assert "<script>" not in str(fig.to_dict())


def test_series_do_not_borrow_the_colours_of_effects():
    assert not {plots.TOWARDS, plots.AGAINST, *plots.POSITION_COLOURS.values()} & set(plots.SERIES)


def test_a_first_figure_compiles_no_grammar_of_web_addresses():
    found = "import sys; from labcode import plots; import plotly.io._renderers; print('lark' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


# What the eye makes of linear red, green and blue: all of it, and without one kind of cone (Machado et al. 2009).
EYES = (
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
)


def lab(colour, eye):
    """A colour in CIELAB, as an eye sees it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    r, g, b = (min(max(sum(w * v for w, v in zip(row, parts, strict=True)), 0), 1) for row in eye)
    xyz = (0.4339 * r + 0.3762 * g + 0.1899 * b, 0.2126 * r + 0.7152 * g + 0.0722 * b,
           0.0177 * r + 0.1095 * g + 0.8730 * b)  # fmt: skip
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_a_series_beside_a_position_has_a_colour_apart_from_it_for_every_eye():
    for names in (["IO"], ["S1"], ["S2"], ["END"], ["IO", "S1"], ["S1", "S2"], list(plots.POSITION_COLOURS)):
        *known, other = plots._colours([*names, "wire"])
        for colour in known:
            assert min(math.dist(lab(colour, eye), lab(other, eye)) for eye in EYES) > 20, (names, other)
    assert plots._colours([*"abcdef"]) == [*plots.SERIES]
