"""Chapter 14: where spare latents go, an error beside what was found, and how large the interference is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode.superposition import matched, unit

ALONG = 0.9


def _cosines(decoder: Tensor, directions: Tensor) -> Tensor:
    """[latent feature]."""
    return unit(decoder) @ unit(directions).T


def _kinds(latents: Tensor, nearest: Tensor, *, all_of_them: bool = False) -> dict[str, int]:
    """Dead, along a feature, along none: counts of latents, given the cosine of each with the nearest feature."""
    live = latents.amax(0) > 0
    counted = torch.ones_like(live) if all_of_them else live
    near = nearest > ALONG
    return {"dead": int((~live).sum()), "along": int((counted & near).sum()), "none": int((counted & ~near).sum())}


def _spare(latents: Tensor, decoder: Tensor, directions: Tensor) -> dict[str, int]:
    return _kinds(latents, _cosines(decoder, directions).amax(-1))


def _one_to_one(latents: Tensor, decoder: Tensor, directions: Tensor) -> dict[str, int]:
    """Only the latent that a feature is matched with counts as along it."""
    live = latents.amax(0) > 0
    along = int((matched(decoder[live], directions) > ALONG).sum())
    return {"dead": int((~live).sum()), "along": along, "none": int(live.sum()) - along}


def _of_features(latents: Tensor, decoder: Tensor, directions: Tensor) -> dict[str, int]:
    """Features counted where latents were asked for."""
    live = latents.amax(0) > 0
    near = _cosines(decoder, directions)[live].amax(0) > ALONG
    return {"dead": int((~live).sum()), "along": int(near.sum()), "none": int((~near).sum())}


def _dictionaries(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Latents [sample latent], a decoder that is not of length 1, and true directions.

    Along a feature: rows 0 to 3, short, and row 4, which shares the feature of row 0. Row 5 points against a feature,
    rows 6 and 7 anywhere, and long. Row 8 is dead and along a feature, row 9 dead and anywhere.
    """
    cases = []
    for seed in (0, 1):
        directions = unit(setting.random(7, 24, seed=seed))
        noise = setting.random(10, 24, seed=seed + 10)
        true = directions[[0, 1, 2, 3, 0, 5, 0, 0, 6, 0]]
        size = torch.tensor([0.4, 0.5, 0.6, 0.7, 1.5, 1.2, 0.0, 0.0, 1.0, 0.0])[:, None]
        sign = torch.tensor([1.0, 1, 1, 1, 1, -1, 1, 1, 1, 1])[:, None]
        decoder = sign * size * true + 0.01 * noise
        decoder[[6, 7, 9]] = 3 * noise[[6, 7, 9]]
        latents = setting.random(40, 10, seed=seed + 20).relu()
        latents[:, 8:] = 0
        cases.append((latents, decoder, directions))
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
    """Of one feature's value: on with probability p, and then uniform from 1/2 to 3/2."""
    return p * 13 / 12 - p**2


def _interference(directions: Tensor, p: float) -> Tensor:
    overlap = directions @ directions.T
    return (overlap.square().sum(-1) - overlap.diagonal().square()) * _variance(p)


def _others(directions: Tensor) -> Tensor:
    """[feature]: the sum of squared cosines with the other features."""
    return (directions @ directions.T).square().sum(-1) - 1


EXERCISES = [
    Exercise(
        number="14.1",
        what="a number of latents",
        near=1e-09,
        takes=("latents", "decoder", "directions"),
        cases=_dictionaries,
        right=_spare,
        says="Each latent is counted once: dead, along a feature, or along none. A feature may have several latents, "
        "and that is where spare ones can go.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda latents, decoder, directions: _kinds(latents, (decoder @ directions.T).amax(-1)),
                says="You compare projections, not cosines: the rows of this decoder are not of length 1. Divide each "
                "by its length first; superposition.unit does it.",
            ),
            Mistake(
                gives=lambda latents, decoder, directions: _kinds(
                    latents, _cosines(decoder, directions).amax(-1), all_of_them=True
                ),
                says="Dead latents are counted twice, as dead and by their direction. A direction that is never used "
                "says nothing: count only live ones as along a feature or along none.",
            ),
            Mistake(
                gives=_one_to_one,
                says="You match one to one, so only one latent of each feature counts. Here we ask where the spare "
                "ones go: take the nearest feature of each latent, whether or not it has a partner.",
            ),
            Mistake(
                gives=_of_features,
                says="You count features instead of latents. In a table of cosines [latent feature], the largest of "
                "each latent is along the last dimension.",
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
                gives=lambda directions, p: _others(directions) * p * 13 / 12,
                says="You take the mean of the squared value for the variance. Take the square of the mean value off, "
                "too.",
            ),
        ],
    ),
]
