"""From a local folder to a model: the one way in, and one line that says what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from labcode.errors import ModelError
from labcode.models.known import Choice
from labcode.models.quiet import quiet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def boot(choice: Choice, device: str = "cpu") -> TransformerBridge:
    """Load a folder as a bridge in compatibility mode, float32, in eval mode, gradients off.

    Compatibility mode folds the norms' weights into the next matrices and centres what writes to the stream,
    so that direct logit attribution and the logit lens read the stream in the coordinates of the literature.

    Raises:
        ModelError: The choice has no folder yet, or `transformer-lens` or `transformers` can't load it.
    """
    if choice.folder is None:
        raise ModelError(f"{choice.name} has no local folder yet; call prepare() first", see="not-prepared")
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    with quiet():
        try:
            model = TransformerBridge.boot_transformers(str(choice.folder), device=device, dtype=torch.float32)
            model.enable_compatibility_mode(disable_warnings=True)
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            raise ModelError(
                f"{choice.folder} can't be loaded on {device} ({type(error).__name__}: {first}); use a "
                "decoder-only model that TransformerBridge supports, and a device that torch knows",
                see="not-loadable",
            ) from error
    model.eval()
    model.requires_grad_(False)
    # The bridge calls the model by its folder; a page should call it by its name.
    model.cfg.model_name = choice.title
    return model


def summary(model: TransformerBridge) -> str:
    """One line that says what a model is: name, layers, heads, width, norm, positions, parameters, dtype.

    Parameters are counted as the published model has them: a tied embedding once.

    Used by every chapter's first cell.
    """
    cfg = model.cfg
    shared = getattr(cfg, "n_key_value_heads", None)
    heads = f"{cfg.n_layers} layers x {cfg.n_heads} heads"
    if shared and shared != cfg.n_heads:
        heads += f" ({shared} key/value heads)"
    kind = str(cfg.normalization_type or "").upper()
    norm = "RMSNorm" if kind.startswith("RMS") else "LayerNorm" if kind.startswith("LN") else "no norm"
    positions = str(getattr(cfg, "positional_embedding_type", "standard")).replace("standard", "learned")
    total = _parameters(model)
    size = f"{total / 1e6:.3g} M" if total >= 1e6 else f"{total / 1e3:.3g} k"
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return (
        f"{Path(str(cfg.model_name)).name}: {heads}, d_model {cfg.d_model}, {norm}, {positions} positions, "
        f"{size} parameters, {dtype}"
    )


def _parameters(model: TransformerBridge) -> int:
    config = getattr(model.original_model, "config", None)
    if config is None:
        return sum(parameter.numel() for parameter in model.parameters())
    # The bridge holds copies: an untied unembedding, split queries, keys and values. So ask the architecture.
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())
