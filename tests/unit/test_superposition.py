"""Chapter 14: matching is one to one, and the causes of a unit are counted where it is on."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, mean_correlation_coefficient

from labcode import sae, superposition
from labcode.errors import MetricError


def test_matching_is_one_to_one_and_the_best_there_is():
    generator = torch.Generator().manual_seed(2)
    true, found = (superposition.unit(torch.randn(n, 3, generator=generator)) for n in (4, 5))
    cosines = true @ found.T
    best = max(sum(cosines[i, j] for i, j in enumerate(order)) for order in permutations(range(5), 4))
    assert float(superposition.matched(found, true).sum()) == pytest.approx(float(best), abs=1e-5)


def test_a_shuffled_copy_is_found_and_a_copy_serves_only_once():
    true = superposition.unit(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))
    assert torch.allclose(superposition.matched(3 * true.flip(0), true), torch.ones(6), atol=1e-5)
    twice = torch.cat([true[:1], true[:1], true[2:]])
    assert (superposition.matched(twice, true) > 0.99).sum() == 5


def test_what_is_left_over_is_not_found_and_signs_count():
    true = torch.eye(3)
    assert superposition.matched(true[:1], true).tolist() == [1, 0, 0]
    assert superposition.matched(-true[:1], true[:1]).tolist() == [-1]
    assert superposition.partners(true[[2, 0]], true).tolist() == [1, -1, 0]


def test_our_matched_cosines_are_the_librarys_mean_correlation_where_all_are_positive():
    generator = torch.Generator().manual_seed(4)
    true = torch.randn(6, 8, generator=generator)
    found = torch.cat([true + 0.3 * torch.randn(6, 8, generator=generator), torch.randn(3, 8, generator=generator)])
    ours = superposition.matched(found, true)
    assert (ours > 0.5).all()
    assert float(ours.mean()) == pytest.approx(mean_correlation_coefficient(found, true), abs=1e-5)


def test_causes_are_counted_only_where_the_unit_is_on():
    # Latent 0 is on at points 0 and 1, where feature 0 is; latent 1 at 2 and 3, once by each feature; latent 2 never.
    acts = torch.tensor([[2.0, 0, 0], [1, 0, 0], [0, 3, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    values = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0], [0, 1], [1, 1]])
    weights = torch.ones(2, 3)
    assert superposition.different_causes(acts, values, weights, top=50).tolist() == [1, 2]
    assert superposition.different_causes(acts, values, weights, top=1).tolist() == [1, 1]


def test_the_cause_of_a_point_is_the_largest_value_times_weight():
    acts, values = torch.ones(3, 1), torch.tensor([[1.0, 1], [3, 1], [1, 1]])
    assert superposition.different_causes(acts, values, torch.tensor([[1.0], [2.0]])).tolist() == [2]
    assert superposition.different_causes(acts, values, torch.tensor([[1.0], [4.0]])).tolist() == [1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: superposition.matched(torch.ones(2, 3), torch.ones(2, 4)),
        lambda: superposition.matched(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.eye(2)),
        lambda: superposition.matched(torch.tensor([[float("nan"), 0.0]]), torch.eye(2)),
    ],
)
def test_bad_input_is_named(call):
    with pytest.raises(MetricError):
        call()


def test_the_books_own_training_finds_features_that_are_known():
    toy = FeatureDictionary(128, 32, initializer=None, seed=1000)
    torch.manual_seed(1)
    points = toy(ActivationGenerator(128, 0.02, 0.3)(30_000)).detach()
    where = torch.arange(len(points))
    acts = sae.Activations(points.half(), where, torch.ones_like(where), 0, float(points.norm(dim=-1).median()), 0)
    made = sae.train(acts, d_sae=256, k=3, samples=120_000, batch=256, lr=1e-2, seed=0).sae
    start = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    assert (superposition.matched(made.W_dec.detach(), toy.feature_vectors) > 0.9).float().mean() >= 0.9
    assert (superposition.matched(start, toy.feature_vectors) > 0.9).sum() == 0
