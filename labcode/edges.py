"""Circuits as sets of edges: who reads whose output, not only which heads take part.

A decoder is a graph. Its *sources* write to the residual stream: the embedding, every head, every MLP. Its
*destinations* read it: the queries, keys and values of every head, every MLP, and the logits. Each destination reads
the sum of all sources before it, so there is an edge from each of them: heads of layer L to MLP L and to all later
layers, MLP L to all layers after L. What biases of attention add is the same in every run, and no source.

`run` measures a set of edges (Conmy et al. 2023, arXiv 2304.14997). A destination reads, at all positions, the sum over
its sources of what the source writes in this very run where the edge is kept, and of what it wrote in the corrupted run
where it is not. Norms are computed anew on what the destination reads. With all edges kept this is the clean run, with
none the corrupted run.

`eap` and `eap_ig` estimate in a few backward passes what each edge is worth. `curve` and `area` judge a ranking of
edges by the circuits that it gives, `prune` searches a circuit along it, and `of_heads` puts circuits of heads beside.

`arrows` measures the arrows of a circuit's diagram: from all heads of one family, together, into all heads of another.
`composition` asks the weights alone how well what one head writes fits what another reads.

With grouped keys and values, k and v belong to a key and value head: "20.0 k" is read by several query heads.

Limits: a corrupted run is one choice of "no information" among others. An edge carries all positions at once. All is
computed in float32.

Dimensions: `source` and `dest` are in the order of computation; `edge` is in the order of `Graph.edges`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.nn import functional as F

from labcode.circuit import Keep, check_states, finite, kept_heads
from labcode.errors import PatchError
from labcode.forward import Linear, Network, Suffix, record, rotate
from labcode.heads import Head, Node, check_heads
from labcode.inputs import guard
from labcode.metrics import logit_difference, restoration
from labcode.patching import first_difference
from labcode.progress import progress
from labcode.recorded import Recorded, prompt_key

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

# Bounds that keep the working memory below 1 GB for the embedded model.
PROMPTS_AT_ONCE = 8
ROWS_AT_ONCE = 6  # runs in one backward pass


class Edge(NamedTuple):
    """From one source to one destination.

    Attributes:
        source: "embed", "mlp 3", or a head such as (17, 4).
        into: "logits", "mlp 3", or a head's input such as (20, 0, "q").
    """

    source: str | Head
    into: str | tuple[int, int, str]

    def __str__(self) -> str:
        """As a reader would write it: "17.4 -> 20.0 q", "mlp 3 -> logits"."""
        source = self.source if isinstance(self.source, str) else "{}.{}".format(*self.source)
        into = self.into if isinstance(self.into, str) else "{}.{} {}".format(*self.into)
        return f"{source} -> {into}"


class Graph:
    """All sources, destinations and edges of a model.

    Attributes:
        network: the arithmetic.
        sources, dests: what can stand in an `Edge`, in the order of computation.
        possible: [dest source], where there is an edge.
        reads: for each source, the numbers of the destinations that it computes its output from.
        edges: all of them, by destination, then by source.

    Raises:
        ModelError: a model that the lab does not know.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model
        self.network = net = Network(model)
        self.sources: list[str | Head] = ["embed"]
        self.dests: list[str | tuple[int, int, str]] = []
        self.reads: list[list[int]] = [[]]
        seen = []  # for each destination, how many sources are before it
        group = net.n_heads // net.n_kv_heads
        for layer in range(net.n_layers):
            first = len(self.dests)
            for name, n in (("q", net.n_heads), ("k", net.n_kv_heads), ("v", net.n_kv_heads)):
                self.dests += [(layer, head, name) for head in range(n)]
            seen += [len(self.sources)] * (len(self.dests) - first)
            for head in range(net.n_heads):
                k = first + net.n_heads + head // group
                self.sources.append((layer, head))
                self.reads.append([first + head, k, k + net.n_kv_heads])
            if net.layers[layer].mlp_out is not None:
                seen.append(len(self.sources))
                self.reads.append([len(self.dests)])
                self.sources.append(f"mlp {layer}")
                self.dests.append(f"mlp {layer}")
        self.dests.append("logits")
        seen.append(len(self.sources))
        with torch.device("cpu"):  # masks are small, and told to people
            self.possible = torch.arange(len(self.sources)) < torch.tensor(seen)[:, None]
        self._at = {dest: number for number, dest in enumerate(self.dests)}
        self._from = {source: number for number, source in enumerate(self.sources)}
        self.edges = self.chosen(self.possible)

    def chosen(self, mask: Bool[Tensor, "dest source"]) -> list[Edge]:
        """The edges of a mask."""
        return [Edge(self.sources[source], self.dests[dest]) for dest, source in mask.nonzero().tolist()]

    def mask(self, edges: Iterable[Edge]) -> Bool[Tensor, "dest source"]:
        """Where these edges are.

        Raises:
            PatchError: one that this model does not have.
        """
        mask, places = torch.zeros_like(self.possible), []
        for edge in edges:
            dest, source = self._at.get(edge.into, -1), self._from.get(edge.source, -1)
            if dest < 0 or source < 0 or not self.possible[dest, source]:
                raise PatchError(
                    f"no edge {edge}: an edge leads from 'embed', a head or an MLP of this model to a later input; k "
                    "and v are those of key and value heads"
                )
            places.append((dest, source))
        if places:
            mask[tuple(zip(*places, strict=True))] = True
        return mask

    def connected(self, mask: Bool[Tensor, "dest source"]) -> Bool[Tensor, "dest source"]:
        """Without the edges that lie on no path from the embedding to the logits: they change nothing in a run."""
        mask = mask.cpu()
        reached, used = (torch.zeros(len(of), dtype=torch.bool, device="cpu") for of in (self.sources, self.dests))
        reached[0], used[-1] = True, True
        for source in range(1, len(self.sources)):
            reached[source] = (mask[self.reads[source]] & reached).any()
        for source in reversed(range(1, len(self.sources))):
            if (mask[:, source] & used).any():
                used[self.reads[source]] = True
        return mask & reached & used[:, None]


def of_heads(model: TransformerBridge, nodes: Iterable[Head | Node]) -> list[Edge]:
    """The edges that a circuit of heads implies: all among its heads, the embedding, all MLPs and the logits.

    Positions of nodes are left out, for an edge has none. A key and value head belongs to the circuit if one of its
    query heads does.

    Raises:
        HeadError: an unknown head.
    """
    graph, heads = Graph(model), set(check_heads(model, [node[:2] for node in nodes]))
    inside = [isinstance(source, str) or source in heads for source in graph.sources]
    read = {dest for one, dests in zip(inside, graph.reads, strict=True) if one for dest in dests}
    into = [dest in read or name == "logits" for dest, name in enumerate(graph.dests)]
    return graph.chosen(graph.possible & torch.outer(*(torch.tensor(part, device="cpu") for part in (into, inside))))


class Piece:
    """A few prompts, clean and corrupted: what all runs of sets of edges share.

    Attributes:
        clean, corrupted: [batch pos d_model], what the embedding writes.
        outputs: what each source writes in the corrupted run.
        streams: the corrupted stream before each layer, before each MLP, and at the end.
    """

    def __init__(self, graph: Graph, pop: Population, other: Population) -> None:
        self.model, self.graph, self.pop = graph.model, graph, pop
        self.n_pos = int(pop.end.max()) + 1
        runs = [record(graph.model, one.tokens, one.end, Suffix.hooks(graph.model)) for one in (pop, other)]
        self.clean, self.corrupted = (base["hook_resid_pre", 0][:, : self.n_pos].clone() for base in runs)
        for base in runs:
            suffix = Suffix.proven(graph.network, base, pop.end, torch.ones_like(pop.end))
        places = torch.arange(self.n_pos)[None]
        self.turns = [suffix.rotation(layer, places) for layer in range(graph.network.n_layers)]
        self.allowed = suffix.allowed(places)
        self.outputs = torch.empty(len(graph.sources), *self.clean.shape)
        self.streams: list[Tensor] = []
        self.plain(self.corrupted, self.outputs, self.streams)

    def heads(
        self,
        layer: int,
        q: Float[Tensor, "head batch pos d_model"],
        k: Float[Tensor, "kv_head batch pos d_model"],
        v: Float[Tensor, "kv_head batch pos d_model"],
    ) -> Float[Tensor, "head batch pos d_model"]:
        """What each head writes, given the stream that each of its inputs reads."""
        net, weights = self.graph.network, self.graph.network.layers[layer]
        parts = []
        for x, linear in ((q, weights.q), (k, weights.k), (v, weights.v)):
            normed = net.norm(x, weights.norm1)
            part = torch.einsum("hbpm,hdm->bphd", normed, linear.weight.unflatten(0, (-1, net.d_head)))
            parts.append(part if linear.bias is None else part + linear.bias.unflatten(0, (-1, net.d_head)))
        turn = self.turns[layer]
        z = net.attend(rotate(parts[0], turn), rotate(parts[1], turn), parts[2], self.allowed)
        return torch.einsum("bphd,mhd->hbpm", z, weights.o.weight.unflatten(1, (net.n_heads, net.d_head)))

    def plain(
        self, x: Float[Tensor, "batch pos d_model"], outputs: Tensor | None = None, streams: list[Tensor] | None = None
    ) -> tuple[Float[Tensor, " batch"], list[tuple[int, Tensor]]]:
        """A whole run from what the embedding writes; rows are the prompts of this piece, once or several times over.

        Args:
            outputs, streams: to be filled in, as in the attributes.

        Returns:
            Logit differences; and the inputs of all destinations, in blocks: number of sources before it,
            [dest batch pos d_model]. The last one holds END only, [1 batch 1 d_model]. A gradient goes through them.
        """
        net, n, inputs = self.graph.network, 1, []
        n_q, n_kv = net.n_heads, net.n_kv_heads
        if outputs is not None:
            outputs[0] = x
        for layer in range(net.n_layers):
            read = x.expand(n_q + 2 * n_kv, *x.shape)
            inputs.append((n, read))
            written = self.heads(layer, *read.split([n_q, n_kv, n_kv]))
            if outputs is not None:
                outputs[n : n + n_q] = written
            if streams is not None:
                streams.append(x)
            bias, n = net.layers[layer].o.bias, n + n_q
            x = x + written.sum(0) + (0 if bias is None else bias)
            if streams is not None:
                streams.append(x)
            if net.layers[layer].mlp_out is not None:
                read = x.expand(1, *x.shape)
                inputs.append((n, read))
                (new,) = net.mlp(layer, read)
                if outputs is not None:
                    outputs[n] = new
                x, n = x + new, n + 1
        if streams is not None:
            streams.append(x)
        repeats = len(x) // len(self.pop)
        last = x[torch.arange(len(x)), self.pop.end.repeat(repeats)][None, :, None]
        inputs.append((n, last))
        right, wrong = (ids.repeat(repeats) for ids in (self.pop.io_ids, self.pop.s_ids))
        return net.logit_difference(last[0, :, 0], right, wrong), inputs

    def run(self, mask: Bool[Tensor, "dest source"]) -> Float[Tensor, " batch"]:
        """The logit difference of each prompt when these edges are kept."""
        net, weights = self.graph.network, mask.float().to(self.outputs.device)
        change = torch.empty_like(self.outputs)  # of each source's output against the corrupted run
        change[0] = self.clean - self.corrupted
        n, row, n_q, n_kv = 1, 0, net.n_heads, net.n_kv_heads
        for layer in range(net.n_layers):
            rows = slice(row, row + n_q + 2 * n_kv)
            read = self.streams[2 * layer] + torch.tensordot(weights[rows, :n], change[:n], 1)
            new = slice(n, n + n_q)
            change[new] = self.heads(layer, *read.split([n_q, n_kv, n_kv])) - self.outputs[new]
            n, row = new.stop, rows.stop
            if net.layers[layer].mlp_out is not None:
                read = self.streams[2 * layer + 1] + torch.tensordot(weights[row, :n], change[:n], 1)
                change[n] = net.mlp(layer, read) - self.outputs[n]
                n, row = n + 1, row + 1
        prompts = torch.arange(len(self.pop))
        last = self.streams[-1][prompts, self.pop.end] + torch.tensordot(
            weights[row, :n], change[:n, prompts, self.pop.end], 1
        )
        return net.logit_difference(last, self.pop.io_ids, self.pop.s_ids)

    def scores(self, shares: Sequence[float]) -> Float[Tensor, "dest source batch"]:
        """(Clean - corrupted output of each source) . (mean gradient at each destination's input).

        Args:
            shares: where the gradient is taken: the share of clean in what the embedding writes, of each run.
        """
        with torch.no_grad():
            change = torch.empty_like(self.outputs)
            self.plain(self.clean, change)
            change -= self.outputs
        found = torch.zeros(*self.graph.possible.shape, len(self.pop))
        at_once = max(1, ROWS_AT_ONCE // len(self.pop))
        for some in torch.tensor(list(shares)).split(at_once):
            with torch.enable_grad():
                start = torch.lerp(self.corrupted, self.clean, some[:, None, None, None]).flatten(0, 1)
                value, inputs = self.plain(start.requires_grad_())
                row = 0
                for n, read in inputs:
                    # Taken as it passes by, so that never more than one layer's gradients are held.
                    read.register_hook(self._collector(found[row : row + len(read), :n], change[:n], len(some)))
                    row += len(read)
                torch.autograd.grad(value.sum(), start)
        return found / len(shares)

    def _collector(self, found: Tensor, change: Tensor, repeats: int) -> Any:
        def collect(gradient: Float[Tensor, "dest row pos d_model"]) -> None:
            summed = gradient.unflatten(1, (repeats, -1)).sum(1)  # [dest batch pos d_model]
            here = change
            if summed.shape[2] == 1:
                here = change[:, torch.arange(len(self.pop)), self.pop.end][:, :, None]
            found.add_(torch.einsum("dbpm,sbpm->dsb", summed, here))

        return collect


def _pieces(graph: Graph, clean: Population, corrupted: Population, size: int) -> Iterator[Piece]:
    """The prompts a few at a time.

    Raises:
        PatchError: prompts that do not align; a model under hooks.
    """
    first_difference(clean, corrupted)
    pairs = zip(clean.chunks(size), corrupted.chunks(size), strict=True)
    for pop, other in progress(pairs, "prompts", -(-len(clean) // size)):
        with torch.no_grad():
            piece = Piece(graph, pop, other)
        yield piece


def _run_masks(
    graph: Graph,
    clean: Population,
    corrupted: Population,
    masks: Sequence[Tensor],
    known: Recorded | None = None,
    held: list[Piece] | None = None,
) -> Float[Tensor, "set batch"]:
    """The logit difference of each prompt with each mask; `held` keeps what all masks share for the next call."""
    if known is not None:

        def measure(numbers: list[int], prompts: list[int] | None) -> Tensor:
            pops = (clean, corrupted) if prompts is None else (clean.subset(prompts), corrupted.subset(prompts))
            return _run_masks(graph, *pops, [masks[number] for number in numbers], held=None if prompts else held)

        context = ("edges", prompt_key(clean), prompt_key(corrupted))
        keys = [mask.numpy().tobytes() for mask in masks]
        return known.values(context, keys, len(clean), measure)
    pieces: Iterable[Piece] = _pieces(graph, clean, corrupted, PROMPTS_AT_ONCE)
    if held is not None:
        held.extend(() if held else pieces)
        pieces = held
    with torch.no_grad():
        found = [torch.stack([piece.run(mask) for mask in masks]) for piece in pieces]
    return finite(torch.cat(found, dim=1), clean)


def run(
    model: TransformerBridge, clean: Population, corrupted: Population, kept: Sequence[Collection[Edge]]
) -> Float[Tensor, "set batch"]:
    """The logit difference of each prompt with each set of edges kept, and all other edges from the corrupted run.

    Args:
        corrupted: the same prompts without the information, aligned: `corrupt(model, clean, "abc")` or "swap".
        kept: one or several sets of edges; `Graph(model).edges` are all.

    Raises:
        PatchError: no sets, an unknown edge, prompts that do not align, a model under hooks.
    """
    if not len(kept):
        raise PatchError("no sets of edges to run: give at least one, and be it [[]]")
    graph = Graph(model)
    return _run_masks(graph, clean, corrupted, [graph.mask(edges) for edges in kept])


@dataclass(frozen=True)
class Scores:
    """What each edge is worth by some method.

    Attributes:
        edges: all edges of the model; from the record, the first of the ranking.
        values: in nats of logit difference, for each prompt; from the record, their mean only. Positive: the edge
            speaks for the right answer.
    """

    edges: list[Edge]
    values: Float[Tensor, "edge batch"]

    @property
    def mean(self) -> Float[Tensor, " edge"]:
        """Over the prompts."""
        return self.values.mean(-1)

    def ranking(self) -> list[Edge]:
        """All edges, those with the largest |mean score| first."""
        order = self.mean.abs().argsort(descending=True, stable=True)
        return [self.edges[number] for number in order.tolist()]

    def top(self, n: int) -> dict[Edge, float]:
        """The first `n` of the ranking with their mean score."""
        mean = dict(zip(self.edges, self.mean.tolist(), strict=True))
        return {edge: mean[edge] for edge in self.ranking()[:n]}


EVERY = 16  # of the edges whose scores are recorded, every so manieth is for each prompt, to be measured again


def _attribute(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    shares: Sequence[float],
    known: Recorded | None = None,
) -> Scores:
    graph = Graph(model)
    if known is not None:

        def measure() -> dict[str, Tensor]:
            values = _attribute(model, clean, corrupted, shares).values
            mean = values.mean(-1)
            order = mean.abs().argsort(descending=True, stable=True)[: len(mean) // 4]
            return {"order": order.int(), "mean": mean[order], "some": values[order[::EVERY]]}

        def again(table: dict[str, Tensor], prompts: list[int]) -> tuple[Tensor, Tensor]:
            one = prompts[:1]
            new = _attribute(model, clean.subset(one), corrupted.subset(one), shares)
            old, mean = table["some"], table["mean"][::EVERY]
            now = new.values.cpu()[table["order"][::EVERY]]
            return torch.stack([now[:, 0], mean]), torch.stack([old[:, one[0]], old.mean(-1)])

        context = ("scores", prompt_key(clean), prompt_key(corrupted), *shares)
        found = known.table(context, len(clean), measure, again)
        return Scores([graph.edges[number] for number in found["order"].tolist()], found["mean"][:, None])
    pieces = _pieces(graph, clean, corrupted, max(1, ROWS_AT_ONCE // len(shares)))
    values = torch.cat([piece.scores(shares)[graph.possible] for piece in pieces], dim=1)
    return Scores(graph.edges, finite(values, clean))


def eap(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    at: Literal["clean", "corrupted"] = "clean",
    *,
    known: Recorded | None = None,
) -> Scores:
    """Edge attribution patching (Syed, Rager and Conmy 2023, arXiv 2310.10348).

    The score of an edge is (the source's output, clean - corrupted) . (gradient of the logit difference with respect to
    what the destination reads), summed over positions. It is the first-order estimate of what `run` would show.

    Args:
        at: the run whose gradient is taken. "clean": how much is lost if this edge alone becomes corrupted.
            "corrupted": how much is won if this edge alone becomes clean.
        known: what is recorded. With it, scores are those of the first quarter of the ranking.

    Raises:
        PatchError: unknown `at`, prompts that do not align, a model under hooks.

    Limits: a straight line through one point. Where attention or a norm is saturated it can be far off, with the wrong
    sign too.
    """
    return _attribute(model, clean, corrupted, [1.0 if at == "clean" else 0.0], known)


def eap_ig(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    steps: int = 5,
    *,
    known: Recorded | None = None,
) -> Scores:
    """Edge attribution patching with integrated gradients (Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806).

    As `eap`, with the mean gradient of `steps` runs. In run k = 1 ... `steps`, what the embedding writes is corrupted +
    k / `steps` (clean - corrupted); all else follows from it. One step is `eap` at the clean run. With many, the
    scores of the embedding's own edges add up to the difference between clean and corrupted logit difference.

    Args:
        known: as for `eap`.

    Raises:
        PatchError: no step, prompts that do not align, a model under hooks.

    Limits: embeddings between two words are none that the model was trained on.
    """
    return _attribute(model, clean, corrupted, [k / steps for k in range(1, steps + 1)], known)


def prune(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    ranking: Sequence[Edge],
    tau: float,
    block: int = 1000,
    *,
    known: Recorded | None = None,
) -> list[Edge]:
    """Drop edges one block after another, the last ranked first, as long as little changes.

    ACDC (Conmy et al. 2023) asks this for each edge in the order of the graph. Here edges are asked in blocks of
    neighbours in a ranking, which takes far fewer runs; `block=1` asks for each edge.

    Args:
        ranking: the edges to begin with, best first.
        tau: a block is dropped if the mean divergence of P(IO against S) from that of the clean run, in nats, rises by
            less than this.
        known: what is recorded; only what it lacks is measured.

    Returns:
        The edges that are left, in the order of the ranking, without those on no path from the embedding to the logits.

    Raises:
        PatchError: no edges, an unknown one, tau or block not positive; as for `run`.

    Limits: greedy, so another order gives another circuit. The corrupted outputs of all prompts are held, 14 MB for
    each prompt of the embedded model.
    """
    if not ranking:
        raise PatchError("no edges to prune: give at least one", see="nothing-chosen")
    graph = Graph(model)
    kept = graph.mask(ranking)
    pieces: list[Piece] = []

    def run(mask: Tensor) -> Tensor:
        return _run_masks(graph, clean, corrupted, [mask], known, pieces)[0]

    whole = run(graph.possible)
    now = float(divergence(whole, run(kept)).mean())
    for stop in progress(range(len(ranking), 0, -block), "blocks of edges", -(-len(ranking) // block)):
        without = kept & ~graph.mask(ranking[max(0, stop - block) : stop])
        after = float(divergence(whole, run(without)).mean())
        if after - now < tau:
            kept, now = without, after
    left = set(graph.chosen(graph.connected(kept)))
    return [edge for edge in ranking if edge in left]


def divergence(p: Float[Tensor, " batch"], q: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """KL(p || q) of IO against S, in nats, from logit differences: the rest of the vocabulary is left out."""
    yes, no = p.sigmoid(), (-p).sigmoid()
    return yes * (F.logsigmoid(p) - F.logsigmoid(q)) + no * (F.logsigmoid(-p) - F.logsigmoid(-q))


class Point(NamedTuple):
    """One circuit on a curve.

    Attributes:
        share: of all edges of the model, before any are left out. size: how many edges that is.
        connected: how many of them lie on a path from the embedding to the logits.
        faithfulness: 0 as the corrupted run, 1 as the clean run.
        values: each prompt's faithfulness, in units of the mean gap; their mean is `faithfulness`.
    """

    share: float
    size: int
    connected: int
    faithfulness: float
    values: Float[Tensor, " batch"]


def faithfulness(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    circuits: Sequence[Collection[Edge]],
    *,
    known: Recorded | None = None,
) -> list[Point]:
    """How much of the logit difference each circuit makes: (F(C) - F(nothing)) / (F(all) - F(nothing)).

    F is the mean logit difference; nothing is the corrupted run, all the clean one.

    Args:
        known: what is recorded; only what it lacks is measured.

    Raises:
        PatchError: as for `run`.
        MetricError: clean and corrupted run do not differ.
    """
    graph = Graph(model)
    masks = [graph.mask(edges) for edges in circuits]
    bounds = [torch.zeros_like(graph.possible), graph.possible]
    connected = [graph.connected(mask) for mask in masks]
    nothing, whole, *found = _run_masks(graph, clean, corrupted, [*bounds, *connected], known)
    points = []
    for mask, rest, value in zip(masks, connected, found, strict=True):
        size, unit = int(mask.sum()), restoration(value, whole, nothing)
        points.append(Point(size / len(graph.edges), size, int(rest.sum()), float(unit.mean()), unit))
    return points


def curve(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    ranking: Sequence[Edge],
    sizes: Sequence[int],
    *,
    known: Recorded | None = None,
) -> list[Point]:
    """The faithfulness of the first n edges of a ranking, for each n in `sizes`, in ascending order.

    Args:
        ranking: best first, such as `Scores.ranking()`, which ranks by |score|.
        sizes: numbers of edges, counted before those on no path from the embedding to the logits are left out.
        known: what is recorded; only what it lacks is measured.

    Raises:
        PatchError: no sizes, or one that the ranking does not have; as for `run`.
        MetricError: clean and corrupted run do not differ.
    """
    if not len(sizes) or min(sizes) < 0 or max(sizes) > len(ranking):
        raise PatchError(
            f"sizes {list(sizes)} of a ranking of {len(ranking)} edges: give numbers from 0 to its length",
            see="nothing-chosen",
        )
    return faithfulness(model, clean, corrupted, [ranking[:n] for n in sorted(set(sizes))], known=known)


class Area(NamedTuple):
    """`cpr`: more is better; `cmd`: less is better, 0 is best."""

    cpr: float
    cmd: float


def area(points: Iterable[Point]) -> Area:
    """The two numbers of the MIB benchmark for a curve (Mueller et al. 2025, arXiv 2504.13151).

    CPR integrates faithfulness f, CMD integrates |1 - f|, both over the share of edges, `Point.share`, from 0 to 1: by
    trapezoids between the points given, with f(0) = 0 and f(1) = 1 added where they are missing, for they hold by
    definition. The axis is not logarithmic. So a circuit's CPR can be above 1, where edges that speak against the
    answer are left out, and CMD is at least |1 - CPR|.

    Limits: the sum depends on the points, and trapezoids of |1 - f| are too large where f crosses 1 between two of
    them. Compare methods on the same sizes. Numbers of the benchmark itself are of its own prompts and sizes.
    """
    known = {0.0: 0.0, 1.0: 1.0} | {point.share: point.faithfulness for point in points}
    cpr = cmd = 0.0
    for (x, f), (y, g) in pairwise(sorted(known.items())):
        cpr += (y - x) * (f + g) / 2
        cmd += (y - x) * (abs(1 - f) + abs(1 - g)) / 2
    return Area(cpr, cmd)


class Arrow(NamedTuple):
    """From one family into the queries, keys or values ("q", "k", "v", or several: "qkv") of another.

    Attributes:
        sender, receiver: names of families; the receiver can be "logits", and so is `into` then.
    """

    sender: str
    receiver: str
    into: str


def arrows(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    senders: Mapping[str, Sequence[Node]],
    receivers: Mapping[str, Sequence[Node]],
    inputs: Sequence[str] = ("q", "k", "v"),
    *,
    known: Recorded | None = None,
) -> dict[Arrow, Float[Tensor, " batch"]]:
    """What each arrow between families carries: how much logit difference is lost when it alone carries corrupted news.

    Path patching (Wang et al. 2022, appendix B) as in `patching.path_patch`, with all heads of a family together. The
    senders write, at their positions, what they write in the corrupted run; every other head writes what it writes in
    the clean run, MLPs are computed anew. What then arrives as queries, keys or values is given to the receivers in a
    clean run, all of them together, and everything after them runs free. A receiver is a head at a position: only the
    query at this position sees the new keys and values, and only this head of those that share them.

    Args:
        clean, corrupted: aligned populations, as for `path_patch`.
        senders, receivers: families, which may be the same ones. Each sender's arrow to the logits is added.
        inputs: which inputs change together: "q" alone, or for instance "qkv".
        known: what is recorded; only what it lacks is measured.

    Returns:
        Clean - patched logit difference of each prompt, in nats. An arrow that leads to no later layer holds zeros.

    Raises:
        PatchError: no senders, an empty family, an unknown input or position, prompts that do not align, a model
            under hooks.
        HeadError: a head that this model does not have.

    Limits: the arrow from A to B holds every way through MLPs, none through other heads. So arrows do not add up, and
    none of them being large does not mean that all of them together are small.
    """
    if not senders or not all([*senders.values(), *receivers.values()]):
        raise PatchError("no senders, or a family without heads: leave empty families out")
    for into in inputs:
        if not into or set(into) - set("qkv"):
            raise PatchError(f"unknown input {into!r}: choose 'q', 'k', 'v' or several, as 'qkv'")
    families = [Keep(tuple(nodes)) for nodes in (*senders.values(), *receivers.values())]
    check_states(model, clean, families)
    first_difference(clean, corrupted)
    found: dict[Arrow, list[Tensor]] = {Arrow(name, "logits", "logits"): [] for name in senders}
    found |= {Arrow(a, b, into): [] for a in senders for b in receivers for into in inputs}
    if known is not None:
        return _known_arrows(model, clean, corrupted, senders, receivers, list(found), known)
    network = Network(model)
    pieces = zip(clean.chunks(PROMPTS_AT_ONCE), corrupted.chunks(PROMPTS_AT_ONCE), strict=True)
    with torch.no_grad():
        for pop, other in progress(pieces, "prompts", -(-len(clean) // PROMPTS_AT_ONCE)):
            letters = _Letters(model, network, pop, other, families)
            sent, last = zip(*(letters.send(number) for number in range(len(senders))), strict=True)
            for sender, x in zip(senders, last, strict=True):
                found[Arrow(sender, "logits", "logits")].append(letters.lost(x))
            for number, receiver in enumerate(receivers, len(senders)):
                lost = letters.receive(torch.stack(sent), number, inputs)
                for (sender, into), one in zip(product(senders, inputs), lost.flatten(0, 1), strict=True):
                    found[Arrow(sender, receiver, into)].append(one)
    return {arrow: finite(torch.cat(values), clean) for arrow, values in found.items()}


def _known_arrows(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    senders: Mapping[str, Sequence[Node]],
    receivers: Mapping[str, Sequence[Node]],
    asked: Sequence[Arrow],
    known: Recorded,
) -> dict[Arrow, Float[Tensor, " batch"]]:
    """`arrows`, as far as they are recorded: the key of one is who sends, who receives, and through what."""

    def measure(numbers: list[int], prompts: list[int] | None) -> Tensor:
        some = [asked[number] for number in numbers]
        pops = (clean, corrupted) if prompts is None else (clean.subset(prompts), corrupted.subset(prompts))
        made = arrows(
            model,
            *pops,
            {one.sender: senders[one.sender] for one in some},
            {one.receiver: receivers[one.receiver] for one in some if one.into != "logits"},
            sorted({one.into for one in some} - {"logits"}),
        )
        return torch.stack([made[one] for one in some])

    def who(nodes: Sequence[Node]) -> tuple[Node, ...]:
        return tuple(sorted({(layer, head, place) for layer, head, place in nodes}))

    keys = [(who(senders[a]), into if into == "logits" else who(receivers[b]), into) for a, b, into in asked]
    context = ("arrows", prompt_key(clean), prompt_key(corrupted))
    return dict(zip(asked, known.values(context, keys, len(clean), measure), strict=True))


class _Letters:
    """A few prompts, clean and corrupted, with the families that send and receive.

    Attributes:
        nodes: [layer family batch pos], the heads of each family at each place, bit h for head h.
    """

    def __init__(
        self, model: TransformerBridge, network: Network, pop: Population, other: Population, families: Sequence[Keep]
    ) -> None:
        self.net, self.pop = network, pop
        hooks = [*Suffix.hooks(model), "attn.hook_z", "hook_attn_out"]
        base, self.source = (record(model, one.tokens, one.end, hooks) for one in (pop, other))
        self.suffix = Suffix.proven(network, base, pop.end, torch.ones_like(pop.end))
        self.base, self.n_pos, self.prompts = base, self.suffix.n_pos, torch.arange(len(pop))
        self.nodes = kept_heads(pop, families, network.n_layers, network.n_heads)[..., : self.n_pos]
        self.clean = logit_difference(base.logits, pop)

    def heads(self, layer: int, family: int) -> Bool[Tensor, "batch pos head 1"]:
        """Which heads of one layer belong to a family, at which places."""
        return ((self.nodes[layer, family, ..., None] >> torch.arange(self.net.n_heads)) & 1).bool()[..., None]

    def lost(self, last: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
        """The clean logit difference less that of the stream at END."""
        return self.clean - self.net.logit_difference(last, self.pop.io_ids, self.pop.s_ids)

    def send(self, family: int) -> tuple[Float[Tensor, "layer batch pos d_model"], Float[Tensor, "batch d_model"]]:
        """The stream before each layer when this family sends and other heads are frozen; and at END of the last."""
        streams, first = [], int(self.nodes[:, family].flatten(1).any(1).nonzero()[0])
        for layer in range(self.net.n_layers):
            if layer <= first:
                x = self.base["hook_resid_pre", layer][:, : self.n_pos]
            streams.append(x)
            if layer < first:
                continue
            here = self.heads(layer, family)
            attn_out = self.base["hook_attn_out", layer][:, : self.n_pos]
            if here.any():
                z, new = (run["attn.hook_z", layer][:, : self.n_pos] for run in (self.base, self.source))
                attn_out = self.net.project(layer, torch.where(here, new, z))
            x = x + attn_out
            x = x + self.net.mlp(layer, x)
        return torch.stack(streams), x[self.prompts, self.pop.end]

    def arrives(self, sender: int, receiver: int, into: str) -> bool:
        """Whether layers and positions leave a way; with other heads frozen nothing moves between positions."""
        a, b = self.nodes[:, sender] != 0, self.nodes[:, receiver] != 0  # [layer batch pos]
        above = a.flatten(1).any(1).cummax(0).values[:-1] & b.flatten(1).any(1)[1:]
        here, there = a.any(0), b.any(0)  # [batch pos]
        seen = there.flip(1).cummax(1).values.flip(1)  # this position or one to its right
        return bool(above.any() and (here & (there if into == "q" else seen)).any())

    def receive(
        self, sent: Float[Tensor, "sender layer batch pos d_model"], family: int, inputs: Sequence[str]
    ) -> Float[Tensor, "sender input batch"]:
        """What is lost when the receivers read, by these inputs, the streams that were sent."""
        places = torch.arange(self.n_pos)
        lost = torch.zeros(len(sent), len(inputs), len(self.pop))
        arriving = torch.tensor([[self.arrives(one, family, into) for into in inputs] for one in range(len(sent))])
        if not arriving.any():
            return lost
        layers = self.nodes[:, family].flatten(1).any(1).nonzero()[:, 0].tolist()
        start = torch.where(self.nodes[:, family].any(0), places, self.n_pos).amin(1)
        widths = self.pop.end - start + 1
        for width in widths.unique().tolist():
            prompt = (widths == width).nonzero()[:, 0]
            # A run for each arrow that arrives and each prompt; `row` is its sender and prompt among the streams sent.
            sender, into, one = arriving[..., None].expand(-1, -1, len(prompt)).nonzero().T
            row, run = sender * len(prompt) + one, torch.arange(len(one))[:, None]
            takes = torch.tensor([[name in names for name in "qkv"] for names in inputs])[into]  # [run 3]
            window = self.suffix.window(prompt[one], width)
            at = (prompt[one, None], window)
            x = self.base["hook_resid_pre", layers[0]][at]
            for layer in range(layers[0], self.net.n_layers):
                read = list(self.suffix.inputs(layer, x, window, end_only=False))
                for i, hook in ((1, self.suffix.keys), (2, "attn.hook_v")):  # those before the window are clean
                    before = self.base[hook, layer][prompt[one], : self.n_pos]
                    before[run, window] = read[i]
                    read[i] = before
                allowed = self.suffix.allowed(window)
                z = self.net.attend(read[0], read[1], read[2], allowed)
                if layer in layers:
                    arrived = sent[:, layer, prompt].flatten(0, 1)  # [row pos d_model]
                    new = [part[row] for part in self.suffix.inputs(layer, arrived, places[None], end_only=False)]
                    new[0] = new[0][run, window]
                    q, k, v = (torch.where(takes[:, i, None, None, None], new[i], read[i]) for i in range(3))
                    z = torch.where(self.heads(layer, family)[at], self.net.attend(q, k, v, allowed), z)
                x = x + self.net.project(layer, z)
                x = x + self.net.mlp(layer, x)
            right, wrong = (ids[prompt[one]] for ids in (self.pop.io_ids, self.pop.s_ids))
            value = self.net.logit_difference(x[:, -1], right, wrong)
            lost[sender, into, prompt[one]] = self.clean[prompt[one]] - value
        return lost


class Composition(NamedTuple):
    """How well what one head writes fits what another one reads.

    Attributes:
        score: 0 where nothing that is written is read, at most 1.
        baseline: the mean score of all other pairs of heads of the same two layers.
        rank: the share of these pairs whose score is smaller.
    """

    score: float
    baseline: float
    rank: float


def composition(model: TransformerBridge, sender: Head, receiver: Head, kind: Literal["q", "k", "v"]) -> Composition:
    """The composition score of two heads (Elhage et al. 2021), from weights alone.

    ||W_OV W_read|| / (||W_OV|| ||W_read||) in Frobenius norms, where W_OV = W_V W_O of the sender, and W_read of the
    receiver is W_Q W_K^T for "q", its transpose for "k", and its W_V W_O for "v". Of grouped keys and values each head
    takes those of its group. Vectors are rows, so the sender stands on the left.

    The weights are those that the model runs with. Where compatibility mode has folded the norms' weights into the
    matrices that read, they are in; where it has not, they are multiplied in here. What the norm divides by differs
    from prompt to prompt, and drops out of a ratio. Biases are left out. Rotary positions turn queries and keys by
    their distance; here it is 0.

    Raises:
        PatchError: a sender that isn't in an earlier layer, an unknown kind.
        HeadError: a head that this model does not have.

    Limits: a score says that a way is open, not that anything goes there. Two matrices of low rank in a large space
    score low by themselves, so compare with `baseline`; MLPs between the two do not count.
    """
    check_heads(model, [sender, receiver])
    if sender[0] >= receiver[0]:
        raise PatchError(
            f"from {sender[0]}.{sender[1]} to {receiver[0]}.{receiver[1]}: choose a sender in an earlier layer"
        )
    network = Network(model)
    left, write = (part.cpu().double() for part in _circuits(network, sender[0], "v"))
    read, right = (part.cpu().double() for part in _circuits(network, receiver[0], kind))
    write_norm, read_norm = _norm(left, write), _norm(read, right)  # [head] each
    middle = torch.einsum("sad,rdb->srab", write.transpose(1, 2), read)
    squares = torch.einsum("saA,srab,rbB,srAB->sr", _gram(left), middle, _gram(right), middle)
    scores = squares.clamp(min=0).sqrt() / (write_norm[:, None] * read_norm).clamp(min=1e-30)
    score = scores[sender[1], receiver[1]]
    others = torch.ones_like(scores).bool()
    others[sender[1], receiver[1]] = False
    return Composition(float(score), float(scores[others].mean()), float((scores[others] < score).float().mean()))


def _circuits(
    network: Network, layer: int, kind: str
) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_model d_head"]]:
    """What a layer's heads read by, and what follows: W_V and W_O^T ("v"), W_Q and W_K ("q"), W_K and W_Q ("k")."""
    weights, n = network.layers[layer], (-1, network.d_head)
    scale = weights.norm1[0]

    def reads(linear: Linear) -> Tensor:
        matrix = linear.weight if scale is None else linear.weight * scale
        heads = matrix.unflatten(0, n).transpose(1, 2)
        return heads.repeat_interleave(network.n_heads // len(heads), 0)

    if kind == "v":
        return reads(weights.v), weights.o.weight.unflatten(1, n).transpose(0, 1)
    q, k = reads(weights.q), reads(weights.k)
    return (q, k) if kind == "q" else (k, q)


def _gram(x: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head d_head d_head"]:
    return x.transpose(1, 2) @ x


def _norm(a: Float[Tensor, "head d_model d_head"], b: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, " head"]:
    """The Frobenius norm of a b^T, without the large matrix."""
    return (_gram(a) * _gram(b)).sum((1, 2)).clamp(min=0).sqrt()


guard(globals(), PatchError)
