"""Chapter 11: pruning a circuit, a circuit without heads, and the three measures as functions of F, edges counted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode.heads import Head

Worth = Mapping[Head, tuple[float, float, float]]


def _pruned(
    worth: Worth, whole: float, *, against: bool = False, interval: bool = True, share: bool = True
) -> list[Head]:
    least = 0.01 * (abs(whole) if share else 1.0)
    kept = []
    for head, (mean, low, high) in worth.items():
        large = (abs(mean) if against else mean) >= least
        clear = (low * high > 0) if against else low > 0
        if large and (clear or not interval):
            kept.append(head)
    return kept


def _worths(setting: Setting) -> list[tuple[Worth, float]]:
    """Heads that pass, that are too small or not clear, and that work against the answer; both signs of F(M)."""
    mixed = {
        (2, 1): (0.5, 0.3, 0.7),
        (3, 0): (0.02, 0.01, 0.03),
        (5, 4): (0.2, -0.1, 0.5),
        (6, 2): (-0.4, -0.6, -0.2),
        (7, 7): (-0.3, -0.7, 0.1),
        (8, 3): (0.036, 0.02, 0.05),
    }
    small = {(0, 0): (0.02, 0.01, 0.03), (1, 1): (0.004, 0.001, 0.007), (1, 2): (-0.05, -0.07, -0.03)}
    return [(mixed, 3.5), (small, 1.2), (mixed, -3.5)]


@torch.no_grad()
def _emptied(model: Any, pop: Any, reference: Any, *, mean: str = "template") -> Tensor:
    """[batch]: the logit difference with the mean in place of every head's output, or with one thing wrong."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(reference.tokens, names_filter=names, return_type=None)
    shared = torch.tensor([[p.template == other.template for other in reference.prompts] for p in pop.prompts]).float()
    if mean == "position":
        shared = torch.ones_like(shared)
    weight = shared / shared.sum(1, keepdim=True)  # [batch reference]

    def put(z: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(z) if mean == "zero" else torch.einsum("br,rphd->bphd", weight, cache[hook.name])

    logits = model.run_with_hooks(pop.tokens, fwd_hooks=[(name, put) for name in names])
    rows = torch.arange(len(pop))
    return logits[rows, pop.end, pop.io_ids] - logits[rows, pop.end, pop.s_ids]


@torch.no_grad()
def _untouched(model: Any, pop: Any, reference: Any) -> Tensor:
    logits, rows = model(pop.tokens), torch.arange(len(pop))
    return logits[rows, pop.end, pop.io_ids] - logits[rows, pop.end, pop.s_ids]


def _references(setting: Setting) -> list[tuple[Any, ...]]:
    """One that is blind, on the reader's model; on the toy one that knows, and one that knows the opposite."""
    from labcode import prompts

    toy, model = setting.toy, setting.model
    alone = setting.pop.subset([0])

    def half() -> Any:
        # Several sentence frames, and some of them twice: with LAB_PROMPTS there would be too few, so they are built.
        drawn = [prompts.population(toy, 4, seed=seed, templates=prompts.TEMPLATES[:3]) for seed in (1, 2, 3)]
        return prompts.build(toy, [prompt for pop in drawn for prompt in pop.prompts[::2]])

    some = setting.once("10 half", half)
    return [
        (model, alone, setting.once("10 abc", lambda: prompts.corrupt(model, alone, "abc", seed=2024))),
        (toy, some, some),
        (toy, some, setting.once("10 swapped", lambda: prompts.corrupt(toy, some, "swap"))),
    ]


Nodes = Iterable[Any]
Measure = Callable[[Nodes], float]


def _machine(seed: int) -> Measure:
    """A made-up F: every node writes something, and some write only while another one is out."""

    def f(nodes: Nodes) -> float:
        kept, draw = set(nodes), random.Random(seed)
        own = [draw.uniform(-1, 2) for _ in range(8)]
        spare = [(draw.uniform(-1, 2), draw.randrange(8), draw.randrange(8)) for _ in range(6)]
        value = sum(own[node] for node in kept)
        return value + sum(more for more, one, other in spare if one in kept and other not in kept)

    return f


def _measures(f: Measure, m: set[Any], c: set[Any], k: set[Any], v: Any) -> dict[str, float]:
    return {
        "faithfulness": abs(f(m) - f(c)),
        "incompleteness": abs(f(m - k) - f(c - k)),
        "minimality": abs(f(c - k) - f(c - (k | {v}))),
    }


def _but(key: str, wrong: Callable[..., float]) -> Callable[..., dict[str, float]]:
    """The right measures, with one of them wrong."""
    return lambda *given: _measures(*given) | {key: wrong(*given)}


def _signed(f: Measure, m: set[Any], c: set[Any], k: set[Any], v: Any) -> dict[str, float]:
    return {
        "faithfulness": f(m) - f(c),
        "incompleteness": f(m - k) - f(c - k),
        "minimality": f(c - k) - f(c - (k | {v})),
    }


Kept = Iterable[tuple[Any, Any]]


def _between(kept: Kept, senders: set[Head], receivers: set[Head], *, which: str = "both") -> dict[str, int]:
    counted = {"q": 0, "k": 0, "v": 0}
    for source, into in kept:
        if not isinstance(into, tuple):
            continue
        sent, received = source in senders, into[:2] in receivers
        if {"both": sent and received, "sender": sent, "receiver": received, "either": sent or received}[which]:
            counted[into[2]] += 1
    return counted


def _edges(setting: Setting) -> list[tuple[Any, ...]]:
    """Edges among a few heads, MLPs and the ends, with heads that are in neither set."""
    found = []
    for seed in (1, 2, 3):
        draw = random.Random(seed)
        heads = [(layer, head) for layer in range(6) for head in range(3)]
        sources = [*heads, "embed", "mlp 1", "mlp 3"]
        intos = [*((*head, into) for head in heads for into in "qkv"), "logits", "mlp 4"]
        kept = draw.sample([(source, into) for source in sources for into in intos], 400)
        found.append((kept, set(heads[: 6 + seed]), set(heads[8:])))
    return found


EXERCISES = [
    Exercise(
        number="11.1",
        what="the heads that are kept, (layer, head) each",
        takes=("worth", "whole"),
        cases=_worths,
        right=lambda worth, whole: set(_pruned(worth, whole)),
        says="These heads work for the answer, clearly and by enough. If a circuit of them alone has a "
        "larger share, that is no gain: the model has the others too.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda *given: _pruned(*given, against=True),
                says="You keep heads that work against the answer. They are needed, by the test of minimality, but "
                "here they are to go as well: their worth is below zero.",
            ),
            Mistake(
                gives=lambda *given: _pruned(*given, interval=False),
                says="You look at the mean alone. Where the interval reaches across zero, the sign is not known: its "
                "low end has to be above zero.",
            ),
            Mistake(
                gives=lambda *given: _pruned(*given, share=False),
                says="Your threshold is in nats. It is to be a hundredth of what the whole model has, so divide the "
                "worth by F(M), or multiply the threshold.",
            ),
            Mistake(
                gives=lambda worth, whole: [head for head, (_, low, _) in worth.items() if low > 0],
                says="You look at the interval alone. A head can be clearly above zero and still be worth next to "
                "nothing: ask for a hundredth of F(M) too.",
            ),
        ],
    ),
    Exercise(
        number="11.2",
        what="the logit difference of each prompt",
        dims="batch",
        near=0.01,
        takes=("model", "pop", "reference"),
        cases=_references,
        right=_emptied,
        says="With no head kept, all that the answer can know comes from the reference. One that knows gives some of "
        "it back: so run the empty circuit before you believe a full one.",
        mistakes=[
            Mistake(
                gives=_untouched,
                says="This is the whole model, nothing was replaced. A hook has to return the new tensor, and it must "
                "be on hook_z of every layer.",
            ),
            Mistake(
                gives=lambda model, pop, reference: _emptied(model, pop, pop),
                says="Your means come from the prompts themselves, and those know the answer. Run the reference, and "
                "take its outputs.",
            ),
            Mistake(
                gives=lambda *given: _emptied(*given, mean="zero"),
                says="You put zero in place of the heads' output. Then what they write in every such sentence goes "
                "too: put the mean over the reference.",
            ),
            Mistake(
                gives=lambda *given: _emptied(*given, mean="position"),
                says="Your mean runs over all reference prompts. Other sentence frames have other words at that place: "
                "take only prompts with the same template.",
            ),
        ],
    ),
    Exercise(
        number="11.3",
        what="a distance",
        near=0.0001,
        takes=("F", "M", "C", "K", "v"),
        cases=lambda setting: [
            (_machine(1), set(range(8)), {0, 1, 2, 3, 4}, {1, 2}, 3),
            (_machine(2), set(range(8)), {1, 3, 4, 6, 7}, {4}, 6),
            (_machine(3), set(range(7)), {0, 2, 5, 6}, {0, 6}, 2),
        ],
        right=_measures,
        says="Three questions, one F. For the first two small is good, for the last one large is.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=_signed,
                says="The sizes are right, but a measure is a distance: a circuit that does too well is as far off as "
                "one that does too badly. Take absolute values.",
            ),
            Mistake(
                gives=_but("faithfulness", lambda f, m, c, k, v: f(c) / f(m)),
                says="Your faithfulness is the share F(C) / F(M). This exercise asks for the paper's measure, the "
                "distance of the two.",
            ),
            Mistake(
                gives=_but("incompleteness", lambda f, m, c, k, v: abs(f(m) - f(c - k))),
                says="For incompleteness you take K out of the circuit alone. The model has to lose the same heads, or "
                "you measure what K is worth.",
            ),
            Mistake(
                gives=_but("incompleteness", lambda f, m, c, k, v: abs(f(m & k) - f(c & k))),
                says="For incompleteness you keep K and take out the rest. K is what is knocked out: M without K, and "
                "C without K.",
            ),
        ],
    ),
    Exercise(
        number="11.4",
        what="how many edges",
        near=0.0001,
        takes=("kept", "senders", "receivers"),
        cases=_edges,
        right=_between,
        says="An arrow between families is many edges. How many there are says nothing of how much they carry.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda *given: _between(*given, which="sender"),
                says="You count every edge that leaves a sender. Ask also where it ends: in a head of the receivers.",
            ),
            Mistake(
                gives=lambda *given: _between(*given, which="receiver"),
                says="You count every edge into a receiver, from MLPs and other heads too. Ask also where it begins.",
            ),
            Mistake(
                gives=lambda *given: _between(*given, which="either"),
                says="You count edges with one end in the sets. Both ends have to be there.",
            ),
            Mistake(
                gives=lambda kept, senders, receivers: _between(kept, receivers, senders),
                says="You have exchanged the two ends: an edge goes from its source into a later head.",
            ),
        ],
    ),
]
