"""One folder loaded two ways, for tests that compare the bridge with Hugging Face itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from labcode import models


class Pair(NamedTuple):
    """The same weights twice."""

    bridge: Any
    """`TransformerBridge` as `labcode.models.load` gives it."""
    hf: Any
    """The plain Hugging Face model, eager attention, float32."""
    folder: Path
    """Where both come from."""


def load_both(folder: Path, bridge: Any = None) -> Pair:
    """Load a folder both ways."""
    import torch
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    hf.eval().requires_grad_(False)
    return Pair(models.load(str(folder)) if bridge is None else bridge, hf, folder)
