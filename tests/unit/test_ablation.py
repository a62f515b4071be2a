"""Ablations on the hand-wired toy come out as on paper, and on random models as with plain hooks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from labcode import prompts
from labcode.circuit import ablate, ablate_each
from labcode.errors import LabError, PatchError
from labcode.metrics import logit_difference
from labcode.toy import MOVER, NEGATIVE

HOWS = ("zero", "mean", "template-mean", "resample", "corrupted")
FULL = MOVER - NEGATIVE


@pytest.fixture
def clean(toy):
    return prompts.canonical(toy)


@pytest.fixture
def abc(toy, clean):
    return prompts.corrupt(toy, clean, "abc")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ([], FULL),
        ([(0, 0)], -FULL / 3),  # END rules out nobody, and S stands there twice
        ([(1, 0)], -FULL / 3),
        ([(0, 1)], FULL),
        ([(1, 1)], FULL),
        ([(2, 0)], -NEGATIVE),
        ([(2, 1)], MOVER),
        ([(2, 0), (2, 1)], 0),
        ([(0, 0), (2, 1)], -MOVER / 3),
    ],
)
def test_without_a_head_the_toy_answers_as_on_paper(toy, clean, abc, heads, how, expected):
    """Three unrelated names teach the heads nothing about IO and S, so here all baselines agree."""
    assert float(ablate(toy, clean, heads, how, reference=abc)) == pytest.approx(expected, abs=1e-4)


def test_the_baselines_differ_where_the_reference_knows_something(toy, clean):
    """The reference is the swapped prompt: its name mover writes S at END with weight 1, and nothing elsewhere."""
    swapped = prompts.corrupt(toy, clean, "swap")
    n = int(clean.end)  # positions but the first
    expected = {
        "zero": -NEGATIVE,
        "mean": -NEGATIVE - MOVER / n,
        "template-mean": -NEGATIVE - MOVER,
        "resample": -NEGATIVE - MOVER,
        "corrupted": -NEGATIVE - MOVER,
    }
    for how, difference in expected.items():
        assert float(ablate(toy, clean, [(2, 0)], how, reference=swapped)) == pytest.approx(difference, abs=1e-4), how


def test_a_template_mean_is_taken_over_all_prompts_of_the_template(toy, clean):
    """Half the reference writes IO, half S: the mean over both favours nobody."""
    both = prompts.build(toy, [clean.prompts[0], clean.prompts[0]])
    tokens = both.tokens.clone()
    tokens[1] = prompts.corrupt(toy, clean, "swap").tokens[0]
    both = dataclasses.replace(both, tokens=tokens, prompts=clean.prompts * 2)
    assert float(ablate(toy, clean, [(2, 0)], "template-mean", reference=both)) == pytest.approx(-NEGATIVE, abs=1e-4)


@pytest.mark.parametrize(("at", "expected"), [("END", -FULL / 3), ("S2", FULL), ("IO", FULL)])
def test_a_position_limits_the_ablation(toy, clean, at, expected):
    assert float(ablate(toy, clean, [(1, 0)], at=at)) == pytest.approx(expected, abs=1e-4)


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def tiny(request):
    return request.getfixturevalue(request.param).bridge


@pytest.fixture
def pair(tiny):
    """Prompts of several templates and lengths, and a reference of other names for each."""
    pop = prompts.population(tiny, 8, seed=2, templates=prompts.TEMPLATES[:2])
    return pop, prompts.corrupt(tiny, pop, "abc")


def by_hand(model, pop, hooks):
    """Logit differences, one prompt at a time: `hooks` gives the hooks for a prompt number."""
    found = []
    for i in range(len(pop)):
        one = pop.subset([i])
        logits = model.run_with_hooks(one.tokens, fwd_hooks=hooks(i))
        found.append(logit_difference(logits[:, -1], one))
    return torch.cat(found)


def same_shape(a, i, b, j):
    keys = ("S2", "END")
    return a.prompts[i].template == b.prompts[j].template and all(a.positions[k][i] == b.positions[k][j] for k in keys)


@pytest.mark.parametrize("at", ["all", "S2"])
@pytest.mark.parametrize("how", ["zero", "mean", "template-mean"])
def test_heads_equal_plain_hooks(tiny, pair, how, at, monkeypatch):
    pop, reference = pair
    monkeypatch.setattr("labcode.circuit.PROMPTS_AT_ONCE", 3)  # several portions
    heads = [(0, 1), (1, 0), (1, 3)]
    alone = [tiny.run_with_cache(reference.subset([j]).tokens)[1] for j in range(len(reference))]

    def replacement(i, name):
        """[pos ... d] for prompt i, from single runs of the reference."""
        n_pos = int(pop.lengths[i])
        if how == "zero":
            return torch.zeros_like(alone[0][name][0, :1]).expand(n_pos, *alone[0][name].shape[2:])
        if how == "mean":
            every = torch.cat([cache[name][0, 1:] for cache in alone]).mean(0)
            return every.expand(n_pos, *every.shape)
        group = [alone[j][name][0] for j in range(len(reference)) if same_shape(pop, i, reference, j)]
        return torch.stack(group).mean(0)

    def hooks(i):
        places = range(0 if how == "zero" else 1, int(pop.lengths[i])) if at == "all" else [int(pop.positions[at][i])]

        def replace(x, hook, name, head):
            x = x.clone()
            for place in places:
                x[0, place, head] = replacement(i, name)[place, head]
            return x

        todo = [(f"blocks.{layer}.attn.hook_z", head) for layer, head in heads]
        return [(name, lambda x, hook, name=name, head=head: replace(x, hook, name, head)) for name, head in todo]

    found = ablate(tiny, pop, heads, how, at=at, reference=reference)
    torch.testing.assert_close(found, by_hand(tiny, pop, hooks), atol=1e-5, rtol=0)
    assert (found - ablate(tiny, pop)).abs().max() > 1e-3


def test_resampling_takes_another_prompt_of_the_template_and_keeps_to_its_seed(tiny, pair):
    pop, reference = pair
    first, again, other = (
        ablate(tiny, pop, [(0, 0), (2, 1)], "resample", reference=reference, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    one = pop.subset([0])
    with pytest.raises(PatchError, match="no other reference prompt has the template"):
        ablate(tiny, one, [(0, 0)], "resample", reference=one)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": [(3, 0)]}, "no head 3.0: this model has 3 layers of 4 heads"),
        ({"heads": [(0, 4)]}, "no head 0.4"),
        ({"how": "median"}, "unknown how 'median'"),
        ({"at": "S3"}, "unknown position 'S3'"),
        ({"how": "mean"}, "'mean' needs a reference population"),
    ],
)
def test_bad_input_is_named(tiny, pair, wrong, message):
    with pytest.raises(LabError, match=message):
        ablate(tiny, pair[0], **{"heads": [(0, 0)], **wrong})


def test_a_template_that_the_reference_lacks_is_named(tiny, pair):
    pop, reference = pair
    missing = [i for i in range(len(pop)) if reference.prompts[i].template != pop.prompts[0].template]
    with pytest.raises(PatchError, match="has the template of"):
        ablate(tiny, pop, [(0, 0)], "template-mean", reference=reference.subset(missing))


def test_no_hook_is_left_behind(tiny, pair):
    handle = tiny.blocks[2].register_forward_pre_hook(lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        with pytest.raises(KeyboardInterrupt):
            ablate(tiny, pair[0], [(0, 0)])
    finally:
        handle.remove()
    assert not any(point.fwd_hooks for point in tiny.hook_dict.values())


def test_heads_one_by_one_are_ablations_of_a_single_head(tiny, monkeypatch):
    monkeypatch.setattr("labcode.circuit.PROMPTS_AT_ONCE", 3)  # several portions
    pop = prompts.population(tiny, 8, seed=2)
    reference, heads = prompts.corrupt(tiny, pop, "abc"), [(2, 1), (0, 3)]
    found = ablate_each(tiny, pop, heads, HOWS, reference=reference, seed=4)
    for how, values in zip(HOWS, found, strict=True):
        expected = torch.stack([ablate(tiny, pop, [head], how, reference=reference, seed=4) for head in heads])
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
        assert (expected - ablate(tiny, pop)).abs().max() > 1e-4
    with pytest.raises(PatchError, match="needs a reference population"):
        ablate_each(tiny, pop, heads, ["mean"])
