"""Activation patching: put one activation of a run into another run, and see what the answer is worth then.

`sweep` does that for every layer, head or position. It is exact: its values are those of one whole forward pass with a hook
for each cell, and it compares its arithmetic with the bridge on the very prompts it is given. How it is fast is told in
`labcode.patching.suffix`; chapter 04 does one patch by hand before it uses this.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from labcode.metrics import logit_difference
from labcode.patching import cells, replay
from labcode.patching.grid import Grid, check_values
from labcode.patching.network import Network, UnsupportedModel
from labcode.patching.plan import HOOKS, Axis, PatchError, Plan, first_difference, plan
from labcode.patching.suffix import Suffix, prompts_at_once, record

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

__all__ = ["Axis", "Grid", "Kind", "Metric", "PatchError", "sweep"]

Kind = Literal["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
Metric = Callable[["Float[Tensor, 'batch d_vocab']", "Population"], "Float[Tensor, ' batch']"]


def sweep(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    kind: Kind,
    *,
    at: str | Sequence[str] = "all",
    direction: Literal["denoising", "noising"] = "denoising",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    metric: Metric = logit_difference,
    max_bytes: int = 2**29,
) -> Grid:
    """Patch every cell, one at a time, on every prompt.

    Args:
        clean, corrupted: populations that are aligned token by token, as `prompts.corrupt` makes them.
        kind: the activation to patch: the residual stream before a block ("resid_pre"), what attention or the MLP adds to
            it ("attn_out", "mlp_out"), or of each head its output before projection ("z"), queries, keys, values or
            attention pattern. Models with grouped keys and values have fewer key and value heads; there "k" and "v" patch
            those, which several heads share, and the axis is called "key/value head".
        at: "all" positions together; the name of one position, found in each prompt; a list of names, one cell each; or
            "each" position of prompts of one length. For a pattern, the position of the query.
        direction: "denoising" puts clean activations into corrupted runs and asks what is sufficient to bring the answer
            back; "noising" puts corrupted ones into clean runs and asks what is necessary.
        layers, heads: which ones to patch; all by default.
        metric: from logits at END and the clean population to one value for each prompt.
        max_bytes: bound for the stored activations and the working memory together, beside the model's own.

    Returns:
        A grid with axes layer, head (for kinds of heads), position (for "each" or a list of names).

    Raises:
        PatchError: prompts that do not align, an unknown kind, layer, head or position, a metric of the wrong shape or NaN.

    Source: Zhang and Nanda 2023 (arXiv 2309.16042) for the choices, Heimersheim and Nanda 2024 (arXiv 2404.15255) for what
    either direction shows. Limits: one patch at a time, so an effect that two heads share shows in neither; and the value
    of a patch is that of this pair of runs, not of the component as such.

    Used in chapters 03 to 09.
    """
    if direction not in ("denoising", "noising"):
        raise PatchError(f"unknown direction {direction!r}: choose 'denoising' or 'noising'")
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    start = first_difference(base, source)
    work = plan(model, clean, kind, at, layers, heads)
    size = prompts_at_once(model, base.tokens.shape[1], max_bytes // 2)
    pieces = [range(first, min(first + size, len(base))) for first in range(0, len(base), size)]
    results = [
        _sweep_piece(
            model, base.subset(i), source.subset(i), clean.subset(i), start[list(i)], work.subset(i), metric, max_bytes // 2
        )
        for i in pieces
    ]
    values, at_base, at_source, engines = zip(*results, strict=True)
    unpatched = torch.cat(at_source), torch.cat(at_base)
    at_clean, at_corrupted = unpatched if direction == "denoising" else unpatched[::-1]
    return Grid(
        values=torch.cat(values, dim=-1).unflatten(0, work.shape),
        clean=at_clean,
        corrupted=at_corrupted,
        axes=work.axes,
        direction=direction,
        draws=clean.draws,
        engine="replay" if "replay" in engines else "suffix",
    )


def _sweep_piece(
    model: TransformerBridge,
    base: Population,
    source: Population,
    clean: Population,
    start: Int[Tensor, " batch"],
    work: Plan,
    metric: Metric,
    max_bytes: int,
) -> tuple[Float[Tensor, "cell batch"], Float[Tensor, " batch"], Float[Tensor, " batch"], str]:
    """Values of the patched runs, of the base runs and of the source runs, and the engine, for prompts that fit in memory."""

    def judge(logits: Float[Tensor, "run d_vocab"], prompts: Sequence[int]) -> Float[Tensor, " run"]:
        return check_values(metric(logits, clean.subset(prompts)), len(prompts))

    everyone = range(len(base))
    base_run = record(model, base, cells.base_hooks(model, work.kind))
    source_run = record(model, source, {cells.source_hook(model, work.kind), HOOKS[work.kind]})
    at_base, at_source = judge(base_run.logits, everyone), judge(source_run.logits, everyone)
    try:
        suffix = Suffix.proven(model, base_run, base.end, start)
    except UnsupportedModel as reason:
        warnings.warn(f"slow patching, one forward pass for each cell, because this model has {reason}", stacklevel=3)
        values = replay.values(model, base, source_run, work, lambda logits: judge(logits, everyone))
        return values, at_base, at_source, "replay"

    def judge_end(x: Float[Tensor, "run d_model"], prompt: Int[Tensor, " run"]) -> Float[Tensor, " run"]:
        if metric is logit_difference:  # two logits are enough
            return check_values(suffix.network.logit_difference(x, clean.io_ids[prompt], clean.s_ids[prompt]), len(x))
        return judge(suffix.network.logits(x), prompt.tolist())

    rows = work.rows(start)
    values = at_base.repeat(len(work.layer), 1)  # what a cell without rows is worth
    with torch.no_grad():
        engine = cells.Cells(model, suffix, source_run, work.kind)
        values[rows.cell, rows.prompt] = engine.values(rows, judge_end, max_bytes)
    return values, at_base, at_source, "suffix"
