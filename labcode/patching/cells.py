"""The fast engine of a sweep: every cell of every prompt is one run in a growing batch.

Used in chapters 04 to 06, through `labcode.patching.sweep`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from labcode.patching.plan import ALL, GROUPED_KINDS, HOOKS, STREAM_KINDS, Rows
from labcode.patching.suffix import Run, Suffix, rotated

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

JOINS_BEFORE_ATTENTION = ("resid_pre",)
JOINS_BEFORE_MLP = ("attn_out", "z", "q", "k", "v", "pattern")
JOINS_AFTER_MLP = ("mlp_out",)


def hooks(model: TransformerBridge, kind: str) -> set[str]:
    """The activations that sweeps of this kind need of the two runs."""
    needed = {*Suffix.hooks(model), source_hook(model, kind)}
    if kind == "mlp_out":
        needed.add("hook_attn_out")
    if kind not in STREAM_KINDS:
        needed.add("attn.hook_z")
    if kind in GROUPED_KINDS:
        needed.add(rotated(model, "q"))
    return needed


def source_hook(model: TransformerBridge, kind: str) -> str:
    """The activation that is patched in: for q and k after rotation, since partners share their positions."""
    return rotated(model, kind) if kind in ("q", "k") else HOOKS[kind]


class Cells:
    """Patched runs: those of `suffix`, each with one activation of `source`.

    Args:
        suffix: the base run. source: the run whose activations are patched in. Both hold those named by `hooks`.
    """

    def __init__(self, model: TransformerBridge, suffix: Suffix, source: Run, kind: str) -> None:
        self.suffix, self.network, self.base, self.source, self.kind = suffix, suffix.network, suffix.base, source, kind
        self.source_hook, self.query_hook = source_hook(model, kind), rotated(model, "q")

    def final(self, rows: Rows, width: int) -> Float[Tensor, "run d_model"]:
        """The residual stream at END after the last block, of patched runs that share a window width."""
        window = self.suffix.window(rows.prompt, width)
        x = torch.empty(len(rows.cell), width, self.network.d_model)
        live = 0  # so many runs are under way; the others join at their own layer
        for layer in range(int(rows.layer[0]), self.network.n_layers):
            entered = int((rows.layer <= layer).sum())
            joining = slice(live, entered)
            end_only = layer == self.network.n_layers - 1
            out = slice(-1, None) if end_only else slice(None)
            if self.kind in JOINS_BEFORE_ATTENTION:
                x[joining] = self.entry(layer, rows[joining], window[joining])
                live = entered
            x[:live, out] += self.suffix.attention(layer, x[:live], rows.prompt[:live], window[:live], end_only)
            if self.kind in JOINS_BEFORE_MLP:
                x[joining] = self.entry(layer, rows[joining], window[joining])
                live = entered
            x[:live, out] += self.network.mlp(layer, x[:live, out])
            if self.kind in JOINS_AFTER_MLP:
                x[joining] = self.entry(layer, rows[joining], window[joining])
                live = entered
        return x[:, -1]

    def entry(self, layer: int, rows: Rows, window: Int[Tensor, "run window"]) -> Float[Tensor, "run window d_model"]:
        """The residual stream right after the patched activation, of runs that are patched at this layer."""
        at = (rows.prompt[:, None], window)
        patched = _is_patched(rows, window)  # [run window]
        resid_pre = self.base["hook_resid_pre", layer][at]
        if self.kind not in STREAM_KINDS:
            return resid_pre + self.network.project(layer, self._z(layer, rows, window, patched))
        source = self.source[self.source_hook, layer][at]
        if self.kind == "resid_pre":
            return torch.where(patched[..., None], source, resid_pre)
        attn_out = self.base["hook_attn_out", layer][at]
        if self.kind == "attn_out":
            return resid_pre + torch.where(patched[..., None], source, attn_out)
        mlp_out = self.base["hook_mlp_out", layer][at]
        return resid_pre + attn_out + torch.where(patched[..., None], source, mlp_out)

    def _z(
        self, layer: int, rows: Rows, window: Int[Tensor, "run window"], patched: Bool[Tensor, "run window"]
    ) -> Float[Tensor, "run window head d_head"]:
        """z of all heads, where one head's z, q, k, v or pattern comes from the source run.

        The other heads are patched too and then put back: heads of one layer do not see each other.
        """
        base, network, prompt, n_pos = self.base, self.network, rows.prompt, self.suffix.n_pos
        at = (prompt[:, None], window)
        source = self.source[self.source_hook, layer]
        if self.kind == "z":
            z = source[at]
        elif self.kind == "pattern":
            pattern = source[prompt[:, None], :, window][..., :n_pos]  # [run window head pos]
            z = network.mix(pattern, base["attn.hook_v", layer][prompt, :n_pos])
        else:
            taken = _is_patched(rows, torch.arange(n_pos)[None])[..., None, None]  # [run pos 1 1]
            k = base[self.suffix.keys, layer][prompt, :n_pos]  # [run pos kv_head d_head]
            v = base["attn.hook_v", layer][prompt, :n_pos]
            q = source[at] if self.kind == "q" else base[self.query_hook, layer][at]
            if self.kind == "k":
                k = torch.where(taken, source[prompt, :n_pos], k)
            elif self.kind == "v":
                v = torch.where(taken, source[prompt, :n_pos], v)
            z = network.attend(q, k, v, self.suffix.allowed(window))
        heads = torch.arange(network.n_heads)
        if self.kind in GROUPED_KINDS:  # a changed key or value reaches every later query of the heads that share it
            chosen = (heads // (network.n_heads // network.n_kv_heads) == rows.head[:, None])[:, None]  # [run 1 head]
        else:
            chosen = (heads == rows.head[:, None])[:, None] & patched[..., None]  # [run window head]
        return torch.where(chosen[..., None], z, base["attn.hook_z", layer][at])


def _is_patched(rows: Rows, positions: Int[Tensor, "run pos"]) -> Bool[Tensor, "run pos"]:
    return (rows.position[:, None] == ALL) | (rows.position[:, None] == positions)
