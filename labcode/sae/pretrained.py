"""A published autoencoder for GPT-2 small, where the hub answers; nothing in the book needs it.

Used in chapter 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labcode.models import edition, quiet, say

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RELEASE = "gpt2-small-res-jb"  # Bloom 2024; residual stream before each block, 24,576 latents, ReLU with an L1 penalty


def res_jb(model: TransformerBridge, block: int = 9) -> tuple[Any, int] | None:
    """The autoencoder for the stream before `block` of GPT-2 small, and the layer whose output that is.

    Returns:
        None for another model, or where the hub does not answer; whatever else goes wrong is said, and is no error.

    Used in chapter 16.
    """
    if edition(model) != "gpt2":
        return None
    try:
        from sae_lens import SAE

        with quiet():
            sae = SAE.from_pretrained(RELEASE, f"blocks.{block}.hook_resid_pre")
    except Exception as error:
        say(f"No published autoencoder: {type(error).__name__}: {error}")
        return None
    if sae.cfg.d_in != model.cfg.d_model:
        return None
    return sae.eval().requires_grad_(False), block - 1
