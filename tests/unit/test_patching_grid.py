"""What a grid says about its cells, on numbers made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from labcode.errors import MetricError
from labcode.patching import Axis, Grid

AXES = (Axis("layer", ("4", "5")), Axis("head", ("0", "1", "2")))


def grid(direction="denoising", axes=AXES, **changes):
    """Clean runs are worth 4 and 2, corrupted ones -2 and -1: a mean gap of 4.5."""
    clean, corrupted = torch.tensor([4.0, 2.0]), torch.tensor([-2.0, -1.0])
    base = corrupted if direction == "denoising" else clean
    values = base.repeat(6, 1)  # [cell batch]
    values[1] += torch.tensor([4.5, 0.0])
    values[2] += torch.tensor([-0.9, 0.45])
    values[5] += torch.tensor([-9.0, -9.0])
    fields = dict(draws=torch.tensor([0, 1]), engine="suffix", clean=clean, corrupted=corrupted, direction=direction)
    return Grid(
        values=values.unflatten(0, tuple(len(axis.labels) for axis in axes)), axes=axes, **{**fields, **changes}
    )


def test_denoising_effect_is_restoration_in_units_of_the_mean_gap():
    some = grid()
    assert torch.equal(some.effect(), some.restoration())
    torch.testing.assert_close(some.mean(), torch.tensor([[0, 0.5, -0.05], [0, 0, -2]]))
    torch.testing.assert_close(some.effect()[0, 1], torch.tensor([1.0, 0.0]))


def test_noising_effect_counts_the_way_down_from_the_clean_run():
    some = grid("noising")
    torch.testing.assert_close(some.mean(), torch.tensor([[0, -0.5, 0.05], [0, 0, 2]]))
    torch.testing.assert_close(some.restoration()[0, 0].mean(), torch.tensor(1.0))


def test_sign_stability_is_the_share_that_agrees_with_the_mean():
    assert grid().sign_stability().tolist() == [[1, 0.5, 0.5], [1, 1, 1]]


def test_intervals_lie_around_the_means_and_take_draws_together():
    some = grid()
    low, high = some.bounds()
    assert (low[0, 1], high[0, 1]) == (0, 0.75)  # 0 / 3 and 4.5 / 6: a prompt is drawn with its own gap
    assert bool((low <= some.mean() + 1e-6).all())
    assert bool((some.mean() <= high + 1e-6).all())
    one_draw = grid(draws=torch.tensor([3, 3])).bounds()
    torch.testing.assert_close(one_draw[0], one_draw[1])


def test_a_cell_that_restores_every_prompt_has_no_width():
    whole = replace(grid(), values=torch.tensor([4.0, 2.0]).expand(2, 3, 2))
    assert {(cell.mean, cell.low, cell.high) for cell in whole.intervals()} == {(1, 1, 1)}


def test_cells_are_named_as_the_field_names_them():
    assert grid().top(2) == [("5.2", pytest.approx(-2)), ("4.1", pytest.approx(0.5))]
    by_place = grid(axes=(Axis("layer", ("4", "5", "6")), Axis("position", ("S2", "END"))))
    assert [label for label, _ in by_place.top(2)] == ["6 at END", "4 at END"]


def test_the_frame_has_one_line_for_each_cell():
    frame = grid().to_frame()
    assert list(frame.columns) == ["layer", "head", "mean", "low", "high", "sign_stability"]
    line = frame[(frame.layer == "5") & (frame["head"] == "2")].iloc[0]
    assert (line["mean"], line.sign_stability) == (pytest.approx(-2), 1)
    assert len(frame) == 6


def test_runs_that_are_worth_the_same_have_no_effect_to_measure():
    with pytest.raises(MetricError, match="corruption changes the answer"):
        grid(corrupted=torch.tensor([4.0, 2.0])).mean()
