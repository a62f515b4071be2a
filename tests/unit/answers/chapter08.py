"""Answers to the exercises of chapter 08: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from labcode import metrics, patching, prompts, variants


def difference(model, pop):
    return metrics.logit_difference(metrics.end_logits(model, pop), pop)


def put_at_end(z, hook, pop, heads, stored):
    z, rows = z.clone(), range(len(pop))
    for layer, head in heads:
        if f"blocks.{layer}." in hook.name:
            z[rows, pop.end, head] = stored[hook.name][rows, pop.end, head]
    return z


def put_everywhere(z, hook, pop, heads, stored):
    z = z.clone()
    for layer, head in heads:
        if f"blocks.{layer}." in hook.name:
            z[:, :, head] = stored[hook.name][:, :, head]
    return z


def exchanged(model, pop, source, heads, put=put_at_end):
    names = [f"blocks.{layer}.attn.hook_z" for layer in {layer for layer, _ in heads}]
    _, stored = model.run_with_cache(source.tokens, names_filter=names)
    hook = partial(put, pop=pop, heads=heads, stored=stored)
    with model.hooks(fwd_hooks=[(name, hook) for name in names]):
        return difference(model, pop)


def three_by_hand(model, pop, source, first, second, put=put_at_end):
    clean = difference(model, pop)
    return torch.stack([clean - exchanged(model, pop, source, s, put) for s in (first, second, [*first, *second])])


def three_by_library(model, pop, source, first, second):
    lost = [
        (difference(model, pop) - patching.exchange(model, pop, source, members)).tolist()
        for members in (first, second, sorted({*first, *second}))
    ]
    return np.array(lost)


def three_summed(model, pop, source, first, second):
    one, other, _ = three_by_hand(model, pop, source, first, second)
    return torch.stack([one, other, one + other])


def three_trapped(model, pop, source, first, second):
    lost = []
    for heads in (first, second, [*first, *second]):
        layers = sorted({layer for layer, _ in heads})
        names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
        _, stored = model.run_with_cache(source.tokens, names_filter=names)
        hooks = []
        for layer in layers:
            name = f"blocks.{layer}.attn.hook_z"
            mine = [head for one, head in heads if one == layer]

            def put(z, hook, mine=mine):
                z = z.clone()
                for head in mine:
                    z[range(len(pop)), pop.end, head] = stored[name][range(len(pop)), pop.end, head]  # noqa: B023
                return z

            hooks.append((name, put))
        with model.hooks(fwd_hooks=hooks):
            lost.append(difference(model, pop))
    return torch.stack([difference(model, pop) - one for one in lost])


def half(model, pop, heads, token="inverted", position="inverted"):
    source = variants.signal_variant(model, pop, token, position)
    return (difference(model, pop) - patching.exchange(model, pop, source, heads)) / 2


def half_by_hand(model, pop, heads, put=put_at_end):
    swapped = prompts.corrupt(model, pop, "swap")
    return 0.5 * difference(model, pop) - 0.5 * exchanged(model, pop, swapped, heads, put)


def half_of_the_model(model, pop, heads):
    return (difference(model, pop) - difference(model, prompts.corrupt(model, pop, "swap"))) / 2


def by_fit(same, name, place, both):
    values = {
        ("original", "original"): same,
        ("inverted", "original"): name,
        ("original", "inverted"): place,
        ("inverted", "inverted"): both,
    }
    found = variants.fit_signals({key: torch.tensor([value]) for key, value in values.items()})
    return {key: found[key] for key in ("position", "token")}


def by_pairs(same, name, place, both):
    return {
        "token": ((same - name) / 2 + (place - both) / 2) / 2,
        "position": np.mean([(same - place) / 2, (name - both) / 2]),
    }


def turned(function, factor):
    return lambda *given: {key: factor * float(value) for key, value in function(*given).items()}


RIGHT = {
    "08.1": [three_by_hand, three_by_library],
    "08.2": [half, half_by_hand],
    "08.3": [by_fit, by_pairs],
}
WRONG = {
    "08.1": [
        (three_summed, "sum of the first two"),
        (lambda *given: -three_by_hand(*given), "turned round"),
        (
            lambda model, pop, source, first, second: three_by_hand(model, source, pop, first, second),
            "pop and source have changed places",
        ),
        (lambda model, pop, *given: difference(model, pop) - three_by_hand(model, pop, *given), "that are left"),
        (partial(three_by_hand, put=put_everywhere), "every position"),
        (three_trapped, "last of the loop"),
    ],
    "08.2": [
        (lambda *given: 2 * half(*given), "whole loss"),
        (lambda *given: -half(*given), "turned round"),
        (partial(half, position="original"), "kept the place"),
        (partial(half, token="original"), "kept the name"),
        (half_of_the_model, "whole model loses"),
        (partial(half_by_hand, put=put_everywhere), "at every position"),
    ],
    "08.3": [
        (lambda s, n, p, b: by_fit(s, p, n, b), "changed places"),
        (turned(by_fit, 2), "twice too large"),
        (turned(by_pairs, -1), "turned round"),
        (lambda s, n, p, b: {"position": (s - p) / 2, "token": (s - n) / 2}, "three of the four"),
        (lambda s, n, p, b: dict.fromkeys(("position", "token"), (s - b) / 2), "gave it to each"),
        (lambda s, n, p, b: {"position": s - p, "token": s - n}, "no mistake that this check knows"),
    ],
}
