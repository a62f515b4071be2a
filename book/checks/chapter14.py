"""Chapter 14: the dimensions of a feature, an error beside what was found, and how large the interference is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode.superposition import matched, unit

ALONG = 0.9


def _dimensions(W: Tensor) -> Tensor:
    """Elhage et al. 2022: the squared length of an arrow over all that lies along its direction."""
    along = (unit(W) @ W.T).square().sum(-1)
    return torch.nan_to_num(W.square().sum(-1) / along)


def _arrows(setting: Setting) -> list[tuple[Tensor]]:
    """Arrows of different lengths, one of them of none, in fewer dimensions than there are arrows and in more."""
    cases = []
    for n, d in ((6, 2), (4, 7)):
        W = setting.random(n, d, seed=n)
        W[2] = 0
        cases.append((W,))
    return cases


def _found(points: Tensor, latents: Tensor, decoder: Tensor, directions: Tensor, **instead: Any) -> dict[str, float]:
    """Three numbers of an SAE, or with some of them replaced."""
    error = (points - latents @ decoder).square().sum()
    right = {
        "FVU": float(error / (points - points.mean(0)).square().sum()),
        "L0": float((latents > 0).double().sum(-1).mean()),
        "found": float((matched(decoder, directions) > ALONG).double().mean()),
    }
    return right | {key: float(value) for key, value in instead.items()}


def _with(key: str, value: Callable[..., Any]) -> Callable[..., dict[str, float]]:
    return lambda points, latents, decoder, directions: _found(
        points, latents, decoder, directions, **{key: value(points, latents, decoder, directions)}
    )


def _codes(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Points off the centre, and a decoder where one latent lies between two features, and one against a feature."""
    cases = []
    for seed in (0, 1):
        directions = setting.random(9, 16, seed=seed)
        directions[1] = directions[0] + 0.2 * directions[1]
        directions = unit(directions)
        decoder = unit(setting.random(12, 16, seed=seed + 10))
        decoder[:4] = unit(torch.stack([directions[0] + directions[1], directions[2], directions[3], -directions[4]]))
        latents = (setting.random(30, 12, seed=seed + 20) - 0.7).relu()
        points = latents @ decoder + 0.3 * setting.random(30, 16, seed=seed + 30) + 0.5
        cases.append((points, latents, decoder, directions))
    return cases


def _variance(p: float) -> float:
    """Of one feature's value: on with probability p, and then with mean 1 and standard deviation 0.3."""
    return p * 1.09 - p**2


def _interference(directions: Tensor, p: float) -> Tensor:
    overlap = directions @ directions.T
    return (overlap.square().sum(-1) - overlap.diagonal().square()) * _variance(p)


def _others(directions: Tensor) -> Tensor:
    """[feature]: the sum of squared cosines with the other features."""
    return (directions @ directions.T).square().sum(-1) - 1


EXERCISES = [
    Exercise(
        number="14.1",
        what="a number of dimensions for each feature",
        dims="feature",
        takes=("W",),
        cases=_arrows,
        right=_dimensions,
        says="Added up over all features they are at most the number of neurons: superposition shares dimensions, it "
        "does not make new ones.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda W: torch.nan_to_num(W.square().sum(-1) / (W @ W.T).square().sum(-1)),
                says="You project on the arrow, not on its direction. Give the arrow that is projected on the length "
                "1 first; superposition.unit does it.",
            ),
            Mistake(
                gives=lambda W: (
                    torch.nan_to_num(1 / (unit(W) @ unit(W).T).nan_to_num().square().sum(-1)) * (W != 0).any(-1)
                ),
                says="You count all arrows as equally long. The others are projected with the length that they have: "
                "a feature that was nearly dropped takes up next to nothing.",
            ),
            Mistake(
                gives=lambda W: torch.nan_to_num(
                    W.square().sum(-1) / ((unit(W) @ W.T).square().sum(-1) - W.square().sum(-1))
                ),
                says="You leave the feature itself out of the sum. It takes up its own direction too: a feature that "
                "shares with nobody gets 1, not infinitely much.",
            ),
            Mistake(
                gives=lambda W: torch.nan_to_num(W.norm(dim=-1) / (unit(W) @ W.T).abs().sum(-1)),
                says="You add up lengths. Both are squared: the arrow's length, and each projection before the sum.",
            ),
        ],
    ),
    Exercise(
        number="14.2",
        what={"FVU": "a fraction of the variance", "L0": "a number of latents", "found": "a share of the features"},
        takes=("points", "latents", "decoder", "directions"),
        cases=_codes,
        right=_found,
        says="Three numbers, and only the first two can be had from a real model: FVU may fall because L0 has risen, "
        "while nothing is found.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=_with("FVU", lambda x, z, dec, _: (x - z @ dec).square().sum() / x.square().sum()),
                says="FVU: you divide by the squared length of the points. Variance is measured from their mean: take "
                "points.mean(0) off first, or data far from 0 look well explained by anything.",
            ),
            Mistake(
                gives=_with("FVU", lambda *case: 1 - _found(*case)["FVU"]),
                says="FVU: this is the part that is explained. FVU is the other part, and a perfect SAE has 0.",
            ),
            Mistake(
                gives=_with("L0", lambda x, z, dec, true: z.sum(-1).mean()),
                says="L0: you add up the values of the latents, and that is L1. L0 counts how many are above 0.",
            ),
            Mistake(
                gives=_with("L0", lambda x, z, dec, true: (z > 0).double().mean()),
                says="L0: this is the share of latents that are on. L0 is their number in a point, so add up over "
                "latents and take the mean over points.",
            ),
        ],
    ),
    Exercise(
        number="14.3",
        what="the variance of the interference in each reading",
        dims="feature",
        takes=("directions", "p"),
        cases=lambda setting: [(unit(setting.random(7, 4)), 0.1), (unit(setting.random(5, 12)), 0.4)],
        right=_interference,
        says="The interference grows with the squared cosines and with how often the others are on. It can be written "
        "down without a sample, as long as the features are independent.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda directions, p: (_others(directions) + 1) * _variance(p),
                says="You count the feature itself among the others. Its own value is what we want to read: leave the "
                "diagonal out.",
            ),
            Mistake(
                gives=lambda directions, p: ((directions @ directions.T).abs().sum(-1) - 1) * _variance(p),
                says="You weight with the size of the cosine. A value that is multiplied by c has c² times the "
                "variance: square the cosines.",
            ),
            Mistake(
                gives=lambda directions, p: ((directions @ directions.T).sum(-1) - 1) * _variance(p),
                says="You add up cosines, and those of opposite sign cancel. Variances of independent values add, each "
                "with the square of its cosine.",
            ),
            Mistake(
                gives=lambda directions, p: _others(directions) * p * 1.09,
                says="You take the mean of the squared value for the variance. Take the square of the mean value off, "
                "too.",
            ),
        ],
    ),
]
