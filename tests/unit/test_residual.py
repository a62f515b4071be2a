"""The stream as a sum: exact on every architecture, as worked out on the toy, and as Hugging Face computes it."""

from __future__ import annotations

import pytest
import torch

from labcode import metrics, prompts, residual
from labcode.errors import MetricError


@pytest.fixture(params=["toy", "tiny_gpt2", "tiny_llama", "smollm2"])
def model(request):
    found = request.getfixturevalue(request.param)
    return getattr(found, "bridge", found)


@pytest.fixture
def pop(model):
    return prompts.population(model, 8)


def test_terms_sum_to_the_stream(model, pop):
    parts = residual.decompose(model, pop, batch_size=3)
    torch.testing.assert_close(parts.terms.sum(0), parts.stream, atol=1e-3, rtol=1e-4)
    assert len(parts.select("head")) == model.cfg.n_layers * model.cfg.n_heads


def test_a_heads_term_is_its_z_times_its_part_of_w_o(model, pop):
    """Written out: at END of each prompt alone, without the library."""
    parts = residual.decompose(model, pop, batch_size=3)
    of = dict(zip(parts.labels, parts.terms, strict=True))
    layer, head = model.cfg.n_layers - 1, 1
    for row in range(2):
        _, cache = model.run_with_cache(pop.subset([row]).tokens)
        written = cache[f"blocks.{layer}.attn.hook_z"][0, -1, head] @ model.blocks[layer].attn.W_O[head]
        torch.testing.assert_close(of[f"{layer}.{head}"][row], written, atol=1e-4, rtol=1e-4)
        if not model.cfg.attn_only:
            torch.testing.assert_close(of["mlp 0"][row], cache["blocks.0.hook_mlp_out"][0, -1], atol=1e-4, rtol=1e-4)


def test_shares_sum_to_the_logit_difference(model, pop):
    share = residual.direct_attribution(model, pop, residual.decompose(model, pop))
    measured = metrics.logit_difference(metrics.end_logits(model, pop), pop)
    torch.testing.assert_close(share.sum(0) + residual.bias_difference(model, pop), measured, atol=1e-4, rtol=1e-5)


def test_the_lens_ends_at_the_output(model, pop):
    stages, reading = residual.logit_lens(model, pop, batch_size=5)
    assert reading.shape == (len(stages), len(pop))
    assert stages[0] == "embed"
    measured = metrics.logit_difference(metrics.end_logits(model, pop), pop)
    torch.testing.assert_close(reading[-1], measured, atol=1e-4, rtol=1e-5)


def test_the_toy_as_worked_out_on_paper(toy):
    pop = prompts.population(toy, 6)
    parts = residual.decompose(toy, pop)
    share = residual.direct_attribution(toy, pop, parts)
    of = dict(zip(parts.labels, share, strict=True))
    torch.testing.assert_close(of["2.0"], torch.full((6,), 6.0), atol=1e-4, rtol=0)  # the name mover
    torch.testing.assert_close(of["2.1"], torch.full((6,), -2.0), atol=1e-4, rtol=0)  # the negative name mover
    for head in ("0.0", "0.1", "1.0", "1.1"):
        assert of[head].abs().max() < 1e-4
    stages, reading = residual.logit_lens(toy, pop)
    torch.testing.assert_close(reading[stages.index("attn 1")], torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(reading[stages.index("attn 2")], torch.full((6,), 4.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("which", ["tiny_gpt2", "tiny_llama"])
def test_the_lens_is_what_hugging_face_reads_from_its_hidden_states(which, request):
    pair = request.getfixturevalue(which)
    pop = prompts.population(pair.bridge, 4)
    stages, reading = residual.logit_lens(pair.bridge, pop)
    core = pair.hf.transformer if which == "tiny_gpt2" else pair.hf.model
    norm = core.ln_f if which == "tiny_gpt2" else core.norm
    hidden = pair.hf(pop.tokens, output_hidden_states=True).hidden_states
    rows = torch.arange(len(pop))
    for layer in range(pair.bridge.cfg.n_layers - 1):  # the last hidden state comes with the norm applied
        logits = pair.hf.lm_head(norm(hidden[layer + 1]))[rows, pop.end]
        expected = logits[rows, pop.io_ids] - logits[rows, pop.s_ids]
        torch.testing.assert_close(reading[stages.index(f"mlp {layer}")], expected, atol=1e-4, rtol=1e-4)


def test_a_term_that_the_decomposition_does_not_know(tiny_llama):
    pop = prompts.canonical(tiny_llama.bridge)

    def add(value, hook):
        return value + 1.0

    with (
        tiny_llama.bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", add)]),
        pytest.raises(MetricError, match="miss it by"),
    ):
        residual.decompose(tiny_llama.bridge, pop)
