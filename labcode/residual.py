"""The residual stream as a sum: its terms, what each adds to the logit difference, and the logit lens.

Everything is read at END, where the answer is predicted. The model is in compatibility mode: the weights of each norm
are folded into the matrix after it, so that the final norm is one division by a number, `scale`, and (for LayerNorm
models) a subtraction of the mean that is zero by construction, since every writer is centred.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from labcode.errors import MetricError
from labcode.forward import at_end_only
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population


@dataclass(frozen=True)
class Decomposition:
    """What each part of the model wrote into the residual stream at END.

    Attributes:
        terms: one vector for each term; they sum to the stream before the final norm.
        labels: "embed", "pos_embed", then in order of layer "3.5" (head 5 of layer 3), "attn bias 3" and "mlp 3".
        layers: the layer of each term, -1 for the embeddings.
        kinds: "embed", "head", "bias" or "mlp".
        scale: the number by which the final norm divides, for each prompt.
        stream: the stream before the final norm, as the model had it.
    """

    terms: Float[Tensor, "term batch d_model"]
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    scale: Float[Tensor, " batch"]
    stream: Float[Tensor, "batch d_model"]

    def select(self, kind: str) -> list[int]:
        """Indices of the terms of one kind, in order of layer."""
        return [i for i, k in enumerate(self.kinds) if k == kind]

    def by_sublayer(self) -> tuple[list[str], Float[Tensor, "sublayer batch d_model"]]:
        """The terms added up: embeddings, then "attn 0", "mlp 0", "attn 1", ... (biases belong to their attention)."""
        sums: dict[str, Tensor] = {}
        for label, layer, kind, term in zip(self.labels, self.layers, self.kinds, self.terms, strict=True):
            name = label if kind in ("embed", "mlp") else f"attn {layer}"
            sums[name] = sums[name] + term if name in sums else term
        return list(sums), torch.stack(list(sums.values()))


def decompose(model: TransformerBridge, pop: Population, batch_size: int = 16) -> Decomposition:
    """Split the stream at END into embeddings, heads, attention biases and MLPs.

    A head's term is its z, the mix of values that it read, times its slice of W_O (Elhage et al. 2021, "Attention heads
    are independent and additive"). Biases of the attention output are a term of their own.

    Raises:
        MetricError: the terms miss the stream by more than 1e-3 of its norm: the model adds something that this
            decomposition does not know, or computes in a lower precision.

    Used in chapters 02, 05 to 07 and 10.
    """
    pieces = [_decompose(model, piece) for piece in progress(list(pop.chunks(batch_size)), "decomposing")]
    whole = replace(
        pieces[0],
        terms=torch.cat([piece.terms for piece in pieces], dim=1),
        scale=torch.cat([piece.scale for piece in pieces]),
        stream=torch.cat([piece.stream for piece in pieces]),
    )
    gap = (whole.terms.sum(0) - whole.stream).norm(dim=-1) / whole.stream.norm(dim=-1)
    if not bool((gap < 1e-3).all()):
        raise MetricError(
            f"the terms of the residual stream miss it by {float(gap.max()):.1e} of its norm: this model adds "
            "something besides embeddings, attention and MLPs, or does not run in float32",
            see="stream-does-not-add-up",
        )
    return whole


def logit_direction(model: TransformerBridge, pop: Population) -> Float[Tensor, "batch d_model"]:
    """The direction that the logit difference reads: W_U's column for IO minus its column for S.

    Used in chapter 02.
    """
    return (model.W_U[:, pop.io_ids] - model.W_U[:, pop.s_ids]).T


def bias_difference(model: TransformerBridge, pop: Population) -> Float[Tensor, " batch"]:
    """The part of the logit difference that is the unembedding's bias, the same whatever the stream holds.

    Folding a LayerNorm's bias into the unembedding makes one; an RMSNorm model has none, so it is 0 there.

    Used in chapter 02.
    """
    return model.b_U[pop.io_ids] - model.b_U[pop.s_ids]


def direct_attribution(model: TransformerBridge, pop: Population, parts: Decomposition) -> Float[Tensor, "term batch"]:
    """What each term adds to the logit difference, with the final norm's scale held at its value in this run.

    The terms and `bias_difference` add up to the logit difference exactly. Honest limit: the scale depends on every
    term, so this is not what would be lost without the term, and it is blind to all that a term does through later
    layers (Wang et al. 2022, section 3.1, use the same measure as path patching to the logits).

    Used in chapters 02, 05 to 07 and 10.
    """
    direction = logit_direction(model, pop).cpu()
    return torch.einsum("tbm,bm->tb", parts.terms, direction) / parts.scale


def logit_lens(
    model: TransformerBridge, pop: Population, batch_size: int = 16
) -> tuple[list[str], Float[Tensor, "stage batch"]]:
    """The logit difference that the final norm and the unembedding read from each stage of the stream at END.

    Stages are "embed" and then "attn 0", "mlp 0", "attn 1", ...: the stream after each sublayer. The last one is the
    model's output (nostalgebraist 2020, "interpreting GPT: the logit lens"). Honest limit: the unembedding is trained
    on the last stage alone, so an early reading may miss what is there.

    Used in chapter 02.
    """
    parts = decompose(model, pop, batch_size)
    names, writes = parts.by_sublayer()
    stream = writes.cumsum(dim=0)  # [stage batch d_model]
    first = sum(kind == "embed" for kind in parts.kinds) - 1  # with learned positions, the stream starts at their sum
    names, stream = ["embed", *names[first + 1 :]], stream[first:]
    with torch.no_grad():
        flat = model.ln_final(stream.to(model.cfg.device).flatten(0, 1)[:, None])  # [stage*batch 1 d_model]
    normed = flat.squeeze(1).unflatten(0, stream.shape[:2]).cpu()
    reading = torch.einsum("sbm,bm->sb", normed, logit_direction(model, pop).cpu())
    return names, reading + bias_difference(model, pop).cpu()


def _decompose(model: TransformerBridge, pop: Population) -> Decomposition:
    cfg = model.cfg
    final = f"blocks.{cfg.n_layers - 1}.hook_resid_post"
    wanted = {"hook_embed", "hook_pos_embed", "ln_final.hook_scale", final}
    wanted |= {f"blocks.{layer}.{hook}" for layer in range(cfg.n_layers) for hook in ("attn.hook_z", "hook_mlp_out")}
    with torch.no_grad(), at_end_only(model, pop.end):
        _, cache = model.run_with_cache(pop.tokens.to(cfg.device), names_filter=lambda name: name in wanted)
    rows = torch.arange(len(pop))

    def at_end(hook: str) -> Tensor:
        value = cache[hook].cpu().float()
        return value.expand(len(pop), *value.shape[1:])[rows, pop.end]  # positions may come with one row for all

    found: list[tuple[str, int, str, Tensor]] = [
        (name, -1, "embed", at_end(f"hook_{name}")) for name in ("embed", "pos_embed") if f"hook_{name}" in cache
    ]
    for layer in range(cfg.n_layers):
        attention = model.blocks[layer].attn
        z = at_end(f"blocks.{layer}.attn.hook_z")  # [batch head d_head]
        written = torch.einsum("bhd,hdm->hbm", z, attention.W_O.cpu())
        found += [(f"{layer}.{head}", layer, "head", written[head]) for head in range(cfg.n_heads)]
        if getattr(attention, "b_O", None) is not None:
            found.append((f"attn bias {layer}", layer, "bias", attention.b_O.cpu().expand(len(pop), -1)))
        if f"blocks.{layer}.hook_mlp_out" in cache:
            found.append((f"mlp {layer}", layer, "mlp", at_end(f"blocks.{layer}.hook_mlp_out")))
    labels, layers, kinds, terms = zip(*found, strict=True)
    has_norm = "ln_final.hook_scale" in cache
    scale = at_end("ln_final.hook_scale")[:, 0] if has_norm else torch.ones(len(pop))
    return Decomposition(torch.stack(terms), labels, layers, kinds, scale, at_end(final))
