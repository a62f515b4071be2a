"""Path patching equals a slow, separately written one: three passes of the bridge with plain hooks."""

from __future__ import annotations

import pytest
import torch

from labcode import patching, prompts
from labcode.errors import HeadError, PatchError
from labcode.metrics import logit_difference
from labcode.patching import path_patch


def value(model, pop, tokens, hooks):
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logit_difference(logits[torch.arange(len(pop)), pop.end], pop)


def write(new, pop, head, at):
    """A hook that writes `new` at one head and some positions."""

    def hook_fn(x, hook):
        x = x.clone()
        for row in range(len(pop)):
            here = slice(None) if at == "all" else pop.positions[at][row]
            x[row, here, head] = new[row, here, head]
        return x

    return hook_fn


def three_passes(model, pop, base, a, b, sender, into, receivers, sender_at, receiver_at, freeze_mlps):
    """Wang et al. 2022, appendix B, for one sender, given the caches of passes A and B."""
    layer, head = sender
    hooks = []
    for other in range(model.cfg.n_layers):
        frozen = a[f"blocks.{other}.attn.hook_z"]
        hooks.append((f"blocks.{other}.attn.hook_z", lambda x, hook, frozen=frozen: frozen.clone()))
        if freeze_mlps:
            mlp = a[f"blocks.{other}.hook_mlp_out"]
            hooks.append((f"blocks.{other}.hook_mlp_out", lambda x, hook, mlp=mlp: mlp.clone()))
    name = f"blocks.{layer}.attn.hook_z"
    hooks.append((name, write(b[name], pop, head, sender_at)))
    if into == "logits":
        return value(model, pop, base.tokens, hooks)
    arrived = {}

    def keep(x, hook, name):
        arrived[name] = x.clone()

    names = {f"blocks.{level}.attn.hook_{into}" for level, _ in receivers}
    for name in names:
        hooks.append((name, lambda x, hook, name=name: keep(x, hook, name)))
    value(model, pop, base.tokens, hooks)
    group = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads) if into in "kv" else 1
    last = [
        (
            f"blocks.{level}.attn.hook_{into}",
            write(arrived[f"blocks.{level}.attn.hook_{into}"], pop, h // group, receiver_at),
        )
        for level, h in receivers
    ]
    return value(model, pop, base.tokens, last)


CASES = [
    ("logits", [], "all", "all", False),
    ("logits", [], "END", "all", True),
    ("logits", [], "S2", "all", False),  # with all other heads frozen, S2 has no wire to the answer
    ("q", [(2, 1), (2, 3)], "all", "all", False),
    ("q", [(1, 0), (2, 2)], "all", "END", False),
    ("k", [(1, 1), (2, 2)], "all", "all", False),
    ("k", [(2, 0)], "S2", "S2", True),
    ("v", [(1, 3), (2, 0)], "all", "S2", False),
    ("v", [(1, 2)], "S2", "all", False),
    ("v", [(2, 1)], "S1", "S2", False),  # nothing moves between positions
]


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize(("into", "receivers", "sender_at", "receiver_at", "freeze_mlps"), CASES)
def test_paths_equal_three_plain_passes(tiny, pair, into, receivers, sender_at, receiver_at, freeze_mlps, direction):
    clean, corrupted = pair
    base, source = (clean, corrupted) if direction == "noising" else (corrupted, clean)
    grid = path_patch(
        tiny,
        clean,
        corrupted,
        into,
        receivers,
        sender_at=sender_at,
        receiver_at=receiver_at,
        freeze_mlps=freeze_mlps,
        direction=direction,
        heads=[0, 3],
    )
    a, b = (tiny.run_with_cache(pop.tokens)[1] for pop in (base, source))
    senders = [(layer, head) for layer in range(3) for head in (0, 3)]
    expected = torch.stack(
        [
            three_passes(tiny, clean, base, a, b, sender, into, receivers, sender_at, receiver_at, freeze_mlps)
            for sender in senders
        ]
    )
    torch.testing.assert_close(grid.values.flatten(0, 1), expected, atol=1e-5, rtol=0)
    effect = (expected - value(tiny, clean, base.tokens, [])).abs().max()
    no_wire = (into, sender_at) == ("logits", "S2") or (sender_at, receiver_at) == ("S1", "S2")
    assert effect < 1e-5 if no_wire else effect > 1e-4


def test_the_wires_of_the_hand_wired_circuit(toy):
    """0.0 -> values of 1.0 -> queries of 2.0 and 2.1 -> logits, and no other wire. Logit differences on paper."""
    clean = prompts.canonical(toy)
    corrupted = prompts.corrupt(toy, clean, "swap")

    def wires(*args, **options):
        return path_patch(toy, clean, corrupted, *args, **options).mean()

    def only(*heads, size=1.0):
        expected = torch.zeros(3, 2)
        for layer, head in heads:
            expected[layer, head] = size
        return expected

    close = {"atol": 1e-4, "rtol": 0}
    movers = [(2, 0), (2, 1)]
    torch.testing.assert_close(wires(), torch.tensor([[0, 0], [0, 0], [1.5, -0.5]]), **close)
    torch.testing.assert_close(wires("q", movers), only((1, 0)), **close)
    torch.testing.assert_close(wires("q", movers, receiver_at="END"), only((1, 0)), **close)
    torch.testing.assert_close(wires("q", movers, receiver_at="S2"), only(), **close)
    torch.testing.assert_close(wires("q", [(2, 0)]), only((1, 0), size=1.5), **close)
    torch.testing.assert_close(wires("v", [(1, 0)]), only((0, 0)), **close)
    for into, receivers in (("k", movers), ("v", movers), ("q", [(1, 0)]), ("k", [(1, 0)])):
        torch.testing.assert_close(wires(into, receivers), only(), **close)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("o",), "unknown into 'o'"),
        (("q",), "give receivers"),
        (("logits", [(2, 0)]), "none for into='logits'"),
        (("q", [(3, 0)]), "no head 3.0: this model has 3 layers of 4 heads"),
        (("q", [(2, -1)]), "no head 2.-1"),
    ],
)
def test_bad_paths_are_named(tiny, pair, args, message):
    with pytest.raises((PatchError, HeadError), match=message):
        path_patch(tiny, *pair, *args)


def test_an_unknown_end_of_a_path_is_named(tiny, pair):
    with pytest.raises(PatchError, match="unknown position 'S3'"):
        path_patch(tiny, *pair, "q", [(2, 0)], receiver_at="S3")
    with pytest.raises(PatchError, match="unknown position 'S3'"):
        path_patch(tiny, *pair, sender_at="S3")


def test_several_inputs_share_their_runs_and_nothing_else(tiny):
    clean = prompts.population(tiny, 4, seed=1)
    corrupted = prompts.corrupt(tiny, clean, "abc")
    inputs, only = {"q": "END", "k": "S2", "v": "S2"}, [(0, 1), (1, 0)]
    found = patching.path_patches(tiny, clean, corrupted, inputs, [(2, 0)], only=only)
    for into, place in inputs.items():
        grid = path_patch(tiny, clean, corrupted, into, [(2, 0)], receiver_at=place)
        for i, head in enumerate(only):
            torch.testing.assert_close(found[into].values[i], grid.values[head], atol=1e-5, rtol=1e-5)
