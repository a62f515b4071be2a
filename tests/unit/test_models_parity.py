"""The bridge computes what Hugging Face computes: on tiny random models of both shapes, and on the embedded one."""

from __future__ import annotations

import pytest
import torch
from both import load_both

from labcode import models

PROMPTS = (
    "When John and Mary went to the store, John gave a drink to",
    "After Tom and Anna met at the park, Anna handed the ring to",
)


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def both(request):
    return request.getfixturevalue(request.param)


def tokens(bridge):
    return torch.cat([bridge.to_tokens(text) for text in PROMPTS])


def test_log_probabilities_equal_hugging_face(both):
    ids = tokens(both.bridge)
    ours = both.bridge(ids).log_softmax(-1)
    theirs = both.hf(ids).logits.log_softmax(-1)
    # Far from uniform, or the comparison would say little.
    assert theirs.exp().max() > 20 / both.hf.config.vocab_size
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


def test_right_padding_changes_nothing_before_it(both):
    ids = tokens(both.bridge)[:1]
    padded = torch.nn.functional.pad(ids, (0, 5), value=both.bridge.tokenizer.bos_token_id)
    torch.testing.assert_close(both.bridge(padded)[:, : ids.shape[1]], both.bridge(ids), atol=1e-4, rtol=0)


def test_attention_patterns_equal_hugging_face(both):
    ids = tokens(both.bridge)
    _, cache = both.bridge.run_with_cache(ids)
    theirs = both.hf(ids, output_attentions=True).attentions
    for layer, pattern in enumerate(theirs):
        ours = cache[f"blocks.{layer}.attn.hook_pattern"]
        torch.testing.assert_close(ours, pattern, atol=1e-5, rtol=0)


def test_residual_stream_equals_hugging_face_up_to_centring(both):
    """LayerNorm takes the mean away, so compatibility mode takes it away at the source; RMSNorm must not be touched."""
    ids = tokens(both.bridge)
    _, cache = both.bridge.run_with_cache(ids)
    hidden = both.hf(ids, output_hidden_states=True).hidden_states
    centred = both.hf.config.model_type == "gpt2"
    # The last hidden state has the final norm applied already; the bridge has no hook for that value.
    for layer in range(both.bridge.cfg.n_layers):
        theirs = hidden[layer]
        if centred:
            theirs = theirs - theirs.mean(-1, keepdim=True)
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_resid_pre"], theirs, atol=2e-4, rtol=0)
        if layer > 0:
            torch.testing.assert_close(cache[f"blocks.{layer - 1}.hook_resid_post"], theirs, atol=2e-4, rtol=0)


def test_heads_add_up_to_the_attention_output(both):
    ids = tokens(both.bridge)
    _, cache = both.bridge.run_with_cache(ids)
    for layer in range(both.bridge.cfg.n_layers):
        z = cache[f"blocks.{layer}.attn.hook_z"]
        assert z.shape[2:] == (both.bridge.cfg.n_heads, both.bridge.cfg.d_head)
        total = torch.einsum("bphd,hdm->bpm", z, both.bridge.W_O[layer])
        bias = both.bridge.blocks[layer].attn.b_O
        total = total if bias is None else total + bias
        torch.testing.assert_close(total, cache[f"blocks.{layer}.hook_attn_out"], atol=1e-4, rtol=0)


def test_the_folder_s_tokenizer_puts_bos_first_once(both):
    ids = both.bridge.to_tokens(PROMPTS[0])
    assert int(ids[0, 0]) == both.bridge.tokenizer.bos_token_id
    assert int((ids == both.bridge.tokenizer.bos_token_id).sum()) == 1


def test_summary_counts_parameters_as_published(both):
    text = models.summary(both.bridge)
    expected = both.hf.num_parameters() / 1e6
    assert f"{expected:.3g} M parameters" in text
    assert "3 layers x 4 heads" in text
    gpt2 = both.hf.config.model_type == "gpt2"
    assert ("LayerNorm, learned positions" if gpt2 else "(2 key/value heads)") in text
    assert gpt2 or "RMSNorm, rotary positions" in text


def test_the_embedded_model_equals_hugging_face(smollm2):
    folder = models.prepare("smollm2").folder
    hf = load_both(folder, bridge=smollm2).hf
    ids = tokens(smollm2)[:1]
    ours, theirs = smollm2(ids).log_softmax(-1), hf(ids).logits.log_softmax(-1)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    assert "135 M parameters" in models.summary(smollm2)
