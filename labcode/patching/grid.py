"""The result of a sweep: one value for each cell and prompt, with what is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labcode.metrics import Interval, bootstrap_ratios, restoration
from labcode.patching.plan import Axis

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Patched runs by cell and prompt.

    Attributes:
        values: the metric of each patched run (logit difference, in nats, unless the sweep had another metric).
        clean, corrupted: the metric of the two unpatched runs.
        axes: names and labels of the cell axes, such as layer and head.
        direction: "denoising" (clean activations into corrupted runs) or "noising" (corrupted into clean).
        draws: prompts that share a draw are resampled together.
        engine: "suffix" or "replay", how the values were computed; they are the same numbers.
    """

    values: Float[Tensor, "*cells batch"]
    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"]
    axes: tuple[Axis, ...]
    direction: str
    draws: Int[Tensor, " batch"]
    engine: str

    def restoration(self) -> Float[Tensor, "*cells batch"]:
        """0 where a run is worth what the corrupted runs are worth, 1 where it is worth what the clean ones are.

        The unit is the mean gap over the prompts (see `metrics.restoration`): prompts with a small gap do not explode.

        Raises:
            MetricError: clean and corrupted runs are worth the same, so there is nothing to restore.
        """
        return restoration(self.values, self.clean, self.corrupted)

    @property
    def _ends(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """What runs are worth without a patch, and where a patch can carry them."""
        ends = self.corrupted, self.clean
        return ends if self.direction == "denoising" else ends[::-1]

    def effect(self) -> Float[Tensor, "*cells batch"]:
        """The share of the gap that the patch crosses: 0 if it does nothing, 1 if it carries the run all the way.

        In denoising this is the restoration. In noising it counts each prompt's way down from its own clean run.

        Raises:
            MetricError: as `restoration`.
        """
        start, goal = self._ends
        return restoration(self.values, goal, start)

    def mean(self) -> Float[Tensor, "*cells"]:
        """Mean effect of each cell over the prompts."""
        return self.effect().mean(-1)

    def intervals(self, level: float = 0.95) -> list[Interval]:
        """Bootstrap interval of the mean effect of each cell, in row-major order of the cells.

        The mean gap, its unit, is that of the same resampled prompts: a cell that restores every prompt has no width.
        """
        start, goal = self._ends
        whole = restoration(goal, goal, start)  # each prompt's own gap, in units of the mean gap
        return bootstrap_ratios(self.effect().flatten(0, -2), whole, self.draws, level)

    def bounds(self, level: float = 0.95) -> tuple[Float[Tensor, "*cells"], Float[Tensor, "*cells"]]:
        """Lower and upper bound of `intervals`, shaped like `mean()`."""
        intervals = self.intervals(level)
        shape = self.values.shape[:-1]
        low = torch.tensor([i.low for i in intervals]).reshape(shape)
        return low, torch.tensor([i.high for i in intervals]).reshape(shape)

    def sign_stability(self) -> Float[Tensor, "*cells"]:
        """Share of prompts whose effect has the sign of the mean effect: 1 if all agree, about 0.5 for noise."""
        effect = self.effect()
        return (effect.sign() == effect.mean(-1, keepdim=True).sign()).float().mean(-1)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """One line for each cell: its labels, mean effect, interval, sign stability."""
        import pandas as pd

        index = pd.MultiIndex.from_product([axis.labels for axis in self.axes], names=[axis.name for axis in self.axes])
        intervals = self.intervals(level)
        columns = {
            "mean": [i.mean for i in intervals],
            "low": [i.low for i in intervals],
            "high": [i.high for i in intervals],
            "sign_stability": self.sign_stability().flatten().tolist(),
        }
        return pd.DataFrame(columns, index=index).reset_index()

    def top(self, n: int) -> list[tuple[str, float]]:
        """The `n` cells with the largest mean effect in either direction, as (label, mean).

        A label joins those of the axes: "9.6" is layer 9, head 6.
        """
        mean = self.mean().flatten()
        order = mean.abs().argsort(descending=True)[:n].tolist()
        return [(self.label(cell), float(mean[cell])) for cell in order]

    def label(self, cell: int) -> str:
        """The label of a cell, given its row-major number."""
        index = torch.unravel_index(torch.tensor(cell), self.values.shape[:-1])
        labels = {axis.name: axis.labels[int(i)] for axis, i in zip(self.axes, index, strict=True)}
        place = labels.pop("position", None)
        return ".".join(labels.values()) + (f" at {place}" if place else "")
