"""Transcoders: a computation that is known, files, the model with its MLP replaced, and what must not pass."""

from __future__ import annotations

import json

import pytest
import torch

from labcode import prompts, sae, sealed, transcoder
from labcode.corpus import DATA
from labcode.errors import SaeError
from labcode.latents import Editor

UNITS, WIDTH, LAYER = 16, 24, 1


def as_pairs(x, y):
    where = torch.arange(len(x))
    return transcoder.Pairs(x, y, where, where, 0, 1.0, LAYER)


def known(n=20_000, seed=0):
    """An MLP with a bias so low that few units are active at once, on inputs without structure; what units write."""
    fixed, drawn = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    reads, writes = (
        torch.nn.functional.normalize(torch.randn(UNITS, WIDTH, generator=fixed), dim=-1) for _ in range(2)
    )
    x = torch.randn(n, WIDTH, generator=drawn) + 0.5
    active = ((x - 0.5) @ reads.T - 1.2).relu()
    return as_pairs(x, active @ writes + 1.0), reads, writes


@pytest.fixture(scope="module")
def trained():
    pairs, reads, writes = known()
    made = transcoder.train(pairs, d_sae=32, k=2, samples=200_000, batch=256, lr=1e-2, model_name="none")
    return pairs, reads, writes, made


def contexts(n=4, length=12, seed=0):
    text = torch.randint(3, 5000, (n, length), generator=torch.Generator().manual_seed(seed))
    text[:, 0] = 1
    return text


def test_training_finds_the_units_that_wrote_the_data(trained):
    pairs, reads, writes, run = trained
    cosine, partner = (writes @ run.transcoder.W_dec.T).max(-1)
    assert (cosine > 0.9).float().mean() >= 0.75
    waits_for = torch.nn.functional.normalize(run.transcoder.W_enc.T, dim=-1)[partner]
    found = cosine > 0.9
    assert ((reads * waits_for).sum(-1)[found] > 0.8).float().mean() >= 0.75
    unseen = known(4000, seed=1)[0]
    missed = transcoder.unexplained(unseen, run.transcoder, pairs.center)
    assert missed < 0.6 * transcoder.unexplained(unseen, transcoder.linear_map(pairs), pairs.center)


def test_of_all_latents_as_many_fire_as_was_asked(trained):
    pairs, _, _, run = trained
    active = (run.transcoder.encode(pairs.reads) > 0).float().sum(-1).mean()
    assert float(active) == pytest.approx(2, abs=0.1)
    assert torch.allclose(run.transcoder.W_dec.norm(dim=-1), torch.ones(32), atol=1e-5)
    assert run.history[-1].loss < 0.5 * run.history[0].loss


def test_a_linear_map_beside_the_code_stays_as_it_is_and_the_code_adds_to_it(trained):
    pairs, *_ = trained
    linear = transcoder.linear_map(pairs)
    made = transcoder.train(pairs, d_sae=32, k=2, samples=60_000, batch=256, lr=1e-2, linear=linear).transcoder
    assert torch.allclose(made.W_skip, linear.weight.T)
    x = pairs.reads[:50]
    assert torch.allclose(made(x), made.decode(made.encode(x)) + x @ linear.weight, atol=1e-4)
    unseen = known(4000, seed=1)[0]
    missed = transcoder.unexplained(unseen, made, pairs.center)
    assert missed < transcoder.unexplained(unseen, linear, pairs.center)


def test_a_linear_map_is_found_and_one_of_low_rank_is_no_better():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2000, 8, generator=generator), torch.randn(8, 8, generator=generator)
    pairs = as_pairs(x, x @ weight + 3)
    found = transcoder.linear_map(pairs, ridge=1e-7)
    assert torch.allclose(found.weight, weight, atol=1e-3)
    misses = [transcoder.unexplained(pairs, found.of_rank(rank, pairs), pairs.center) for rank in (0, 2, 4, 8)]
    assert misses[0] == pytest.approx(1.0, abs=1e-4)
    assert misses == sorted(misses, reverse=True)
    assert misses[-1] < 1e-4


def test_the_dead_have_a_loss_of_their_own_and_it_is_nothing_where_none_is_dead():
    pairs, *_ = known()
    wanted = {"d_sae": 256, "k": 1, "batch": 256, "lr": 1e-2, "start": "random"}
    early, late = (
        [transcoder.train(pairs, aux=aux, samples=n, **wanted).transcoder.W_enc for aux in (0.0, 1 / 8)]
        for n in (256 * transcoder.DEAD_AFTER, 256 * 3 * transcoder.DEAD_AFTER)
    )
    assert torch.equal(*early)
    assert not torch.allclose(*late, atol=1e-3)


def test_random_directions_stay(trained):
    pairs, *_ = trained
    wanted = {"d_sae": 32, "k": 2, "batch": 256, "decoder": "random"}
    short, long = (transcoder.train(pairs, samples=samples, **wanted).transcoder for samples in (256, 5120))
    assert torch.allclose(short.W_dec, long.W_dec, atol=1e-6)
    assert not torch.allclose(short.W_enc, long.W_enc, atol=1e-3)


def test_collected_pairs_are_those_of_a_plain_run(tiny):
    text = contexts()
    found = transcoder.collect(tiny, text, LAYER, batch_size=3)
    names = transcoder.hooks(LAYER)
    _, cache = tiny.run_with_cache(text, names_filter=[*names])
    assert len(found) + found.dropped == 4 * 11
    if not found.dropped:
        assert torch.allclose(found.reads, cache[names[0]][:, 1:].flatten(0, 1), atol=1e-5)
        assert torch.allclose(found.writes, cache[names[1]][:, 1:].flatten(0, 1), atol=1e-5)


def test_the_map_of_every_layer_is_that_of_one_layer(tiny):
    text, held = contexts(64, 24), contexts(8, 24, seed=1)
    missed = transcoder.beyond_linear(tiny, text, held)
    pairs, unseen = (transcoder.collect(tiny, part, LAYER) for part in (text, held))
    alone = transcoder.unexplained(unseen, transcoder.linear_map(pairs), pairs.center)
    assert len(missed) == tiny.cfg.n_layers
    assert missed[LAYER] == pytest.approx(alone, rel=0.1)


def test_an_effect_is_that_of_a_plain_hook(tiny, pair):
    pop, other = pair
    from labcode import metrics

    name, rows, at = transcoder.hooks(LAYER)[1], torch.arange(len(pop)), pop.positions["S2"]
    _, cache = tiny.run_with_cache(other.tokens, names_filter=[name])

    def put_in(y, hook):
        y = y.clone()
        y[rows, at] = cache[name][rows, at]
        return y

    with tiny.hooks(fwd_hooks=[(name, put_in)]):
        patched = metrics.logit_difference(metrics.end_logits(tiny, pop), pop)
    before = metrics.logit_difference(metrics.end_logits(tiny, pop), pop)
    assert torch.allclose(transcoder.effects(Editor(tiny, pop, LAYER), other)["S2"], patched - before, atol=1e-4)


def test_what_the_mlp_writes_costs_nothing_and_its_mean_does(tiny):
    text = contexts(6)
    pairs = transcoder.collect(tiny, text, LAYER)

    def itself(x):  # looked up: calling the MLP would run the hooks again
        return pairs.writes[torch.cdist(x, pairs.reads).argmin(-1)]

    found = transcoder.evaluate(tiny, text, LAYER, {"itself": itself, "mean": pairs.center.expand_as}, pairs.median)
    assert torch.allclose(found["itself"], found["clean"], atol=1e-4)
    assert not torch.allclose(found["mean"], found["clean"], atol=1e-4)
    assert len(found["clean"]) == 6


@pytest.fixture
def saved(tiny, tmp_path):
    pairs = transcoder.collect(tiny, contexts(40, 24), LAYER)
    linear = transcoder.linear_map(pairs)
    made = transcoder.train(pairs, d_sae=48, k=4, samples=2000, batch=100, linear=linear)
    sae.save(made.transcoder, tmp_path / "t", transcoder.record_of(tiny, pairs, linear, made))
    return tmp_path / "t", pairs, made.transcoder


def test_what_was_saved_is_read_again_here_and_by_sae_lens(saved, tiny):
    from sae_lens import SAE, JumpReLUSkipTranscoder

    folder, pairs, made = saved
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors", "record.json"}
    again, record = transcoder.load(folder, tiny)
    theirs = SAE.load_from_disk(folder, dtype="float32")
    assert isinstance(theirs, JumpReLUSkipTranscoder)
    assert record["settings"]["layer"] == LAYER == transcoder.layer_of(again)
    x = pairs.reads[:50]
    assert torch.allclose(again(x), theirs(x))
    assert (again(x) - made(x)).norm() < 0.02 * made(x).norm()  # float16


@pytest.mark.parametrize(
    ("reads", "writes", "says"),
    [
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_in", "wrong way round"),
        ("blocks.1.mlp.hook_in", "blocks.2.hook_mlp_out", "of the same layer"),
        ("blocks.1.hook_out", None, "no transcoder"),
        ("blocks.9.mlp.hook_in", "blocks.9.hook_mlp_out", "no layer 9"),
    ],
)
def test_hooks_that_are_not_those_of_one_mlp_are_errors(saved, tiny, reads, writes, says):
    folder, *_ = saved
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= {"hook_name": reads, "hook_name_out": writes}
    (folder / "cfg.json").write_text(json.dumps(config))
    record = json.loads((folder / sae.RECORD).read_text())
    record.pop("checksum")
    sealed.write(folder / sae.RECORD, record, *sae._beside(folder))
    with pytest.raises(SaeError, match=says):
        transcoder.load(folder, tiny)


def test_a_transcoder_of_another_model_is_an_error(saved, tiny, tiny_llama, tiny_gpt2, trained):
    folder, *_ = saved
    other = next(model.bridge for model in (tiny_llama, tiny_gpt2) if model.bridge is not tiny)
    with pytest.raises(SaeError, match=r"other weights|reads .* numbers"):
        transcoder.load(folder, other)
    narrow = trained[3].transcoder
    with pytest.raises(SaeError, match=r"reads 24 numbers and predicts 24.*train one"):
        transcoder.check_fits(narrow, tiny)


def test_impossible_trainings_are_errors(tiny, trained):
    pairs, *_ = trained
    with pytest.raises(SaeError, match="k = 33 active latents of 32"):
        transcoder.train(pairs, d_sae=32, k=33)
    few = as_pairs(pairs.reads[:10], pairs.writes[:10])
    with pytest.raises(SaeError, match="10 pairs are fewer than one batch"):
        transcoder.train(few, d_sae=32, k=2)
    with pytest.raises(SaeError, match="lower the learning rate"):
        transcoder.train(pairs, d_sae=32, k=2, lr=1e30, samples=5000)
    for text in (contexts()[:0], contexts()[:, :1]):
        with pytest.raises(SaeError, match="give contexts"):
            transcoder.collect(tiny, text, LAYER)
    with pytest.raises(SaeError, match="no layer 3"):
        transcoder.collect(tiny, contexts(), 3)


def test_a_nan_is_an_error(tiny):
    broken = tiny.hooks(fwd_hooks=[("blocks.0.hook_out", lambda h, hook: h * torch.nan)])
    with broken, pytest.raises(SaeError, match="NaN"):
        transcoder.collect(tiny, contexts(), LAYER)


def test_a_damaged_folder_is_an_error(tmp_path):
    with pytest.raises(SaeError, match="no autoencoder that can be read"):
        transcoder.load(tmp_path)


def test_another_model_gets_a_small_one_of_its_own_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    monkeypatch.setenv("LAB_TOKENS", "2048")
    first = transcoder.shipped(tiny)
    assert first.live
    monkeypatch.setattr(transcoder, "train", None)  # it is not trained again
    again = transcoder.shipped(tiny)
    assert torch.equal(first.transcoder.W_dec, again.transcoder.W_dec)
    assert again.layer == first.layer
    x = torch.randn(3, tiny.cfg.d_model)
    assert again.linear(x).shape == x.shape


def test_the_shipped_transcoder_belongs_to_the_embedded_model_and_beats_the_linear_map(smollm2):
    found = transcoder.shipped(smollm2)
    assert not found.live
    folder = DATA / "transcoder-smollm2"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 7e6
    missed = found.record["held_out"]["unexplained"]
    assert missed["transcoder"] < missed["linear"]
    assert prompts.canonical(smollm2).tokens.shape[0] == 1
