"""What a run is worth: logit difference, restoration, P(IO), accuracy, and intervals over prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from labcode.errors import MetricError
from labcode.forward import at_end_only
from labcode.inputs import guard
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population


def end_logits(model: TransformerBridge, pop: Population, batch_size: int = 16) -> Float[Tensor, "batch d_vocab"]:
    """The model's logits at END of each prompt, run in batches of `batch_size`.

    Raises:
        MetricError: a logit is NaN or infinite.
    """
    rows = []
    pieces = list(pop.chunks(batch_size))
    with torch.no_grad():
        for piece in progress(pieces, "forward passes"):
            with at_end_only(model, piece.end):
                logits = model(piece.tokens.to(model.cfg.device), return_type="logits")  # [batch 1 d_vocab]
            rows.append(logits[:, 0].float())
    logits = torch.cat(rows)
    bad = ~torch.isfinite(logits).all(dim=-1)
    if bad.any():
        first = pop.prompts[int(bad.nonzero()[0])].text
        raise MetricError(
            f"NaN or infinite logits on {int(bad.sum())} of {len(pop)} prompts, first on {first!r}: check the model's "
            "weights, and the device if it is an accelerator (device='cpu' is the reference)",
            see="nan-in-the-run",
        )
    return logits


def logit_difference(logits: Float[Tensor, "batch d_vocab"], pop: Population) -> Float[Tensor, " batch"]:
    """logit(IO) - logit(S) at END of each prompt: positive where the right name is ahead (Wang et al. 2022, section 2).

    Units: nats; a difference of 1 makes IO e times as likely as S.

    Raises:
        MetricError: rows and prompts differ in number, or a logit that is needed is NaN.
    """
    rows = torch.arange(len(pop))
    difference = logits[rows, pop.io_ids] - logits[rows, pop.s_ids]
    if torch.isnan(difference).any():
        row = int(torch.isnan(difference).nonzero()[0])
        raise MetricError(
            f"the logit difference is NaN on {pop.prompts[row].text!r}: check the model's weights", see="nan-in-the-run"
        )
    return difference


def p_io(logits: Float[Tensor, "batch d_vocab"], pop: Population) -> Float[Tensor, " batch"]:
    """The probability that the model gives to IO at END, over the whole vocabulary."""
    return logits.softmax(dim=-1)[torch.arange(len(pop)), pop.io_ids]


def prefers_io(logits: Float[Tensor, "batch d_vocab"], pop: Population) -> Float[Tensor, " batch"]:
    """1 where IO is ranked above S at END, else 0; its mean is the accuracy."""
    return (logit_difference(logits, pop) > 0).float()


NO_GAP = 1e-3  # nats
SAME = 1e-6  # nats: rounding


def restoration(
    patched: Float[Tensor, "*cells batch"], clean: Float[Tensor, " batch"], corrupted: Float[Tensor, " batch"]
) -> Float[Tensor, "*cells batch"]:
    """How far each patched run moved from the corrupted value (0) to the clean one (1).

    The unit is the *mean* gap between clean and corrupted over the prompts, not each prompt's own: a prompt with a
    small gap would otherwise rule the mean. So the mean over prompts is the usual normalised score, and it is linear
    in each prompt's value.

    Where the runs differ and their mean gap is below `NO_GAP`, the model does not do the task. The shares are given all
    the same: they are noise, and their intervals are as wide as noise.

    Raises:
        MetricError: no prompt's two runs differ: there is nothing to restore; NaN or infinite values.
    """
    if not all(bool(x.isfinite().all()) for x in (patched, clean, corrupted)):
        raise MetricError("NaN or infinite values among the runs: look for them in the run that made them")
    each = clean - corrupted
    gap = each.mean()
    if not gap.abs() > NO_GAP:
        if not each.abs().max() > SAME:
            raise MetricError(
                f"clean and corrupted runs differ by {float(gap):.1g} in logit difference on average: restoration "
                "divides by this gap. Check that the corruption changes the answer.",
                see="no-gap",
            )
        gap = torch.copysign(gap.abs().clamp(min=SAME), gap)
    return (patched - corrupted) / gap


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval: `mean`, `low` and `high` in the unit of the values, over `n` prompts."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


RESAMPLES, LEVEL = 2000, 0.95
"""Of a bootstrap: how often it draws, and what its intervals are to cover."""


def bootstrap(
    values: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"] | None = None,
    span: tuple[float, float] | None = None,
) -> Interval:
    """Studentised bootstrap of the mean over prompts (Efron and Tibshirani 1993, section 12.5).

    With `groups` (for instance `Population.draws`) whole groups are resampled, since prompts that share their names are
    not independent. Each resample's distance from the mean counts in units of its own standard error: the percentiles
    of the means themselves are too narrow where groups are few (six groups: 82 to 87 % instead of 95 %, simulated in
    `tests/unit/test_metrics.py`, where this interval covers about 93 % or more).

    Args:
        span: what the values cannot leave, such as (0, 1) for attention. Where one group holds nearly all of the mean,
            resamples without it have almost no error, and the studentised interval has no end: so no end lies beyond
            that of `bounded`.

    Raises:
        MetricError: no values, NaN or infinite ones, groups of another length, one group alone, or values outside the
            span.

    Limits: what no prompt shows, the interval does not know of. Values that are often all alike, such as 0 or 1, have
    `share_of` or `bounded`.
    """
    return bootstrap_cells(values[None], groups, span)[0]


def bootstrap_cells(
    values: Float[Tensor, "cell batch"],
    groups: Int[Tensor, " batch"] | None = None,
    span: tuple[float, float] | None = None,
    n_resamples: int = RESAMPLES,
) -> list[Interval]:
    """`bootstrap` for each row of a table. The values of one prompt stay together over all cells."""
    found = bootstrap_ratios(values, torch.ones(values.shape[-1]), groups, n_resamples=n_resamples)
    if span is None:
        return found
    widest = bounded(values, groups, span, n_resamples)
    return [
        replace(one, low=max(one.low, most.low), high=min(one.high, most.high))
        for one, most in zip(found, widest, strict=True)
    ]


def bounded(
    values: Float[Tensor, "cell batch"],
    groups: Int[Tensor, " batch"] | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    n_resamples: int = RESAMPLES,
) -> list[Interval]:
    """For each row, the mean of values that cannot leave `span`, with an interval that needs to know no more of them.

    All groups have random weights, and so has one that nobody saw, at the lower end of the span for the lower bound and
    at the upper end for the upper one (Gaffke 2005; Learned-Miller and Thomas 2020, arXiv 1905.06208). Of zeros and
    ones this is the interval of Clopper and Pearson: it has a width also where all values are alike.

    Raises:
        MetricError: no values, NaN or infinite ones, groups of another length, or values outside the span.

    Limits: it covers more than it says where the values lie close together and far from both ends.
    """
    table = values.detach().cpu().double().numpy()  # [cell batch]
    if table.size == 0 or not np.isfinite(table).all():
        raise MetricError("no values, or NaN or infinite ones among them: look for them in the run that made them")
    least, most = float(table.min()), float(table.max())
    if least < span[0] - 1e-4 or most > span[1] + 1e-4:
        raise MetricError(f"values from {least:.3g} to {most:.3g} leave the span {span}: give one that holds them all")
    table, member = table.clip(*span), _member(groups, table.shape[-1])
    sums, size = np.stack([np.bincount(member, weights=row) for row in table]), np.bincount(member)
    weights = np.random.default_rng(0).dirichlet(np.ones(len(size) + 1), size=n_resamples)  # [resample group+1]
    seen, unseen = weights[:, :-1], weights[:, -1] * size.mean()
    low, high = (
        np.quantile((sums @ seen.T + unseen * end) / (seen @ size + unseen), level, axis=-1)
        for end, level in zip(span, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), strict=True)
    )
    ends = zip(table.mean(-1), low, high, strict=True)
    return [Interval(float(mean), float(lo), float(hi), len(member)) for mean, lo, hi in ends]


def bootstrap_ratios(
    parts: Float[Tensor, "cell batch"],
    whole: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"] | None = None,
    level: float = LEVEL,
    n_resamples: int = RESAMPLES,
) -> list[Interval]:
    """For each row, the ratio of its mean to the mean of `whole`, with a studentised bootstrap interval.

    Both means are taken over the same resampled prompts, so that a part which is the whole has a ratio of 1 exactly.
    The standard error of a ratio is that of its linearisation. Below `FEW_GROUPS` groups too many resamples repeat one
    group, which has no standard error: there the interval is Student's t.

    Args:
        groups: prompts with the same number are drawn together, as for `bootstrap`.

    Raises:
        MetricError: no prompts, NaN or infinite values, not one group for each prompt, one group alone, or a mean of
            `whole` that is 0.

    Limits: where the mean of `whole` may be 0, the interval can be very wide.
    """
    table, unit = (x.detach().cpu().double().numpy() for x in (parts, whole))  # [cell batch], [batch]
    n = table.shape[-1]
    if n == 0:
        raise MetricError("the mean of no prompts is undefined: the population is empty")
    if not (np.isfinite(table).all() and np.isfinite(unit).all()):
        raise MetricError(
            "NaN or infinite numbers among the values to average: look for them in the run that made them"
        )
    if abs(unit.mean()) < 1e-9:
        raise MetricError("a share of nothing: the mean that is divided by is 0", see="share-of-nothing")
    member = _member(groups, n)
    sums = np.stack([np.bincount(member, weights=row) for row in table])  # [cell group]
    size = np.bincount(member, weights=unit)  # [group]
    n_groups = len(size)
    if n_groups < 2:
        raise MetricError(
            f"{n} values of one group: an interval needs two groups at least, and prompts of one draw are one group",
            see="one-group",
        )
    mean, error = _ratio(sums, size, np.ones((1, n_groups)))  # [cell 1] each
    if n_groups < FEW_GROUPS:
        from scipy.stats import t as student

        ends = np.outer((-1, 1), np.full(len(table), student.ppf((1 + level) / 2, n_groups - 1)))
    else:
        draws = np.random.default_rng(0).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)
        again, its_error = _ratio(sums, size, draws)  # [cell resample]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(its_error > 1e-12 * np.abs(mean), (again - mean) / its_error, 0.0)
        ends = -np.quantile(t, [(1 + level) / 2, (1 - level) / 2], axis=-1)  # [2 cell]
    low, high = mean[:, 0] + ends * error[:, 0]
    return [Interval(float(m), float(lo), float(hi), n) for m, lo, hi in zip(mean[:, 0], low, high, strict=True)]


FEW_GROUPS = 6
CERTAIN = 1e9  # |t| of a mean without any error; finite, since quantiles interpolate


def _member(groups: Int[Tensor, " batch"] | None, n: int) -> Int[np.ndarray, " batch"]:
    """The group of each of `n` values, counted from 0; each value is a group of its own where none are given."""
    labels = np.arange(n) if groups is None else groups.cpu().numpy()
    return np.unique(labels, return_inverse=True)[1]


def _ratio(
    sums: Float[np.ndarray, "cell group"], size: Float[np.ndarray, " group"], draws: Float[np.ndarray, "draw group"]
) -> tuple[Float[np.ndarray, "cell draw"], Float[np.ndarray, "cell draw"]]:
    """Ratio of totals and its standard error, where group g counts `draws[:, g]` times."""
    bottom = draws @ size  # [draw]
    bottom = np.where(np.abs(bottom) > 1e-9, bottom, np.nan)
    ratio = sums @ draws.T / bottom
    n = len(size)
    left = sums**2 @ draws.T - 2 * ratio * (sums * size @ draws.T) + ratio**2 * (draws @ size**2)
    return ratio, np.sqrt(np.maximum(left, 0) * n / max(n - 1, 1)) / np.abs(bottom)


@dataclass(frozen=True)
class Screen:
    """Which of many cells differ from 0, when all of them are looked at together.

    Attributes:
        t: each cell's mean in units of its standard error over groups.
        threshold: what the largest |t| of all cells exceeds in one of twenty worlds where every mean is 0.
        p: for each cell, the share of those worlds whose largest |t| is at least as large as its own.
        n_groups: the effective number of observations.
    """

    t: Float[np.ndarray, " cell"]
    threshold: float
    p: Float[np.ndarray, " cell"]
    n_groups: int

    @property
    def chosen(self) -> list[int]:
        """The cells whose |t| lies above the threshold, in order."""
        return np.flatnonzero(np.abs(self.t) > self.threshold * (1 + 1e-9)).tolist()


def screen(
    values: Float[Tensor, "cell batch"], groups: Int[Tensor, " batch"] | None = None, n_flips: int = RESAMPLES
) -> Screen:
    """Look for means that differ from 0 among many cells: flip signs, and take the largest |t| of the table.

    Of 270 true intervals of 95 %, 14 miss 0 where nothing is there. If nothing is there, the values of a group might as
    well have had the opposite sign, all cells together, so that cells stay as correlated as they are. The largest |t|
    over all cells in such worlds is what a cell has to exceed: in 95 of 100 tables of nothing no cell does (Westfall
    and Young 1993, "Resampling-based multiple testing"; Winkler et al. 2014, NeuroImage 92, for sign flips).

    Raises:
        MetricError: no values, a NaN, or groups of another length.

    Limits: flips take the distribution of each group to be symmetric about 0 where nothing is there. Of tables that are
    skewed in every cell, far more than one in twenty raise an alarm (page "How we infer"). Fewer than six
    groups can be flipped in fewer than 20 ways that differ in |t|: then no cell is ever chosen.
    """
    means = _group_means(values, groups)
    n = means.shape[-1]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(n_flips, n))
    observed = _t_of(means, np.ones((1, n)))[:, 0]
    largest = np.abs(_t_of(means, signs)).max(0)  # [flip]
    at_least = 1 + (largest >= np.abs(observed)[:, None] - 1e-9).sum(-1)
    return Screen(observed, float(np.quantile(largest, LEVEL)), at_least / (n_flips + 1), n)


def tossed(
    values: Float[Tensor, "cell batch"], groups: Int[Tensor, " batch"], signs: Int[Tensor, "toss group"]
) -> tuple[Float[Tensor, "toss cell"], Bool[Tensor, "toss cell"]]:
    """The means once the signs of whole groups are tossed, and which of them a `screen` would choose.

    The largest |t| over all tosses is the same for every toss, so each is judged by the threshold of the whole.

    Raises:
        MetricError: no values, a NaN, or groups of another length.
    """
    means, signs_ = _group_means(values, groups), signs.double().numpy()
    if signs_.shape[1] != means.shape[1]:
        raise MetricError(f"signs of {signs_.shape[1]} groups for {means.shape[1]}: toss one for each")
    t = _t_of(means, signs_)  # [cell toss]
    chosen = np.abs(t) > np.quantile(np.abs(t).max(0), LEVEL) * (1 + 1e-9)
    size = np.bincount(_member(groups, values.shape[-1])) / values.shape[-1]
    return torch.from_numpy(signs_ @ (means * size).T).float(), torch.from_numpy(chosen.T)


def _group_means(values: Tensor, groups: Tensor | None) -> Float[np.ndarray, "cell group"]:
    table = values.detach().cpu().double().numpy()
    if table.size == 0 or not np.isfinite(table).all():
        raise MetricError("no values, or NaN or infinite ones among them: look for them in the run that made them")
    member = _member(groups, table.shape[-1])
    return np.stack([np.bincount(member, weights=row) for row in table]) / np.bincount(member)


def _t_of(
    means: Float[np.ndarray, "cell group"], signs: Float[np.ndarray, "toss group"]
) -> Float[np.ndarray, "cell toss"]:
    """The mean over groups in units of its standard error, for each toss of their signs."""
    n = means.shape[-1]
    mean = means @ signs.T / n
    spread = np.maximum((means**2).sum(-1)[:, None] / n - mean**2, 0) / max(n - 1, 1)
    no_error = np.where(np.abs(mean) > 1e-12, np.sign(mean) * CERTAIN, 0.0)  # every group says the same
    return np.divide(mean, np.sqrt(spread), out=no_error, where=spread > 1e-24)


def share(passed: int, n: int) -> Interval:
    """A share of `n` with its 95 % interval (Wilson 1927), which has a width also where none or all pass.

    Raises:
        MetricError: a share of nothing, or more than all.
    """
    if n < 1 or not 0 <= passed <= n:
        raise MetricError(f"{passed} of {n} is no share", see="share-of-nothing")
    return Interval(passed / n, *_wilson(passed / n, n), n)


def share_of(passed: Bool[Tensor, " batch"], groups: Int[Tensor, " batch"]) -> Interval:
    """The share of prompts that pass, with the interval of `share` for as many observations as there are groups.

    Prompts of a group are not independent, so to count groups is the careful choice. A bootstrap would have no width
    where nearly all or nearly none pass.
    """
    if not len(passed):
        raise MetricError("a share of no prompts is undefined", see="share-of-nothing")
    found = float(passed.float().mean())
    return Interval(found, *_wilson(found, len(groups.unique())), len(passed))


def _wilson(found: float, n: int) -> tuple[float, float]:
    from scipy.stats import norm

    z = float(norm.ppf(0.975))
    middle = (found + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (found * (1 - found) / n + (z / (2 * n)) ** 2) ** 0.5 / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


guard(globals(), MetricError)
