"""Answers to the exercises of chapter 04: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch
from given import From

from labcode import metrics
from labcode.patching import sweep


def apart(clean, corrupted):
    return (clean != corrupted).nonzero().flatten()


def before_the_first(clean, corrupted):
    return torch.arange(int(apart(clean, corrupted)[0]))


def while_equal(clean, corrupted):
    found = set()
    for at in range(len(clean)):
        if clean[at] != corrupted[at]:
            break
        found.add(at)
    return found


def by_running(setting):
    """Where the streams of two runs are the same before every layer, a patch copies a vector onto its equal."""

    def unmoved(clean, corrupted):
        _, a = setting.model.run_with_cache(clean[None])
        _, b = setting.model.run_with_cache(corrupted[None])
        places = [name for name in a if name.endswith("hook_resid_pre")]
        gap = torch.stack([(a[place] - b[place]).abs().amax(-1)[0] for place in places]).amax(0)  # [pos]
        return (gap < 1e-5).nonzero().flatten().tolist()

    return unmoved


def run(model, base, hooks):
    logits = model.run_with_hooks(base.tokens, fwd_hooks=hooks)
    return logits[torch.arange(len(base)), base.end]


def what_is_added(model, clean, corrupted, layer):
    """The stream after the block: corrupted before it, plus what the block adds in the clean run."""
    pre, post = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_post"
    _, of_clean = model.run_with_cache(clean.tokens)
    _, of_corrupted = model.run_with_cache(corrupted.tokens)

    def put(stream, hook):
        for row, end in enumerate(clean.end):
            stream[row, end] = (of_corrupted[pre] + of_clean[post] - of_clean[pre])[row, end]
        return stream

    return metrics.logit_difference(run(model, corrupted, [(post, put)]), clean)


def prompt_by_prompt(model, clean, corrupted, layer, whats=("hook_attn_out", "hook_mlp_out"), end="END", all=False):
    values = []
    for row in range(len(clean)):
        one, other = clean.tokens[row : row + 1], corrupted.tokens[row : row + 1]
        kept = model.run_with_cache(one)[1]
        at = slice(None) if all else int(clean.end[row]) if end == "END" else -1

        def put(output, hook, kept=kept, at=at):
            output[0, at] = kept[hook.name][0, at]
            return output

        with model.hooks(fwd_hooks=[(f"blocks.{layer}.{what}", put) for what in whats]):
            logits = model(other)[0, clean.end[row]]
        values.append(float(logits[clean.io_ids[row]] - logits[clean.s_ids[row]]))
    return values


def with_sweep(model, clean, corrupted, layer, position, **options):
    return sweep(model, clean, corrupted, "resid_pre", at=[position], layers=[layer], **options).mean()


def values_of(model, clean, corrupted, layer, where, column=None):
    """Clean, corrupted and patched logit differences."""
    place = f"blocks.{layer}.hook_resid_pre"
    logits, cache = model.run_with_cache(clean.tokens)
    rows = torch.arange(len(clean))
    end = clean.end if column is None else torch.full_like(clean.end, column)

    def put(stream, hook):
        if isinstance(where, slice):
            return cache[place]
        stream[rows, where] = cache[place][rows, where]
        return stream

    runs = (logits, model(corrupted.tokens), model.run_with_hooks(corrupted.tokens, fwd_hooks=[(place, put)]))
    return [metrics.logit_difference(run[rows, end], clean) for run in runs]


def by_hand(model, clean, corrupted, layer, position):
    high, low, patched = values_of(model, clean, corrupted, layer, clean.positions[position])
    return metrics.restoration(patched, high, low).mean()


def scored(score, where=None, column=None):
    def answer(model, clean, corrupted, layer, position):
        at = clean.positions[position] if where is None else where(clean.positions[position])
        return float(score(*values_of(model, clean, corrupted, layer, at, column)))

    return answer


def share(high, low, patched):
    return (patched - low).mean() / (high - low).mean()


RIGHT = {
    "04.1": [before_the_first, while_equal, From(by_running)],
    "04.2": [what_is_added, prompt_by_prompt],
    "04.3": [by_hand, with_sweep, scored(share)],
}
WRONG = {
    "04.1": [
        (lambda clean, corrupted: (clean == corrupted).nonzero().flatten(), "all positions with the same token"),
        (lambda clean, corrupted: range(apart(clean, corrupted)[0] + 1), "One too many"),
        (lambda clean, corrupted: range(1, apart(clean, corrupted)[0]), "BOS is missing"),
        (lambda clean, corrupted: range(apart(clean, corrupted)[-1]), "up to the last token that differs"),
        (apart, "the positions with different tokens"),
        (lambda clean, corrupted: range(apart(clean, corrupted)[0], len(clean)), "The other way round"),
        (lambda clean, corrupted: [], "no mistake that this check knows"),
        (lambda clean, corrupted: int(apart(clean, corrupted)[0]), "expected the positions, a list"),
    ],
    "04.2": [
        (lambda *case: prompt_by_prompt(*case, whats=["hook_resid_pre"]), "the stream before the layer"),
        (lambda *case: prompt_by_prompt(*case, whats=["hook_resid_post"]), "the stream after the layer"),
        (lambda *case: prompt_by_prompt(*case, whats=["hook_attn_out"]), "Attention is patched, the MLP is not"),
        (lambda *case: prompt_by_prompt(*case, whats=["hook_mlp_out"]), "The MLP is patched, attention is not"),
        (lambda *case: prompt_by_prompt(*case, all=True), "You patch all positions"),
        (lambda *case: prompt_by_prompt(*case, end="last"), "You patch the last column"),
        (
            lambda model, clean, corrupted, layer: prompt_by_prompt(model, corrupted, clean, layer),
            "The runs are exchanged",
        ),
        (lambda *case: -what_is_added(*case), "no mistake that this check knows"),
        (lambda *case: what_is_added(*case).mean(), "expected the logit difference of each patched prompt"),
    ],
    "04.3": [
        (scored(lambda high, low, patched: 1 - share(high, low, patched)), "upside down"),
        (lambda *case: 1 - with_sweep(*case, direction="noising"), "exchanged in the patch"),
        (scored(lambda high, low, patched: (patched - low).mean() / high.mean()), "by the clean run's value"),
        (scored(lambda high, low, patched: ((patched - low) / (high - low)).mean()), "a mean of ratios"),
        (scored(lambda high, low, patched: patched.mean() / (high - low).mean()), "the patched value itself"),
        (scored(share, where=lambda own: slice(None)), "You patch all positions"),
        (scored(share, where=lambda own: int(own[0])), "at the position of the first"),
        (scored(share, column=-1), "You read the last column"),
        (scored(lambda high, low, patched: share(high, low, patched) * 100), "no mistake that this check knows"),
    ],
}
