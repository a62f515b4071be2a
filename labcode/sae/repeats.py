"""Which latents tell a repeated word from a new one? Statistics on plain text, without any prompt of the task.

Used in chapter 16, and for the recorded sweep over seeds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from labcode.sae.errors import SaeError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from labcode.sae.latents import Codes

LEAST_GAP = 0.3  # between the rates at repeated and at first occurrences
LEAST_RATIO = 5.0
WORD = re.compile(r" ?[A-Za-z]{4,}")


@dataclass(frozen=True)
class Rates:
    """How often latents fire at words, given whether the word stood earlier in the same context.

    Attributes:
        repeat, first: rate at repeated and at first occurrences, of each latent.
        n_repeat, n_first: how many of each there are.
    """

    repeat: Float[Tensor, " d_sae"]
    first: Float[Tensor, " d_sae"]
    n_repeat: int
    n_first: int

    @property
    def gap(self) -> Float[Tensor, " d_sae"]:
        """The difference of the two rates."""
        return self.repeat - self.first

    def duplicate(self) -> list[int]:
        """The latents that meet the criterion, widest gap first: `LEAST_GAP`, and a rate `LEAST_RATIO` times higher.

        The criterion knows nothing of names, of positions or of what an ablation does.
        """
        meets = (self.gap >= LEAST_GAP) & (self.repeat >= LEAST_RATIO * self.first)
        return sorted(meets.nonzero()[:, 0].tolist(), key=lambda i: -float(self.gap[i]))


def rates(codes: Codes, words: Bool[Tensor, " d_vocab"]) -> Rates:
    """Firing rates at words, from the codes of a corpus.

    Args:
        words: which tokens count as words, see `words`. Words are judged by token: a word of several tokens counts by
            its first piece if that looks like a word.

    Raises:
        SaeError: no word of the corpus is repeated in its context.

    Used in chapter 16.
    """
    seen = repeated(codes.tokens)
    word = words[codes.tokens]
    word[:, 0] = False
    counts = []
    for mask in (seen & word, ~seen & word):
        if not mask.any():
            raise SaeError(
                "this corpus has no repeated words, or none that are new: take more contexts", see="no-repeats"
            )
        fired = codes.index[mask][codes.values[mask] > 0].long()
        counts.append((torch.bincount(fired, minlength=codes.d_sae) / mask.sum(), int(mask.sum())))
    (repeat, n_repeat), (first, n_first) = counts
    return Rates(repeat, first, n_repeat, n_first)


def repeated(tokens: Int[Tensor, "context pos"]) -> Bool[Tensor, "context pos"]:
    """Whether each token stood earlier in its context; the start token does not count. Used in chapter 16."""
    seen = torch.zeros_like(tokens, dtype=torch.bool)
    for position in range(2, tokens.shape[1]):
        seen[:, position] = (tokens[:, 1:position] == tokens[:, position, None]).any(1)
    return seen


def words(tokenizer: Any) -> Bool[Tensor, " d_vocab"]:
    """Which tokens are a word, or the beginning of one: at least four letters, with or without a space before them.

    Used in chapter 16.
    """
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    return torch.tensor([WORD.fullmatch(text) is not None for text in texts])
