"""Token and position signals: the prompts of the paper's appendix A, its fit, exchanges as plain patches."""

from __future__ import annotations

import pytest
import torch

from labcode import prompts, signals
from labcode.metrics import logit_difference
from labcode.patching import sweep
from labcode.published import PUBLISHED
from labcode.signals import POSITION, TOKEN, SignalError

VARIANTS = [(token, position) for token in TOKEN for position in POSITION]


def words(pop, row=0):
    return [pop.str_tokens[row][int(pop.positions[place][row])].strip() for place in ("S1", "IO", "S2")]


def test_the_variants_are_those_of_the_paper(toy):
    """At S1's place, IO's place and S2; S is John and IO Mary."""
    pop = prompts.canonical(toy)
    assert words(signals.variant(toy, pop, "original", "original")) == ["John", "Mary", "John"]
    assert words(signals.variant(toy, pop, "original", "inverted")) == ["Mary", "John", "John"]
    assert words(signals.variant(toy, pop, "inverted", "original")) == ["Mary", "John", "Mary"]
    assert words(signals.variant(toy, pop, "inverted", "inverted")) == ["John", "Mary", "Mary"]
    one, two, again = words(signals.variant(toy, pop, "random", "original"))
    assert one == again != two
    assert not {one, two} & {"John", "Mary"}
    one, two, again = words(signals.variant(toy, pop, "random", "inverted"))
    assert two == again != one


def test_variants_change_nothing_but_names(tiny):
    pop = prompts.population(tiny, 4, seed=2)
    places = torch.stack([pop.positions[place] for place in ("S1", "IO", "S2")], dim=1)
    for token, position in VARIANTS:
        found = signals.variant(tiny, pop, token, position)
        same = (found.tokens == pop.tokens).scatter(1, places, True)
        assert same.all()
        assert torch.equal(found.io_ids, pop.io_ids)
    swapped = prompts.corrupt(tiny, pop, "swap")
    assert torch.equal(signals.variant(tiny, pop, "inverted", "inverted").tokens, swapped.tokens)
    assert torch.equal(signals.variant(tiny, pop, "original", "original").tokens, pop.tokens)


def test_the_toys_second_layer_says_the_name_and_not_the_place(toy):
    """1.0 at END says "not John". Told "not Mary", the movers find John's two mentions and leave Mary alone."""
    pop = prompts.canonical(toy)
    run = {
        (token, position): float(signals.exchange(toy, pop, signals.variant(toy, pop, token, position), [(1, 0)]))
        for token, position in VARIANTS
    }
    clean = run["original", "original"]
    assert run["original", "inverted"] == pytest.approx(clean, abs=1e-4)
    assert run["inverted", "original"] == pytest.approx(-clean, abs=1e-4)
    assert run["inverted", "inverted"] == pytest.approx(-clean, abs=1e-4)
    assert run["random", "original"] == pytest.approx(-clean / 3, abs=1e-4)  # a third on Mary, two thirds on John
    assert run["random", "inverted"] == pytest.approx(-clean / 3, abs=1e-4)


def test_exchanging_one_head_is_noising_it_at_end(tiny):
    pop = prompts.population(tiny, 4, seed=1)
    source = signals.variant(tiny, pop, "inverted", "inverted")
    grid = sweep(tiny, pop, source, "z", at="END", direction="noising", only=[(0, 1)])
    torch.testing.assert_close(
        signals.exchange(tiny, pop, source, [(0, 1)]), grid.values[0].float(), atol=1e-4, rtol=1e-4
    )


def test_heads_are_exchanged_together(tiny):
    """All heads of the last layer at once are that layer's whole attention."""
    pop = prompts.population(tiny, 4, seed=1)
    source = signals.variant(tiny, pop, "random", "inverted")
    last = tiny.cfg.n_layers - 1
    hook = f"blocks.{last}.attn.hook_z"
    found = signals.exchange(tiny, pop, source, [(last, head) for head in range(tiny.cfg.n_heads)])
    for row in range(len(pop)):
        one, other = pop.subset([row]), source.subset([row])
        _, cache = tiny.run_with_cache(other.tokens)

        def put(z, hook, stored=cache[hook]):
            z[:, -1] = stored[:, -1]
            return z

        logits = tiny.run_with_hooks(one.tokens, fwd_hooks=[(hook, put)])
        assert float(found[row]) == pytest.approx(float(logit_difference(logits[:, -1], one)), abs=1e-4)


def test_the_fit_gives_the_papers_weights_from_the_papers_table():
    table = {
        (token, position): torch.tensor([PUBLISHED[f"wang.signal.{token}.{position}"].value])
        for token, position in VARIANTS
    }
    found = signals.fit(table)
    assert float(found["position"]) == pytest.approx(PUBLISHED["wang.signal.position"].value, abs=0.01)
    assert float(found["token"]) == pytest.approx(PUBLISHED["wang.signal.token"].value, abs=0.01)


def test_the_fit_of_each_prompt_is_exact_on_a_line():
    weights = {"position": torch.tensor([2.0, -1.0]), "token": torch.tensor([0.5, 3.0])}
    table = {(t, p): weights["position"] * POSITION[p] + weights["token"] * TOKEN[t] + 0.25 for t, p in VARIANTS}
    found = signals.fit(table)
    torch.testing.assert_close(found["position"], weights["position"])
    torch.testing.assert_close(found["token"], weights["token"])
    torch.testing.assert_close(found["constant"], torch.full((2,), 0.25))
    assert found["residual"].max() < 1e-5


def test_bad_input_says_what_is_wrong(tiny):
    pop = prompts.population(tiny, 4, seed=1)
    with pytest.raises(SignalError, match="'other' token"):
        signals.variant(tiny, pop, "other", "original")
    with pytest.raises(SignalError, match="changed already"):
        signals.variant(tiny, prompts.corrupt(tiny, pop, "swap"), "random", "original")
    with pytest.raises(SignalError, match=r"no head 0\.99"):
        signals.exchange(tiny, pop, pop, [(0, 99)])
    with pytest.raises(SignalError, match="no heads"):
        signals.exchange(tiny, pop, pop, [])
    with pytest.raises(SignalError, match="different lengths"):
        signals.exchange(tiny, pop, prompts.population(tiny, 6, seed=2), [(0, 0)])
    with pytest.raises(SignalError, match="cannot tell"):
        signals.fit({("original", "original"): torch.ones(2)})
