"""Sweeps equal the plain loop: one whole forward pass of the bridge for each cell, with an ordinary hook."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformer_lens import patching as tl

from labcode import patching, prompts
from labcode.errors import LabError, MetricError, PatchError
from labcode.forward import record
from labcode.metrics import logit_difference
from labcode.patching import HOOKS, Axis, Grid, path_patch, sweep

HEAD_KINDS = ("z", "q", "k", "v", "pattern")
KINDS = ("resid_pre", "attn_out", "mlp_out", *HEAD_KINDS)
PLACES = ("all", ["IO", "S1", "S1+1", "S2", "END"], "each")


def values(model, pop, tokens, hooks=()):
    """Logit difference of each prompt, by one plain forward pass."""
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))
    return logit_difference(logits[torch.arange(len(pop)), pop.end], pop)


def loop(model, pop, base, source, kind, at, layers=None, heads=None):
    """The plain loop over layers, heads and places: {cell: values}."""
    _, cache = model.run_with_cache(source.tokens, names_filter=lambda name: name.endswith(HOOKS[kind]))
    some = cache[f"blocks.0.{HOOKS[kind]}"]
    n_heads = some.shape[1 if kind == "pattern" else 2] if kind in HEAD_KINDS else None
    every = range(int(pop.lengths[0]))
    places = every if at == "each" else at if isinstance(at, list) else [at]
    found = {}
    for layer in layers or range(model.cfg.n_layers):
        name = f"blocks.{layer}.{HOOKS[kind]}"
        for head in heads or range(n_heads or 1):
            for place in places:

                def patch(x, hook, name=name, head=head, place=place):
                    x = x.clone()
                    for row in range(len(pop)):
                        here = slice(None) if place == "all" else place if at == "each" else pop.positions[place][row]
                        if kind == "pattern":
                            x[row, head, here] = cache[name][row, head, here]
                        elif n_heads:
                            x[row, here, head] = cache[name][row, here, head]
                        else:
                            x[row, here] = cache[name][row, here]
                    return x

                found[layer, head, place] = values(model, pop, base.tokens, [(name, patch)])
    return torch.stack(list(found.values()))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("at", PLACES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sweep_equals_the_plain_loop(tiny, pair, kind, at, direction):
    clean, corrupted = (pop.subset([0]) for pop in pair) if at == "each" else pair
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    layers = None if at == "all" else [1]
    heads = [1] if kind in HEAD_KINDS and at != "all" else None
    grid = sweep(tiny, clean, corrupted, kind, at=at, direction=direction, layers=layers, heads=heads)
    expected = loop(tiny, clean, base, source, kind, at, layers, heads)
    torch.testing.assert_close(grid.values.flatten(0, -2), expected, atol=1e-5, rtol=0)
    unpatched = values(tiny, clean, base.tokens)
    assert (expected - unpatched).abs().max() > 1e-3, "these patches do nothing: the comparison is empty"
    torch.testing.assert_close(grid.clean, values(tiny, clean, clean.tokens), atol=1e-5, rtol=0)
    torch.testing.assert_close(grid.corrupted, values(tiny, clean, corrupted.tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_model_too_on_a_sample_of_cells(smollm2, kind):
    clean = prompts.canonical(smollm2)
    corrupted = prompts.corrupt(smollm2, clean, "swap")
    layers, heads = [17, 29], ([0] if kind in ("k", "v") else [3]) if kind in HEAD_KINDS else None
    grid = sweep(smollm2, clean, corrupted, kind, layers=layers, heads=heads)
    expected = loop(smollm2, clean, corrupted, clean, kind, "all", layers, heads)
    torch.testing.assert_close(grid.values.flatten(0, -2), expected, atol=1e-4, rtol=0)


TRANSFORMER_LENS = {
    ("resid_pre", "each"): tl.get_act_patch_resid_pre,
    ("attn_out", "each"): tl.get_act_patch_attn_out,
    ("mlp_out", "each"): tl.get_act_patch_mlp_out,
    ("z", "all"): tl.get_act_patch_attn_head_out_all_pos,
    ("q", "all"): tl.get_act_patch_attn_head_q_all_pos,
    ("k", "all"): tl.get_act_patch_attn_head_k_all_pos,
    ("v", "all"): tl.get_act_patch_attn_head_v_all_pos,
    ("pattern", "all"): tl.get_act_patch_attn_head_pattern_all_pos,
    ("z", "each"): tl.get_act_patch_attn_head_out_by_pos,
}


@pytest.mark.parametrize(("kind", "at"), TRANSFORMER_LENS)
def test_sweeps_equal_those_of_transformer_lens(tiny_gpt2, kind, at):
    tiny = tiny_gpt2.bridge  # with grouped keys and values, theirs fails for some kinds
    clean = prompts.canonical(tiny)
    corrupted = prompts.corrupt(tiny, clean, "swap")
    _, cache = tiny.run_with_cache(clean.tokens)
    theirs = TRANSFORMER_LENS[kind, at](
        tiny, corrupted.tokens, cache, lambda logits: logit_difference(logits[:, -1], clean).mean()
    )
    ours = sweep(tiny, clean, corrupted, kind, at=at).values[..., 0]
    if (kind, at) == ("z", "each"):
        theirs = theirs.transpose(1, 2)  # theirs is layer, position, head
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_patching_a_run_with_itself_changes_nothing(tiny, pair, kind):
    grid = sweep(tiny, pair[0], pair[0], kind)
    torch.testing.assert_close(grid.values, grid.clean.expand_as(grid.values), atol=1e-5, rtol=0)


def test_patching_everything_gives_exactly_the_other_run(tiny, pair):
    for direction, goal in (("denoising", "clean"), ("noising", "corrupted")):
        grid = sweep(tiny, *pair, "resid_pre", direction=direction, layers=[0])
        torch.testing.assert_close(grid.values[0], getattr(grid, goal), atol=1e-5, rtol=0)
        assert grid.effect()[0].mean() == pytest.approx(1, abs=1e-4)


def test_a_prompt_is_worth_the_same_alone_and_in_a_population(tiny, pair):
    together = sweep(tiny, *pair, "z", at="S2")
    alone = [sweep(tiny, *(pop.subset([i]) for pop in pair), "z", at="S2").values for i in range(len(pair[0]))]
    torch.testing.assert_close(together.values, torch.cat(alone, dim=-1), atol=1e-5, rtol=0)


def test_small_portions_give_the_same_numbers(tiny, pair, monkeypatch):
    whole = {kind: sweep(tiny, *pair, kind).values for kind in ("resid_pre", "k")}
    monkeypatch.setattr(patching, "PROMPTS_AT_ONCE", 1)
    monkeypatch.setattr(patching, "POSITIONS_AT_ONCE", 1)
    for kind, values in whole.items():
        torch.testing.assert_close(sweep(tiny, *pair, kind).values, values, atol=1e-5, rtol=0)


def test_a_choice_of_layers_and_heads_is_a_part_of_the_whole(tiny, pair):
    whole = sweep(tiny, *pair, "z", at=["S2", "END"])
    part = sweep(tiny, *pair, "z", at=["S2", "END"], layers=[2, 0], heads=[3])
    torch.testing.assert_close(part.values, whole.values[[2, 0]][:, [3]], atol=1e-5, rtol=0)
    assert [axis.labels for axis in part.axes] == [("2", "0"), ("3",), ("S2", "END")]


def test_grouped_keys_and_values_are_patched_as_such_and_say_so(tiny_llama):
    pop = prompts.canonical(tiny_llama.bridge)
    bad = prompts.corrupt(tiny_llama.bridge, pop, "swap")
    for kind, name, n in (("k", "key/value head", 2), ("v", "key/value head", 2), ("q", "head", 4)):
        axis = sweep(tiny_llama.bridge, pop, bad, kind).axes[1]
        assert (axis.name, len(axis.labels)) == (name, n)


def test_any_metric_can_be_swept(tiny, pair):
    """The default reads two logits only; the same metric, unrecognised, reads all."""
    usual, general = (sweep(tiny, *pair, "z", metric=m) for m in (logit_difference, lambda *a: logit_difference(*a)))
    torch.testing.assert_close(general.values, usual.values, atol=1e-5, rtol=0)


def test_the_hand_wired_circuit_comes_out(toy):
    """Logit differences worked out on paper: clean +4, corrupted -4, name mover worth 6, negative name mover -2."""
    clean = prompts.canonical(toy)
    corrupted = prompts.corrupt(toy, clean, "swap")
    expected = {
        "z": [[1, 0], [1, 0], [1.5, -0.5]],
        "q": [[1, 0], [0, 0], [1.5, -0.5]],  # 0.0 looks for the name at S2, 2.x for names that END has not ruled out
        "k": [[0, 0], [0, 0], [0.75, -0.25]],  # 2.x now finds John's key at S2 as well, where Mary's value is
        "v": [[0, 0], [1, 0], [0, 0]],  # 1.0 reads from S2 which name was repeated; 2.x reads John at S1 either way
        "pattern": [[1, 0], [0, 0], [1.5, -0.5]],
    }
    for kind, mean in expected.items():
        grid = sweep(toy, clean, corrupted, kind)
        torch.testing.assert_close(grid.mean(), torch.tensor(mean).float(), atol=1e-4, rtol=0)
    by_place = sweep(toy, clean, corrupted, "z", at=["S1", "S2", "END"]).mean()
    torch.testing.assert_close(by_place[:, 0], torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 1.5]]), atol=1e-4, rtol=0)


def test_a_list_of_heads_gives_the_cells_of_the_whole_sweep(tiny, pair):
    clean, corrupted = pair
    only = [(2, 3), (0, 1)]
    whole = sweep(tiny, clean, corrupted, "z", at=["S2", "END"], direction="noising")
    some = sweep(tiny, clean, corrupted, "z", at=["S2", "END"], direction="noising", only=only)
    assert [axis.labels for axis in some.axes] == [("2.3", "0.1"), ("S2", "END")]
    assert some.label(3) == "0.1 at END"
    torch.testing.assert_close(some.values, torch.stack([whole.values[head] for head in only]))
    alone = sweep(tiny, clean, corrupted, "z", direction="noising", only=only[:1])
    assert alone.label(0) == "2.3"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("z", {"only": []}, "no head chosen"),
        ("z", {"only": [(0, 9)]}, "no head 0.9: this model has 3 layers of 4 heads"),
        ("z", {"only": [(7, 0)]}, "no head 7.0: this model has 3 layers"),
        ("z", {"only": [(0, 0)], "layers": [1]}, "either `only`"),
        ("mlp_out", {"only": [(0, 0)]}, "mlp_out belongs to no head"),
    ],
)
def test_a_list_of_heads_that_makes_no_sense_is_refused(tiny, pair, kind, options, message):
    with pytest.raises(LabError, match=message):
        sweep(tiny, *pair, kind, **options)


def test_shared_runs_give_the_same_numbers_and_each_is_made_once(tiny, pair, monkeypatch):
    clean, corrupted = pair
    made, runs = [], patching.Runs(tiny)
    monkeypatch.setattr(patching, "record", lambda *args: made.append(1) or record(*args))
    for kind, direction in (("z", "noising"), ("attn_out", "noising"), ("mlp_out", "denoising")):
        options = dict(at="END", direction=direction)
        shared = sweep(tiny, clean, corrupted, kind, runs=runs, **options)
        assert len(made) == 2
        monkeypatch.undo()
        torch.testing.assert_close(shared.values, sweep(tiny, clean, corrupted, kind, **options).values)
        monkeypatch.setattr(patching, "record", lambda *args: made.append(1) or record(*args))
    wires = path_patch(tiny, clean, corrupted, sender_at="END", runs=runs)
    sweep(tiny, clean, corrupted, "q", at="END", runs=runs)  # needs more than was kept
    assert len(made) == 4
    monkeypatch.undo()
    torch.testing.assert_close(wires.values, path_patch(tiny, clean, corrupted, sender_at="END").values)


def test_the_swap_of_twins_needs_no_run_of_its_own(tiny, monkeypatch):
    pop = prompts.population(tiny, 6, seed=5)
    swapped, made, runs = prompts.corrupt(tiny, pop, "swap"), [], patching.Runs(tiny)
    expected = sweep(tiny, pop, swapped, "z")
    monkeypatch.setattr(patching, "record", lambda *args: made.append(1) or record(*args))
    found = sweep(tiny, pop, swapped, "z", runs=runs)
    assert len(made) == 1
    torch.testing.assert_close(found.values, expected.values)
    torch.testing.assert_close(found.clean, expected.clean)
    runs.of(prompts.corrupt(tiny, pop, "abc"))
    assert len(made) == 2


def test_runs_of_another_model_are_refused(tiny, toy, pair):
    with pytest.raises(PatchError, match="runs are those of another model"):
        sweep(tiny, *pair, "z", layers=[0], runs=patching.Runs(toy))


# Nothing is left behind, and bad input is named


def hooks_on(model):
    return {name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks}


@pytest.fixture
def one(tiny_gpt2):
    """The canonical prompt and its swap, on the small model in the shape of GPT-2."""
    clean = prompts.canonical(tiny_gpt2.bridge)
    return tiny_gpt2.bridge, clean, prompts.corrupt(tiny_gpt2.bridge, clean, "swap")


def test_a_model_under_hooks_is_refused(tiny, pair):
    """A hook of the reader's own makes the bridge differ from its weights: an error, never wrong numbers."""
    with (
        tiny.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: 0.5 * x)]),
        pytest.raises(PatchError, match="take hooks off the model before you patch"),
    ):
        sweep(tiny, *pair, "z", layers=[0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_behind_when_a_sweep_is_interrupted(tiny, pair, error, monkeypatch):
    calls = []

    def interrupt(logits, pop):
        calls.append(len(hooks_on(tiny)))
        if len(calls) > 3:
            raise error
        return logit_difference(logits, pop)

    monkeypatch.setattr(patching, "POSITIONS_AT_ONCE", 1)
    with pytest.raises(error):
        sweep(tiny, *pair, "z", metric=interrupt)
    assert not hooks_on(tiny)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_behind_when_a_forward_pass_is_interrupted(one, error):
    tiny, clean, _ = one
    seen = []

    def interrupt(*args, **kwargs):
        seen.append(hooks_on(tiny))
        raise error

    handle = tiny.blocks[2].register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(error):
            record(tiny, clean.tokens, clean.end, ["attn.hook_z"])
    finally:
        handle.remove()
    assert seen[0], "no hook was on while the model ran: nothing is tested"
    assert not hooks_on(tiny)


def test_prompts_that_do_not_align_show_both_token_lists(one):
    tiny, clean, _ = one
    other = prompts.build(tiny, [replace(clean.prompts[0], text=clean.prompts[0].text.replace("store", "big store"))])
    with pytest.raises(PatchError, match=r"part at position 8(?s:.*) big(?s:.*) store"):
        sweep(tiny, clean, other, "z")
    with pytest.raises(PatchError, match="2 prompts against 1"):
        sweep(tiny, clean, clean.subset([0, 0]), "z")


def test_identical_runs_have_no_restoration(one):
    tiny, clean, _ = one
    with pytest.raises(LabError, match="corruption changes the answer"):
        sweep(tiny, clean, clean, "resid_pre", layers=[0]).restoration()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "resid"}, "unknown kind 'resid': choose one of resid_pre"),
        ({"at": "S3"}, "unknown position 'S3'"),
        ({"at": ["S2", "all"]}, "unknown position 'all'"),
        ({"layers": [3]}, "no layer 3: this model has 3"),
        ({"layers": []}, "no layer chosen"),
        ({"heads": [-1]}, "no head -1: this model has 4"),
        ({"kind": "mlp_out", "heads": [0]}, "mlp_out belongs to no head"),
        ({"direction": "backwards"}, "unknown direction"),
        ({"metric": lambda logits, pop: logits}, r"metric gave shape \(1, 49152\) for 1 runs"),
        ({"metric": lambda logits, pop: logits[:, 0] * torch.nan}, "metric is NaN on 'When John"),
    ],
)
def test_bad_input_is_named(one, wrong, message):
    tiny, clean, corrupted = one
    with pytest.raises(PatchError, match=message):
        sweep(tiny, clean, corrupted, **{"kind": "z", **wrong})
    assert not hooks_on(tiny)


def test_each_position_needs_prompts_of_one_length(tiny):
    pop = prompts.population(tiny, 4, seed=1)
    with pytest.raises(PatchError, match=r"no common positions: use at=\[names\]"):
        sweep(tiny, pop, prompts.corrupt(tiny, pop, "swap"), "resid_pre", at="each")


def test_an_attention_only_model_has_no_mlp_to_patch(toy):
    pop = prompts.canonical(toy)
    with pytest.raises(PatchError, match="no mlp_out"):
        sweep(toy, pop, prompts.corrupt(toy, pop, "swap"), "mlp_out")


# What a grid says about its cells, on numbers made by hand

AXES = (Axis("layer", ("4", "5")), Axis("head", ("0", "1", "2")))


def grid(direction="denoising", axes=AXES, **changes):
    """Clean runs are worth 4 and 2, corrupted ones -2 and -1: a mean gap of 4.5."""
    clean, corrupted = torch.tensor([4.0, 2.0]), torch.tensor([-2.0, -1.0])
    base = corrupted if direction == "denoising" else clean
    values = base.repeat(6, 1)  # [cell batch]
    values[1] += torch.tensor([4.5, 0.0])
    values[2] += torch.tensor([-0.9, 0.45])
    values[5] += torch.tensor([-9.0, -9.0])
    fields = dict(draws=torch.tensor([0, 1]), clean=clean, corrupted=corrupted, direction=direction)
    return Grid(
        values=values.unflatten(0, tuple(len(axis.labels) for axis in axes)), axes=axes, **{**fields, **changes}
    )


def test_denoising_effect_is_restoration_in_units_of_the_mean_gap():
    some = grid()
    assert torch.equal(some.effect(), some.restoration())
    torch.testing.assert_close(some.mean(), torch.tensor([[0, 0.5, -0.05], [0, 0, -2]]))
    torch.testing.assert_close(some.effect()[0, 1], torch.tensor([1.0, 0.0]))


def test_noising_effect_counts_the_way_down_from_the_clean_run():
    some = grid("noising")
    torch.testing.assert_close(some.mean(), torch.tensor([[0, -0.5, 0.05], [0, 0, 2]]))
    torch.testing.assert_close(some.restoration()[0, 0].mean(), torch.tensor(1.0))


def test_sign_stability_is_the_share_that_agrees_with_the_mean():
    assert grid().sign_stability().tolist() == [[1, 0.5, 0.5], [1, 1, 1]]


def test_intervals_lie_around_the_means_and_take_draws_together():
    some = grid()
    low, high = some.bounds()
    # A prompt counts with its own gap: 4.5 of 6 and 0 of 3 leave residuals of a third around the ratio of one half, and
    # so a standard error of one third; two draws have Student's t with one degree of freedom.
    assert (float(low[0, 1]), float(high[0, 1])) == pytest.approx((0.5 - 12.7062 / 3, 0.5 + 12.7062 / 3), abs=1e-4)
    assert bool((low <= some.mean() + 1e-6).all())
    assert bool((some.mean() <= high + 1e-6).all())
    with pytest.raises(MetricError, match="2 values of one group"):
        grid(draws=torch.tensor([3, 3])).bounds()


def test_a_cell_that_restores_every_prompt_has_no_width():
    whole = replace(grid(), values=torch.tensor([4.0, 2.0]).expand(2, 3, 2))
    assert {(cell.mean, cell.low, cell.high) for cell in whole.intervals()} == {(1, 1, 1)}


def test_cells_are_named_as_the_field_names_them():
    assert grid().top(2) == [("5.2", pytest.approx(-2)), ("4.1", pytest.approx(0.5))]
    by_place = grid(axes=(Axis("layer", ("4", "5", "6")), Axis("position", ("S2", "END"))))
    assert [label for label, _ in by_place.top(2)] == ["6 at END", "4 at END"]


def test_runs_that_are_worth_the_same_have_no_effect_to_measure():
    with pytest.raises(MetricError, match="corruption changes the answer"):
        grid(corrupted=torch.tensor([4.0, 2.0])).mean()
