"""Names that are several tokens: which ones they are here, and what a whole name is worth.

The logit difference compares single tokens. For a name of several tokens it can only compare the first ones; the
log-probability of the whole name needs one more run for each name, and needs no such choice.

Used in chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from labcode.errors import PromptError
from labcode.progress import progress
from labcode.prompts import NAMES, Population

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

RARE = (
    "Bartholomew Wilhelmina Thaddeus Persephone Cornelius Evangeline Leopoldine Nebuchadnezzar Ottoline Zebediah "
    "Hildegarde Ezekiel Guinevere Montgomery Octavius Radomir Ferdinanda Yolanthe Quintilian Anneliese"
).split()
"""Names that tokenizers tend to split; which ones this tokenizer does split is found, not assumed."""


def rare_names(model: TransformerBridge) -> list[str]:
    """Names that are several tokens here, no two with the same first token.

    Raises:
        PromptError: fewer than two.

    Used in chapter 11, through `labcode.breakage`.
    """
    found: dict[int, str] = {}
    for name in (*RARE, *NAMES):
        ids = model.tokenizer.encode(" " + name, add_special_tokens=False)
        if len(ids) > 1:
            found.setdefault(ids[0], name)
    if len(found) < 2:
        raise PromptError(
            f"{len(found)} names of several tokens that differ in the first: two are needed, extend RARE",
            see="too-few-names",
        )
    return list(found.values())


def distinct(pop: Population) -> list[int]:
    """The prompts whose two answers begin with different tokens: on others no logit can tell them apart.

    Used in chapter 11.
    """
    return (pop.io_ids != pop.s_ids).nonzero().flatten().tolist()


def log_probability(
    model: TransformerBridge, pop: Population, words: Sequence[str], batch_size: int = 16
) -> Float[Tensor, " batch"]:
    """The log-probability, in nats, of a whole continuation of each prompt, however many tokens it has.

    Args:
        words: one for each prompt, with its space (" Bartholomew").

    Raises:
        PromptError: another number of words than prompts, or an empty word.

    Used in chapter 11.
    """
    if len(words) != len(pop) or not all(words):
        raise PromptError(
            f"{len(words)} continuations for {len(pop)} prompts: give one to each, none of them empty", see="no-partner"
        )
    added = [model.tokenizer.encode(word, add_special_tokens=False) for word in words]
    found = []
    for piece in progress([range(i, min(i + batch_size, len(pop))) for i in range(0, len(pop), batch_size)], "names"):
        rows = [[*pop.tokens[i, : pop.lengths[i]].tolist(), *added[i]] for i in piece]
        width = max(map(len, rows))
        padded = torch.tensor([row + [row[0]] * (width - len(row)) for row in rows])
        with torch.no_grad():
            logits = model(padded.to(model.cfg.device), return_type="logits").float().cpu()
        for row, i in enumerate(piece):
            where = torch.arange(len(added[i])) + int(pop.lengths[i]) - 1  # a token is predicted one place before it
            chosen = logits[row, where].log_softmax(-1)[range(len(where)), added[i]]
            found.append(chosen.sum())
    return torch.stack(found)
