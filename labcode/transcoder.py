"""Transcoders: what an MLP writes, predicted by a sparse code of what it reads.

sae-lens loads and runs transcoders, but does not train them: the loop is here. In training, of a batch of n tokens, the
k · n largest activations are kept, wherever they fall (BatchTopK); what is saved is a `JumpReLUTranscoder` of sae-lens
whose threshold lets as many through on the training text. With a linear map beside the code, fixed before the code is
trained, it is a `JumpReLUSkipTranscoder`, and the code explains what is not linear.

Position 0 and massive vectors are left out, as for autoencoders (`labcode.sae`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional as F

from labcode import sae
from labcode.corpus import DATA, Corpus, load_corpus
from labcode.errors import SaeError
from labcode.inputs import guard
from labcode.latents import Editor
from labcode.models import cache_dir, edition, must_be_clean, weights_key
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

DEAD_AFTER = 20  # batches without firing
AUX = 1 / 32  # weight of the dead latents' own loss, and the share of them that a token's error is shown to
LIVE_CONTEXTS, LIVE_SAMPLES = 96, 40_000
LIVE_VERSION = 1  # raise it when training on the spot would give another transcoder

Predict = Callable[["Float[Tensor, 'sample d_model']"], "Float[Tensor, 'sample d_model']"]


def hooks(layer: int) -> tuple[str, str]:
    """Names of the hooks at what the MLP of a layer reads, after its norm, and at what it writes."""
    return f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out"


@dataclass(frozen=True)
class Pairs:
    """What an MLP reads and what it writes, at many tokens.

    Attributes:
        reads, writes: the vectors, float32.
        context, position: where each came from.
        dropped: tokens after the first position that were left out, as the stream after the block is massive there.
        median: median norm of the stream after the block.
        layer: whose MLP.
    """

    reads: Float[Tensor, "sample d_model"]
    writes: Float[Tensor, "sample d_model"]
    context: Int[Tensor, " sample"]
    position: Int[Tensor, " sample"]
    dropped: int
    median: float
    layer: int

    def __len__(self) -> int:
        return len(self.reads)

    @property
    def center(self) -> Float[Tensor, " d_model"]:
        """The mean output."""
        return self.writes.mean(0)

    @property
    def inputs(self) -> sae.Activations:
        """What is read, as `latents.codes_of` takes it."""
        return sae.Activations(self.reads, self.context, self.position, self.dropped, self.median, self.layer)


def collect(model: TransformerBridge, tokens: Int[Tensor, "context pos"], layer: int, batch_size: int = 32) -> Pairs:
    """What the MLP of a layer reads and writes at every token but the first and those with massive vectors.

    Raises:
        SaeError: no such layer, a block without an MLP, no contexts, or a NaN.
    """
    check_mlp(model, layer)
    sae.check_contexts(tokens)
    names = [*hooks(layer), sae.hook(layer)]
    pieces = []
    for piece in progress(tokens.split(batch_size), f"MLP of layer {layer}", -(-len(tokens) // batch_size)):
        with torch.no_grad():
            _, cache = model.run_with_cache(piece, names_filter=names, stop_at_layer=layer + 1)
        pieces.append([cache[name][:, 1:].float() for name in names])
    reads, writes, after = (torch.cat(parts) for parts in zip(*pieces, strict=True))  # [context pos - 1 d_model]
    if not (torch.isfinite(reads).all() and torch.isfinite(writes).all()):
        raise SaeError(f"NaN or infinite numbers at the MLP of layer {layer}: check the model's weights")
    norms = after.norm(dim=-1)
    median = float(norms.median())
    kept = norms <= sae.MASSIVE * median
    where = kept.nonzero()
    return Pairs(reads[kept], writes[kept], where[:, 0], where[:, 1] + 1, int((~kept).sum()), median, layer)


def check_mlp(model: TransformerBridge, layer: int) -> None:
    """Raises `SaeError` unless the model has this layer, and an MLP in it."""
    sae.check_layer(model, layer)
    if hooks(layer)[0] not in model.hook_dict:
        raise SaeError(f"layer {layer} of this model has no MLP that a transcoder could imitate")


# Which MLP


def effects(editor: Editor, other: Population) -> dict[str, Float[Tensor, " batch"]]:
    """What the MLP of the editor's layer contributes at S2, and at END, to the answer of each of its prompts.

    The change of the logit difference when what the MLP writes at that one token is taken from the other prompts.

    Args:
        other: the same prompts with other names, aligned (`prompts.renamed`).

    Raises:
        SaeError: no MLP there.
    """
    model, pop, layer = editor.model, editor.pop, editor.layer
    check_mlp(model, layer)
    rows, name = torch.arange(len(pop)), hooks(layer)[1]
    written = []
    for prompts in (pop, other):
        with torch.no_grad():
            _, cache = model.run_with_cache(prompts.tokens, names_filter=[name], stop_at_layer=layer + 1)
        written.append(cache[name])
    change = written[1] - written[0]
    return {at: editor.change(at, change[rows, pop.positions[at]]) for at in ("S2", "END")}


def beyond_linear(
    model: TransformerBridge, tokens: Int[Tensor, "context pos"], held: Int[Tensor, "held pos"]
) -> list[float]:
    """For the MLP of each layer the FVU that the least-squares linear map from input to output leaves on `held`.

    The maps are fitted on `tokens`, all layers in one pass, from sums of products: the vectors are not kept.
    """
    layers, width = range(model.cfg.n_layers), model.cfg.d_model + 1
    gram, cross = torch.zeros(len(layers), width, width), torch.zeros(len(layers), width, width - 1)
    for layer, x, y in _everywhere(model, tokens):
        gram[layer] += x.T @ x
        cross[layer] += x.T @ y
    ridge = 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(-1)
    weight = torch.linalg.solve(gram + ridge[:, None, None] * torch.eye(width), cross)
    center = cross[:, -1] / gram[:, -1, -1, None]
    error, total = torch.zeros(len(layers)), torch.zeros(len(layers))
    for layer, x, y in _everywhere(model, held):
        error[layer] += (y - x @ weight[layer]).pow(2).sum()
        total[layer] += (y - center[layer]).pow(2).sum()
    return (error / total).tolist()


def _everywhere(model: TransformerBridge, tokens: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Layer, inputs with a 1 behind them, and outputs; without position 0 and massive vectors."""
    layers = range(model.cfg.n_layers)
    names = [name for layer in layers for name in (*hooks(layer), sae.hook(layer))]
    for piece in progress(tokens.split(sae.AT_ONCE), "all MLPs"):
        with torch.no_grad():
            _, cache = model.run_with_cache(piece, names_filter=names, stop_at_layer=len(layers))
        for layer in layers:
            x, y, after = (cache[name][:, 1:].flatten(0, 1).float() for name in (*hooks(layer), sae.hook(layer)))
            norms = after.norm(dim=-1)
            kept = norms <= sae.MASSIVE * norms.median()
            yield layer, F.pad(x[kept], (0, 1), value=1.0), y[kept]


# Baselines: what a prediction without a sparse code can do


@dataclass(frozen=True)
class LinearMap:
    """y = x @ weight + bias."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]

    def __call__(self, x: Float[Tensor, "sample d_model"]) -> Float[Tensor, "sample d_model"]:
        """The prediction."""
        return x @ self.weight + self.bias

    def of_rank(self, rank: int, pairs: Pairs) -> LinearMap:
        """The nearest map through so few numbers: onto the main directions of what this one predicts."""
        _, _, v = torch.linalg.svd(self(pairs.reads) - pairs.center, full_matrices=False)
        onto = v[:rank].T @ v[:rank]
        return LinearMap(self.weight @ onto, (self.bias - pairs.center) @ onto + pairs.center)


def linear_map(pairs: Pairs, ridge: float = 1e-3) -> LinearMap:
    """The least-squares map from what the MLP reads to what it writes.

    Args:
        ridge: of the mean variance of a coordinate, added to each: without it a few thousand samples overfit.
    """
    start, center = pairs.reads.mean(0), pairs.center
    x = pairs.reads - start
    gram = x.T @ x
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    weight = torch.linalg.solve(gram, x.T @ (pairs.writes - center))
    return LinearMap(weight, center - start @ weight)


def unexplained(pairs: Pairs, predict: Predict, center: Float[Tensor, " d_model"]) -> float:
    """Fraction of variance unexplained (FVU): squared error over squared distance from `center`, each summed.

    Raises:
        SaeError: a centre, or predictions, of another width than what the MLP writes.
    """
    for what, shape in (("a centre", center.shape), ("a prediction", predict(pairs.reads[:1])[0].shape)):
        if shape != pairs.writes.shape[1:]:
            raise SaeError(f"{what} of shape {tuple(shape)} for outputs of {pairs.writes.shape[1]} numbers")
    error = total = 0.0
    with torch.no_grad():
        for x, y in zip(pairs.reads.split(4096), pairs.writes.split(4096), strict=True):
            error += float((y - predict(x)).pow(2).sum())
            total += float((y - center).pow(2).sum())
    return error / total


# Training


@dataclass(frozen=True)
class Training:
    """A trained transcoder, its course (`sae.Moment`s), the seconds it took, and the settings."""

    transcoder: Any
    history: list[sae.Moment]
    seconds: float
    settings: dict[str, Any]


@torch.enable_grad()
def train(
    pairs: Pairs,
    *,
    d_sae: int = 1024,
    k: int = 32,
    samples: int = 60_000,
    batch: int = 512,
    lr: float = 2e-3,
    linear: LinearMap | None = None,
    aux: float = AUX,
    start: Literal["tokens", "random"] = "tokens",
    decoder: Literal["trained", "random"] = "trained",
    seed: int = 0,
    model_name: str = "",
    every: int = 5,
) -> Training:
    """Train a transcoder on `samples` pairs, passing over them as often as that takes.

    Args:
        d_sae: latents. k: how many of them a token uses, on average over a batch.
        linear: a map that stays as it is beside the code; the code learns what it leaves.
        aux: weight of a loss of their own for latents that have not fired in the last `DEAD_AFTER` batches: they learn
            to predict what the others leave. 0 for none.
        start: latents begin as tokens of the training text, each reading what was read there and writing what was
            written, or in random directions.
        decoder: "random" leaves its directions random: a baseline, with a trained encoder.
        every: steps between two entries of the history.

    Returns:
        A sae-lens `JumpReLUTranscoder`, with `linear` a `JumpReLUSkipTranscoder`, in float32 for unscaled activations,
        decoder rows of norm 1.

    Raises:
        SaeError: fewer pairs than one batch, an impossible k, or a NaN during training.

    Limits: with centred data no latent died in the runs that the book records, so what `aux` is worth is not shown.

    Source: Dunefsky et al. 2024; Bussmann et al. 2024 (BatchTopK); Gao et al. 2024, appendix A.2 (the
    auxiliary loss).
    """
    if len(pairs) < batch:
        raise SaeError(f"{len(pairs)} pairs are fewer than one batch of {batch}: collect more, or a smaller batch")
    if not 0 < k <= d_sae:
        raise SaeError(f"k = {k} active latents of {d_sae}: k has to lie between 1 and the number of latents")
    steps = max(1, samples // batch)
    started = time.perf_counter()
    code = _Code(pairs, d_sae, k, linear, start, decoder, seed)
    optimiser = torch.optim.Adam(code.parameters, lr=lr)
    history, quiet = [], torch.zeros(d_sae)  # batches since each latent fired
    for step, chosen in progress(enumerate(sae.batches(len(pairs), batch, steps, seed)), "training", steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / (0.05 * steps), 0.1 + 0.9 * (steps - step) / (0.3 * steps))
        x, y = code.scaled(pairs.reads[chosen], pairs.writes[chosen])
        before = code.before(x)
        acts = _kept(before.relu(), k * len(x))
        error = y - code.decode(acts)
        share = error.pow(2).sum() / (y - y.mean(0)).pow(2).sum()
        loss = share + aux * code.of_the_dead(before, error.detach(), quiet >= DEAD_AFTER) if aux else share
        if not math.isfinite(float(loss.detach())):
            raise SaeError(
                f"the loss is {float(loss.detach())} at step {step} of {steps}: lower the learning rate ({lr:g})"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            code.W_dec.copy_(F.normalize(code.W_dec, dim=-1))
        fired = (acts > 0).any(0)
        quiet = (quiet + 1).masked_fill(fired, 0)
        if step % every == 0 or step == steps - 1:
            dead, active = float((quiet >= DEAD_AFTER).float().mean()), float((acts > 0).float().sum(-1).mean())
            history.append(sae.Moment((step + 1) * batch, float(share.detach()), active, dead))
    settings: dict[str, Any] = {
        "d_sae": d_sae,
        "k": k,
        "samples": steps * batch,
        "batch": batch,
        "lr": lr,
        "aux": aux,
        "seed": seed,
    }
    settings |= {
        "start": start,
        "decoder": decoder,
        "linear": linear is not None,
        "steps": steps,
        "layer": pairs.layer,
        "pairs": len(pairs),
    }
    made = code.finished(pairs, model_name)
    return Training(made, history, time.perf_counter() - started, settings)


class _Code:
    """The parameters while they are trained, for inputs and targets scaled to a mean square of 1."""

    def __init__(
        self, pairs: Pairs, d_sae: int, k: int, linear: LinearMap | None, start: str, decoder: str, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.k, self.linear = k, linear
        self.start = pairs.reads.mean(0)
        some = slice(None, None, max(1, len(pairs) // 20_000))
        target = self.target(pairs.reads[some], pairs.writes[some])
        self.center = target.mean(0)
        self.read_scale = float((pairs.reads[some] - self.start).pow(2).mean().sqrt()) or 1.0
        self.write_scale = float((target - self.center).pow(2).mean().sqrt()) or 1.0
        drawn = torch.randint(len(pairs), (d_sae,), generator=generator)
        x, y = self.scaled(pairs.reads[drawn], pairs.writes[drawn])
        noise_x, noise_y = (torch.randn(part.shape, generator=generator) for part in (x, y))
        x = noise_x if start == "random" else x + 0.5 * noise_x
        y = noise_y if "random" in (start, decoder) else y + 0.5 * noise_y
        self.W_enc = F.normalize(x, dim=-1).T.contiguous()
        self.W_dec = F.normalize(y, dim=-1)
        self.b_enc, self.b_dec = torch.zeros(d_sae), torch.zeros(y.shape[1])
        self.parameters = [self.W_enc, self.b_enc, self.b_dec, *([self.W_dec] if decoder == "trained" else [])]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def target(self, x: Tensor, y: Tensor) -> Tensor:
        """What the code has to predict."""
        return y if self.linear is None else y - self.linear(x)

    def scaled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.start) / self.read_scale, (self.target(x, y) - self.center) / self.write_scale

    def before(self, x: Tensor) -> Tensor:
        """What the encoder makes of inputs, before latents are chosen."""
        return x @ self.W_enc + self.b_enc

    def decode(self, acts: Tensor) -> Tensor:
        return acts @ self.W_dec + self.b_dec

    def of_the_dead(self, before: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """Share of the error that the dead latents miss when a token may use the nearest of them."""
        found = dead.nonzero()[:, 0]
        if not len(found):
            return torch.zeros(())
        top = before[:, found].topk(min(len(found), 2 * self.k), dim=-1)
        acts = torch.zeros(len(before), len(found)).scatter(1, top.indices, top.values)
        return (error - acts @ self.W_dec[found]).pow(2).sum() / error.pow(2).sum()

    def finished(self, pairs: Pairs, model_name: str) -> Any:
        """The transcoder of sae-lens, scales folded in."""
        import sae_lens

        kind = "JumpReLUTranscoder" if self.linear is None else "JumpReLUSkipTranscoder"
        (d_in, d_sae), d_out = self.W_enc.shape, self.W_dec.shape[1]
        config = getattr(sae_lens, f"{kind}Config")(d_in=d_in, d_out=d_out, d_sae=d_sae, apply_b_dec_to_input=False)
        made = getattr(sae_lens, kind)(config)
        made.cfg.metadata.hook_name, made.cfg.metadata.hook_name_out = hooks(pairs.layer)
        made.cfg.metadata.model_name = model_name
        with torch.no_grad():
            some = pairs.reads[:: max(1, len(pairs) // 4096)]
            acts = self.before((some - self.start) / self.read_scale).relu().flatten()
            least = acts.topk(min(len(acts), self.k * len(some))).values[-1]
            made.W_enc.copy_(self.W_enc * self.write_scale / self.read_scale)
            made.b_enc.copy_((self.b_enc - self.start @ self.W_enc / self.read_scale) * self.write_scale)
            made.W_dec.copy_(self.W_dec)
            made.b_dec.copy_(self.b_dec * self.write_scale + self.center)
            made.threshold.fill_(float(least) * self.write_scale)
            if self.linear is not None:
                made.W_skip.copy_(self.linear.weight.T)
                made.b_dec.add_(self.linear.bias)
        return made.eval().requires_grad_(False)


def _kept(acts: Float[Tensor, "sample d_sae"], n: int) -> Float[Tensor, "sample d_sae"]:
    """The `n` largest of a batch, and 0 elsewhere."""
    least = acts.detach().flatten().topk(n).values[-1]
    return acts * (acts >= least)


# Judging, in the model


def predictions(transcoder: Any, linear: LinearMap, pairs: Pairs) -> dict[str, Predict]:
    """A transcoder beside what it has to beat: the linear map, one through as few numbers as the code, and the mean."""
    center, narrow = pairs.center, linear.of_rank(32, pairs)
    return {"transcoder": transcoder, "linear": linear, "rank 32": narrow, "mean": center.expand_as}


def evaluate(
    model: TransformerBridge,
    tokens: Int[Tensor, "context pos"],
    layer: int,
    predict: Mapping[str, Predict],
    median: float,
) -> dict[str, Float[Tensor, " context"]]:
    """Cross-entropy of each context with the MLP replaced by each prediction of it, and "clean", as it is.

    At position 0 and where the stream after the block is massive the MLP stays.

    Args:
        median: of the norms of the stream after the block (`Pairs.median`).

    Raises:
        SaeError: no such layer, or no MLP there.
    """
    check_mlp(model, layer)
    conditions: dict[str, Predict | None] = {"clean": None, **predict}
    rows: dict[str, list[Tensor]] = {name: [] for name in conditions}
    for piece in progress(tokens.split(sae.AT_ONCE), "splicing"):
        ordinary = sae.ordinary(sae.residual(model, piece, layer), median)
        for name, prediction in conditions.items():
            with torch.no_grad(), model.hooks(fwd_hooks=_replaced(prediction, layer, ordinary)):
                rows[name].append(sae.cross_entropy(model(piece, return_type="logits"), piece))
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _replaced(predict: Predict | None, layer: int, where: Bool[Tensor, "context pos"]) -> list[tuple[str, Any]]:
    if predict is None:
        return []
    seen: list[Tensor] = []

    def read(x: Tensor, hook: Any) -> None:
        seen[:] = [x]

    def write(y: Tensor, hook: Any) -> Tensor:
        y = y.clone()
        y[where] = predict(seen[0][where]).to(y)
        return y

    reads, writes = hooks(layer)
    return [(reads, read), (writes, write)]


# On disk


def layer_of(transcoder: Any) -> int:
    """The layer whose MLP this transcoder imitates.

    Raises:
        SaeError: an autoencoder, hooks the wrong way round, of two layers, or none of ours.
    """
    found = transcoder.cfg.metadata
    reads, writes = str(found.hook_name), str(found.hook_name_out)
    if found.hook_name_out is None or not hasattr(transcoder.cfg, "d_out"):
        raise SaeError(f"this is no transcoder: it reads {reads} and names no hook whose values it predicts")
    layer = next((int(part) for part in reads.split(".") if part.isdigit()), -1)
    if (reads, writes) == hooks(layer)[::-1]:
        raise SaeError(f"hooks the wrong way round: a transcoder reads {writes} and predicts {reads}")
    if (reads, writes) != hooks(layer):
        raise SaeError(
            f"this transcoder reads {reads} and predicts {writes}; the lab's read blocks.N.mlp.hook_in and predict "
            "blocks.N.hook_mlp_out of the same layer"
        )
    return layer


def check_fits(transcoder: Any, model: TransformerBridge) -> int:
    """The layer of a transcoder that fits the model.

    Raises:
        SaeError: it does not: another layer or width, or hooks that are not those of one MLP.
    """
    layer = layer_of(transcoder)
    check_mlp(model, layer)
    widths, d_model = (transcoder.cfg.d_in, transcoder.cfg.d_out), model.cfg.d_model
    if widths != (d_model, d_model):
        raise SaeError(
            f"this transcoder reads {widths[0]} numbers and predicts {widths[1]}, and the model's MLPs read and write "
            f"{d_model}: train one on this model"
        )
    return layer


def load(folder: Path, model: TransformerBridge | None = None) -> tuple[Any, dict[str, Any]]:
    """A transcoder, in float32 with gradients off, and its record; `sae.save` writes them.

    Raises:
        SaeError: files that are missing or damaged, hooks that are not ours, or a model that it does not fit.
    """
    transcoder, record = sae.load(folder)
    if model is None:
        layer_of(transcoder)
        return transcoder, record
    check_fits(transcoder, model)
    if record.get("weights", mark := weights_key(model)) != mark:
        raise SaeError(f"the transcoder in {folder} was trained on other weights than this model's: train one on these")
    return transcoder, record


@dataclass(frozen=True)
class Shipped:
    """A transcoder for this run's model.

    Attributes:
        transcoder: a sae-lens `JumpReLUSkipTranscoder`. layer: whose MLP it imitates.
        record: how it was trained. live: whether it was trained on this machine because none is shipped for the model.
        center: mean output of the MLP on the text that it was trained on.
    """

    transcoder: Any
    layer: int
    record: dict[str, Any]
    live: bool
    center: Float[Tensor, " d_model"]

    @property
    def linear(self) -> LinearMap:
        """The linear map beside the code."""
        return LinearMap(self.transcoder.W_skip.T, torch.tensor(self.record["linear_bias"]))


def shipped(model: TransformerBridge, text: Corpus | None = None) -> Shipped:
    """The shipped transcoder if it was trained on exactly this model, else a small one, trained now and kept.

    Raises:
        SaeError: the shipped one is missing or damaged, or the model has no MLPs.
    """
    mark, folder = weights_key(model), DATA / "transcoder-smollm2"
    live = edition(model) != "smollm2" or sae.load(folder)[1]["weights"] != mark
    made, record = _own(model, load_corpus(model) if text is None else text, mark) if live else load(folder, model)
    return Shipped(made, layer_of(made), record, live, torch.tensor(record["center"]))


def _own(model: TransformerBridge, text: Corpus, mark: str) -> tuple[Any, dict[str, Any]]:
    parts = text.split()[0][:LIVE_CONTEXTS]
    where = str(model.cfg.device).replace("cpu", "")  # another device's last digits give another dictionary
    target = cache_dir() / "transcoder" / f"{mark[:16]}-{len(parts)}-v{LIVE_VERSION}{where}"

    def build(aside: Path) -> None:
        must_be_clean(model)
        pairs = collect(model, parts, 2 * model.cfg.n_layers // 3)  # two thirds up: not measured, so no choice
        linear = linear_map(pairs)
        batch = min(128, len(pairs))
        made = train(pairs, d_sae=512, k=16, samples=LIVE_SAMPLES, batch=batch, lr=4e-3, linear=linear)
        sae.save(made.transcoder, aside, record_of(model, pairs, linear, made) | {"trained_on": text.written_by})

    return load(sae.made_here(target, load, build), model)


def record_of(model: TransformerBridge, pairs: Pairs, linear: LinearMap, made: Training) -> dict[str, Any]:
    """What is kept beside a transcoder."""
    return {
        "model": str(model.cfg.model_name),
        "weights": weights_key(model),
        "pairs": len(pairs),
        "dropped": pairs.dropped,
        "median": round(pairs.median, 4),
        "settings": made.settings,
        "seconds": round(made.seconds),
        "center": [round(value, 5) for value in pairs.center.tolist()],
        "linear_bias": [round(value, 5) for value in linear.bias.tolist()],
        "history": [[at.samples, round(at.loss, 4), round(at.l0, 2), round(at.dead, 4)] for at in made.history],
    }


guard(globals(), SaeError)
