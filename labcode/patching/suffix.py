"""Run only what a patch can change: some positions, from some layer upwards.

Three facts make this exact, not approximate. A patch at layer L changes nothing below L, so a run starts from the
stored residual stream there. Attention is causal, so nothing changes before the first patched position: stored keys and
values stand in for it. Patched runs are independent of each other, so they share a batch: runs join it at their own
layer, and every layer is computed once for all of them. At the last layer only END is computed.

Used in chapters 04 to 06, through `labcode.patching` and `labcode.paths`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labcode.errors import ModelError
from labcode.metrics import at_end_only
from labcode.patching.network import Network

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

TOLERANCE = 1e-4  # in logits, where they stay below 10, else 1e-5 of the largest: float32 noise is below half of that

Edit = Callable[["Tensor", "Tensor", "Tensor"], None]


@dataclass(frozen=True)
class Run:
    """Activations of one forward pass, `run["attn.hook_z", layer]` for instance, and its logits at END."""

    activations: dict[str, Tensor]
    logits: Float[Tensor, "batch d_vocab"]

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        name = f"blocks.{key[1]}.{key[0]}"
        if name not in self.activations:
            raise ModelError(f"no activation {name}", see="unsupported-model")
        return self.activations[name]


def record(model: TransformerBridge, pops: Sequence[Population], hooks: Iterable[str]) -> list[Run]:
    """One forward pass of the bridge over aligned populations, keeping the named activations of every block."""
    names = [f"blocks.{layer}.{hook}" for layer in range(model.cfg.n_layers) for hook in hooks]
    tokens, end = torch.cat([pop.tokens for pop in pops]), torch.cat([pop.end for pop in pops])
    with torch.no_grad(), at_end_only(model, end):
        logits, cache = model.run_with_cache(tokens.to(model.cfg.device), names_filter=names)
    logits = logits[:, 0]
    runs = []
    for rows in torch.arange(len(tokens)).split([len(pop) for pop in pops]):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        # Cosines and sines are the same for all prompts and have a batch of one.
        kept = {name: cache[name] if len(cache[name]) == 1 else cache[name][part] for name in names if name in cache}
        runs.append(Run(kept, logits[part]))
    return runs


def prompts_at_once(model: TransformerBridge, n_pos: int, max_bytes: int) -> int:
    """How many prompts of `n_pos` tokens fit in `max_bytes`, with two recorded runs and their logits; at least one."""
    cfg = model.cfg
    block = 3 * cfg.d_model + 6 * cfg.n_heads * cfg.d_head + cfg.n_heads * n_pos
    return max(1, max_bytes // (4 * (n_pos * cfg.n_layers * block + 2 * cfg.d_vocab)))


def rotated(model: TransformerBridge, which: str) -> str:
    """The hook of queries or keys as attention compares them: after rotation, where positions are rotary."""
    hook = f"attn.hook_rot_{which}"
    return hook if f"blocks.0.{hook}" in model.hook_dict else f"attn.hook_{which}"


class Suffix:
    """The upper right part of runs that start out as `base`.

    Args:
        network: the arithmetic.
        base: a run with the hooks of `Suffix.hooks(model)`.
        end: position of END in each prompt.
    """

    def __init__(self, network: Network, base: Run, end: Int[Tensor, " batch"]) -> None:
        self.network, self.base, self.end = network, base, end
        self.rotary = "blocks.0.attn.hook_cos" in base.activations
        self.keys = "attn.hook_rot_k" if self.rotary else "attn.hook_k"
        self.n_pos = int(end.max()) + 1

    @classmethod
    def proven(
        cls, model: TransformerBridge, base: Run, end: Int[Tensor, " batch"], start: Int[Tensor, " batch"]
    ) -> Suffix:
        """This arithmetic for these prompts, once it has given the bridge's logits from `start` on.

        Raises:
            ModelError: it does not have this architecture, or does not agree with the bridge.
        """
        suffix = cls(Network(model), base, end)
        try:
            with torch.no_grad():
                gap = float((suffix.unpatched(start) - base.logits).abs().max())
        except (RuntimeError, IndexError) as shapes:
            raise ModelError(f"activations of other shapes ({shapes})", see="unsupported-model") from shapes
        if not gap <= TOLERANCE * max(1.0, 0.1 * float(base.logits.abs().max())):
            raise ModelError(
                f"a forward pass that differs from ours by {gap:.1g} in some logit", see="unsupported-model"
            )
        return suffix

    @staticmethod
    def hooks(model: TransformerBridge) -> list[str]:
        """What `base` has to hold."""
        hooks = ["hook_resid_pre", rotated(model, "k"), "attn.hook_v"]
        return [*hooks, "attn.hook_cos", "attn.hook_sin"] if "blocks.0.attn.hook_cos" in model.hook_dict else hooks

    def window(self, prompt: Int[Tensor, " run"], width: int) -> Int[Tensor, "run window"]:
        """The last `width` positions up to END, of each run's prompt."""
        return self.end[prompt, None] - width + 1 + torch.arange(width)

    def allowed(self, window: Int[Tensor, "run window"]) -> Bool[Tensor, "run window pos"]:
        """Which positions a query in the window may see: itself and those before it."""
        return torch.arange(self.n_pos) <= window[..., None]

    def rotation(self, layer: int, window: Int[Tensor, "run window"]) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine [run window d_head] at the positions of the window, where positions are rotary."""
        if not self.rotary:
            return None
        return self.base["attn.hook_cos", layer][0][window], self.base["attn.hook_sin", layer][0][window]

    def attention(
        self,
        layer: int,
        x: Float[Tensor, "run window d_model"],
        prompt: Int[Tensor, " run"],
        window: Int[Tensor, "run window"],
        end_only: bool = False,
        edit: Edit | None = None,
    ) -> Float[Tensor, "run window d_model"]:
        """What attention adds to `x`, the keys and values before the window being those of the base run.

        Args:
            end_only: compute the last position only.
            edit: changes queries, keys and values of the window in place, before they are used.
        """
        network = self.network
        x = network.norm(x, network.layers[layer].norm1)
        rotary = self.rotation(layer, window)
        k_new, v_new = network.keys_values(layer, x, rotary)
        if end_only:
            x, rotary = x[:, -1:], None if rotary is None else (rotary[0][:, -1:], rotary[1][:, -1:])
        q = network.queries(layer, x, rotary)
        if edit is not None:
            edit(q, k_new, v_new)
        k = self.base[self.keys, layer][prompt, : self.n_pos]  # [run pos kv_head d_head], a copy
        v = self.base["attn.hook_v", layer][prompt, : self.n_pos]
        run = torch.arange(len(prompt))[:, None]
        k[run, window], v[run, window] = k_new, v_new
        return network.project(layer, network.attend(q, k, v, self.allowed(window[:, -q.shape[1] :])))

    def unpatched(self, start: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
        """Logits at END of the base run, with its positions from `start` on computed here instead of by the bridge."""
        logits = torch.empty_like(self.base.logits)
        widths = self.end - start + 1
        for width in widths.unique().tolist():
            prompt = (widths == width).nonzero()[:, 0]
            window = self.window(prompt, width)
            x = self.base["hook_resid_pre", 0][prompt[:, None], window]
            for layer in range(self.network.n_layers):
                x = x + self.attention(layer, x, prompt, window)
                x = x + self.network.mlp(layer, x)
            logits[prompt] = self.network.logits(x[:, -1])
        return logits

    def bytes_of_a_run(self, width: int) -> int:
        """Upper bound for the working memory of one patched run with `width` positions."""
        net = self.network
        mlp_in = net.layers[0].mlp_in
        d_mlp = 0 if mlp_in is None else len(mlp_in.weight)
        stream = width * (6 * net.d_model + 4 * net.n_heads * net.d_head + 3 * d_mlp)
        attention = self.n_pos * (4 * net.n_kv_heads * net.d_head + 2 * net.n_heads * width)
        return 4 * (stream + attention)
