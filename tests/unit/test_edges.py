"""Sets of edges equal a slow, separately written run: the bridge, one destination at a time, with plain hooks."""

from __future__ import annotations

import random

import pytest
import torch

from labcode import edges, prompts
from labcode.edges import (
    Arrow,
    Edge,
    Graph,
    area,
    arrows,
    composition,
    curve,
    eap,
    eap_ig,
    faithfulness,
    of_heads,
    prune,
    run,
)
from labcode.errors import HeadError, MetricError, PatchError
from labcode.metrics import end_logits, logit_difference
from labcode.patching import path_patch
from labcode.toy import MOVER, NEGATIVE


def listing(model):
    """All edges in order, from the definition."""
    n_heads, n_kv = model.cfg.n_heads, model.cfg.n_key_value_heads or model.cfg.n_heads
    before, found = ["embed"], []
    for layer in range(model.cfg.n_layers):
        inputs = [(layer, h, "q") for h in range(n_heads)]
        inputs += [(layer, h, name) for name in "kv" for h in range(n_kv)]
        found += [Edge(source, into) for into in inputs for source in before]
        before += [(layer, h) for h in range(n_heads)]
        if not model.cfg.attn_only:
            found += [Edge(source, f"mlp {layer}") for source in before]
            before.append(f"mlp {layer}")
    return found + [Edge(source, "logits") for source in before]


class Slow:
    """Runs of the bridge for one destination after the other. `kept` maps edges to weights: 1 is current, 0 corrupted.

    With `alone`, all other destinations read the stream of that clean or corrupted run.
    """

    def __init__(self, model, clean, corrupted):
        self.model, self.pop = model, clean
        self.n_heads = model.cfg.n_heads
        self.group = self.n_heads // (model.cfg.n_key_value_heads or self.n_heads)
        self.caches = [model.run_with_cache(pop.tokens)[1] for pop in (clean, corrupted)]
        self.outputs = [self.written(cache) for cache in self.caches]

    def written(self, cache):
        found = {"embed": cache["blocks.0.hook_resid_pre"]}
        for layer in range(self.model.cfg.n_layers):
            z = cache[f"blocks.{layer}.attn.hook_z"]
            for head in range(self.n_heads):
                found[layer, head] = z[:, :, head] @ self.model.blocks[layer].attn.W_O[head]
            if not self.model.cfg.attn_only:
                found[f"mlp {layer}"] = cache[f"blocks.{layer}.hook_mlp_out"]
        return found

    def put(self, puts, read):
        """A run with activations overwritten; what it has at `read`."""
        hooks = [(name, lambda x, hook, new=new: new.clone()) for name, new in puts.items()]
        with self.model.hooks(fwd_hooks=hooks):
            logits, cache = self.model.run_with_cache(self.pop.tokens)
        return logits if read == "logits" else cache[read].clone()

    def stream(self, current, kept, into, at):
        """The corrupted stream, and what comes in by the edges that are kept."""
        x = self.caches[1][at].clone()
        for edge, weight in kept.items():
            if edge.into == into:
                x += weight * (current[edge.source] - self.outputs[1][edge.source])
        return x

    def run(self, kept):
        current = {"embed": self.outputs[0]["embed"]}
        for layer in range(self.model.cfg.n_layers):
            block = f"blocks.{layer}"
            inputs = {}
            for name in "qkv":
                hook = f"{block}.attn.hook_{name}"
                parts = []
                for head in range(self.n_heads if name == "q" else self.n_heads // self.group):
                    x = self.stream(current, kept, (layer, head, name), f"{block}.hook_resid_pre")
                    parts.append(self.put({f"{block}.hook_resid_pre": x}, hook)[:, :, head])
                inputs[hook] = torch.stack(parts, 2)
            z = self.put(inputs, f"{block}.attn.hook_z")
            for head in range(self.n_heads):
                current[layer, head] = z[:, :, head] @ self.model.blocks[layer].attn.W_O[head]
            if not self.model.cfg.attn_only:
                x = self.stream(current, kept, f"mlp {layer}", f"{block}.hook_resid_mid")
                current[f"mlp {layer}"] = self.put({f"{block}.hook_resid_mid": x}, f"{block}.hook_mlp_out")
        last = f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"
        x = self.stream(current, kept, "logits", last)
        return self.difference(self.put({last: x}, "logits"))

    def difference(self, logits):
        return logit_difference(logits[torch.arange(len(self.pop)), self.pop.end], self.pop)


def value(model, pop):
    return logit_difference(end_logits(model, pop), pop)


def some(everything, share, seed):
    return random.Random(seed).sample(everything, int(share * len(everything)))


def test_the_graph_is_the_one_of_the_definition(tiny, toy):
    for model in (tiny, toy):
        graph = Graph(model)
        assert graph.edges == listing(model)
        few = some(graph.edges, 0.3, 0)
        assert set(graph.chosen(graph.mask(few))) == set(few)


@pytest.mark.parametrize(
    ("edge", "text"),
    [
        (Edge((17, 4), (20, 0, "q")), "17.4 -> 20.0 q"),
        (Edge("mlp 3", "logits"), "mlp 3 -> logits"),
        (Edge("embed", "mlp 0"), "embed -> mlp 0"),
    ],
)
def test_an_edge_can_be_read(edge, text):
    assert str(edge) == text


@pytest.mark.parametrize("how", ["abc", "swap"])
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(tiny, pair, how):
    pop, _ = pair
    other = prompts.corrupt(tiny, pop, how)
    whole, nothing = run(tiny, pop, other, [Graph(tiny).edges, []])
    torch.testing.assert_close(whole, value(tiny, pop), atol=1e-4, rtol=0)
    torch.testing.assert_close(nothing, value(tiny, other), atol=1e-4, rtol=0)
    assert (whole - nothing).abs().min() > 1e-2


@pytest.mark.parametrize("few", [False, True])
def test_random_sets_equal_the_bridge_with_hooks(tiny, pair, few, monkeypatch):
    """Also where prompts are taken one by one."""
    if few:
        monkeypatch.setattr(edges, "PROMPTS_AT_ONCE", 1)
    pop, other = pair
    slow = Slow(tiny, pop, other)
    everything = listing(tiny)
    sets = [some(everything, share, seed) for seed, share in enumerate((0.2, 0.5, 0.9))]
    sets.append([edge for edge in everything if edge.into not in ("logits", "mlp 2") or edge.source != "embed"])
    expected = torch.stack([slow.run(dict.fromkeys(kept, 1.0)) for kept in sets])
    torch.testing.assert_close(run(tiny, pop, other, sets), expected, atol=1e-4, rtol=0)
    assert (expected.amax(0) - expected.amin(0)).min() > 1e-2


@pytest.mark.parametrize("source", ["embed", (1, 2), "mlp 1"])
def test_one_edge_to_the_logits_is_a_direct_patch(tiny, pair, source):
    """From the embedding the edge is enough; a source that is kept out of reach of the clean words changes nothing."""
    pop, other = pair
    slow = Slow(tiny, pop, other)
    edge = Edge(source, "logits")
    kept = {edge, *(one for one in listing(tiny) if one.into != "logits")}
    last = "blocks.2.hook_resid_post"
    x = slow.caches[1][last] + slow.outputs[0][source] - slow.outputs[1][source]
    by_hand = slow.difference(slow.put({last: x}, "logits"))
    patched, alone = run(tiny, pop, other, [kept, [edge]])
    torch.testing.assert_close(patched, by_hand, atol=1e-4, rtol=0)
    if source == "embed":
        torch.testing.assert_close(alone, by_hand, atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(alone, value(tiny, other), atol=1e-4, rtol=0)


PROBED = [
    Edge("embed", (0, 1, "q")),
    Edge("embed", (1, 0, "k")),
    Edge("embed", "mlp 0"),
    Edge((0, 2), (1, 3, "q")),
    Edge((0, 1), (2, 1, "k")),
    Edge((1, 0), (2, 0, "v")),
    Edge("mlp 0", (1, 1, "v")),
    Edge((1, 2), "mlp 1"),
    Edge("mlp 1", "mlp 2"),
    Edge((2, 1), "logits"),
]


def nudged(model, clean, corrupted, at, edge, step):
    """The run `at`, with a small share of one edge's clean - corrupted output added to what the destination reads."""
    base = {"clean": clean, "corrupted": corrupted}[at]
    slow, here = Slow(model, clean, corrupted), Slow(model, base, base)
    change = step * (slow.outputs[0][edge.source] - slow.outputs[1][edge.source])
    here.pop = base
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    cache = here.caches[0]
    if edge.into == "logits":
        return slow.difference(here.put({last: cache[last] + change}, "logits"))
    if isinstance(edge.into, str):
        layer = int(edge.into.split()[1])
        x = cache[f"blocks.{layer}.hook_resid_mid"] + change
        new = {
            f"blocks.{layer}.hook_mlp_out": here.put(
                {f"blocks.{layer}.hook_resid_mid": x}, f"blocks.{layer}.hook_mlp_out"
            )
        }
    else:
        layer, head, name = edge.into
        hook = f"blocks.{layer}.attn.hook_{name}"
        x = cache[f"blocks.{layer}.hook_resid_pre"] + change
        new = {hook: cache[hook].clone()}
        new[hook][:, :, head] = here.put({f"blocks.{layer}.hook_resid_pre": x}, hook)[:, :, head]
    return slow.difference(here.put(new, "logits"))


@pytest.mark.parametrize("at", ["clean", "corrupted"])
def test_a_score_is_the_slope_of_a_small_patch(tiny, pair, at):
    pop, other = pair
    scores = eap(tiny, pop, other, at)
    assert scores.edges == listing(tiny)
    for edge in PROBED:
        if tiny.cfg.n_key_value_heads == 2 and edge.into[-1] in "kv" and edge.into[1] > 1:
            continue
        up, down = (nudged(tiny, pop, other, at, edge, step) for step in (0.02, -0.02))
        found = scores.values[scores.edges.index(edge)]
        torch.testing.assert_close(found, (up - down) / 0.04, atol=2e-3, rtol=0.02, msg=str(edge))


def test_one_step_is_the_slope_at_the_clean_run(tiny, pair, monkeypatch):
    one, clean = eap_ig(tiny, *pair, steps=1), eap(tiny, *pair)
    torch.testing.assert_close(one.values, clean.values, atol=1e-5, rtol=0)
    several = eap_ig(tiny, *pair, steps=4)
    monkeypatch.setattr(edges, "ROWS_AT_ONCE", 1)
    torch.testing.assert_close(eap_ig(tiny, *pair, steps=4).values, several.values, atol=1e-5, rtol=1e-4)


def test_with_many_steps_the_edges_of_the_embedding_add_up(tiny, pair):
    pop, other = pair
    gap = value(tiny, pop) - value(tiny, other)
    errors = []
    for steps in (5, 400):
        scores = eap_ig(tiny, pop, other, steps)
        first = torch.tensor([edge.source == "embed" for edge in scores.edges])
        errors.append((scores.values[first].sum(0) - gap).abs().max())
    assert errors[1] < 0.02 * gap.abs().max()
    assert errors[1] < errors[0]


CHAIN = [
    Edge("embed", (0, 0, "q")),
    Edge("embed", (0, 0, "k")),
    Edge("embed", (0, 0, "v")),
    Edge((0, 0), (1, 0, "k")),
    Edge((0, 0), (1, 0, "v")),
    Edge((1, 0), (2, 0, "q")),
    Edge((1, 0), (2, 1, "q")),
    Edge("embed", (2, 0, "k")),
    Edge("embed", (2, 1, "k")),
    Edge("embed", (2, 0, "v")),
    Edge("embed", (2, 1, "v")),
    Edge((2, 0), "logits"),
    Edge((2, 1), "logits"),
]


def test_the_hand_wired_circuit_on_paper(toy):
    """The chain alone is the model; without a link, what paper says."""
    clean = prompts.canonical(toy)
    other = prompts.corrupt(toy, clean, "abc")
    without = [[edge for edge in CHAIN if edge not in out] for out in ([], CHAIN[5:7], CHAIN[11:12], CHAIN[12:])]
    found = run(toy, clean, other, [*without, of_heads(toy, [(0, 0), (1, 0, "END"), (2, 0), (2, 1)])])
    full = MOVER - NEGATIVE
    torch.testing.assert_close(found[:, 0], torch.tensor([full, -full / 3, -NEGATIVE, MOVER, full]), atol=1e-3, rtol=0)


def test_the_edges_of_the_hand_wired_circuit_come_out_on_top(toy):
    """Its attention is saturated: a gradient at the clean run sees only what is moved, one on the way who looks."""
    clean = prompts.population(toy, 8, seed=0)
    other = prompts.corrupt(toy, clean, "abc")
    movers = {Edge((2, 0), "logits"): MOVER, Edge((2, 1), "logits"): -NEGATIVE}
    moved = {Edge("embed", (2, 0, "v")): MOVER, Edge("embed", (2, 1, "v")): -NEGATIVE}
    assert eap(toy, clean, other).top(4) == pytest.approx(movers | moved, abs=1e-3)
    scores = eap_ig(toy, clean, other, steps=50)
    found = dict(zip(scores.edges, scores.mean.tolist(), strict=True))
    assert {edge for edge, score in found.items() if abs(score) > 1e-3} <= set(CHAIN)
    assert set(scores.top(4)) == {*movers, Edge((1, 0), (2, 0, "q")), Edge((1, 0), (2, 1, "q"))}
    assert {edge: found[edge] for edge in movers} == pytest.approx(movers, abs=1e-3)
    assert set(scores.top(8)) <= set(CHAIN)


def test_a_circuit_of_heads_has_all_edges_inside_it(tiny):
    heads = {(0, 1), (2, 2)}
    group = 4 // (tiny.cfg.n_key_value_heads or 4)
    read = {(layer, head if name == "q" else head // group, name) for layer, head in heads for name in "qkv"}
    expected = [
        edge
        for edge in listing(tiny)
        if (isinstance(edge.source, str) or edge.source in heads) and (isinstance(edge.into, str) or edge.into in read)
    ]
    assert of_heads(tiny, [(0, 1), (2, 2, "END")]) == expected
    everyone = [(layer, head) for layer in range(3) for head in range(4)]
    assert of_heads(tiny, everyone) == listing(tiny)


def test_edges_on_no_path_change_nothing(tiny, pair):
    graph = Graph(tiny)
    kept = graph.mask(some(graph.edges, 0.25, 3))
    rest = graph.connected(kept)
    assert 0 < rest.sum() < kept.sum()
    assert not (rest & ~kept).any()
    one, other = run(tiny, *pair, [graph.chosen(kept), graph.chosen(rest)])
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    lonely = [Edge((1, 3), "logits"), Edge("embed", (2, 0, "q")), Edge("embed", (1, 0, "v")), Edge((1, 0), "mlp 2")]
    assert not graph.connected(graph.mask(lonely)).any()
    assert graph.connected(graph.mask([*lonely, Edge("mlp 2", "logits")])).sum() == 3


def test_a_curve_leads_from_nothing_to_the_model(toy):
    clean = prompts.canonical(toy)
    other = prompts.corrupt(toy, clean, "abc")
    rest = [edge for edge in Graph(toy).edges if edge not in CHAIN]
    full, n = MOVER - NEGATIVE, len(CHAIN) + len(rest)
    points = curve(toy, clean, other, [*CHAIN, *rest], [n, 13, 12, 5, 0])
    assert [point.size for point in points] == [0, 5, 12, 13, n]
    assert [point.connected for point in points][:4] == [0, 0, 9, 13]
    assert [point.faithfulness for point in points] == pytest.approx([0, 0, MOVER / full, 1, 1], abs=1e-3)
    assert [point.share for point in points] == pytest.approx([0, 5 / n, 12 / n, 13 / n, 1])
    # By hand: 0 up to 5; a ramp to 1.5 at 12, and to 1 at 13; 1 from there.
    cpr = (7 * 1.5 / 2 + (1.5 + 1) / 2 + n - 13) / n
    cmd = (5 + 7 * (1 + 0.5) / 2 + 0.5 / 2) / n
    assert area(points) == pytest.approx((cpr, cmd), abs=1e-3)
    assert area(points[1:4]) == pytest.approx((cpr, cmd), abs=1e-3)
    (circuit,) = faithfulness(toy, clean, other, [of_heads(toy, [(0, 0), (1, 0), (2, 0), (2, 1)])])
    assert circuit.faithfulness == pytest.approx(1, abs=1e-3)
    assert circuit.connected == circuit.size < n


def test_an_area_of_nothing_but_its_ends_is_a_half():
    assert area([]) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("block", [1, 5])
def test_pruning_leaves_the_hand_wired_circuit(toy, block):
    """In the worst order, best last: the first blocks asked are needed, the rest goes."""
    clean = prompts.canonical(toy)
    other = prompts.corrupt(toy, clean, "abc")
    rest = [edge for edge in Graph(toy).edges if edge not in CHAIN]
    for ranking in ([*CHAIN, *rest], [*rest, *CHAIN]):
        left = prune(toy, clean, other, ranking, tau=1e-3, block=block)
        assert set(CHAIN) - set(left) <= {Edge("embed", (2, 0, "k")), Edge("embed", (2, 1, "k"))}
        assert left == [edge for edge in ranking if edge in left]
        if block == 1:
            assert set(left) <= set(CHAIN)


def test_a_large_tau_prunes_everything(tiny, pair):
    assert prune(tiny, *pair, listing(tiny), tau=1e3, block=200) == []


@pytest.mark.parametrize(
    "edge",
    [
        Edge((3, 0), "logits"),
        Edge((0, 4), "logits"),
        Edge("mlp 1", (1, 0, "q")),
        Edge((1, 0), (1, 1, "q")),
        Edge("embed", (0, 0, "z")),
        Edge("embed", (0, 4, "k")),
    ],
)
def test_an_edge_that_is_none_is_named(tiny, pair, edge):
    with pytest.raises(PatchError, match=f"no edge {edge}"):
        run(tiny, *pair, [[edge]])


@pytest.mark.parametrize("call", [eap, eap_ig, lambda *given: run(*given, [[]])])
def test_prompts_that_do_not_align_are_refused(tiny, pair, call):
    pop, other = pair
    with pytest.raises(PatchError, match="misaligned-prompts"):
        call(tiny, pop, other.subset([1, 0]))
    with pytest.raises(PatchError, match="each prompt needs one partner"):
        call(tiny, pop, other.subset([0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *given: run(*given, []), "no sets of edges to run"),
        (lambda *given: eap(*given, at="swap"), "unknown at 'swap'"),
        (lambda *given: eap_ig(*given, steps=0), "argument steps: 0"),
        (lambda *given: prune(*given, [], 0.1), "no edges to prune"),
        (lambda *given: prune(*given, CHAIN, 0.0), "argument tau: 0.0: give a number that is above 0"),
        (lambda *given: prune(*given, CHAIN, 0.1, block=0), "argument block: 0"),
        (lambda *given: curve(*given, CHAIN, []), "sizes"),
        (lambda *given: curve(*given, CHAIN, [14]), "a ranking of 13 edges"),
    ],
)
def test_what_cannot_be_asked_is_named(toy, call, message):
    clean = prompts.canonical(toy)
    with pytest.raises(PatchError, match=message):
        call(toy, clean, prompts.corrupt(toy, clean, "abc"))


def test_no_gap_and_no_head_are_named(toy):
    clean = prompts.canonical(toy)
    with pytest.raises(MetricError, match="no-gap"):
        faithfulness(toy, clean, clean, [CHAIN])
    with pytest.raises(HeadError, match=r"no head 3\.0"):
        of_heads(toy, [(3, 0)])


def test_a_model_under_hooks_is_refused(tiny, pair):
    with (
        tiny.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: x * 0)]),
        pytest.raises(PatchError, match="hooked-model"),
    ):
        run(tiny, *pair, [[]])


def arrow(model, pop, other, senders, receivers, into):
    """One arrow by plain hooks: a run in which the senders send, then one run for each layer of the receivers."""
    a, b = (model.run_with_cache(one.tokens)[1] for one in (pop, other))
    rows, n_layers = torch.arange(len(pop)), model.cfg.n_layers

    def write(new):
        """Hooks that overwrite z at some nodes: {node: [batch d_head]}."""

        def replace(z, hook):
            z = z.clone()
            for (layer, head, place), value in new.items():
                if hook.name == f"blocks.{layer}.attn.hook_z":
                    z[rows, pop.positions[place], head] = value
            return z

        return [(f"blocks.{layer}.attn.hook_z", replace) for layer in range(n_layers)]

    def z_of(cache, node):
        return cache[f"blocks.{node[0]}.attn.hook_z"][rows, pop.positions[node[2]], node[1]].clone()

    frozen = [
        (name, lambda z, hook: a[hook.name].clone()) for name in (f"blocks.{n}.attn.hook_z" for n in range(n_layers))
    ]
    with model.hooks(fwd_hooks=frozen + write({node: z_of(b, node) for node in senders})):
        logits, sent = model.run_with_cache(pop.tokens)
    if into != "logits":
        changed = {}
        for layer in sorted({node[0] for node in receivers}):
            names = [f"blocks.{layer}.attn.hook_{letter}" for letter in into]
            put = [(name, lambda x, hook: sent[hook.name].clone()) for name in names]
            with model.hooks(fwd_hooks=write(changed) + put):
                _, cache = model.run_with_cache(pop.tokens)
            changed |= {node: z_of(cache, node) for node in receivers if node[0] == layer}
        logits = model.run_with_hooks(pop.tokens, fwd_hooks=write(changed))
    plain = model.run_with_hooks(pop.tokens)
    return [logit_difference(one[rows, pop.end], pop) for one in (plain, logits)]


SENDERS = {"early": [(0, 1, "S2"), (0, 2, "S2"), (1, 0, "S2")], "at the end": [(0, 0, "END"), (1, 3, "END")]}
RECEIVERS = {"at S2": [(1, 1, "S2"), (2, 0, "S2")], "late": [(1, 2, "END"), (2, 1, "END"), (2, 3, "END")]}


@pytest.mark.parametrize("few", [False, True])
def test_arrows_between_families_equal_plain_hooks(tiny, pair, few, monkeypatch):
    if few:
        monkeypatch.setattr(edges, "PROMPTS_AT_ONCE", 1)
    found = arrows(tiny, *pair, SENDERS, RECEIVERS, inputs=("q", "k", "v", "qkv"))
    assert len(found) == 2 + 2 * 2 * 4
    for name, lost in found.items():
        whole, patched = arrow(tiny, *pair, SENDERS[name.sender], RECEIVERS.get(name.receiver), name.into)
        torch.testing.assert_close(lost, whole - patched, atol=1e-5, rtol=0, msg=str(name))
    moved = {name for name, lost in found.items() if lost.abs().max() > 1e-4}
    expected = {Arrow("at the end", "logits", "logits"), *(Arrow("at the end", "late", into) for into in "qkv")}
    expected |= {Arrow("early", "late", into) for into in "kv"}
    expected |= {Arrow("at the end", "late", "qkv"), Arrow("early", "late", "qkv")}
    assert expected <= moved
    assert found[Arrow("early", "logits", "logits")].abs().max() < 1e-5, "with other heads frozen S2 has no such wire"
    assert found[Arrow("at the end", "at S2", "qkv")].abs().max() < 1e-5, "nothing is read ahead"


def test_arrows_of_one_head_are_those_of_path_patching(tiny_gpt2):
    """Without shared keys, into the queries of one head at END: the same wire as `path_patch` has."""
    model = tiny_gpt2.bridge
    pop = prompts.population(model, 4, seed=3)
    other = prompts.corrupt(model, pop, "abc")
    found = arrows(model, pop, other, {"a": [(0, 1, "END")]}, {"b": [(2, 2, "END")]}, inputs=["q"])
    grid = path_patch(model, pop, other, "q", [(2, 2)], sender_at="END", receiver_at="END", layers=[0], heads=[1])
    expected = grid.clean - grid.values[0, 0]
    torch.testing.assert_close(found[Arrow("a", "b", "q")], expected, atol=1e-5, rtol=0)


def test_the_arrows_of_the_hand_wired_circuit(toy):
    """0.0 -> values of 1.0 -> queries of the movers -> logits, and no other arrow."""
    pop = prompts.canonical(toy)
    families = {"duplicate": [(0, 0, "S2")], "inhibition": [(1, 0, "END")], "movers": [(2, 0, "END"), (2, 1, "END")]}
    found = arrows(toy, pop, prompts.corrupt(toy, pop, "abc"), families, families)
    full = MOVER - NEGATIVE
    expected = dict.fromkeys(found, 0.0) | {
        Arrow("duplicate", "inhibition", "k"): 4 / 3 * full,  # 0.0 writes the mark that 1.0 looks for ...
        Arrow("duplicate", "inhibition", "v"): 4 / 3 * full,  # ... and the name that it copies
        Arrow("inhibition", "movers", "q"): 4 / 3 * full,
        Arrow("movers", "logits", "logits"): full,
    }
    assert {name: float(lost) for name, lost in found.items()} == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("senders", "receivers", "inputs", "message"),
    [
        ({}, {}, ["q"], "no senders, or a family without heads"),
        ({"a": [(0, 0, "S2")]}, {"b": []}, ["q"], "no senders, or a family without heads"),
        ({"a": [(0, 0, "S2")]}, {"b": [(1, 0, "END")]}, ["qo"], "unknown input 'qo'"),
        ({"a": [(0, 0, "S3")]}, {"b": [(1, 0, "END")]}, ["q"], "no such position"),
        ({"a": [(0, 9, "S2")]}, {"b": [(1, 0, "END")]}, ["q"], "no head 0.9"),
    ],
)
def test_bad_arrows_are_named(tiny, pair, senders, receivers, inputs, message):
    with pytest.raises((PatchError, HeadError), match=message):
        arrows(tiny, *pair, senders, receivers, inputs)


def dense(model, sender, receiver, kind):
    """Elhage et al. 2021, with whole matrices, and every factor of the norm written out."""
    group = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)

    def of(name, layer, head):
        attn, scale = model.blocks[layer].attn, getattr(model.blocks[layer].ln1, "w", None)
        if name == "O":
            return attn.W_O[head]
        matrix = getattr(attn, f"W_{name}")[head if name == "Q" else head // group]
        return matrix if scale is None else scale[:, None] * matrix

    write = of("V", *sender) @ of("O", *sender)
    pair = {"q": ("Q", "K"), "k": ("K", "Q"), "v": ("V", "O")}[kind]
    a, b = (of(name, *receiver) for name in pair)
    read = a @ (b if kind == "v" else b.T)
    return float((write @ read).norm() / write.norm() / read.norm())


@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_composition_is_that_of_the_whole_matrices(tiny, kind):
    found = composition(tiny, (0, 1), (2, 3), kind)
    every = {(a, b): dense(tiny, (0, a), (2, b), kind) for a in range(4) for b in range(4)}
    assert found.score == pytest.approx(every.pop((1, 3)), rel=1e-4)
    assert found.baseline == pytest.approx(sum(every.values()) / 15, rel=1e-4)
    assert found.rank == pytest.approx(sum(score < found.score for score in every.values()) / 15)
    assert 0 < found.score < 1


def test_a_norm_that_is_not_folded_in_is_multiplied_in(tiny, monkeypatch):
    before = composition(tiny, (0, 1), (1, 0), "q").score
    width = torch.linspace(0.1, 3, tiny.cfg.d_model)
    network = edges.Network(tiny)
    scaled = [layer._replace(norm1=(width, None)) for layer in network.layers]
    monkeypatch.setattr(network, "layers", scaled)
    monkeypatch.setattr(edges, "Network", lambda model: network)
    after = composition(tiny, (0, 1), (1, 0), "q").score
    write, read = (
        [part.double() for part in edges._circuits(network, layer, kind)] for layer, kind in ((0, "v"), (1, "q"))
    )
    matrices = write[0][1] @ write[1][1].T, read[0][0] @ read[1][0].T
    assert after == pytest.approx(float((matrices[0] @ matrices[1]).norm() / matrices[0].norm() / matrices[1].norm()))
    assert after != pytest.approx(before, rel=1e-3)


def test_composition_of_the_hand_wired_circuit(toy):
    """1.0 copies names out of the space that 0.0 writes to; 2.0 asks there whom to leave out; none read 0.1."""
    assert composition(toy, (0, 0), (1, 0), "v").score > 0.3
    assert composition(toy, (0, 0), (1, 0), "k").score > 0.1
    assert composition(toy, (1, 0), (2, 0), "q").score > 0.1
    for kind in "qkv":
        assert composition(toy, (0, 1), (2, 0), kind).score == 0
        assert composition(toy, (0, 0), (1, 1), kind).score == 0, "1.1 reads nothing"
    assert composition(toy, (1, 0), (2, 0), "v").score == 0
    assert composition(toy, (0, 0), (1, 0), "v").rank == 1


@pytest.mark.parametrize(
    ("sender", "receiver", "kind", "message"),
    [
        ((1, 0), (1, 1), "q", "a sender in an earlier layer"),
        ((0, 0), (1, 1), "o", "unknown kind 'o'"),
        ((0, 9), (1, 1), "q", "no head 0.9"),
    ],
)
def test_composition_of_no_such_pair_is_named(tiny, sender, receiver, kind, message):
    with pytest.raises((PatchError, HeadError), match=message):
        composition(tiny, sender, receiver, kind)
