"""Chapter 09: two sets of heads exchanged together, what the swap alone says, and two signals from four effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode.heads import Head

Heads = Sequence[Head]


def _hook_z(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_z"


def _difference(logits: Tensor, pop: Any) -> Tensor:
    """[batch]: logit(IO) - logit(S) at END, from logits [batch pos d_vocab]."""
    rows = torch.arange(len(pop))
    at_end = logits[rows, pop.end]
    return at_end[rows, pop.io_ids] - at_end[rows, pop.s_ids]


@torch.no_grad()
def _exchanged(
    model: Any, pop: Any, source: Any, heads: Heads, *, every: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Logit differences of `pop`, of `pop` with these heads from `source`, and of `source`, [batch] each.

    One pass gives the first, the last and what the heads write. `every` exchanges all positions.
    """
    kept: dict[str, Tensor] = {}
    layers = sorted({layer for layer, _ in heads})
    columns = torch.arange(pop.tokens.shape[1])
    where = torch.ones_like(pop.tokens, dtype=torch.bool) if every else columns == pop.end[:, None]

    def keep(z: Tensor, hook: Any) -> None:
        kept[hook.name] = z[len(pop) :].clone()

    def put(z: Tensor, hook: Any) -> Tensor:
        z, value = z.clone(), kept[hook.name]
        for layer, head in heads:
            if _hook_z(layer) == hook.name:
                z[:, :, head] = torch.where(where[..., None], value[:, :, head], z[:, :, head])
        return z

    names = [_hook_z(layer) for layer in layers]
    together = model.run_with_hooks(torch.cat([pop.tokens, source.tokens]), fwd_hooks=[(name, keep) for name in names])
    changed = model.run_with_hooks(pop.tokens, fwd_hooks=[(name, put) for name in names])
    clean, theirs = together[: len(pop)], together[len(pop) :]
    return _difference(clean, pop), _difference(changed, pop), _difference(theirs, pop)


def _three(model: Any, pop: Any, source: Any, first: Heads, second: Heads) -> Tensor:
    from labcode import metrics, patching

    clean = metrics.logit_difference(metrics.end_logits(model, pop), pop)
    sets = (first, second, sorted({*first, *second}))
    return torch.stack([clean - patching.exchange(model, pop, source, heads) for heads in sets])


def _three_by_hand(**wrong: bool) -> Callable[..., Tensor]:
    def gives(model: Any, pop: Any, source: Any, first: Heads, second: Heads) -> Tensor:
        losses = []
        for heads in (first, second, [*first, *second]):
            clean, changed, _ = _exchanged(model, pop, source, heads, **wrong)
            losses.append(clean - changed)
        return torch.stack(losses)

    return gives


def _summed(*given: Any) -> Tensor:
    one, other, _ = _three(*given)
    return torch.stack([one, other, one + other])


def _left(model: Any, pop: Any, *given: Any) -> Tensor:
    return _difference(model(pop.tokens), pop) - _three(model, pop, *given)


def _on_the_toy(setting: Setting) -> list[tuple[Any, ...]]:
    """A chain, two heads side by side, and a head that does nothing at END."""
    from labcode import prompts

    toy = setting.toy
    pop = setting.once("08 toy", lambda: prompts.population(toy, 4, seed=2024))
    source = setting.once("08 toy swapped", lambda: prompts.corrupt(toy, pop, "swap"))
    pairs = [([(1, 0)], [(2, 0)]), ([(2, 0)], [(2, 1)]), ([(0, 0)], [(1, 0), (1, 1)])]
    return [(toy, pop, source, first, second) for first, second in pairs]


def _half(model: Any, pop: Any, heads: Heads, *, token: str = "inverted", position: str = "inverted") -> Tensor:
    from labcode import variants

    clean, changed, _ = _exchanged(model, pop, variants.signal_variant(model, pop, token, position), heads)
    return (clean - changed) / 2


def _middle_heads(setting: Setting) -> list[tuple[Any, ...]]:
    """All heads of the middle third, on one prompt: what they say is large on any model, and later heads hear it."""
    cfg = setting.model.cfg
    start = cfg.n_layers // 3
    layers = range(start, max(start + 1, 2 * cfg.n_layers // 3))
    heads = [(layer, head) for layer in layers for head in range(cfg.n_heads)]
    _, toys, *_ = _on_the_toy(setting)[0]
    return [(setting.model, setting.one, heads), (setting.toy, toys, [(1, 0)])]


def _weights(same: float, name: float, place: float, both: float, *, by: float = 4.0) -> dict[str, float]:
    return {"position": (same + name - place - both) / by, "token": (same + place - name - both) / by}


def _exchanged_names(*given: float) -> dict[str, float]:
    found = _weights(*given)
    return {"position": found["token"], "token": found["position"]}


EXERCISES = [
    Exercise(
        number="09.1",
        what="the three losses of each prompt",
        dims="set batch",
        near=0.01,
        takes=("model", "pop", "source", "first", "second"),
        cases=_on_the_toy,
        right=_three,
        says="Heads that work side by side lose the sum. In a chain they do not: a later head that is exchanged itself "
        "no longer hears the earlier one. So compare the joint loss with the sum before you speak of two jobs.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=_summed,
                says="Your third row is the sum of the first two, so it cannot answer the question. Exchange both "
                "sets in one run.",
            ),
            Mistake(
                gives=lambda *given: -_three(*given),
                says="The signs are turned round: a loss is the clean logit difference minus the one with exchanged "
                "heads. It also looks so if pop and source have changed places.",
            ),
            Mistake(
                gives=_left,
                says="These are the logit differences that are left, not what is lost. Take them away from the clean "
                "ones of the same prompts.",
            ),
            Mistake(
                gives=_three_by_hand(every=True),
                says="You exchange the heads at every position. Then a head that works at S2 counts as well: only the "
                "output at pop.end is to come from source.",
            ),
        ],
    ),
    Exercise(
        number="09.2",
        what="half of each prompt's loss",
        dims="batch",
        near=0.01,
        takes=("model", "pop", "heads"),
        cases=_middle_heads,
        right=_half,
        says="That is the broken estimate, done right. Name and place change together in the swap, so half of its loss "
        "is the sum of both weights. Nothing in the number warns you.",
        mistakes=[
            Mistake(
                gives=lambda *given: 2 * _half(*given),
                says="This is the whole loss. The signal goes from +1 to -1, two steps, and a weight is the loss for "
                "one of them: take half.",
            ),
            Mistake(
                gives=lambda *given: -_half(*given),
                says="The sign is turned round: a loss is the clean logit difference minus the one with exchanged "
                "heads.",
            ),
            Mistake(
                gives=lambda *given: _half(*given, position="original"),
                says="You changed the name and kept the place, and that is the good design. To break it, exchange "
                "from the swap: IO at S2, both earlier names as they are.",
            ),
            Mistake(
                gives=lambda *given: _half(*given, token="original"),
                says="You changed the place and kept the name: the first two names have changed places. The swap "
                "leaves them and writes IO at S2.",
            ),
        ],
    ),
    Exercise(
        number="09.3",
        what="a weight",
        near=0.0001,
        takes=("same", "name", "place", "both"),
        cases=lambda setting: [(3.0, 2.6, -0.8, -1.0), (1.5, -2.0, 1.0, -1.9), (0.4, 0.9, 0.1, -0.6)],
        right=_weights,
        says="Each weight is a contrast of two pairs, and each step of a signal is two wide. What the four values have "
        "beyond constant, position and token cancels in both.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=_exchanged_names,
                says="Your two weights have changed places. Position is what is lost where the place is inverted, "
                "whatever the name is.",
            ),
            Mistake(
                gives=lambda *given: _weights(*given, by=2.0),
                says="Your weights are twice too large. From +1 to -1 the signal takes two steps, and a weight is "
                "worth one: halve the mean of the two losses once more.",
            ),
            Mistake(
                gives=lambda *given: _weights(*given, by=-4.0),
                says="The signs are turned round: a signal that helps has a positive weight, and inverting it makes "
                "the logit difference fall.",
            ),
            Mistake(
                gives=lambda same, name, place, both: {"position": (same - place) / 2, "token": (same - name) / 2},
                says="You use three of the four values: each weight comes from one pair. There is a second pair in "
                "which the same signal is inverted; take the mean of both.",
            ),
        ],
    ),
]
