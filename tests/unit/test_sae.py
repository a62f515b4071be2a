"""Activations, training, judging and files: known answers, plain hooks, and every way in which they can go wrong."""

from __future__ import annotations

import pytest
import torch

from labcode import corpus, sae
from labcode.errors import SaeError

FEATURES, WIDTH, ACTIVE, LAYER = 24, 16, 2, 1


def synthetic(n=20_000, seed=0):
    """Vectors with known sparse features around a mean that is far from zero, and the features."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH, generator=generator), dim=-1)
    which = torch.rand(n, FEATURES, generator=generator).topk(ACTIVE).indices
    code = torch.zeros(n, FEATURES).scatter_(1, which, 1 + torch.rand(n, ACTIVE, generator=generator))
    mean = 2 * torch.randn(WIDTH, generator=generator)
    where = torch.arange(n)
    return sae.Activations(code @ truth + mean, where, where, 0, 1.0, layer=LAYER), truth


@pytest.fixture(scope="module")
def trained():
    data, truth = synthetic()
    return data, truth, sae.train(data, d_sae=32, k=ACTIVE, samples=150_000, batch=256, lr=3e-3, model_name="none")


def contexts(n=4, length=12, seed=0):
    text = torch.randint(3, 5000, (n, length), generator=torch.Generator().manual_seed(seed))
    text[:, 0] = 1
    return text


def test_training_recovers_the_features_that_made_the_data(trained):
    data, truth, run = trained
    cosine = (truth @ run.sae.W_dec.T).max(-1).values
    assert (cosine > 0.9).float().mean() >= 0.75
    assert sae.explained(data.values, lambda x: run.sae.decode(run.sae.encode(x)), data.center) > 0.8


def test_the_history_says_how_training_went(trained):
    history = trained[2].history
    assert history[-1].loss < 0.5 * history[0].loss
    assert all(moment.l0 <= ACTIVE for moment in history)
    assert history[-1].samples == trained[2].settings["samples"]
    assert all(0 <= moment.dead <= 1 for moment in history)


def test_the_finished_autoencoder_is_plain_and_encodes_as_by_hand(trained):
    data, _, run = trained
    x, made = data.values[:50], run.sae
    assert torch.allclose(made.W_dec.norm(dim=-1), torch.ones(32), atol=1e-5)
    assert made.cfg.normalize_activations == "none"
    assert not made.cfg.rescale_acts_by_decoder_norm
    before = (x - made.b_dec) @ made.W_enc + made.b_enc
    top = before.topk(ACTIVE)
    code = torch.zeros_like(before).scatter_(1, top.indices, top.values.relu())
    assert torch.allclose(code, made.encode(x), atol=1e-5)
    assert torch.allclose(code @ made.W_dec + made.b_dec, made.decode(made.encode(x)), atol=1e-5)


def test_the_decoder_bias_starts_at_the_mean_of_the_data():
    data, _ = synthetic()
    trainer = sae._trainer(data, 32, ACTIVE, 10, 256, 1e-3, "")
    start = trainer.sae.b_dec.detach() / trainer.activation_scaler.scaling_factor
    assert torch.allclose(start, data.center, atol=0.05)
    assert data.center.norm() > 1


def test_the_same_seed_gives_the_same_autoencoder_and_leaves_the_random_state_alone():
    data, _ = synthetic(2000)
    before = torch.random.get_rng_state()
    one, two, other = (sae.train(data, d_sae=32, k=2, samples=2000, batch=100, seed=s).sae for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.W_dec, two.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": 501}, "fewer than one batch"),
        ({"k": 0}, "k = 0"),
        ({"k": 33}, "k = 33"),
        ({"samples": 5000, "lr": 1e38}, r"loss is .* at step \d+"),
    ],
)
def test_settings_that_cannot_work_are_errors(change, says):
    with pytest.raises(SaeError, match=says):
        sae.train(synthetic(500)[0], **{"d_sae": 32, "k": 2, "batch": 50, **change})


def test_a_nan_in_the_data_is_an_error():
    data, _ = synthetic(100)
    data.values[3, 4] = torch.nan
    with pytest.raises(SaeError, match="NaN"):
        sae.train(data, d_sae=32, k=2, batch=50)


def test_files_come_back_in_float16_precision_and_replace_what_was_there(trained, tmp_path):
    made = trained[2].sae
    for number in range(2):
        sae.save(made, tmp_path / "sae", {"number": number})
    back, record = sae.load(tmp_path / "sae")
    assert record == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
    assert made.W_dec.dtype == back.W_dec.dtype == torch.float32
    assert all(torch.equal(value, made.state_dict()[name].half().float()) for name, value in back.state_dict().items())
    assert not back.cfg.rescale_acts_by_decoder_norm
    assert sae.layer_of(back) == LAYER


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json", sae.RECORD])
@pytest.mark.parametrize("keep", [0.5, None])
def test_a_truncated_or_missing_file_is_an_error(name, keep, trained, tmp_path):
    sae.save(trained[2].sae, tmp_path / "sae", {"number": 1})
    path = tmp_path / "sae" / name
    content = path.read_bytes()
    path.unlink()
    if keep:
        path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(SaeError, match="no autoencoder that can be read"):
        sae.load(tmp_path / "sae")


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json", sae.RECORD])
def test_an_altered_file_is_an_error(name, trained, tmp_path):
    sae.save(trained[2].sae, tmp_path / "sae", {"number": 1})
    path = tmp_path / "sae" / name
    content = bytearray(path.read_bytes())
    at = content.index(b"1") if name != "sae_weights.safetensors" else -1
    content[at] ^= 2
    path.write_bytes(content)
    with pytest.raises(SaeError, match=r"no autoencoder that can be read .its checksum is another"):
        sae.load(tmp_path / "sae")


def test_the_line_ends_of_a_text_file_do_not_matter(trained, tmp_path):
    sae.save(trained[2].sae, tmp_path / "sae", {"number": 1})
    for name in ("cfg.json", sae.RECORD):
        path = tmp_path / "sae" / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert sae.load(tmp_path / "sae")[1] == {"number": 1}


def test_an_autoencoder_that_is_no_number_is_not_saved_and_the_old_one_stays(trained, tmp_path):
    sae.save(trained[2].sae, tmp_path / "sae", {"old": True})
    broken, _ = sae.load(tmp_path / "sae")
    broken.W_dec.data[0, 0] = torch.inf
    with pytest.raises(SaeError, match="W_dec"):
        sae.save(broken, tmp_path / "sae", {})
    assert sae.load(tmp_path / "sae")[1]["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_place_that_cannot_be_written_is_an_error(trained, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaeError, match="can't be written"):
        sae.save(trained[2].sae, tmp_path / "file" / "sae", {})


def test_an_autoencoder_of_another_width_or_layer_does_not_fit(trained, tmp_path, tiny, monkeypatch):
    sae.save(trained[2].sae, tmp_path / "sae", {})
    with pytest.raises(SaeError, match="16 numbers, the model has 48"):
        sae.load(tmp_path / "sae", tiny)
    monkeypatch.setattr(trained[2].sae.cfg.metadata, "hook_name", "blocks.9.hook_out")
    sae.save(trained[2].sae, tmp_path / "sae", {})
    with pytest.raises(SaeError, match="no layer 9"):
        sae.load(tmp_path / "sae", tiny)


def test_collected_activations_are_those_of_a_plain_run_without_position_0(tiny):
    text = contexts()
    found = sae.collect(tiny, text, 1, batch_size=3)
    _, cache = tiny.run_with_cache(text, names_filter=["blocks.1.hook_out"])
    there = cache["blocks.1.hook_out"][found.context, found.position]
    assert set(found.position.tolist()) == set(range(1, 12))
    assert len(found) + found.dropped == 4 * 11
    assert (found.values.float() - there).norm() / there.norm() < 1e-3  # stored as float16
    assert found.values.dtype == torch.float16


def test_kept_activations_are_collected_once_and_by_the_same_rule(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    text, runs = contexts(20), []
    plain = sae.collect(tiny, text, 1)

    def run(model, tokens, layer, residual=sae.residual):
        runs.append(len(tokens))
        return residual(model, tokens, layer)

    monkeypatch.setattr(sae, "residual", run)
    first, again = sae.collect(tiny, text, 1, 8, keep=True), sae.collect(tiny, text, 1, 8, keep=True)
    assert runs == [8, 8, 4]
    for found in (first, again):
        assert torch.equal(found.values, plain.values)
        assert torch.equal(found.position, plain.position)
        assert found.values.dtype == torch.float16
        assert found.median == pytest.approx(plain.median, rel=1e-3)
    sae.collect(tiny, text, 0, keep=True)
    sae.collect(tiny, text[:8], 1, keep=True)
    assert runs == [8, 8, 4, 20, 8]
    doubled = tiny.hooks(fwd_hooks=[("blocks.0.hook_out", lambda h, hook: 2 * h)])
    with doubled, pytest.warns(UserWarning, match="not kept: a hook"):
        assert not torch.equal(sae.collect(tiny, text, 1, keep=True).values, plain.values)
    assert torch.equal(sae.collect(tiny, text, 1, keep=True).values, plain.values)


def test_massive_vectors_are_left_out_and_a_layer_without_them_is_preferred(tiny):
    def enlarge(h, hook):
        h = h.clone()
        h[2, 5] *= 1000
        return h

    plain = sae.choose_layer(tiny, contexts(), depth=1 / 3)
    assert plain.layer == 1 or plain.counts[1] > 0
    assert plain.counts[plain.layer] == min(plain.counts)
    with tiny.hooks(fwd_hooks=[("blocks.0.hook_out", enlarge)]):
        found = sae.collect(tiny, contexts(), 1)
        chosen = sae.choose_layer(tiny, contexts(), depth=0)
    assert found.dropped >= 1
    assert not ((found.context == 2) & (found.position == 5)).any()
    assert chosen.counts[1] >= 1
    assert len(chosen.counts) == tiny.cfg.n_layers


def test_a_layer_that_does_not_exist_no_text_and_a_nan_are_errors(tiny):
    with pytest.raises(SaeError, match=r"no layer 3.*has 3 layers"):
        sae.collect(tiny, contexts(), 3)
    with pytest.raises(SaeError, match="contexts"):
        sae.collect(tiny, contexts()[:0], 1)
    broken = tiny.hooks(fwd_hooks=[("blocks.0.hook_out", lambda h, hook: h * torch.nan)])
    with broken, pytest.raises(SaeError, match="NaN"):
        sae.collect(tiny, contexts(), 1)


def test_a_splice_is_that_of_a_plain_hook_and_leaves_position_0_alone(tiny):
    text, center = contexts(), torch.ones(tiny.cfg.d_model)

    def by_hand(h, hook):
        return torch.cat([h[:, :1], center.expand_as(h[:, 1:])], dim=1)

    replacements = {"same": lambda h: h.clone(), "mean": lambda h: center.expand_as(h)}
    found = sae.splice(tiny, text, LAYER, replacements, median=1e9)
    plain = {"clean": tiny(text), "same": tiny(text)}
    with tiny.hooks(fwd_hooks=[(f"blocks.{LAYER}.hook_out", by_hand)]):
        plain["mean"] = tiny(text)
    for name, logits in plain.items():
        log_p = logits[:, 1:-1].log_softmax(-1).gather(-1, text[:, 2:, None])[..., 0]
        assert torch.allclose(found[name], -log_p.mean(-1), atol=1e-5)
    assert not torch.allclose(found["mean"], found["clean"], atol=1e-3)


def test_massive_vectors_are_not_spliced(tiny):
    norms = sae.residual(tiny, contexts(), LAYER).norm(dim=-1)[:, 1:]
    median, seen = float(norms.median()) / 2.9, []
    sae.splice(tiny, contexts(), LAYER, {"x": lambda x: seen.append(len(x)) or x}, median=median)
    assert abs(sum(seen) - int((norms <= 3 * median).sum())) <= 1
    assert sum(seen) < 4 * 11


def test_recovered_is_the_part_of_the_way_from_the_floor():
    ce = {
        name: torch.tensor([value]) for name, value in (("clean", 3.0), ("mean", 8.0), ("zero", 13.0), ("spliced", 4.0))
    }
    quality = sae.Quality(0.5, 2, 0, 0, ce, 1)
    assert quality.recovered("mean") == pytest.approx(0.8)
    assert quality.recovered("zero") == pytest.approx(0.9)
    assert quality.recovered("clean") == 0.0


def test_explained_variance_is_one_for_a_whole_basis_and_zero_for_the_mean():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) + 3
    center = x.mean(0)
    assert sae.explained(x, lambda h: h.clone(), center) == pytest.approx(1.0)
    assert sae.explained(x, lambda h: center.expand_as(h), center) == pytest.approx(0.0, abs=1e-6)


def test_quality_counts_what_fires(tiny):
    text = contexts(8, 16, seed=3)
    data = sae.collect(tiny, text, LAYER)
    made = sae.train(data, d_sae=96, k=6, samples=1000, batch=100).sae
    quality = sae.evaluate(tiny, made, text, LAYER, center=data.center, contexts=3)
    code = made.encode(data.values.float()) > 0
    assert quality.l0 == pytest.approx(float(code.float().sum(-1).mean()))
    assert quality.dead == pytest.approx(float((~code.any(0)).float().mean()))
    assert set(quality.cross_entropy) == {"clean", "spliced", "mean", "zero"}
    assert len(quality.cross_entropy["clean"]) == 3


def by_lstsq(x, directions, k):
    """The same greedy choice without a Gram matrix, one vector at a time."""
    rows = torch.nn.functional.normalize(directions, dim=-1)
    rebuilt = []
    for vector in x:
        left, chosen = vector, []
        for _ in range(k):
            near = (rows @ left).abs()
            near[chosen] = -1
            chosen.append(int(near.argmax()))
            weights = torch.linalg.lstsq(rows[chosen].T, vector[:, None]).solution[:, 0]
            left = vector - weights @ rows[chosen]
        rebuilt.append(vector - left)
    return torch.stack(rebuilt)


def test_pursuit_is_the_greedy_choice_made_slowly():
    generator = torch.Generator().manual_seed(2)
    x, directions = torch.randn(300, 10, generator=generator), 3 * torch.randn(40, 10, generator=generator)
    found = sae.pursue(x, directions, 4)
    assert torch.allclose(found, by_lstsq(x, directions, 4), atol=1e-3)
    one, greedy = sae.pursue(x, directions, 4, at_once=True), (x - found).square().sum()
    assert (x - one).square().sum() > greedy
    assert torch.allclose(sae.pursue(x, directions, 1), sae.pursue(x, directions, 1, at_once=True))


def test_pursuit_finds_what_a_few_orthogonal_directions_made():
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
    code = torch.zeros(5, 12)
    code[torch.arange(5)[:, None], torch.tensor([[0, 3], [1, 2], [7, 8], [4, 11], [5, 6]])] = torch.tensor([2.0, -1.0])
    assert torch.allclose(sae.pursue(code @ basis, basis, 2), code @ basis, atol=1e-3)
    assert sae.pursue(torch.empty(0, 12), basis, 2).shape == (0, 12)
    for k in (0, 13):
        with pytest.raises(SaeError, match=f"{k} of 12 directions"):
            sae.pursue(code @ basis, basis, k)
    with pytest.raises(SaeError, match=r"12 entries along .d_model., and another argument has 11"):
        sae.pursue(torch.zeros(2, 11), basis, 2)


def test_frozen_directions_stay_and_only_the_encoder_learns():
    data, truth = synthetic()
    run = sae.train(data, d_sae=FEATURES, k=ACTIVE, samples=40_000, batch=256, lr=3e-3, frozen=5 * truth)
    assert torch.allclose(run.sae.W_dec, truth, atol=1e-4)
    assert run.history[-1].loss < 0.5 * run.history[0].loss
    with pytest.raises(SaeError, match=r"frozen directions of shape \(24, 16\): 32 latents"):
        sae.train(data, d_sae=32, k=ACTIVE, frozen=truth)


def fitting(tiny, layer=LAYER, **settings):
    """An autoencoder of the tiny model, hardly trained."""
    data = sae.collect(tiny, contexts(8, 16), layer)
    return sae.train(data, **{"d_sae": 96, "k": 6, "samples": 200, "batch": 100, **settings}).sae


def test_an_autoencoder_of_another_layer_is_an_error(tiny):
    made = fitting(tiny, layer=0)
    sae.check_fits(made, tiny, 0)
    with pytest.raises(SaeError, match=r"reads 'blocks.0.hook_out'.* output of layer 1: give it layer 0"):
        sae.evaluate(tiny, made, contexts(), 1, center=made.b_dec)


def test_an_autoencoder_of_a_model_with_other_weights_is_an_error(tiny, tmp_path):
    made = fitting(tiny, model_name=tiny.cfg.model_name)
    sae.save(made, tmp_path / "sae", {"weights": made.cfg.metadata.weights_key})
    assert sae.load(tmp_path / "sae", tiny)[0].cfg.metadata.weights_key == made.cfg.metadata.weights_key
    before = tiny.blocks[0].attn.W_Q.detach().clone()
    try:
        with torch.no_grad():
            tiny.blocks[0].attn.W_Q.copy_(before.flip(0))
        with pytest.raises(SaeError, match=f"trained on {tiny.cfg.model_name} with other weights"):
            sae.evaluate(tiny, made, contexts(), LAYER, center=made.b_dec)
        with pytest.raises(SaeError, match=r"trained on .* with other weights"):
            sae.load(tmp_path / "sae", tiny)
    finally:
        with torch.no_grad():
            tiny.blocks[0].attn.W_Q.copy_(before)


def test_where_no_weights_are_known_the_name_tells_another_model(tiny):
    made = fitting(tiny)
    made.cfg.metadata.weights_key = None
    made.cfg.metadata.model_name = f"somebody/{tiny.cfg.model_name}"
    sae.check_fits(made, tiny, LAYER)
    made.cfg.metadata.model_name = "gemma-2b"
    with pytest.raises(SaeError, match=f"trained on gemma-2b, this run's model is {tiny.cfg.model_name}"):
        sae.check_fits(made, tiny, LAYER)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blocks.1.hook_out", 1),
        ("blocks.1.hook_resid_post", 1),
        ("blocks.2.hook_resid_pre", 1),
        ("blocks.2.hook_in", 1),
        ("blocks.0.hook_resid_pre", None),
        ("blocks.1.hook_mlp_out", None),
        ("blocks.1.attn.hook_z", None),
        ("", None),
    ],
)
def test_the_place_that_an_autoencoder_reads(name, layer, trained, monkeypatch):
    made = trained[2].sae
    monkeypatch.setattr(made.cfg.metadata, "hook_name", name)
    if layer is not None:
        assert sae.layer_of(made) == layer
        return
    with pytest.raises(SaeError, match=f"reads '{name}'"):
        sae.layer_of(made)


def test_a_k_above_the_latents_or_a_nan_in_the_weights_is_an_error(tiny):
    made = fitting(tiny)
    made.cfg.k = 97
    with pytest.raises(SaeError, match="k = 97, but it has 96 latents"):
        sae.check_fits(made, tiny, LAYER)
    made.cfg.k = 6
    made.b_enc.data[3] = torch.nan
    with pytest.raises(SaeError, match="NaN or infinite numbers in b_enc"):
        sae.evaluate(tiny, made, contexts(), LAYER, center=made.b_dec)


def test_no_contexts_are_an_error_wherever_they_are_asked_for(tiny):
    made, none = fitting(tiny), contexts()[:0]
    calls = [
        lambda: sae.choose_layer(tiny, none),
        lambda: sae.collect(tiny, none, LAYER),
        lambda: sae.splice(tiny, none, LAYER, {}, median=1.0),
        lambda: sae.evaluate(tiny, made, none, LAYER, center=made.b_dec),
        lambda: sae.evaluate(tiny, made, contexts(), LAYER, center=made.b_dec, contexts=0),
        lambda: sae.splice(tiny, contexts()[:, :2], LAYER, {}, median=1.0),
    ]
    for call in calls:
        with pytest.raises(SaeError, match="contexts"):
            call()


def test_a_splice_under_other_hooks_is_an_error(tiny):
    with (
        tiny.hooks(fwd_hooks=[("blocks.2.hook_out", lambda h, hook: 2 * h.flip(-1))]),
        pytest.raises(SaeError, match="differ from those of its weights"),
    ):
        sae.splice(tiny, contexts(), LAYER, {}, median=1e9)


def test_the_shipped_autoencoder_belongs_to_the_embedded_model(smollm2):
    found = sae.shipped(smollm2)
    assert not found.live
    assert sum(path.stat().st_size for path in (corpus.DATA / "sae-smollm2").iterdir()) <= 12e6
    assert found.sae.cfg.metadata.hook_name == f"blocks.{found.layer}.hook_out"
    assert found.record["held_out"]["explained"] >= 0.76
    assert found.record["held_out"]["recovered_mean"] >= 0.92
    assert len(found.center) == smollm2.cfg.d_model


def test_another_model_gets_a_small_one_of_its_own_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    monkeypatch.setenv("LAB_TOKENS", "2048")
    first = sae.shipped(tiny)
    assert first.live
    assert first.sae.cfg.d_in == tiny.cfg.d_model
    monkeypatch.setattr(sae, "train", None)  # it is not trained again
    again = sae.shipped(tiny)
    assert torch.equal(first.sae.W_dec, again.sae.W_dec)
    assert again.layer == first.layer
