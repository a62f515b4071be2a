"""Answers to the exercises of chapter 03: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import math
from functools import partial

import torch

PLACE = "blocks.{}.hook_attn_out"


def step_by_step(factor, times):
    output = 1.0
    for _ in range(times):
        output *= factor
    return output


def honest(patched, base, source, layer, where):
    return patched(base, source, layer, where)


def right_at_first(patched, base, source, layer, where):
    return patched(base, source, layer, where if layer == 0 else slice(None))


def always_the_last(patched, base, source, layer, where):
    """A late call in every layer but the first."""
    return patched(base, source, len(source) - 1 if layer and isinstance(where, int) else layer, where)


def first_layer_for_late_ends(patched, base, source, layer, where):
    last = base.shape[1] - 1
    return patched(base, source, 0, slice(None)) if layer and where == last else patched(base, source, layer, where)


def forgets_where(patched, base, source, layer, where):
    return patched(base, source, layer, slice(None))


def off_by_one(patched, base, source, layer, where):
    return patched(base, source, layer, where - 1 if isinstance(where, int) else where)


def nothing_at_all(patched, base, source, layer, where):
    return patched(base, source, layer, slice(0, 0))


def always_the_same(patched, base, source, layer, where):
    return 0.5


def with_default(model, tokens, factors):
    hooks = []
    for layer, factor in enumerate(factors):

        def scale(output, hook, factor=factor):
            return output * factor

        hooks.append((PLACE.format(layer), scale))
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def with_partial(model, tokens, factors):
    def scale(output, hook, factor):
        output *= factor
        return output

    hooks = [(PLACE.format(i), partial(scale, factor=factors[i])) for i in range(len(factors))]
    with model.hooks(fwd_hooks=hooks):
        return model(tokens)[:, -1].squeeze(0)


def from_the_name(model, tokens, factors):
    """The hook knows where it sits."""

    def scale(output, hook):
        return output * factors[int(hook.name.split(".")[1])]

    return model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_attn_out"), scale)])[0, -1]


def trap(model, tokens, factors):
    hooks = []
    for layer, factor in enumerate(factors):
        hooks.append((PLACE.format(layer), lambda output, hook: factor * output))  # noqa: B023
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def no_return(model, tokens, factors):
    def scale(output, hook, factor):
        output = factor * output

    hooks = [(PLACE.format(i), partial(scale, factor=factor)) for i, factor in enumerate(factors)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def misspelt(model, tokens, factors):
    hooks = [(f"blocks.{i}.hook_atn_out", lambda output, hook: 0 * output) for i in range(len(factors))]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def last_alone(model, tokens, factors):
    for layer, factor in enumerate(factors):
        hooks = [(PLACE.format(layer), partial(lambda output, hook, factor: factor * output, factor=factor))]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def stream(model, tokens, factors):
    hooks = [
        (f"blocks.{i}.hook_resid_pre", lambda x, hook, factor=factor: factor * x) for i, factor in enumerate(factors)
    ]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def added(model, tokens, factors):
    hooks = [(PLACE.format(i), lambda x, hook, factor=factor: x + factor) for i, factor in enumerate(factors)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def left_behind(model, tokens, factors):
    for layer, factor in enumerate(factors):
        model.add_hook(PLACE.format(layer), partial(lambda output, hook, factor: factor * output, factor=factor))
    return model(tokens)[0, -1]


RIGHT = {
    "03.1": [lambda factor, times: factor**times, step_by_step, lambda factor, times: math.prod([factor] * times)],
    "03.2": [right_at_first, always_the_last, first_layer_for_late_ends],
    "03.3": [with_default, with_partial, from_the_name],
}
WRONG = {
    "03.1": [
        (lambda factor, times: factor, "take the place of the others"),
        (lambda factor, times: times * factor, "by the number of hooks. The hooks are called"),
        (lambda factor, times: factor * times - times + 1, "take away the same amount"),
        (lambda factor, times: torch.tensor(factor / times), "You divide by the number of hooks"),
        (lambda factor, times: factor**times / factor, "the first run of the cell adds a hook too"),
        (lambda factor, times: factor**times * factor, "a cell that ran once"),
        (lambda factor, times: 0.125, "no mistake that this check knows"),
    ],
    "03.2": [
        (always_the_same, "The first check finds it"),
        (nothing_at_all, "The second check finds it"),
        (forgets_where, "END alone has to give nothing"),
        (off_by_one, "S2 alone has to give the clean run"),
        (honest, "an honest instrument"),
        (lambda patched, *case: partial(patched, *case), "expected a logit difference, one number"),
    ],
    "03.3": [
        (trap, "The closure trap"),
        (no_return, "a run without hooks"),
        (misspelt, "a run without hooks"),
        (last_alone, "Only the last layer is scaled"),
        (lambda model, tokens, f: with_default(model, tokens, f[1:] + f[:1]), "the factor of the layer after it"),
        (stream, "You scale the stream"),
        (added, "You add the factor"),
        (left_behind, "on the model (they are taken off now)"),
        (lambda model, tokens, f: with_default(model, tokens, f[::-1]), "no mistake that this check knows"),
    ],
}
