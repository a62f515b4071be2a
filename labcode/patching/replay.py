"""The slow engine of a sweep: one whole forward pass of the bridge for each cell, with an ordinary hook.

It asks nothing of the architecture, so it serves the models whose arithmetic `labcode.patching.network` does not have.

Used in chapters 04 and 05, through `labcode.patching.sweep`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from labcode.patching.plan import ALL, HOOKS, STREAM_KINDS, PatchError
from labcode.patching.suffix import record
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.patching.drive import Piece
    from labcode.prompts import Population


def values(model: TransformerBridge, piece: Piece) -> Float[Tensor, "cell batch"]:
    """The value of every cell.

    Raises:
        PatchError: the model ignores what a hook returns for this kind of activation.
    """
    base, plan, prompts = piece.base, piece.plan, range(len(piece.base))
    check_hook_is_live(model, base, plan.kind)
    hook, columns = HOOKS[plan.kind], torch.arange(base.tokens.shape[1])
    (source,) = record(model, [piece.source], [hook])
    result = torch.empty(len(plan.layer), len(base))
    for cell in progress(range(len(plan.layer)), f"patching {plan.kind} by replay"):
        layer, head, positions = int(plan.layer[cell]), int(plan.head[cell]), plan.positions[plan.place[cell]]
        value = source[hook, layer]
        at_place = (positions[:, None] == ALL) | (positions[:, None] == columns)  # [batch pos]
        chosen = at_place
        if plan.kind not in STREAM_KINDS:
            chosen = torch.zeros(value.shape[:3], dtype=torch.bool)  # [batch pos head], of a pattern [batch head query]
            chosen.select(1 if plan.kind == "pattern" else 2, head).copy_(at_place)
        result[cell] = piece.judge(run_patched(model, base, f"blocks.{layer}.{hook}", chosen, value), prompts)
    return result


def run_patched(
    model: TransformerBridge, base: Population, name: str, chosen: Tensor, value: Tensor
) -> Float[Tensor, "batch d_vocab"]:
    """Logits at END of `base`, where the activation `name` takes `value` wherever its leading axes are `chosen`."""

    def patch(activation: Tensor, hook: Any) -> Tensor:
        return torch.where(chosen[..., None], value, activation)

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, patch)]):
        logits = model(base.tokens.to(model.cfg.device))
    return logits[torch.arange(len(base)), base.end]


def check_hook_is_live(model: TransformerBridge, base: Population, kind: str) -> None:
    """Write nonsense into the activation: if the logits stay the same, this model ignores what a hook returns there.

    Raises:
        PatchError: a sweep over this hook would report that nothing matters.
    """
    name, one = f"blocks.0.{HOOKS[kind]}", base.subset([0])
    nonsense = torch.tensor(7.0)
    untouched, changed = (run_patched(model, one, name, torch.tensor(which), nonsense) for which in (False, True))
    if torch.equal(untouched, changed):
        raise PatchError(
            f"this model does not let a hook change {HOOKS[kind]}, so {kind!r} cannot be patched in it",
            see="hook-without-effect",
        )
