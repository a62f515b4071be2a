"""Circuits in many states equal a plain loop with hooks, and come out on the hand-wired toy as on paper."""

from __future__ import annotations

import pytest
import torch

from labcode import circuit, prompts
from labcode.circuit import Keep, Means, Out, Runner, ablate, kept_heads, schedule
from labcode.errors import HeadError, PatchError
from labcode.metrics import logit_difference
from labcode.toy import MOVER, NEGATIVE

FULL = MOVER - NEGATIVE


def values(model, pop, reference, states):
    return Runner(model, pop, reference, least=1).values(states)


def slow(model, pop, reference, states):
    """One prompt and one state at a time: means by hand, from single runs of the reference."""
    hook_z = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    alone = [model.run_with_cache(reference.subset([j]).tokens)[1] for j in range(len(reference))]
    found = torch.empty(len(states), len(pop))
    for i, prompt in enumerate(pop.prompts):
        end = int(pop.end[i])
        same = [
            j
            for j, other in enumerate(reference.prompts)
            if other.template == prompt.template
            and reference.positions["S2"][j] == pop.positions["S2"][i]
            and reference.end[j] == end
        ]
        for number, state in enumerate(states):
            named = {
                (layer, head, place)
                for layer, head, name in state.nodes
                for place in (range(1, end + 1) if name == "all" else [int(pop.positions[name][i])])
            }

            def write(z, hook, layer, named=named, state=state, same=same, end=end):
                z = z.clone()
                for place in range(1, end + 1):
                    for head in range(z.shape[2]):
                        if ((layer, head, place) in named) == isinstance(state, Out):
                            z[0, place, head] = sum(alone[j][hook_z[layer]][0, place, head] for j in same) / len(same)
                return z

            hooks = [(name, lambda z, hook, layer=layer: write(z, hook, layer)) for layer, name in enumerate(hook_z)]
            one = pop.subset([i])
            found[number, i] = logit_difference(model.run_with_hooks(one.tokens, fwd_hooks=hooks)[:, -1], one)
    return found


@pytest.fixture
def several(tiny):
    """Prompts of several templates and lengths, and a larger reference."""
    templates = prompts.TEMPLATES[:4]
    pop = prompts.population(tiny, 6, seed=2, templates=templates)
    assert pop.lengths.unique().numel() > 1
    larger = prompts.population(tiny, 16, seed=3, templates=templates)
    every = prompts.build(tiny, [*pop.prompts, *larger.prompts])
    return pop, prompts.corrupt(tiny, every, "abc")


STATES = [
    Keep(),
    Out(),
    Keep([(0, 1, "S1+1"), (1, 0, "S2"), (2, 3, "END")]),
    Keep([(0, 1, "all"), (1, 2, "S2"), (2, 0, "all")]),
    Keep([(2, 2, "S2")]),  # too late to be read by anyone
    Out([(0, 0, "all")]),
    Out([(0, 3, "S1"), (1, 1, "S2"), (1, 2, "S2"), (2, 1, "END")]),
    Out([(2, 1, "END"), (2, 2, "END")]),
]


@pytest.mark.parametrize("few", [False, True])
def test_states_equal_a_plain_loop_with_hooks(tiny, several, few, monkeypatch):
    """Also where prompts, states and rows are taken in the smallest portions."""
    if few:
        for bound in ("PROMPTS_AT_ONCE", "STATES_AT_ONCE", "ROWS_AT_ONCE", "ASKING_AT_ONCE", "MLP_AT_ONCE"):
            monkeypatch.setattr(circuit, bound, 1)
    pop, reference = several
    found = values(tiny, pop, reference, STATES)
    expected = slow(tiny, pop, reference, STATES)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected.amax(0) - expected.amin(0)).min() > 1e-2


def test_keeping_everything_and_taking_out_nothing_are_the_model(tiny, several):
    pop, reference = several
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    found = values(tiny, pop, reference, [Out(), Keep([(*head, "all") for head in heads])])
    torch.testing.assert_close(found, ablate(tiny, pop).expand(2, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("at", ["all", "S2", "END"])
def test_taking_out_is_the_template_mean_ablation(tiny, several, at):
    pop, reference = several
    heads = [(0, 2), (1, 3)]
    expected = ablate(tiny, pop, heads, "template-mean", at=at, reference=reference)
    (found,) = values(tiny, pop, reference, [Out([(*head, at) for head in heads])])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - ablate(tiny, pop)).abs().max() > 1e-4


def test_the_embedded_model_in_a_few_states(smollm2):
    pop = prompts.population(smollm2, 4, seed=5, templates=prompts.TEMPLATES[:2]).subset([0, 2])
    reference = prompts.corrupt(smollm2, pop, "abc")
    layers, heads = smollm2.cfg.n_layers, smollm2.cfg.n_heads
    some = [(layer, layer % heads, ("S1+1", "S2", "END")[layer % 3]) for layer in range(0, layers, 2)]
    states = [Keep(some), Keep([(*node[:2], "all") for node in some]), Out(some)]
    found = values(smollm2, pop, reference, states)
    torch.testing.assert_close(found, slow(smollm2, pop, reference, states), atol=1e-4, rtol=0)


CHAIN = [(0, 0, "S2"), (1, 0, "END"), (2, 0, "END"), (2, 1, "END")]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (Keep(CHAIN), FULL),
        (Keep([(*node[:2], "all") for node in CHAIN]), FULL),
        (Keep(), 0),
        (Keep(CHAIN[:3]), MOVER),
        (Keep(CHAIN[2:]), -FULL / 3),  # END rules out nobody, and S stands there twice
        (Keep([(0, 0, "S1"), *CHAIN[1:]]), -FULL / 3),  # the duplicate token is found at S2 only
        (Keep([CHAIN[0], (1, 0, "S2"), *CHAIN[2:]]), -FULL / 3),
        (Out(CHAIN[:1]), -FULL / 3),
        (Out(CHAIN[2:]), 0),
        (Out([(0, 1, "all"), (1, 1, "all")]), FULL),
        (Out([(0, 0, "END")]), FULL),
    ],
)
def test_the_hand_wired_circuit_on_paper(toy, state, expected):
    clean = prompts.canonical(toy)
    found = values(toy, clean, prompts.corrupt(toy, clean, "abc"), [state])
    assert float(found) == pytest.approx(expected, abs=1e-4)


def rows_of(pop, states, n_layers=3, n_heads=2):
    return schedule(kept_heads(pop, states, n_layers, n_heads), pop.end)


def test_states_share_what_they_have_in_common(toy):
    """On paper: what each state adds to the rows, for one prompt of the toy."""
    clean = prompts.canonical(toy)
    end = int(clean.end)
    alone = rows_of(clean, [Out()])
    assert [len(step.source) for step in alone.steps] == [end, end, 1]  # the last layer has END only
    last = rows_of(clean, [Out(), Out([(2, 0, "END")]), Out([(2, 1, "END")])])
    assert [len(step.source) for step in last.steps] == [end, end, 3]
    first = rows_of(clean, [Out(), Out([(0, 0, "S2")])])
    after = end - int(clean.positions["S2"][0])
    assert [len(step.source) for step in first.steps] == [end + 1, end + after + 1, 2]
    kept = rows_of(clean, [Keep([(1, 0, "END")]), Keep([(0, 0, "S2"), (1, 0, "END")])])
    assert [len(step.source) for step in kept.steps] == [end + 1, 2, 2]
    assert rows_of(clean, [Keep()] * 5).most_rows == 1


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "no states to run"),
        ([Keep([(3, 0, "END")])], "no head 3.0: this model has 3 layers of 2 heads"),
        ([Out([(0, 2, "END")])], "no head 0.2"),
        ([Keep([(0, 0, "S3")])], "0.0 at 'S3': no such position"),
    ],
)
def test_states_that_do_not_exist_are_named(toy, states, message):
    clean = prompts.canonical(toy)
    with pytest.raises((PatchError, HeadError), match=message):
        values(toy, clean, prompts.corrupt(toy, clean, "abc"), states)


def test_a_template_without_a_twin_is_named(tiny, several):
    pop, reference = several
    missing = [i for i in range(len(reference)) if reference.prompts[i].template != pop.prompts[0].template]
    with pytest.raises(PatchError, match="no other reference prompt has the template of"):
        values(tiny, pop, reference.subset(missing), [Out()])


def test_means_of_other_templates_are_refused(tiny, several):
    pop, reference = several
    known = [i for i in range(len(pop)) if pop.prompts[i].template == pop.prompts[0].template]
    means = Means(tiny, pop.subset(known), reference, least=1)
    shared = Runner(tiny, pop.subset(known), reference, means=means).values(STATES[:3])
    torch.testing.assert_close(shared, values(tiny, pop, reference, STATES[:3])[:, known], atol=1e-5, rtol=0)
    with pytest.raises(PatchError, match="these means do not hold the template of"):
        Runner(tiny, pop, reference, means=means).values([Keep()])


@pytest.mark.parametrize("how", ["zero", "mean", "template-mean", "resample", "corrupted"])
def test_every_way_of_taking_out_is_that_of_an_ablation(tiny, several, how):
    """For zero without the first position, which a runner never replaces."""
    pop, reference = several
    if how == "corrupted":
        reference = reference.subset(range(len(pop)))
    nodes, places = [(0, 2, "S2"), (1, 3, "S2")], {"at": "S2"}
    expected = ablate(tiny, pop, [node[:2] for node in nodes], how, reference=reference, seed=3, **places)
    runner = Runner(tiny, pop, reference, how=how, least=1, seed=3)
    torch.testing.assert_close(runner.values([Out(nodes)])[0], expected, atol=1e-5, rtol=0)
    assert (expected - ablate(tiny, pop)).abs().max() > 1e-4


def test_corrupted_is_the_corrupted_prompts_own_output(toy):
    """The reference is the swapped prompt: its name mover writes S."""
    clean = prompts.canonical(toy)
    runner = Runner(toy, clean, prompts.corrupt(toy, clean, "swap"), how="corrupted")
    assert float(runner.values([Out([(2, 0, "END")])])) == pytest.approx(-NEGATIVE - MOVER, abs=1e-4)


def test_references_are_enough_for_each_template(tiny, several):
    pop, _ = several
    shapes = [circuit.shape_of(pop, i) for i in range(len(pop))]
    found = circuit.references(tiny, pop, 5)
    made = [circuit.shape_of(found, i) for i in range(len(found))]
    assert found.corruption == "abc"
    assert all(5 <= made.count(shape) < 5 + shapes.count(shape) for shape in shapes)
    Runner(tiny, pop, found, least=5)
    with pytest.raises(PatchError, match="and at least 6 are asked for"):
        Runner(tiny, pop, found.subset(range(5)), how="mean", least=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a mean of 1 reference prompts for '.*', and at least 8 are asked for"),
        ({"how": "median"}, "unknown how 'median'"),
        ({"how": "corrupted"}, "do not align with the prompts one by one"),
    ],
)
def test_means_that_cannot_be_taken_are_named(toy, options, message):
    clean = prompts.canonical(toy)
    one = prompts.corrupt(toy, clean, "abc")
    if options.get("how") == "corrupted":
        one = circuit.references(toy, clean, 2)
    with pytest.raises(PatchError, match=message):
        Means(toy, clean, one, **options)
    with pytest.raises(PatchError, match="'mean' needs a reference population"):
        Means(toy, clean, None, how="mean")


def test_weights_that_are_not_numbers_are_named(tiny, several, monkeypatch):
    pop, reference = several
    runner = Runner(tiny, pop, reference, least=1)
    monkeypatch.setattr(runner.means, "_sums", runner.means._sums * float("nan"))
    with pytest.raises(PatchError, match="no finite answer on"):
        runner.values([Keep()])
