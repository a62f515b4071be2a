"""Activation patching: put one activation of a run into another run, and see what the answer is worth then.

`sweep` does that for every layer, head or position. It is exact: its values are those of one whole forward pass with
a hook for each cell, and it compares its arithmetic with the bridge on the very prompts it is given. How it is fast is
told in `labcode.patching.suffix`; chapter 04 does one patch by hand before it uses this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from labcode.metrics import logit_difference
from labcode.patching import cells, replay
from labcode.patching.drive import Direction, Metric, Piece, drive, in_batches
from labcode.patching.grid import Grid
from labcode.patching.plan import Axis, PatchError, plan
from labcode.patching.suffix import Run, Suffix

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

__all__ = ["Axis", "Direction", "Grid", "Kind", "Metric", "PatchError", "sweep"]

Kind = Literal["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]


def sweep(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    kind: Kind,
    *,
    at: str | Sequence[str] = "all",
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    only: Sequence[tuple[int, int]] | None = None,
    metric: Metric = logit_difference,
    max_bytes: int = 2**29,
) -> Grid:
    """Patch every cell, one at a time, on every prompt.

    Args:
        clean, corrupted: populations that are aligned token by token, as `prompts.corrupt` makes them.
        kind: the activation to patch: the residual stream before a block ("resid_pre"), what attention or the MLP adds
            to it ("attn_out", "mlp_out"), or of each head its output before projection ("z"), queries, keys, values or
            attention pattern. Models with grouped keys and values have fewer key and value heads; there "k" and "v"
            patch those, which several heads share, and the axis is called "key/value head".
        at: "all" positions together; the name of one position, found in each prompt; a list of names, one cell each; or
            "each" position of prompts of one length. For a pattern, the position of the query.
        direction: "denoising" puts clean activations into corrupted runs and asks what is sufficient to bring the
            answer back; "noising" puts corrupted ones into clean runs and asks what is necessary.
        layers, heads: which ones to patch; all by default.
        only: instead of these, a list of (layer, head): one cell each, on a single axis.
        metric: from logits at END and the clean population to one value for each prompt.
        max_bytes: bound for the stored activations and the working memory together, beside the model's own.

    Returns:
        A grid with axes layer, head (for kinds of heads), position (for "each" or a list of names).

    Raises:
        PatchError: prompts that do not align, an unknown kind, layer, head or position, a metric that gives another
            shape or NaN.

    Source: Zhang and Nanda 2023 (arXiv 2309.16042) for the choices, Heimersheim and Nanda 2024 (arXiv 2404.15255) for
    what either direction shows. Limits: one patch at a time, so an effect that two heads share shows in neither; and
    the value of a patch is that of this pair of runs, not of the component as such.

    Used in chapters 03 to 06 and 12.
    """

    def patched(piece: Piece, source: Run, suffix: Suffix | None) -> Float[Tensor, "cell batch"]:
        if suffix is None:
            return replay.values(model, piece)
        engine = cells.Cells(model, suffix, source, kind)
        return in_batches(piece, suffix, piece.plan.rows(piece.start), engine.final, f"patching {kind}")

    work = plan(model, clean, kind, at, layers, heads, only)
    return drive(model, clean, corrupted, direction, work, metric, max_bytes, cells.hooks(model, kind), patched)
