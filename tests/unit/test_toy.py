"""The toy's numbers are the ones that its docstring works out on paper."""

from __future__ import annotations

import pytest
import torch

from labcode.toy import MOVER, NAMES, NEGATIVE, SPACES, VOCAB, build

BABA = "When John and Mary went to the store, John gave a drink to"
ABBA = "When Mary and John went to the store, John gave a drink to"
FULL = MOVER - NEGATIVE


def difference(model, logits, io=" Mary", s=" John"):
    return float(logits[0, -1, model.to_single_token(io)] - logits[0, -1, model.to_single_token(s)])


def ablated(model, text, layer, head):
    """Logits with one head's output set to zero."""

    def zero(z, hook):
        return z.index_fill(2, torch.tensor([head]), 0.0)

    return model.run_with_hooks(model.to_tokens(text), fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)])


def where(cache, layer, head, query):
    """The positions a head attends to from one position, with their weights."""
    row = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, query]
    return {i: round(float(weight), 6) for i, weight in enumerate(row) if weight > 1e-6}


@pytest.mark.parametrize("text", [BABA, ABBA])
def test_the_answer_is_io_by_four_logits_whichever_name_comes_first(toy, text):
    logits = toy(toy.to_tokens(text))
    assert difference(toy, logits) == pytest.approx(FULL, abs=1e-6)
    rest = logits[0, -1].clone()
    rest[toy.to_single_token(" Mary")] = 0
    assert float(rest.abs().max()) < 1e-6
    # And so the probability of the answer is known too: one logit of 4 among zeros.
    expected = torch.tensor(FULL).exp() / (torch.tensor(FULL).exp() + len(VOCAB) - 1)
    assert float(logits[0, -1].softmax(-1)[toy.to_single_token(" Mary")]) == pytest.approx(float(expected), abs=1e-6)


def test_repeating_the_other_name_flips_the_answer(toy):
    logits = toy(toy.to_tokens(BABA.replace(", John", ", Mary")))
    assert difference(toy, logits) == pytest.approx(-FULL, abs=1e-6)


def test_three_different_names_get_a_third_each(toy):
    logits = toy(toy.to_tokens(BABA.replace(", John", ", Anna")))[0, -1]
    thirds = [float(logits[toy.to_single_token(f" {name}")]) for name in ("John", "Mary", "Anna")]
    assert thirds == pytest.approx([FULL / 3] * 3, abs=1e-6)


@pytest.mark.parametrize("text", [BABA, ABBA])
@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ((0, 0), -FULL / 3),
        ((0, 1), FULL),
        ((1, 0), -FULL / 3),
        ((1, 1), FULL),
        ((2, 0), -NEGATIVE),
        ((2, 1), MOVER),
    ],
)
def test_ablating_a_head_has_the_effect_worked_out_on_paper(toy, text, head, expected):
    assert difference(toy, ablated(toy, text, *head)) == pytest.approx(expected, abs=1e-5)


def test_each_head_attends_where_its_job_says(toy):
    _, cache = toy.run_with_cache(toy.to_tokens(BABA))
    tokens = toy.to_str_tokens(BABA)
    s1, io = tokens.index(" John"), tokens.index(" Mary")
    s2, end = tokens.index(" John", s1 + 1), len(tokens) - 1
    assert where(cache, 0, 0, s2) == {s1: 1}
    assert where(cache, 0, 0, s1) == {0: 1}
    assert where(cache, 0, 0, end) == {0: 1}
    assert all(where(cache, 0, 1, i) == {max(i - 1, 0): 1} for i in range(len(tokens)))
    assert where(cache, 1, 0, end) == {s2: 1}
    assert where(cache, 1, 0, s2) == {0: 1}
    assert where(cache, 1, 1, end) == {i: round(1 / len(tokens), 6) for i in range(len(tokens))}
    assert where(cache, 2, 0, end) == where(cache, 2, 1, end) == {io: 1}


def test_each_head_writes_what_its_job_says(toy):
    _, cache = toy.run_with_cache(toy.to_tokens(BABA))
    tokens = toy.to_str_tokens(BABA)
    s2, end = len(tokens) - 1 - tokens[::-1].index(" John"), len(tokens) - 1
    john, mary = NAMES.index("John"), VOCAB.index(" Mary")

    def wrote(layer, head, position):
        vector = cache[f"blocks.{layer}.attn.hook_z"][0, position, head] @ toy.W_O[layer, head]
        found = {}
        for space, columns in SPACES.items():
            for i, value in enumerate(vector[columns].tolist()):
                if abs(value) > 1e-6:
                    found[space, i] = round(value, 5)
        return found

    assert wrote(0, 0, s2) == {("dup", john): 1}
    assert wrote(0, 0, end) == {}
    assert wrote(0, 1, end) == {("prev", VOCAB.index(" drink")): 1}
    assert wrote(1, 0, end) == {("not", john): 1}
    assert wrote(1, 1, end) == {}
    assert wrote(2, 0, end) == {("out", mary): MOVER}
    assert wrote(2, 1, end) == {("out", mary): -NEGATIVE}


def test_the_stream_is_the_sum_of_what_was_written(toy):
    _, cache = toy.run_with_cache(toy.to_tokens(BABA))
    parts = cache["hook_embed"] + cache["hook_pos_embed"]
    for layer in range(3):
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_resid_pre"], parts)
        parts = parts + cache[f"blocks.{layer}.hook_attn_out"]
    torch.testing.assert_close(cache["blocks.2.hook_resid_post"], parts)


def test_the_duplicate_token_head_acts_through_s_inhibition_alone(toy):
    """Patching 1.0's output from the ablated run carries the whole effect of ablating 0.0."""
    tokens = toy.to_tokens(BABA)

    def zero(z, hook):
        return z.index_fill(2, torch.tensor([0]), 0.0)

    with toy.hooks(fwd_hooks=[("blocks.0.attn.hook_z", zero)]):
        _, without = toy.run_with_cache(tokens)

    def patch(z, hook):
        z = z.clone()
        z[:, :, 0] = without["blocks.1.attn.hook_z"][:, :, 0]
        return z

    logits = toy.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", patch)])
    assert difference(toy, logits) == pytest.approx(-FULL / 3, abs=1e-5)


@pytest.mark.parametrize("io", NAMES)
def test_every_pair_of_names_works(toy, io):
    for s in NAMES:
        if s != io:
            text = f"Then {io} and {s} had a book. {s} gave the book to"
            assert difference(toy, toy(toy.to_tokens(text)), f" {io}", f" {s}") == pytest.approx(FULL, abs=1e-6)


def test_the_tokenizer_makes_one_token_of_a_word_and_puts_bos_first(toy):
    assert toy.to_str_tokens("When John, Mary") == ["<|bos|>", "When", " John", ",", " Mary"]
    assert toy.to_str_tokens("When John", prepend_bos=False) == ["When", " John"]
    assert toy.to_string(toy.to_tokens(BABA, prepend_bos=False)[0]) == BABA
    padded = toy.to_tokens([BABA, "When John"])
    assert padded.shape == (2, 15)
    assert toy.to_str_tokens("When Xerxes")[-1] == "<|unk|>"


def test_two_toys_are_equal_and_independent(toy):
    other = build()
    tokens = toy.to_tokens(BABA)
    assert torch.equal(toy(tokens), other(tokens))
    other.original_model.head.weight.mul_(0)
    assert difference(toy, toy(tokens)) == pytest.approx(FULL, abs=1e-6)
    assert not any(parameter.requires_grad for parameter in toy.parameters())
