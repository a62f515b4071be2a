"""Answers to the exercises of chapter 10: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import math
from functools import partial

import torch

from labcode import circuit, metrics


def by_share(worth, whole):
    return [head for head, (mean, low, _) in worth.items() if mean / abs(whole) >= 0.01 and low > 0]


def by_leaving_out(worth, whole):
    kept = set(worth)
    for head, (mean, low, high) in worth.items():
        if mean < 0 or low <= 0 <= high or mean < abs(whole) / 100:
            kept.discard(head)
    return kept


def needed(worth, whole):
    return [head for head, (mean, low, high) in worth.items() if abs(mean / whole) >= 0.01 and low * high > 0]


def by_bench(model, pop, reference):
    return circuit.Runner(model, pop, reference).values([circuit.Keep()])[0]


def by_hooks(model, pop, reference, means="template", late=False):
    """One prompt at a time, the mean made with a loop over the reference."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(reference.tokens, names_filter=names)
    found = []
    for number, prompt in enumerate(pop.prompts):
        alone = pop.subset([number])
        width = alone.tokens.shape[1]
        twins = [
            i for i, other in enumerate(reference.prompts) if means != "template" or other.template == prompt.template
        ]

        def replace(z, hook, name, twins=twins, width=width):
            value = cache[name][twins].mean(0)[:width]
            if means == "everything":
                real = [cache[name][i, 1 : int(reference.lengths[i])] for i in range(len(reference))]
                value = torch.cat(real).mean(0)
            z = z.clone()
            z[0, 1:] = 0 if means == "zero" else value if means == "everything" else value[1:]
            return z

        hooks = [(name, partial(replace, name=names[-1] if late else name)) for name in names]
        with model.hooks(fwd_hooks=hooks):
            found.append(metrics.logit_difference(metrics.end_logits(model, alone), alone))
    return torch.cat(found)


def at_last_column(model, pop, reference):
    """All prompts at once, the means put together with a dictionary."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(reference.tokens, names_filter=names)
    frames = [prompt.template for prompt in reference.prompts]

    def replace(z, hook):
        mean = {t: cache[hook.name][[i for i, f in enumerate(frames) if f == t]].mean(0) for t in set(frames)}
        return torch.stack([mean[prompt.template] for prompt in pop.prompts])

    logits = model.run_with_hooks(pop.tokens, fwd_hooks=[(name, replace) for name in names])[:, -1]
    return metrics.logit_difference(logits, pop)


def untouched(model, pop, reference):
    return metrics.logit_difference(metrics.end_logits(model, pop), pop)


def three(F, M, C, K, v):
    without = C - K
    return {
        "faithfulness": math.fabs(F(C) - F(M)),
        "incompleteness": math.fabs(F(without) - F(M - K)),
        "minimality": math.fabs(F(without - {v}) - F(without)),
    }


def from_lists(F, M, C, K, v):
    def out(nodes, *gone):
        return F([node for node in nodes if node not in gone])

    pairs = {
        "minimality": (out(C, *K), out(C, v, *K)),
        "faithfulness": (out(M), out(C)),
        "incompleteness": (out(M, *K), out(C, *K)),
    }
    return {key: max(pair) - min(pair) for key, pair in pairs.items()}


def but(key, wrong):
    return lambda F, M, C, K, v: {**three(F, M, C, K, v), key: wrong(F, M, C, K, v)}


def signed(F, M, C, K, v):
    return {
        "faithfulness": F(M) - F(C),
        "incompleteness": F(M - K) - F(C - K),
        "minimality": F(C - K) - F(C - K - {v}),
    }


RIGHT = {
    "10.1": [by_share, by_leaving_out],
    "10.2": [by_bench, by_hooks],
    "10.3": [three, from_lists],
}
WRONG = {
    "10.1": [
        (needed, "against the answer"),
        (lambda worth, whole: [h for h, (mean, _, _) in worth.items() if mean >= abs(whole) / 100], "mean alone"),
        (lambda worth, whole: [h for h, (mean, low, _) in worth.items() if mean >= 0.01 and low > 0], "in nats"),
        (lambda worth, whole: {h for h in worth if worth[h][1] > 0}, "interval alone"),
        (
            lambda worth, whole: [h for h, (mean, low, _) in worth.items() if mean >= whole / 100 and low > 0],
            "negative",
        ),
        (lambda worth, whole: set(worth) - by_leaving_out(worth, whole), "heads that go"),
        (lambda worth, whole: 0.5, "a list"),
    ],
    "10.2": [
        (untouched, "nothing was replaced"),
        (lambda model, pop, reference: by_hooks(model, pop, pop), "prompts themselves"),
        (partial(by_hooks, means="zero"), "put zero"),
        (partial(by_hooks, means="position"), "all reference prompts"),
        (partial(by_hooks, means="everything"), "positions together"),
        (partial(by_hooks, late=True), "last layer"),
        (at_last_column, "padding"),
    ],
    "10.3": [
        (signed, "absolute values"),
        (but("faithfulness", lambda F, M, C, K, v: F(C) / F(M)), "the share"),
        (but("incompleteness", lambda F, M, C, K, v: abs(F(M) - F(C - K))), "circuit alone"),
        (but("incompleteness", lambda F, M, C, K, v: abs(F(K) - F(K & C))), "keep K"),
        (but("minimality", lambda F, M, C, K, v: abs(F(C) - F(C - {v}))), "full circuit, where"),
        (but("minimality", lambda F, M, C, K, v: abs(F(C) - F(C - K - {v}))), "K counts with v"),
        (but("minimality", lambda F, M, C, K, v: abs(F(M - K) - F(M - K - {v}))), "out of the model"),
    ],
}
