import pytest
import torch

from labcode import heads, joint, patching, prompts, variants
from labcode.errors import LabError
from labcode.metrics import logit_difference


@pytest.fixture
def pop(tiny):
    return prompts.population(tiny, 6, seed=3)


def test_sets_of_outputs_are_exchanged_as_the_bridge_does_it(tiny, pop):
    source = variants.signal_variant(tiny, pop, "inverted", "inverted")
    last = tiny.cfg.n_layers - 1
    sets = [[(0, 1)], [(0, 0), (last, 1)], []]
    watch = [(last, 1), (0, 0)]
    runs = joint.Joint(tiny, pop)
    found = runs.run(runs.source(source), sets, watch=watch)
    torch.testing.assert_close(found.values[2], runs.clean)
    rows = torch.arange(len(pop))
    for i, members in enumerate(sets):
        if members:
            torch.testing.assert_close(
                found.values[i], patching.exchange(tiny, pop, source, members), atol=1e-4, rtol=1e-4
            )
        with patching.exchanged(tiny, pop, source, members):
            seen = heads.position_attentions(tiny, pop, [("END", place) for place in ("IO", "S2")])
        for j, place in enumerate(("IO", "S2")):
            for w, head in enumerate(watch):
                torch.testing.assert_close(
                    found.attention[i, w, rows, pop.positions[place]], seen[j][head], atol=1e-5, rtol=1e-4
                )


@pytest.mark.parametrize(("kind", "at"), [("q", "END"), ("k", "S2"), ("v", "S2"), ("z", "S2")])
def test_a_set_of_one_is_a_cell_of_a_sweep(tiny, pop, kind, at):
    abc = prompts.corrupt(tiny, pop, "abc")
    grid = patching.sweep(tiny, pop, abc, kind, at=at, direction="noising")
    runs = joint.Joint(tiny, pop)
    group = tiny.cfg.n_heads // grid.values.shape[1]
    cells = [(layer, head) for layer in range(tiny.cfg.n_layers) for head in range(grid.values.shape[1])]
    sets = [[(layer, head * group)] for layer, head in cells]
    torch.testing.assert_close(
        runs.run(runs.source(abc), sets, kind, at).values, grid.values.flatten(0, 1).float(), atol=1e-4, rtol=1e-4
    )


def test_several_keys_are_patched_together(tiny, pop):
    abc = prompts.corrupt(tiny, pop, "abc")
    runs = joint.Joint(tiny, pop)
    last = tiny.cfg.n_layers - 1
    hook = f"blocks.{last}.attn.hook_v"
    _, stored = tiny.run_with_cache(abc.tokens, names_filter=hook)
    rows = torch.arange(len(pop))

    def put(v, hook):
        v = v.clone()
        v[rows, pop.positions["S2"]] = stored[hook.name][rows, pop.positions["S2"]]
        return v

    logits = tiny.run_with_hooks(pop.tokens, fwd_hooks=[(hook, put)])[rows, pop.end]
    found = runs.run(runs.source(abc), [[(last, head) for head in range(tiny.cfg.n_heads)]], "v", "S2")
    torch.testing.assert_close(
        found.values[0], logits[rows, pop.io_ids] - logits[rows, pop.s_ids], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["k", "v", "kv"])
def test_heads_that_share_keys_and_values_can_be_left_alone(tiny, pop, kind):
    abc = prompts.corrupt(tiny, pop, "abc")
    runs = joint.Joint(tiny, pop)
    source, last = runs.source(abc), tiny.cfg.n_layers - 1
    whole = [(last, head) for head in range(tiny.cfg.n_heads)]
    found = runs.run(source, [whole, whole[:1], []], kind, "S2", watch=whole, shared=False)
    together = runs.run(source, [whole], kind, "S2", watch=whole)
    torch.testing.assert_close(found.values[0], together.values[0])
    torch.testing.assert_close(found.values[2], runs.clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.z[1, 0], together.z[0, 0])
    torch.testing.assert_close(found.z[1, 1:], found.z[2, 1:])
    torch.testing.assert_close(found.attention[1, 0], together.attention[0, 0])
    torch.testing.assert_close(found.attention[1, 1:], found.attention[2, 1:])
    assert (found.z[1, 0] - found.z[2, 0]).abs().max() > 1e-4


def test_mistakes_are_named(tiny, pop):
    runs = joint.Joint(tiny, pop)
    source = runs.source(pop)
    torch.testing.assert_close(runs.run(source, [[(0, 0)]], "k", "S2").values[0], runs.clean, atol=1e-4, rtol=1e-4)
    with pytest.raises(LabError, match=r"no head 0\.99"):
        runs.run(source, [[(0, 99)]])
    with pytest.raises(LabError, match="0 sets"):
        runs.run(source, [])
    with pytest.raises(LabError, match="'S3'"):
        runs.run(source, [[]], at="S3")
    with pytest.raises(LabError, match="do not align"):
        runs.source(prompts.population(tiny, 8, seed=2))


def test_what_stands_at_end_of_longer_prompts_is_put_at_end_of_these(tiny):
    pop = prompts.population(tiny, 4, seed=3, templates=variants.FRAMES)
    longer, members = variants.vary(tiny, pop, "no name"), [(0, 1), (1, 2)]
    runs, rows = joint.Joint(tiny, pop), torch.arange(len(pop))
    found = runs.run(runs.end_of(longer), [members, []]).values
    _, stored = tiny.run_with_cache(longer.tokens)

    def put(z, hook):
        for layer, head in members:
            if hook.name == f"blocks.{layer}.attn.hook_z":
                z[rows, pop.end, head] = stored[hook.name][rows, longer.end, head]
        return z

    names = [f"blocks.{layer}.attn.hook_z" for layer, _ in members]
    logits = tiny.run_with_hooks(pop.tokens, fwd_hooks=[(name, put) for name in names])
    torch.testing.assert_close(found[0], logit_difference(logits[rows, pop.end], pop), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], runs.clean)
    with pytest.raises(LabError, match="each prompt needs one partner"):
        runs.end_of(longer.subset([0]))
