"""Populations: distinct, balanced, aligned, the same for a seed; and each bad input with its message."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labcode import prompts
from labcode.errors import PromptError

even = st.integers(1, 40).map(lambda half: 2 * half)
seeds = st.integers(0, 10_000)


@given(n=even, seed=seeds)
@settings(max_examples=25, deadline=None)
def test_a_population_is_distinct_balanced_and_found(toy, n, seed):
    pop = prompts.population(toy, n, seed)
    assert len({p.text for p in pop.prompts}) == n
    assert Counter(p.order for p in pop.prompts) == {"ABBA": n // 2, "BABA": n // 2}
    assert Counter(p.io for p in pop.prompts) == Counter(p.s for p in pop.prompts)
    frames = Counter(p.template for p in pop.prompts).values()
    assert max(frames) - min(frames) <= 2 or len(frames) < len(prompts.TEMPLATES)
    for row, prompt in enumerate(pop.prompts):
        at = {name: int(where[row]) for name, where in pop.positions.items()}
        tokens = pop.str_tokens[row]
        assert tokens[at["IO"]] == " " + prompt.io
        assert tokens[at["S1"]] == tokens[at["S2"]] == " " + prompt.s
        assert at["S1+1"] == at["S1"] + 1
        assert at["END"] == len(tokens) - 1 == int(pop.lengths[row]) - 1
        assert (at["IO"] < at["S1"]) == (prompt.order == "ABBA")


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_a_seed_gives_the_same_population(toy, seed):
    one, two = prompts.population(toy, 12, seed), prompts.population(toy, 12, seed)
    assert one.prompts == two.prompts
    assert torch.equal(one.tokens, two.tokens)


def test_other_seeds_give_other_populations(toy):
    assert prompts.population(toy, 12, 0).prompts != prompts.population(toy, 12, 1).prompts


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_neighbours_are_one_sentence_with_the_roles_exchanged(toy, seed):
    pop = prompts.population(toy, 10, seed)
    for a, b in zip(pop.prompts[::2], pop.prompts[1::2], strict=True):
        assert (a.io, a.s, a.draw) == (b.s, b.io, b.draw)
        assert Counter(a.text.split()) - Counter({a.s: 1}) == Counter(b.text.split()) - Counter({b.s: 1})


def test_swapping_the_subject_gives_the_neighbour(toy):
    pop = prompts.population(toy, 8)
    swapped = prompts.corrupt(toy, pop, "swap")
    for row in range(0, 8, 2):
        assert torch.equal(swapped.tokens[row], pop.tokens[row + 1])
    assert torch.equal(swapped.io_ids, pop.io_ids)


def test_abc_has_three_new_names_and_changes_nothing_else(toy):
    pop = prompts.population(toy, 20)
    abc = prompts.corrupt(toy, pop, "abc", seed=3)
    for row in range(20):
        changed = (abc.tokens[row] != pop.tokens[row]).nonzero()[:, 0].tolist()
        assert changed == sorted(int(pop.positions[name][row]) for name in ("IO", "S1", "S2"))
        new = {abc.str_tokens[row][i].strip() for i in changed}
        assert len(new) == 3
        assert new.isdisjoint({pop.prompts[row].io, pop.prompts[row].s})


def test_the_first_mention_alone_is_replaced(toy):
    pop = prompts.population(toy, 20)
    new = prompts.corrupt(toy, pop, "first", seed=3)
    for row in range(20):
        s1, s2 = (int(pop.positions[name][row]) for name in ("S1", "S2"))
        assert (new.tokens[row] != pop.tokens[row]).nonzero()[:, 0].tolist() == [s1]
        assert new.str_tokens[row][s1].strip() not in (pop.prompts[row].io, pop.prompts[row].s)
        assert new.str_tokens[row][s2].strip() == pop.prompts[row].s
        assert new.tokens[row].tolist().count(int(pop.s_ids[row])) == 1


def test_tokens_are_those_of_the_bridge(smollm2):
    pop = prompts.population(smollm2, 6)
    for row, prompt in enumerate(pop.prompts):
        assert (
            pop.tokens[row, : pop.lengths[row]].tolist() == smollm2.to_tokens(prompt.text, prepend_bos=True)[0].tolist()
        )


def test_padding_on_the_right_changes_no_logit(smollm2):
    pop = prompts.population(smollm2, 20)
    short = int(pop.lengths.argmin())
    assert pop.lengths[short] < pop.tokens.shape[1]
    alone = pop.subset([short])
    with torch.no_grad():
        padded = smollm2(pop.tokens[short : short + 1])[0, int(pop.end[short])]
        bare = smollm2(alone.tokens)[0, -1]
    torch.testing.assert_close(padded, bare, atol=1e-4, rtol=0)


def test_names_of_several_tokens_are_dropped_and_counted(smollm2):
    kept, dropped = prompts.single_token_names(smollm2)
    assert sorted(kept + dropped) == sorted(prompts.NAMES)
    for name in kept:
        assert len(smollm2.tokenizer.encode(" " + name, add_special_tokens=False)) == 1
    for name in dropped:
        assert len(smollm2.tokenizer.encode(" " + name, add_special_tokens=False)) > 1


def test_a_name_of_several_tokens_is_an_error_that_lists_them(smollm2):
    with pytest.raises(PromptError, match=r"' Bartholomew' is \d tokens"):
        prompts.canonical(smollm2, io="Bartholomew")


@pytest.mark.parametrize("n", [-2, 0, 3])
def test_a_population_comes_in_pairs(toy, n):
    with pytest.raises(PromptError, match=r"even and at least 2|give a number that is 1 or more"):
        prompts.population(toy, n)


def test_a_cap_for_a_quick_look(toy, monkeypatch):
    whole = prompts.population(toy, 20, seed=2)
    monkeypatch.setenv("LAB_PROMPTS", "6")
    assert prompts.population(toy, 20, seed=2).prompts == whole.prompts[:6]
    assert len(prompts.population(toy, 4)) == 4
    monkeypatch.setenv("LAB_PROMPTS", "x3")
    assert prompts.population(toy, 4, seed=2).prompts == whole.prompts[:12]
    for wrong in ("5", "2", "many", "x", "x0", "x1.5"):
        monkeypatch.setenv("LAB_PROMPTS", wrong)
        with pytest.raises(PromptError, match=f"LAB_PROMPTS={wrong}"):
            prompts.population(toy, 20)


def test_more_prompts_than_there_are(toy):
    with pytest.raises(PromptError, match="at most"):
        prompts.population(toy, 10**9)


def test_every_prompt_that_there_is_can_be_drawn(toy, monkeypatch):
    monkeypatch.setattr(prompts, "PLACES", ("store",))
    monkeypatch.setattr(prompts, "OBJECTS", ("drink",))
    frame = prompts.TEMPLATES[:1]
    names, _ = prompts.single_token_names(toy)
    limit = len(names) * (len(names) - 1)
    assert len({p.text for p in prompts.population(toy, limit, templates=frame).prompts}) == limit
    with pytest.raises(PromptError, match="at most"):
        prompts.population(toy, limit + 2, templates=frame)


def test_no_prompts(toy):
    with pytest.raises(PromptError, match="empty population"):
        prompts.build(toy, [])
    with pytest.raises(PromptError, match="empty population"):
        prompts.population(toy, 4).subset([])


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("When John and Mary went to the store, Mary gave a drink to", "Mary 2 times and John 1"),
        ("When Mary went to the store, John gave a drink to", "Mary 1 times and John 1"),
    ],
)
def test_a_prompt_without_its_names(toy, text, counts):
    with pytest.raises(PromptError, match=counts):
        prompts.build(toy, [prompts.Prompt(text, "Mary", "John", "ABBA")])


def test_unknown_and_double_corruption(toy):
    pop = prompts.canonical(toy)
    with pytest.raises(PromptError, match="unknown how"):
        prompts.corrupt(toy, pop, "noise")
    with pytest.raises(PromptError, match="corrupted already"):
        prompts.corrupt(toy, prompts.corrupt(toy, pop, "swap"), "swap")


def test_a_tokenizer_with_too_few_names_for_three_fresh_ones(toy, monkeypatch):
    monkeypatch.setattr(prompts, "NAMES", prompts.single_token_names(toy)[0][:4])
    with pytest.raises(PromptError, match="3 fresh names beside IO and S need 5 usable names, this tokenizer has 4"):
        prompts.corrupt(toy, prompts.canonical(toy), "abc")
