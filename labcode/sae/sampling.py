"""A model writes text: many contexts at once, from a start token and an opening, each token drawn by nucleus sampling.

The loop is written for one CPU thread. Keys and values go into memory that is taken once. Of the logits only the
largest `TOP_K` are looked at, and the draw is a cumulative sum and a search; sorting the whole vocabulary, or
`torch.multinomial` over it, would cost as much as the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from labcode.sae.openings import opening

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

TOP_K = 512
TOP_P = 0.95
ATTENTION = "interp_lab_one_query"
VERSION = 1  # raise it when the same seed would give other text


def write(
    model: Any,
    tokenizer: Any,
    start: int,
    first: int,
    batch: int,
    length: int,
    seed: int,
) -> Int[Tensor, "batch pos"]:
    """Contexts number `first` to `first + batch - 1`, each of `length` tokens, the start token included.

    Special tokens are never drawn: an instruction model would otherwise end its turn and begin another. The same seed
    and number give the same context on the same machine, in whatever order batches are made.

    Args:
        model: a plain Hugging Face model of any decoder-only kind, in the precision to sample in.

    Used in chapter 14, through `labcode.sae.corpus`.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
    prefixes = [
        [start, *tokenizer.encode(opening(number), add_special_tokens=False)] for number in range(first, first + batch)
    ]
    banned = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    tokens = torch.zeros(batch, length, dtype=torch.long)
    cache = preallocated_cache(length)
    with torch.no_grad():
        column = torch.full((batch,), start)
        for position in range(length):
            tokens[:, position] = column
            if position == length - 1:
                break
            at = torch.full((batch, 1), position)
            logits = (
                model(column[:, None], position_ids=at, past_key_values=cache, use_cache=True).logits[:, -1].float()
            )
            logits[:, banned] = -torch.inf
            column = nucleus(logits, generator)
            for row, prefix in enumerate(prefixes):
                if position + 1 < len(prefix):
                    column[row] = prefix[position + 1]
    return tokens


def nucleus(
    logits: Float[Tensor, "batch d_vocab"], generator: torch.Generator, top_p: float = TOP_P, top_k: int = TOP_K
) -> Int[Tensor, " batch"]:
    """One token for each row, from the fewest most likely tokens that hold `top_p` of the probability.

    At most `top_k` tokens are considered; where these hold less than `top_p`, the draw is among all of them.

    Source: Holtzman et al. 2020, section 3.1, with the cut at `top_k` added. Used in chapter 14, through `write`.
    """
    top, index = logits.topk(min(top_k, logits.shape[-1]), dim=-1)  # [batch k], falling
    share = (top - logits.logsumexp(-1, keepdim=True)).exp()
    below = share.cumsum(-1)
    share = share.masked_fill(below - share >= top_p, 0.0)
    below = share.cumsum(-1)
    drawn = torch.rand(len(logits), 1, generator=generator) * below[:, -1:]
    place = torch.searchsorted(below, drawn, right=True).clamp_max((share > 0).sum(-1, keepdim=True) - 1)
    return index.gather(-1, place)[:, 0]


def preallocated_cache(length: int) -> Any:
    """A key/value cache for `length` positions that writes in place and hands out the part that is filled.

    transformers' own growing cache copies all of itself at each token; its static one attends to empty places.
    """
    from transformers.cache_utils import Cache, DynamicLayer

    class Layer(DynamicLayer):
        filled = 0

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if self.filled == 0:
                batch, heads, _, d_head = key_states.shape
                # Keys lie transposed: the product with a query then reads memory in order.
                self.keys = key_states.new_empty(batch, heads, d_head, length)
                self.values = value_states.new_empty(batch, heads, length, d_head)
                self.is_initialized = True
            assert self.keys is not None
            assert self.values is not None
            start, self.filled = self.filled, self.filled + key_states.shape[-2]
            self.keys[..., start : self.filled] = key_states.transpose(-1, -2)
            self.values[:, :, start : self.filled] = value_states
            return self.keys[..., : self.filled].transpose(-1, -2), self.values[:, :, : self.filled]

        def get_seq_length(self) -> int:
            return self.filled

    return Cache(layer_class_to_replicate=Layer)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention of one new token to all that are stored, for transformers' table of attention functions.

    Heads that share keys and values are taken together, so that nothing is copied for each of them.
    """
    batch, heads, one, d_head = query.shape
    shared = query.reshape(batch, key.shape[1], -1, d_head)  # [batch kv_head (group one) d_head]
    scores = (shared @ key.transpose(-1, -2)).float() * scaling
    out = scores.softmax(-1).to(value.dtype) @ value
    return out.reshape(batch, heads, one, d_head).transpose(1, 2), None


def register() -> None:
    """Make `attend` known to transformers under the name `ATTENTION`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)


def distinct(contexts: Int[Tensor, "context pos"], n: int = 4) -> Float[Tensor, " context"]:
    """The share of distinct n-grams within each context, its start token left out: 1 where nothing is repeated.

    Used in chapter 14, through `labcode.sae.writing`.
    """
    return torch.tensor([_distinct(row, n) for row in contexts[:, 1:].tolist()])


def _distinct(row: Sequence[int], n: int) -> float:
    grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    return len(set(grams)) / max(1, len(grams))
