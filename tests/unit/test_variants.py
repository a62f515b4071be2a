"""Variants: the text that was meant, positions that are where they say, answers that can be measured."""

from __future__ import annotations

import math

import pytest
import torch

from labcode import metrics, patching, prompts, variants
from labcode.errors import LabError, PromptError
from labcode.metrics import logit_difference
from labcode.patching import sweep
from labcode.report import CIRCUIT, CIRCUIT_HEADS, CIRCUIT_LAYERS, PUBLISHED
from labcode.variants import POSITION, TOKEN


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama.bridge


@pytest.fixture(scope="module")
def pop(model):
    return prompts.population(model, 12, seed=5, templates=variants.FRAMES)


def one(model, io="Mary", s="John"):
    text = variants.FRAMES[0].format(A="John", B="Mary", S=s, place="store", object="drink")
    order = "BABA" if s == "John" else "ABBA"
    return prompts.build(model, [prompts.Prompt(text, io, s, order, 0)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", "Then John and Mary went to the store. John gave a drink to"),
        ("no name", "Then John and Mary went to the store. It was a good day. John gave a drink to"),
        ("extra S", "Then John and Mary went to the store. John had a good day. John gave a drink to"),
        ("extra IO", "Then John and Mary went to the store. Mary had a good day. John gave a drink to"),
        ("third between", "Then John and Mary went to the store. {C} had a good day. John gave a drink to"),
        ("three names", "Then John, Mary and {C} went to the store. John gave a drink to"),
        ("fresh name", "Then John and Mary went to the store. {C} gave a drink to"),
        ("trailing space", "Then John and Mary went to the store. John gave a drink to "),
    ],
)
def test_a_variant_says_what_it_was_meant_to(model, name, text):
    varied = variants.vary(model, one(model), name)
    place = "S2" if name == "fresh name" else "extra"
    third = varied.str_tokens[0][int(varied.positions[place][0])].strip() if "{C}" in text else ""
    assert varied.prompts[0].text == text.format(C=third)
    assert third not in ("John", "Mary")
    assert varied.corruption == name


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_positions_hold_the_names_that_they_are_called_by(model, pop, name):
    varied, variant = variants.vary(model, pop, name), variants.VARIANTS[name]
    for row, prompt in enumerate(varied.prompts):
        tokens, at = varied.str_tokens[row], {key: int(place[row]) for key, place in varied.positions.items()}
        assert prompt.io.startswith(tokens[at["IO"]].strip())
        assert prompt.s.startswith(tokens[at["S1"]].strip())
        if variant.giver == "S":
            assert tokens[at["S2"]] == tokens[at["S1"]]
            assert at["S2"] > max(at["S1"], at["IO"])
        else:
            assert tokens[at["S2"]].strip() in set(prompts.NAMES) - {prompt.io, prompt.s}
        assert ("extra" in at) == bool(variant.extra)
        if variant.extra:
            assert max(at["S1"], at["IO"]) < at["extra"] < at["S2"]
            wanted = {"IO": prompt.io, "S": prompt.s}.get(variant.extra)
            assert tokens[at["extra"]].strip() == wanted or (
                wanted is None and tokens[at["extra"]].strip() not in (prompt.io, prompt.s)
            )
        assert at["END"] == len(tokens) - 1 == int(varied.lengths[row]) - 1
        comma = name == "three names" and at["S1"] < at["IO"]
        assert name == "rare names" or at["S1+1"] == at["S1"] + 1
        assert not comma or tokens[at["S1+1"]] == ","
        assert varied.tokens[row, : varied.lengths[row]].tolist() == [
            model.tokenizer.bos_token_id,
            *model.tokenizer.encode(prompt.text, add_special_tokens=False),
        ]


def test_the_plain_variant_is_the_population_itself(model, pop):
    plain = variants.vary(model, pop, "plain")
    assert torch.equal(plain.tokens, pop.tokens)
    assert torch.equal(plain.io_ids, pop.io_ids)
    assert torch.equal(plain.s_ids, pop.s_ids)
    assert all(torch.equal(plain.positions[key], pop.positions[key]) for key in prompts.POSITIONS)
    assert torch.equal(plain.draws, pop.draws)


def test_a_pair_keeps_its_roles_swapped(model, pop):
    for name in ("third between", "three names", "rare names"):
        varied = variants.vary(model, pop, name).prompts
        for a, b in zip(varied[::2], varied[1::2], strict=True):
            assert (a.io, a.s) == (b.s, b.io)
            assert a.text.replace(a.s, "").replace(a.io, "") == b.text.replace(b.s, "").replace(b.io, "")


def test_without_a_repetition_a_pair_is_one_sentence(model, pop):
    fresh = variants.vary(model, pop, "fresh name")
    assert torch.equal(fresh.tokens[::2], fresh.tokens[1::2])
    difference = metrics.logit_difference(metrics.end_logits(model, fresh), fresh)
    torch.testing.assert_close(difference[::2], -difference[1::2], atol=1e-4, rtol=0)


def test_a_seed_draws_the_same_third_names_and_another_seed_others(model, pop):
    same = [variants.vary(model, pop, "fresh name", seed).tokens for seed in (0, 0, 1)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


def test_answers_after_a_space_have_none(model):
    varied = variants.vary(model, one(model), "trailing space")
    assert model.tokenizer.decode(varied.io_ids) == "Mary"
    assert model.tokenizer.decode(varied.s_ids) == "John"
    assert variants.vary(model, one(model), "plain").io_ids != varied.io_ids


def test_a_gap_lengthens_the_way_and_nothing_else(model, pop):
    away = []
    for sentences in (0, 1, 3):
        varied = variants.gap(model, pop, sentences)
        assert all(prompt.text.count(". ") == 1 + sentences for prompt in varied.prompts)
        assert torch.equal(varied.positions["S1"], pop.positions["S1"])
        away.append(varied.positions["S2"] - varied.positions["S1"])
    assert (away[0] < away[1]).all()
    assert (away[1] < away[2]).all()
    assert torch.equal(variants.gap(model, pop, 1).tokens, variants.vary(model, pop, "no name").tokens)


def test_rare_names_are_several_tokens_and_differ_in_the_first(model):
    rare = variants.rare_names(model)
    pieces = [model.tokenizer.encode(" " + name, add_special_tokens=False) for name in rare]
    assert len(rare) >= 4
    assert min(map(len, pieces)) > 1
    assert len({piece[0] for piece in pieces}) == len(rare)


def test_a_tokenizer_without_rare_names_is_an_error(model, monkeypatch):
    monkeypatch.setattr(variants, "RARE", ("Mary",))
    monkeypatch.setattr(variants, "NAMES", ("John",))
    with pytest.raises(PromptError, match="0 names of several tokens"):
        variants.rare_names(model)


def test_the_log_probability_of_a_whole_name_is_that_of_its_tokens_one_by_one(model):
    varied = variants.vary(model, one(model), "rare names")
    name = " " + varied.prompts[0].io
    row, total = varied.tokens[:1], 0.0
    for token in model.tokenizer.encode(name, add_special_tokens=False):
        with torch.no_grad():
            total += float(model(row)[0, -1].log_softmax(-1)[token])
        row = torch.cat([row, torch.tensor([[token]])], dim=1)
    assert row.shape[1] > varied.tokens.shape[1] + 1
    assert float(variants.log_probability(model, varied, [name])[0]) == pytest.approx(total, abs=1e-3)


def test_padding_changes_no_log_probability(model, pop):
    words = [" " + prompt.io for prompt in pop.prompts]
    assert pop.lengths.unique().numel() > 1
    whole = variants.log_probability(model, pop, words)
    alone = [float(variants.log_probability(model, pop.subset([i]), [words[i]])[0]) for i in range(3)]
    assert whole[:3].tolist() == pytest.approx(alone, abs=1e-3)
    probability = metrics.p_io(metrics.end_logits(model, pop), pop)
    torch.testing.assert_close(whole.exp(), probability, atol=1e-6, rtol=1e-3)


def test_names_with_one_first_token_are_left_out(model, pop):
    same = variants.vary(model, pop, "plain")
    same.io_ids[3] = same.s_ids[3]
    assert variants.distinct(same) == [i for i in range(len(pop)) if i != 3]


@pytest.mark.parametrize("name", ["extra io", ""])
def test_an_unknown_variant_names_the_known_ones(model, pop, name):
    with pytest.raises(PromptError, match=r"unknown variant.*extra IO"):
        variants.vary(model, pop, name)


def test_prompts_of_one_sentence_are_refused(model):
    with pytest.raises(PromptError, match=r"not two sentences.*variants\.FRAMES"):
        variants.vary(model, prompts.canonical(model), "extra IO")


def test_prompts_are_not_edited_twice(model, pop):
    with pytest.raises(PromptError, match=r"edited already \('extra S'\)"):
        variants.vary(model, variants.vary(model, pop, "extra S"), "extra IO")
    with pytest.raises(PromptError, match="corrupted already"):
        prompts.corrupt(model, variants.vary(model, pop, "extra S"), "abc")


@pytest.mark.parametrize("sentences", [-1, len(variants.FILLERS) + 1])
def test_a_gap_has_as_many_sentences_as_there_are(model, pop, sentences):
    with pytest.raises(PromptError, match="filler sentences asked for"):
        variants.gap(model, pop, sentences)


def test_one_continuation_for_each_prompt(model, pop):
    with pytest.raises(PromptError, match="1 continuations for 12 prompts"):
        variants.log_probability(model, pop, [" Mary"])


def test_the_metric_of_a_variant_is_that_of_its_text(model):
    """Run the sentence as a reader would type it, without any of our positions."""
    varied = variants.vary(model, one(model), "extra IO")
    text = "Then John and Mary went to the store. Mary had a good day. John gave a drink to"
    with torch.no_grad():
        logits = model(model.to_tokens(text, prepend_bos=True))[0, -1]
    mary, john = (prompts.token_id(model, name) for name in (" Mary", " John"))
    ours = metrics.logit_difference(metrics.end_logits(model, varied), varied)[0]
    assert float(ours) == pytest.approx(float(logits[mary] - logits[john]), abs=1e-4)
    assert math.isfinite(float(ours))


def test_the_published_circuit_is_the_papers():
    """26 heads in seven families, inside GPT-2 small (Wang et al. 2022, section 3)."""
    heads = [head for members in CIRCUIT.values() for head in members]
    assert len(heads) == len(set(heads)) == 26
    assert [len(members) for members in CIRCUIT.values()] == [2, 3, 4, 4, 3, 8, 2]
    assert all(
        layer in range(CIRCUIT_LAYERS) and head in range(CIRCUIT_HEADS // CIRCUIT_LAYERS) for layer, head in heads
    )
    from labcode.families import FAMILIES

    assert set(CIRCUIT) <= set(FAMILIES)


# Token and position signals

SIGNALS = [(token, position) for token in TOKEN for position in POSITION]


def words(pop, row=0):
    return [pop.str_tokens[row][int(pop.positions[place][row])].strip() for place in ("S1", "IO", "S2")]


def test_the_variants_are_those_of_the_paper(toy):
    """At S1's place, IO's place and S2; S is John and IO Mary."""
    pop = prompts.canonical(toy)
    assert words(variants.signal_variant(toy, pop, "original", "original")) == ["John", "Mary", "John"]
    assert words(variants.signal_variant(toy, pop, "original", "inverted")) == ["Mary", "John", "John"]
    assert words(variants.signal_variant(toy, pop, "inverted", "original")) == ["Mary", "John", "Mary"]
    assert words(variants.signal_variant(toy, pop, "inverted", "inverted")) == ["John", "Mary", "Mary"]
    one, two, again = words(variants.signal_variant(toy, pop, "random", "original"))
    assert one == again != two
    assert not {one, two} & {"John", "Mary"}
    one, two, again = words(variants.signal_variant(toy, pop, "random", "inverted"))
    assert two == again != one


def test_variants_change_nothing_but_names(tiny):
    pop = prompts.population(tiny, 4, seed=2)
    places = torch.stack([pop.positions[place] for place in ("S1", "IO", "S2")], dim=1)
    for token, position in SIGNALS:
        found = variants.signal_variant(tiny, pop, token, position)
        same = (found.tokens == pop.tokens).scatter(1, places, True)
        assert same.all()
        assert torch.equal(found.io_ids, pop.io_ids)
    swapped = prompts.corrupt(tiny, pop, "swap")
    assert torch.equal(variants.signal_variant(tiny, pop, "inverted", "inverted").tokens, swapped.tokens)
    assert torch.equal(variants.signal_variant(tiny, pop, "original", "original").tokens, pop.tokens)


def test_the_toys_second_layer_says_the_name_and_not_the_place(toy):
    """1.0 at END says "not John". Told "not Mary", the movers find John's two mentions and leave Mary alone."""
    pop = prompts.canonical(toy)
    run = {
        (token, position): float(
            patching.exchange(toy, pop, variants.signal_variant(toy, pop, token, position), [(1, 0)])
        )
        for token, position in SIGNALS
    }
    clean = run["original", "original"]
    assert run["original", "inverted"] == pytest.approx(clean, abs=1e-4)
    assert run["inverted", "original"] == pytest.approx(-clean, abs=1e-4)
    assert run["inverted", "inverted"] == pytest.approx(-clean, abs=1e-4)
    assert run["random", "original"] == pytest.approx(-clean / 3, abs=1e-4)  # a third on Mary, two thirds on John
    assert run["random", "inverted"] == pytest.approx(-clean / 3, abs=1e-4)


def test_exchanging_one_head_is_noising_it_at_end(tiny):
    pop = prompts.population(tiny, 4, seed=1)
    source = variants.signal_variant(tiny, pop, "inverted", "inverted")
    grid = sweep(tiny, pop, source, "z", at="END", direction="noising", only=[(0, 1)])
    torch.testing.assert_close(
        patching.exchange(tiny, pop, source, [(0, 1)]), grid.values[0].float(), atol=1e-4, rtol=1e-4
    )


def test_heads_are_exchanged_together(tiny):
    """All heads of the last layer at once are that layer's whole attention."""
    pop = prompts.population(tiny, 4, seed=1)
    source = variants.signal_variant(tiny, pop, "random", "inverted")
    last = tiny.cfg.n_layers - 1
    hook = f"blocks.{last}.attn.hook_z"
    found = patching.exchange(tiny, pop, source, [(last, head) for head in range(tiny.cfg.n_heads)])
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
        for token, position in SIGNALS
    }
    found = variants.fit_signals(table)
    assert float(found["position"]) == pytest.approx(PUBLISHED["wang.signal.position"].value, abs=0.01)
    assert float(found["token"]) == pytest.approx(PUBLISHED["wang.signal.token"].value, abs=0.01)


def test_the_fit_of_each_prompt_is_exact_on_a_line():
    weights = {"position": torch.tensor([2.0, -1.0]), "token": torch.tensor([0.5, 3.0])}
    table = {(t, p): weights["position"] * POSITION[p] + weights["token"] * TOKEN[t] + 0.25 for t, p in SIGNALS}
    found = variants.fit_signals(table)
    torch.testing.assert_close(found["position"], weights["position"])
    torch.testing.assert_close(found["token"], weights["token"])
    torch.testing.assert_close(found["constant"], torch.full((2,), 0.25))
    assert found["residual"].max() < 1e-5


def test_signals_that_are_not_defined_are_named(tiny):
    pop = prompts.population(tiny, 4, seed=1)
    with pytest.raises(LabError, match="'other' token"):
        variants.signal_variant(tiny, pop, "other", "original")
    with pytest.raises(LabError, match="changed already"):
        variants.signal_variant(tiny, prompts.corrupt(tiny, pop, "swap"), "random", "original")
    with pytest.raises(LabError, match=r"no head 0\.99"):
        patching.exchange(tiny, pop, pop, [(0, 99)])
    with pytest.raises(LabError, match="no heads"):
        patching.exchange(tiny, pop, pop, [])
    with pytest.raises(LabError, match="6 prompts against 4"):
        patching.exchange(tiny, pop, prompts.population(tiny, 6, seed=2), [(0, 0)])
    with pytest.raises(LabError, match="cannot tell"):
        variants.fit_signals({("original", "original"): torch.ones(2)})
