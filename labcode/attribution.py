"""Attribution patching: what activation patching would give if the answer were linear in the activation.

One forward and one backward pass estimate every cell at once, instead of one run for each (Nanda 2023, "Attribution
patching"). The estimate is the gradient of the metric in the base run, times what the patch would change.

Used in chapter 05.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from labcode.metrics import logit_difference
from labcode.patching import Direction, Grid, Metric, PatchError
from labcode.patching.plan import ALL, HOOKS, STREAM_KINDS, first_difference, plan
from labcode.patching.suffix import record

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population


def attribution(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    kind: Literal["resid_pre", "attn_out", "mlp_out", "z"],
    *,
    at: str | Sequence[str] = "all",
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    metric: Metric = logit_difference,
    batch_size: int = 16,
) -> Grid:
    """Estimate `labcode.patching.sweep` to first order; arguments and result are those of `sweep`.

    Raises:
        PatchError: as `sweep`, and for kinds q, k, v and pattern.

    Limits: right for small changes only. It is poor where the answer is far from linear in the activation: early
    residual streams, whose norm or attention saturates, and heads whose patch moves an attention pattern.

    Used in chapter 05.
    """
    if kind not in (*STREAM_KINDS, "z"):
        raise PatchError(f"no attribution for {kind!r}: choose resid_pre, attn_out, mlp_out or z", see="unknown-kind")
    if direction not in ("denoising", "noising"):
        raise PatchError(f"unknown direction {direction!r}: choose 'denoising' or 'noising'", see="unknown-direction")
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    first_difference(base, source)
    work = plan(model, clean, kind, at, layers, heads)
    values, at_base, at_source = [], [], []
    for first in range(0, len(base), batch_size):
        index = list(range(first, min(first + batch_size, len(base))))
        judged = clean.subset(index)
        (run,) = record(model, [source.subset(index)], [HOOKS[kind]])
        base_value, activations, gradients = _gradients(model, base.subset(index), HOOKS[kind], metric, judged)
        slopes = []
        for layer, (activation, gradient) in enumerate(zip(activations, gradients, strict=True)):
            slope = (gradient * (run[HOOKS[kind], layer] - activation)).sum(-1)  # [batch pos], of z [batch pos head]
            slopes.append(slope if slope.ndim == 3 else slope[..., None])
        slope = torch.stack(slopes)  # [layer batch pos head]
        positions = work.subset(index).positions[..., None]  # [place batch 1]
        counted = (positions == ALL) | (positions == torch.arange(slope.shape[2]))
        by_place = torch.einsum("lbph,nbp->nlhb", slope, counted.float())
        head = work.head.clamp(min=0)  # a stream kind has one column
        values.append(base_value + by_place[work.place, work.layer, head])
        at_base.append(base_value)
        at_source.append(metric(run.logits, judged))
    unpatched = torch.cat(at_source), torch.cat(at_base)
    at_clean, at_corrupted = unpatched if direction == "denoising" else unpatched[::-1]
    cells = torch.cat(values, dim=-1).unflatten(0, work.shape)
    return Grid(cells, at_clean, at_corrupted, work.axes, direction, clean.draws, "gradient")


def _gradients(
    model: TransformerBridge, pop: Population, hook: str, metric: Metric, judged: Population
) -> tuple[Float[Tensor, " batch"], list[Tensor], list[Tensor]]:
    """The metric of each prompt, one activation of every layer, and the gradient of the metric with respect to it.

    The parameters need no gradient: the graph begins at the first residual stream.
    """
    names = [f"blocks.{layer}.{hook}" for layer in range(model.cfg.n_layers)]
    kept: dict[str, Tensor] = {}

    def begin(resid: Tensor, hook: Any) -> Tensor:
        return resid.detach().requires_grad_()

    def keep(activation: Tensor, hook: Any, name: str) -> Tensor:
        kept[name] = activation
        return activation

    hooks = [("blocks.0.hook_resid_pre", begin), *((name, partial(keep, name=name)) for name in names)]
    with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        logits = model(pop.tokens.to(model.cfg.device))
        value = metric(logits[torch.arange(len(pop)), pop.end], judged)
        activations = [kept[name] for name in names]
        gradients = torch.autograd.grad(value.sum(), activations)
    return value.detach(), [activation.detach() for activation in activations], list(gradients)
