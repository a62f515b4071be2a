"""Head scores: exact on the hand-wired toy, as a plain slow loop on random models, as read before on real ones."""

from __future__ import annotations

import pytest
import torch

from labcode import heads, prompts
from labcode.heads import KINDS, HeadError
from labcode.toy import NAMES, VOCAB

NAME_IDS = [VOCAB.index(f" {name}") for name in NAMES]


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def tiny(request):
    return request.getfixturevalue(request.param).bridge


def patterns(model, tokens):
    """[layer head query key] of one sequence, from a whole run."""
    _, cache = model.run_with_cache(tokens[None])
    return torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"][0] for layer in range(model.cfg.n_layers)])


def test_the_toys_heads_score_as_on_paper(toy):
    """0.1 looks back one token always; 0.0 finds a repeated name, and knows no other word."""
    found = heads.random_token_scores(toy, length=15, n=6, seeds=(0, 1))
    previous, duplicate, induction = (found.values[kind] for kind in KINDS)
    share = torch.tensor([sum(token in NAME_IDS for token in row) / len(row) for row in found.tokens[:, 16:].tolist()])
    assert share.max() > 0
    torch.testing.assert_close(previous[0, 1], torch.ones(12), atol=1e-6, rtol=0)
    torch.testing.assert_close(duplicate[0, 0], share, atol=1e-6, rtol=0)
    assert duplicate[0, 1].max() < 1e-6
    assert induction[0].max() < 1e-6


def test_the_idle_head_of_the_toy_scores_as_chance(toy):
    """1.1 has no weights: at position p it gives 1 / (p + 1) to every token it can see."""
    length = 5
    found = heads.random_token_scores(toy, length=length, n=2, seeds=(0,))
    for kind, first in (("previous", 2), ("duplicate", length + 1), ("induction", length + 1)):
        chance = sum(1 / (p + 1) for p in range(first, 2 * length + 1)) / (2 * length + 1 - first)
        assert found.mean(kind)[1, 1] == pytest.approx(chance, abs=1e-6)


def test_the_sequences_are_repeated_distinct_ordinary_tokens(tiny):
    found = heads.random_token_scores(tiny, length=6, n=3, seeds=(4, 5))
    special = {*tiny.tokenizer.all_special_ids, *tiny.tokenizer.get_added_vocab().values()}
    for row in found.tokens.tolist():
        assert row[0] == tiny.tokenizer.bos_token_id
        assert row[1:7] == row[7:]
        assert len(set(row[1:7])) == 6
        assert not special & set(row[1:])
    assert len({tuple(row) for row in found.tokens.tolist()}) == 6
    assert found.seeds.tolist() == [4, 4, 4, 5, 5, 5]


def test_random_token_scores_equal_a_plain_loop(tiny):
    length = 5
    found = heads.random_token_scores(tiny, length=length, n=3, seeds=(0, 1), batch_size=4)
    for row, tokens in enumerate(found.tokens):
        pattern = patterns(tiny, tokens)
        for layer in range(tiny.cfg.n_layers):
            for head in range(tiny.cfg.n_heads):
                seen = pattern[layer, head]
                slow = {
                    "previous": [seen[p, p - 1] for p in range(2, 2 * length + 1)],
                    "duplicate": [seen[p, p - length] for p in range(length + 1, 2 * length + 1)],
                    "induction": [seen[p, p - length + 1] for p in range(length + 1, 2 * length + 1)],
                }
                for kind, attention in slow.items():
                    expected = float(torch.stack(attention).mean())
                    assert float(found.values[kind][layer, head, row]) == pytest.approx(expected, abs=1e-5)


def test_means_intervals_and_seeds_are_of_the_same_values(tiny):
    found = heads.random_token_scores(tiny, length=5, n=3, seeds=(0, 1))
    intervals = found.intervals("induction")
    assert torch.tensor([i.mean for i in intervals]).view(3, 4) == pytest.approx(found.mean("induction"), abs=1e-6)
    assert all(i.low <= i.mean <= i.high and i.n == 6 for i in intervals)
    assert found.seeds.tolist() == [0, 0, 0, 1, 1, 1]


def test_position_attention_on_the_toy(toy):
    """The chain of the toy: S2 to S1 by 0.0, S1+1 to S1 by 0.1, END to S2 by 1.0, END to IO by 2.0."""
    pop = prompts.population(toy, 8, seed=1)
    for source, target, (layer, head) in (
        ("S2", "S1", (0, 0)),
        ("S1+1", "S1", (0, 1)),
        ("END", "S2", (1, 0)),
        ("END", "IO", (2, 0)),
    ):
        found = heads.position_attention(toy, pop, source, target, batch_size=3)
        assert found.shape == (3, 2, 8)
        torch.testing.assert_close(found[layer, head], torch.ones(8), atol=1e-6, rtol=0)
    assert heads.position_attention(toy, pop, "S2", "S1+1")[0].max() < 1e-6


def test_position_attention_equals_single_runs(tiny):
    pop = prompts.population(tiny, 6, seed=1)
    assert pop.lengths.unique().numel() > 1
    found = heads.position_attention(tiny, pop, "END", "S1+1", batch_size=4)
    for i in range(len(pop)):
        pattern = patterns(tiny, pop.subset([i]).tokens[0])
        expected = pattern[:, :, pop.end[i], pop.positions["S1+1"][i]]
        torch.testing.assert_close(found[..., i], expected, atol=1e-5, rtol=0)


def test_controls_come_from_the_same_layers(tiny):
    family = [(0, 1), (0, 2), (2, 3)]
    drawn = heads.same_layer_heads(tiny, family, exclude=[(2, 0)], seed=3)
    assert sorted(layer for layer, _ in drawn) == [0, 0, 2]
    assert not set(drawn) & {*family, (2, 0)}
    assert drawn == heads.same_layer_heads(tiny, family, exclude=[(2, 0)], seed=3)
    every = {tuple(heads.same_layer_heads(tiny, family, seed=seed)) for seed in range(20)}
    assert {drawn[-1] for drawn in every} == {(2, 0), (2, 1), (2, 2)}


def test_a_full_layer_is_replaced_by_the_nearest(tiny):
    whole = [(0, head) for head in range(4)]
    assert {layer for layer, _ in heads.same_layer_heads(tiny, whole)} == {1}
    assert heads.same_layer_heads(tiny, []) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length": 64}, r"are 129, this model's context is 128: take a length of at most 63"),
        ({"length": 2}, "length = 2"),
        ({"n": 0}, "argument n: 0"),
        ({"seeds": ()}, "0 seeds"),
    ],
)
def test_bad_sequences_are_named(tiny, wrong, message):
    with pytest.raises(HeadError, match=message):
        heads.random_token_scores(tiny, **wrong)


def test_a_small_vocabulary_is_named(toy, monkeypatch):
    monkeypatch.setattr(toy.cfg, "n_ctx", 1000)
    with pytest.raises(HeadError, match=rf"200 different tokens asked for, this vocabulary has {len(VOCAB) - 3}"):
        heads.random_token_scores(toy, length=200)


def test_bad_positions_are_named(tiny):
    pop = prompts.population(tiny, 4, seed=1)
    with pytest.raises(HeadError, match=r"unknown position 'S3': choose among IO, S1, S1\+1, S2, END"):
        heads.position_attention(tiny, pop, "S3", "S1")
    with pytest.raises(HeadError, match="S1 comes after IO in 2 of 4 prompts, first in"):
        heads.position_attention(tiny, pop, "IO", "S1")


def test_too_few_controls_are_named(toy):
    with pytest.raises(HeadError, match="4 heads to replace, and only 2 others"):
        heads.same_layer_heads(toy, [(0, 0), (0, 1), (1, 0), (1, 1)])


def test_nan_is_named_and_no_hook_is_left_behind(tiny):
    def spoil(pattern, hook):
        return pattern * float("nan")

    name = "blocks.1.attn.hook_pattern"
    with tiny.hooks(fwd_hooks=[(name, spoil)]), pytest.raises(HeadError, match="NaN in the attention of layer 1"):
        heads.random_token_scores(tiny, length=5)
    assert not any(point.fwd_hooks for point in tiny.hook_dict.values())


# Read by a separate program before this module was written.
READ = {
    "induction": {"18.6": 0.90, "17.3": 0.78, "17.4": 0.77, "17.5": 0.69},
    "duplicate": {"14.3": 0.75, "8.0": 0.74},
    "previous": {"16.0": 0.89, "11.1": 0.83, "2.1": 0.75},
}


def named(mean):
    """Heads from the highest score down, as "layer.head"."""
    n_heads = mean.shape[1]
    order = mean.flatten().argsort(descending=True).tolist()
    return {f"{i // n_heads}.{i % n_heads}": float(mean.flatten()[i]) for i in order}


def test_the_embedded_models_first_readings(smollm2):
    found = heads.random_token_scores(smollm2)
    for kind, readings in READ.items():
        here = named(found.mean(kind))
        assert set(list(here)[: len(readings)]) == set(readings), kind
        for head, value in readings.items():
            assert here[head] == pytest.approx(value, abs=0.1), (kind, head)


@pytest.mark.gpt2
def test_the_paper_s_heads_lead_on_gpt2(gpt2):
    """Wang et al. 2022, appendices H and I."""
    found = heads.random_token_scores(gpt2)
    leaders = {kind: list(named(found.mean(kind))) for kind in KINDS}
    assert set(leaders["previous"][:2]) == {"4.11", "2.2"}
    assert {"5.5", "6.9"} <= set(leaders["induction"][:5])
    assert {"3.0", "0.1"} <= set(leaders["duplicate"][:3])


def test_the_toys_mover_copies_and_its_negative_suppresses(toy):
    """2.0 writes the name that it reads, 2.1 the opposite; 0.1 and 1.1 write nothing that is read."""
    found = heads.copy_scores(toy, n=None)
    copies, suppresses = found.copies(k=1), (found.negated < 1).float().mean(-1)
    assert copies[2].tolist() == [1.0, 0.0]
    assert suppresses[2].tolist() == [0.0, 1.0]
    assert found.ranks.shape == (3, 2, len(found.names))


def test_ranks_are_those_of_what_a_head_writes_when_it_sees_one_token(tiny):
    """On one token alone all attention rests on it, so the run's own z is its OV circuit."""
    known, _ = prompts.single_token_names(tiny)
    ids = torch.tensor([prompts.token_id(tiny, " " + name) for name in known[:5]])
    _, cache = tiny.run_with_cache(ids[:, None])
    for layer in range(tiny.cfg.n_layers):
        ranks, negated = heads.ov_ranks(tiny, layer, cache[f"blocks.{layer}.hook_resid_pre"][:, 0], ids)
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
    streams = heads.name_streams(tiny, ids)
    for row, token in enumerate(ids):
        _, cache = tiny.run_with_cache(torch.tensor([[tiny.tokenizer.bos_token_id, int(token)]]))
        torch.testing.assert_close(streams[row], cache["blocks.0.hook_resid_post"][0, 1], atol=1e-5, rtol=1e-4)


def test_copy_scores_are_shares_of_the_names(tiny):
    found = heads.copy_scores(tiny, n=4, seed=3)
    assert len(set(found.names)) == 4
    assert found.ranks.shape == (3, tiny.cfg.n_heads, 4)
    everything = tiny.cfg.d_vocab
    assert (found.copies(everything) == 1).all()
    assert (found.copies(0) == 0).all()
    ids = torch.tensor([prompts.token_id(tiny, " " + name) for name in found.names])
    ranks, negated = heads.ov_ranks(tiny, 1, heads.name_streams(tiny, ids), ids)
    assert torch.equal(found.ranks[1], ranks)
    assert torch.equal(found.negated[1], negated)


def test_ov_circuits_that_do_not_exist_are_named(tiny):
    ids = torch.tensor([prompts.token_id(tiny, " Mary")])
    stream = heads.name_streams(tiny, ids)
    with pytest.raises(HeadError, match="no layer 99"):
        heads.ov_ranks(tiny, 99, stream, ids)
    with pytest.raises(HeadError, match=r"2 entries along .batch., and another argument has 1"):
        heads.ov_ranks(tiny, 0, stream, ids.repeat(2))
    with pytest.raises(HeadError, match="argument n: 0"):
        heads.copy_scores(tiny, n=0)


@pytest.mark.gpt2
def test_gpt2_name_movers_copy_and_negative_ones_suppress(gpt2):
    found = heads.copy_scores(gpt2)
    copies, suppresses = found.copies(), (found.negated < 5).float().mean(-1)
    assert all(copies[head] > 0.85 for head in ((9, 6), (9, 9), (10, 0)))
    assert all(suppresses[head] > 0.85 for head in ((10, 7), (11, 10)))
    assert copies.mean() < 0.2
    assert suppresses.mean() < 0.2
