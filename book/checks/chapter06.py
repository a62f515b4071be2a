"""Chapter 06: the sum of total effects, mean ablation at one place, attribution patching by hand, and AND or OR."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode import metrics
from labcode.heads import Head

Heads = list[Head]


def _sweeps(setting: Setting) -> list[tuple[Any, ...]]:
    """Patched, clean and corrupted logit differences of two small models."""
    made = []
    for seed, (layers, heads, batch) in enumerate([(3, 2, 6), (2, 5, 8)]):
        noise = partial(setting.random, seed=seed)
        clean, corrupted = 3 + noise(batch), -2 + 0.7 * noise(batch + 1)[1:]
        made.append((corrupted + 0.8 * noise(layers, heads, batch), clean, corrupted))
    return made


def _sum_of_effects(patched: Tensor, clean: Tensor, corrupted: Tensor) -> Tensor:
    return ((patched - corrupted) / (clean - corrupted).mean()).mean(-1).sum()


def _few(pop: Any) -> Any:
    """Two prompts of different length, where there are such."""
    return pop.subset([0, len(pop) - 2])


def _knocked_out(
    model: Any,
    pop: Any,
    reference: Any,
    heads: Heads,
    place: str,
    *,
    fill: str = "mean",
    everywhere: bool = False,
    trapped: bool = False,
) -> Tensor:
    """[batch]: logit(IO) - logit(S) with heads at their mean at one named position, or with one thing wrong."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in sorted({layer for layer, _ in heads})]
    top = max(layer for layer, _ in heads) + 1
    _, stored = model.run_with_cache(reference.tokens, names_filter=names, stop_at_layer=top)
    rows, columns = torch.arange(len(reference)), torch.arange(reference.tokens.shape[1])
    words = (columns > 0) & (columns < reference.lengths[:, None])
    hooks = []
    for layer, head in heads:
        z = stored[f"blocks.{layer}.attn.hook_z"]  # [batch pos head d_head]
        value = {
            "mean": z[rows, reference.positions[place]].mean(0),
            "zero": torch.zeros_like(z[0, 0]),
            "positions": z[words].mean(0),
        }[fill]

        def replace(z: Tensor, hook: Any, head: int = head, value: Tensor = value) -> Tensor:
            z = z.clone()
            chosen = heads[-1][1] if trapped else head
            if everywhere:
                z[:, :, chosen] = value[chosen]
            else:
                z[torch.arange(len(z)), pop.positions[place], chosen] = value[chosen]
            return z

        hooks.append((f"blocks.{layer}.attn.hook_z", replace))
    with model.hooks(fwd_hooks=hooks):
        return metrics.logit_difference(metrics.end_logits(model, pop), pop)


def _knock_outs(setting: Setting) -> list[tuple[Any, ...]]:
    from labcode import prompts

    toy = setting.toy
    pop = prompts.population(toy, 8, seed=2024)
    abc = prompts.corrupt(toy, pop, "abc")
    cfg = setting.model.cfg
    spread = [(cfg.n_layers // 3, 0), (cfg.n_layers // 2, cfg.n_heads - 1)]
    return [
        (toy, pop, abc, [(1, 0), (2, 1)], "END"),
        (toy, pop, abc, [(0, 0)], "S2"),
        (setting.model, _few(setting.pop), _few(setting.abc), spread, "END"),
    ]


def _estimate(
    model: Any, clean: Any, corrupted: Any, layer: int, *, slope_at: str = "corrupted", where: str = "all"
) -> Tensor:
    """[batch head]: slope times difference of z, or with one thing wrong."""
    name = f"blocks.{layer}.attn.hook_z"
    kept: dict[str, Tensor] = {}

    def keep(z: Tensor, hook: Any) -> Tensor:
        kept["z"] = z.detach().requires_grad_()
        return kept["z"]

    base, source = (corrupted, clean) if slope_at == "corrupted" else (clean, corrupted)
    _, run = model.run_with_cache(source.tokens, names_filter=name, stop_at_layer=layer + 1)
    with torch.enable_grad():
        logits = model.run_with_hooks(base.tokens, fwd_hooks=[(name, keep)])
        answer = metrics.logit_difference(logits[torch.arange(len(base)), base.end], clean)
        (slope,) = torch.autograd.grad(answer.sum(), kept["z"])
    difference = run[name] - kept["z"].detach()
    if slope_at != "corrupted":
        difference = -difference
    product = slope * (run[name] if where == "no difference" else difference)  # [batch pos head d_head]
    if where == "END":
        return product[torch.arange(len(base)), base.end].sum(-1)
    return product.sum((1, 3))


def _slopes(setting: Setting) -> list[tuple[Any, ...]]:
    from labcode import prompts

    toy = setting.toy
    pop = prompts.population(toy, 4, seed=2024)
    layer = 3 * setting.model.cfg.n_layers // 4 - 1
    return [
        (toy, pop, prompts.corrupt(toy, pop, "swap"), 2),
        (setting.model, _few(setting.pop), _few(setting.swapped), layer),
    ]


def _two_heads(setting: Setting) -> list[tuple[Tensor, ...]]:
    """Neither, A alone, B alone and both: an or with a bias, an and, and a run that is in between."""
    made: list[tuple[Tensor, ...]] = []
    for seed, (a, b, both) in enumerate([(5.0, 4.0, 6.0), (0.5, 0.2, 5.0), (1.0, 3.0, 4.5)]):
        neither = setting.random(6, seed=seed) - 2
        noise = 0.5 * setting.random(3, 6, seed=seed + 9)
        made.append((neither, neither + a + noise[0], neither + b + noise[1], neither + both + noise[2]))
    return made


def _together(neither: Tensor, a: Tensor, b: Tensor, both: Tensor) -> Tensor:
    return (both - a - b + neither).mean() / (both - neither).mean()


EXERCISES = [
    Exercise(
        number="06.1",
        what="a share of the gap",
        takes=("patched", "clean", "corrupted"),
        cases=_sweeps,
        right=_sum_of_effects,
        says="Each total effect is measured by itself, from the same corrupted run. So nothing makes their sum 1: a "
        "head that works through another one is counted with it, and a head that another can replace is counted too "
        "little.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda patched, clean, corrupted: ((patched - corrupted) / (clean - corrupted)).mean(-1).sum(),
                says="You divided each prompt by its own gap, and prompts with a small gap rule your sum. Divide by "
                "the mean gap over the prompts.",
            ),
            Mistake(
                gives=lambda patched, clean, corrupted: (
                    _sum_of_effects(patched, clean, corrupted) / patched[..., 0].numel()
                ),
                says="This is the average effect of a head. The sum over heads was asked: average over prompts only.",
            ),
            Mistake(
                gives=lambda patched, clean, corrupted: (
                    ((patched - corrupted).mean(-1).abs().sum()) / (clean - corrupted).mean()
                ),
                says="You added sizes. Heads that work against the answer have a negative effect, and keep their sign.",
            ),
            Mistake(
                gives=lambda patched, clean, corrupted: (
                    (patched - corrupted).mean(-1).clamp(min=0).sum() / (clean - corrupted).mean()
                ),
                says="You added the positive effects alone. Heads that work against the answer belong to the sum too.",
            ),
        ],
    ),
    Exercise(
        number="06.2",
        what="the logit difference of each prompt",
        dims="batch",
        near=0.0001,
        takes=("model", "pop", "reference", "heads", "place"),
        cases=_knock_outs,
        right=_knocked_out,
        says="Each head lost what sets this prompt apart, at one place, and kept what it writes there on average.",
        mistakes=[
            Mistake(
                gives=partial(_knocked_out, trapped=True),
                says="Your hooks all replace the last head of the list: the closure trap. A hook made in a loop reads "
                "the loop's variable when it runs, after the loop; bind it with head=head or functools.partial.",
            ),
            Mistake(
                gives=partial(_knocked_out, everywhere=True),
                says="You replace z at all positions. The check wants it replaced at the named position only: "
                "z[rows, pop.positions[place], head].",
            ),
            Mistake(
                gives=partial(_knocked_out, fill="zero"),
                says="You write zeros. Zero also takes away what the head writes there on every prompt; the mean over "
                "the reference prompts keeps it.",
            ),
            Mistake(
                gives=partial(_knocked_out, fill="positions"),
                says="Your mean goes over positions too. What a head writes depends on the place in the sentence: take "
                "each reference prompt at its named position, and average over prompts alone.",
            ),
        ],
    ),
    Exercise(
        number="06.3",
        what="the estimated change of the logit difference",
        dims="batch head",
        takes=("model", "clean", "corrupted", "layer"),
        cases=_slopes,
        right=_estimate,
        says="Slope times difference, summed over positions and over the head's dimensions: one pass backward gives it "
        "for all heads of all layers.",
        mistakes=[
            Mistake(
                gives=partial(_estimate, slope_at="clean"),
                says="Your gradient is that of the clean run. Clean values go into the corrupted run, so the slope is "
                "needed where the step begins: in the corrupted run.",
            ),
            Mistake(
                gives=lambda model, clean, corrupted, layer: -_estimate(model, clean, corrupted, layer),
                says="The sign is turned round. The patch takes z from corrupted to clean, so the difference is clean "
                "minus corrupted.",
            ),
            Mistake(
                gives=partial(_estimate, where="END"),
                says="You count END alone. The patch replaces z at all positions, so sum over them: what a head writes "
                "elsewhere can be read later.",
            ),
            Mistake(
                gives=partial(_estimate, where="no difference"),
                says="You multiplied the gradient by the clean z itself. What counts is how far the patch moves it: "
                "clean minus corrupted.",
            ),
        ],
    ),
    Exercise(
        number="06.4",
        what="a share of what both restore",
        takes=("neither", "a", "b", "both"),
        cases=_two_heads,
        right=_together,
        says="Near 1 the two are an *and*, near −1 an *or*, near 0 they add up. An *or* can be two heads that stand in "
        "for each other, or a chain in which one passes on what the other says.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda neither, a, b, both: (both - a - b).mean() / (both - neither).mean(),
                says="You took A and B away without counting from *neither*. Each has to be measured from the run in "
                "which none of them is restored; then one *neither* is left over, with a plus.",
            ),
            Mistake(
                gives=lambda neither, a, b, both: -_together(neither, a, b, both),
                says="The sign is turned round. Both together more than the sum is an *and*, and has a plus.",
            ),
            Mistake(
                gives=lambda neither, a, b, both: ((both - a - b + neither) / (both - neither)).mean(),
                says="This is a mean of ratios: you divide each prompt by its own effect of both, and small ones rule "
                "the mean. Take the means first and divide once.",
            ),
            Mistake(
                gives=lambda neither, a, b, both: (both - a - b + neither).mean() / both.mean(),
                says="You divided by the answer of the run with both. A share of what both *restore* is counted from "
                "*neither*: both minus neither.",
            ),
        ],
    ),
]
