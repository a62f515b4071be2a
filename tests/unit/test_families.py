"""Families: right on the hand-wired toy, where the truth is known, and silent where there is nothing."""

from __future__ import annotations

import pytest
import torch

from labcode import evidence, families, prompts
from labcode.families import EFFECT, LOOKS, FamilyError
from labcode.published import CIRCUIT
from labcode.toy import MOVER, NEGATIVE


@pytest.fixture(scope="module")
def table(toy, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return families.measured(toy, n=8, seed=3)


def test_the_toys_families_are_those_it_was_wired_with(table):
    found = families.judge(table)
    wired = {"duplicate": [(0, 0)], "s-inhibition": [(1, 0)], "name mover": [(2, 0)], "negative": [(2, 1)]}
    assert found.families == {name: wired.get(name, []) for name in families.FAMILIES}
    assert not any(found.unknown.values())
    assert found.circuit == [(0, 0, "S2"), (1, 0, "END"), (2, 0, "END"), (2, 1, "END")]
    assert found.writers == [(2, 0)]


def test_a_head_that_looks_and_does_nothing_is_a_near_miss(table):
    """0.1 is a previous-token head that nothing reads."""
    (miss,) = [miss for miss in families.judge(table).near_misses if miss.head == (0, 1)]
    assert miss.family == "previous"
    assert miss.met == (f"attention S1+1 → S1 at least {LOOKS}",)
    assert miss.missed == (f"corrupting it at S1+1 loses at least {EFFECT:.0%} of the gap",)


def test_effects_are_those_worked_out_on_paper(table):
    """Without the mark the movers spread over IO, S1 and S2: from +4 to -4/3 (labcode.toy)."""
    found, gap = families.judge(table), MOVER - NEGATIVE
    assert found.gap.mean == pytest.approx(gap, abs=1e-4)
    for head, measure, lost in (
        ((0, 0), "total S2", gap + gap / 3),
        ((1, 0), "total END", gap + gap / 3),
        ((1, 0), "query", MOVER + MOVER / 3),
        ((2, 0), "direct", MOVER),
        ((2, 1), "direct", -NEGATIVE),
        ((2, 0), "attribution", MOVER),
        ((2, 1), "attribution, alone", -NEGATIVE),
    ):
        assert float(found.evidence[measure].mean[head]) == pytest.approx(lost / gap, abs=1e-3), (head, measure)


def test_what_is_written_for_io_and_against_s_add_up_to_the_attribution(tiny):
    pop = prompts.population(tiny, 4, seed=1)
    found = evidence.measure(tiny, pop, prompts.corrupt(tiny, pop, "abc"), LOOKS, EFFECT)
    from labcode.residual import decompose, direct_attribution

    ours = found["for IO"] + found["against S"]
    shares = []
    for run in (pop, prompts.corrupt(tiny, pop, "abc")):
        parts = decompose(tiny, run)
        share = direct_attribution(tiny, pop, parts)[parts.select("head")]
        shares.append(share.unflatten(0, (tiny.cfg.n_layers, tiny.cfg.n_heads)))
    torch.testing.assert_close(ours, shares[0] - shares[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["attribution"], ours)


def test_only_heads_that_look_at_s1_are_asked_at_the_next_word(table):
    lost = table["total S1+1"]
    looking = table["attention S1+1→S1"].mean(-1) >= LOOKS
    assert looking.any()
    assert torch.equal(~lost.isnan().any(-1), looking)


def test_an_effect_whose_interval_touches_zero_does_not_count():
    seen = families.Evidence(*(torch.tensor([[value]]) for value in (0.5, -0.01, 1.0)), "share of the gap")
    costs = families.FAMILIES["duplicate"].tests[1]
    assert not families.passes({costs.measure: seen}, costs, (0, 0))
    sure = families.Evidence(*(torch.tensor([[value]]) for value in (0.5, 0.01, 1.0)), "share of the gap")
    assert families.passes({costs.measure: sure}, costs, (0, 0))
    against = families.FAMILIES["negative"].tests[1]
    assert not families.passes({against.measure: sure}, against, (0, 0))


def test_shuffled_evidence_finds_fewer(table):
    """Four heads pass with the evidence in place. With all roles tossed, none keeps its sign."""
    tossed = families.shuffled_control(table, "roles", n=40)
    assert tossed.float().mean() < 1.5
    mixed = families.shuffled_control(table, "heads", n=40)
    assert mixed.mean() < 4
    with pytest.raises(FamilyError, match=r"unknown shuffle .names.: choose"):
        families.shuffled_control(table, "names")


def test_halves_of_the_population_agree_on_the_toy(table):
    one, other = (families.judge(table, rows).families for rows in (range(4), range(4, 8)))
    assert one == other


def test_jaccard():
    assert families.jaccard([1, 2, 3], [2, 3, 4]) == 0.5
    assert families.jaccard([], []) == 1
    assert families.jaccard([], [1]) == 0


def test_one_pair_of_prompts_is_too_few(table):
    with pytest.raises(FamilyError, match="too few for an interval: take at least 4 prompts"):
        families.judge(table, [0, 1])


def test_an_unknown_family_is_named(table):
    with pytest.raises(FamilyError, match="unknown family 'movers': choose among previous, duplicate"):
        families.judge(table).nodes("movers")


@pytest.mark.gpt2
def test_the_circuit_of_gpt2_small_is_recovered(gpt2):
    """Wang et al. 2022, figure 2: 26 heads."""
    published = {head for members in CIRCUIT.values() for head in members}
    found = {(layer, head) for layer, head, _ in families.discover(gpt2).circuit}
    assert len(published) == 26
    assert len(found & published) >= 24, sorted(published - found)
    assert len(found - published) <= 4, sorted(found - published)
