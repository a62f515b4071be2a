"""How good is a sparse autoencoder? What it reconstructs, how many latents that takes, and what it costs the model.

Reconstruction is judged twice. As numbers: the share of the variance of the residual stream that is explained. And by
what the model makes of it: the reconstruction takes the place of the residual stream (it is *spliced* in), and the
model's cross-entropy on the next token is compared with its own, and with what is left when the stream is replaced by
its mean or by zero. All on contexts that no training has seen.

A splice leaves position 0 and massive vectors as they are: the autoencoder was never trained on them.

Used in chapters 14 and 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from labcode.progress import progress
from labcode.sae.activations import check_layer, collect, hook, ordinary
from labcode.sae.errors import SaeError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

Replace = Callable[["Float[Tensor, 'sample d_model']"], "Float[Tensor, 'sample d_model']"]


@dataclass(frozen=True)
class Quality:
    """What `evaluate` measures.

    Attributes:
        explained: 1 - squared error / variance around the mean, over all vectors.
        l0: active latents of a token, on average. dead: share of latents that fire on none of `n` tokens.
        dense: latents that fire on more than a tenth of the tokens.
        cross_entropy: for "clean", "spliced", "mean" and "zero": of each context, the mean over its tokens, in nats.
        n: tokens that were looked at, for reconstruction.
    """

    explained: float
    l0: float
    dead: float
    dense: int
    cross_entropy: dict[str, Float[Tensor, " context"]]
    n: int

    def recovered(self, against: str, which: str = "spliced") -> float:
        """Cross-entropy recovered: 1 where nothing is lost, 0 where it is as bad as `against` ("mean" or "zero")."""
        return recovered(self.cross_entropy, against, which)

    def ce(self, which: str) -> float:
        """Mean cross-entropy of a condition, in nats."""
        return float(self.cross_entropy[which].mean())


def recovered(cross_entropy: Mapping[str, Float[Tensor, " context"]], against: str, which: str = "spliced") -> float:
    """(CE_against - CE_which) / (CE_against - CE_clean), of means over contexts.

    0 where replacing the stream by `against` costs less than a thousandth of a nat: nothing is there to recover.
    """
    worst, clean, found = (float(cross_entropy[name].mean()) for name in (against, "clean", which))
    if worst - clean < 1e-3:
        return 0.0
    return (worst - found) / (worst - clean)


def evaluate(
    model: TransformerBridge,
    sae: Any,
    tokens: Int[Tensor, "context pos"],
    layer: int,
    *,
    center: Float[Tensor, " d_model"],
    contexts: int = 16,
    also: Mapping[str, Replace] | None = None,
) -> Quality:
    """Judge an autoencoder on held-out contexts.

    Args:
        tokens: contexts that were not trained on.
        center: mean vector of the training data: variance is measured around it, and "mean" puts it in.
        contexts: on so many of them the cross-entropy is measured, the slow part.
        also: further replacements of the residual stream, by name, whose cross-entropy is measured too.

    Raises:
        SaeError: an autoencoder of another width, or no such layer.

    Used in chapter 14.
    """
    check_fits(sae, model, layer)
    found = collect(model, tokens, layer)
    x = found.values.float()
    with torch.no_grad():
        codes = torch.cat([sae.encode(piece) > 0 for piece in x.split(4096)])
    fires = codes.float().mean(0)
    replacements: dict[str, Replace] = {
        "spliced": lambda h: sae.decode(sae.encode(h)),
        "mean": lambda h: center.expand_as(h),
        "zero": torch.zeros_like,
        **(also or {}),
    }
    return Quality(
        explained=explained(x, replacements["spliced"], center),
        l0=float(codes.float().sum(-1).mean()),
        dead=float((fires == 0).float().mean()),
        dense=int((fires > 0.1).sum()),
        cross_entropy=splice(model, tokens[:contexts], layer, replacements, found.median),
        n=len(x),
    )


def explained(x: Float[Tensor, "sample d_model"], reconstruct: Replace, center: Float[Tensor, " d_model"]) -> float:
    """Explained variance: 1 - |x - x̂|² / |x - center|², summed over samples and dimensions.

    Used in chapter 14.
    """
    error = total = 0.0
    with torch.no_grad():
        for piece in x.float().split(4096):
            error += float((piece - reconstruct(piece)).pow(2).sum())
            total += float((piece - center).pow(2).sum())
    return 1 - error / total


def splice(
    model: TransformerBridge,
    tokens: Int[Tensor, "context pos"],
    layer: int,
    replacements: Mapping[str, Replace],
    median: float,
    batch_size: int = 8,
) -> dict[str, Float[Tensor, " context"]]:
    """Cross-entropy of each context with the output of `layer` replaced, and "clean", as it is.

    The prediction of the first token is left out: position 0, which is never replaced, makes it.

    Args:
        median: of norms, for the rule on massive vectors in `activations.ordinary`.

    Used in chapter 14, through `evaluate`.
    """
    check_layer(model, layer)
    conditions: dict[str, Replace | None] = {"clean": None, **replacements}
    rows: dict[str, list[Tensor]] = {name: [] for name in conditions}
    for piece in progress(tokens.split(batch_size), "splicing", -(-len(tokens) // batch_size)):
        for name, replace in conditions.items():
            hooks = [] if replace is None else [(hook(layer), _splice(replace, median))]
            with torch.no_grad(), model.hooks(fwd_hooks=hooks):
                logits = model(piece, return_type="logits")
            rows[name].append(cross_entropy(logits, piece))
    return {name: torch.cat(parts) for name, parts in rows.items()}


def cross_entropy(
    logits: Float[Tensor, "context pos d_vocab"], tokens: Int[Tensor, "context pos"]
) -> Float[Tensor, " context"]:
    """Mean over positions 1 to the last but one of -log P(next token), in nats. Used in chapter 14."""
    log_p = logits[:, 1:-1].float().log_softmax(-1)
    return -log_p.gather(-1, tokens[:, 2:, None])[..., 0].mean(-1)


def _splice(replace: Replace, median: float) -> Callable[..., Tensor]:
    def change(activation: Tensor, hook: Any) -> Tensor:
        mask = ordinary(activation, median)
        changed = activation.clone()
        changed[mask] = replace(activation[mask])
        return changed

    return change


def check_fits(sae: Any, model: TransformerBridge, layer: int) -> None:
    """Raises `SaeError` unless the autoencoder is as wide as the residual stream of the model, which has this layer."""
    check_layer(model, layer)
    if sae.cfg.d_in != model.cfg.d_model:
        raise SaeError(
            f"this autoencoder is for residual vectors of {sae.cfg.d_in} numbers, the model has {model.cfg.d_model}: "
            "train one on this model",
            see="autoencoder-of-another-model",
        )
