"""Attribution graphs: which part of a change at one token reaches which head, and through which of its inputs.

Two runs are compared that differ in one word: a name at S2 returns in one, and repeats nothing in the other. A *node*
is a part of what is written to the residual stream at S2 or at END: a latent, an error, a head. An *edge* says how much
of the difference in the answer goes directly from one node into one input of another, and from there on to the answer:
what the source writes in the first run less what it writes in the second, times the answer's gradient at the input.

As in Ameisen et al. 2025, norms keep their lengths, and the MLPs that no dictionary takes apart are frozen: what they
write is a node without edges into it, like the error of a dictionary. Attention patterns are *not* frozen. Each head's
queries and keys are inputs beside its values, with the softmax replaced by its gradient (Kamath et al. 2025 attribute
scores, for the same reason). `freeze` takes patterns out too, or lets the MLPs in.

Direct means along the stream: the parts of one token's stream add up, so the edges into one input add up to the
difference of the whole stream there, times the same gradient; `Graph.gap` says how nearly. Gradients are the mean over
three runs, the first, the second and one that starts halfway; in each, norms keep that run's lengths. An edge predicts
what the answer loses if this one input reads its source as in the second run; `Local.measure` makes that run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from labcode.errors import SaeError
from labcode.forward import Linear, Network, Run, Suffix, rotate
from labcode.heads import check_heads
from labcode.inputs import guard
from labcode.latents import encode
from labcode.recorded import prompt_key
from labcode.sae import check_fits, check_latents, hook

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.heads import Node as HeadNode
    from labcode.prompts import Population

ANSWER = "answer"
PLACES = ("S2", "END")
NONE = torch.zeros(0)


@dataclass(frozen=True)
class Node:
    """A part of the stream at one token, a head, or the answer.

    Attributes:
        kind: "latent"; "latents", several together; "error", of a dictionary; "head"; "frozen", what has no edges into
            it; "answer".
        title: for people. place: S2, END, or "elsewhere".
        height: what is written at a height can be read at larger ones. An attention layer has its number, its MLP
            0.5 more.
        family: of a head. number: of a latent. head: layer and head.
    """

    kind: str
    title: str
    place: str
    height: float
    family: str = ""
    number: int = -1
    head: tuple[int, int] = (-1, -1)


class Edge(NamedTuple):
    """From a node to an input of another: "q", "k", "v" of a head, "" of the answer or of a latent."""

    source: Node
    target: Node
    into: str


@dataclass(frozen=True)
class Graph:
    """All edges between the nodes, of each prompt.

    Attributes:
        nodes: every node.
        edges: nats of the answer's difference, [batch].
        total: of each node that writes at S2 or END, its difference times the gradient of the answer: what leaves it by
            all ways, also through heads that are no nodes.
        gap: the largest absolute difference, over inputs and prompts, between the edges into an input and the whole.
        answer: the answer's difference itself, [batch].
    """

    nodes: tuple[Node, ...]
    edges: Mapping[Edge, Float[Tensor, " batch"]]
    total: Mapping[Node, Float[Tensor, " batch"]]
    gap: float
    answer: Float[Tensor, " batch"]

    def strongest(self, n: int) -> list[Edge]:
        """The edges of largest absolute value on the first prompt, strongest first; none that is 0."""
        found = sorted(self.edges, key=lambda edge: -abs(float(self.edges[edge][0])))
        return [edge for edge in found[:n] if float(self.edges[edge][0]) != 0.0]

    def into(self, node: Node) -> Float[Tensor, " batch"]:
        """The sum of the edges into a node, over its inputs."""
        return torch.stack([value for edge, value in self.edges.items() if edge.target == node]).sum(0)


@dataclass
class _Pass:
    """One run from the cut on: streams before each layer, and what each part of a layer writes."""

    before: list[Tensor] = field(default_factory=list)  # [batch pos d_model] each, and the last one behind the last
    z: list[Tensor] = field(default_factory=list)  # [batch pos head d_head]
    mlp: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    logits: Tensor = NONE  # the logit difference, [batch]
    at_z: list[Tensor] = field(default_factory=list)  # gradients of the logit difference: at what heads mix,
    at_out: list[Tensor] = field(default_factory=list)  # at the stream that follows each layer,
    at_start: Tensor = NONE  # at the stream after the cut,
    at_answer: Tensor = NONE  # and at the last stream


class Local:
    """Two runs of some prompts above a dictionary, and the gradients between their parts.

    Args:
        pop: the prompts. other: the same, but for one word before S2.
        sae: takes the stream at S2 apart. layer: at the output of this block.
        named: its latents that become nodes in any case.
        families: heads of later layers that become nodes, each family with (layer, head, place). Places other than S2
            and END, and layers that the dictionary has behind it, are left out; `early` takes those.
        more: so many other latents become nodes of their own, by the size of what leaves them on the first prompt.
        freeze: of "norms", "mlps", "patterns".
        transcoder: a transcoder and its layer: at S2 and END that MLP's writing is taken apart too.
        like: its latents are taken, instead of choosing more; and its runs, where the prompts are the same.
        points: gradients are the mean over runs that start between the two, the first at 1 and the second at 0.

    Raises:
        SaeError: a dictionary that does not fit, or none of whose layers follow.
    """

    start: Tensor
    other_start: Tensor
    early_z: dict[int, Tensor]
    early_mlp: dict[int, Tensor]
    other_z: dict[int, Tensor]
    other_mlp: dict[int, Tensor]
    clean: _Pass
    changed: _Pass

    def __init__(
        self,
        model: TransformerBridge,
        pop: Population,
        other: Population,
        sae: Any,
        layer: int,
        named: Sequence[int],
        families: Mapping[str, Sequence[HeadNode]],
        more: int = 5,
        freeze: Iterable[Literal["norms", "mlps", "patterns"]] = ("norms", "mlps"),
        points: Sequence[float] = (1.0, 0.5, 0.0),
        transcoder: tuple[Any, int] | None = None,
        like: Local | None = None,
    ) -> None:
        check_fits(sae, model, layer)
        if not points:
            raise SaeError("no point at which to take a gradient: give at least one share, 1.0 for the first run")
        if layer + 1 >= model.cfg.n_layers:
            raise SaeError(f"no block follows layer {layer} of {model.cfg.n_layers}: nothing could read the latents")
        check_heads(model, [node[:2] for nodes in families.values() for node in nodes])
        self.model, self.pop, self.sae, self.layer, self.named = model, pop, sae, layer, check_latents(sae, named)
        self.network, self.freeze, self.rows = Network(model), frozenset(freeze), torch.arange(len(pop))
        self.at = {place: pop.positions[place] for place in PLACES}
        self.rotary = "blocks.0.attn.hook_cos" in model.hook_dict
        self.turns: tuple[Tensor, Tensor] | None = None  # cosine and sine of the positions
        self.other = other
        same = like is not None and like.model is model and like.layer == layer
        if like is not None and same:  # on another device than the CPU, prompts come as copies
            same = (prompt_key(like.pop), prompt_key(like.other)) == (prompt_key(pop), prompt_key(other))
        if like is not None and same:
            self.turns = like.turns
            self.start, self.early_z, self.early_mlp = like.start, like.early_z, like.early_mlp
            self.other_start, self.other_z, self.other_mlp = like.other_start, like.other_z, like.other_mlp
        else:
            self.start, self.early_z, self.early_mlp = self._below(pop)
            self.other_start, self.other_z, self.other_mlp = self._below(other)
        self.n_pos = self.start.shape[1]
        self.allowed = torch.tril(torch.ones(self.n_pos, self.n_pos, dtype=torch.bool))[None]
        every = [
            Node("head", f"{at}.{head}", place, at, family, head=(at, head))
            for family, nodes in families.items()
            for at, head, place in nodes
        ]
        self.heads = [node for node in every if node.height > layer and node.place in PLACES]
        self.early = [node for node in every if node.height <= layer and node.place == "S2"]
        self.points = [self._point(share) for share in points]
        made = dict(zip(points, self.points, strict=True))
        if like is not None and same:  # values are the same, whatever gradients see
            made = {1.0: like.clean, 0.0: like.changed} | made
        with torch.no_grad():
            self.clean = made.get(1.0) or self._run(self.start)
            self.changed = made.get(0.0) or self._run(self.other_start)
        self.difference = [a - b for a, b in zip(self.clean.before, self.changed.before, strict=True)]
        self.at_start = _mean([point.at_start for point in self.points])
        self.at_answer = _mean([point.at_answer for point in self.points])
        given = None if like is None else list(like.writes)
        self._latents(more, given)
        if transcoder is not None and transcoder[1] > layer:
            self._mlp_parts(*transcoder, more, given)

    @torch.enable_grad()
    def _point(self, share: float) -> _Pass:
        """A run from between the two, and its gradients."""
        start = (share * self.start + (1 - share) * self.other_start).requires_grad_()
        run = self._run(start, grad=True)
        wanted = [*run.before, *run.z]
        grads = torch.autograd.grad(run.logits.sum(), wanted, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)]
        n = len(run.before)
        run.at_start, run.at_answer = filled[0], filled[n - 1]
        run.at_out, run.at_z = filled[1:n], filled[n:]
        run.before, run.z = [x.detach() for x in run.before], [x.detach() for x in run.z]
        run.logits = run.logits.detach()
        return run

    def _below(self, pop: Population) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """The stream after the cut, and at S2 what each head and each MLP up to it writes."""
        names = [hook(self.layer)]
        here = range(self.layer + 1)
        names += [f"blocks.{i}.{what}" for i in here for what in ("attn.hook_z", "hook_mlp_out")]
        names += [f"blocks.0.attn.hook_{part}" for part in ("cos", "sin")] if self.rotary else []
        with torch.no_grad():
            _, cache = self.model.run_with_cache(pop.tokens, names_filter=names, stop_at_layer=self.layer + 1)
        if self.rotary:
            self.turns = cache["blocks.0.attn.hook_cos"][:1], cache["blocks.0.attn.hook_sin"][:1]
        s2 = pop.positions["S2"]
        z = {i: cache[f"blocks.{i}.attn.hook_z"][self.rows, s2] for i in here}
        mlp = {i: cache[f"blocks.{i}.hook_mlp_out"][self.rows, s2] for i in here if f"blocks.{i}.hook_mlp_out" in cache}
        return cache[hook(self.layer)].detach().clone(), z, mlp

    def norm(self, x: Tensor, like: Tensor, weights: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """The model's norm, with the length that `like` has instead of that of `x`, if norms are frozen."""
        network = self.network
        if "norms" not in self.freeze or not network.norm_kind:
            return network.norm(x, weights)
        like = like.detach()
        if network.norm_kind == "LN":
            x, like = x - x.mean(-1, keepdim=True), like - like.mean(-1, keepdim=True)
        x = x * (like.pow(2).mean(-1, keepdim=True) + network.eps).rsqrt()
        x = x if weights[0] is None else x * weights[0]
        return x if weights[1] is None else x + weights[1]

    def _attention(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores' softmax [batch head query pos], keys and values of normalised inputs at all positions."""
        network = self.network
        q, (k, v) = network.queries(layer, x, self.turns), network.keys_values(layer, x, self.turns)
        group = network.n_heads // network.n_kv_heads
        scores = torch.einsum("bqhd,bphd->bhqp", q, k.repeat_interleave(group, 2)) / network.d_head**0.5
        return scores.masked_fill(~self.allowed[:, None], -torch.inf).softmax(-1), k, v

    def _run(self, x: Tensor, grad: bool = False) -> _Pass:
        network, run = self.network, _Pass()
        with torch.set_grad_enabled(grad):
            for layer in range(self.layer + 1, network.n_layers):
                weights = network.layers[layer]
                run.before.append(x)
                h = self.norm(x, x, weights.norm1) if grad else network.norm(x, weights.norm1)
                pattern, k, v = self._attention(layer, h)
                if "patterns" in self.freeze:
                    pattern = pattern.detach()
                z = network.mix(pattern.transpose(1, 2), v)
                run.z.append(z)
                run.keys.append(k.detach())
                run.values.append(v.detach())
                x = x + network.project(layer, z)
                mlp = self._mlp(layer, x, grad)
                run.mlp.append(mlp.detach())
                x = x + mlp
            run.before.append(x)
            last = x[self.rows, self.at["END"]]
            h = self.norm(last, last, network.final_norm) if grad else network.norm(last, network.final_norm)
            weight, bias = network.unembed
            run.logits = (h * (weight[self.pop.io_ids] - weight[self.pop.s_ids])).sum(-1)
            if bias is not None:
                run.logits = run.logits + bias[self.pop.io_ids] - bias[self.pop.s_ids]
        return run

    def _mlp(self, layer: int, x: Tensor, grad: bool) -> Tensor:
        if not grad or "mlps" in self.freeze:
            with torch.no_grad():
                return self.network.mlp(layer, x.detach())
        network, weights = self.network, self.network.layers[layer]
        if weights.mlp_in is None or weights.mlp_out is None:
            return torch.zeros_like(x)
        h, linear = self.norm(x, x, weights.norm2), torch.nn.functional.linear
        hidden = linear(h, *weights.mlp_in)
        hidden = network.act(hidden) if weights.gate is None else network.act(linear(h, *weights.gate)) * hidden
        return linear(hidden, *weights.mlp_out)

    def _latents(self, more: int, given: Sequence[Node] | None) -> None:
        """Take the difference at S2 apart: latents, those that are no nodes together, and the error."""
        s2, sae = self.at["S2"], self.sae
        code = [encode(sae, x)[self.rows, s2] for x in (self.start, self.other_start)]
        self.code = code[0] - code[1]  # [batch d_sae]
        self.codes = code[0], code[1]
        whole = self.difference[0][self.rows, s2]
        decoder = sae.W_dec.detach()
        self.error = whole - self.code @ decoder
        self.pull = self.at_start[self.rows, s2]  # gradient of the answer at S2
        leaving = self.code * (self.pull @ decoder.T)
        others = leaving[0].abs()
        others[self.named] = 0.0
        chosen = [i for i in others.topk(min(more, len(others))).indices.tolist() if others[i] > 0]
        if given is not None:
            chosen = [node.number for node in given if node.kind == "latent" and not node.family]
        height = self.layer + 0.5
        self.writes: dict[Node, tuple[str, Tensor]] = {}
        for i in [*self.named, *chosen]:
            node = Node("latent", f"latent {i}", "S2", height, "named" if i in self.named else "", i)
            self.writes[node] = "S2", self.code[:, i, None] * decoder[i]
        rest = self.code.clone()
        rest[:, [*self.named, *chosen]] = 0.0
        self.writes[Node("latents", "rest, SAE", "S2", height)] = "S2", rest @ decoder
        self.writes[Node("error", "error, SAE", "S2", height)] = "S2", self.error
        end = self.difference[0][self.rows, self.at["END"]]
        self.writes[Node("frozen", "END before", "END", height)] = "END", end
        for node in self.heads:
            self.writes[node] = node.place, self._written(node)

    def _mlp_parts(self, transcoder: Any, layer: int, more: int, given: Sequence[Node] | None) -> None:
        """Take what one MLP writes apart: the latents that pull most, the rest of the prediction, and the error."""
        here, decoder = layer - self.layer - 1, transcoder.W_dec.detach()
        weights = self.network.layers[layer].norm2
        reads = [self.network.norm(run.before[here + 1] - run.mlp[here], weights) for run in (self.clean, self.changed)]
        grads = _mean([point.at_out[here] for point in self.points])
        for place, at in self.at.items():
            with torch.no_grad():
                x = [read[self.rows, at] for read in reads]
                codes = [transcoder.encode(one) for one in x]
                predicted = [transcoder.decode(code) for code in codes]
                if getattr(transcoder, "W_skip", None) is not None:
                    predicted = [y + one @ transcoder.W_skip.T for y, one in zip(predicted, x, strict=True)]
            code, made = codes[0] - codes[1], predicted[0] - predicted[1]
            whole = (self.clean.mlp[here] - self.changed.mlp[here])[self.rows, at]
            pull = (code[0] * (grads[self.rows, at][0] @ decoder.T)).abs()
            chosen = [i for i in pull.topk(min(more, len(pull))).indices.tolist() if pull[i] > 0]
            if given is not None:
                chosen = [n.number for n in given if n.family == "transcoder" and n.place == place]
            for i in chosen:
                node = Node("latent", f"{i}, MLP {layer}", place, layer + 0.5, "transcoder", i)
                self.writes[node] = place, code[:, i, None] * decoder[i]
            rest = made - code[:, chosen] @ decoder[chosen]
            self.writes[Node("latents", f"rest, MLP {layer}", place, layer + 0.5)] = place, rest
            self.writes[Node("error", f"error, MLP {layer}", place, layer + 0.5)] = place, whole - made

    def _written(self, node: Node) -> Tensor:
        """The difference of what a head writes at its place."""
        layer, head = node.head
        at = self.at[node.place]
        apart = [run.z[layer - self.layer - 1][self.rows, at, head] for run in (self.clean, self.changed)]
        return (apart[0] - apart[1]) @ self.model.W_O[layer, head].detach()

    def _sums(self, height: float, place: str) -> dict[Node, Tensor]:
        """What heads that are no nodes, and the MLPs, write at a place below a height."""
        shape = len(self.pop), self.network.d_model
        heads, mlps = torch.zeros(shape), torch.zeros(shape)
        at = self.at[place]
        for layer in range(self.layer + 1, self.network.n_layers):
            here = layer - self.layer - 1
            if layer < height:
                z = (self.clean.z[here] - self.changed.z[here])[self.rows, at]
                heads += z.flatten(1) @ self.network.layers[layer].o.weight.T
                heads -= sum((self.writes[n][1] for n in self.heads if n.head[0] == layer and n.place == place), 0.0)
            if layer + 0.5 < height:
                mlps += (self.clean.mlp[here] - self.changed.mlp[here])[self.rows, at]
                mlps -= sum((w for n, (at_, w) in self.writes.items() if n.height == layer + 0.5 and at_ == place), 0.0)
        base = self.layer + 0.5
        return {
            Node("frozen", "other heads", place, base): heads,
            Node("frozen", "MLPs", place, base): mlps,
        }

    def _message(self, node: Node, inputs: Mapping[str, Tensor], point: _Pass) -> Tensor:
        """What a head writes at its place, in nats by the gradient there: [batch].

        Args:
            inputs: the stream [batch pos d_model] that its queries, keys and values read.
            point: the run whose lengths the norm keeps, and whose gradient it is.
        """
        layer, head = node.head
        here = layer - self.layer - 1
        weights, like = self.network.layers[layer].norm1, point.before[here]
        row, v = self._looks(node, {name: self.norm(x, like, weights) for name, x in inputs.items()})
        if "patterns" in self.freeze:
            row = row.detach()
        z = torch.einsum("bp,bpd->bd", row, v)
        return (z * point.at_z[here][self.rows, self.at[node.place], head]).sum(-1)

    def _looks(self, node: Node, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Where a head looks from its place [batch pos], and its values [batch pos d_head], of normalised inputs."""
        network, (layer, head) = self.network, node.head
        weights, at, kv = network.layers[layer], self.at[node.place], head // (network.n_heads // network.n_kv_heads)

        def of(linear: Linear, number: int, x: Tensor) -> Tensor:
            one = slice(number * network.d_head, (number + 1) * network.d_head)
            return torch.nn.functional.linear(x, linear.weight[one], None if linear.bias is None else linear.bias[one])

        turn = self.turns and (self.turns[0][0, at], self.turns[1][0, at])  # of each prompt's place
        q = rotate(of(weights.q, head, inputs["q"][self.rows, at])[:, None], turn)[:, 0]  # [batch d_head]
        k = rotate(of(weights.k, kv, inputs["k"])[:, :, None], self.turns)[:, :, 0]  # [batch pos d_head]
        scores = torch.einsum("bd,bpd->bp", q, k) / network.d_head**0.5
        row = scores.masked_fill(torch.arange(self.n_pos) > at[:, None], -torch.inf).softmax(-1)
        return row, of(weights.v, kv, inputs["v"])

    def gradients(self, node: Node) -> dict[str, Tensor]:
        """Of the message of a head: at the stream [batch pos d_model] that each of its inputs reads."""
        found = []
        for point in self.points:
            like = point.before[node.head[0] - self.layer - 1]
            inputs = {name: like.clone().requires_grad_() for name in "qkv"}
            with torch.enable_grad():
                message = self._message(node, inputs, point).sum()
            grads = torch.autograd.grad(message, list(inputs.values()), allow_unused=True)
            found.append([torch.zeros_like(like) if grad is None else grad for grad in grads])
        return {name: _mean(grads) for name, *grads in zip("qkv", *found, strict=True)}

    def graph(self) -> Graph:
        """Every edge between the nodes."""
        edges: dict[Edge, Tensor] = {}
        gap, answer = 0.0, Node("answer", "IO − S", "END", float(self.network.n_layers))
        readers = ((node, into, grad) for node in self.heads for into, grad in self.gradients(node).items())
        for node, into, grad in chain(readers, [(answer, "", self.at_answer)]):
            whole = self.difference[int(node.height) - self.layer - 1]
            found = self._reads(node, whole, grad)
            gap = max(gap, float((sum(found.values()) - (grad * whole).sum((1, 2))).abs().max()))
            edges |= {Edge(source, node, into): value for source, value in found.items()}
        before, upstream = self._upstream()
        edges |= before
        edges = {edge: value for edge, value in edges.items() if value.abs().max() > 0}
        nodes = dict.fromkeys([n for edge in edges for n in (edge.source, edge.target)])
        return Graph(tuple(nodes), edges, self.totals(), max(gap, upstream), self.clean.logits - self.changed.logits)

    def totals(self) -> dict[Node, Tensor]:
        """What leaves each latent, and the error, by all ways: its difference times the gradient at S2."""
        return {
            node: (write * self.pull).sum(-1)
            for node, (place, write) in self.writes.items()
            if place == "S2" and node.height == self.layer + 0.5
        }

    def _reads(self, target: Node, whole: Tensor, grad: Tensor) -> dict[Node, Tensor]:
        """The parts of the stream that a gradient reads, each with its share: [batch]."""
        parts = {
            node: (write * grad[self.rows, self.at[place]]).sum(-1)
            for node, (place, write) in self.writes.items()
            if node.height < target.height
        }
        left = grad.clone()
        for place in PLACES:
            for node, write in self._sums(target.height, place).items():
                parts[node] = (write * grad[self.rows, self.at[place]]).sum(-1)
            left[self.rows, self.at[place]] = 0.0
        parts[Node("frozen", "other words", "elsewhere", self.layer + 0.5)] = (left * whole).sum((1, 2))
        return parts

    def _upstream(self) -> tuple[dict[Edge, Tensor], float]:
        """Edges from the heads before the cut into the latents that were named, and what they leave open.

        A latent that is off in one run did not change by as much as its input, so what arrives is scaled to the change
        of the activation (a secant in place of the gradient).
        """
        edges: dict[Edge, Tensor] = {}
        gap, o = 0.0, [layer.o.weight for layer in self.network.layers]
        apart = {i: self.early_z[i] - self.other_z[i] for i in self.early_z}
        mlps = sum(
            (self.early_mlp[i] - self.other_mlp[i] for i in self.early_mlp),
            torch.zeros(len(self.pop), self.network.d_model),
        )
        whole = self.difference[0][self.rows, self.at["S2"]]
        heads = {n: apart[n.head[0]][:, n.head[1]] @ self.model.W_O[n.head].detach() for n in self.early}
        others = sum((apart[i].flatten(1) @ o[i].T for i in apart), torch.zeros_like(whole)) - sum(heads.values(), 0.0)
        below = {
            **heads,
            Node("frozen", "earlier heads", "S2", 0.0): others,
            Node("frozen", "earlier MLPs", "S2", 0.0): mlps,
        }
        for node, (_, write) in self.writes.items():
            if node.family != "named" or node.kind != "latent":
                continue
            reads, leaves = self.sae.W_enc.detach()[:, node.number], (write * self.pull).sum(-1)
            arrives = whole @ reads
            scale = torch.where(arrives.abs() > 1e-6, leaves / arrives, 0.0)
            found = {source: (change @ reads) * scale for source, change in below.items()}
            gap = max(gap, float((sum(found.values()) - leaves)[scale != 0].abs().max()) if scale.any() else 0.0)
            edges |= {Edge(source, node, ""): value for source, value in found.items()}
        return edges, gap

    def suffix(self) -> Suffix:
        """The first run, as `forward.Suffix` takes it."""
        found: dict[str, Tensor] = {}
        keys = "attn.hook_rot_k" if self.rotary else "attn.hook_k"
        for here, layer in enumerate(range(self.layer + 1, self.network.n_layers)):
            found[f"blocks.{layer}.hook_resid_pre"] = self.clean.before[here]
            found[f"blocks.{layer}.{keys}"] = self.clean.keys[here]
            found[f"blocks.{layer}.attn.hook_v"] = self.clean.values[here]
            if self.turns is not None:
                for i in (0, layer):
                    found[f"blocks.{i}.attn.hook_cos"], found[f"blocks.{i}.attn.hook_sin"] = self.turns
        return Suffix(self.network, Run(found, torch.zeros(0)), self.pop.end)

    def measure(self, edges: Iterable[Edge], dose: float = 1.0) -> dict[Edge, Float[Tensor, " batch"]]:
        """What the answer loses when an edge's source is as in the second run for this one input alone.

        Path patching: one input of the target reads the stream without what the source writes more; its other inputs,
        and all other heads, read what they read. What the head then writes goes into the first run, and everything
        after it runs free. At the answer only the last stream changes, so what is free there is the final norm.

        Args:
            edges: from nodes that write at S2 or END: latents, errors and heads; to heads, and to the answer.
            dose: how much of the source's difference is taken away.

        Raises:
            SaeError: an edge from a node that no run can change, or to a latent.
        """
        found: dict[Edge, Tensor] = {}
        for edge in edges:
            place, write = self._changeable(edge.source)
            if edge.target.kind not in ("head", "answer"):
                raise SaeError(f"{edge.target.title} is no head: only edges to heads and to the answer are measured")
            stream = self.clean.before[int(edge.target.height) - self.layer - 1].clone()
            stream[self.rows, self.at[place]] -= dose * write
            if edge.target.kind == "answer":
                ids = self.pop.io_ids, self.pop.s_ids
                after = self.network.logit_difference(stream[self.rows, self.pop.end], *ids)
            else:
                with torch.no_grad():
                    less = -self._mixed_more(edge.target, edge.into, stream)
                after = self._free(edge.target, less @ self.model.W_O[edge.target.head].detach())
            found[edge] = self.clean.logits - after
        return found

    def by_all_ways(self, source: Node, dose: float = 1.0) -> Float[Tensor, " batch"]:
        """What the answer loses when a source is as in the second run for all that read it, everything after it free.

        Raises:
            SaeError: a node that no run can change.
        """
        return self.clean.logits - self._free(source, dose * self._changeable(source)[1])

    def _changeable(self, source: Node) -> tuple[str, Tensor]:
        if source not in self.writes:
            raise SaeError(f"{source.title} at {source.place} is several things at once: give an edge from another")
        return self.writes[source]

    def _mixed_more(self, node: Node, into: str, stream: Tensor) -> Tensor:
        """What a head mixes at its place when one input reads another stream, less what it did: [batch d_head]."""
        layer, head = node.head
        here, weights = layer - self.layer - 1, self.network.layers[layer].norm1
        normal = dict.fromkeys("qkv", self.network.norm(self.clean.before[here], weights))
        normal[into] = self.network.norm(stream, weights)
        mixed = torch.einsum("bp,bpd->bd", *self._looks(node, normal))
        return mixed - self.clean.z[here][self.rows, self.at[node.place], head]

    def _free(self, source: Node, write: Tensor) -> Tensor:
        """The logit difference when a node writes so much less at its place [batch d_model]."""
        suffix, network = self.suffix(), self.network
        logits = torch.empty(len(self.pop))
        at = self.at[source.place]
        widths = self.pop.end - at + 1
        first = int(source.height) if source.height > self.layer + 0.5 else self.layer + 1
        with torch.no_grad():
            for width in widths.unique().tolist():
                prompt = (widths == width).nonzero()[:, 0]
                window = suffix.window(prompt, width)
                x = self.clean.before[first - self.layer - 1][prompt[:, None], window].clone()
                if source.height < first:
                    x[:, 0] -= write[prompt]
                for layer in range(first, network.n_layers):
                    x = x + suffix.attention(layer, x, prompt, window)
                    if source.kind == "head" and layer == first:
                        x[:, 0] -= write[prompt]
                    x = x + network.mlp(layer, x)
                    if source.height == layer + 0.5:
                        x[:, 0] -= write[prompt]
                ids = self.pop.io_ids[prompt], self.pop.s_ids[prompt]
                logits[prompt] = network.logit_difference(x[:, -1], *ids)
        return logits


def comes_true(
    predicted: Float[Tensor, " edge"], measured: Float[Tensor, " edge"], factor: float = 2.0
) -> Bool[Tensor, " edge"]:
    """Whether what was measured has the sign that was predicted, and differs by no more than a factor."""
    return (
        (predicted * measured > 0)
        & (measured.abs() < factor * predicted.abs())
        & (predicted.abs() < factor * measured.abs())
    )


def by_chance(
    predicted: Float[Tensor, " edge"],
    measured: Float[Tensor, " edge"],
    kinds: Sequence[str] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> Float[Tensor, " draw"]:
    """The share that comes true when the sizes of the predictions are dealt to the edges at random, signs kept.

    Args:
        kinds: of each edge; sizes are dealt only among edges of one kind.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = [""] * len(predicted) if kinds is None else kinds
    groups = [torch.tensor([i for i, kind in enumerate(kinds) if kind == one]) for one in dict.fromkeys(kinds)]
    shares = []
    for _ in range(n):
        dealt = predicted.abs()
        for group in groups:
            dealt[group] = dealt[group[torch.randperm(len(group), generator=generator)]]
        shares.append(comes_true(dealt * predicted.sign(), measured).float().mean())
    return torch.stack(shares)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean(0)


guard(globals(), SaeError)
