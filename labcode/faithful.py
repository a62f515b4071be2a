"""Is it the circuit? Faithfulness, completeness and minimality, as Wang et al. (2022, section 4) define them.

F(C) is the mean logit difference when only the heads of C, at their positions, keep their own output; M is the whole
model. Every measure comes with an interval over draws of prompts. A mean can agree where no prompt does, so
`faithfulness` also compares circuit and model prompt by prompt.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from labcode.circuit import Keep, Out, Runner
from labcode.errors import PatchError
from labcode.heads import Node
from labcode.metrics import Interval, bootstrap, bootstrap_ratios, share

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
        divergence: the mean `divergence` of the circuit from the model, in nats.
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


def within(value: Float[Tensor, " batch"], model: Float[Tensor, " batch"], far: float = NEAR) -> Bool[Tensor, " batch"]:
    """Where |value - model| is at most `far` times |model|, prompt by prompt."""
    return (value - model).abs() <= far * model.abs()


def divergence(p: Float[Tensor, " batch"], q: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """KL(p || q) of IO against S, in nats, from logit differences: the rest of the vocabulary is left out."""
    yes, no = p.sigmoid(), (-p).sigmoid()
    return yes * (F.logsigmoid(p) - F.logsigmoid(q)) + no * (F.logsigmoid(-p) - F.logsigmoid(-q))


def share_of(passed: Bool[Tensor, " batch"], draws: Int[Tensor, " batch"]) -> Interval:
    """The share of prompts that pass: a bootstrap over draws, cut off at 0 and 1.

    Where all or none pass, a bootstrap has no width: there the interval is that of as many draws (`metrics.share`).
    """
    if passed.all() or not passed.any():
        n = len(draws.unique())
        return replace(share(n if passed[0] else 0, n), n=len(passed))
    found = bootstrap(passed.float(), draws)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def correlation(
    a: Float[Tensor, " batch"], b: Float[Tensor, " batch"], draws: Int[Tensor, " batch"], level: float = 0.95
) -> Interval:
    """Pearson's correlation over prompts, with Fisher's interval for as many observations as there are draws.

    Prompts of a draw are not independent, so to count draws is the careful choice. Three or fewer tell nothing.
    """
    from scipy.stats import norm

    x, y = (one.double() - one.double().mean() for one in (a, b))
    size = float(x.norm() * y.norm())
    found = float(x @ y) / size if min(float(x.abs().max()), float(y.abs().max())) > 1e-4 else 0.0
    n = len(draws.unique())
    if n < 4:
        return Interval(found, -1.0, 1.0, len(a))
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, found)))
    half = float(norm.ppf((1 + level) / 2)) / math.sqrt(n - 3)
    return Interval(found, math.tanh(middle - half), math.tanh(middle + half), len(a))


def completeness(runner: Runner, circuit: Sequence[Node], sets: Mapping[str, Sequence[Node]]) -> list[Incompleteness]:
    """For each set K, what is left of the model and of the circuit without it (Wang et al. 2022, section 4.1).

    Raises:
        PatchError: no sets, an empty one, fewer than two draws of prompts, or as `Runner.values`.
    """
    _enough(runner)
    _filled(sets)
    states = [state for removed in sets.values() for state in _without(circuit, removed)]
    found = runner.values(states).unflatten(0, (-1, 2))  # [set 2 batch]
    return [
        Incompleteness(
            name,
            tuple(removed),
            bootstrap(model, runner.draws),
            bootstrap(kept, runner.draws),
            bootstrap(model - kept, runner.draws),
        )
        for (name, removed), (model, kept) in zip(sets.items(), found, strict=True)
    ]


def random_sets(circuit: Sequence[Node], n: int, seed: int = 0) -> list[list[Node]]:
    """`n` sets that hold each node of the circuit with probability one half, none of them empty.

    Raises:
        PatchError: an empty circuit.
    """
    if not circuit:
        raise PatchError("an empty circuit has no subsets to remove", see="empty-circuit")
    rng = random.Random(seed)
    sets: list[list[Node]] = []
    while len(sets) < n:
        chosen = [node for node in circuit if rng.random() < 0.5]
        if chosen:
            sets.append(chosen)
    return sets


def greedy_sets(
    runner: Runner, circuit: Sequence[Node], n: int = 4, steps: int = 10, candidates: int = 5, seed: int = 0
) -> list[list[Node]]:
    """Sets K that are bad for the circuit, each grown one node at a time (Wang et al. 2022, section 4.1).

    At each step some nodes are drawn, and the one is added that makes the incompleteness score largest. All `n`
    searches run side by side. Each returns the set with the largest score on its way: the worst it has met.

    Args:
        candidates: nodes drawn at each step.

    Raises:
        PatchError: an empty circuit.

    Limits: the score of a set that was chosen for its score is the score of the worst case found, no average.
    """
    if not circuit:
        raise PatchError("an empty circuit has no subsets to remove", see="empty-circuit")
    rng = random.Random(seed)
    grown: list[list[Node]] = [[] for _ in range(n)]
    worst: list[tuple[float, list[Node]]] = [(-1.0, [])] * n
    for _ in range(min(steps, len(circuit))):
        tried: list[tuple[int, list[Node]]] = []
        for number, removed in enumerate(grown):
            left = [node for node in circuit if node not in removed]
            tried += [(number, [*removed, node]) for node in rng.sample(left, min(candidates, len(left)))]
        states = [state for _, removed in tried for state in _without(circuit, removed)]
        model, kept = runner.values(states).unflatten(0, (-1, 2)).unbind(1)
        scores = (model - kept).mean(-1).abs().tolist()
        for number in range(n):
            score, grown[number] = max(
                (score, removed) for score, (owner, removed) in zip(scores, tried, strict=True) if owner == number
            )
            worst[number] = max(worst[number], (score, grown[number]))
    return [removed for _, removed in worst]


def minimality(runner: Runner, families: Mapping[str, Sequence[Node]]) -> list[Worth]:
    """What each node is worth, once a K is out that makes it matter (Wang et al. 2022, section 4.2).

    Heads of a family stand in for each other, so taking out one alone says little. For each node these K are tried:
    nothing; the rest of its family; each other family; the rest of its family with each other family. The K with the
    largest absolute worth on one half of the draws is chosen, and the worth is measured on the other half.

    Raises:
        PatchError: no families, an empty one, fewer than four draws of prompts, or as `Runner.values`.
    """
    _filled(families)
    draws = runner.draws.unique()
    if len(draws) < 4:
        raise PatchError(
            f"{len(draws)} draws of prompts are too few: one half chooses K, and the other needs an interval. "
            "Take at least 8 prompts.",
            see="too-few-draws",
        )
    choosing = torch.isin(runner.draws, draws[::2])
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


def random_circuit(model: TransformerBridge, nodes: Sequence[Node], seed: int = 0) -> list[Node]:
    """As many nodes at the same positions, with heads drawn at random from the whole model.

    Raises:
        PatchError: more nodes at one position than the model has heads.
    """
    rng = random.Random(seed)
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    drawn: list[Node] = []
    for place in sorted({node[2] for node in nodes}):
        wanted = sum(node[2] == place for node in nodes)
        if wanted > len(heads):
            raise PatchError(f"{wanted} nodes at {place}: this model has {len(heads)} heads", see="too-few-heads")
        drawn += [(*head, place) for head in rng.sample(heads, wanted)]
    return drawn


def ratio(
    part: Float[Tensor, " batch"],
    whole: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"],
    level: float = 0.95,
) -> Interval:
    """The ratio of two means over the same prompts, with a studentised bootstrap over groups.

    Raises:
        PatchError: the mean of `whole` is 0.
    """
    if abs(float(whole.double().mean())) < 1e-6:
        raise PatchError(
            "a share of nothing: the whole model's mean logit difference is 0 on these prompts", see="share-of-nothing"
        )
    return bootstrap_ratios(part[None], whole, groups, level)[0]


def _without(circuit: Sequence[Node], removed: Iterable[Node]) -> tuple[Out, Keep]:
    gone = tuple(removed)
    return Out(gone), Keep(_less(circuit, gone))


def _less(circuit: Sequence[Node], removed: Iterable[Node]) -> tuple[Node, ...]:
    gone = set(removed)
    return tuple(node for node in circuit if node not in gone)


def _filled(sets: Mapping[str, Sequence[Node]]) -> None:
    if not sets:
        raise PatchError("no sets of nodes: give at least one", see="empty-circuit")
    for name, nodes in sets.items():
        if not nodes:
            raise PatchError(f"the set {name!r} is empty: leave it out, nothing can be said of it", see="empty-circuit")


def _enough(runner: Runner) -> None:
    n = runner.draws.unique().numel()
    if n < 2:
        raise PatchError(
            f"{n} draw of prompts is too few for an interval: take at least 4 prompts", see="too-few-draws"
        )
