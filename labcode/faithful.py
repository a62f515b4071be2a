"""Is it the circuit? Faithfulness, completeness and minimality, as Wang et al. (2022, section 4) define them.

F(C) is the mean logit difference when only the heads of C, at their positions, keep their own output; M is the whole
model. Every measure comes with an interval over draws of prompts. A mean can agree where no prompt does, so
`faithfulness` also compares circuit and model prompt by prompt. `equivalence_test`, `independence_test` and
`minimality_test` ask for more, and say with which probability chance would answer so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from labcode.circuit import Keep, Out, Runner
from labcode.edges import divergence
from labcode.errors import PatchError
from labcode.heads import Head, Node
from labcode.inputs import guard
from labcode.metrics import Interval, bootstrap, bootstrap_ratios, share, share_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge


NEAR = 0.25
"""How far off a prompt may be and still be near, as a share of the model's own logit difference on it."""


@dataclass(frozen=True)
class Faithfulness:
    """How much of the answer a circuit keeps.

    Attributes:
        model: F(M), the mean logit difference of the whole model.
        circuit: F(C).
        share: F(C) / F(M), a ratio of means; it means little where F(M) is near 0.
        gap: F(M) - F(C), in nats; the paper reports its absolute value.
        error: the mean over prompts of |F(C) - F(M)|, in nats: what a prompt is off, where `gap` lets errors cancel.
        near: the share of prompts on which F(C) is within `NEAR` of F(M), above or below.
        correlation: of F(C) and F(M) over prompts; 0 where one of them is the same on all prompts.
        divergence: the mean `edges.divergence` of the circuit from the model, in nats.
        accuracy: the share of prompts on which the circuit prefers IO. model_accuracy: the same of the model.
        n_heads: heads of the circuit, whatever the number of positions at which they act.
    """

    model: Interval
    circuit: Interval
    share: Interval
    gap: Interval
    error: Interval
    near: Interval
    correlation: Interval
    divergence: Interval
    accuracy: Interval
    model_accuracy: Interval
    n_heads: int


@dataclass(frozen=True)
class Incompleteness:
    """What a set K of the circuit's nodes is worth in the model and in the circuit.

    Attributes:
        name: of the set.
        removed: K.
        model: F(M \\ K). circuit: F(C \\ K).
        score: F(M \\ K) - F(C \\ K). Its absolute value is the incompleteness score of the paper; 0 for every K would
            be a complete circuit.
    """

    name: str
    removed: tuple[Node, ...]
    model: Interval
    circuit: Interval
    score: Interval


@dataclass(frozen=True)
class Worth:
    """What one node adds to the circuit once a set K is out.

    Attributes:
        node, family: whose worth it is.
        name: of the set K that was chosen. removed: K itself.
        worth: F(C \\ K) - F(C \\ (K and the node)), on prompts that had no part in choosing K.
        share: the same as a share of F(M).
    """

    node: Node
    family: str
    name: str
    removed: tuple[Node, ...]
    worth: Interval
    share: Interval


def faithfulness(runner: Runner, circuits: Mapping[str, Sequence[Node]]) -> dict[str, Faithfulness]:
    """What each of several circuits keeps of the model's answer (Wang et al. 2022, section 4).

    Raises:
        PatchError: fewer than two draws of prompts, or as `Runner.values`.
    """
    _enough(runner)
    model, *kept = runner.values([Out(), *(Keep(tuple(nodes)) for nodes in circuits.values())])
    draws = runner.draws
    return {
        name: Faithfulness(
            bootstrap(model, draws),
            bootstrap(value, draws),
            ratio(value, model, draws),
            bootstrap(model - value, draws),
            bootstrap((model - value).abs(), draws),
            share_of(within(value, model), draws),
            correlation(value, model, draws),
            bootstrap(divergence(model, value), draws),
            share_of(value > 0, draws),
            share_of(model > 0, draws),
            len({node[:2] for node in nodes}),
        )
        for (name, nodes), value in zip(circuits.items(), kept, strict=True)
    }


def within(value: Float[Tensor, " batch"], model: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Where |value - model| is at most `NEAR` times |model|, prompt by prompt."""
    return (value - model).abs() <= NEAR * model.abs()


def correlation(a: Float[Tensor, " batch"], b: Float[Tensor, " batch"], draws: Int[Tensor, " batch"]) -> Interval:
    """Pearson's correlation over prompts, with Fisher's interval of 95 % for as many observations as there are draws.

    Draws are counted as in `metrics.share_of`; three or fewer tell nothing.
    """
    from scipy.stats import norm

    x, y = (one.double() - one.double().mean() for one in (a, b))
    size = float(x.norm() * y.norm())
    found = float(x @ y) / size if min(float(x.abs().max()), float(y.abs().max())) > 1e-4 else 0.0
    n = len(draws.unique())
    if n < 4:
        return Interval(found, -1.0, 1.0, len(a))
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, found)))
    half = float(norm.ppf(0.975)) / math.sqrt(n - 3)
    return Interval(found, math.tanh(middle - half), math.tanh(middle + half), len(a))


def standard_sets(families: Mapping[str, Sequence[Node]]) -> dict[str, list[Node]]:
    """The sets K that every circuit is asked about: none of it, all of it, and each family.

    Without anything removed, incompleteness is unfaithfulness; with the whole circuit removed it compares what is left
    of the model with no head at all.

    Raises:
        PatchError: no families, or an empty one.
    """
    _filled(families)
    every = [node for nodes in families.values() for node in nodes]
    return {"nothing": [], "the whole circuit": every} | {name: list(nodes) for name, nodes in families.items()}


def completeness(runner: Runner, circuit: Sequence[Node], sets: Mapping[str, Sequence[Node]]) -> list[Incompleteness]:
    """For each set K, what is left of the model and of the circuit without it (Wang et al. 2022, section 4.1).

    Args:
        sets: fixed beforehand, such as `standard_sets`. Sets that are chosen for their score are for `greedy`, which
            measures them on other prompts.

    Raises:
        PatchError: no sets, one that is no part of the circuit, fewer than two draws of prompts, or as `Runner.values`.
    """
    _enough(runner)
    if not sets:
        raise PatchError("no sets of nodes: give at least one")
    for name, removed in sets.items():
        if outside := set(removed) - set(circuit):
            raise PatchError(f"the set {name!r} holds {min(outside)}, no node of the circuit: a K is a part of it")
    states = [state for removed in sets.values() for state in _without(circuit, removed)]
    found = runner.values(states).unflatten(0, (-1, 2))  # [set 2 batch]
    return [
        _incompleteness(name, removed, model, kept, runner.draws)
        for (name, removed), (model, kept) in zip(sets.items(), found, strict=True)
    ]


def greedy(
    runner: Runner, circuit: Sequence[Node], n: int = 4, steps: int = 10, candidates: int = 5, seed: int = 0
) -> list[Incompleteness]:
    """Sets K that are bad for the circuit, each grown one node at a time (Wang et al. 2022, section 4.1).

    At each step some nodes are drawn, and the one is added that makes the incompleteness score largest. All `n`
    searches run side by side. Each ends with the set with the largest score on its way: the worst it has met. Sets are
    grown on one half of the draws; what is returned was measured on the other, where a large score is no longer luck.

    Args:
        candidates: nodes drawn at each step.

    Raises:
        PatchError: an empty circuit, fewer than four draws of prompts, or as `Runner.values`.
    """
    if not circuit:
        raise PatchError("an empty circuit has no subsets to remove")
    choosing = _choosing(runner)
    rng = random.Random(seed)
    grown: list[list[Node]] = [[] for _ in range(n)]
    worst: list[tuple[float, list[Node], Tensor, Tensor]] = []
    for step in range(min(steps, len(circuit))):
        tried: list[tuple[int, list[Node]]] = []
        for number, removed in enumerate(grown):
            left = [node for node in circuit if node not in removed]
            tried += [(number, [*removed, node]) for node in rng.sample(left, min(candidates, len(left)))]
        states = [state for _, removed in tried for state in _without(circuit, removed)]
        model, kept = runner.values(states).unflatten(0, (-1, 2)).unbind(1)
        scores = (model - kept)[:, choosing].mean(-1).abs().tolist()
        for number in range(n):
            best = max((i for i, (owner, _) in enumerate(tried) if owner == number), key=scores.__getitem__)
            grown[number] = tried[best][1]
            entry = scores[best], grown[number], model[best], kept[best]
            if step == 0:
                worst.append(entry)
            elif entry[0] > worst[number][0]:
                worst[number] = entry
    tested = ~choosing
    return [
        _incompleteness(f"greedy {number}", removed, model[tested], kept[tested], runner.draws[tested])
        for number, (_, removed, model, kept) in enumerate(worst, 1)
    ]


def _incompleteness(
    name: str,
    removed: Sequence[Node],
    model: Float[Tensor, " batch"],
    kept: Float[Tensor, " batch"],
    draws: Int[Tensor, " batch"],
) -> Incompleteness:
    model_, kept_, score = (bootstrap(values, draws) for values in (model, kept, model - kept))
    return Incompleteness(name, tuple(removed), model_, kept_, score)


def minimality(runner: Runner, families: Mapping[str, Sequence[Node]]) -> list[Worth]:
    """What each node is worth, once a K is out that makes it matter (Wang et al. 2022, section 4.2).

    Heads of a family stand in for each other, so taking out one alone says little. For each node these K are tried:
    nothing; the rest of its family; each other family; the rest of its family with each other family. The K with the
    largest absolute worth on one half of the draws is chosen, and the worth is measured on the other half.

    Raises:
        PatchError: no families, an empty one, fewer than four draws of prompts, or as `Runner.values`.
    """
    _filled(families)
    choosing = _choosing(runner)
    circuit = [node for nodes in families.values() for node in nodes]
    tried: list[tuple[Node, str, str, tuple[Node, ...]]] = []
    for family, nodes in families.items():
        for node in nodes:
            rest = tuple(other for other in nodes if other != node)
            sets = {"nothing": (), "the rest of its family": rest}
            for name, others in families.items():
                if name != family:
                    sets |= {name: tuple(others), f"the rest and {name}": (*rest, *others)}
            tried += [(node, family, name, removed) for name, removed in sets.items()]
    removals = {frozenset((*removed, *extra)) for node, *_, removed in tried for extra in ((), (node,))}
    order = sorted(removals, key=sorted)
    model, *found = runner.values([Out(), *(Keep(_less(circuit, removed)) for removed in order)])
    value = dict(zip(order, found, strict=True))
    worth: dict[Node, list[tuple[float, str, str, tuple[Node, ...], Tensor]]] = {}
    for node, family, name, removed in tried:
        change = value[frozenset(removed)] - value[frozenset((*removed, node))]
        worth.setdefault(node, []).append((float(change[choosing].mean().abs()), family, name, removed, change))
    rows = []
    for node, choices in worth.items():
        _, family, name, removed, change = max(choices, key=lambda choice: choice[0])
        tested = ~choosing
        rows.append(
            Worth(
                node,
                family,
                name,
                removed,
                bootstrap(change[tested], runner.draws[tested]),
                ratio(change[tested], model[tested], runner.draws[tested]),
            )
        )
    return rows


def random_circuit(
    model: TransformerBridge, nodes: Sequence[Node], seed: int = 0, *, chain: bool = False
) -> list[Node]:
    """As many nodes at the same positions, with heads drawn at random.

    Args:
        chain: draw each head from a layer at most `NEARBY` away from that of the node it replaces, none of them a head
            of the circuit, and keep what the circuit's layers allow: where a node at one position can be read by one at
            a later position (which lies in a later layer), so can the drawn one. Such a circuit has a route for news
            from S1+1 to S2 and from S2 to END; heads from the whole model often have none, and fail for that alone.
            Without, heads come from the whole model.

    Raises:
        PatchError: more nodes at one position than the model has heads; no such chain in a thousand draws.
    """
    rng = random.Random(seed)
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    if chain:
        return _random_chain(heads, nodes, rng)
    drawn: list[Node] = []
    for place in sorted({node[2] for node in nodes}):
        wanted = sum(node[2] == place for node in nodes)
        if wanted > len(heads):
            raise PatchError(f"{wanted} nodes at {place}: this model has {len(heads)} heads")
        drawn += [(*head, place) for head in rng.sample(heads, wanted)]
    return drawn


NEARBY = 2


def _random_chain(heads: Sequence[Head], nodes: Sequence[Node], rng: random.Random) -> list[Node]:
    mine = {node[:2] for node in nodes}
    near = [[h for h in heads if h not in mine and abs(h[0] - node[0]) <= NEARBY] for node in nodes]
    for _ in range(1000):
        drawn: list[Node] = []
        for node, choices in zip(nodes, near, strict=True):
            free = [head for head in choices if (*head, node[2]) not in drawn]
            if free:
                drawn.append((*rng.choice(free), node[2]))
        if len(drawn) == len(nodes) and all(
            then <= now for then, now in zip(_readers(nodes), _readers(drawn), strict=True)
        ):
            return drawn
    raise PatchError(
        f"no random circuit of {len(nodes)} other heads within {NEARBY} layers of these whose later positions can read "
        "the earlier ones: the circuit holds too many of the model's heads"
    )


def _readers(nodes: Sequence[Node]) -> list[set[str]]:
    """For each node, the later positions at which some node lies in a later layer."""
    order = {place: at for at, place in enumerate(("IO", "S1", "S1+1", "S2", "END"))}
    return [
        {
            place
            for layer, _, place in nodes
            if layer > node[0] and order.get(place, -1) > order.get(node[2], len(order))
        }
        for node in nodes
    ]


class Equivalence(NamedTuple):
    """`share`: of draws on which the circuit's score is the larger, with its interval. `p`: of the null."""

    share: Interval
    p: float


def equivalence_test(
    circuit: Float[Tensor, " batch"],
    model: Float[Tensor, " batch"],
    draws: Int[Tensor, " batch"],
    epsilon: float = 0.1,
) -> Equivalence:
    """Is the circuit as often above the model as below it? The equivalence test of Shi et al. 2024 (arXiv 2410.13032).

    Null: |P(F(C) > F(M)) - 1/2| <= `epsilon`, each is about as likely to have the larger score. A small p rejects it:
    circuit and model differ systematically. The statistic is the distance from 1/2 of the share of draws on which the
    circuit is ahead, its distribution that of a coin with 1/2 + `epsilon`. The paper counts prompts; those of a draw
    are not independent, so here a draw counts once, by its mean. Draws that tie are left out.

    Limits: it asks how often, not how far: errors of 3 nats on either side pass. And few draws reject nothing, so a
    large p is no proof of equivalence: read the interval of the share.
    """
    from scipy.stats import binom

    ahead = torch.stack([(circuit - model)[draws == draw].mean() for draw in draws.unique()])
    ahead = ahead[ahead != 0]
    n, k = len(ahead), int((ahead > 0).sum())
    if not n:
        return Equivalence(Interval(0.5, 0.0, 1.0, 0), 1.0)
    far = [i for i in range(n + 1) if abs(2 * i - n) >= abs(2 * k - n)]
    return Equivalence(share(k, n), min(1.0, float(binom.pmf(far, n, 0.5 + epsilon).sum())))


class Dependence(NamedTuple):
    """`hsic`: 0 where the scores are independent, at most 1, which a score has with itself. `p`: of the null."""

    hsic: float
    p: float


def independence_test(
    complement: Float[Tensor, " batch"],
    model: Float[Tensor, " batch"],
    draws: Int[Tensor, " batch"],
    n_permutations: int = 1000,
    seed: int = 0,
) -> Dependence:
    """Does what is left without the circuit still know the task? The independence test of Shi et al. 2024.

    Null: the score of the complement, `Out(circuit)`, is independent of the model's over prompts. A small p rejects it:
    the circuit isn't all there is. The statistic is the Hilbert-Schmidt independence criterion (Gretton et al. 2007,
    "A kernel statistical test of independence") with Gaussian kernels as wide as the median distance, in units of its
    largest value. Its null distribution comes from permutations: draws change places as a whole, with others of as many
    prompts.

    Limits: it finds any dependence. A sentence frame that raises both scores is one, and needs no knowledge of who is
    who.
    """
    k, full = _centred_kernel(complement), _centred_kernel(model)
    size = float(k.norm() * full.norm())
    if size < 1e-9:
        return Dependence(0.0, 1.0)
    members = [(draws == draw).nonzero()[:, 0] for draw in draws.unique()]
    same: dict[int, list[Tensor]] = {}
    for rows in members:
        same.setdefault(len(rows), []).append(rows)
    rng = torch.Generator().manual_seed(seed)
    observed, larger = float((k * full).sum()), 0
    for _ in range(n_permutations):
        order = torch.arange(len(draws))
        for alike in same.values():
            rows = torch.stack(alike)
            order[rows] = rows[torch.randperm(len(rows), generator=rng)]
        larger += float((k * full[order][:, order]).sum()) >= observed - 1e-9 * size
    return Dependence(observed / size, (1 + larger) / (1 + n_permutations))


def _centred_kernel(x: Float[Tensor, " batch"]) -> Float[Tensor, "batch batch"]:
    apart = (x.double()[:, None] - x.double()).abs()
    width = float(apart[apart > 0].median()) if (apart > 0).any() else 1.0
    kernel = (-((apart / width) ** 2) / 2).exp()
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


class Needed(NamedTuple):
    """Whether one node of a circuit does more than a random node would.

    Attributes:
        effect: mean |F(C) - F(C without the node)| over prompts, in nats.
        share: of random nodes whose effect is smaller.
        p: of the null that the node is needed, times the number of nodes in the circuit.
    """

    node: Node
    effect: float
    share: float
    p: float


def minimality_test(
    runner: Runner, circuit: Sequence[Node], n: int = 100, quantile: float = 0.9, seed: int = 0
) -> list[Needed]:
    """Does each node matter more than one that was put in at random? The minimality test of Shi et al. 2024.

    A random node, at a position of the circuit, is added to the circuit and knocked out again: what that changes is
    what a needless node changes. Null, for each node v: its knockout changes more than that of a random node with a
    probability of at least `quantile`. A small p (binomial, Bonferroni over the nodes) rejects it: v is not needed, and
    the circuit is not minimal. The paper tests edges; here a node stands for all edges that it has in the circuit.

    Args:
        n: random nodes, drawn with replacement. With fewer than about 50 nothing is rejected.

    Raises:
        PatchError: an empty circuit, one that holds all heads, or as `Runner.values`.

    Limits: nodes are taken out one at a time, so of two that stand in for each other both can look needless: see
    `minimality`.
    """
    from scipy.stats import binomtest

    cfg, rng = runner.model.cfg, random.Random(seed)
    if not circuit:
        raise PatchError("an empty circuit has no node to test")
    others = [
        (layer, head, place)
        for _, _, place in circuit  # a position counts as often as the circuit uses it
        for layer in range(cfg.n_layers)
        for head in range(cfg.n_heads)
        if (layer, head, place) not in circuit
    ]
    if not others:
        raise PatchError("the circuit holds every head at its positions: no other to compare with")
    added = [rng.choice(others) for _ in range(n)]
    states = [tuple(circuit), *(_less(circuit, [node]) for node in circuit), *((*circuit, node) for node in added)]
    whole, *changed = runner.values([Keep(nodes) for nodes in states])
    effects = [float((whole - value).abs().mean()) for value in changed]
    mine, random_ = effects[: len(circuit)], effects[len(circuit) :]
    rows = []
    for node, effect in zip(circuit, mine, strict=True):
        smaller = sum(effect > other for other in random_)
        p = float(binomtest(smaller, n, quantile, "less").pvalue)
        rows.append(Needed(node, effect, smaller / n, min(1.0, p * len(circuit))))
    return rows


def ratio(part: Float[Tensor, " batch"], whole: Float[Tensor, " batch"], groups: Int[Tensor, " batch"]) -> Interval:
    """The ratio of two means over the same prompts, with a studentised bootstrap over groups.

    Raises:
        PatchError: the mean of `whole` is 0.
    """
    if abs(float(whole.double().mean())) < 1e-6:
        raise PatchError(
            "a share of nothing: the whole model's mean logit difference is 0 on these prompts", see="share-of-nothing"
        )
    return bootstrap_ratios(part[None], whole, groups)[0]


def _without(circuit: Sequence[Node], removed: Iterable[Node]) -> tuple[Out, Keep]:
    gone = tuple(removed)
    return Out(gone), Keep(_less(circuit, gone))


def _less(circuit: Sequence[Node], removed: Iterable[Node]) -> tuple[Node, ...]:
    gone = set(removed)
    return tuple(node for node in circuit if node not in gone)


def _choosing(runner: Runner) -> Bool[Tensor, " batch"]:
    """The prompts that choose K: every other draw. What was chosen is measured on the rest.

    Raises:
        PatchError: fewer than four draws.
    """
    draws = runner.draws.unique()
    if len(draws) < 4:
        raise PatchError(
            f"{len(draws)} draws of prompts are too few: one half chooses K, and the other needs an interval. "
            "Take at least 8 prompts."
        )
    return torch.isin(runner.draws, draws[::2])


def _filled(sets: Mapping[str, Sequence[Node]]) -> None:
    if not sets:
        raise PatchError("no sets of nodes: give at least one")
    for name, nodes in sets.items():
        if not nodes:
            raise PatchError(f"the set {name!r} is empty: leave it out, nothing can be said of it")


def _enough(runner: Runner) -> None:
    n = runner.draws.unique().numel()
    if n < 2:
        raise PatchError(f"{n} draw of prompts is too few for an interval: take at least 4 prompts")


guard(globals(), PatchError)
