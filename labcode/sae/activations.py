"""Residual vectors to train on: which layer, and which tokens of it.

At a few positions the residual stream is a hundred times longer than elsewhere, nearly all of it in one or two
dimensions (Sun et al. 2024): at the first position always, in some layers elsewhere too. Such vectors carry no text.
An autoencoder that sees them spends its loss on them. So position 0 is left out, and any vector longer than three times
the median; a layer without the latter is preferred.

Used in chapters 14 to 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labcode.progress import progress
from labcode.sae.errors import SaeError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

MASSIVE = 3.0  # times the median norm
LARGEST_HALF = 60_000.0  # float16 ends at 65,504


@dataclass(frozen=True)
class LayerChoice:
    """A layer, and what was measured for the choice; lists have one entry for each layer.

    Attributes:
        layer: the layer whose output is taken.
        medians: median norm at positions after the first. starts: mean norm at the first position.
        counts: vectors after the first position that are longer than `MASSIVE` medians. n: vectors looked at.
    """

    layer: int
    medians: list[float]
    starts: list[float]
    counts: list[int]
    n: int


def choose_layer(model: TransformerBridge, tokens: Int[Tensor, "context pos"], depth: float = 1 / 3) -> LayerChoice:
    """The layer nearest to `depth` (as a share of all layers) that has no massive activations after the first position.

    Where every layer has some, it is the one with the fewest. Of two equally near the lower one is taken.

    Args:
        tokens: a few contexts, start token first; sixteen are enough.

    Used in chapter 14.
    """
    names = [hook(layer) for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=names, stop_at_layer=model.cfg.n_layers)
    norms = torch.stack([cache[name].float().norm(dim=-1) for name in names])  # [layer context pos]
    later = norms[:, :, 1:].flatten(1)
    medians = later.median(dim=-1).values
    counts = (later > MASSIVE * medians[:, None]).sum(-1)
    wanted = depth * model.cfg.n_layers
    layers = range(model.cfg.n_layers)
    layer = min(layers, key=lambda i: (int(counts[i] > 0) and int(counts[i]), abs(i - wanted), i))
    return LayerChoice(layer, medians.tolist(), norms[:, :, 0].mean(-1).tolist(), counts.tolist(), later.shape[-1])


@dataclass(frozen=True)
class Activations:
    """Residual vectors of many tokens.

    Attributes:
        values: the vectors, float16 (float32 where they would not fit).
        context, position: where each came from.
        dropped: vectors after the first position that were left out as massive.
        median: median norm, of all vectors after the first position.
        layer: they are the output of this block.
    """

    values: Float[Tensor, "sample d_model"]
    context: Int[Tensor, " sample"]
    position: Int[Tensor, " sample"]
    dropped: int
    median: float
    layer: int

    def __len__(self) -> int:
        return len(self.values)

    @property
    def center(self) -> Float[Tensor, " d_model"]:
        """The mean vector, in float32."""
        return self.values.float().mean(0)


def collect(
    model: TransformerBridge, tokens: Int[Tensor, "context pos"], layer: int, batch_size: int = 32
) -> Activations:
    """The output of block `layer` at every token, without position 0 and without massive vectors.

    The model is run up to that layer only.

    Raises:
        SaeError: no such layer, no contexts, or a NaN among the activations.

    Used in chapters 14 and 15.
    """
    check_layer(model, layer)
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] < 2:
        raise SaeError(
            f"tokens of shape {tuple(tokens.shape)}: give contexts of at least two tokens, [context pos]",
            see="contexts-too-short",
        )
    pieces = []
    for piece in progress(tokens.split(batch_size), f"activations of layer {layer}", -(-len(tokens) // batch_size)):
        pieces.append(residual(model, piece, layer)[:, 1:])
    largest = max(float(piece.abs().max()) for piece in pieces)
    if not largest < float("inf"):
        raise SaeError(
            f"NaN or infinite activations after layer {layer}: check the model's weights", see="nan-in-the-run"
        )
    norms = torch.cat([piece.norm(dim=-1) for piece in pieces])  # [context pos - 1]
    median = float(norms.median())
    kept = norms <= MASSIVE * median
    dtype = torch.float16 if largest < LARGEST_HALF else torch.float32
    parts = []
    for piece, mask in zip(pieces, kept.split(batch_size), strict=True):
        parts.append(piece[mask].to(dtype))
    where = kept.nonzero()
    return Activations(torch.cat(parts), where[:, 0], where[:, 1] + 1, int((~kept).sum()), median, layer)


def residual(
    model: TransformerBridge, tokens: Int[Tensor, "context pos"], layer: int
) -> Float[Tensor, "context pos d_model"]:
    """The output of block `layer`, all positions, float32. Used in chapter 14."""
    name = hook(layer)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[name], stop_at_layer=layer + 1)
    return cache[name].float()


def ordinary(x: Float[Tensor, "context pos d_model"], median: float) -> Bool[Tensor, "context pos"]:
    """Which vectors an autoencoder is meant for: not at position 0, and not longer than `MASSIVE` medians."""
    mask = x.norm(dim=-1) <= MASSIVE * median
    mask[:, 0] = False
    return mask


def hook(layer: int) -> str:
    """Name of the hook at the output of a block.

    Only this one of its names works on every kind of bridge: on `sae_lens.SAETransformerBridge` a hook on the alias
    `blocks.N.hook_resid_post` never fires, and nothing says so.

    Used in chapter 14.
    """
    return f"blocks.{layer}.hook_out"


def check_layer(model: TransformerBridge, layer: int) -> None:
    """Raises `SaeError` unless the model has this layer."""
    if layer not in range(model.cfg.n_layers):
        raise SaeError(
            f"no layer {layer}: this model has {model.cfg.n_layers} layers, counted from 0", see="no-such-part"
        )
