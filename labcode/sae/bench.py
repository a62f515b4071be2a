"""Many edits of the residual stream at one layer, each in a run of its own, without a whole forward pass for each.

Used in chapter 16, through `labcode.sae.edits`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from labcode.metrics import logit_difference
from labcode.patching.network import UnsupportedModel
from labcode.patching.suffix import Suffix, record
from labcode.progress import progress
from labcode.sae.errors import SaeError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population


@dataclass(frozen=True)
class Edits:
    """Many small edits, each to be made in a run of its own.

    Attributes:
        prompt: index of the prompt. position: where in it. delta: what is added to the residual stream there.
    """

    prompt: Int[Tensor, " run"]
    position: Int[Tensor, " run"]
    delta: Float[Tensor, "run d_model"]

    def __len__(self) -> int:
        return len(self.prompt)


class Bench:
    """Prompts on which many edits are made, each in a run of its own.

    Only what an edit can change is computed, as in `labcode.patching.suffix`: later layers, from its position on. Where
    that arithmetic does not fit the model, each run is a forward pass with a hook.

    Args:
        layer: edits are made at the output of this block.

    Attributes:
        base: the logit difference of each prompt, unchanged.

    Raises:
        SaeError: the last layer, or one that does not exist.

    Used in chapter 16.
    """

    def __init__(self, model: TransformerBridge, pop: Population, layer: int) -> None:
        if layer + 1 not in range(1, model.cfg.n_layers):
            raise SaeError(
                f"no block follows layer {layer} of {model.cfg.n_layers}: nothing could read the edit",
                see="nothing-reads-it",
            )
        self.model, self.pop, self.layer = model, pop, layer
        run = record(model, [pop], Suffix.hooks(model))[0]
        self.base = logit_difference(run.logits, pop)
        self.suffix: Suffix | None = None
        with suppress(UnsupportedModel):
            self.suffix = Suffix.proven(model, run, pop.end, pop.positions["S2"])

    def values(self, edits: Edits, batch_size: int = 256) -> Float[Tensor, " run"]:
        """The logit difference of each run.

        Raises:
            SaeError: an edit at position 0.
        """
        if len(edits) and int(edits.position.min()) < 1:
            raise SaeError(
                "an edit at position 0, the start token: the autoencoder has no code there", see="edit-at-start"
            )
        if self.suffix is None:
            return self._by_hooks(edits)
        pop, widths = self.pop, self.pop.end[edits.prompt] - edits.position + 1
        values = torch.empty(len(edits))
        batches = [
            (chosen, int(width))
            for width in widths.unique()
            for chosen in (widths == width).nonzero()[:, 0].split(batch_size)
        ]
        with torch.no_grad():
            for chosen, width in progress(batches, "edits"):
                prompt = edits.prompt[chosen]
                x = _final(self.suffix, self.layer, prompt, width, edits.delta[chosen])
                values[chosen] = self.suffix.network.logit_difference(x, pop.io_ids[prompt], pop.s_ids[prompt])
        return values

    def change(self, at: str, delta: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
        """Change of each prompt's logit difference when its `delta` is added at a named position.

        Raises:
            SaeError: unknown position.
        """
        rows = torch.arange(len(self.pop))
        return self.values(Edits(rows, place(self.pop, at), delta)) - self.base

    def _by_hooks(self, edits: Edits) -> Tensor:
        values = torch.empty(len(edits))
        for run in progress(range(len(edits)), "edits, one forward pass each"):
            one, at, delta = self.pop.subset([int(edits.prompt[run])]), int(edits.position[run]), edits.delta[run]

            def hook(h: Tensor, hook: Any, at: int = at, delta: Tensor = delta) -> Tensor:
                h = h.clone()
                h[:, at] += delta
                return h

            with torch.no_grad(), self.model.hooks(fwd_hooks=[(f"blocks.{self.layer}.hook_out", hook)]):
                logits = self.model(one.tokens)
            values[run] = logit_difference(logits[torch.arange(1), one.end], one)[0]
        return values


def place(pop: Population, at: str) -> Int[Tensor, " batch"]:
    """Index of a named position in each prompt. Raises `SaeError` for an unknown one."""
    if at not in pop.positions:
        raise SaeError(f"unknown position {at!r}: choose among {', '.join(pop.positions)}", see="unknown-position")
    return pop.positions[at]


def _final(suffix: Suffix, layer: int, prompt: Tensor, width: int, delta: Tensor) -> Tensor:
    """The last residual stream at END, [run d_model]."""
    network, window = suffix.network, suffix.window(prompt, width)
    x = suffix.base["hook_resid_pre", layer + 1][prompt[:, None], window]
    x[:, 0] += delta
    for number in range(layer + 1, network.n_layers):
        last = number == network.n_layers - 1
        attention = suffix.attention(number, x, prompt, window, end_only=last)
        x = x[:, -1:] + attention if last else x + attention
        x = x + network.mlp(number, x)
    return x[:, -1]
