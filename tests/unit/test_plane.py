"""Pictures of a plane: what is drawn is where it should be, the text is escaped, and the markup is sound."""

from __future__ import annotations

import re

import pytest
import torch
from markup import Structure

from labbook.show import plane
from labcode.errors import ReportError


def test_arrows_and_points_lie_where_the_numbers_say_on_one_scale():
    far = plane.Picture("a", torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    near = plane.Picture("b", torch.tensor([[1.0, 0.0]]), torch.zeros(0, 2))
    page = plane.draw([far, near], alt="x", caption="y")
    assert Structure(page).tags.count("svg") == 2
    edge = 0.86 * plane.HALF
    assert f"M{edge:.1f} -0.0h0" in page
    assert f"M{edge / 2:.1f} -0.0h0" in page
    assert f"M0 0L0.0 {-edge / 2:.1f}" in page, "up is positive"
    assert "<circle" in page, "a direction of no length is a dot"


def test_text_is_escaped():
    one = plane.Picture("<b>&", torch.zeros(1, 2), torch.ones(1, 2), '"<i>')
    page = plane.draw([one], alt='"<script>', caption="<u>")
    assert not re.search("<(b|i|u|script)>", page)
    assert 'aria-label="&quot;&lt;script&gt;"' in page


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.tensor([[float("nan"), 0.0]]), torch.zeros(2)])
def test_what_is_no_plane_is_named(bad):
    with pytest.raises(ReportError):
        plane.draw([plane.Picture("a", bad, torch.ones(1, 2))], alt="", caption="")


def test_nothing_is_named_too():
    with pytest.raises(ReportError):
        plane.draw([], alt="", caption="")
