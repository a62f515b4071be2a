"""OV circuits: as on paper on the hand-wired toy, as the run's own z on random models."""

from __future__ import annotations

import pytest
import torch

from labcode import ov, prompts
from labcode.errors import HeadError


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def tiny(request):
    return request.getfixturevalue(request.param).bridge


def test_the_toys_mover_copies_and_its_negative_suppresses(toy):
    """2.0 writes the name that it reads, 2.1 the opposite; 0.1 and 1.1 write nothing that is read."""
    found = ov.copy_scores(toy, n=None)
    copies, suppresses = found.copies(k=1), found.suppresses(k=1)
    assert copies[2].tolist() == [1.0, 0.0]
    assert suppresses[2].tolist() == [0.0, 1.0]
    assert found.ranks.shape == (3, 2, len(found.names))


def test_ranks_are_those_of_what_a_head_writes_when_it_sees_one_token(tiny):
    """On one token alone all attention rests on it, so the run's own z is its OV circuit."""
    known, _ = prompts.single_token_names(tiny)
    ids = torch.tensor([prompts.token_id(tiny, " " + name) for name in known[:5]])
    _, cache = tiny.run_with_cache(ids[:, None])
    for layer in range(tiny.cfg.n_layers):
        ranks, negated = ov.ov_ranks(tiny, layer, cache[f"blocks.{layer}.hook_resid_pre"][:, 0], ids)
        for head in range(tiny.cfg.n_heads):
            z = cache[f"blocks.{layer}.attn.hook_z"][:, 0, head]
            for sign, places in ((1, ranks), (-1, negated)):
                logits = sign * tiny.ln_final((z @ tiny.blocks[layer].attn.W_O[head])[:, None])[:, 0] @ tiny.W_U
                logits = logits + tiny.b_U
                for row, token in enumerate(ids.tolist()):
                    order = logits[row].argsort(descending=True)
                    assert abs(int((order == token).nonzero()) - int(places[head, row])) <= 1  # a tie in float32


def test_the_name_is_read_behind_the_start_token_and_after_the_first_block(tiny):
    ids = torch.tensor([prompts.token_id(tiny, " Mary"), prompts.token_id(tiny, " John")])
    streams = ov.name_streams(tiny, ids)
    for row, token in enumerate(ids):
        _, cache = tiny.run_with_cache(torch.tensor([[tiny.tokenizer.bos_token_id, int(token)]]))
        torch.testing.assert_close(streams[row], cache["blocks.0.hook_resid_post"][0, 1], atol=1e-5, rtol=1e-4)


def test_copy_scores_are_shares_of_the_names(tiny):
    found = ov.copy_scores(tiny, n=4, layers=[1], seed=3)
    assert len(set(found.names)) == 4
    assert found.ranks.shape == (1, tiny.cfg.n_heads, 4)
    everything = tiny.cfg.d_vocab
    assert (found.copies(everything) == 1).all()
    assert (found.copies(0) == 0).all()
    ids = torch.tensor([prompts.token_id(tiny, " " + name) for name in found.names])
    ranks, negated = ov.ov_ranks(tiny, 1, ov.name_streams(tiny, ids), ids)
    assert torch.equal(found.ranks[0], ranks)
    assert torch.equal(found.negated[0], negated)


def test_bad_input_says_what_is_wrong(tiny):
    ids = torch.tensor([prompts.token_id(tiny, " Mary")])
    stream = ov.name_streams(tiny, ids)
    with pytest.raises(HeadError, match="no layer 99"):
        ov.ov_ranks(tiny, 99, stream, ids)
    with pytest.raises(HeadError, match="1 streams for 2 tokens"):
        ov.ov_ranks(tiny, 0, stream, ids.repeat(2))
    with pytest.raises(HeadError, match="0 names"):
        ov.copy_scores(tiny, n=0)


@pytest.mark.gpt2
def test_gpt2_name_movers_copy_and_negative_ones_suppress(gpt2):
    found = ov.copy_scores(gpt2)
    copies, suppresses = found.copies(), found.suppresses()
    assert all(copies[head] > 0.85 for head in ((9, 6), (9, 9), (10, 0)))
    assert all(suppresses[head] > 0.85 for head in ((10, 7), (11, 10)))
    assert copies.mean() < 0.2
    assert suppresses.mean() < 0.2
