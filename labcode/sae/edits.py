"""Change the code of a token and leave the rest: h' = h + (new code - code) @ W_dec.

So what the autoencoder does not explain, the error term, stays in the stream, and changing nothing changes nothing. A
plain hook on the plain bridge does this. `sae_lens.SAETransformerBridge` can do it too, but once an autoencoder was
attached there, ordinary hooks at that place never fire again, and by default its splice drops the error term.

Used in chapter 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from labcode.sae.bench import Bench, Edits, place
from labcode.sae.errors import SaeError
from labcode.sae.evaluate import check_fits
from labcode.sae.files import layer_of
from labcode.sae.latents import codes, encode

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

__all__ = ["Ablation", "Bench", "Change", "Edits", "ablation", "at_position", "edited"]

Change = Callable[["Float[Tensor, 'batch pos d_sae']"], "Float[Tensor, 'batch pos d_sae']"]


@contextmanager
def edited(model: TransformerBridge, sae: Any, change: Change, layer: int | None = None) -> Iterator[None]:
    """Inside: at the output of the autoencoder's block, the code of every token is what `change` makes of it.

    Args:
        change: gets a copy of the codes [batch pos d_sae], which it may alter in place, and returns the new ones.

    Raises:
        SaeError: an autoencoder that does not fit the model, or codes of another shape.

    Used in chapter 16.
    """
    layer = layer_of(sae) if layer is None else layer
    check_fits(sae, model, layer)

    def hook(h: Tensor, hook: Any) -> Tensor:
        code = encode(sae, h)
        new = change(code.clone())
        if new.shape != code.shape:
            raise SaeError(
                f"the changed codes have shape {tuple(new.shape)}, they need {tuple(code.shape)}", see="shape-of-codes"
            )
        difference = new - code
        difference[:, 0] = 0.0
        return h + difference @ sae.W_dec

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", hook)]):
        yield


@dataclass(frozen=True)
class Ablation:
    """What taking single latents out of single tokens does.

    Attributes:
        latents: the latents, one column each. activation: how active each was, per prompt.
        change: change of the logit difference, per prompt; 0 where the latent was not active.
    """

    latents: list[int]
    activation: Float[Tensor, "batch latent"]
    change: Float[Tensor, "batch latent"]


def ablation(bench: Bench, sae: Any, at: str, chosen: Sequence[int] | None = None) -> Ablation:
    """Set one latent to 0 at one named position, for each latent by itself; the error term and all others stay.

    Args:
        at: a named position of the prompts. chosen: the latents; by default all that are active there in some prompt.

    Raises:
        SaeError: unknown position.

    Used in chapter 16.
    """
    pop = bench.pop
    code = at_position(bench.model, pop, sae, bench.layer, at)
    active = (code > 0).any(0).nonzero()[:, 0].tolist() if chosen is None else list(chosen)
    activation = code[:, active]
    prompt, column = (activation > 0).nonzero().T
    delta = -activation[prompt, column, None] * sae.W_dec[torch.tensor(active, dtype=torch.long)[column]]
    change = torch.zeros_like(activation)
    change[prompt, column] = bench.values(Edits(prompt, place(pop, at)[prompt], delta)) - bench.base[prompt]
    return Ablation(active, activation, change)


def at_position(
    model: TransformerBridge, pop: Population, sae: Any, layer: int, at: str
) -> Float[Tensor, "batch d_sae"]:
    """The code of each prompt at a named position.

    Raises:
        SaeError: unknown position.

    Used in chapter 16.
    """
    where = place(pop, at)
    return codes(model, sae, pop.tokens, layer)[torch.arange(len(pop)), where]
