"""Chapter 18: weights between two dictionaries, what a prediction of an MLP leaves unexplained, and one edge."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from labbook.checks.exercise import Exercise, Mistake, Setting


def _dictionaries(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Decoder rows, weights of a norm, and an encoder."""
    return [
        (
            setting.random(5, 8, seed=seed),
            1 + 0.5 * setting.random(8, seed=seed + 1),
            setting.random(8, 7, seed=seed + 2),
        )
        for seed in (0, 10)
    ]


def _wiring(decoder: Tensor, weight: Tensor, encoder: Tensor) -> Tensor:
    return (decoder * weight) @ encoder


def _predictions(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Samples of unequal length away from 0, a prediction of them, and a mean that is not that of the samples."""
    cases = []
    for seed, noise in ((0, 0.4), (10, 0.9)):
        y = (2 + setting.random(20, 6, seed=seed)) * (1 + setting.random(20, 1, seed=seed + 1).abs())
        cases.append((y, y + noise * setting.random(20, 6, seed=seed + 2), y.mean(0) + 0.2))
    return cases


def _unexplained(y: Tensor, predicted: Tensor, center: Tensor) -> float:
    return float((y - predicted).pow(2).sum() / (y - center).pow(2).sum())


def _mean_of_ratios(y: Tensor, predicted: Tensor, center: Tensor) -> float:
    return float(((y - predicted).pow(2).sum(-1) / (y - center).pow(2).sum(-1)).mean())


def _writings(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Two runs' writings, a gradient at every position, and a place that differs from prompt to prompt."""
    cases = []
    for seed, at in ((0, [3, 1, 4]), (10, [2, 5, 0])):
        first, second = (1 + setting.random(3, 7, seed=seed + i) for i in (1, 2))
        cases.append((first, second, setting.random(3, 6, 7, seed=seed + 3), torch.tensor(at)))
    return cases


def _edge(first: Tensor, second: Tensor, grad: Tensor, at: Tensor) -> Tensor:
    return ((first - second) * grad[torch.arange(len(at)), at]).sum(-1)


EXERCISES = [
    Exercise(
        number="18.1",
        what="a table of weights",
        dims="latent d_sae",
        takes=("decoder", "weight", "encoder"),
        cases=_dictionaries,
        right=_wiring,
        says="A row for each latent that writes, a column for each that reads, and no text was needed.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda decoder, weight, encoder: decoder @ encoder,
                says="The norm is missing: it multiplies every coordinate by its weight before the encoder reads.",
            ),
            Mistake(
                gives=lambda decoder, weight, encoder: (decoder / weight) @ encoder,
                says="You divide by the weights of the norm; it multiplies by them.",
            ),
            Mistake(
                gives=lambda decoder, weight, encoder: normalize(decoder * weight, dim=-1) @ encoder,
                says="You made each row of length 1. How much a unit of a latent adds is part of the weight.",
            ),
        ],
    ),
    Exercise(
        number="18.2",
        what="a share of the variance",
        takes=("y", "predicted", "center"),
        cases=_predictions,
        right=_unexplained,
        says="One sum over all samples, divided by another. So a few very long samples decide it: leave them out, "
        "and say so.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda y, predicted, center: 1 - _unexplained(y, predicted, center),
                says="This is the share that is explained. Asked is what is left.",
            ),
            Mistake(
                gives=lambda y, predicted, center: float((y - predicted).pow(2).sum() / y.pow(2).sum()),
                says="You divide by the sum of squares around 0. Then a prediction that is always the mean looks good: "
                "take the center off.",
            ),
            Mistake(
                gives=_mean_of_ratios,
                says="You take the mean of ratios, one for each sample, which short samples decide. Add up first.",
            ),
            Mistake(
                gives=lambda y, predicted, center: _unexplained(y, predicted, y.mean(0)),
                says="You take the variance around the mean of these samples. The center is the mean of the training "
                "text, which a model without inputs would predict.",
            ),
        ],
    ),
    Exercise(
        number="18.3",
        what="the edge of each prompt",
        dims="batch",
        takes=("first", "second", "grad", "at"),
        cases=_writings,
        right=_edge,
        says="A difference of what is written, times the gradient where it is read. What kind of edge it is, the "
        "gradient knows.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda first, second, grad, at: -_edge(first, second, grad, at),
                says="The sign is turned round. What is lost is the first run's writing, less the second's.",
            ),
            Mistake(
                gives=lambda first, second, grad, at: _edge(first, 0 * second, grad, at),
                says="You count all that the source writes. What it writes in both runs makes no difference.",
            ),
            Mistake(
                gives=lambda first, second, grad, at: ((first - second) * grad[:, at[0]]).sum(-1),
                says="You take the first prompt's position for all prompts. Pair rows and positions: "
                "grad[torch.arange(len(at)), at].",
            ),
            Mistake(
                gives=lambda first, second, grad, at: ((first - second)[:, None] * grad).sum((1, 2)),
                says="You add up the gradients of all positions. The source writes at one of them.",
            ),
        ],
    ),
]
