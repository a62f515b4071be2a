"""The toy of chapter 14: what is drawn is what was asked for, and matching is one to one."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from labcode import sae, superposition
from labcode.errors import MetricError


def draw(n=20_000, **more):
    toy = superposition.make(16, 8, **more)
    values, points = toy.sample(n, torch.Generator().manual_seed(1))
    return toy, values, points


def test_points_are_the_sums_of_what_is_on():
    toy, values, points = draw(n=50, p=0.3)
    slow = torch.stack([sum(v * w for v, w in zip(row, toy.directions, strict=True)) for row in values])
    assert torch.allclose(points, slow, atol=1e-5)
    assert torch.allclose(toy.directions.norm(dim=-1), torch.ones(16))
    on = values[values > 0]
    assert on.min() >= 0.5
    assert on.max() <= 1.5


def test_features_are_on_as_often_as_asked_and_independent():
    _, values, _ = draw(p=0.1)
    on = (values > 0).float()
    assert (on.mean(0) - 0.1).abs().max() < 0.02
    assert (torch.corrcoef(on.T) - torch.eye(16)).abs().max() < 0.05


def test_pairs_go_together_and_the_others_do_not():
    toy, values, _ = draw(p=0.1, together=0.9)
    assert toy.n_paired == 8
    found = torch.corrcoef((values > 0).float().T)
    assert all(found[i, i + 1] > 0.8 for i in range(0, 8, 2))
    assert found[1, 2].abs() < 0.05
    assert (found[8:, 8:] - torch.eye(8)).abs().max() < 0.05
    assert ((values > 0).float().mean(0) - 0.1).abs().max() < 0.02, "a pair must not be on more often than the rest"


def test_a_seed_gives_the_same_toy_and_not_the_start_of_a_dictionary():
    assert torch.equal(superposition.make(seed=3).directions, superposition.make(seed=3).directions)
    assert not torch.equal(superposition.make(seed=3).directions, superposition.make(seed=4).directions)
    for seed in range(5):
        start = superposition.unit(torch.randn(128, 32, generator=torch.Generator().manual_seed(seed)))
        assert (start * superposition.make(seed=seed).directions).sum(-1).abs().mean() < 0.3


def test_matching_is_one_to_one_and_the_best_there_is():
    generator = torch.Generator().manual_seed(2)
    true, found = (superposition.unit(torch.randn(n, 3, generator=generator)) for n in (4, 5))
    cosines = true @ found.T
    best = max(sum(cosines[i, j] for i, j in enumerate(order)) for order in permutations(range(5), 4))
    assert float(superposition.matched(found, true).sum()) == pytest.approx(float(best), abs=1e-5)


def test_a_shuffled_copy_is_found_and_a_copy_serves_only_once():
    true = superposition.make(6, 6).directions
    assert torch.allclose(superposition.matched(3 * true.flip(0), true), torch.ones(6), atol=1e-5)
    twice = torch.cat([true[:1], true[:1], true[2:]])
    assert (superposition.matched(twice, true) > 0.99).sum() == 5


def test_what_is_left_over_is_not_found_and_signs_count():
    true = torch.eye(3)
    assert superposition.matched(true[:1], true).tolist() == [1, 0, 0]
    assert superposition.matched(-true[:1], true[:1]).tolist() == [-1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: superposition.make(0, 3),
        lambda: superposition.make(p=0),
        lambda: superposition.make(together=1.5),
        lambda: superposition.matched(torch.ones(2, 3), torch.ones(2, 4)),
        lambda: superposition.matched(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.eye(2)),
        lambda: superposition.matched(torch.tensor([[float("nan"), 0.0]]), torch.eye(2)),
    ],
)
def test_bad_input_is_named(call):
    with pytest.raises(MetricError):
        call()


def test_the_books_own_training_finds_features_that_are_known():
    toy = superposition.make(seed=0)
    _, points = toy.sample(30_000, torch.Generator().manual_seed(1))
    where = torch.arange(len(points))
    acts = sae.Activations(points.half(), where, torch.ones_like(where), 0, float(points.norm(dim=-1).median()), 0)
    made = sae.train(acts, d_sae=256, k=3, samples=120_000, batch=256, lr=1e-2, seed=0).sae
    start = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    assert (superposition.matched(made.W_dec.detach(), toy.directions) > 0.9).float().mean() >= 0.9
    assert (superposition.matched(start, toy.directions) > 0.9).sum() == 0
