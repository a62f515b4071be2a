"""Answers to the exercises of chapter 05: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch

from labcode import metrics
from labcode.attribution import attribution


def restored(patched, clean, corrupted):
    return metrics.restoration(patched, clean, corrupted)


def in_a_loop(patched, clean, corrupted):
    gap = float(clean.mean() - corrupted.mean())
    return sum(float(row.mean() - corrupted.mean()) / gap for row in patched.flatten(0, 1))


def name(layer):
    return f"blocks.{layer}.attn.hook_z"


def difference(model, pop, hooks=()):
    logits = model.run_with_hooks(pop.tokens, fwd_hooks=list(hooks))
    at_end = [row[end] for row, end in zip(logits, pop.end, strict=True)]
    return torch.stack([row[io] - row[s] for row, io, s in zip(at_end, pop.io_ids, pop.s_ids, strict=True)])


def by_table(model, pop, reference, heads, place):
    """One hook a layer, with all heads of that layer."""
    values = {}
    for layer, head in heads:
        _, cache = model.run_with_cache(reference.tokens)
        z = cache[name(layer)]
        values.setdefault(layer, {})[head] = sum(
            z[i, reference.positions[place][i], head] for i in range(len(reference))
        ) / len(reference)

    def swap(z, hook):
        for head, value in values[int(hook.name.split(".")[1])].items():
            for i in range(len(pop)):
                z[i, pop.positions[place][i], head] = value
        return z

    return difference(model, pop, [(name(layer), swap) for layer in values])


def knocked(model, pop, reference, heads, place, value=None, shift=0):
    _, cache = model.run_with_cache(reference.tokens)
    rows = torch.arange(len(pop))
    hooks = []
    for layer, head in heads:
        z = cache[name(layer)]
        mean = z[rows, reference.positions[place]].mean(0) if value is None else value(z, reference, place)

        def put(z, hook, head=head, mean=mean):
            z = z.clone()
            z[rows, pop.positions[place] + shift, head] = mean[..., head, :]
            return z

        hooks.append((name(layer), put))
    return difference(model, pop, hooks)


def trapped(model, pop, reference, heads, place):
    _, cache = model.run_with_cache(reference.tokens)
    rows = torch.arange(len(pop))
    hooks = []
    for layer, head in heads:

        def put(z, hook):  # it reads the last layer's head, whenever it runs: the mistake
            seen = cache[hook.name][rows, reference.positions[place], head]  # noqa: B023
            z[rows, pop.positions[place], head] = seen.mean(0)  # noqa: B023
            return z

        hooks.append((name(layer), put))
    return difference(model, pop, hooks)


def everywhere(model, pop, reference, heads, place):
    _, cache = model.run_with_cache(reference.tokens)
    rows = torch.arange(len(pop))

    def put(head):
        def hook_function(z, hook):
            z[:, :, head] = cache[hook.name][rows, reference.positions[place], head].mean(0)
            return z

        return hook_function

    return difference(model, pop, [(name(layer), put(head)) for layer, head in heads])


def all_positions_mean(z, reference, place):
    kept = [z[i, 1:length] for i, length in enumerate(reference.lengths.tolist())]
    return torch.cat(kept).mean(0)


def whole_layer(model, pop, reference, heads, place):
    every = [(layer, head) for layer, _ in heads for head in range(model.cfg.n_heads)]
    return knocked(model, pop, reference, every, place)


def leaves_hooks(model, pop, reference, heads, place):
    for layer, _ in heads:
        model.hook_dict[name(layer)].add_hook(lambda z, hook: z * 0)
    return difference(model, pop)


def with_library(model, clean, corrupted, layer):
    grid = attribution(model, clean, corrupted, "z", layers=[layer])
    return (grid.values - grid.corrupted)[0].T


def by_hand(model, clean, corrupted, layer, slope_at="corrupted", pick=lambda p, pop: p.sum(1), step=None):
    z = {}
    runs = {"clean": clean, "corrupted": corrupted}
    slope = None
    for which, pop in runs.items():

        def watch(value, hook, which=which):
            z[which] = value.clone().requires_grad_()
            return z[which]

        with torch.enable_grad():
            logits = model.run_with_hooks(pop.tokens, fwd_hooks=[(name(layer), watch)])
            if which == slope_at:
                at_end = logits[range(len(pop)), pop.end]
                total = (at_end.gather(1, clean.io_ids[:, None]) - at_end.gather(1, clean.s_ids[:, None])).sum()
                total.backward()
                slope = z[which].grad
    step = z["clean"] - z["corrupted"] if step is None else step(z)
    return pick(torch.einsum("bphd,bphd->bph", slope, step).detach(), clean)


def shares(model, clean, corrupted, layer):
    return attribution(model, clean, corrupted, "z", layers=[layer]).restoration()[0].T


RIGHT = {
    "05.1": [lambda *runs: restored(*runs).mean(-1).sum(), in_a_loop],
    "05.2": [by_table, knocked],
    "05.3": [with_library, by_hand],
}
WRONG = {
    "05.1": [
        (lambda patched, clean, corrupted: ((patched - corrupted) / (clean - corrupted)).sum((0, 1)).mean(), "own gap"),
        (lambda *runs: restored(*runs).mean(), "average effect of a head"),
        (lambda *runs: restored(*runs).mean(-1).abs().sum(), "You added sizes"),
        (lambda *runs: sum(x for x in restored(*runs).mean(-1).flatten() if x > 0), "positive effects alone"),
        (lambda *runs: (restored(*runs) - 1).mean(-1).sum(), "from the clean run"),
        (lambda patched, clean, corrupted: (patched - corrupted).sum() / len(clean), "units of the logit difference"),
        (lambda patched, clean, corrupted: 1.0, "no mistake that this check knows"),
        (lambda *runs: restored(*runs).mean(-1), "one number"),
    ],
    "05.2": [
        (trapped, "closure trap"),
        (everywhere, "at all positions"),
        (lambda *args: knocked(*args, value=lambda z, *_: 0 * z[0, 0]), "You write zeros"),
        (lambda *args: knocked(*args, value=all_positions_mean), "goes over positions too"),
        (lambda *args: knocked(*args, shift=-1), "one position too early"),
        (whole_layer, "all heads of the layers"),
        (
            lambda *args: knocked(
                *args, value=lambda z, reference, place: z[range(len(z)), reference.positions[place]]
            ),
            "its own reference prompt",
        ),
        (lambda *args: knocked(*args) - difference(*args[:2]), "no mistake that this check knows"),
        (leaves_hooks, "hooks on the model"),
    ],
    "05.3": [
        (lambda *args: by_hand(*args, slope_at="clean"), "that of the clean run"),
        (lambda *args: -with_library(*args), "turned round"),
        (lambda *args: by_hand(*args, pick=lambda p, pop: p[range(len(p)), pop.end]), "You count END alone"),
        (lambda *args: by_hand(*args, step=lambda z: z["clean"]), "the clean z itself"),
        (lambda *args: by_hand(*args, pick=lambda p, pop: p.mean(1)), "mean over positions"),
        (shares, "divided by the gap"),
        (lambda *args: with_library(*args).T, "shape"),
    ],
}
