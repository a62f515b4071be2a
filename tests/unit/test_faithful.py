"""Faithfulness, completeness and minimality on the hand-wired circuit, where each can be worked out."""

from __future__ import annotations

from zlib import crc32

import pytest
import torch

from labcode import metrics, prompts
from labcode.circuit import Keep, Out, Runner, references
from labcode.edges import divergence
from labcode.errors import PatchError
from labcode.faithful import (
    completeness,
    correlation,
    equivalence_test,
    faithfulness,
    greedy,
    independence_test,
    minimality,
    minimality_test,
    random_circuit,
    ratio,
    standard_sets,
    within,
)
from labcode.toy import MOVER, NEGATIVE

FULL = MOVER - NEGATIVE
DUPLICATE, INHIBITION, MOVES, AGAINST = (0, 0, "S2"), (1, 0, "END"), (2, 0, "END"), (2, 1, "END")
CHAIN = [DUPLICATE, INHIBITION, MOVES, AGAINST]


@pytest.fixture(scope="module")
def runner(toy):
    pop = prompts.population(toy, 8, seed=1, templates=prompts.TEMPLATES[:1])
    return Runner(toy, pop, prompts.corrupt(toy, pop, "abc"))


def near(interval, value):
    return [interval.mean, interval.low, interval.high] == pytest.approx([value] * 3, abs=1e-3)


def test_faithfulness_of_the_chain_and_of_a_part(runner):
    found = faithfulness(runner, {"chain": CHAIN, "part": [*CHAIN[:3], (2, 0, "S2")], "none": []})
    assert near(found["chain"].circuit, FULL)
    assert near(found["chain"].model, FULL)
    assert near(found["chain"].share, 1)
    assert near(found["chain"].gap, 0)
    assert near(found["chain"].error, 0)
    assert near(found["chain"].divergence, 0)
    assert found["chain"].near.mean == found["chain"].accuracy.mean == 1
    assert found["chain"].n_heads == 4
    assert near(found["part"].share, MOVER / FULL)
    assert found["part"].n_heads == 3, "one head at two positions is one head"
    assert near(found["none"].gap, FULL)


class Two(Runner):
    """A runner with given values: those of the model, and those of every circuit."""

    def __init__(self, model, circuit, draws):
        self.rows, self.draws = (model, circuit), draws

    def values(self, states):
        return torch.stack([self.rows[isinstance(state, Keep)] for state in states])


def test_a_mean_that_agrees_where_no_prompt_does():
    """Half the prompts 3 nats too high, half 3 too low: a share of 1, and nothing else that is right."""
    model = torch.tensor([4.0, 2.0] * 8)
    circuit = model + torch.tensor([3.0, 3.0, -3.0, -3.0] * 4)
    found = faithfulness(Two(model, circuit, torch.arange(16) // 2), {"off": [], "same": []})["off"]
    assert (found.share.mean, found.gap.mean) == pytest.approx((1, 0))
    assert near(found.error, 3)
    assert found.near.mean == 0
    assert 0.2 < found.near.high < 0.4, "none of eight draws"
    assert found.correlation.mean == pytest.approx(1 / 10**0.5)  # variance 1 of the model, 9 of the error
    assert (found.accuracy.mean, found.model_accuracy.mean) == (0.75, 1)
    assert found.divergence.mean > 0.3


def test_near_is_a_quarter_of_each_prompts_own_difference_on_either_side():
    model = torch.tensor([4.0, 4.0, 4.0, 4.0, -4.0, 0.0])
    value = torch.tensor([3.0, 5.0, 2.9, 5.1, -3.5, 0.1])
    assert within(value, model).tolist() == [True, True, False, False, True, False]


def test_the_divergence_is_that_of_two_names():
    p, q = torch.tensor([1.0, 0.0, 30.0]), torch.tensor([-1.0, 0.0, 2.0])
    pair = [torch.distributions.Bernoulli(logits=one) for one in (p, q)]
    torch.testing.assert_close(divergence(p, q), torch.distributions.kl_divergence(*pair))
    assert divergence(q, q).abs().max() == 0


def test_a_correlation_has_its_interval_and_none_of_constants():
    rng = torch.Generator().manual_seed(0)
    draws = torch.arange(12)
    hits = 0
    for _ in range(300):
        a, noise = torch.randn(2, 12, generator=rng)
        found = correlation(a, 0.6 * a + 0.8 * noise, draws)
        hits += found.low <= 0.6 <= found.high
    assert 0.92 < hits / 300 < 0.98
    a = torch.randn(12, generator=rng)
    assert correlation(a, -2 * a, draws).mean == pytest.approx(-1)
    assert correlation(a, torch.full((12,), 3.0), draws).mean == 0
    few = correlation(a[:4], a[:4], draws[:4] // 2)
    assert (few.low, few.high) == (-1, 1)


def test_a_share_of_prompts_stays_between_none_and_all():
    draws = torch.arange(20) // 2
    for passed in (torch.ones(20), torch.zeros(20), torch.arange(20) > 0):
        found = metrics.share_of(passed.bool(), draws)
        assert 0 <= found.low < found.high <= 1
        assert found.mean == pytest.approx(float(passed.float().mean()))
        assert found.n == 20
    of_draws = metrics.share(7, 10)
    found = metrics.share_of(torch.arange(20) < 14, draws)
    assert (found.low, found.high) == pytest.approx((of_draws.low, of_draws.high))


def test_a_circuit_that_forgets_a_head_is_incomplete(runner):
    """Without 2.1 the circuit looks whole by some sets, not by one that leaves 2.1 alone in the model."""
    whole = completeness(runner, CHAIN, {"movers": [MOVES], "all": CHAIN})
    assert [near(row.score, 0) for row in whole] == [True, True]
    assert near(whole[0].model, -NEGATIVE)
    (row,) = completeness(runner, CHAIN[:3], {"movers": [MOVES]})
    assert near(row.model, -NEGATIVE)
    assert near(row.circuit, 0)
    assert near(row.score, -NEGATIVE)
    assert row.removed == (MOVES,)


def test_greedy_search_finds_the_worst_set(runner):
    """In the circuit without 2.1: F(M\\K) - F(C\\K) is -2 for K = {2.0}, and at most that for any other K."""
    circuit = [(0, 1, "S1+1"), *CHAIN[:3]]
    for row in greedy(runner, circuit, n=3, candidates=4):
        assert near(row.score, -NEGATIVE)
        assert row.score.n == 4, "half the prompts chose, the other half is reported"
        (again,) = completeness(runner, circuit, {"found": row.removed})
        assert near(again.score, -NEGATIVE)
    again = [greedy(runner, circuit, n=2, candidates=1, seed=4) for _ in range(2)]
    assert again[0] == again[1]


def test_a_greedy_set_is_not_judged_by_the_prompts_that_chose_it():
    """Nothing but noise: the search finds a large score where it looks, and the other half shows none of it."""

    class Noise(Runner):
        draws = torch.arange(100) // 2

        def __init__(self):
            pass

        def values(self, states):
            seeds = [crc32(repr((type(state).__name__, sorted(state.nodes))).encode()) for state in states]
            return torch.stack([torch.randn(100, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    circuit = [(0, i, "END") for i in range(8)]
    found = greedy(Noise(), circuit, n=20, steps=6, candidates=8)
    chosen = [completeness(Noise(), circuit, {"k": row.removed})[0].score.mean for row in found]
    assert sum(abs(row.score.mean) for row in found) < 0.75 * sum(map(abs, chosen))


def test_the_sets_that_every_circuit_is_asked_about(runner):
    families = {"before": CHAIN[:2], "movers": CHAIN[2:]}
    sets = standard_sets(families)
    assert sets == {"nothing": [], "the whole circuit": CHAIN, **families}
    rows = {row.name: row for row in completeness(runner, CHAIN, sets)}
    assert near(rows["nothing"].model, FULL)
    assert near(rows["nothing"].circuit, FULL)
    assert near(rows["the whole circuit"].circuit, 0)


def test_minimality_finds_the_set_that_makes_a_head_matter(runner):
    families = {"duplicate": [DUPLICATE], "inhibition": [INHIBITION], "for": [MOVES], "against": [AGAINST]}
    found = {row.node: row for row in minimality(runner, {**families, "idle": [(0, 1, "S1+1")]})}
    assert near(found[MOVES].worth, MOVER)
    # With the mover out, the inhibition decides where the negative head looks: -2 with it, +2/3 without.
    assert near(found[AGAINST].worth, -NEGATIVE)
    # Without the negative head the mover alone falls from +6 to -2: worth 8.
    for node in (DUPLICATE, INHIBITION):
        assert near(found[node].worth, MOVER + MOVER / 3)
        assert "against" in found[node].name
        assert AGAINST in found[node].removed
    assert near(found[(0, 1, "S1+1")].worth, 0)
    assert near(found[MOVES].share, MOVER / FULL)
    assert found[MOVES].worth.n == 4, "half the prompts chose, the other half is reported"


A, B = (0, 0, "END"), (1, 0, "END")


class ByHand(Runner):
    """A runner whose values are given: what node A adds depends on the half of the prompts."""

    draws = torch.arange(4).repeat_interleave(2)

    def __init__(self):
        pass

    def values(self, states):
        found = []
        for state in states:
            kept = set(state.nodes) if isinstance(state, Keep) else {A, B}
            chooses = self.draws % 2 == 0  # minimality lets the first, third, ... draw choose K
            if isinstance(state, Out):
                found.append(torch.full((8,), 20.0))
            elif B in kept:
                found.append(torch.full((8,), 6.0) if A in kept else torch.where(chooses, 4.0, 3.0))
            else:
                found.append(torch.where(chooses, 9.0, 2.0) if A in kept else torch.zeros(8))
        return torch.stack(found)


def test_a_worth_is_measured_on_the_half_that_had_no_part_in_choosing():
    """A is worth 9 without B where K is chosen, and 2 on the other half; nothing out would show 2 and 3."""
    (row,) = [row for row in minimality(ByHand(), {"one": [A], "other": [B]}) if row.node == A]
    assert (row.name, row.removed) == ("other", (B,))
    assert near(row.worth, 2)
    assert near(row.share, 0.1)


def test_random_circuits(toy):
    drawn = random_circuit(toy, CHAIN, seed=2)
    assert sorted(node[2] for node in drawn) == ["END", "END", "END", "S2"]
    assert len(set(drawn)) == 4
    assert drawn == random_circuit(toy, CHAIN, seed=2)


@pytest.fixture(scope="module")
def wide(tiny_gpt2):
    """Three layers of four heads."""
    return tiny_gpt2.bridge


def test_a_random_chain_keeps_what_the_layers_allow(wide):
    nodes = [(0, 1, "S1+1"), (1, 2, "S2"), (0, 3, "S2"), (2, 0, "END"), (2, 1, "END")]
    for seed in range(50):
        drawn = random_circuit(wide, nodes, seed, chain=True)
        assert [node[2] for node in drawn] == [node[2] for node in nodes]
        assert len(set(drawn)) == len(nodes)
        assert not {node[:2] for node in drawn} & {node[:2] for node in nodes}
        before, first, second, *ends = (node[0] for node in drawn)
        assert before < max(first, second), "what is written at S1+1 can be read at S2"
        assert max(before, first, second) < max(ends), "and what stands at S2 at END"
    assert drawn == random_circuit(wide, nodes, 49, chain=True)


def test_a_chain_without_other_heads_is_named(toy):
    every = [(layer, head, "END") for layer in range(3) for head in range(2)]
    with pytest.raises(PatchError, match="no random circuit of 6 other heads"):
        random_circuit(toy, every, chain=True)


DRAWS = torch.arange(60) // 2


def pairs(rng, n=30):
    """A value for each prompt, much alike within a draw."""
    return torch.randn(n, generator=rng).repeat_interleave(2) + 0.3 * torch.randn(2 * n, generator=rng)


def test_equivalence_keeps_its_level_and_finds_a_shift():
    rng = torch.Generator().manual_seed(1)
    middle = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.6)))
    edge = [equivalence_test(pairs(rng) + middle * 1.02, torch.zeros(60), DRAWS).p for _ in range(400)]
    assert sum(p <= 0.05 for p in edge) / 400 <= 0.07, "at the border of the null"
    assert all(equivalence_test(pairs(rng) + 2, torch.zeros(60), DRAWS).p < 0.01 for _ in range(20))
    found = equivalence_test(torch.tensor([1.0, 1, -1, -1, 2, 2, 0, 0]), torch.zeros(8), torch.arange(8) // 2)
    assert (found.share.mean, found.share.n) == (pytest.approx(2 / 3), 3)
    # Three draws: 2 of 3 and 1 of 3 are as near to one half as one can be, so all outcomes are as far.
    assert found.p == pytest.approx(1)
    assert equivalence_test(torch.ones(8), torch.ones(8), torch.arange(8)).p == 1


def test_independence_keeps_its_level_and_finds_a_curve():
    """Prompts of a draw are alike, which a test that shuffles prompts would take for dependence."""
    rng = torch.Generator().manual_seed(2)

    def p(a, b):
        return independence_test(a, b, DRAWS, n_permutations=99).p

    nothing = [p(pairs(rng), pairs(rng)) for _ in range(200)]
    assert sum(p <= 0.05 for p in nothing) / 200 <= 0.1
    curved = []
    for _ in range(20):
        a = pairs(rng)
        curved.append(p(a, (a**2 + 0.3 * torch.randn(60, generator=rng))))
    assert sum(p <= 0.05 for p in curved) >= 18, "no straight line, yet far from independent"
    a = pairs(rng)
    assert independence_test(a, 3 * a, DRAWS).hsic == pytest.approx(1)
    assert independence_test(a, torch.ones(60), DRAWS) == (0, 1)
    uneven = torch.arange(60).clamp(max=50)  # the last draw alone has ten prompts
    assert independence_test(a, a, uneven).p < 0.01


class Worths(Runner):
    """A runner in which every node adds its own amount."""

    draws = torch.arange(8) // 2

    def __init__(self, model, worth):
        self.model, self.worth = model, worth

    def values(self, states):
        return torch.stack([sum(map(self.worth, state.nodes), torch.zeros(8)) for state in states])


def test_minimality_rejects_what_is_no_better_than_chance(wide):
    """Random nodes are worth 0 to 1.1, evenly; a node at their ninth decile sits at the border of the null."""
    circuit = [(0, 0, "END"), (1, 0, "END"), (2, 0, "S2")]
    mine = dict(zip(circuit, (5.0, 0.0, 0.95), strict=True))
    random_ = {(layer, head): (4 * layer + head) / 10 for layer in range(3) for head in range(4)}
    tested = Worths(wide, lambda node: mine.get(node, random_[node[:2]]))
    strong, idle, border = minimality_test(tested, circuit, n=100)
    assert (strong.node, strong.effect, strong.share, strong.p) == (circuit[0], pytest.approx(5), 1, 1)
    assert idle.p < 1e-6
    assert 0.7 < border.share < 0.95
    every = [(layer, head, "END") for layer in range(3) for head in range(4)]
    with pytest.raises(PatchError, match="the circuit holds every head"):
        minimality_test(tested, every)


def test_minimality_keeps_its_level(wide):
    """A node that beats nine of ten random ones, the border of the null, is rejected in one of twenty tests at most."""
    circuit = [(0, 0, "END")]
    beaten = {(layer, head) for layer in range(3) for head in range(4)} - {(0, 0), (2, 3)}  # ten of eleven others
    tested = Worths(wide, lambda node: 1.0 if node in circuit else 0.5 if node[:2] in beaten else 2.0)
    rejected = sum(minimality_test(tested, circuit, 60, 10 / 11, seed)[0].p <= 0.05 for seed in range(300))
    assert rejected / 300 <= 0.07
    weak = Worths(wide, lambda node: 1.0 if node in circuit else 0.5 if node[1] < 2 else 2.0)
    assert all(minimality_test(weak, circuit, 60, 0.9, seed)[0].p <= 0.05 for seed in range(20))


def test_a_ratio_of_means_with_its_interval():
    groups = torch.tensor([0, 0, 1, 1])
    whole = torch.tensor([1.0, 3.0, 2.0, 2.0])
    assert near(ratio(whole / 2, whole, groups), 0.5)
    found = ratio(torch.tensor([1.0, 1.0, 2.0, 2.0]), whole, groups)
    # Two groups, 0.5 and 1: a standard error of 0.25, and Student's t with one degree of freedom is wide.
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.75 - 0.25 * 12.7062, 0.75 + 0.25 * 12.7062))
    with pytest.raises(PatchError, match="a share of nothing"):
        ratio(whole, torch.zeros(4), groups)


def test_too_few_prompts_and_empty_sets_are_named(toy, runner):
    pop = prompts.canonical(toy)
    one = Runner(toy, pop, references(toy, pop))
    with pytest.raises(PatchError, match="1 draw of prompts is too few for an interval"):
        faithfulness(one, {"chain": CHAIN})
    with pytest.raises(PatchError, match="1 draw of prompts is too few"):
        completeness(one, CHAIN, {"all": CHAIN})
    for search in (lambda: minimality(one, {"movers": [MOVES]}), lambda: greedy(one, CHAIN)):
        with pytest.raises(PatchError, match="1 draws of prompts are too few"):
            search()
    with pytest.raises(PatchError, match="the set 'backup' is empty"):
        minimality(runner, {"movers": [MOVES], "backup": []})
    with pytest.raises(PatchError, match="the set 'backup' is empty"):
        standard_sets({"backup": []})
    with pytest.raises(PatchError, match="no sets of nodes"):
        completeness(runner, CHAIN, {})
    for search in (lambda: greedy(runner, []), lambda: minimality_test(runner, [])):
        with pytest.raises(PatchError, match="an empty circuit"):
            search()
    with pytest.raises(PatchError, match="7 nodes at S2: this model has 6 heads"):
        random_circuit(toy, [(0, 0, "S2")] * 7)
