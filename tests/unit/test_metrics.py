"""Metrics against the toy's hand-worked numbers and against the textbook."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from labcode import metrics, prompts
from labcode.errors import MetricError


def test_the_toy_answers_as_worked_out_on_paper(toy):
    pop = prompts.population(toy, 12)
    logits = metrics.end_logits(toy, pop, batch_size=5)
    torch.testing.assert_close(metrics.logit_difference(logits, pop), torch.full((12,), 4.0), atol=1e-4, rtol=0)
    assert metrics.prefers_io(logits, pop).tolist() == [1.0] * 12
    vocabulary = logits.shape[-1]
    share = np.exp(4) / (np.exp(4) + vocabulary - 1)  # every other logit is 0
    torch.testing.assert_close(metrics.p_io(logits, pop), torch.full((12,), float(share)), atol=1e-4, rtol=0)


def test_swapping_the_subject_turns_the_sign(toy):
    pop = prompts.corrupt(toy, prompts.population(toy, 6), "swap")
    torch.testing.assert_close(
        metrics.logit_difference(metrics.end_logits(toy, pop), pop), torch.full((6,), -4.0), atol=1e-4, rtol=0
    )


def test_the_embedded_model_does_the_canonical_prompt(smollm2):
    one = prompts.canonical(smollm2)
    logits = metrics.end_logits(smollm2, one)
    assert prompts.quoted(smollm2, logits[0].argmax()) == "“ Mary”"
    assert float(metrics.logit_difference(logits, one)[0]) == pytest.approx(5.576, abs=0.02)


def test_batches_do_not_matter(smollm2):
    pop = prompts.population(smollm2, 6)
    torch.testing.assert_close(
        metrics.end_logits(smollm2, pop, batch_size=1),
        metrics.end_logits(smollm2, pop, batch_size=6),
        atol=2e-4,
        rtol=0,
    )


def test_nan_logits_name_the_prompt(toy):
    pop = prompts.population(toy, 4)
    logits = metrics.end_logits(toy, pop)
    logits[2, pop.io_ids[2]] = float("nan")
    with pytest.raises(MetricError, match=pop.prompts[2].text[:20]):
        metrics.logit_difference(logits, pop)


def test_a_model_with_nan_weights_is_refused(tiny_gpt2):
    pop = prompts.canonical(tiny_gpt2.bridge)

    def spoil(value, hook):
        return value * float("nan")

    with (
        tiny_gpt2.bridge.hooks(fwd_hooks=[("blocks.0.hook_attn_out", spoil)]),
        pytest.raises(MetricError, match="NaN or infinite logits on 1 of 1"),
    ):
        metrics.end_logits(tiny_gpt2.bridge, pop)


def test_restoration_is_0_at_corrupted_and_1_at_clean_and_linear():
    clean, corrupted = torch.tensor([3.0, 5.0]), torch.tensor([-3.0, -1.0])
    assert metrics.restoration(clean, clean, corrupted).mean() == 1
    assert metrics.restoration(corrupted, clean, corrupted).mean() == 0
    grid = torch.stack([clean, corrupted, (clean + corrupted) / 2])
    torch.testing.assert_close(metrics.restoration(grid, clean, corrupted).mean(-1), torch.tensor([1.0, 0.0, 0.5]))


def test_restoration_without_a_gap():
    same = torch.ones(4)
    with pytest.raises(MetricError, match="divides by this gap"):
        metrics.restoration(same, same, same)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        sample = torch.from_numpy(rng.normal(1.0, 2.0, 60))
        interval = metrics.bootstrap(sample, n_resamples=400, seed=trial)
        hits += interval.low <= 1.0 <= interval.high
    assert 176 <= hits <= 199  # 95 % of 200, a little less for the percentile method, 3 sigma wide


def test_the_interval_has_the_width_of_the_standard_error():
    sample = torch.from_numpy(np.random.default_rng(1).normal(0, 1, 400))
    interval = metrics.bootstrap(sample)
    assert (interval.high - interval.low) == pytest.approx(2 * 1.96 * float(sample.std()) / 20, rel=0.1)
    assert interval.mean == pytest.approx(float(sample.mean()))


def test_groups_that_agree_count_once():
    values = torch.from_numpy(np.random.default_rng(2).normal(0, 1, 100))
    twice = values.repeat_interleave(2)
    groups = torch.arange(100).repeat_interleave(2)
    wide, narrow = metrics.bootstrap(twice, groups), metrics.bootstrap(twice)
    once = metrics.bootstrap(values)
    assert wide.high - wide.low == pytest.approx(once.high - once.low, rel=0.1)
    assert narrow.high - narrow.low < 0.8 * (wide.high - wide.low)


def test_cells_are_the_rows():
    table = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert metrics.bootstrap_cells(table)[1] == metrics.bootstrap(table[1])


def test_a_part_that_is_the_whole_has_no_width():
    whole = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 1
    (found,) = metrics.bootstrap_ratios(whole[None], whole)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))


def test_a_ratio_covers_the_true_one_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        whole = rng.normal(4.0, 1.0, 60)
        part = 0.3 * whole + rng.normal(0.0, 0.5, 60)
        pair = torch.from_numpy(part)[None], torch.from_numpy(whole)
        (found,) = metrics.bootstrap_ratios(*pair, n_resamples=400, seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 176 <= hits <= 199


def test_a_share_of_nothing_is_an_error():
    with pytest.raises(MetricError, match="a share of nothing"):
        metrics.bootstrap_ratios(torch.ones(1, 2), torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        (torch.ones(0), None, "empty"),
        (torch.tensor([1.0, float("nan")]), None, "NaN"),
        (torch.ones(3), torch.arange(2), "2 groups for 3 values"),
    ],
)
def test_intervals_of_nothing(values, groups, message):
    with pytest.raises(MetricError, match=message):
        metrics.bootstrap(values, groups)


def test_logits_of_another_population(toy):
    pop = prompts.population(toy, 4)
    logits = metrics.end_logits(toy, pop)
    with pytest.raises(MetricError, match="for 2 prompts"):
        metrics.logit_difference(logits, pop.subset([0, 1]))
    with pytest.raises(MetricError, match=r"\[batch, d_vocab\]"):
        metrics.logit_difference(logits[None], replace(pop))


@pytest.mark.parametrize(("passed", "n"), [(0, 120), (3, 120), (60, 120), (5, 5)])
def test_the_interval_of_a_share_is_that_of_wilsons_formula(passed, n):
    found, z, p = metrics.share(passed, n), 1.959964, passed / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (found.mean, found.n) == (p, n)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    for too_many, none in ((0, 0), (3, 2)):
        with pytest.raises(MetricError, match="share"):
            metrics.share(too_many, none)
