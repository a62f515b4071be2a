"""Published figures of GPT-2 small, asserted wherever its weights are in the local cache."""

from __future__ import annotations

import pytest
import torch

from labcode import metrics, prompts, residual
from labcode.circuit import Runner, ablate
from labcode.faithful import faithfulness
from labcode.families import FAMILIES
from labcode.patching import sweep
from labcode.report import CIRCUIT, PUBLISHED

pytestmark = pytest.mark.gpt2

DEMOS = (
    ("When{A} and{B} went to the shops,{S} gave the bag to", "John", "Mary"),
    ("When{A} and{B} went to the park,{S} gave the ball to", "Tom", "James"),
    ("When{A} and{B} went to the shops,{S} gave an apple to", "Dan", "Sid"),
    ("After{A} and{B} went to the park,{S} gave a drink to", "Martin", "Amy"),
)


def expect(key: str, value: float) -> None:
    figure = PUBLISHED[key]
    assert figure.agrees(value), f"{figure.quantity}: {value}, published {figure}"


def difference(model, pop) -> torch.Tensor:
    return metrics.logit_difference(metrics.end_logits(model, pop), pop)


def eight(model) -> prompts.Population:
    return prompts.build(
        model,
        [
            prompts.Prompt(frame.format(A=" " + a, B=" " + b, S=" " + s), io, s, "")
            for frame, a, b in DEMOS
            for s, io in ((b, a), (a, b))
        ],
    )


def test_the_eight_prompts_of_the_demos(gpt2):
    pop = eight(gpt2)
    clean = difference(gpt2, pop)
    swapped = difference(gpt2, prompts.corrupt(gpt2, pop, "swap"))
    expect("demos.logit_difference", float(clean.mean()))
    assert float(swapped.mean()) == pytest.approx(-float(clean.mean()), abs=1e-3)


@pytest.mark.parametrize(
    ("key", "io", "s"),
    [
        ("lab.mary_john", "Mary", "John"),
        ("lab.john_mary", "John", "Mary"),
        ("lab.alice_bob", "Alice", "Bob"),
        ("lab.bob_alice", "Bob", "Alice"),
    ],
)
def test_role_swaps(gpt2, key, io, s):
    expect(key, float(difference(gpt2, prompts.canonical(gpt2, io=io, s=s))))


def test_corrupted_and_top_token(gpt2):
    one = prompts.canonical(gpt2)
    assert prompts.quoted(gpt2, metrics.end_logits(gpt2, one)[0].argmax()) == "“ Mary”"
    expect("lab.corrupted", float(difference(gpt2, prompts.corrupt(gpt2, one, "swap"))))


def test_population(gpt2):
    pop = prompts.population(gpt2, 160)
    logits = metrics.end_logits(gpt2, pop)
    expect("wang.logit_difference", float(metrics.logit_difference(logits, pop).mean()))
    expect("wang.accuracy", float(metrics.prefers_io(logits, pop).mean()))
    expect("wang.p_io", float(metrics.p_io(logits, pop).mean()))


def test_direct_attribution(gpt2):
    one = prompts.canonical(gpt2)
    parts = residual.decompose(gpt2, one)
    share = dict(zip(parts.labels, residual.direct_attribution(gpt2, one, parts)[:, 0].tolist(), strict=True))
    for key in PUBLISHED:
        if key.startswith("lab.dla."):
            expect(key, share[key.removeprefix("lab.dla.")])


def test_patching_the_stream_and_the_sublayers(gpt2):
    one = prompts.canonical(gpt2)
    corrupted = prompts.corrupt(gpt2, one, "swap")
    for kind, hook in (("resid", "resid_pre"), ("attn", "attn_out"), ("mlp", "mlp_out")):
        mean = sweep(gpt2, one, corrupted, hook, at=["S2", "END"]).mean()  # [layer position]
        for key in PUBLISHED:
            if key.startswith(f"lab.{kind}."):
                layer, place = key.split(".")[2:]
                expect(key, float(mean[int(layer), ("S2", "END").index(place)]))


def test_patching_heads(gpt2):
    one = prompts.canonical(gpt2)
    mean = sweep(gpt2, one, prompts.corrupt(gpt2, one, "swap"), "z").mean()  # [layer head]
    for key in PUBLISHED:
        if key.startswith("lab.z."):
            layer, head = map(int, key.split(".")[2:])
            expect(key, float(mean[layer, head]))


def test_zero_ablation(gpt2):
    one = prompts.canonical(gpt2)
    expect("lab.zero.9.9", float(ablate(gpt2, one, [(9, 9)])[0]))
    expect("lab.zero.10.7", float(ablate(gpt2, one, [(10, 7)])[0]))
    expect("lab.zero.movers", float(ablate(gpt2, one, [(9, 9), (9, 6), (10, 0), (10, 10)])[0]))
    expect("demos.zero.9.9", float(ablate(gpt2, eight(gpt2), [(9, 9)], at="END").mean()))


def test_the_published_circuit_is_as_faithful_as_published(gpt2):
    """Wang et al. 2022, section 4: 26 heads, each at its position, keep 87 % of the logit difference."""
    pop = prompts.population(gpt2, 40, seed=5)
    twins = prompts.build(gpt2, list(pop.prompts) * 3)
    nodes = [(*head, FAMILIES[name].position) for name, heads in CIRCUIT.items() for head in heads]
    runner = Runner(gpt2, pop, prompts.corrupt(gpt2, twins, "abc"), least=6)
    expect("wang.faithfulness", faithfulness(runner, {"published": nodes})["published"].share.mean)
