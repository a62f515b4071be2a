"""Latents and edits, against plain hooks and hand-made codes."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch

from labcode import latents, metrics, prompts, sae
from labcode.errors import SaeError

LAYER = 1


def contexts(n=12, length=16, seed=0):
    text = torch.randint(3, 5000, (n, length), generator=torch.Generator().manual_seed(seed))
    text[:, 0] = 1
    return text


@pytest.fixture
def small(tiny):
    """A small autoencoder for the tiny model, hardly trained: these tests need no good one."""
    return sae.train(sae.collect(tiny, contexts(), LAYER), d_sae=96, k=6, samples=2000, batch=100).sae


def ld(model, pop):
    return metrics.logit_difference(metrics.end_logits(model, pop), pop)


def test_changing_nothing_changes_nothing(tiny, pair, small):
    pop, _ = pair
    plain = ld(tiny, pop)
    with latents.edited(tiny, small, lambda code: code):
        assert torch.allclose(ld(tiny, pop), plain, atol=1e-5)
    assert torch.equal(ld(tiny, pop), plain)  # the hook is gone
    editor = latents.Editor(tiny, pop, LAYER)
    assert torch.allclose(editor.base, plain, atol=1e-5)
    assert editor.change("S2", torch.zeros(len(pop), tiny.cfg.d_model)).abs().max() < 1e-4


def test_an_edit_adds_the_change_of_the_code_and_keeps_the_error(tiny, pair, small):
    pop, _ = pair
    seen = {}

    def note(h, hook):
        seen["after"] = h

    def zero(code):
        return torch.zeros_like(code)

    h = latents.stream(tiny, small, pop.tokens)
    code = latents.codes(tiny, small, pop.tokens)
    with latents.edited(tiny, small, zero), tiny.hooks(fwd_hooks=[("blocks.2.hook_in", note)]):
        tiny(pop.tokens)
    assert torch.allclose(seen["after"][:, 1:], (h - code @ small.W_dec)[:, 1:], atol=1e-4)
    assert torch.allclose(seen["after"][:, 0], h[:, 0], atol=1e-5)  # position 0 is never touched
    assert code[:, 0].abs().sum() == 0
    error = h - small.decode(small.encode(h))
    assert error[:, 1:].norm() > 0.1 * h[:, 1:].norm()  # there is an error to keep


def test_an_edit_at_position_0_has_no_effect(tiny, pair, small):
    pop, _ = pair

    def only_start(code):
        code[:, 0] = 50.0
        return code

    with latents.edited(tiny, small, only_start):
        changed = ld(tiny, pop)
    assert torch.allclose(changed, ld(tiny, pop), atol=1e-5)


def one_forward_pass_each(model, pop, layer, edits):
    """The logit difference of each run, by a whole forward pass with a plain hook."""
    values = []
    for prompt, position, delta in zip(edits.prompt.tolist(), edits.position.tolist(), edits.delta, strict=True):

        def add(h, hook, position=position, delta=delta):
            h = h.clone()
            h[:, position] += delta
            return h

        one = pop.subset([prompt])
        with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", add)]):
            values.append(ld(model, one))
    return torch.cat(values)


def test_edits_at_once_are_those_of_one_forward_pass_each(tiny, pair):
    pop, _ = pair
    generator = torch.Generator().manual_seed(0)
    places = [(n, at) for n in range(len(pop)) for at in range(1, int(pop.end[n]) + 1)]
    prompt, position = torch.tensor(places).T
    delta = torch.randn(len(places), tiny.cfg.d_model, generator=generator)
    for layer in range(tiny.cfg.n_layers - 1):
        edits = latents.Edits(prompt, position, delta)
        found = latents.Editor(tiny, pop, layer).values(edits, batch_size=3)
        assert torch.allclose(found, one_forward_pass_each(tiny, pop, layer, edits), atol=2e-4)


def test_the_same_runs_serve_for_fewer_prompts_and_another_layer(tiny, pair):
    pop, _ = pair
    editor = latents.Editor(tiny, pop, LAYER)
    assert torch.allclose(editor.stream, sae.residual(tiny, pop.tokens, LAYER), atol=1e-6)
    again, fresh = editor.at(0).first(2), latents.Editor(tiny, pop.subset(range(2)), 0)
    delta = torch.ones(2, tiny.cfg.d_model)
    assert torch.allclose(again.base, fresh.base, atol=1e-5)
    assert torch.allclose(again.change("S2", delta), fresh.change("S2", delta), atol=1e-5)
    assert (editor.layer, len(editor.pop)) == (LAYER, len(pop))
    with pytest.raises(SaeError, match="no block follows"):
        editor.at(2)


@pytest.mark.parametrize("place", ["S2", "END"])
def test_ablations_at_once_are_those_of_one_hook_each(tiny, pair, small, place):
    pop, _ = pair
    found = latents.ablation(latents.Editor(tiny, pop, LAYER), small, place)
    code = latents.at_position(tiny, pop, small, LAYER, place)
    slow = torch.empty_like(found.change)
    for column, latent in enumerate(found.latents):
        assert torch.equal(found.activation[:, column], code[:, latent])

        def out(code, latent=latent):
            code[torch.arange(len(pop)), pop.positions[place], latent] = 0.0
            return code

        with latents.edited(tiny, small, out):
            slow[:, column] = ld(tiny, pop)
    slow -= ld(tiny, pop)[:, None]
    assert slow.abs().max() > 1e-4
    assert (found.change - slow).abs().max() < 0.05 * slow.abs().max() + 2e-5


def test_edits_that_are_not_defined_are_errors(tiny, pair, small, toy):
    pop, _ = pair
    with pytest.raises(SaeError, match="no block follows layer 2"):
        latents.Editor(tiny, pop, 2)
    editor = latents.Editor(tiny, pop, LAYER)
    at_start = latents.Edits(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, tiny.cfg.d_model))
    with pytest.raises(SaeError, match="position 0"):
        editor.values(at_start)
    with pytest.raises(SaeError, match="unknown position 'S9'"):
        latents.ablation(editor, small, "S9")
    with latents.edited(tiny, small, lambda code: code[..., :3]), pytest.raises(SaeError, match="shape"):
        tiny(pop.tokens)
    with pytest.raises(SaeError, match="train one on this model"):
        latents.scan(toy, small, torch.tensor([[1, 2, 3]]))


def test_a_scan_holds_the_codes(tiny, small):
    text = contexts(5)
    scanned = latents.scan(tiny, small, text, batch_size=2)
    dense = latents.encode(small, sae.residual(tiny, text, LAYER))
    alike = torch.stack([scanned.of(i) for i in range(96)], -1)
    assert torch.allclose(alike, dense, atol=1e-5)
    assert scanned.of(0)[:, 0].abs().sum() == 0
    assert torch.allclose(scanned.density, (dense > 0)[:, 1:].flatten(0, 1).float().mean(0))
    with pytest.raises(SaeError, match="no latent 96"):
        scanned.of(96)


def largest(before, k=3):
    top = before.relu().topk(k, dim=-1)
    return torch.zeros_like(before).scatter(-1, top.indices, top.values)


def test_codes_stand_where_their_vectors_came_from():
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator), dim=-1)
    linear = SimpleNamespace(cfg=SimpleNamespace(d_sae=40, k=3), encode=lambda x: largest(x @ directions.T))
    values = torch.randn(9000, 6, generator=generator)
    where = torch.randperm(100 * 100, generator=generator)[:9000]
    acts = sae.Activations(values, where // 100, where % 100 + 1, 0, 1.0, 0)
    codes = latents.codes_of(acts, linear, torch.zeros(100, 101, dtype=torch.long))
    for sample in (0, 4095, 4096, 8999):
        expected = linear.encode(values[sample])
        found = torch.stack([codes.of(i)[acts.context[sample], acts.position[sample]] for i in range(40)])
        assert torch.allclose(found, expected)
    assert codes.values[:, 0].abs().max() == 0


def test_a_scan_keeps_all_that_an_autoencoder_without_a_k_uses(tiny, small):
    dense = SimpleNamespace(cfg=SimpleNamespace(d_in=tiny.cfg.d_model, d_sae=300), W_dec=torch.zeros(300, 1))
    directions = torch.randn(tiny.cfg.d_model, 300, generator=torch.Generator().manual_seed(0))
    dense.encode = lambda x: (x @ directions).relu()
    text = contexts(3)
    whole = latents.encode(dense, sae.residual(tiny, text, LAYER))
    most = int((whole > 0).sum(-1).max())
    assert most > 128
    scanned = latents.scan(tiny, dense, text, LAYER, batch_size=2)
    assert scanned.values.shape[-1] == most
    assert torch.allclose(torch.stack([scanned.of(i) for i in range(300)], -1), whole, atol=1e-4)
    acts = sae.collect(tiny, text, LAYER)
    again = latents.codes_of(acts, dense, text)
    assert (again.values > 0).sum(-1).max() == (whole > 0)[acts.context, acts.position].sum(-1).max()


def test_a_scan_keeps_more_latents_than_the_autoencoder_says(tiny):
    """One trained by BatchTopK says k and uses more of them at some tokens; none may be lost without a word."""
    dense = SimpleNamespace(cfg=SimpleNamespace(d_in=tiny.cfg.d_model, d_sae=300, k=4), W_dec=torch.zeros(300, 1))
    directions = torch.randn(tiny.cfg.d_model, 300, generator=torch.Generator().manual_seed(0))
    dense.encode = lambda x: (x @ directions).relu()
    text = contexts(3)
    whole = latents.encode(dense, sae.residual(tiny, text, LAYER))
    scanned = latents.scan(tiny, dense, text, LAYER)
    assert torch.allclose(scanned.density, (whole > 0)[:, 1:].flatten(0, 1).float().mean(0))


def test_a_scan_of_kept_activations_is_that_of_a_run(tiny, small, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    text = contexts(10)
    plain, kept = (latents.scan(tiny, small, text, keep=keep) for keep in (False, True))
    apart = torch.stack([(plain.of(i) - kept.of(i)).abs().max() for i in range(96)])
    assert apart.max() < 0.01 * plain.values.max()
    some = kept[-4:]
    assert torch.equal(some.tokens, text[-4:])
    assert torch.equal(some.of(3), kept.of(3)[-4:])


def test_scans_of_nothing_or_with_an_autoencoder_of_another_layer_are_errors(tiny, small):
    with pytest.raises(SaeError, match="give contexts"):
        latents.scan(tiny, small, contexts()[:0])
    with pytest.raises(SaeError, match="is used on the output of layer 0"):
        latents.scan(tiny, small, contexts(), layer=0)


def of_directions(rows, hook_name="blocks.1.hook_out"):
    cfg = SimpleNamespace(d_in=rows.shape[1], d_sae=len(rows), metadata=SimpleNamespace(hook_name=hook_name))
    return SimpleNamespace(cfg=cfg, W_dec=rows)


def test_latents_are_matched_one_to_one_as_well_as_possible():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    cosine = torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T
    best = max(permutations(range(5), 4), key=lambda order: float(cosine[range(4), order].sum()))
    partner, found = latents.match(of_directions(a), of_directions(b))
    assert partner.tolist() == list(best)
    assert torch.allclose(found, cosine[range(4), best], atol=1e-6)
    assert torch.equal(latents.match(3 * a, of_directions(b))[0], partner)
    partner, found = latents.match(of_directions(b), of_directions(a))
    assert (partner == -1).sum() == found.isnan().sum() == 1
    opposite, back = latents.match(of_directions(a[:1]), of_directions(-2 * a[:1]))
    assert opposite.tolist() == [0]
    assert float(back) == pytest.approx(-1.0)


def test_what_cannot_be_matched_is_an_error():
    with pytest.raises(SaeError, match="3 and 4 numbers"):
        latents.match(of_directions(torch.ones(2, 3)), of_directions(torch.ones(2, 4)))
    with pytest.raises(SaeError, match="two layers"):
        latents.match(of_directions(torch.ones(2, 3)), of_directions(torch.ones(2, 3), "blocks.2.hook_out"))


def test_neighbours_and_matches_go_by_cosine(small):
    mate, cosine = latents.match(small, small)
    assert mate.tolist() == list(range(96))
    assert torch.allclose(cosine, torch.ones(96), atol=1e-5)
    cosines = small.W_dec @ small.W_dec[5]
    cosines[5] = -2
    assert [i for i, _ in latents.neighbours(small, 5, n=3)] == cosines.topk(3).indices.tolist()


def test_promoted_tokens_are_chosen_among_those_that_are_used(tiny, small):
    used = torch.zeros(tiny.cfg.d_vocab, dtype=torch.bool)
    used[100:160] = True
    high, low = latents.promoted(tiny, small, 7, used, n=5)
    assert all(100 <= token < 160 for token, _ in [*high, *low])
    scale = getattr(tiny.ln_final, "w", None)
    direction = small.W_dec[7] if scale is None else small.W_dec[7] * scale
    logits = (direction @ tiny.W_U)[100:160]
    assert high[0][0] == 100 + int(logits.argmax())
    assert low[0][0] == 100 + int(logits.argmin())


def test_a_latent_for_repetition_is_found_and_one_for_a_word_is_not():
    words = torch.zeros(50, dtype=torch.bool)
    words[10:] = True
    text = torch.randint(10, 30, (40, 20), generator=torch.Generator().manual_seed(0))
    text[:, 0] = 1
    seen = latents.repeated(text)
    for row, line in enumerate(text.tolist()):
        assert seen[row].tolist() == [at > 0 and token in line[1:at] for at, token in enumerate(line)]
    values = torch.stack([seen.float(), (text == 15).float(), torch.ones(text.shape)], -1)
    values[:, 0] = 0
    index = torch.tensor([0, 1, 2], dtype=torch.int32).expand(40, 20, 3)
    rates = latents.rates(latents.Codes(text, values, index, 4), words)
    assert rates.duplicate() == [0]
    assert (float(rates.repeat[0]), float(rates.first[0])) == (1, 0)
    assert float(rates.gap[2]) == pytest.approx(0)
    assert rates.n_repeat + rates.n_first == 40 * 19


def test_words_are_letters_with_or_without_a_space(smollm2):
    words = latents.words(smollm2.tokenizer)
    for text, is_word in ((" house", True), ("house", True), (" the", False), ("\n", False), (" Mary", True)):
        assert bool(words[prompts.token_id(smollm2, text)]) is is_word


def told_by_hooks(layer_of_edit, model, pop, delta, readers, into, through_mlps):
    """The logit differences when readers hear of an edit after a layer, by whole forward passes with plain hooks."""
    rows, s2 = torch.arange(len(pop)), pop.positions["S2"]
    rotary = "blocks.0.attn.hook_rot_q" in model.hook_dict
    inputs = {"q": "hook_rot_q", "k": "hook_rot_k"} if rotary else {"q": "hook_q", "k": "hook_k"}
    inputs["v"] = "hook_v"

    def run(hooks, names=()):
        with model.hooks(fwd_hooks=hooks):
            logits, cache = model.run_with_cache(pop.tokens, names_filter=list(names))
        return metrics.logit_difference(logits[rows, pop.end], pop), cache

    def put(name, column, value, heads=slice(None)):
        def change(x, hook):
            x = x.clone()
            index = torch.arange(x.shape[2])[heads] if x.ndim == 4 else None
            if index is None:
                x[rows, column] = value
            else:
                x[rows[:, None], column[:, None], index] = value[:, index]
            return x

        return name, change

    layers = range(model.cfg.n_layers)
    _, clean = run([], [f"blocks.{i}.{name}" for i in layers for name in ("attn.hook_z", "hook_mlp_out", "hook_out")])
    start = clean[f"blocks.{layer_of_edit}.hook_out"][rows, s2] + delta
    sending = [put(f"blocks.{layer_of_edit}.hook_out", s2, start)]
    for i in range(layer_of_edit + 1, len(layers)):
        frozen = ("attn.hook_z",) if through_mlps else ("attn.hook_z", "hook_mlp_out")
        sending += [put(f"blocks.{i}.{name}", s2, clean[f"blocks.{i}.{name}"][rows, s2]) for name in frozen]
    wanted = [f"blocks.{i}.attn.{name}" for i in layers for name in inputs.values()]
    _, sent = run(sending, wanted)
    hooks = []
    for layer in sorted({reader[0] for reader in readers}):
        new = [put(name, s2, sent[name][rows, s2]) for name in (f"blocks.{layer}.attn.{inputs[one]}" for one in into)]
        z = f"blocks.{layer}.attn.hook_z"
        _, cache = run([*hooks, *new], [z])
        for where, head, at in readers:
            if where == layer:
                column = pop.positions[at]
                hooks.append(put(z, column, cache[z][rows, column], [head]))
    return run(hooks)[0]


@pytest.mark.parametrize("through_mlps", [True, False])
@pytest.mark.parametrize("into", ["q", "k", "v", "kv"])
def test_what_readers_hear_is_what_hooks_give(tiny, pair, into, through_mlps):
    pop, _ = pair
    delta = 3.0 * torch.randn(len(pop), tiny.cfg.d_model, generator=torch.Generator().manual_seed(0))
    for readers in ([(1, 1, "END"), (2, 0, "S2"), (2, 1, "END")], [(2, 0, "END")]):
        found = latents.Editor(tiny, pop, 0).heard(delta, readers, into, through_mlps)
        slow = told_by_hooks(0, tiny, pop, delta, readers, into, through_mlps) - ld(tiny, pop)
        assert torch.allclose(found, slow, atol=2e-4), (found, slow)
        assert slow.abs().max() > 1e-4 or into == "q"


def test_readers_that_cannot_hear_are_errors(tiny, pair):
    pop, _ = pair
    editor, delta = latents.Editor(tiny, pop, LAYER), torch.zeros(2, tiny.cfg.d_model)
    for readers, into, says in (
        ([], "k", "no readers"),
        ([(LAYER, 0, "END")], "k", "can't hear"),
        ([(2, 0, "IO")], "k", "can't hear"),
        ([(2, 0, "END")], "z", "unknown input"),
    ):
        with pytest.raises(SaeError, match=says):
            editor.heard(delta, readers, into)


def test_shuffles_keep_the_words_and_a_planted_mark_exceeds_them(tiny):
    text = torch.randint(10, 30, (40, 24), generator=torch.Generator().manual_seed(0))
    text[:, 0] = 1
    words = torch.ones(100, dtype=torch.bool)
    again = latents.repeated(text)
    by_word = (text % 2).bool()  # a latent that fires on some words, whether they are repeated or not
    values, index = torch.stack([again.float(), by_word.float()], -1), torch.zeros(*text.shape, 2, dtype=torch.int32)
    index[..., 1] = 1
    made = latents.Codes(text, values, index, 3)
    found = latents.rates(made, words)
    chance = latents.widest_by_chance(made, words, 20)
    assert chance.shape == (20,)
    assert float(found.gap[0]) == 1.0 > float(chance.max())
    assert float(found.gap[1]) <= float(chance.max())
    with pytest.raises(SaeError, match="repeated words"):
        latents.widest_by_chance(made, torch.zeros(100, dtype=torch.bool))


def test_the_message_in_parts_is_what_plain_hooks_give(smollm2):
    """Chapter 17's table on four prompts: a new name at S1 by its token, parts by hand, one forward pass for each."""
    book = sae.shipped(smollm2)
    pop = prompts.population(smollm2, 4, seed=16, exact=True)
    other = prompts.corrupt(smollm2, pop, "first")
    editor = latents.Editor(smollm2, pop, book.layer)
    name = f"blocks.{book.layer}.hook_out"
    for row, prompt in enumerate(pop.prompts):
        one = smollm2.tokenizer.encode(prompt.text, add_special_tokens=False)
        ids = torch.tensor([[smollm2.tokenizer.bos_token_id, *one]])
        s = smollm2.tokenizer.encode(" " + prompt.s, add_special_tokens=False)[0]
        io = smollm2.tokenizer.encode(" " + prompt.io, add_special_tokens=False)[0]
        s1, s2 = (ids[0] == s).nonzero()[:, 0].tolist()
        new = ids.clone()
        new[0, s1] = other.tokens[row, s1]
        h, h_new = (smollm2.run_with_cache(x, names_filter=[name])[1][name][0, s2] for x in (ids, new))
        change = book.sae.encode(h_new[None])[0] - book.sae.encode(h[None])[0]
        marks = change.abs().topk(3).indices.tolist()
        parts = {"whole": h_new - h, "latents": change @ book.sae.W_dec, "some": change[marks] @ book.sae.W_dec[marks]}
        parts["error"] = parts["whole"] - parts["latents"]
        for delta in parts.values():

            def add(x, hook, delta=delta, s2=s2):
                x = x.clone()
                x[0, s2] += delta
                return x

            values = []
            for hooks in ([], [(name, add)]):
                with smollm2.hooks(fwd_hooks=hooks), torch.no_grad():
                    last = smollm2(ids)[0, -1]
                values.append(float(last[io] - last[s]))
            all_rows = torch.zeros(len(pop), len(delta))
            all_rows[row] = delta
            assert abs(float(editor.change("S2", all_rows)[row]) - (values[1] - values[0])) < 2e-3
