"""Latents of a sparse autoencoder on text and on prompts: where they fire, what they are near to, what they promote.

A token's residual vector h is encoded into a code, of which at most k entries are not zero. Position 0 has no code: the
autoencoder was not trained on it.

Used in chapters 14 to 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from labcode.progress import progress
from labcode.sae.activations import residual
from labcode.sae.errors import SaeError
from labcode.sae.evaluate import check_fits
from labcode.sae.files import layer_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Codes:
    """The code of every token of a corpus, by its largest entries.

    Attributes:
        tokens: the contexts. values, index: activation and number of each token's latents; unused places hold 0.
        d_sae: latents of the autoencoder.
    """

    tokens: Int[Tensor, "context pos"]
    values: Float[Tensor, "context pos k"]
    index: Int[Tensor, "context pos k"]
    d_sae: int

    def of(self, latent: int) -> Float[Tensor, "context pos"]:
        """The activation of one latent at every token.

        Raises:
            SaeError: no such latent.
        """
        if latent not in range(self.d_sae):
            raise SaeError(f"no latent {latent}: this autoencoder has {self.d_sae}, counted from 0", see="no-such-part")
        return (self.values * (self.index == latent)).sum(-1)

    @cached_property
    def density(self) -> Float[Tensor, " d_sae"]:
        """The share of tokens at which each latent fires, position 0 not counted."""
        fired = torch.bincount(self.index[self.values > 0].long(), minlength=self.d_sae)
        return fired.float() / self.tokens[:, 1:].numel()


def scan(
    model: TransformerBridge,
    sae: Any,
    tokens: Int[Tensor, "context pos"],
    layer: int | None = None,
    batch_size: int = 32,
) -> Codes:
    """The codes of a corpus.

    Raises:
        SaeError: an autoencoder that does not fit the model.

    Used in chapter 16.
    """
    layer = layer_of(sae) if layer is None else layer
    check_fits(sae, model, layer)
    k = min(sae.cfg.d_sae, int(getattr(sae.cfg, "k", 0)) or 128)
    values, index = [], []
    for piece in progress(tokens.split(batch_size), "codes", -(-len(tokens) // batch_size)):
        with torch.no_grad():
            top = encode(sae, residual(model, piece, layer)).topk(k, dim=-1)
        values.append(top.values)
        index.append(top.indices.to(torch.int32))
    return Codes(tokens, torch.cat(values), torch.cat(index), sae.cfg.d_sae)


def codes(
    model: TransformerBridge, sae: Any, tokens: Int[Tensor, "batch pos"], layer: int | None = None
) -> Float[Tensor, "batch pos d_sae"]:
    """The codes of a few prompts, dense, in float32; zero at position 0.

    Raises:
        SaeError: an autoencoder that does not fit the model.

    Used in chapters 15 and 16.
    """
    return encode(sae, stream(model, sae, tokens, layer))


def stream(
    model: TransformerBridge, sae: Any, tokens: Int[Tensor, "batch pos"], layer: int | None = None
) -> Float[Tensor, "batch pos d_model"]:
    """What the autoencoder reads: the output of its block. Used in chapter 16."""
    layer = layer_of(sae) if layer is None else layer
    check_fits(sae, model, layer)
    return residual(model, tokens, layer)


def encode(sae: Any, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_sae"]:
    """`sae.encode`, with nothing at position 0. Used in chapter 16."""
    with torch.no_grad():
        code = sae.encode(h)
    code[:, 0] = 0.0
    return code


def neighbours(sae: Any, latent: int, n: int = 8) -> list[tuple[int, float]]:
    """The latents whose decoder directions are nearest to that of `latent`, with their cosines.

    Used in chapter 15, through `labcode.dashboards`.
    """
    directions = torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1)
    cosine = directions @ directions[latent]
    cosine[latent] = -torch.inf
    best = cosine.topk(min(n, len(cosine) - 1))
    return [(int(i), float(c)) for c, i in zip(best.values, best.indices, strict=True)]


def match(a: Any, b: Any) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """For each latent of `a`, the latent of `b` with the nearest decoder direction, and their cosine.

    Raises:
        SaeError: the two are for residual streams of different width.

    Used in chapter 14.
    """
    if a.cfg.d_in != b.cfg.d_in:
        raise SaeError(f"directions of {a.cfg.d_in} and {b.cfg.d_in} numbers can't be compared", see="different-widths")
    directions = [torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1) for sae in (a, b)]
    best = (directions[0] @ directions[1].T).max(-1)
    return best.indices, best.values


def promoted(
    model: TransformerBridge,
    sae: Any,
    latent: int,
    used: Bool[Tensor, " d_vocab"] | None = None,
    n: int = 10,
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Tokens whose logits a latent's decoder direction raises and lowers most, if nothing came after.

    The direction goes through the scale of the final norm and the unembedding, and the mean over tokens is taken off.

    Args:
        used: tokens to choose among, such as `Corpus.used`; others are often ones that training never touched.

    Returns:
        (token id, logit per unit of activation, norm left out) of the n highest, and of the n lowest.

    Limits: for a latent of an early layer most of the way to the logits is still to come, so this says little.

    Used in chapter 15.
    """
    direction = sae.W_dec[latent].detach()
    scale = getattr(model.ln_final, "w", None)
    logits = (direction if scale is None else direction * scale) @ model.W_U
    chosen = torch.ones(len(logits), dtype=torch.bool) if used is None else used
    logits = logits - logits[chosen].mean()
    high = logits.masked_fill(~chosen, -torch.inf).topk(min(n, int(chosen.sum())))
    low = logits.masked_fill(~chosen, torch.inf).topk(min(n, int(chosen.sum())), largest=False)
    return tuple([(int(i), float(v)) for v, i in zip(t.values, t.indices, strict=True)] for t in (high, low))  # type: ignore
