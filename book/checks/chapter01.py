"""Chapter 01: how many prompts, odds from a logit difference, and the logit difference by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting


def _needed(width: float, n: int, target: float) -> int:
    return math.ceil(n * (width / target) ** 2)


def _two_way(difference: float) -> float:
    return 1 / (1 + math.exp(-difference))


def _difference(model: Any, pop: Any, *, space: str = " ", end: bool = True, sign: float = 1.0) -> Tensor:
    """[batch]: logit(IO) - logit(S) at END, or with one thing wrong."""
    logits = model(pop.tokens)
    column = pop.end if end else torch.full_like(pop.end, pop.tokens.shape[1] - 1)
    at_end = logits[torch.arange(len(pop)), column]

    def of(names: list[str]) -> Tensor:
        ids = [model.tokenizer.encode(space + name, add_special_tokens=False)[0] for name in names]
        return at_end.gather(1, torch.tensor(ids)[:, None])[:, 0]

    return sign * (of([p.io for p in pop.prompts]) - of([p.s for p in pop.prompts]))


def _populations(setting: Setting) -> list[tuple[Any, Any]]:
    return [(setting.model, setting.one), (setting.model, setting.pop)]


EXERCISES = [
    Exercise(
        number="01.1",
        what="a whole number of prompts",
        near=1e-09,
        takes=("width", "n", "target"),
        cases=lambda setting: [(1.0, 20, 0.5), (0.8, 100, 0.3), (0.3, 50, 0.3)],
        right=_needed,
        says="The width falls with the square root of the number of prompts: half the width costs four times as many.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda width, n, target: math.ceil(n * width / target),
                says="You let the width fall in proportion to the number of prompts. Print the widths for 20 and 80 of "
                "our prompts: four times as many only halve it.",
            ),
            Mistake(
                gives=lambda width, n, target: math.ceil(n * math.sqrt(width / target)),
                says="You took the root where the square belongs. The width goes with 1 over the root of n; solved for "
                "n, the root becomes a square.",
            ),
            Mistake(
                gives=lambda width, n, target: math.ceil(n * (target / width) ** 2),
                says="Your ratio is upside down: a narrower interval asks for more prompts, and yours takes fewer.",
            ),
            Mistake(
                gives=lambda width, n, target: n * (width / target) ** 2,
                says="The square is right, but there are no half prompts: round up, and the interval is narrow enough.",
            ),
        ],
    ),
    Exercise(
        number="01.2",
        what="a probability",
        near=0.0001,
        takes=("difference",),
        cases=lambda setting: [(0.0,), (2.0,), (-3.0,)],
        right=_two_way,
        says="A difference of logits is the logarithm of the odds between two tokens. No other token's logit matters.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda difference: math.exp(difference),
                says="These are the odds, IO to S, not a probability: they pass 1. A probability is odds / (1 + odds).",
            ),
            Mistake(
                gives=lambda difference: _two_way(-difference),
                says="This is the probability of S: the sign is turned round. The difference is logit(IO) - logit(S).",
            ),
            Mistake(
                gives=lambda difference: 1 / (1 + 10**-difference),
                says="You took powers of 10. Softmax takes powers of e, so logits are natural logarithms.",
            ),
            Mistake(
                gives=lambda difference: 1 / (1 + 2**-difference),
                says="You took powers of 2. Softmax takes powers of e, so logits are natural logarithms.",
            ),
        ],
    ),
    Exercise(
        number="01.3",
        what="the logit difference of each prompt",
        dims="batch",
        takes=("model", "pop"),
        cases=_populations,
        right=_difference,
        says="One pass, the logits at END, the two tokens with their spaces: this is the measure of the whole book.",
        mistakes=[
            Mistake(
                gives=lambda model, pop: _difference(model, pop, space=""),
                says="You compare the tokens without their space, the ones that a text starts with. After “to” neither "
                "can come, and no error says so. The name needs its space: ' Mary'.",
            ),
            Mistake(
                gives=lambda model, pop: _difference(model, pop, sign=-1.0),
                says="The sign is turned round: logit(IO) comes first, logit(S) is taken away.",
            ),
            Mistake(
                gives=lambda model, pop: _difference(model, pop, end=False),
                says="You read the last column. Shorter prompts are padded on the right, so for them this is padding: "
                "read each prompt at pop.end.",
            ),
            Mistake(
                gives=lambda model, pop: _difference(model, pop).mean(0, keepdim=True).expand(len(pop)),
                says="All prompts got the mean. The check wants one number for each prompt.",
            ),
        ],
    ),
]
