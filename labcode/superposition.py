"""Data whose features are known: sparse, more of them than dimensions, each with a direction of its own.

In a real model nobody can say which features are there, so nobody can say whether a dictionary found them. Here the
truth is drawn first: a point is the sum of the directions of the few features that are on, each times its value. What a
method finds is then matched with the truth, one to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labcode.errors import MetricError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class ToyFeatures:
    """A known set of features and how often they are on.

    Attributes:
        directions: one unit vector for each feature.
        p: the probability that a feature is on, the same for all.
        together: the first half of the features come in pairs (0 and 1, 2 and 3, ...). With this probability the second
            of a pair is on exactly where the first is; otherwise it is drawn for itself. 0 makes all independent.
    """

    directions: Float[Tensor, "feature d"]
    p: float
    together: float = 0.0

    @property
    def n_paired(self) -> int:
        """How many features, from the first one on, come in pairs."""
        return len(self.directions) // 4 * 2

    def sample(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "sample feature"], Float[Tensor, "sample d"]]:
        """Values of the features at `n` points, and the points. A feature that is on has a value from 0.5 to 1.5.

        Source: the set-up of Elhage et al. 2022 (Toy Models of Superposition), with directions given instead of learnt
        and values away from 0, so that on and off can be told apart.
        """
        n_features = len(self.directions)
        on = torch.rand(n, n_features, generator=generator) < self.p
        if self.together:
            first, second = on[:, 0 : self.n_paired : 2], on[:, 1 : self.n_paired : 2]
            linked = torch.rand(first.shape, generator=generator) < self.together
            on[:, 1 : self.n_paired : 2] = torch.where(linked, first, second)
        values = on * (0.5 + torch.rand(n, n_features, generator=generator))
        return values, values @ self.directions


def make(n_features: int = 128, d: int = 32, *, p: float = 0.02, together: float = 0.0, seed: int = 0) -> ToyFeatures:
    """Directions drawn at random from the unit sphere. They are nearly, and not quite, at right angles.

    The seed is spread so that a dictionary started from `torch.manual_seed(seed)` does not start at these directions.

    Raises:
        MetricError: no features or dimensions, or a probability outside 0 to 1.
    """
    if n_features < 1 or d < 1:
        raise MetricError(f"{n_features} features in {d} dimensions: at least one of each is needed")
    if not (0 < p <= 1 and 0 <= together <= 1):
        raise MetricError(f"p={p}, together={together}: both are probabilities, and p is above 0")
    generator = torch.Generator().manual_seed(1_000_003 + 7919 * seed)
    return ToyFeatures(unit(torch.randn(n_features, d, generator=generator)), p, together)


def unit(vectors: Float[Tensor, "vector d"]) -> Float[Tensor, "vector d"]:
    """Each row at length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def matched(found: Float[Tensor, "latent d"], true: Float[Tensor, "feature d"]) -> Float[Tensor, " feature"]:
    """The cosine of each true direction with the one found direction that is assigned to it.

    No found direction serves two features: the assignment is the one with the largest sum of cosines (the Hungarian
    method, Kuhn 1955). Taking the best cosine for each feature instead would count one direction many times. Where
    there are fewer found directions than features, the features that are left over get 0. Signs count: a direction
    that points the other way has a negative cosine.

    A limit: random directions get more than 0 too, and the more of them, the more. Show a random dictionary beside it.

    Raises:
        MetricError: other numbers of dimensions, or a direction that is zero or not finite.
    """
    from scipy.optimize import linear_sum_assignment

    if found.ndim != 2 or true.ndim != 2 or found.shape[-1] != true.shape[-1]:
        raise MetricError(f"directions of shape {tuple(found.shape)} cannot be matched with {tuple(true.shape)}")
    for name, vectors in (("found", found), ("true", true)):
        norm = vectors.norm(dim=-1)
        if not (norm.isfinite() & (norm > 0)).all():
            row = int((~(norm.isfinite() & (norm > 0))).nonzero()[0])
            raise MetricError(f"{name} direction {row} is zero or not finite: leave it out before matching")
    cosines = unit(true) @ unit(found).T  # [feature latent]
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    best = torch.zeros(len(true))
    best[rows] = cosines[rows, columns]
    return best
