"""Does this machine compute a known model rightly? Asked at each load, and once before a site is built."""

from __future__ import annotations

import contextlib
import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING

from labcode.errors import ModelError
from labcode.models.cache import cache_dir, write_stamp
from labcode.models.known import KNOWN, Choice, fingerprint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CANONICAL = "When John and Mary went to the store, John gave a drink to"


def self_check(model: TransformerBridge, name: str) -> float:
    """Check that a known model prefers ' Mary' on the canonical prompt by about the amount it should.

    Some builds for accelerators compute attention silently wrong, up to an inverted sign; the outputs still
    look like language, so nothing else would tell.

    Returns:
        logit(' Mary') - logit(' John') at the last position, in logits.

    Raises:
        ModelError: The logits aren't finite, the difference lies outside `KNOWN[name].logit_difference`, or
            ' Mary' isn't the likeliest token.
    """
    import torch

    low, high = KNOWN[name].logit_difference
    with torch.no_grad():
        logits = model(model.to_tokens(CANONICAL))[0, -1].float().cpu()
    mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
    difference = float(logits[mary] - logits[john])
    top = int(logits.argmax())
    if not bool(torch.isfinite(logits).all()):
        wrong = "logits that aren't finite"
    elif not low <= difference <= high:
        wrong = f"logit(' Mary') - logit(' John') = {difference:+.2f}, expected {low:+.1f} to {high:+.1f},"
    elif top != mary:
        wrong = f"the likeliest token is {model.to_single_str_token(top)!r}, expected ' Mary',"
    else:
        return difference
    device = str(model.cfg.device)
    mend = "use device='cpu', or another version of torch"
    if device == "cpu":
        mend = "install the versions in requirements.txt"
    raise ModelError(
        f"{KNOWN[name].title} fails its self-check on device {device} with torch {torch.__version__}: {wrong} "
        f"on {CANONICAL!r}; {mend}",
        see="self-check",
    )


def check_once(choice: Choice) -> None:
    """Run the self-check of GPT-2 small on the CPU unless these versions passed it on this machine before.

    The other models have nothing to fall back to; they are checked when they are loaded.

    Raises:
        ModelError: The model can't be loaded, or fails the check.
    """
    if choice.name != "gpt2":
        return
    stamp = cache_dir() / "stamps" / "self-check-gpt2.json"
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "transformer-lens")}
    wanted = {"model": fingerprint(choice), "machine": platform.platform(), **versions}
    with contextlib.suppress(OSError, ValueError):
        if json.loads(stamp.read_text()) == wanted:
            return
    from labcode.models.boot import boot

    self_check(boot(choice), choice.name)
    write_stamp(stamp, wanted)
