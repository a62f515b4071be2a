"""The device is chosen once, and labcode computes there: on an imitated GPU, whose numbers must be those of the CPU."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from elsewhere import There, a_gpu

from labcode import (
    attribution,
    circuit,
    edges,
    faithful,
    families,
    heads,
    joint,
    latents,
    metrics,
    models,
    patching,
    prompts,
    residual,
    sae,
    transcoder,
    variants,
)
from labcode.circuit import Keep, Out
from labcode.errors import ModelError
from labcode.recorded import Recorded

LAYER = 0


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"], scope="module")
def both(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(both):
    return both.bridge


@pytest.fixture(scope="module")
def there(both):
    """The same model on the GPU that is none."""
    with a_gpu():
        return models._loaded(models.prepare(str(both.folder)), "cuda")


@pytest.fixture(scope="module")
def pair(model):
    pop = prompts.population(model, 8, seed=1)
    return pop, prompts.corrupt(model, pop, "abc")


@pytest.fixture(scope="module")
def text(model):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 40_000, (6, 12), generator=generator)


@pytest.fixture(scope="module")
def coder(model, text):
    return sae.train(sae.collect(model, text, LAYER), d_sae=64, k=4, samples=128, batch=16).sae


@pytest.fixture(scope="module")
def imitation(model, text):
    pairs = transcoder.collect(model, text, LAYER + 1)
    made = transcoder.train(pairs, d_sae=64, k=4, samples=128, batch=16, linear=transcoder.linear_map(pairs))
    return made.transcoder


def numbers(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors and floats of a result, by their place in it; each tensor must be on the CPU."""
    if isinstance(value, torch.Tensor):
        assert not isinstance(value, There), f"{path} stayed on the GPU"
        return {path: value.double()}
    if isinstance(value, float | int):
        return {path: torch.tensor(float(value), dtype=torch.double)}
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in numbers(one, f"{path}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, one in enumerate(value) for k, v in numbers(one, f"{path}[{i}]").items()}
    if is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return numbers(named, f"{path}.{type(value).__name__}")
    return {}


HEADS = [(0, 1), (1, 2)]
NODES = [(0, 1, "S2"), (1, 2, "END")]
NODES2 = [(1, 0, "S2"), (2, 1, "END")]


def editor_values(model, pop, coder):
    editor = latents.Editor(model, pop, LAYER)
    delta = torch.ones(len(pop), model.cfg.d_model, dtype=torch.float32, device="cpu")
    heard = editor.heard(delta, [(1, 2, "S2"), (2, 1, "END")], "kv")
    return editor.change("S2", delta), heard, latents.ablation(editor, coder, "S2")


def local(model, pop, other, coder, imitation):
    made = attribution.Local(
        model, pop, other, coder, LAYER, [0, 1], {"a": NODES2}, transcoder=(imitation, LAYER + 1), points=(1.0, 0.0)
    )
    graph = made.graph()
    return list(graph.edges.values()), made.measure(list(graph.edges)[:3]), list(made.totals().values())


def joint_values(model, pop, other):
    made = joint.Joint(model, pop)
    runs = made.run(made.source(other), [HEADS, []], "kv", at="S2", watch=HEADS, shared=False)
    return made.clean, runs, made.run(made.end_of(other), [HEADS])


def runner_values(model, pop, other, how):
    runner = circuit.Runner(model, pop, circuit.references(model, pop, 4), how=how, least=1)
    chosen = {"a": NODES, "b": NODES2}
    return (
        runner.values([Keep(tuple(NODES)), Out(tuple(NODES))]),
        faithful.faithfulness(runner, chosen),
        faithful.completeness(runner, [*NODES, *NODES2], chosen),
        faithful.minimality(runner, chosen),
    )


def edge_values(model, pop, other):
    scores = edges.eap_ig(model, pop, other, 2)
    ranking = scores.ranking()
    few = edges.of_heads(model, NODES)
    return (
        edges.run(model, pop, other, [few, []]),
        scores.values,
        edges.eap(model, pop, other).values,
        edges.faithfulness(model, pop, other, [few]),
        edges.curve(model, pop, other, ranking, [5, 50]),
        len(edges.prune(model, pop, other, ranking[:40], 0.01, 20)),
        list(edges.arrows(model, pop, other, {"a": NODES}, {"b": NODES2}, ("q", "kv")).values()),
        edges.composition(model, (0, 1), (1, 2), "q"),
    )


def swept(model, pop, other):
    found = [
        patching.sweep(model, pop, other, kind, at=at, direction=direction)
        for kind, at, direction in (
            ("z", "all", "noising"),
            ("q", "END", "denoising"),
            ("k", ["S2", "END"], "noising"),
            ("v", "S2", "noising"),
            ("pattern", "END", "denoising"),
            ("resid_pre", "END", "denoising"),
            ("attn_out", "S2", "noising"),
            ("mlp_out", "S2", "denoising"),
        )
    ]
    found.append(patching.sweep(model, pop, other, "z", metric=metrics.p_io, runs=patching.Runs(model)))
    found.append(patching.path_patch(model, pop, other))
    found.append(patching.path_patch(model, pop, other, "k", [(2, 1)], receiver_at="S2", freeze_mlps=True))
    return found, patching.exchange(model, pop, other, HEADS)


def spliced(model, text, coder, imitation):
    found = sae.collect(model, text, LAYER)
    pairs = transcoder.collect(model, text, LAYER + 1)
    predict = {"zero": torch.zeros_like}
    codes = latents.scan(model, coder, text)
    with latents.edited(model, coder, lambda code: code * 0):
        logits = model(text.to(model.cfg.device))
    return (
        found.values.float(),
        pairs.writes,
        codes.values,
        logits.cpu(),
        sae.choose_layer(model, text).layer,
        sae.evaluate(model, coder, text, LAYER, center=found.center, contexts=4),
        transcoder.evaluate(model, text, LAYER + 1, predict, pairs.median),
        transcoder.beyond_linear(model, text, text),
    )


WORK = {
    "sweeps": lambda m, pop, other, **_: swept(m, pop, other),
    "joint": lambda m, pop, other, **_: joint_values(m, pop, other),
    "circuits, by template": lambda m, pop, other, **_: runner_values(m, pop, other, "template-mean"),
    "circuits, by the mean": lambda m, pop, other, **_: runner_values(m, pop, other, "mean"),
    "ablations": lambda m, pop, other, **_: (
        circuit.ablate(m, pop, HEADS, "mean", reference=other),
        circuit.ablate_each(m, pop, HEADS, ("zero", "mean", "corrupted"), reference=other),
    ),
    "edges": lambda m, pop, other, **_: edge_values(m, pop, other),
    "edges, recorded": lambda m, pop, other, **_: edges.arrows(
        m, pop, other, {"a": NODES}, {"b": NODES2}, known=Recorded()
    ),
    "metrics": lambda m, pop, other, **_: (
        metrics.logit_difference(metrics.end_logits(m, pop), pop),
        variants.log_probability(m, pop, [" Mary"] * len(pop)),
    ),
    "residual": lambda m, pop, other, **_: (
        (parts := residual.decompose(m, pop)),
        residual.direct_attribution(m, pop, parts),
        residual.logit_lens(m, pop),
        residual.bias_difference(m, pop),
    ),
    "heads": lambda m, pop, other, **_: (
        heads.random_token_scores(m, length=6, n=2),
        heads.position_attention(m, pop, "END", "S2"),
        heads.copy_scores(m, 4),
    ),
    "families": lambda m, pop, other, **_: families.measure(m, pop, other),
    "editor": lambda m, pop, other, coder, **_: editor_values(m, pop, coder),
    "effects": lambda m, pop, other, **_: transcoder.effects(latents.Editor(m, pop, LAYER), other),
    "splices": lambda m, pop, other, coder, imitation, text: spliced(m, text, coder, imitation),
    "promoted": lambda m, pop, other, coder, **_: latents.promoted(m, coder, 3),
    "attribution": lambda m, pop, other, coder, imitation, **_: local(m, pop, other, coder, imitation),
}


SETTINGS = {
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "another device": lambda: torch.set_default_device("meta"),
    "no gradients": lambda: torch.set_grad_enabled(False),
}


@pytest.mark.parametrize("setting", [*SETTINGS, "inference mode"])
@pytest.mark.parametrize("what", ["sweeps", "circuits, by the mean", "edges", "editor", "attribution", "heads"])
def test_what_a_reader_has_set_in_torch_changes_nothing(what, setting, model, pair, coder, imitation, text):
    more = {"coder": coder, "imitation": imitation, "text": text}
    here = numbers(WORK[what](model, *pair, **more))
    try:
        SETTINGS.get(setting, lambda: None)()
        with torch.inference_mode(setting == "inference mode"):
            found = WORK[what](model, *pair, **more)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
    found = numbers(found)
    assert here.keys() == found.keys()
    for name, value in here.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, equal_nan=True)


# Which device


def test_the_device_is_chosen_once(monkeypatch):
    monkeypatch.delenv("LAB_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.device_of() == models.device_of("cpu") == models.device_of("cpu:0") == "cpu"
    assert models.device_of("auto") == "cpu"
    for wrong in ("gpu", "cuda:x", "xpu", "1"):
        monkeypatch.setenv("LAB_DEVICE", wrong)
        with pytest.raises(ModelError, match=f"LAB_DEVICE={wrong} isn't a device: use one of auto, cpu, cuda, mps"):
            models.device_of()
    for absent in ("cuda", "cuda:0", "cpu:1"):
        with pytest.raises(ModelError, match=f"device='{absent}': torch .* sees [01] such device"):
            models.device_of(absent)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match="sees 0 such devices on this machine; leave LAB_DEVICE unset"):
        models.device_of("mps")
    monkeypatch.delenv("LAB_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert models.device_of() == "cpu", "unless it is asked for"
    monkeypatch.setenv("LAB_DEVICE", "auto")
    assert models.device_of() == "cuda"
    assert models.device_of("cuda:1") == "cuda:1"
    with pytest.raises(ModelError, match="sees 2 such devices"):
        models.device_of("cuda:2")
    monkeypatch.setenv("LAB_DEVICE", "cpu")
    assert models.device_of() == "cpu"


def test_the_weights_are_the_same_wherever_they_are(model, there):
    with a_gpu():
        assert models.weights_key(there) == models.weights_key(model)
        assert models.summary(there).endswith("float32 on cuda:0")
    assert models.summary(model).endswith("float32 on the CPU")


@pytest.mark.parametrize("what", WORK)
def test_everything_works_where_the_model_is_and_comes_back(what, model, there, pair, coder, imitation, text):
    more = {"coder": coder, "imitation": imitation, "text": text}
    here = numbers(WORK[what](model, *pair, **more))
    with a_gpu():
        found = numbers(WORK[what](there, *pair, **more))
    assert here.keys() == found.keys()
    assert here
    for name, value in here.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-3, rtol=1e-3, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
