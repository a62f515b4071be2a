"""The device is chosen once, and labcode computes there: on an imitated GPU, whose numbers must be those of the CPU."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from dataclasses import fields, is_dataclass
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from elsewhere import There, a_gpu
from torch.nn.attention import SDPBackend, sdpa_kernel

import labcode
from labcode import (
    attribution,
    circuit,
    corpus,
    edges,
    evidence,
    faithful,
    families,
    forward,
    heads,
    inputs,
    joint,
    latents,
    metrics,
    models,
    patching,
    prompts,
    readable,
    residual,
    sae,
    sealed,
    tasks,
    transcoder,
    variants,
)
from labcode.circuit import Keep, Out
from labcode.errors import ModelError
from labcode.recorded import Recorded, remember

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
    pop = prompts.population(model, 8, seed=1, templates=prompts.TEMPLATES[:2])
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
    """A transcoder, with what it was made of."""
    pairs = transcoder.collect(model, text, LAYER + 1)
    linear = transcoder.linear_map(pairs)
    made = transcoder.train(pairs, d_sae=64, k=4, samples=128, batch=16, linear=linear)
    return SimpleNamespace(pairs=pairs, linear=linear, made=made, transcoder=made.transcoder)


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


def same(found: dict[str, torch.Tensor], here: dict[str, torch.Tensor], what: str) -> None:
    """Whether two results are equal, but for the last digits: relative to each number, as many of them are small."""
    assert found.keys() == here.keys(), what
    for name, value in here.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-6, rtol=1e-5, equal_nan=True, msg=lambda m, n=name: f"{what}{n}: {m}"
        )


HEADS = [(0, 1), (1, 2)]
NODES = [(0, 1, "S2"), (1, 2, "END")]
NODES2 = [(1, 0, "S2"), (2, 1, "END")]


def editor_values(model, pop, coder):
    editor = latents.Editor(model, pop, LAYER)
    delta = torch.ones(len(pop), model.cfg.d_model, dtype=torch.float32, device="cpu")
    heard = editor.heard(delta, [(1, 2, "S2"), (2, 1, "END")], "kv")
    edit = latents.Edits(*torch.tensor([[0, 1], [3, 4]], device="cpu"), delta[:2])
    return (
        editor.change("S2", delta),
        heard,
        latents.ablation(editor, coder, "S2"),
        latents.at_position(model, pop, coder, LAYER, "S2"),
        editor.at(LAYER + 1).values(edit),
        editor.first(2).change("S2", delta[:2]),
    )


def local(model, pop, other, coder, imitation):
    made = attribution.Local(
        model,
        pop,
        other,
        coder,
        LAYER,
        [0, 1],
        {"a": NODES2},
        transcoder=(imitation.transcoder, LAYER + 1),
        points=(1.0, 0.0),
    )
    graph, x = made.graph(), torch.ones(1, model.cfg.d_model, dtype=torch.float32, device="cpu")
    return (
        list(graph.edges.values()),
        made.measure(list(graph.edges)[:3]),
        list(made.totals().values()),
        made.by_all_ways(next(iter(made.writes))),
        made.gradients(made.heads[0]),
        made.norm(x, 2 * x, (None, None)),
        made.suffix().n_pos,
    )


def joint_values(model, pop, other):
    made = joint.Joint(model, pop)
    runs = made.run(made.source(other), [HEADS, []], "kv", at="S2", watch=HEADS, shared=False)
    return made.clean, runs, made.run(made.end_of(other), [HEADS])


def runner_values(model, pop, other, how):
    runner = circuit.Runner(model, pop, circuit.references(model, pop, 4), how=how, least=1)
    chosen = {"a": NODES, "b": NODES2}
    circuit.check_states(model, pop, [Keep(tuple(NODES))])
    return (
        circuit.Means(model, pop, other, how=how, least=1).of(pop, 1, 9),
        faithful.greedy(runner, [*NODES, *NODES2], n=1, steps=1, candidates=2),
        faithful.minimality_test(runner, NODES, n=2),
        faithful.random_circuit(model, NODES),
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


def edge_parts(model, pop, other):
    graph = edges.Graph(model)
    piece, net = edges.Piece(graph, pop, other), graph.network
    mask = graph.mask(graph.edges[:9])
    x = torch.ones(net.n_heads + 2 * net.n_kv_heads, 1, int(pop.end.max()) + 1, net.d_model)
    return (
        graph.connected(mask),
        len(graph.chosen(mask)),
        piece.run(mask),
        piece.scores([1.0]),
        piece.plain(piece.clean)[0],
        piece.heads(0, *x.split([net.n_heads, net.n_kv_heads, net.n_kv_heads])),
    )


def arithmetic(model, pop, other):
    network = forward.Network(model)
    base = forward.record(model, pop.tokens, pop.end, forward.Suffix.hooks(model))
    suffix = forward.Suffix.proven(network, base, pop.end, pop.positions["S2"])
    prompt = torch.arange(len(pop))
    window = suffix.window(prompt, 2)
    x = base["hook_resid_pre", 1][prompt[:, None], window]
    given = suffix.inputs(1, x, window, False)
    k, v, allowed = suffix.seen(1, given, prompt, window)
    z, turn = network.attend(given[0], k, v, allowed), suffix.rotation(1, window)
    forward.check(model)
    with forward.at_end_only(model, pop.end):
        logits = model(pop.tokens.to(model.cfg.device))
    return (
        base,
        (x, given, k, v, z, turn, logits.cpu()),
        network.norm(x, network.layers[1].norm1),
        network.queries(1, x, turn),
        network.keys_values(1, x, turn),
        network.mix(torch.ones(*z.shape[:3], suffix.n_pos), v),
        network.project(1, z),
        network.mlp(1, x),
        network.logits(x[:, -1]),
        network.logit_difference(x[:, -1], pop.io_ids, pop.s_ids),
        suffix.gap(pop.positions["S2"]) <= 1,
        forward.Suffix(network, base, pop.end).n_pos,
        suffix.unpatched(pop.positions["S2"]),
        suffix.allowed(window),
        suffix.attend(1, given, prompt, window),
        suffix.attention(1, x, prompt, window),
        forward.rotated(model, "q"),
    )


def taken(model, pop, other, home, folder):
    """Values from a record that was made on the CPU and read back from disk; some of them are measured again."""
    few, path = edges.of_heads(home, NODES), folder / "rows.safetensors"

    def asked(model, known):
        known.guard(model)
        runner = circuit.Runner(model, pop, circuit.references(model, pop, 4), least=1, known=known)
        return (
            faithful.faithfulness(runner, {"a": NODES, "b": NODES2}),
            edges.faithfulness(model, pop, other, [few], known=known),
            edges.curve(model, pop, other, few, [2, 5], known=known),
            len(edges.prune(model, pop, other, few[:20], 0.01, 20, known=known)),
            list(edges.arrows(model, pop, other, {"a": NODES}, {"b": NODES2}, known=known).values()),
        )

    asked(home, made := Recorded())
    evidence.write(path, {half: {"x": torch.zeros(1)} for half in evidence.HALVES}, {"weights": "w"}, made)
    known = evidence.read(path, "w")[1]
    return asked(model, known), known.n_again, len(known.taken)


def runs_of(model, pop, other):
    runs, network, start = patching.Runs(model), forward.Network(model), patching.first_difference(pop, other)
    suffix = runs.suffix(network, pop, forward.Suffix.hooks(model), start)
    part = patching.Part(torch.arange(len(pop)), pop, start, suffix, runs.of(other))
    with patching.exchanged(model, pop, other, HEADS):
        exchanged = metrics.end_logits(model, pop)
    paths = patching.path_patches(model, pop, other, {"q": "S2"}, [(2, 1)])
    return patching.values_of(model, part, patching.cells_of(model, pop, HEADS)), exchanged, paths


def trained(model, text, folder):
    words = corpus.Corpus(text.repeat(4, 1), "a test", True, {})
    dictionary, transcode = sae.shipped(model, words), transcoder.shipped(model, words)
    found = dictionary.sae, transcode.transcoder
    return dictionary.center, transcode.center, dictionary.layer, [dict(one.state_dict()) for one in found]


def written(model):
    return corpus.sample(model, 0, 2, 0), torch.from_numpy(corpus.write_corpus(model, 16, batch=2)[0].astype("int64"))


def rules(model, coder, folder):
    kept = {"weights": models.weights_key(model), "sae": readable.sae_key(coder), "n_contexts": 4, "narrow": {}}
    kept |= {"sample": [0], "n_testable": 1, "shuffled": 0.5, "rules": {"0": {"kind": "repeated token", "fitted": 0.5}}}
    sealed.write(folder / "rules.json", kept)
    return readable.recorded(model, coder, folder / "rules.json")


def varied(model, pop):
    two = prompts.population(model, 4, seed=1, templates=variants.FRAMES)
    return (
        variants.vary(model, two, "plain"),
        variants.gap(model, two, 1),
        len(variants.rare_names(model)),
        variants.signal_variant(model, pop, "inverted", "original"),
    )


def drawn(model, pop):
    pair = {"clean": "When Mary and John met, Mary thanked", "corrupted": "When Mary and John met, John thanked"}
    pair |= {"right": " John", "wrong": " Mary", "at": {"second": " John"}}
    return (
        prompts.population(model, 4, seed=3),
        prompts.corrupt(model, pop, "swap"),
        prompts.build(model, pop.prompts),
        prompts.canonical(model),
        prompts.renamed(model, pop, {"S2": pop.io_ids}, "x"),
        prompts.fresh_names(model, pop, 2, 0),
        prompts.token_id(model, prompts.quoted(model, pop.io_ids[0])[1:-1]),
        len(prompts.single_token_names(model)[0]),
        tasks.populations(model, tasks.parse({"name": "x", "question": "y", "pair": [pair]})),
    )


def remembered(model, pop):
    made = remember("a test", model, [pop], lambda: {"v": circuit.ablate(model, pop, HEADS, "zero")})
    return made, evidence.populations(model, 2)


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
    predict = transcoder.predictions(imitation.transcoder, imitation.linear, pairs) | {"zero": torch.zeros_like}
    transcoder.check_mlp(model, LAYER)
    sae.check_layer(model, LAYER)
    sae.check_weights(coder, model)
    sae.check_fits(coder, model, LAYER)
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
        transcoder.check_fits(imitation.transcoder, model),
        transcoder.record_of(model, pairs, imitation.linear, imitation.made)["center"],
        sae.residual(model, text, LAYER),
        sae.splice(model, text, LAYER, {"zero": torch.zeros_like}, found.median),
        latents.codes(model, coder, text),
        latents.stream(model, coder, text),
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
        residual.logit_direction(m, pop),
        families.by_name(m, parts, pop, torch.ones(len(pop))),
    ),
    "heads": lambda m, pop, other, **_: (
        heads.random_token_scores(m, length=6, n=2),
        heads.position_attention(m, pop, "END", "S2"),
        heads.copy_scores(m, 4),
        heads.check_heads(m, HEADS),
        heads.position_attentions(m, pop, [("END", "S2")]),
        heads.same_layer_heads(m, HEADS),
        heads.ov_ranks(m, 1, heads.name_streams(m, pop.io_ids), pop.io_ids),
    ),
    "editor": lambda m, pop, other, coder, **_: editor_values(m, pop, coder),
    "effects": lambda m, pop, other, **_: transcoder.effects(latents.Editor(m, pop, LAYER), other),
    "splices": lambda m, pop, other, coder, imitation, text, **_: spliced(m, text, coder, imitation),
    "promoted": lambda m, pop, other, coder, **_: latents.promoted(m, coder, 3),
    "attribution": lambda m, pop, other, coder, imitation, **_: local(m, pop, other, coder, imitation),
    "edges, their parts": lambda m, pop, other, **_: edge_parts(m, pop, other),
    "forward": lambda m, pop, other, **_: arithmetic(m, pop, other),
    "runs": lambda m, pop, other, **_: runs_of(m, pop, other),
    # What stays on the CPU is named, as it isn't seen to go.
    "recorded.Recorded.guard, from disk": lambda m, pop, other, home, folder, **_: taken(m, pop, other, home, folder),
    "sae.shipped transcoder.shipped": lambda m, pop, other, text, folder, **_: trained(m, text, folder),
    "corpus.sample corpus.write_corpus": lambda m, *_, **__: written(m),
    "readable.recorded models.weights_key": lambda m, pop, other, coder, folder, **_: rules(m, coder, folder),
    "variants": lambda m, pop, other, **_: varied(m, pop),
    "prompts.population prompts.corrupt prompts.build prompts.canonical prompts.renamed prompts.fresh_names "
    "prompts.token_id prompts.quoted prompts.single_token_names tasks.populations": lambda m, pop, other, **_: drawn(
        m, pop
    ),
    "recorded.remember evidence.populations": lambda m, pop, *_, **__: remembered(m, pop),
    "families": lambda m, pop, other, **_: families.measure(m, pop, other),
    "models.unclean models.must_be_clean models.edition": lambda m, *_, **__: (
        len(models.unclean(m)),
        models.must_be_clean(m),
        len(models.edition(m)),
    ),
}
EXCUSED = {
    "prompts.padded": "what build and tasks.populations put prompts together with",
    "patching.Patched": "the inside of a sweep",
    "patching.Paths": "the inside of path_patch",
    "corpus.load_corpus": "reads a file, or calls write_corpus",
    "evidence.measure": "families.measure on two halves",
    "evidence.load": "reads a file, or remembers what evidence.measure measures",
    "evidence.recheck": "families.measure on a few prompts",
    "sae.res_jb": "fetches dictionaries of GPT-2 small",
    "models.self_check": "of the known models, with prompts of its own",
    "models.summary": "in a test of its own: it names the device",
}


def takers() -> set[str]:
    """The public functions of labcode that take a model, or what holds one; and the methods of what holds one."""
    takes: dict[str, str] = {}  # the annotations of each
    for module in pkgutil.iter_modules(labcode.__path__):
        for name, one in vars(importlib.import_module(f"labcode.{module.name}")).items():
            if getattr(one, "__module__", "") == f"labcode.{module.name}" and not name.startswith("_"):
                for part, function in vars(one).items() if isinstance(one, type) else [(name, one)]:
                    of = getattr(getattr(function, "__func__", function), "__wrapped__", None)
                    public = part == "__init__" or not part.startswith("_")
                    if public and isinstance(of, FunctionType) and of.__code__.co_filename != "<string>":
                        asked = [str(one.annotation) for one in inspect.signature(of).parameters.values()]
                        takes[f"{module.name}.{of.__qualname__}"] = " ".join(asked)
    holders = {"x.TransformerBridge"}
    while True:
        names = "|".join(sorted(holder.partition(".")[2] for holder in holders))
        taking = {name for name, asked in takes.items() if re.search(rf"\b({names})\b", asked)}
        more = {name.removesuffix(".__init__") for name in taking if name.endswith(".__init__")} - holders
        if not more:
            return taking | {name for name in takes if name.rpartition(".")[0] in holders}
        holders |= more


SETTINGS = {
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "another device": lambda: torch.set_default_device("meta"),
    "no gradients": lambda: torch.set_grad_enabled(False),
}


@pytest.fixture(scope="module")
def usual(model, pair, coder, imitation, text):
    """What comes of each, in the usual settings, measured once."""
    found: dict[str, dict[str, torch.Tensor]] = {}

    def of(what: str) -> dict[str, torch.Tensor]:
        if what not in found:
            found[what] = numbers(WORK[what](model, *pair, coder=coder, imitation=imitation, text=text))
        return found[what]

    return of


@pytest.mark.parametrize("setting", [*SETTINGS, "inference mode"])
@pytest.mark.parametrize("what", ["sweeps", "circuits, by the mean", "edges", "editor", "attribution", "heads"])
def test_what_a_reader_has_set_in_torch_changes_nothing(what, setting, model, pair, coder, imitation, text, usual):
    here = usual(what)
    try:
        SETTINGS.get(setting, lambda: None)()
        with torch.inference_mode(setting == "inference mode"):
            found = WORK[what](model, *pair, coder=coder, imitation=imitation, text=text)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
    same(numbers(found), here, what)


# Which device


def test_the_device_is_chosen_once(monkeypatch):
    monkeypatch.delenv("LAB_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.device_of() == models.device_of("cpu") == models.device_of("cpu:0") == "cpu"
    assert models.device_of("auto") == models.device_of(torch.device("cpu")) == "cpu"
    with pytest.raises(ModelError, match="3 is no device of torch"):
        models.device_of(3)
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


def test_everything_works_where_the_model_is_and_comes_back(
    model, there, pair, coder, imitation, text, monkeypatch, tmp_path
):
    called: set[str] = set()

    def noted(device, of, *args, **kwargs):
        called.add(f"{of.__module__.removeprefix('labcode.')}.{of.__qualname__}")
        return goes(device, of, *args, **kwargs)

    goes = inputs.there
    monkeypatch.setattr(inputs, "there", noted)
    for module in (sae, transcoder):
        monkeypatch.setattr(module, "LIVE_SAMPLES", 256)
    monkeypatch.setattr(corpus, "LENGTH", 12)
    monkeypatch.setattr(corpus, "KEEP_FROM", 0.0)
    more = {"coder": coder, "imitation": imitation, "text": text, "home": model, "folder": tmp_path}
    for what, work in WORK.items():
        monkeypatch.setenv("LAB_CACHE", str(tmp_path / "here"))
        with sdpa_kernel(SDPBackend.MATH):  # the formula that the imitation takes: other kernels round otherwise
            here = numbers(work(model, *pair, **more))
            assert here, what
            monkeypatch.setenv("LAB_CACHE", str(tmp_path / "there"))
            with a_gpu():
                same(numbers(work(there, *pair, **more)), here, what)
        called |= set(what.replace(",", " ").split())
    forgotten = {name for name in takers() - called if not any(name.startswith(one) for one in EXCUSED)}
    assert not forgotten, "neither called here nor excused"
    assert set(EXCUSED) <= {one for one in EXCUSED if any(name.startswith(one) for name in takers() - called)}


def test_a_dictionary_is_moved_whatever_it_is(model, there, pair, coder):
    parts = ("W_enc", "W_dec", "b_enc", "b_dec", "cfg", "encode", "decode")
    alike = SimpleNamespace(**{name: getattr(coder, name) for name in parts})
    here = numbers((latents.promoted(model, alike, 3), latents.at_position(model, pair[0], alike, LAYER, "S2")))
    with a_gpu():
        found = latents.promoted(there, alike, 3), latents.at_position(there, pair[0], alike, LAYER, "S2")
    same(numbers(found), here, "shaped like one")
    assert not isinstance(alike.W_dec, There), "the reader's own stays where it was"


def test_runs_are_shared_wherever_they_are(model, there, pair, coder):
    pop, other = pair
    with a_gpu():
        first = attribution.Local(there, pop, other, coder, LAYER, [0], {"a": NODES2})
        again = attribution.Local(there, pop, other, coder, LAYER, [0], {"a": NODES2}, like=first)
        apart = attribution.Local(there, other, pop, coder, LAYER, [0], {"a": NODES2}, like=first)
    assert again.start is first.start
    assert apart.start is not first.start


def test_the_imitation_refuses_what_a_gpu_refuses():
    with a_gpu():
        there, number = torch.ones(2, device="cpu").to("cuda"), torch.tensor(1.0)
        assert isinstance(there * number, There)
        assert isinstance(there.masked_fill(there > 0, number), There)
        for wrong in (
            lambda: torch.stack([there.sum(), number]),
            lambda: torch.cat([there, number[None]]),
            lambda: there @ torch.ones(2),
            lambda: there + torch.ones(2),
            lambda: number.add_(there.sum()),
            lambda: torch.ones(2)[there.long()],
            lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
            lambda: torch.rand_like(there, generator=torch.Generator()),
            lambda: there.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        with torch.device("cuda"), pytest.raises(RuntimeError, match="generator"):
            torch.randperm(5, generator=torch.Generator())
