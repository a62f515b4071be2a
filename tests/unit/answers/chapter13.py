"""Answers to the exercises of chapter 13: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import cosine_similarity

from labcode.superposition import matched, unit


def cosine_table(decoder, directions):
    return cosine_similarity(decoder[:, None], directions[None], dim=-1)  # [latent feature]


def in_masks(latents, decoder, directions, near=None):
    live = (latents > 0).any(0)
    near = cosine_table(decoder, directions).max(1).values > 0.9 if near is None else near
    return {"dead": (~live).sum(), "along": (live & near).sum(), "none": (live & ~near).sum()}


def latent_by_latent(latents, decoder, directions):
    counts = {"dead": 0, "along": 0, "none": 0}
    for i in range(latents.shape[1]):
        if float(latents[:, i].sum()) == 0:
            counts["dead"] += 1
            continue
        cosines = [float(decoder[i] @ true / decoder[i].norm() / true.norm()) for true in directions]
        counts["along" if max(cosines) > 0.9 else "none"] += 1
    return counts


def by_projection(latents, decoder, directions):
    return in_masks(latents, decoder, directions, (decoder @ directions.T).amax(-1) > 0.9)


def dead_ones_too(latents, decoder, directions):
    near = cosine_table(decoder, directions).amax(-1) > 0.9
    return {"dead": int((latents.amax(0) == 0).sum()), "along": int(near.sum()), "none": int((~near).sum())}


def partners(latents, decoder, directions):
    live = latents.amax(0) > 0
    along = int((matched(decoder[live], directions) > 0.9).sum())
    return {"dead": int((~live).sum()), "along": along, "none": int(live.sum()) - along}


def features(latents, decoder, directions):
    live = latents.amax(0) > 0
    near = cosine_table(decoder[live], directions).amax(0) > 0.9
    return {"dead": int((~live).sum()), "along": int(near.sum()), "none": int((~near).sum())}


def either_sign(latents, decoder, directions):
    return in_masks(latents, decoder, directions, cosine_table(decoder, directions).abs().amax(-1) > 0.9)


def off_somewhere(latents, decoder, directions):
    near = cosine_table(decoder, directions).amax(-1) > 0.9
    live = (latents > 0).all(0)
    return {"dead": (~live).sum(), "along": (live & near).sum(), "none": (live & ~near).sum()}


def score(points, latents, decoder, directions, **other):
    """With the variance by torch, and the matching by scipy."""
    error = points - latents @ decoder
    cosines = cosine_table(decoder, directions)
    rows, columns = linear_sum_assignment(-cosines.numpy())
    hits = (cosines[rows, columns] > 0.9).sum()
    return {
        "FVU": error.square().mean(0).sum() / points.var(0, correction=0).sum(),
        "L0": latents.count_nonzero() / len(latents),
        "found": hits / len(directions),
    } | other


def score_in_loops(points, latents, decoder, directions):
    mean = points.mean(0)
    error = sum(float((x - z @ decoder).norm() ** 2) for x, z in zip(points, latents, strict=True))
    total = sum(float((x - mean).norm() ** 2) for x in points)
    on = [sum(value > 0 for value in z) for z in latents.tolist()]
    found = [cosine > 0.9 for cosine in matched(decoder, directions).tolist()]
    return {"FVU": error / total, "L0": sum(on) / len(on), "found": sum(found) / len(found)}


def not_centred(points, latents, decoder, directions):
    rest = (latents @ decoder - points).norm() ** 2 / points.norm() ** 2
    return score(points, latents, decoder, directions, FVU=rest)


def explained(points, latents, decoder, directions):
    given = score(points, latents, decoder, directions)
    return given | {"FVU": 1 - given["FVU"]}


def summed(points, latents, decoder, directions):
    return score(points, latents, decoder, directions, L0=latents.sum() / len(latents))


def share_on(points, latents, decoder, directions):
    return score(points, latents, decoder, directions, L0=latents.count_nonzero() / latents.numel())


def best_for_each(points, latents, decoder, directions):
    best = cosine_table(decoder, directions).max(0).values
    return score(points, latents, decoder, directions, found=(best > 0.9).sum() / len(best))


def of_latents(points, latents, decoder, directions):
    given = score(points, latents, decoder, directions)
    return given | {"found": given["found"] * len(directions) / len(decoder)}


def variance_of_a_value(p):
    return p * (1 / 12) + p * (1 - p)  # within the points where it is on, and between on and off


def pair_by_pair(directions, p):
    found = []
    for i, mine in enumerate(directions):
        squares = [float(mine @ other) ** 2 for j, other in enumerate(directions) if j != i]
        found.append(sum(squares) * variance_of_a_value(p))
    return found


def without_diagonal(directions, p):
    overlap = (directions @ directions.T).fill_diagonal_(0)
    return overlap.norm(dim=1) ** 2 * variance_of_a_value(p)


def weights(directions, power):
    overlap = (directions @ directions.T).fill_diagonal_(0)
    return (overlap.abs() ** power).sum(1)


RIGHT = {
    "13.1": [in_masks, latent_by_latent],
    "13.2": [score, score_in_loops],
    "13.3": [pair_by_pair, without_diagonal],
}
WRONG = {
    "13.1": [
        (by_projection, "You compare projections"),
        (dead_ones_too, "counted twice"),
        (partners, "match one to one"),
        (features, "features instead of latents"),
        (either_sign, "points against a feature"),
        (off_somewhere, "off at some point"),
        (lambda latents, decoder, directions: {"dead": 0, "along": 0, "none": 0}, "no mistake that this check knows"),
    ],
    "13.2": [
        (not_centred, "squared length of the points"),
        (explained, "the part that is explained"),
        (summed, "that is L1"),
        (share_on, "share of latents that are on"),
        (best_for_each, "the best latent for each feature"),
        (of_latents, "divide by the number of latents"),
        (lambda *case: score(*case, L0=0), "no mistake that this check knows"),
    ],
    "13.3": [
        (lambda directions, p: (weights(directions, 2) + 1) * variance_of_a_value(p), "the feature itself"),
        (lambda directions, p: weights(directions, 1) * variance_of_a_value(p), "the size of the cosine"),
        (
            lambda directions, p: (directions @ directions.T).fill_diagonal_(0).sum(1) * variance_of_a_value(p),
            "opposite sign cancel",
        ),
        (lambda directions, p: weights(directions, 2) * (p + p / 12), "the square of the mean value"),
        (lambda directions, p: weights(directions, 2) * (p - p * p), "that is on as 1"),
        (lambda directions, p: weights(directions, 2) * p / 12, "off most of the time"),
        (lambda directions, p: without_diagonal(directions, p) ** 0.5, "the standard deviation"),
        (lambda directions, p: torch.zeros(len(unit(directions))), "no mistake that this check knows"),
    ],
}
