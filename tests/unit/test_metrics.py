"""Metrics against the toy's hand-worked numbers and against the textbook."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

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


def test_a_model_that_does_not_do_the_task_has_shares_of_noise():
    """Its runs differ from prompt to prompt, and on average they do not."""
    clean, corrupted = torch.tensor([0.3, -0.2]), torch.tensor([-0.2, 0.2998])
    shares = metrics.restoration(clean, clean, corrupted)
    torch.testing.assert_close(shares, torch.tensor([5000.0, -4998.0]), rtol=1e-2, atol=0)
    assert metrics.restoration(clean, clean, clean.flip(0)).isfinite().all()  # no gap at all


@pytest.mark.parametrize("n_groups", [6, 8, 12, 24, 60])  # the numbers of groups that the chapters use
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_the_interval_covers_as_often_as_it_says(n_groups, shape):
    rng = np.random.default_rng(n_groups)
    size = (2000, n_groups)
    # A pair of exponential values has a gamma distribution with shape 2: a skewness of 1.4.
    samples = rng.normal(1.0, 2.0, size) if shape == "normal" else rng.gamma(2.0, 0.5, size)
    found = metrics.bootstrap_cells(torch.from_numpy(samples), n_resamples=1000)
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in found])
    assert 0.93 - 0.006 <= covered <= 0.97  # 0.006 is one standard error of this simulation


ONE_SPIKE = [1.6e-12, 3.1e-11, 5.1e-13, 4.3e-13, 8.3e-11, 4.8e-13, 1.4e-12, 1.2e-12, 4.4e-13, 5.9e-11, 2.2e-4, 1.0e-12]
"""The induction score of SmolLM2's head 16.0 on twelve sequences; one resample in three is without its spike."""


def test_no_interval_of_a_share_leaves_0_to_1():
    rng = np.random.default_rng(10)
    skewed = np.concatenate([rng.beta(0.05, 1.0, (300, 12)), rng.beta(1.0, 0.05, (300, 12)), [ONE_SPIKE]])
    table = torch.from_numpy(skewed)
    groups = torch.arange(4).repeat_interleave(3)
    for found in (metrics.bootstrap_cells(table, span=(0, 1)), metrics.bootstrap_cells(table, groups, (0, 1))):
        assert all(0 <= one.low <= one.mean <= one.high <= 1 for one in found)
    plain, most = metrics.bootstrap(table[-1]), metrics.bounded(table[-1:])[0]
    assert plain.high > 90
    assert metrics.bootstrap(table[-1], span=(0, 1)).high == most.high < 0.3


SKEWED_SHARES = {(0.1, 5): 0.90, (0.3, 3): 0.93, (0.5, 5): 0.93, (2, 8): 0.93, (9, 1): 0.93, (80, 20): 0.93}
"""Of a beta distribution of twelve shares: how often the interval of its mean covers it, at the least."""


@pytest.mark.parametrize("shape", SKEWED_SHARES)
def test_the_interval_of_a_skewed_share_covers_as_often_as_it_says(shape):
    a, b = shape
    table = torch.from_numpy(np.random.default_rng(12).beta(a, b, (2000, 12)))
    for found, least in (
        (metrics.bootstrap_cells(table, span=(0, 1), n_resamples=1000), SKEWED_SHARES[shape]),
        (metrics.bounded(table, n_resamples=1000), 0.95),
    ):
        assert np.mean([one.low <= a / (a + b) <= one.high for one in found]) >= least - 0.006


@pytest.mark.parametrize("passed", [0, 3, 12])
def test_of_zeros_and_ones_the_bounded_interval_is_clopper_and_pearsons(passed):
    values = (torch.arange(12) < passed).double()
    for groups, copies in ((None, 1), (torch.arange(12).repeat_interleave(2), 2)):
        (found,) = metrics.bounded(values.repeat_interleave(copies)[None], groups, n_resamples=40_000)
        exact = stats.binomtest(passed, 12).proportion_ci()
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.01)
    (turned,) = metrics.bounded(-values[None], span=(-1, 0), n_resamples=40_000)
    assert (turned.low, turned.high) == pytest.approx((-exact.high, -exact.low), abs=0.01)


def test_percentiles_of_means_would_cover_too_little():
    rng = np.random.default_rng(0)
    samples = rng.gamma(2.0, 0.5, (2000, 6))
    draws = rng.multinomial(6, np.full(6, 1 / 6), size=1000)
    low, high = np.quantile(samples @ draws.T / 6, [0.025, 0.975], axis=-1)
    assert np.mean((low <= 1) & (high >= 1)) < 0.86  # why the interval is studentised


def test_few_groups_give_students_interval():
    values = np.random.default_rng(5).normal(0, 1, 4)
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    found = metrics.bootstrap(torch.from_numpy(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_standard_error_is_the_textbooks():
    sample = np.random.default_rng(6).gamma(2.0, 1.0, (3, 15))
    mean, error = metrics._ratio(sample, np.ones(15), np.ones((1, 15)))
    np.testing.assert_allclose(mean[:, 0], sample.mean(-1))
    np.testing.assert_allclose(error[:, 0], stats.sem(sample, axis=-1))


def test_a_screen_of_nothing_chooses_a_cell_in_one_table_of_twenty():
    rng = np.random.default_rng(7)
    alarms, single = 0, 0
    for trial in range(300):
        noise = rng.normal(0, 1, (60, 1)) if trial % 2 else 0  # half of the tables are correlated over cells
        table = torch.from_numpy(rng.normal(0, 1, (60, 12)) + np.tile(noise, 12) * rng.normal(0, 1, 12))
        found = metrics.screen(table, n_flips=400)
        alarms += bool(found.chosen)
        single += int((np.abs(found.t) > stats.t.ppf(0.975, 11)).sum())
    assert alarms <= 29  # 15 expected, 3.8 standard deviations
    assert single > 500  # one by one, three cells of each table would have passed


def test_a_screen_finds_what_is_there_and_flips_prompts_of_a_group_together():
    table = torch.from_numpy(np.random.default_rng(8).normal(0, 1, (50, 16)))
    table[[7, 31]] += torch.tensor([[3.0], [-3.0]])
    groups = torch.arange(16).repeat_interleave(2)
    found = metrics.screen(table.repeat_interleave(2, dim=1), groups)
    assert {7, 31} <= set(found.chosen)
    assert len(found.chosen) <= 3
    assert found.n_groups == 16
    once = metrics.screen(table)
    assert (found.threshold, found.p[7]) == pytest.approx((once.threshold, once.p[7]))
    t, _ = stats.ttest_1samp(table.numpy(), 0, axis=1)
    np.testing.assert_allclose(found.t, t)


def test_every_flip_of_few_groups_gives_the_exact_threshold():
    table = torch.from_numpy(np.random.default_rng(9).normal(0.5, 1, (5, 7)))
    largest = []
    for signs in itertools.product((-1, 1), repeat=7):
        t, _ = stats.ttest_1samp(table.numpy() * np.array(signs), 0, axis=1)
        largest.append(np.abs(t).max())
    found = metrics.screen(table, n_flips=20_000)
    assert found.threshold == pytest.approx(np.quantile(largest, 0.95), rel=0.03)
    own = np.abs(found.t)
    np.testing.assert_allclose(found.p, [(np.array(largest) >= one - 1e-9).mean() for one in own], atol=0.02)


@pytest.mark.parametrize("n_groups", [1, 2, 5])
def test_a_screen_of_few_groups_chooses_nothing(n_groups):
    table = 10 + torch.from_numpy(np.random.default_rng(n_groups).normal(0, 0.1, (4, n_groups)))
    found = metrics.screen(table)
    assert found.chosen == []
    assert found.p.min() > 0.05


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        (torch.ones(3, 0), None, "no values"),
        (torch.full((2, 8), float("nan")), None, "NaN"),
        (torch.ones(2, 8), torch.arange(7), r"7 entries along .batch., and another argument has 8"),
    ],
)
def test_a_screen_of_too_little(values, groups, message):
    with pytest.raises(MetricError, match=message):
        metrics.screen(values, groups)


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
    together, alone = metrics.bootstrap_cells(table)[1], metrics.bootstrap(table[1])
    assert (together.mean, together.low, together.high) == pytest.approx((alone.mean, alone.low, alone.high))


def test_a_part_that_is_the_whole_has_no_width():
    whole = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 1
    (found,) = metrics.bootstrap_ratios(whole[None], whole)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))


def test_a_ratio_covers_the_true_one_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        whole = rng.normal(4.0, 1.0, 60)
        part = 0.3 * whole + rng.normal(0.0, 0.5, 60)
        pair = torch.from_numpy(part)[None], torch.from_numpy(whole)
        (found,) = metrics.bootstrap_ratios(*pair, n_resamples=400)
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
        (torch.ones(3), torch.arange(2), r"2 entries along .batch., and another argument has 3"),
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
    with pytest.raises(MetricError, match=r"\[batch d_vocab\]"):
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


def test_tossed_groups_are_the_table_with_other_signs():
    table = torch.from_numpy(np.random.default_rng(9).normal(0.3, 1, (20, 24)))
    groups = torch.arange(12).repeat_interleave(2)
    signs = torch.randint(0, 2, (300, 12), generator=torch.Generator().manual_seed(1)) * 2 - 1
    means, chosen = metrics.tossed(table, groups, signs)
    for toss in range(0, 300, 60):
        turned = table * signs[toss][groups]
        torch.testing.assert_close(means[toss], turned.mean(-1).float())
    assert 0.01 <= chosen.any(-1).float().mean() <= 0.05  # in one toss of twenty some cell passes, by construction


def test_a_mean_that_every_group_agrees_on_is_chosen():
    table = torch.zeros(3, 12)
    table[1] = 2.0
    assert metrics.screen(table).chosen == [1]
