"""Each mistake of chapter 04 made on purpose: that it raises no error, what it does, and what would find it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from labcode import prompts
from labcode.errors import LabError, MetricError, PromptError
from labcode.metrics import bootstrap, end_logits, logit_difference, restoration
from labcode.patching import PatchError, sweep

ROOT = Path(__file__).parents[2]
CHAPTER = ROOT / "book" / "04-instruments.md"
EVERYWHERE = slice(None)


def stream(layer):
    return f"blocks.{layer}.hook_resid_pre"


def hooks_on(model):
    return {name for name, place in model.hook_dict.items() if place.fwd_hooks}


class Bench:
    """The canonical prompt and its swap, both recorded, and the chapter's three checks of an instrument.

    An instrument takes the tokens of a base run, a source run, a layer and where to patch; it gives a logit difference.
    """

    def __init__(self, model):
        self.model, self.n_layers = model, model.cfg.n_layers
        self.one = prompts.canonical(model)
        self.swapped = prompts.corrupt(model, self.one, "swap")
        _, self.clean_run = model.run_with_cache(self.one.tokens)
        _, self.swapped_run = model.run_with_cache(self.swapped.tokens)
        self.clean, self.corrupted = self.run(self.one.tokens), self.run(self.swapped.tokens)
        self.s2, self.end = int(self.one.positions["S2"]), int(self.one.end)

    def run(self, tokens, hooks=()):
        logits = self.model.run_with_hooks(tokens, fwd_hooks=list(hooks))
        return float(logit_difference(logits[:, -1], self.one)[0])

    def patched(self, base, source, layer, where):
        def put(activation, hook):
            activation[:, where] = source[stream(layer)][:, where]
            return activation

        return self.run(base, [(stream(layer), put)])

    def nothing(self, instrument):
        layers = range(self.n_layers)
        values = [instrument(self.swapped.tokens, self.swapped_run, layer, EVERYWHERE) for layer in layers]
        return max(abs(value - self.corrupted) for value in values)

    def everything(self, instrument):
        return abs(instrument(self.swapped.tokens, self.clean_run, 0, EVERYWHERE) - self.clean)

    def known(self, instrument):
        at_s2, at_end = (instrument(self.swapped.tokens, self.clean_run, 0, at) for at in (self.s2, self.end))
        return max(abs(at_s2 - self.clean), abs(at_end - self.corrupted))


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def bench(request):
    return Bench(request.getfixturevalue(request.param).bridge)


def test_a_patch_by_hand_passes_all_three_checks(bench):
    assert bench.nothing(bench.patched) <= 1e-5
    assert bench.everything(bench.patched) <= 1e-4
    assert bench.known(bench.patched) <= 1e-4
    assert abs(bench.clean - bench.corrupted) > 0.01, "the two runs do not differ: nothing is tested"


def test_a_patch_by_hand_is_the_sweeps(bench):
    grid = sweep(bench.model, bench.one, bench.swapped, "resid_pre", at=["S2", "END"])
    for layer in range(bench.n_layers):
        by_hand = [bench.patched(bench.swapped.tokens, bench.clean_run, layer, at) for at in (bench.s2, bench.end)]
        torch.testing.assert_close(grid.values[layer, :, 0], torch.tensor(by_hand), atol=1e-4, rtol=0)


def test_each_check_finds_what_the_other_lets_pass(bench):
    """A misspelt name and a missing return raise no error and do nothing; a third instrument ignores its source."""

    def misspelt(base, source, layer, where):
        return bench.run(base, [(stream(layer) + "d", lambda activation, hook: source[stream(layer)])])

    def no_return(base, source, layer, where):
        def put(activation, hook):
            activation = activation.clone()
            activation[:, where] = source[stream(layer)][:, where]

        return bench.run(base, [(stream(layer), put)])

    def always_clean(base, source, layer, where):
        return bench.patched(base, bench.clean_run, layer, where)

    gap = abs(bench.clean - bench.corrupted)
    for dead in (misspelt, no_return):
        assert bench.nothing(dead) == 0
        assert bench.everything(dead) == pytest.approx(gap, abs=1e-5)
    assert bench.everything(always_clean) <= 1e-4
    assert bench.nothing(always_clean) >= gap - 1e-4


def test_an_edit_in_place_changes_the_run_without_a_return(bench):
    """The hook is given the tensor that the model goes on with; an edit of a copy that is dropped does nothing."""

    def in_place(output, hook):
        output[:] = 0

    def on_a_copy(output, hook):
        output = output.clone()
        output[:] = 0

    place = "blocks.0.hook_mlp_out"
    zeroed = bench.run(bench.one.tokens, [(place, silence)])
    assert abs(zeroed - bench.clean) > 1e-3, "the hook changes nothing: nothing is tested"
    assert bench.run(bench.one.tokens, [(place, in_place)]) == pytest.approx(zeroed, abs=1e-5)
    assert bench.run(bench.one.tokens, [(place, on_a_copy)]) == bench.clean


def silence(output, hook):
    return torch.zeros_like(output)


def test_an_added_hook_stays_a_with_block_cleans_up(bench):
    model, place = bench.model, "blocks.0.hook_mlp_out"
    try:
        model.add_hook(place, silence)
        silenced = bench.run(bench.one.tokens)
        assert abs(silenced - bench.clean) > 1e-3
        assert bench.run(bench.one.tokens) == silenced, "run_with_hooks took off a hook that it had not put on"
        assert hooks_on(model)
    finally:
        model.reset_hooks()
    assert not hooks_on(model)
    assert bench.run(bench.one.tokens) == bench.clean
    seen = []

    def careful():
        with model.hooks(fwd_hooks=[(place, silence)]):
            seen.append(hooks_on(model))
            prompts.token_id(model, " Xanthippe")

    with pytest.raises(PromptError, match="Xanthippe"):
        careful()
    assert seen[0], "the hook was never on: nothing is tested"
    assert not hooks_on(model)

    def fails(output, hook):
        seen.append(hooks_on(model))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.one.tokens, [(place, fails)])
    assert seen[1]
    assert not hooks_on(model)


def test_hooks_at_one_place_add_up(bench):
    """A cell with `add_hook` that is run three times halves three times."""
    place = "blocks.0.hook_mlp_out"
    once = bench.run(bench.one.tokens, [(place, lambda output, hook: 0.125 * output)])
    try:
        for _ in range(3):
            bench.model.add_hook(place, lambda output, hook: 0.5 * output)
        assert bench.run(bench.one.tokens) == pytest.approx(once, abs=1e-5)
    finally:
        bench.model.reset_hooks()
    assert abs(once - bench.clean) > 1e-4


def test_shifted_words_patch_another_token(bench):
    text = "When John and Mary went to the big store, Mary gave drinks to"
    shifted = prompts.build(bench.model, [replace(bench.one.prompts[0], text=text, io="John", s="Mary", order="ABBA")])
    assert shifted.tokens.shape == bench.one.tokens.shape
    assert int((shifted.tokens != bench.one.tokens).sum()) > 1
    assert (bench.swapped.tokens != bench.one.tokens).nonzero().tolist() == [[0, bench.s2]]
    assert shifted.str_tokens[0][bench.s2] != bench.swapped.str_tokens[0][bench.s2]
    value = bench.patched(shifted.tokens, bench.clean_run, 0, bench.s2)
    assert abs(value - bench.clean) > 1e-3
    assert abs(value - bench.run(shifted.tokens)) > 1e-3, "the patch did nothing at all"
    with pytest.raises(PatchError, match="do not correspond"):
        sweep(bench.model, bench.one, shifted, "resid_pre")


def test_prompts_that_cannot_line_up_are_refused(bench):
    text = bench.one.prompts[0].text.replace("store", "big store")
    longer = prompts.build(bench.model, [replace(bench.one.prompts[0], text=text)])
    with pytest.raises(PatchError, match=r"16 tokens and its partner 15(?s:.*)position 8(?s:.*) big'"):
        sweep(bench.model, bench.one, longer, "resid_pre")
    with pytest.raises(PromptError, match=r"Xanthippe' is \d tokens"):
        prompts.canonical(bench.model, io="Xanthippe")
    assert issubclass(PatchError, LabError)


def test_a_closure_in_a_loop_sees_the_last_layer(bench):
    def late_call(base, source, layer, where):
        experiments = []
        for one_layer in range(bench.n_layers):
            experiments.append(lambda: bench.patched(base, source, one_layer, where))  # noqa: B023
        return experiments[layer]()

    def late_vector(base, source, layer, where):
        hooks = []
        for one_layer in range(bench.n_layers):

            def put(activation, hook):
                activation[:, where] = source[stream(one_layer)][:, where]  # noqa: B023
                return activation

            hooks.append((stream(one_layer), put))
        return bench.run(base, [hooks[layer]])

    def cured(base, source, layer, where):
        layers = range(bench.n_layers)
        return [partial(bench.patched, base, source, one_layer, where) for one_layer in layers][layer]()

    def row(instrument):
        args = bench.swapped.tokens, bench.clean_run
        return [instrument(*args, layer, bench.s2) for layer in range(bench.n_layers)]

    good = row(bench.patched)
    assert max(good) - min(good) > 1e-3, "a flat row is right here: nothing is tested"
    assert row(late_call) == pytest.approx([good[-1]] * bench.n_layers, abs=1e-5)
    assert row(late_vector)[-1] == pytest.approx(good[-1], abs=1e-5)
    assert row(late_vector)[0] != pytest.approx(good[0], abs=1e-3)
    assert row(cured) == pytest.approx(good, abs=1e-5)

    assert max(bench.nothing(late_call), bench.everything(late_call)) <= 1e-4
    assert bench.known(late_call) > 1e-3
    assert bench.nothing(late_vector) > 1e-3
    assert max(check(cured) for check in (bench.nothing, bench.everything, bench.known)) <= 1e-4


def test_an_instrument_that_forgets_the_position_is_found_by_a_known_cell_only(bench):
    def forgets_where(base, source, layer, where):
        return bench.patched(base, source, layer, EVERYWHERE)

    assert max(bench.nothing(forgets_where), bench.everything(forgets_where)) <= 1e-4
    assert bench.known(forgets_where) == pytest.approx(abs(bench.clean - bench.corrupted), abs=1e-4)


def test_the_start_token_moves_every_position_by_one(bench):
    model, text = bench.model, bench.one.prompts[0].text
    with_bos = model.to_tokens(text, prepend_bos=True)
    without = model.to_tokens(text, prepend_bos=False)
    assert torch.equal(with_bos, bench.one.tokens)
    assert torch.equal(with_bos[:, 1:], without)
    assert abs(bench.run(without) - bench.clean) > 1e-3
    s2_bare = int((without[0] == bench.one.s_ids[0]).nonzero()[-1])
    assert s2_bare == bench.s2 - 1
    missed = bench.patched(bench.swapped.tokens, bench.clean_run, 0, s2_bare)
    assert missed == pytest.approx(bench.corrupted, abs=1e-5)


def test_rounding_is_far_below_the_effects_we_report(smollm2):
    pop = prompts.population(smollm2, n=8, seed=2)
    together = logit_difference(end_logits(smollm2, pop, batch_size=8), pop)
    alone = logit_difference(end_logits(smollm2, pop, batch_size=1), pop)
    one = pop.subset([0])
    same = sweep(smollm2, one, one, "resid_pre", layers=[0, smollm2.cfg.n_layers // 2])
    floor = max(float((together - alone).abs().max()), float((same.values - same.clean).abs().max()))
    assert floor < 1e-3
    interval = bootstrap(together, pop.draws)
    assert 100 * floor < interval.high - interval.low


def test_one_small_gap_rules_a_mean_of_ratios():
    """Four prompts whose patch restores half of the mean gap or so; one of them has hardly a gap of its own."""
    corrupted = torch.tensor([-2.0, -2.0, -2.0, 1.99])
    clean = torch.tensor([2.0, 2.0, 2.0, 2.0])
    patched = corrupted + torch.tensor([2.0, 2.0, 2.0, -0.5])
    ratios = (patched - corrupted) / (clean - corrupted)
    assert float(ratios.mean()) == pytest.approx((0.5 * 3 - 50) / 4, rel=1e-3)
    assert float(restoration(patched, clean, corrupted).mean()) == pytest.approx(5.5 / 12.01, rel=1e-3)
    with pytest.raises(MetricError, match="divides by this gap"):
        restoration(patched, clean, clean)
