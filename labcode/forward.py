"""The forward arithmetic of a GPT-2-like or Llama-like decoder, and the part of a run that a patch can change.

The bridge runs whole prompts from the first token. A patched run needs less: some positions, from some layer upwards.
So the arithmetic stands here once more, on the bridge's own (processed) weights, without copies and without hooks.

Three facts make the shorter run exact, not approximate. A patch at layer L changes nothing below L, so a run starts
from the stored residual stream there. Attention is causal, so nothing changes before the first patched position: stored
keys and values stand in for it. Patched runs are independent of each other, so they share a batch: runs join it at
their own layer, and every layer is computed once for all of them. At the last layer only END is computed.

That this agrees with the bridge is never assumed: `check` compares them when a model is loaded, and `Suffix.proven` on
the prompts of each sweep.

Dimensions: `run` counts patched runs, `window` the positions that are computed, `pos` all positions of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from labcode.errors import ModelError, PatchError
from labcode.inputs import guard

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
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
        self.model, cfg = model, model.cfg
        self.n_layers, self.n_heads, self.d_head, self.d_model = cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_model
        self.n_kv_heads = cfg.n_key_value_heads or cfg.n_heads
        self.eps = cfg.eps
        self.norm_kind = str(cfg.normalization_type or "").removesuffix("Pre")
        if self.norm_kind not in ("", "LN", "RMS"):
            raise _unsupported(f"normalisation {cfg.normalization_type!r}")
        if cfg.parallel_attn_mlp:
            raise _unsupported("attention and MLP in parallel")
        if not cfg.attn_only and cfg.act_fn not in ACTIVATIONS:
            raise _unsupported(f"activation function {cfg.act_fn!r}")
        self.act = ACTIVATIONS.get(cfg.act_fn or "relu", F.relu)
        try:
            self.layers = [_layer(block) for block in model.blocks]
            self.final_norm = _norm_weights(model.ln_final)
            self.unembed = Linear(model.W_U.T, getattr(model, "b_U", None))
        except AttributeError as missing:
            raise _unsupported(f"a block without the usual parts ({missing})") from missing

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
        return rotate(F.linear(x, *self.layers[layer].q).unflatten(-1, (self.n_heads, self.d_head)), rotary)

    def keys_values(
        self, layer: int, x: Float[Tensor, "run window d_model"], rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "run window kv_head d_head"], Float[Tensor, "run window kv_head d_head"]]:
        """Keys (rotated) and values of normalised residual vectors `x`."""
        weights, heads = self.layers[layer], (self.n_kv_heads, self.d_head)
        k, v = (F.linear(x, *weight).unflatten(-1, heads) for weight in (weights.k, weights.v))
        return rotate(k, rotary), v

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


def _unsupported(what: str) -> ModelError:
    return ModelError(
        f"this model has {what}, which the lab does not know: use a decoder like GPT-2 or Llama (LayerNorm, RMSNorm or "
        "none; attention, then MLP; learned or rotary positions; keys and values grouped or not)",
        see="unsupported-model",
    )


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
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


TOLERANCE = 1e-4  # in logits, where they stay below 10, else 1e-5 of the largest: float32 noise is below half of that
ELSEWHERE = 1e-3  # on other devices, which add up in another order


@dataclass(frozen=True)
class Run:
    """Activations of one forward pass, `run["attn.hook_z", layer]` for instance, and its logits at END."""

    activations: dict[str, Tensor]
    logits: Float[Tensor, "batch d_vocab"]

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        name = f"blocks.{key[1]}.{key[0]}"
        if name not in self.activations:
            raise PatchError(f"this model has no activation {name}")
        return self.activations[name]


def at_end_only(model: TransformerBridge, end: Int[Tensor, " batch"]) -> AbstractContextManager[object]:
    """Inside, a run's logits are [batch 1 d_vocab]: those of one position of each prompt.

    Unembedding all positions is a fifth of a small model's work, and nobody reads them.
    """
    rows = torch.arange(len(end))

    def at_end(stream: Float[Tensor, "batch pos d_model"], hook: object) -> Float[Tensor, "batch 1 d_model"]:
        return stream[rows, end.to(stream.device)][:, None]

    context: AbstractContextManager[object] = model.hooks(fwd_hooks=[("unembed.hook_in", at_end)])
    return context


def record(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], end: Int[Tensor, " batch"], hooks: Iterable[str]
) -> Run:
    """One forward pass of the bridge, keeping the named activations of every block and the logits at `end`."""
    names = [f"blocks.{layer}.{hook}" for layer in range(model.cfg.n_layers) for hook in hooks]
    with torch.no_grad(), at_end_only(model, end):
        logits, cache = model.run_with_cache(tokens.to(model.cfg.device), names_filter=names)
    return Run({name: cache[name] for name in names if name in cache}, logits[:, 0])


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
        self.model, self.network, self.base, self.end = network.model, network, base, end
        self.rotary = "blocks.0.attn.hook_cos" in base.activations
        self.keys = "attn.hook_rot_k" if self.rotary else "attn.hook_k"
        self.n_pos = int(end.max()) + 1

    @classmethod
    def proven(cls, network: Network, base: Run, end: Int[Tensor, " batch"], start: Int[Tensor, " batch"]) -> Suffix:
        """This arithmetic for these prompts, once it has given the bridge's logits from `start` on.

        Raises:
            PatchError: it has not: the model runs under hooks, or its weights were changed since it was loaded.
        """
        suffix = cls(network, base, end)
        if (gap := suffix.gap(start)) > 1:
            raise PatchError(
                f"the model's logits differ from those of its weights, by {gap:.1g} times what rounding allows: take "
                "hooks off the model before you patch, and load it anew if its weights were changed",
                see="hooked-model",
            )
        return suffix

    def gap(self, start: Int[Tensor, " batch"]) -> float:
        """The largest difference between the logits of `unpatched` and the bridge's, in units of what is allowed."""
        with torch.no_grad():
            gap = (self.unpatched(start) - self.base.logits).abs().max()
        allowed = TOLERANCE if gap.device.type == "cpu" else ELSEWHERE
        return float(gap / (allowed * max(1.0, 0.1 * float(self.base.logits.abs().max()))))

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

    def inputs(
        self, layer: int, x: Float[Tensor, "run window d_model"], window: Int[Tensor, "run window"], end_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (of the last position, if `end_only`), keys and values of the window, [run window head d_head]."""
        network, rotary = self.network, self.rotation(layer, window)
        x = network.norm(x, network.layers[layer].norm1)
        k, v = network.keys_values(layer, x, rotary)
        if end_only:
            x, rotary = x[:, -1:], None if rotary is None else (rotary[0][:, -1:], rotary[1][:, -1:])
        return network.queries(layer, x, rotary), k, v

    def attend(
        self,
        layer: int,
        inputs: tuple[Tensor, Tensor, Tensor],
        prompt: Int[Tensor, " run"],
        window: Int[Tensor, "run window"],
    ) -> Float[Tensor, "run window d_model"]:
        """What attention adds to the stream; the keys and values before the window are those of the base run."""
        return self.network.project(layer, self.network.attend(inputs[0], *self.seen(layer, inputs, prompt, window)))

    def seen(
        self,
        layer: int,
        inputs: tuple[Tensor, Tensor, Tensor],
        prompt: Int[Tensor, " run"],
        window: Int[Tensor, "run window"],
    ) -> tuple[Tensor, Tensor, Bool[Tensor, "run window pos"]]:
        """All keys and values [run pos kv_head d_head], with those of the window put in, and who may see which."""
        q, k_new, v_new = inputs
        k = self.base[self.keys, layer][prompt, : self.n_pos]  # a copy
        v = self.base["attn.hook_v", layer][prompt, : self.n_pos]
        run = torch.arange(len(prompt))[:, None]
        k[run, window], v[run, window] = k_new, v_new
        return k, v, self.allowed(window[:, -q.shape[1] :])

    def attention(
        self,
        layer: int,
        x: Float[Tensor, "run window d_model"],
        prompt: Int[Tensor, " run"],
        window: Int[Tensor, "run window"],
        end_only: bool = False,
    ) -> Float[Tensor, "run window d_model"]:
        """What attention adds to the stream `x`, at the last position only if `end_only`."""
        return self.attend(layer, self.inputs(layer, x, window, end_only), prompt, window)

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


def check(model: TransformerBridge) -> None:
    """Compare this arithmetic with the bridge on a short text of tokens from all over the vocabulary.

    Raises:
        ModelError: the architecture is none that is written here, or gives other logits.
    """
    network = Network(model)
    tokens = torch.linspace(0, model.cfg.d_vocab - 1, min(12, model.cfg.n_ctx)).long()[None]
    end, start = torch.tensor([tokens.shape[1] - 1]), torch.tensor([0])
    try:
        run = record(model, tokens, end, Suffix.hooks(model))
        gap = Suffix(network, run, end).gap(start)
    except (RuntimeError, IndexError, PatchError) as shapes:
        raise _unsupported(f"activations of another kind ({shapes})") from shapes
    if not gap <= 1:
        raise _unsupported(f"a forward pass whose logits differ from ours by {gap:.1g} times what rounding allows")


guard(globals(), PatchError)
