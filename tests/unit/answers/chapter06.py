"""Answers to the exercises of chapter 06: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch
from given import From

from labcode import metrics, patching, prompts
from labcode.patching import sweep


def grids(model, clean, corrupted, sender, receivers, into, **how):
    rows = []
    for one in receivers:
        grid = patching.path_patch(model, clean, corrupted, into, [one], **how)
        rows.append(grid.values[sender])
    return torch.stack(rows)


def by_hand(model, clean, corrupted, sender, receivers, into, frozen=True, whole=False, trapped=False):
    _, base = model.run_with_cache(clean.tokens)
    _, source = model.run_with_cache(corrupted.tokens)
    layer, head = sender

    def hold(z, hook):
        kept = base[hook.name].clone() if frozen else z
        if hook.name == f"blocks.{layer}.attn.hook_z":
            kept[:, :, head] = source[hook.name][:, :, head]
        return kept

    places = [f"blocks.{i}.attn.hook_z" for i in range(model.cfg.n_layers) if frozen or i == layer]
    with model.hooks(fwd_hooks=[(place, hold) for place in places]):
        _, arrived = model.run_with_cache(clean.tokens)
    rows = []
    for one in receivers:
        at, index = receivers[-1] if trapped else one

        def deliver(x, hook, index=index):
            x[:, :, index] = (source if whole else arrived)[hook.name][:, :, index]
            return x

        logits = model.run_with_hooks(clean.tokens, fwd_hooks=[(f"blocks.{at}.attn.hook_{into}", deliver)])
        rows.append([float(row[end, io] - row[end, s]) for row, end, io, s in
                     zip(logits, clean.end, clean.io_ids, clean.s_ids, strict=True)])  # fmt: skip
    return rows


def together(model, clean, corrupted, sender, receivers, into):
    grid = patching.path_patch(model, clean, corrupted, into, receivers)
    return [grid.values[sender].tolist()] * len(receivers)


def lost(model, clean, *rest):
    plain = metrics.logit_difference(metrics.end_logits(model, clean), clean)
    return plain - grids(model, clean, *rest)


def by_sweep(setting):
    """The wires to the logits from a sweep; into heads it takes what the page says."""
    toy = setting.toy
    one = prompts.canonical(toy)
    abc = prompts.corrupt(toy, one, "abc")
    free = sweep(toy, one, abc, "z", direction="noising").values[..., 0]
    own = patching.path_patch(toy, one, abc).values[..., 0]
    changed = [f"{layer}.{head} logits" for layer, head in ((free - own).abs() > 1e-3).nonzero().tolist()]
    for receiver in (0, 1):
        wire = (toy, one, abc, (0, 0), [(2, receiver)], "q")
        if abs(by_hand(*wire)[0][0] - by_hand(*wire, frozen=False)[0][0]) > 1e-3:
            changed.append(f"0.0 q 2.{receiver}")
    return set(changed)


def sent(setting, how="swap", **more):
    toy = setting.toy
    one = prompts.canonical(toy)
    bad = prompts.corrupt(toy, one, how)
    edges = {"0.0 k 1.0": (0, 1), "0.0 v 1.0": (0, 1), "1.0 q 2.0": (1, 2), "1.0 q 2.1": (1, 2)}
    values = {}
    for wire, (layer, above) in edges.items():
        grid = patching.path_patch(toy, one, bad, wire[4], [(above, int(wire[-1]))], **more)
        values[wire] = float(grid.values[layer, 0, 0])
    return values


def other_way(setting):
    """By hand: the swapped prompt takes the clean one's place, and its sign is the other."""
    toy = setting.toy
    one = prompts.canonical(toy)
    bad = prompts.corrupt(toy, one, "swap")
    wires = {"0.0 k 1.0": (0, 1), "0.0 v 1.0": (0, 1), "1.0 q 2.0": (1, 2), "1.0 q 2.1": (1, 2)}
    return {
        wire: by_hand(toy, bad, one, (low, 0), [(high, int(wire[-1]))], wire[4])[0][0]
        for wire, (low, high) in wires.items()
    }


def record(*values):
    return dict(zip(("0.0 k 1.0", "0.0 v 1.0", "1.0 q 2.0", "1.0 q 2.1"), values, strict=True))


CHANGED = ["0.0 q 2.0", "0.0 q 2.1", "0.0 logits", "1.0 logits"]
SAME = ["0.0 k 1.0", "0.0 v 1.0", "1.0 q 2.0", "1.0 q 2.1", "2.0 logits"]
RIGHT = {
    "06.1": [grids, by_hand],
    "06.2": [CHANGED, From(by_sweep)],
    "06.3": [record(-4, 4, 8, -8), From(other_way)],
}
WRONG = {
    "06.1": [
        (together, "patched all receivers together"),
        (lambda *args: by_hand(*args, frozen=False), "not frozen"),
        (lambda *args: by_hand(*args, whole=True), "the whole input"),
        (lambda *args: grids(*args, direction="denoising"), "swapped"),
        (lambda *args: by_hand(*args, trapped=True), "closure trap"),
        (lost, "worth of the wires"),
        (lambda *args: grids(*args)[0], "shape"),
    ],
    "06.2": [
        (SAME, "stay the same"),
        (["0.0 Q 2.0"], "the only one in the table"),
        ({"0.0 q 2.1", "0.0 q 2.0"}, "to the logits"),
        (CHANGED[:3], "One is missing"),
        (["0.0 k 1.0", "0.0 v 1.0", *CHANGED[:3]], "everything that 0.0 sends"),
        (["0.0 k 1.0", "0.0 v 1.0", *CHANGED], "don't belong here"),
        (["1.0 q 2.0"], "no mistake that this check knows"),
        (["0.0 to 2.0"], "expected one of"),
    ],
    "06.3": [
        (From(lambda setting: sent(setting, direction="noising")), "into the clean run. The other direction"),
        (From(lambda setting: sent(setting, "abc")), "numbers of the page"),
        (record(0, 0, 0, 0), "no message brings"),
        (record(-4, 4, 6, -2), "the receiver alone"),
        (record(4, 4, 8, -8), "Only the first wire is off"),
        (record(0, 1, 1.5, -0.5), "shares of the gap"),
        (record(1, 2, 3, 4), "no mistake that this check knows"),
    ],
}
