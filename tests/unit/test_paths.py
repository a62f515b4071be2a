"""Path patching equals a slow, separately written one: three passes of the bridge with plain hooks."""

from __future__ import annotations

import pytest
import torch

from labcode import prompts
from labcode.attribution import attribution
from labcode.metrics import logit_difference
from labcode.patching import PatchError, sweep
from labcode.paths import path_patch


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
    assert grid.engine == "suffix"
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
        (("o",), "unknown input 'o'"),
        (("q",), "give receivers"),
        (("logits", [(2, 0)]), "none for into='logits'"),
        (("q", [(3, 0)]), "no head 3.0: this model has 3 layers of 4 heads"),
        (("q", [(2, -1)]), "no head 2.-1"),
    ],
)
def test_bad_paths_are_named(tiny, pair, args, message):
    with pytest.raises(PatchError, match=message):
        path_patch(tiny, *pair, *args)


def test_an_unknown_end_of_a_path_is_named(tiny, pair):
    with pytest.raises(PatchError, match="unknown position 'S3'"):
        path_patch(tiny, *pair, "q", [(2, 0)], receiver_at="S3")
    with pytest.raises(PatchError, match="unknown position 'S3'"):
        path_patch(tiny, *pair, sender_at="S3")


def moved(model, pop, base, source, name, head, at, share):
    """The value of a run whose activation goes a share of the way to that of the source."""
    _, a = model.run_with_cache(base.tokens)
    _, b = model.run_with_cache(source.tokens)
    goal = a[name] + share * (b[name] - a[name])
    if head is None:
        return value(model, pop, base.tokens, [(name, write(goal[:, :, None], pop, 0, at))])
    return value(model, pop, base.tokens, [(name, write(goal, pop, head, at))])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_attribution_is_the_slope_at_the_base_run(tiny, pair, direction):
    """Central differences of plain runs: their error is of the third order in the step."""
    clean, corrupted = pair
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    unpatched = value(tiny, clean, base.tokens, [])
    for at in ("all", "S2"):
        slopes = attribution(tiny, clean, corrupted, "z", at=at, direction=direction).values - unpatched
        for layer, head in ((0, 1), (1, 3), (2, 2)):
            name, step = f"blocks.{layer}.attn.hook_z", 0.1
            up, down = (moved(tiny, clean, base, source, name, head, at, share) for share in (step, -step))
            torch.testing.assert_close(slopes[layer, head], (up - down) / (2 * step), atol=2e-3, rtol=0.05)
    assert slopes.abs().max() > 1e-2


def test_attribution_is_exact_where_the_rest_is_linear(toy):
    """The toy's last layer writes straight into the logits, so there the first order is all there is."""
    clean = prompts.canonical(toy)
    corrupted = prompts.corrupt(toy, clean, "swap")
    for kind, layer in (("z", 2), ("attn_out", 2)):
        exact, estimate = (method(toy, clean, corrupted, kind).values[layer] for method in (sweep, attribution))
        torch.testing.assert_close(estimate, exact, atol=1e-4, rtol=0)
    # An attention pattern that is saturated has no slope: 0.0 and 1.0 do everything, and first order sees nothing.
    torch.testing.assert_close(attribution(toy, clean, corrupted, "z").mean()[:2], torch.zeros(2, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "mlp_out"])
def test_attribution_by_place_sums_to_all_places(tiny, pair, kind):
    one = [pop.subset([0]) for pop in pair]
    base = attribution(tiny, *one, kind).corrupted
    each, together = (attribution(tiny, *one, kind, at=at).values for at in ("each", "all"))
    torch.testing.assert_close((each - base).sum(1), together - base, atol=1e-4, rtol=0)


def test_attribution_on_the_embedded_model_ranks_heads_but_misjudges_them(smollm2):
    clean = prompts.canonical(smollm2)
    corrupted = prompts.corrupt(smollm2, clean, "swap")
    exact, estimate = (method(smollm2, clean, corrupted, "z").mean().flatten() for method in (sweep, attribution))
    assert torch.corrcoef(torch.stack([exact, estimate]))[0, 1] > 0.8
    assert (exact - estimate).abs().max() > 0.05


def test_attribution_of_a_kind_that_has_none_is_refused(tiny, pair):
    with pytest.raises(PatchError, match="no attribution for 'pattern'"):
        attribution(tiny, *pair, "pattern")


def test_no_gradient_or_hook_is_left_behind(tiny, pair):
    def broken(logits, pop):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attribution(tiny, *pair, "z", metric=broken)
    attribution(tiny, *pair, "z")
    assert not any(point.fwd_hooks or point.bwd_hooks for point in tiny.hook_dict.values())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in tiny.parameters())
