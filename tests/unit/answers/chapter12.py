"""Answers to the exercises of chapter 12: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import itertools
import math

import torch


def pool_of(model, heads):
    return len({layer for layer, _ in heads}) * model.cfg.n_heads


def by_formula(model, heads):
    return len(heads) / (2 * pool_of(model, heads) - len(heads))


def from_the_share(model, heads):
    """Each head of the pool is in one set with probability q: in both with q², in either with 2q - q²."""
    q = len(heads) / pool_of(model, heads)
    return torch.tensor(q * q / (2 * q - q * q))


def from_the_whole_model(model, heads):
    pool = model.cfg.n_layers * model.cfg.n_heads
    shared = len(heads) ** 2 / pool
    return shared / (len(heads) + len(heads) - shared)


def edge(effect, threshold):
    return {
        (layer, head)
        for layer, row in enumerate(effect.tolist())
        for head, value in enumerate(row)
        if threshold / 2 <= abs(value) < threshold * 2
    }


def by_sets(effect, threshold):
    low, high = (set(map(tuple, (effect.abs() >= t).nonzero().tolist())) for t in (threshold / 2, threshold * 2))
    return low - high


def as_tensors(effect, threshold):
    flat = [divmod(i, effect.shape[1]) for i in range(effect.numel())]
    return [
        torch.tensor([layer, head])
        for layer, head in flat
        if (abs(effect[layer, head]) >= threshold / 2) != (abs(effect[layer, head]) >= 2 * threshold)
    ]


def by_rolling(looks, acts):
    """Each effect visits each head of its layer once."""
    n = looks.shape[1]
    return sum(int((looks & acts.roll(by, 1)).sum()) for by in range(n)) / n


def layer_by_layer(looks, acts):
    total = 0.0
    for looking, acting in zip(looks.tolist(), acts.tolist(), strict=True):
        total += sum(looking) * sum(acting) / len(looking)
    return torch.tensor(total)


def over_all_orders(looks, acts):
    total, n = 0, looks.shape[1]
    for order in itertools.permutations(range(n)):
        total += int((looks & acts[:, list(order)]).sum())
    return total / math.factorial(n)


def numbered_through(effect, threshold):
    return [layer * effect.shape[1] + head for layer, head in edge(effect, threshold)]


RIGHT = {
    "12.1": [by_formula, from_the_share],
    "12.2": [edge, by_sets, as_tensors],
    "12.3": [by_rolling, layer_by_layer, over_all_orders],
}
WRONG = {
    "12.1": [
        (from_the_whole_model, "all heads of the model"),
        (lambda model, heads: len(heads) / pool_of(model, heads), "the size of one set"),
        (lambda model, heads: len(heads) / pool_of(model, heads) / 2, "sum of the two sizes"),
        (lambda model, heads: (len(heads) / pool_of(model, heads)) ** 2, "all heads that could be drawn"),
        (lambda model, heads: len(heads) ** 2 / pool_of(model, heads), "how many heads the two sets share"),
        (lambda model, heads: 1.0, "no mistake that this check knows"),
    ],
    "12.2": [
        (lambda effect, t: {h for h in edge(effect, t) if effect[h] > 0}, "negative effect are missing"),
        (lambda effect, t: {(head, layer) for layer, head in edge(effect, t)}, "Layer and head are exchanged"),
        (lambda effect, t: {h for h in edge(effect, t) if abs(effect[h]) >= t}, "lose when the threshold doubles"),
        (lambda effect, t: {h for h in edge(effect, t) if abs(effect[h]) < t}, "gain when the threshold is halved"),
        (
            lambda effect, t: [tuple(h) for h in (effect.abs() >= 2 * t).nonzero().tolist()],
            "at all three thresholds",
        ),
        (lambda effect, t: (effect.abs() >= t / 2).nonzero().tolist(), "count at the lower threshold"),
        (numbered_through, "numbered through"),
        (lambda effect, t: [], "no mistake that this check knows"),
    ],
    "12.3": [
        (lambda looks, acts: int(looks.sum()) * int(acts.sum()) / looks.numel(), "over the whole model"),
        (
            lambda looks, acts: sum(bool(a and b) for a, b in zip(looks.flatten(), acts.flatten(), strict=True)),
            "really",
        ),
        (lambda looks, acts: by_rolling(looks.T, acts.T), "You shuffle over layers"),
        (lambda looks, acts: by_rolling(looks, acts) / looks.shape[1], "You add up probabilities"),
        (lambda looks, acts: layer_by_layer(looks, acts) / len(looks), "on average over layers"),
        (lambda looks, acts: layer_by_layer(looks, acts) * looks.shape[1], "You count pairs"),
        (lambda looks, acts: int(looks.sum()), "no mistake that this check knows"),
    ],
}
