"""What a head's OV circuit does to a name: whether reading it raises that very name, or lowers it.

The OV circuit of a head is W_V W_O: what it would write if all its attention rested on one token. It is a property of
the weights, apart from the stream that it is fed with, so it says what a head *can* do. Where it looks is the other
half.

Used in chapter 07.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labcode import prompts
from labcode.errors import HeadError
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

Head = tuple[int, int]


@dataclass(frozen=True)
class CopyScores:
    """Where a name comes among all tokens, by what each head writes on reading it; 0 is the first place.

    Attributes:
        ranks: of the name, by what the head writes. negated: by the opposite of what it writes.
        names: the names that were read.
    """

    ranks: Int[Tensor, "layer head name"]
    negated: Int[Tensor, "layer head name"]
    names: tuple[str, ...]

    def copies(self, k: int = 5) -> Float[Tensor, "layer head"]:
        """The copy score: the share of names that come among the first `k` tokens."""
        return (self.ranks < k).float().mean(-1)

    def suppresses(self, k: int = 5) -> Float[Tensor, "layer head"]:
        """The negated copy score: the share of names that come among the last `k` tokens."""
        return (self.negated < k).float().mean(-1)


def copy_scores(
    model: TransformerBridge, n: int | None = 24, layers: Sequence[int] | None = None, seed: int = 0
) -> CopyScores:
    """Whether each head, reading a name, would write that name: weights only, no sentence.

    A name is fed in as it stands after the first block, behind the start token; that stream goes through the norm and
    the OV circuit of each head, and what comes out through the final norm and the unembedding.

    Args:
        n: so many of the book's names, drawn at random; None for all. All heads and names together cost a minute.
        layers: all by default. Rows of `ranks` are in their order.

    Raises:
        HeadError: no names, or no layers; a layer that does not exist.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 3.1. Limits: the paper reads its names within sentences, we
    by themselves; and a head deep in a model reads a stream that has changed since the first block, so a low score
    can mean that it expects other input (see `ov_ranks`).

    Used in chapter 07.
    """
    known, _ = prompts.single_token_names(model)
    names = known if n is None else random.Random(seed).sample(known, min(n, len(known)))
    chosen = list(range(model.cfg.n_layers)) if layers is None else list(layers)
    if not names or not chosen:
        raise HeadError(
            f"{len(names)} names and {len(chosen)} layers: take at least one of each", see="copy-score-settings"
        )
    ids = torch.tensor([prompts.token_id(model, " " + name) for name in names])
    stream = name_streams(model, ids)
    found = [ov_ranks(model, layer, stream, ids) for layer in progress(chosen, "OV circuits")]
    ranks, negated = (torch.stack(one) for one in zip(*found, strict=True))
    return CopyScores(ranks, negated, tuple(names))


def name_streams(model: TransformerBridge, ids: Int[Tensor, " name"]) -> Float[Tensor, "name d_model"]:
    """The residual stream after the first block, at each token, read by itself behind the start token."""
    start = torch.full_like(ids, model.tokenizer.bos_token_id)
    hook = "blocks.0.hook_resid_post"
    with torch.no_grad():
        tokens = torch.stack([start, ids], dim=1).to(model.cfg.device)
        _, cache = model.run_with_cache(tokens, names_filter=hook, return_type=None)
    return cache[hook][:, 1].float().cpu()


def ov_ranks(
    model: TransformerBridge, layer: int, stream: Float[Tensor, "batch d_model"], ids: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, "head batch"], Int[Tensor, "head batch"]]:
    """The place of the token `ids` among all tokens, by what each head of a layer writes on reading `stream`.

    Args:
        stream: before the layer's norm. What a head really reads is the stream before its own layer.

    Returns:
        Places counted from 0, by what the head writes and by its opposite. Tokens that tie do not count as ahead.

    Raises:
        HeadError: a layer that does not exist, or another number of streams than of tokens.

    Limits: value biases belong to no token and are left out, as compatibility mode folds them away.

    Used in chapter 07.
    """
    if layer not in range(model.cfg.n_layers):
        raise HeadError(f"no layer {layer}: this model has {model.cfg.n_layers}, counted from 0", see="no-such-part")
    if len(stream) != len(ids):
        raise HeadError(
            f"{len(stream)} streams for {len(ids)} tokens: give one stream for each token", see="streams-and-tokens"
        )
    block, cfg = model.blocks[layer], model.cfg
    group = cfg.n_heads // (cfg.n_key_value_heads or cfg.n_heads)
    with torch.no_grad():
        read = block.ln1(stream.to(cfg.device)[:, None])[:, 0]  # [batch d_model]
        values = block.attn.W_V.repeat_interleave(group, dim=0) if group > 1 else block.attn.W_V
        written = torch.einsum("bm,hmd,hdn->hbn", read, values, block.attn.W_O)
        out = model.ln_final(written.flatten(0, 1)[:, None])[:, 0]
        push = (out @ model.W_U).unflatten(0, (cfg.n_heads, len(ids))).cpu()  # [head batch d_vocab]
    bias = model.b_U.detach().cpu()
    column = ids[None, :, None].expand(cfg.n_heads, -1, 1)
    places = [(logits > logits.gather(-1, column)).sum(-1) for logits in (push + bias, bias - push)]
    return places[0], places[1]
