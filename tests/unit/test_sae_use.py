"""Evaluation, latents and edits, against plain hooks and hand-made codes."""

from __future__ import annotations

import pytest
import torch

from labcode import metrics, prompts
from labcode.sae import activations, bench, edits, evaluate, files, latents, repeats, shipped, train
from labcode.sae.errors import SaeError

LAYER = 1


def contexts(n=12, length=16, seed=0):
    text = torch.randint(3, 5000, (n, length), generator=torch.Generator().manual_seed(seed))
    text[:, 0] = 1
    return text


@pytest.fixture
def sae(tiny):
    """A small autoencoder for the tiny model, hardly trained: these tests need no good one."""
    return train.train(activations.collect(tiny, contexts(), LAYER), d_sae=96, k=6, samples=2000, batch=100).sae


def test_changing_nothing_changes_nothing(tiny, pair, sae):
    pop, _ = pair
    plain = metrics.end_logits(tiny, pop)
    with edits.edited(tiny, sae, lambda code: code):
        assert torch.allclose(metrics.end_logits(tiny, pop), plain, atol=1e-5)
    assert torch.equal(metrics.end_logits(tiny, pop), plain)  # the hook is gone
    prompts_there = edits.Bench(tiny, pop, LAYER)
    assert prompts_there.suffix is not None
    assert torch.allclose(prompts_there.base, metrics.logit_difference(plain, pop), atol=1e-5)
    assert prompts_there.change("S2", torch.zeros(len(pop), tiny.cfg.d_model)).abs().max() < 1e-4


def test_an_edit_adds_the_change_of_the_code_and_keeps_the_error(tiny, pair, sae):
    pop, _ = pair
    seen = {}

    def note(h, hook):
        seen["after"] = h

    h = latents.stream(tiny, sae, pop.tokens)
    code = latents.codes(tiny, sae, pop.tokens)

    def zero(code):
        return torch.zeros_like(code)

    with edits.edited(tiny, sae, zero), tiny.hooks(fwd_hooks=[("blocks.2.hook_in", note)]):
        tiny(pop.tokens)
    assert torch.allclose(seen["after"][:, 1:], (h - code @ sae.W_dec)[:, 1:], atol=1e-4)
    assert torch.allclose(seen["after"][:, 0], h[:, 0], atol=1e-5)  # position 0 is never touched
    assert code[:, 0].abs().sum() == 0
    error = h - sae.decode(sae.encode(h))
    assert error[:, 1:].norm() > 0.1 * h[:, 1:].norm()  # there is an error to keep


def test_an_edit_at_position_0_has_no_effect(tiny, pair, sae):
    pop, _ = pair

    def only_start(code):
        code[:, 0] = 50.0
        return code

    with edits.edited(tiny, sae, only_start):
        changed = metrics.end_logits(tiny, pop)
    assert torch.allclose(changed, metrics.end_logits(tiny, pop), atol=1e-5)


@pytest.mark.parametrize("place", ["S2", "END"])
def test_ablations_at_once_are_those_of_one_hook_each(tiny, pair, sae, place):
    pop, _ = pair
    found = edits.ablation(edits.Bench(tiny, pop, LAYER), sae, place)
    base = metrics.logit_difference(metrics.end_logits(tiny, pop), pop)
    code = edits.at_position(tiny, pop, sae, LAYER, place)
    slow = torch.empty_like(found.change)
    for column, latent in enumerate(found.latents):
        assert torch.equal(found.activation[:, column], code[:, latent])

        def out(code, latent=latent):
            code[torch.arange(len(pop)), pop.positions[place], latent] = 0.0
            return code

        with edits.edited(tiny, sae, out):
            slow[:, column] = metrics.logit_difference(metrics.end_logits(tiny, pop), pop) - base
    assert slow.abs().max() > 1e-4
    assert (found.change - slow).abs().max() < 0.05 * slow.abs().max() + 2e-5


def test_edits_fall_back_to_hooks_where_the_arithmetic_is_unknown(tiny, pair, sae, monkeypatch):
    pop, _ = pair
    rows = edits.Edits(torch.tensor([0, 1, 1]), torch.tensor([3, 4, 1]), torch.randn(3, tiny.cfg.d_model))
    fast = edits.Bench(tiny, pop, LAYER).values(rows)

    def unknown(*args):
        raise bench.UnsupportedModel("an unknown block")

    monkeypatch.setattr(bench.Suffix, "proven", unknown)
    slow = edits.Bench(tiny, pop, LAYER)
    assert slow.suffix is None
    assert torch.allclose(slow.values(rows), fast, atol=2e-4)


def test_edits_that_are_not_defined_are_errors(tiny, pair, sae):
    pop, _ = pair
    with pytest.raises(SaeError, match="no block follows layer 2"):
        edits.Bench(tiny, pop, 2)
    there = edits.Bench(tiny, pop, LAYER)
    at_start = edits.Edits(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, tiny.cfg.d_model))
    with pytest.raises(SaeError, match="position 0"):
        there.values(at_start)
    with pytest.raises(SaeError, match="unknown position 'S9'"):
        edits.ablation(there, sae, "S9")
    with edits.edited(tiny, sae, lambda code: code[..., :3]), pytest.raises(SaeError, match="shape"):
        tiny(pop.tokens)


def test_an_autoencoder_of_another_width_is_an_error(toy, tiny, sae):
    assert toy.cfg.d_model != tiny.cfg.d_model
    with pytest.raises(SaeError, match="train one on this model"):
        latents.scan(toy, sae, torch.tensor([[1, 2, 3]]))


def test_a_splice_of_the_identity_is_clean_and_position_0_is_left_alone(tiny):
    text, seen = contexts(4), []

    def identity(h):
        seen.append(len(h))
        return h

    found = evaluate.splice(tiny, text, LAYER, {"same": identity, "zero": torch.zeros_like}, median=1e9)
    assert torch.allclose(found["same"], found["clean"], atol=1e-5)
    assert not torch.allclose(found["zero"], found["clean"], atol=1e-3)
    assert sum(seen) == 4 * 15  # every position but the first
    plain = tiny(text)
    by_hand = -plain[:, 1:-1].log_softmax(-1).gather(-1, text[:, 2:, None])[..., 0].mean(-1)
    assert torch.allclose(found["clean"], by_hand, atol=1e-5)


def test_massive_vectors_are_not_spliced(tiny):
    h = activations.residual(tiny, contexts(4), LAYER)
    median, seen = float(h.norm(dim=-1)[:, 1:].median()), []
    evaluate.splice(tiny, contexts(4), LAYER, {"x": lambda x: seen.append(len(x)) or x}, median=median / 2.9)
    expected = (h.norm(dim=-1)[:, 1:] <= 3 * median / 2.9).sum()
    assert abs(sum(seen) - int(expected)) <= 1
    assert sum(seen) < 4 * 15


def test_recovered_is_the_part_of_the_way_from_the_floor():
    ce = {name: torch.tensor([value]) for name, value in (("clean", 3.0), ("mean", 8.0), ("zero", 13.0), ("x", 4.0))}
    assert evaluate.recovered(ce, "mean", "x") == pytest.approx(0.8)
    assert evaluate.recovered(ce, "zero", "x") == pytest.approx(0.9)
    assert evaluate.recovered({**ce, "mean": torch.tensor([3.0])}, "mean", "x") == 0.0


def test_explained_variance_is_one_for_a_whole_basis_and_zero_for_the_mean():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) + 3
    center = x.mean(0)
    assert evaluate.explained(x, lambda h: h.clone(), center) == pytest.approx(1.0)
    assert evaluate.explained(x, lambda h: center.expand_as(h), center) == pytest.approx(0.0, abs=1e-6)


def test_quality_counts_what_fires(tiny, sae):
    text = contexts(8, seed=3)
    data = activations.collect(tiny, text, LAYER)
    quality = evaluate.evaluate(tiny, sae, text, LAYER, center=data.center, contexts=3)
    code = sae.encode(data.values.float()) > 0
    assert quality.l0 == pytest.approx(float(code.float().sum(-1).mean()))
    assert quality.dead == pytest.approx(float((~code.any(0)).float().mean()))
    assert set(quality.cross_entropy) == {"clean", "spliced", "mean", "zero"}
    assert len(quality.cross_entropy["clean"]) == 3


def test_a_scan_holds_the_codes(tiny, sae):
    text = contexts(5)
    scanned = latents.scan(tiny, sae, text, batch_size=2)
    dense = latents.encode(sae, activations.residual(tiny, text, LAYER))
    alike = torch.stack([scanned.of(i) for i in range(96)], -1)
    assert torch.allclose(alike, dense, atol=1e-5)
    assert scanned.of(0)[:, 0].abs().sum() == 0
    assert torch.allclose(scanned.density, (dense > 0)[:, 1:].flatten(0, 1).float().mean(0))
    with pytest.raises(SaeError, match="no latent 96"):
        scanned.of(96)


def test_neighbours_and_matches_go_by_cosine(sae, tiny):
    mate, cosine = latents.match(sae, sae)
    assert mate.tolist() == list(range(96))
    assert torch.allclose(cosine, torch.ones(96), atol=1e-5)
    near = latents.neighbours(sae, 5, n=3)
    cosines = sae.W_dec @ sae.W_dec[5]
    cosines[5] = -2
    assert [i for i, _ in near] == cosines.topk(3).indices.tolist()


def test_promoted_tokens_are_chosen_among_those_that_are_used(tiny, sae):
    used = torch.zeros(tiny.cfg.d_vocab, dtype=torch.bool)
    used[100:160] = True
    high, low = latents.promoted(tiny, sae, 7, used, n=5)
    assert all(100 <= token < 160 for token, _ in [*high, *low])
    scale = getattr(tiny.ln_final, "w", None)
    direction = sae.W_dec[7] if scale is None else sae.W_dec[7] * scale
    logits = (direction @ tiny.W_U)[100:160]
    assert high[0][0] == 100 + int(logits.argmax())
    assert low[0][0] == 100 + int(logits.argmin())


def test_a_latent_for_repetition_is_found_and_one_for_a_word_is_not():
    words = torch.zeros(50, dtype=torch.bool)
    words[10:] = True
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(10, 30, (40, 20), generator=generator)
    text[:, 0] = 1
    seen = repeats.repeated(text)
    for row, position in ((0, 5), (3, 12)):
        assert bool(seen[row, position]) == (int(text[row, position]) in text[row, 1:position].tolist())
    values = torch.stack([seen.float(), (text == 15).float(), torch.ones(text.shape)], -1)
    values[:, 0] = 0
    index = torch.tensor([0, 1, 2], dtype=torch.int32).expand(40, 20, 3)
    rates = repeats.rates(latents.Codes(text, values, index, 4), words)
    assert rates.duplicate() == [0]
    assert float(rates.repeat[0]) == 1
    assert float(rates.first[0]) == 0
    assert float(rates.gap[2]) == pytest.approx(0)
    assert rates.n_repeat + rates.n_first == 40 * 19


def test_words_are_letters_with_or_without_a_space(smollm2):
    words = repeats.words(smollm2.tokenizer)
    for text, is_word in ((" house", True), ("house", True), (" the", False), ("\n", False), (" Mary", True)):
        assert bool(words[prompts.token_id(smollm2, text)]) is is_word


def test_a_name_is_one_token_without_the_start_token_that_the_tokenizer_may_add(smollm2):
    """The first id of a tokenised word is the same start token for every word here: a difference of 0, silently."""
    mary, john = (prompts.token_id(smollm2, name) for name in (" Mary", " John"))
    assert mary != john
    assert smollm2.tokenizer.decode([mary]) == " Mary"
    assert mary in smollm2.tokenizer(" Mary").input_ids


def test_the_shipped_autoencoder_belongs_to_the_embedded_model(smollm2):
    found = shipped.get(smollm2)
    assert not found.live
    size = sum(path.stat().st_size for path in shipped.FOLDER.iterdir())
    assert size <= 12e6
    assert found.record["command"].startswith("python -m labcode.sae.ship")
    assert found.sae.cfg.metadata.hook_name == f"blocks.{found.layer}.hook_out"
    assert found.record["held_out"]["explained"] >= 0.76
    assert found.record["held_out"]["recovered_mean"] >= 0.92
    assert len(found.center) == smollm2.cfg.d_model


def test_another_model_gets_a_small_one_of_its_own_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    monkeypatch.setenv("LAB_TOKENS", "2048")
    first = shipped.get(tiny)
    assert first.live
    assert first.sae.cfg.d_in == tiny.cfg.d_model
    monkeypatch.setattr(train, "train", None)  # it is not trained again
    again = shipped.get(tiny)
    assert torch.equal(first.sae.W_dec, again.sae.W_dec)
    assert files.layer_of(again.sae) == first.layer
