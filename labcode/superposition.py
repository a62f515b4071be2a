"""What was found, held against features that are known.

In a real model nobody can say which features are there, so nobody can say whether a dictionary found them. Where the
truth was drawn first (`sae_lens.synthetic` does that), what a method finds is matched with it, one to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from labcode.errors import MetricError
from labcode.inputs import guard

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def unit(vectors: Float[Tensor, "vector d"]) -> Float[Tensor, "vector d"]:
    """Each row at length 1."""
    real = vectors if vectors.is_floating_point() else vectors.float()
    return real / real.norm(dim=-1, keepdim=True)


def partners(found: Float[Tensor, "latent d"], true: Float[Tensor, "feature d"]) -> Int[Tensor, " feature"]:
    """The row of `found` that is assigned to each true direction, or -1 where none is left.

    No found direction serves two features: the assignment is the one with the largest sum of cosines (the Hungarian
    method, Kuhn 1955). Taking the best cosine for each feature instead would count one direction many times.

    Raises:
        MetricError: a direction that is zero or not finite.
    """
    from scipy.optimize import linear_sum_assignment

    for name, vectors in (("found", found), ("true", true)):
        norm = vectors.double().norm(dim=-1)
        if len(wrong := (~(norm.isfinite() & (norm > 0))).nonzero()):
            raise MetricError(f"{name} direction {int(wrong[0])} is zero or not finite: leave it out before matching")
    rows, columns = linear_sum_assignment((unit(true) @ unit(found).T).detach().numpy(), maximize=True)
    chosen = torch.full((len(true),), -1)
    chosen[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return chosen


def matched(found: Float[Tensor, "latent d"], true: Float[Tensor, "feature d"]) -> Float[Tensor, " feature"]:
    """The cosine of each true direction with its partner among the found ones (`partners`), 0 where it has none.

    Signs count: a direction that points the other way has a negative cosine. The library's
    `sae_lens.synthetic.mean_correlation_coefficient` is the mean of these, signs aside, over features with a partner.

    A limit: random directions get more than 0 too, and the more of them, the more. Show a random dictionary beside it.
    """
    chosen = partners(found, true)
    cosines = (unit(true) * unit(found)[chosen]).sum(-1)
    return torch.where(chosen >= 0, cosines, torch.zeros(())).detach()


def different_causes(
    acts: Float[Tensor, "sample unit"],
    values: Float[Tensor, "sample feature"],
    weights: Float[Tensor, "feature unit"],
    top: int = 50,
) -> Float[Tensor, " live_unit"]:
    """How many different features stand behind the strongest points of each unit, a neuron or a latent.

    Behind a point stands the feature that gives the unit most there: its value times its weight. Only points at which
    the unit is on (above 0) count, at most `top`; units that are never on are left out.
    """
    strongest, where = acts.topk(min(top, len(acts)), dim=0)  # [top unit]
    cause = (values[where] * weights.T).argmax(-1)  # [top unit]
    counts = [len(set(one[on].tolist())) for one, on in zip(cause.T, strongest.T > 0, strict=True) if on.any()]
    return torch.tensor(counts, dtype=torch.float)


guard(globals(), MetricError)
