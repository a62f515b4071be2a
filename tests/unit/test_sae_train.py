"""Activations, training and files: known answers, and every way in which they can go wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from labcode.sae import activations, files, train
from labcode.sae.errors import SaeError

FEATURES, WIDTH, ACTIVE = 24, 16, 2


def synthetic(n=20_000, seed=0):
    """Vectors with known sparse features around a mean that is far from zero, and the features."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH, generator=generator), dim=-1)
    which = torch.rand(n, FEATURES, generator=generator).topk(ACTIVE).indices
    code = torch.zeros(n, FEATURES).scatter_(1, which, 1 + torch.rand(n, ACTIVE, generator=generator))
    mean = 2 * torch.randn(WIDTH, generator=generator)
    where = torch.arange(n)
    return activations.Activations(code @ truth + mean, where, where, 0, 1.0, layer=1), truth


@pytest.fixture(scope="module")
def trained():
    data, truth = synthetic()
    return data, truth, train.train(data, d_sae=32, k=ACTIVE, samples=150_000, batch=256, lr=3e-3, model_name="none")


def test_training_recovers_the_features_that_made_the_data(trained):
    data, truth, run = trained
    cosine = (truth @ run.sae.W_dec.T).max(-1).values
    assert (cosine > 0.9).float().mean() >= 0.75
    rebuilt = run.sae.decode(run.sae.encode(data.values))
    assert (data.values - rebuilt).pow(2).sum() < 0.2 * (data.values - data.center).pow(2).sum()


def test_the_history_says_how_training_went(trained):
    history = trained[2].history
    assert history[-1].loss < 0.5 * history[0].loss
    assert all(step.l0 <= ACTIVE for step in history)
    assert history[-1].samples == trained[2].settings["samples"]
    assert all(0 <= step.dead <= 1 for step in history)


def test_decoder_rows_have_norm_one_and_no_scale_is_left(trained):
    sae = trained[2].sae
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(32), atol=1e-5)
    assert sae.cfg.normalize_activations == "none"
    assert not sae.cfg.rescale_acts_by_decoder_norm


def test_encoding_by_hand_is_what_sae_lens_does(trained):
    data, _, run = trained
    x, sae = data.values[:50], run.sae
    before = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    top = before.topk(ACTIVE)
    code = torch.zeros_like(before).scatter_(1, top.indices, top.values.relu())
    assert torch.allclose(code, sae.encode(x), atol=1e-5)
    assert torch.allclose(code @ sae.W_dec + sae.b_dec, sae.decode(sae.encode(x)), atol=1e-5)


def test_the_decoder_bias_starts_at_the_mean_of_the_data():
    data, _ = synthetic()
    trainer = train._trainer(data, WIDTH, 32, ACTIVE, 10, 256, 1e-3, "")
    start = trainer.sae.b_dec.detach() / trainer.activation_scaler.scaling_factor
    assert torch.allclose(start, data.center, atol=0.05)
    assert data.center.norm() > 1


def test_the_same_seed_gives_the_same_autoencoder_and_leaves_the_random_state_alone():
    data, _ = synthetic(2000)
    before = torch.random.get_rng_state()
    one, two, other = (train.train(data, d_sae=32, k=2, samples=2000, batch=100, seed=s).sae for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.W_dec, two.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)


def test_fewer_activations_than_a_batch_are_an_error():
    with pytest.raises(SaeError, match="fewer than one batch"):
        train.train(synthetic(100)[0], d_sae=32, k=2, batch=101)


@pytest.mark.parametrize("k", [0, 33])
def test_an_impossible_k_is_an_error(k):
    with pytest.raises(SaeError, match=f"k = {k}"):
        train.train(synthetic(100)[0], d_sae=32, k=k, batch=50)


def test_a_nan_in_the_data_is_an_error():
    data, _ = synthetic(100)
    data.values[3, 4] = torch.nan
    with pytest.raises(SaeError, match="NaN"):
        train.train(data, d_sae=32, k=2, batch=50)


def test_a_nan_during_training_stops_it_where_it_appears():
    with pytest.raises(SaeError, match=r"loss is .* at step \d+"):
        train.train(synthetic(500)[0], d_sae=32, k=2, samples=5000, batch=50, lr=1e38)


def test_files_come_back_in_float16_precision(trained, tmp_path):
    sae = trained[2].sae
    files.save(sae, tmp_path / "sae", {"tokens": 5})
    back, record = files.load(tmp_path / "sae")
    assert record["tokens"] == 5
    assert back.W_dec.dtype == torch.float32
    assert torch.equal(back.W_dec, sae.W_dec.half().float())
    x = trained[0].values[:500]
    same = (back.encode(x) > 0) == (sae.encode(x) > 0)
    assert same.float().mean() > 0.999
    assert torch.allclose(back.decode(back.encode(x)), sae.decode(sae.encode(x)), atol=0.05) or same.float().mean() < 1
    assert files.layer_of(back) == 1


@pytest.mark.parametrize("name", [files.WEIGHTS, files.CONFIG])
def test_an_altered_file_is_an_error(name, trained, tmp_path):
    files.save(trained[2].sae, tmp_path / "sae", {})
    path = tmp_path / "sae" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(SaeError, match=name):
        files.load(tmp_path / "sae")


def test_a_missing_file_is_an_error(trained, tmp_path):
    files.save(trained[2].sae, tmp_path / "sae", {})
    (tmp_path / "sae" / files.WEIGHTS).unlink()
    with pytest.raises(SaeError, match="no autoencoder"):
        files.load(tmp_path / "sae")


def test_an_autoencoder_that_is_no_number_is_not_saved_and_the_old_one_stays(trained, tmp_path):
    files.save(trained[2].sae, tmp_path / "sae", {"old": True})
    broken, _ = files.load(tmp_path / "sae")
    broken.W_dec.data[0, 0] = torch.inf
    with pytest.raises(SaeError, match="W_dec"):
        files.save(broken, tmp_path / "sae", {})
    assert files.load(tmp_path / "sae")[1]["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_saving_replaces_what_was_there_and_leaves_nothing_beside_it(trained, tmp_path):
    for number in range(2):
        files.save(trained[2].sae, tmp_path / "sae", {"number": number})
    assert files.load(tmp_path / "sae")[1]["number"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_an_autoencoder_of_another_width_or_layer_does_not_fit(trained, tmp_path, tiny_gpt2, toy):
    files.save(trained[2].sae, tmp_path / "sae", {})
    with pytest.raises(SaeError, match="16 numbers, the model has 48"):
        files.load(tmp_path / "sae", tiny_gpt2.bridge)
    trained[2].sae.cfg.metadata.hook_name, kept = "blocks.9.hook_out", trained[2].sae.cfg.metadata.hook_name
    try:
        files.save(trained[2].sae, tmp_path / "sae", {})
    finally:
        trained[2].sae.cfg.metadata.hook_name = kept
    with pytest.raises(SaeError, match="no layer 9"):
        files.load(tmp_path / "sae", tiny_gpt2.bridge)


def tokens(n=4, length=12, seed=0):
    text = torch.randint(3, 5000, (n, length), generator=torch.Generator().manual_seed(seed))
    text[:, 0] = 1
    return text


def test_collected_activations_are_those_of_a_plain_run_without_position_0(tiny):
    text = tokens()
    found = activations.collect(tiny, text, 1, batch_size=3)
    _, cache = tiny.run_with_cache(text, names_filter=["blocks.1.hook_out"])
    plain = cache["blocks.1.hook_out"]
    assert set(found.position.tolist()) == set(range(1, 12))
    assert len(found) + found.dropped == 4 * 11
    there = plain[found.context, found.position]
    relative = (found.values.float() - there).norm() / there.norm()
    assert relative < 1e-3  # stored as float16
    assert found.values.dtype == torch.float16


def test_massive_vectors_are_left_out(tiny):
    def enlarge(h, hook):
        h = h.clone()
        h[2, 5] *= 1000
        return h

    with tiny.hooks(fwd_hooks=[("blocks.0.hook_out", enlarge)]):
        found = activations.collect(tiny, tokens(), 1)
        chosen = activations.choose_layer(tiny, tokens(), depth=0)
    assert found.dropped >= 1
    assert not ((found.context == 2) & (found.position == 5)).any()
    assert chosen.counts[1] >= 1


def test_a_layer_without_massive_vectors_is_preferred_to_a_nearer_one(tiny):
    chosen = activations.choose_layer(tiny, tokens(), depth=1 / 3)
    assert chosen.layer == 1 or chosen.counts[1] > 0
    assert len(chosen.counts) == tiny.cfg.n_layers
    best = min(chosen.counts)
    assert chosen.counts[chosen.layer] == best


def test_a_layer_that_does_not_exist_and_no_text_are_errors(tiny):
    with pytest.raises(SaeError, match=r"no layer 3.*has 3 layers"):
        activations.collect(tiny, tokens(), 3)
    with pytest.raises(SaeError, match="contexts"):
        activations.collect(tiny, tokens()[:0], 1)


def test_a_nan_in_the_model_is_an_error(tiny):
    def break_it(h, hook):
        return h * torch.nan

    with tiny.hooks(fwd_hooks=[("blocks.0.hook_out", break_it)]), pytest.raises(SaeError, match="NaN"):
        activations.collect(tiny, tokens(), 1)


def test_data_can_be_cut_without_changing_the_rest():
    data, _ = synthetic(100)
    assert len(dataclasses.replace(data, values=data.values[:10])) == 10
