"""The residual stream as a sum: its terms, what each adds to the logit difference, and the logit lens.

Everything is read at END, where the answer is predicted. TransformerLens takes the stream apart; since it slices one
position for a whole batch and our prompts end at different ones, it gets a cache that holds END alone. The model is in
compatibility mode: the weights of each norm are folded into the matrix after it, so that the final norm is one division
by a number, `scale`, and (for LayerNorm models) a subtraction of the mean that is zero by construction, since every
writer is centred.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from labcode.errors import MetricError
from labcode.forward import at_end_only
from labcode.inputs import guard
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
        labels: "3.5" (head 5 of layer 3) in order of layer, then "mlp 3", "embed", "pos_embed", and "bias", all biases
            of the attention outputs together, where a model has any.
        kinds: "head", "mlp", "embed" or "bias".
        scale: the number by which the final norm divides, for each prompt.
        stream: the stream before the final norm, as the model had it.
    """

    terms: Float[Tensor, "term batch d_model"]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    scale: Float[Tensor, " batch"]
    stream: Float[Tensor, "batch d_model"]

    def select(self, kind: str) -> list[int]:
        """Indices of the terms of one kind, in order of layer."""
        return [i for i, k in enumerate(self.kinds) if k == kind]


def decompose(model: TransformerBridge, pop: Population, batch_size: int = 16) -> Decomposition:
    """Split the stream at END into embeddings, heads, attention biases and MLPs.

    A head's term is its z, the mix of values that it read, times its slice of W_O (Elhage et al. 2021, "Attention heads
    are independent and additive"). Biases of the attention outputs are one term.

    Raises:
        MetricError: the terms miss the stream by more than 1e-3 of its norm: the model adds something that this
            decomposition does not know, or computes in a lower precision.
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
            "something besides embeddings, attention and MLPs, or does not run in float32"
        )
    return whole


def logit_direction(model: TransformerBridge, pop: Population) -> Float[Tensor, "batch d_model"]:
    """The direction that the logit difference reads: W_U's column for IO minus its column for S."""
    return (model.W_U[:, pop.io_ids] - model.W_U[:, pop.s_ids]).T


def bias_difference(model: TransformerBridge, pop: Population) -> Float[Tensor, " batch"]:
    """The part of the logit difference that is the unembedding's bias, the same whatever the stream holds.

    Folding a LayerNorm's bias into the unembedding makes one; an RMSNorm model has none, so it is 0 there.
    """
    return model.b_U[pop.io_ids] - model.b_U[pop.s_ids]


def direct_attribution(model: TransformerBridge, pop: Population, parts: Decomposition) -> Float[Tensor, "term batch"]:
    """What each term adds to the logit difference, with the final norm's scale held at its value in this run.

    The terms and `bias_difference` add up to the logit difference exactly. Honest limit: the scale depends on every
    term, so this is not what would be lost without the term, and it is blind to all that a term does through later
    layers (Wang et al. 2022, section 3.1, use the same measure as path patching to the logits).
    """
    direction = logit_direction(model, pop)
    return torch.einsum("tbm,bm->tb", parts.terms, direction) / parts.scale


def logit_lens(
    model: TransformerBridge, pop: Population, batch_size: int = 16
) -> tuple[list[str], Float[Tensor, "stage batch"]]:
    """The logit difference that the final norm and the unembedding read from each stage of the stream at END.

    Stages are "embed" and then "attn 0", "mlp 0", "attn 1", ...: the stream after each sublayer. The last one is the
    model's output (nostalgebraist 2020, "interpreting GPT: the logit lens"). Honest limit: the unembedding is trained
    on the last stage alone, so an early reading may miss what is there.
    """
    sublayers = ["attn"] if model.cfg.attn_only else ["attn", "mlp"]
    names = ["embed", *(f"{part} {layer}" for layer in range(model.cfg.n_layers) for part in sublayers)]
    readings = []
    for piece in progress(list(pop.chunks(batch_size)), "logit lens"):
        with torch.no_grad():
            stream = _at_end(model, piece).accumulated_resid(apply_ln=True, incl_mid=len(sublayers) > 1)
        read = torch.einsum("sbm,bm->sb", stream[:, :, 0].float(), logit_direction(model, piece))
        readings.append(read + bias_difference(model, piece))
    return names, torch.cat(readings, dim=1)


def _decompose(model: TransformerBridge, pop: Population) -> Decomposition:
    cache = _at_end(model, pop)
    terms, names = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    terms = terms[:, :, 0].float()
    kept = [i for i, name in enumerate(names) if name != "bias" or terms[i].any()]
    labels, kinds = zip(*(_named(names[i]) for i in kept), strict=True)
    has_norm = "ln_final.hook_scale" in cache
    scale = cache["ln_final.hook_scale"][:, 0, 0].float() if has_norm else torch.ones(len(pop))
    stream = cache["resid_post", model.cfg.n_layers - 1][:, 0].float()
    return Decomposition(terms[kept], labels, kinds, scale, stream)


def _named(name: str) -> tuple[str, str]:
    """Our label and kind of a term that TransformerLens calls "L3H5" or "3_mlp_out"."""
    if name.endswith("_mlp_out"):
        return f"mlp {name.removesuffix('_mlp_out')}", "mlp"
    if name.startswith("L"):
        return name[1:].replace("H", "."), "head"
    return name, "bias" if name == "bias" else "embed"


def _at_end(model: TransformerBridge, pop: Population) -> Any:
    """The activations that make up the stream, at END only, as an `ActivationCache` of [batch 1 ...]."""
    from transformer_lens import ActivationCache

    parts = ("hook_resid_pre", "hook_resid_mid", "attn.hook_z", "hook_mlp_out")
    wanted = {"hook_embed", "hook_pos_embed", "ln_final.hook_scale"}
    wanted |= {f"blocks.{layer}.{part}" for layer in range(model.cfg.n_layers) for part in parts}
    wanted |= {f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"}
    with torch.no_grad(), at_end_only(model, pop.end):
        _, cache = model.run_with_cache(pop.tokens.to(model.cfg.device), names_filter=lambda name: name in wanted)
    rows, end = torch.arange(len(pop)), pop.end.to(model.cfg.device)

    def pick(value: Tensor) -> Tensor:
        return value.expand(len(pop), *value.shape[1:])[rows, end][:, None]  # positions come with one row for all

    return ActivationCache({name: pick(value) for name, value in cache.items()}, model)


guard(globals(), MetricError)
