"""The only place where a model is chosen, fetched, verified and loaded.

Everything becomes a local folder first: the hub's cache, the converted embedded model, or the reader's own
folder. From a folder there is one way to a model. Importing this package imports neither torch nor
transformers; `python -m labcode.models` says what would be used, and why.

Used by every chapter; explained in "How to use this book".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labcode.models.choice import choose, first_that_works
from labcode.models.known import KNOWN, Choice, Spec, fingerprint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["KNOWN", "Choice", "Spec", "choose", "fingerprint", "load", "prepare", "summary", "toy"]


def prepare(request: str | None = None) -> Choice:
    """Do everything up to a verified local folder: choose, then download or convert what isn't there.

    When `auto` lands on GPT-2 small the self-check runs too, once for each version of torch, because only
    before the first chapter can the choice still fall back to the embedded model.

    Raises:
        ModelError: The model can't be had; the message says what to do.

    Used in all chapters.
    """
    from labcode.models.selfcheck import check_once

    choice, _ = first_that_works(request, check_once)
    return choice


def load(name: str | None = None, device: str = "cpu") -> TransformerBridge:
    """Load a model as a `TransformerBridge` in compatibility mode, float32, gradients off.

    Args:
        name: As for `choose`: `auto`, `gpt2`, `smollm2`, a folder, or None for `LAB_MODEL`.
        device: A torch device. The known models must pass a self-check on it.

    Raises:
        ModelError: The model can't be had or loaded, or this device computes it wrongly.

    Used in all chapters.
    """
    from labcode.models.boot import boot
    from labcode.models.selfcheck import self_check

    def accept(choice: Choice) -> TransformerBridge:
        model = boot(choice, device)
        if choice.name in KNOWN:
            self_check(model, choice.name)
        return model

    _, model = first_that_works(name, accept)
    return model


def summary(model: TransformerBridge) -> str:
    """One line that says what a model is; see `labcode.models.boot.summary`. Used in all chapters."""
    from labcode.models.boot import summary as describe

    return describe(model)


def toy() -> TransformerBridge:
    """A transformer wired by hand, with a known circuit; see `labcode.models.toy`. Used in chapter 06."""
    from labcode.models.handwired import build

    return build()
