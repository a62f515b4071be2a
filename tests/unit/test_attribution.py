"""Edges of attribution graphs: on a circuit known by hand, against finite differences, and complete."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from labcode import attribution, latents, metrics, prompts, sae, toy
from labcode.errors import SaeError

FAMILIES = {
    "duplicate": [(0, 0, "S2")],
    "s-inhibition": [(1, 0, "END")],
    "nothing": [(1, 1, "END")],
    "name mover": [(2, 0, "END")],
    "negative": [(2, 1, "END")],
}


def one_name_new(model, pop):
    """The same prompts with another name at S1."""
    return prompts.renamed(model, pop, {"S1": prompts.fresh_names(model, pop, 1, 0)[:, 0]}, "first")


class Marks:
    """A dictionary whose latents are the toy's marks "this name was seen before", one for each name, of length 2."""

    def __init__(self):
        rows = torch.eye(toy.D_MODEL)[toy.SPACES["dup"]]
        self.W_enc, self.W_dec, self.b_dec = 0.5 * rows.T, 2 * rows, torch.zeros(toy.D_MODEL)
        self.cfg = SimpleNamespace(d_in=toy.D_MODEL, d_sae=len(rows), k=len(rows))

    def encode(self, x):
        return (x @ self.W_enc).relu()


@pytest.fixture(scope="module")
def soft():
    """The toy with soft attention: with hard attention every gradient through it is 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "SHARP", 1.5)
        return toy.build()


@pytest.fixture(scope="module")
def wired(soft):
    pop = prompts.population(soft, 4, seed=1, templates=prompts.TEMPLATES[:1])
    named = list(range(len(toy.NAMES)))
    return attribution.Local(soft, pop, one_name_new(soft, pop), Marks(), 0, named, FAMILIES, points=(1.0,))


def test_the_toys_edges_are_its_wires(wired):
    graph = wired.graph()
    assert graph.gap < 1e-5
    found = {
        (e.source.kind if e.source.kind != "head" else e.source.title, e.target.title, e.into)
        for e, value in graph.edges.items()
        if float(value.abs().max()) > 1e-4 and e.target.kind in ("head", "answer")
    }
    # 1.0 reads the mark with its keys and moves it with its values; both movers look away from what 1.0 rules out,
    # and write. The name at S1 is another one, and that is read where it stands: as a key and as a value. Attention
    # that is soft marks a name before S2 a little too, so 1.0 moves something from there.
    assert {pair for pair in found if pair[0] not in ("frozen",)} == {
        ("latent", "1.0", "k"),
        ("latent", "1.0", "v"),
        ("1.0", "2.0", "q"),
        ("1.0", "2.1", "q"),
        ("2.0", "IO − S", ""),
        ("2.1", "IO − S", ""),
    }
    assert {pair[1:] for pair in found if pair[0] == "frozen"} <= {
        ("2.0", "k"),
        ("2.0", "v"),
        ("2.1", "k"),
        ("2.1", "v"),
        ("1.0", "k"),
        ("1.0", "v"),
    }


def test_the_marks_come_from_the_duplicate_head(wired):
    graph = wired.graph()
    for latent in [node for node in graph.nodes if node.kind == "latent"]:
        before = {e.source.title: v for e, v in graph.edges.items() if e.target == latent}
        assert torch.allclose(before["0.0"], graph.total[latent], atol=1e-5)
        assert all(v.abs().max() < 1e-6 for title, v in before.items() if title != "0.0")


def test_what_is_linear_is_exact(wired):
    """The toy has no norm and no MLP, so the edges into the answer are all of the difference."""
    graph = wired.graph()
    answer = next(node for node in graph.nodes if node.kind == "answer")
    assert torch.allclose(graph.into(answer), graph.answer, atol=1e-5)
    writers = [e for e in graph.edges if e.target == answer and e.source.kind == "head"]
    for edge, lost in wired.measure(writers).items():
        assert torch.allclose(lost, graph.edges[edge], atol=1e-5)
    values = [e for e in graph.edges if e.into == "v" and e.source.kind == "latent" and e.target.title == "1.0"]
    assert values
    for edge, lost in wired.measure(values, dose=1e-2).items():  # attention after the head is not linear
        assert torch.allclose(lost / 1e-2, graph.edges[edge], rtol=0.05, atol=1e-3)


def test_with_attention_frozen_nothing_leaves_the_marks(soft):
    """The toy's message is where 2.0 looks, and frozen attention does not look anywhere else."""
    pop = prompts.population(soft, 2, seed=1, templates=prompts.TEMPLATES[:1])
    local = attribution.Local(
        soft, pop, one_name_new(soft, pop), Marks(), 0, range(len(toy.NAMES)), FAMILIES, freeze=("patterns",)
    )
    assert all(float(value.abs().max()) < 1e-6 for value in local.totals().values())


@pytest.fixture
def local(tiny, pair):
    small = sae.train(sae.collect(tiny, contexts(), 0), d_sae=96, k=6, samples=2000, batch=100).sae
    families = {"some": [(1, 0, "S2"), (1, 1, "END")], "others": [(2, 0, "END"), (0, 1, "S2"), (1, 1, "S1+1")]}
    pop, rows = pair[0], torch.arange(len(pair[0]))
    both = [latents.codes(tiny, small, p.tokens)[rows, p.positions["S2"]] for p in (pop, one_name_new(tiny, pop))]
    named = (both[0] - both[1]).abs().sum(0).topk(2).indices.tolist()  # latents that differ, so that they have edges
    return attribution.Local(tiny, pop, one_name_new(tiny, pop), small, 0, named, families, more=3, points=(1.0,))


def contexts(n=12, length=16, seed=0):
    text = torch.randint(3, 5000, (n, length), generator=torch.Generator().manual_seed(seed))
    text[:, 0] = 1
    return text


def test_the_runs_are_the_models_own(tiny, pair, local):
    pop = pair[0]
    other = one_name_new(tiny, pop)
    assert torch.allclose(local.clean.logits, metrics.logit_difference(metrics.end_logits(tiny, pop), pop), atol=1e-4)
    assert torch.allclose(
        local.changed.logits, metrics.logit_difference(metrics.end_logits(tiny, other), other), atol=1e-4
    )


def test_the_edges_into_every_input_add_up(local):
    graph = local.graph()
    assert graph.gap < 1e-5
    assert {e.into for e in graph.edges if e.target.kind == "head"} == {"q", "k", "v"}
    assert not [e for e in graph.edges if e.source.height >= e.target.height]
    assert {node.title for node in graph.nodes if node.kind == "head"} == {"1.0", "1.1", "2.0", "0.1"}


def test_a_second_look_takes_the_runs_of_the_first(tiny, local):
    families = {"some": [(1, 0, "S2"), (1, 1, "END")], "others": [(2, 0, "END"), (0, 1, "S2")]}
    args = (tiny, local.pop, local.other, local.sae, 0, local.named, families)
    again, alone = (attribution.Local(*args, more=3, points=(1.0, 0.5), **given) for given in ({"like": local}, {}))
    assert again.start is local.start
    first, second = again.graph().edges, alone.graph().edges
    assert set(first) == set(second)
    assert all(torch.allclose(first[edge], second[edge], atol=1e-5) for edge in first)


def test_parts_at_s2_are_the_whole(local):
    parts = [write for node, (place, write) in local.writes.items() if place == "S2" and node.kind != "head"]
    whole = local.difference[0][local.rows, local.at["S2"]]
    assert torch.allclose(sum(parts), whole, atol=1e-5)


def test_a_gradient_is_a_finite_difference_by_plain_hooks(tiny, pair, local):
    """A small push at one head's queries, with norms kept, moves what it writes as its edge says."""
    pop, (layer, head) = pair[0], (1, 1)
    node = next(n for n in local.heads if n.head == (layer, head))
    at, rows = pop.positions["END"], torch.arange(len(pop))
    push = 1e-2 * torch.randn(tiny.cfg.d_model, generator=torch.Generator().manual_seed(0))
    grads = local.gradients(node)
    stream = local.clean.before[0]

    def written(sign, letter):
        def pushed(h, hook):
            """What W_q, W_k or W_v makes of the push goes on top of what this head had."""
            weights = getattr(tiny.blocks[layer].attn, f"W_{letter.upper()}")
            norm = local.norm(stream + push, stream, local.network.layers[layer].norm1) - local.norm(
                stream, stream, local.network.layers[layer].norm1
            )
            one = head // (tiny.cfg.n_heads // h.shape[2])
            h = h.clone()
            h[:, :, one] += sign * norm @ weights[head if len(weights) == tiny.cfg.n_heads else one]
            return h

        name = f"blocks.{layer}.attn.hook_{letter}"
        with tiny.hooks(fwd_hooks=[(name, pushed)]):
            _, cache = tiny.run_with_cache(pop.tokens, names_filter=[f"blocks.{layer}.attn.hook_z"])
        z = cache[f"blocks.{layer}.attn.hook_z"][rows, at, head]
        return (z * local.points[0].at_z[0][rows, at, head]).sum(-1)

    for letter in "qkv":
        by_hooks = (written(1, letter) - written(-1, letter)) / 2
        by_edge = (grads[letter] * push).sum((1, 2))
        assert torch.allclose(by_hooks, by_edge, atol=2e-3 * float(by_edge.abs().max()) + 1e-6), letter


def test_the_gradient_of_the_whole_is_a_finite_difference(tiny, pair):
    """With nothing frozen, what leaves S2 is what a small push there does to the answer."""
    pop = pair[0]
    small = sae.train(sae.collect(tiny, contexts(), 0), d_sae=96, k=6, samples=2000, batch=100).sae
    free = attribution.Local(tiny, pop, one_name_new(tiny, pop), small, 0, [1], {}, freeze=(), points=(1.0,))
    push = 1e-3 * torch.randn(len(pop), tiny.cfg.d_model, generator=torch.Generator().manual_seed(0))
    editor = latents.Editor(tiny, pop, 0)
    moved = (editor.change("S2", push) - editor.change("S2", -push)) / 2
    expected = (free.pull * push).sum(-1)
    assert torch.allclose(moved, expected, atol=0.02 * float(expected.abs().max()) + 2e-6)


def test_a_measured_source_is_as_in_the_second_run(tiny, pair, local):
    graph, pop = local.graph(), pair[0]
    answer = next(node for node in graph.nodes if node.kind == "answer")
    edge = next(e for e in graph.edges if e.source.title == "1.1" and e.target == answer)
    other = one_name_new(tiny, pop)
    _, cache = tiny.run_with_cache(other.tokens, names_filter=["blocks.1.attn.hook_z"])
    rows, end = torch.arange(len(pop)), pop.positions["END"]

    def exchanged(z, hook):
        z = z.clone()
        z[rows, end, 1] = cache["blocks.1.attn.hook_z"][rows, end, 1]
        return z

    with tiny.hooks(fwd_hooks=[("blocks.1.attn.hook_z", exchanged)]):
        after = metrics.logit_difference(metrics.end_logits(tiny, pop), pop)
    assert torch.allclose(local.by_all_ways(edge.source), local.clean.logits - after, atol=1e-4)
    assert local.by_all_ways(edge.source, dose=0.0).abs().max() < 1e-4
    assert local.measure([edge], dose=0.0)[edge].abs().max() < 1e-4


def test_an_edge_into_a_head_is_measured_by_path_patching(tiny, pair, local):
    """What one input of one head hears of a latent, as chapter 17's editor has it when MLPs are left out."""
    editor = latents.Editor(tiny, pair[0], 0)
    found = [e for e in local.graph().edges if e.source.kind == "latent" and e.target.kind == "head"]
    assert {e.into for e in found} == {"q", "k", "v"}
    for edge, lost in local.measure(found).items():
        reader = [(*edge.target.head, edge.target.place)]
        heard = editor.heard(-local.writes[edge.source][1], reader, edge.into, through_mlps=False)
        assert torch.allclose(lost, -heard, atol=1e-4), edge


def test_chance_deals_sizes_among_edges_of_one_kind():
    predicted, measured = torch.tensor([1.0, -8.0, 1.0]), torch.tensor([1.0, -1.0, 8.0])
    assert attribution.comes_true(predicted, measured).tolist() == [True, False, False]
    shares = attribution.by_chance(predicted, measured, ["q", "v", "q"], n=50)
    assert set((3 * shares).round().tolist()) == {1.0}  # -8 stays where it is, and the two of q are alike
    # among all three -8 goes to any, and lies within a factor of two of 8
    assert len(set(attribution.by_chance(predicted, measured, n=50).tolist())) > 1


def test_no_heads_no_edges_but_those_into_the_answer(tiny, pair, local):
    bare = attribution.Local(tiny, pair[0], one_name_new(tiny, pair[0]), local.sae, 0, [], {}, more=0, points=(1.0,))
    graph = bare.graph()
    assert {edge.target.kind for edge in graph.edges} <= {"answer"}
    assert not [edge for edge in graph.strongest(5) if edge.target.kind == "head"]


def test_what_can_not_be_measured_is_refused(tiny, pair, local):
    graph = local.graph()
    several = next(e for e in graph.edges if e.source.kind == "frozen")
    with pytest.raises(SaeError, match="several things"):
        local.measure([several])
    latent = next(e for e in graph.edges if e.target.kind == "latent" and e.source.kind == "head")
    with pytest.raises(SaeError):
        local.measure([latent])


def test_a_dictionary_of_the_last_layer_has_no_readers(soft):
    pop = prompts.population(soft, 2, seed=1, templates=prompts.TEMPLATES[:1])
    with pytest.raises(SaeError, match="no block follows"):
        attribution.Local(soft, pop, pop, Marks(), 2, [], {})
