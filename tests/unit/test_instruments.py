"""Each way in which chapter 03 lets an instrument go wrong, and the guard against it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from labcode import metrics, prompts
from labcode.errors import LabError
from labcode.patching import sweep


@pytest.fixture
def one(tiny_gpt2):
    return prompts.canonical(tiny_gpt2.bridge)


def value(model, pop) -> float:
    return float(metrics.logit_difference(metrics.end_logits(model, pop), pop)[0])


def silence(activation, hook):
    return torch.zeros_like(activation)


def test_a_leaked_hook_changes_later_runs(tiny_gpt2, one):
    model = tiny_gpt2.bridge
    before = value(model, one)
    model.add_hook("blocks.0.hook_attn_out", silence)
    try:
        assert value(model, one) != before
    finally:
        model.reset_hooks()
    assert value(model, one) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_in_a_context_are_gone_after_an_error(tiny_gpt2, one, error):
    model = tiny_gpt2.bridge
    before = value(model, one)

    def enter_and_fail():
        with model.hooks(fwd_hooks=[("blocks.0.hook_attn_out", silence)]):
            assert value(model, one) != before
            raise error

    with pytest.raises(error):
        enter_and_fail()
    assert value(model, one) == before


def test_prompts_that_do_not_align_are_refused(tiny_gpt2, one):
    model = tiny_gpt2.bridge
    longer = prompts.build(
        model,
        [
            prompts.Prompt(
                "When John and Mary went to the big store, Mary gave a drink to", io="John", s="Mary", order="ABBA"
            )
        ],
    )
    with pytest.raises(LabError, match="do not correspond"):
        sweep(model, one, longer, "resid_pre")


def test_closures_share_the_loop_variable(tiny_gpt2, one):
    model = tiny_gpt2.bridge
    swapped = prompts.corrupt(model, one, "swap")
    _, cache = model.run_with_cache(one.tokens)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]

    def put(name, stream, hook):
        return cache[name]

    def run(hook, name):
        logits = model.run_with_hooks(swapped.tokens, fwd_hooks=[(name, hook)])
        return float(metrics.logit_difference(logits[:, -1], one)[0])

    trap = [lambda stream, hook: put(name, stream, hook) for name in names]  # noqa: B023
    cure = [partial(put, name) for name in names]
    clean = value(model, one)
    assert [run(hook, name) for hook, name in zip(cure, names, strict=True)] == pytest.approx([clean] * 3, abs=1e-5)
    wrong = [run(hook, name) for hook, name in zip(trap, names, strict=True)]
    assert wrong[-1] == pytest.approx(clean, abs=1e-5)
    assert abs(wrong[0] - clean) > 1e-3


def test_positions_count_the_start_token(tiny_gpt2, one):
    at = int(one.positions["S2"])
    assert one.str_tokens[0][at] == " John"
    bare = tiny_gpt2.bridge.tokenizer.encode(one.prompts[0].text, add_special_tokens=False)
    assert one.tokens[0, 1:].tolist() == bare
    assert tiny_gpt2.bridge.tokenizer.decode([bare[at]]) != " John"


def test_batching_noise_is_below_the_floor(smollm2):
    pop = prompts.population(smollm2, 8, seed=4)
    alone, together = (
        metrics.logit_difference(metrics.end_logits(smollm2, pop, batch_size=size), pop) for size in (1, 8)
    )
    assert float((alone - together).abs().max()) < 1e-3


def test_the_mean_gap_is_not_ruled_by_one_prompt():
    clean = torch.tensor([4.0, 4.0, 4.0, 0.01])
    corrupted = torch.zeros(4)
    patched = torch.tensor([2.0, 2.0, 2.0, 2.0])
    own = (patched - corrupted) / (clean - corrupted)
    shared = metrics.restoration(patched, clean, corrupted)
    assert own.mean() > 50
    assert 0.5 < shared.mean() < 0.7
    assert shared.max() == shared.min()
