"""What sweeps and paths share: prompts in pieces that fit in memory, their two unpatched runs, the verdict on a run.

Used in chapters 04 to 06, through `labcode.patching` and `labcode.paths`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from labcode.errors import ModelError
from labcode.metrics import logit_difference
from labcode.patching.grid import Grid
from labcode.patching.network import Network
from labcode.patching.plan import PatchError, Plan, Rows, first_difference
from labcode.patching.suffix import Run, Suffix, prompts_at_once, record
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Direction = Literal["denoising", "noising"]
Metric = Callable[["Float[Tensor, 'batch d_vocab']", "Population"], "Float[Tensor, ' batch']"]


@dataclass(frozen=True)
class Piece:
    """Some prompts of a sweep.

    Attributes:
        base: the prompts that are run. source: those whose activations are patched in.
        clean: the clean prompts, which hold the right answers.
        start: the first position that can differ, of each prompt.
        plan: the cells, for these prompts.
        metric: what a run is worth.
        max_bytes: bound for the working memory.
    """

    base: Population
    source: Population
    clean: Population
    start: Int[Tensor, " batch"]
    plan: Plan
    metric: Metric
    max_bytes: int

    def judge(self, logits: Float[Tensor, "run d_vocab"], prompts: Sequence[int]) -> Float[Tensor, " run"]:
        """The metric of runs of these prompts, given their logits at END.

        Raises:
            PatchError: it has another shape, or is NaN.
        """
        return _one_number_each(self.metric(logits, self.clean.subset(prompts)), prompts, self.clean)

    def judge_end(
        self, network: Network, x: Float[Tensor, "run d_model"], prompt: Int[Tensor, " run"]
    ) -> Float[Tensor, " run"]:
        """The metric of runs, given their last residual stream at END; the logit difference needs two logits only."""
        if self.metric is not logit_difference:
            return self.judge(network.logits(x), prompt.tolist())
        difference = network.logit_difference(x, self.clean.io_ids[prompt], self.clean.s_ids[prompt])
        return _one_number_each(difference, prompt.tolist(), self.clean)


Patched = Callable[[Piece, Run, Suffix | None], "Float[Tensor, 'cell batch']"]


def drive(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    direction: Direction,
    plan: Plan,
    metric: Metric,
    max_bytes: int,
    hooks: Iterable[str],
    patched: Patched,
) -> Grid:
    """Run base and source once for each prompt, let `patched` compute the cells, and put the pieces together.

    `patched` receives a piece, its source run, and its base run as a `Suffix` that has been compared with the bridge,
    or None where the arithmetic of `labcode.patching.network` does not fit the model.

    Raises:
        PatchError: prompts that do not align, an unknown direction, a metric of the wrong shape or NaN.
    """
    if direction not in ("denoising", "noising"):
        raise PatchError(f"unknown direction {direction!r}: choose 'denoising' or 'noising'", see="unknown-direction")
    if str(model.cfg.device) != "cpu":
        raise PatchError(
            "sweeps run on the CPU, whose numbers are the reference: load the model with device='cpu'",
            see="not-on-the-cpu",
        )
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    start = first_difference(base, source)
    size = prompts_at_once(model, base.tokens.shape[1], max_bytes // 2)
    results = []
    for here in torch.arange(len(base)).split(size):
        index = here.tolist()
        populations = base.subset(index), source.subset(index), clean.subset(index)
        piece = Piece(*populations, start[here], plan.subset(index), metric, max_bytes // 2)
        results.append(_piece_by_engine(model, piece, hooks, patched))
    values, at_base, at_source, engines = zip(*results, strict=True)
    clean_and_corrupted = (at_source, at_base) if direction == "denoising" else (at_base, at_source)
    at_clean, at_corrupted = (torch.cat(parts) for parts in clean_and_corrupted)
    cells = torch.cat(values, dim=-1).unflatten(0, plan.shape)
    engine = "replay" if "replay" in engines else "suffix"
    return Grid(cells, at_clean, at_corrupted, plan.axes, direction, clean.draws, engine)


def _piece_by_engine(
    model: TransformerBridge, piece: Piece, hooks: Iterable[str], patched: Patched
) -> tuple[Float[Tensor, "cell batch"], Float[Tensor, " batch"], Float[Tensor, " batch"], str]:
    """Values of the cells, of the base runs and of the source runs, and the name of the engine."""
    everyone = range(len(piece.base))
    base, source = record(model, [piece.base, piece.source], hooks)
    at_base, at_source = piece.judge(base.logits, everyone), piece.judge(source.logits, everyone)
    suffix = None
    try:
        suffix = Suffix.proven(model, base, piece.base.end, piece.start)
    except ModelError as reason:
        warnings.warn(f"slow: each cell takes a whole forward pass, because this model has {reason}", stacklevel=4)
    with torch.no_grad():
        return patched(piece, source, suffix), at_base, at_source, "replay" if suffix is None else "suffix"


def in_batches(
    piece: Piece, suffix: Suffix, rows: Rows, final: Callable[[Rows, int], Float[Tensor, "run d_model"]], what: str
) -> Float[Tensor, "cell batch"]:
    """The value of every cell: that of the unpatched run, but for `rows`, which are run in batches that fit in memory.

    Args:
        final: from rows that share a window width, and this width, to the last residual stream at END.
        what: label of the progress bar.
    """
    widths = suffix.end[rows.prompt] - rows.start + 1
    batches = []
    for width in widths.unique().tolist():
        size = max(1, piece.max_bytes // suffix.bytes_of_a_run(width))
        same = (widths == width).nonzero()[:, 0]
        batches += [(rows[chosen], width) for chosen in same.split(size)]
    values = piece.judge(suffix.base.logits, range(len(piece.base))).repeat(len(piece.plan.layer), 1)
    for batch, width in progress(batches, what):
        values[batch.cell, batch.prompt] = piece.judge_end(suffix.network, final(batch, width), batch.prompt)
    return values


def _one_number_each(values: Tensor, prompts: Sequence[int], clean: Population) -> Tensor:
    if values.shape != (len(prompts),):
        raise PatchError(
            f"the metric gave shape {tuple(values.shape)} for {len(prompts)} runs: one value for each is needed",
            see="shape-of-metric",
        )
    if values.isnan().any():
        row = prompts[int(values.isnan().nonzero()[0])]
        raise PatchError(
            f"the metric is NaN on {clean.prompts[row].text!r}: check the model's weights and the metric",
            see="nan-in-the-run",
        )
    return values
