"""The forward arithmetic of a GPT-2-like or Llama-like decoder, on any batch of residual vectors.

The bridge runs whole prompts from the first token. A patched run needs less: some positions, from some layer upwards.
So the arithmetic stands here once more, on the bridge's own (processed) weights, without copies and without hooks. That
it agrees with the bridge is never assumed: `labcode.patching.suffix` compares them on the prompts of each sweep.

Dimensions: `run` counts patched runs, `window` the positions that are computed, `pos` all positions of the prompt.

Used in chapters 04 to 06, through `labcode.patching` and `labcode.paths`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from labcode.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class Linear(NamedTuple):
    """Weight [out, in] and bias [out] or None, as `torch.nn.functional.linear` takes them."""

    weight: Tensor
    bias: Tensor | None


class Layer(NamedTuple):
    """The weights of one block, as views. `gate` is None for a plain MLP, `mlp_in` for a block without one."""

    norm1: tuple[Tensor | None, Tensor | None]
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    norm2: tuple[Tensor | None, Tensor | None]
    gate: Linear | None
    mlp_in: Linear | None
    mlp_out: Linear | None


class Network:
    """Blocks, final norm and unembedding of `model`, as functions of a residual stream.

    Raises:
        ModelError: normalisation, activation function or block layout are not those of GPT-2 or Llama.
    """

    def __init__(self, model: TransformerBridge) -> None:
        cfg = model.cfg
        self.n_layers, self.n_heads, self.d_head, self.d_model = cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_model
        self.n_kv_heads = cfg.n_key_value_heads or cfg.n_heads
        self.eps = cfg.eps
        self.norm_kind = str(cfg.normalization_type or "").removesuffix("Pre")
        if self.norm_kind not in ("", "LN", "RMS"):
            raise ModelError(f"normalisation {cfg.normalization_type!r}", see="unsupported-model")
        if cfg.parallel_attn_mlp:
            raise ModelError("attention and MLP in parallel", see="unsupported-model")
        if not cfg.attn_only and cfg.act_fn not in ACTIVATIONS:
            raise ModelError(f"activation function {cfg.act_fn!r}", see="unsupported-model")
        self.act = ACTIVATIONS.get(cfg.act_fn or "relu", F.relu)
        try:
            self.layers = [_layer(block) for block in model.blocks]
            self.final_norm = _norm_weights(model.ln_final)
            self.unembed = Linear(model.W_U.T, getattr(model, "b_U", None))
        except AttributeError as missing:
            raise ModelError(f"a block without the usual parts ({missing})", see="unsupported-model") from missing

    def norm(
        self, x: Float[Tensor, "*batch d_model"], weights: tuple[Tensor | None, Tensor | None]
    ) -> Float[Tensor, "*batch d_model"]:
        """LayerNorm, RMSNorm or nothing, as the model has it."""
        if self.norm_kind == "LN":
            return F.layer_norm(x, (self.d_model,), *weights, eps=self.eps)
        if self.norm_kind == "RMS":
            return F.rms_norm(x, (self.d_model,), weights[0], eps=self.eps)
        return x

    def queries(
        self, layer: int, x: Float[Tensor, "run window d_model"], rotary: tuple[Tensor, Tensor] | None
    ) -> Float[Tensor, "run window head d_head"]:
        """Queries of normalised residual vectors `x`, rotated where the model has rotary positions."""
        return _rotate(F.linear(x, *self.layers[layer].q).unflatten(-1, (self.n_heads, self.d_head)), rotary)

    def keys_values(
        self, layer: int, x: Float[Tensor, "run window d_model"], rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "run window kv_head d_head"], Float[Tensor, "run window kv_head d_head"]]:
        """Keys (rotated) and values of normalised residual vectors `x`."""
        weights, heads = self.layers[layer], (self.n_kv_heads, self.d_head)
        k, v = (F.linear(x, *weight).unflatten(-1, heads) for weight in (weights.k, weights.v))
        return _rotate(k, rotary), v

    def attend(
        self,
        q: Float[Tensor, "run window head d_head"],
        k: Float[Tensor, "run pos kv_head d_head"],
        v: Float[Tensor, "run pos kv_head d_head"],
        allowed: Bool[Tensor, "run window pos"],
    ) -> Float[Tensor, "run window head d_head"]:
        """z of every head: each query attends to the positions it is `allowed` to see."""
        z = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=allowed[:, None],
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return z.transpose(1, 2)

    def mix(
        self, pattern: Float[Tensor, "run window head pos"], v: Float[Tensor, "run pos kv_head d_head"]
    ) -> Float[Tensor, "run window head d_head"]:
        """z of every head, given its attention pattern."""
        v = v.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2)
        return torch.einsum("rwhp,rphd->rwhd", pattern, v)

    def project(self, layer: int, z: Float[Tensor, "run window head d_head"]) -> Float[Tensor, "run window d_model"]:
        """What attention adds to the residual stream, given z of every head."""
        return F.linear(z.flatten(-2), *self.layers[layer].o)

    def mlp(self, layer: int, x: Float[Tensor, "run window d_model"]) -> Float[Tensor, "run window d_model"]:
        """What the MLP adds to the residual stream `x` (before its norm)."""
        weights = self.layers[layer]
        if weights.mlp_in is None or weights.mlp_out is None:
            return torch.zeros_like(x)
        x = self.norm(x, weights.norm2)
        hidden = F.linear(x, *weights.mlp_in)
        hidden = self.act(hidden) if weights.gate is None else self.act(F.linear(x, *weights.gate)).mul_(hidden)
        return F.linear(hidden, *weights.mlp_out)

    def logits(self, x: Float[Tensor, "run d_model"]) -> Float[Tensor, "run d_vocab"]:
        """All logits, from the last residual stream at one position."""
        return F.linear(self.norm(x, self.final_norm), *self.unembed)

    def logit_difference(self, x: Float[Tensor, "run d_model"], right: Tensor, wrong: Tensor) -> Float[Tensor, " run"]:
        """logit(right) - logit(wrong), token ids of each run, without the rest of the vocabulary."""
        weight, bias = self.unembed
        difference = (self.norm(x, self.final_norm) * (weight[right] - weight[wrong])).sum(-1)
        return difference if bias is None else difference + bias[right] - bias[wrong]


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Rotary positions in Llama's layout, dimension i paired with i + d_rotary / 2; what lies beyond is not rotated."""
    if rotary is None:
        return x
    cos, sin = (part[..., None, :] for part in rotary)  # [run window 1 d_rotary]
    turned, kept = x.tensor_split([cos.shape[-1]], dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, kept), dim=-1) if kept.shape[-1] else turned


def _layer(block: Any) -> Layer:
    attn, mlp = block.attn, getattr(block, "mlp", None)
    return Layer(
        norm1=_norm_weights(block.ln1),
        q=_into_heads(attn.W_Q, attn.b_Q),
        k=_into_heads(attn.W_K, attn.b_K),
        v=_into_heads(attn.W_V, attn.b_V),
        o=Linear(attn.W_O.flatten(0, 1).T, attn.b_O),
        norm2=(None, None) if mlp is None else _norm_weights(block.ln2),
        gate=_linear(mlp, "gate"),
        mlp_in=_linear(mlp, "in"),
        mlp_out=_linear(mlp, "out"),
    )


def _into_heads(weight: Float[Tensor, "head d_model d_head"], bias: Float[Tensor, "head d_head"] | None) -> Linear:
    return Linear(weight.permute(0, 2, 1).flatten(0, 1), None if bias is None else bias.flatten())


def _linear(mlp: Any, name: str) -> Linear | None:
    weight = getattr(mlp, f"W_{name}", None)  # [in out]
    return None if weight is None else Linear(weight.T, getattr(mlp, f"b_{name}", None))


def _norm_weights(norm: Any) -> tuple[Tensor | None, Tensor | None]:
    return getattr(norm, "w", None), getattr(norm, "b", None)
