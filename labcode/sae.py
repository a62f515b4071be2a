"""Sparse autoencoders on the residual stream: activations, training, judging, disk.

At a few positions the residual stream is a hundred times longer than elsewhere, nearly all of it in one or two
dimensions (Sun et al. 2024): at the first position always, in some layers elsewhere too. Such vectors carry no text,
and an autoencoder that sees them spends its loss on them. So position 0 is left out, and any vector longer than three
times the median; a layer without the latter is preferred.
"""

from __future__ import annotations

import copy
import math
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labcode import sealed
from labcode.corpus import DATA, Corpus, hub_answers, load_corpus
from labcode.errors import SaeError
from labcode.forward import Network
from labcode.inputs import guard
from labcode.models import build_once, cache_dir, edition, must_be_clean, quiet, say, weights_key
from labcode.progress import progress
from labcode.recorded import remember

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

RES_JB = "gpt2-small-res-jb"  # Bloom 2024; residual stream before each block, 24,576 latents, ReLU with an L1 penalty
MASSIVE = 3.0  # times the median norm
LARGEST_HALF = 60_000.0  # float16 ends at 65,504
DEAD_AFTER = 50  # batches without firing
AT_ONCE = 8  # contexts of a splice

PLACE = re.compile(r"blocks\.(\d+)\.(hook_out|hook_resid_post|hook_in|hook_resid_pre)")

RECORD = "record.json"
LIVE_SAMPLES, LIVE_CONTEXTS = 60_000, 256
LIVE_VERSION = 3  # of the training on the spot: raise it when it would give another autoencoder

Replace = Callable[["Float[Tensor, 'sample d_model']"], "Float[Tensor, 'sample d_model']"]


@dataclass(frozen=True)
class LayerChoice:
    """A layer, and what was measured for the choice; lists have one entry for each layer.

    Attributes:
        layer: the layer whose output is taken.
        medians: median norm at positions after the first. starts: mean norm at the first position.
        counts: vectors after the first position that are longer than `MASSIVE` medians. n: vectors looked at.
    """

    layer: int
    medians: list[float]
    starts: list[float]
    counts: list[int]
    n: int


def choose_layer(model: TransformerBridge, tokens: Int[Tensor, "context pos"], depth: float = 1 / 3) -> LayerChoice:
    """The layer nearest to `depth` (as a share of all layers) that has no massive activations after the first position.

    Where every layer has some, it is the one with the fewest. Of two equally near the lower one is taken.

    Args:
        tokens: a few contexts, start token first; sixteen are enough.

    Raises:
        SaeError: no contexts.
    """
    check_contexts(tokens)
    names = [hook(layer) for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=names, stop_at_layer=model.cfg.n_layers)
    norms = torch.stack([cache[name].float().norm(dim=-1) for name in names])  # [layer context pos]
    later = norms[:, :, 1:].flatten(1)
    medians = later.median(dim=-1).values
    counts = (later > MASSIVE * medians[:, None]).sum(-1)
    wanted = depth * model.cfg.n_layers
    layers = range(model.cfg.n_layers)
    layer = min(layers, key=lambda i: (int(counts[i] > 0) and int(counts[i]), abs(i - wanted), i))
    return LayerChoice(layer, medians.tolist(), norms[:, :, 0].mean(-1).tolist(), counts.tolist(), later.shape[-1])


@dataclass(frozen=True)
class Activations:
    """Residual vectors of many tokens.

    Attributes:
        values: the vectors, float16 (float32 where they would not fit).
        context, position: where each came from.
        dropped: vectors after the first position that were left out as massive.
        median: median norm, of all vectors after the first position.
        layer: they are the output of this block.
        weights: of the model that made them, its `labcode.models.weights_key`, or nothing where that isn't known.
    """

    values: Float[Tensor, "sample d_model"]
    context: Int[Tensor, " sample"]
    position: Int[Tensor, " sample"]
    dropped: int
    median: float
    layer: int
    weights: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def center(self) -> Float[Tensor, " d_model"]:
        """The mean vector, in float32."""
        return self.values.float().mean(0)


def collect(
    model: TransformerBridge,
    tokens: Int[Tensor, "context pos"],
    layer: int,
    batch_size: int = 32,
    keep: bool = False,
) -> Activations:
    """The output of block `layer` at every token, without position 0 and without massive vectors.

    The model is run up to that layer only.

    Args:
        keep: contexts that were collected before, in another chapter or on another day, are found in the lab's cache
            folder, and else left there (`recorded.remember`). So ask for the same ones, and take a part of them after.

    Raises:
        SaeError: no such layer, no contexts, or a NaN among the activations.
    """
    check_contexts(tokens)

    def run() -> list[Tensor]:
        parts = tokens.split(batch_size)
        return [residual(model, part, layer)[:, 1:] for part in progress(parts, f"activations of layer {layer}")]

    def made() -> dict[str, Tensor]:
        x = torch.cat(run())
        return {"stream": x.half() if float(x.abs().max()) < LARGEST_HALF else x}

    if keep:
        pieces = [remember(f"stream after {layer}", model, [tokens], made)["stream"].to(tokens.device).float()]
    else:
        pieces = run()
    largest = max(float(piece.abs().max()) for piece in pieces)
    if not largest < float("inf"):
        raise SaeError(
            f"NaN or infinite activations after layer {layer}: check the model's weights", see="nan-in-the-run"
        )
    norms = torch.cat([piece.norm(dim=-1) for piece in pieces])  # [context pos - 1]
    median = float(norms.median())
    kept = norms <= MASSIVE * median
    dtype = torch.float16 if largest < LARGEST_HALF else torch.float32
    parts = []
    for piece, mask in zip(pieces, kept.split([len(piece) for piece in pieces]), strict=True):
        parts.append(piece[mask].to(dtype))
    where = kept.nonzero()
    context, position = where[:, 0], where[:, 1] + 1
    return Activations(torch.cat(parts), context, position, int((~kept).sum()), median, layer, weights_key(model))


def residual(
    model: TransformerBridge, tokens: Int[Tensor, "context pos"], layer: int
) -> Float[Tensor, "context pos d_model"]:
    """The output of block `layer`, all positions, float32."""
    name = hook(layer)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[name], stop_at_layer=layer + 1)
    return cache[name].float()


def ordinary(x: Float[Tensor, "context pos d_model"], median: float) -> Bool[Tensor, "context pos"]:
    """Which vectors an autoencoder is meant for: not at position 0, and not longer than `MASSIVE` medians."""
    mask = x.norm(dim=-1) <= MASSIVE * median
    mask[:, 0] = False
    return mask


def hook(layer: int) -> str:
    """Name of the hook at the output of a block.

    Only this one of its names works on every kind of bridge: on `sae_lens.SAETransformerBridge` a hook on the alias
    `blocks.N.hook_resid_post` never fires, and nothing says so.
    """
    return f"blocks.{layer}.hook_out"


def check_contexts(tokens: Int[Tensor, "context pos"]) -> None:
    """Raises `SaeError` unless there is at least one context, of at least two tokens."""
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] < 2:
        raise SaeError(f"tokens of shape {tuple(tokens.shape)}: give contexts of at least two tokens, [context pos]")


def check_layer(model: TransformerBridge, layer: int) -> None:
    """Raises `SaeError` where a file names a layer that the model does not have."""
    if layer not in range(model.cfg.n_layers):
        raise SaeError(f"no layer {layer}: this model has {model.cfg.n_layers} layers, counted from 0")


def check_fits(sae: Any, model: TransformerBridge, layer: int) -> None:
    """Is this autoencoder one for the output of this layer of this model, and in order?

    What an autoencoder says of itself is held against the model: its width and, where it knows them, the place that it
    reads and the name of the model that it was trained on. Where it knows the weights themselves, a model may lie in a
    folder of any name: see `check_weights`.

    Raises:
        SaeError: another width, layer, place or model, more active latents than there are, or NaN among the weights.
    """
    check_layer(model, layer)
    if sae.cfg.d_in != model.cfg.d_model:
        raise SaeError(
            f"this autoencoder is for residual vectors of {sae.cfg.d_in} numbers, the model has {model.cfg.d_model}: "
            "train one on this model",
            see="autoencoder-of-another-model",
        )
    made_for: Any = getattr(sae.cfg, "metadata", None)
    place = getattr(made_for, "hook_name", None)
    if place and layer_of(sae) != layer:
        raise SaeError(
            f"this autoencoder reads {place!r}, and is used on the output of layer {layer}: give it layer "
            f"{layer_of(sae)}, or train one on layer {layer}",
            see="autoencoder-of-another-model",
        )
    name, here = (str(getattr(x, "model_name", None) or "") for x in (made_for, model.cfg))
    if name and here and _plain(name) != _plain(here) and not getattr(made_for, "weights_key", None):
        raise _another(name, here)
    k, d_sae = getattr(sae.cfg, "k", None), getattr(sae.cfg, "d_sae", None)
    if k and d_sae and k > d_sae:
        raise SaeError(f"this autoencoder says k = {k}, but it has {d_sae} latents: its settings are damaged")
    _check_numbers(sae)


def check_weights(sae: Any, model: TransformerBridge) -> None:
    """Raises `SaeError` where an autoencoder knows the weights that it was trained on, and the model has others.

    The fingerprint takes a tenth of a second, so this is asked once for a corpus, and not for every prompt.
    """
    made_for: Any = getattr(sae.cfg, "metadata", None)
    weights = getattr(made_for, "weights_key", None)
    if weights and weights != weights_key(model):
        raise _another(getattr(made_for, "model_name", None) or "another model", str(model.cfg.model_name))


def _another(name: str, here: str) -> SaeError:
    other = " with other weights" if _plain(name) == _plain(here) else ""
    return SaeError(
        f"this autoencoder was trained on {name}{other}, this run's model is {here}: train one on this model",
        see="autoencoder-of-another-model",
    )


def _plain(name: str) -> str:
    """The name of a model without its owner; sae-lens calls the smallest GPT-2 by another name than the hub."""
    short = name.rsplit("/", 1)[-1].lower()
    return {"gpt2-small": "gpt2"}.get(short, short)


def check_latents(sae: Any, latents: Iterable[int]) -> list[int]:
    """The latents as a list. Raises `SaeError` for one that the autoencoder does not have."""
    found, n = list(latents), len(sae.W_dec)
    for latent in found:
        if latent not in range(n):
            raise SaeError(f"no latent {latent}: this autoencoder has {n}, counted from 0")
    return found


def _check_numbers(sae: Any) -> None:
    weights = {name: getattr(sae, name, None) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    bad = [name for name, value in weights.items() if value is not None and not torch.isfinite(value).all()]
    if bad:
        raise SaeError(
            f"NaN or infinite numbers in {', '.join(bad)} of this autoencoder: train it again, or restore it"
        )


@dataclass(frozen=True)
class Moment:
    """One moment of a training.

    Attributes:
        samples: activation vectors seen so far, repetitions counted.
        loss: mean squared error of the batch, divided by its variance: the fraction of variance unexplained (FVU).
        l0: active latents of a token, on average.
        dead: share of latents that have not fired in the last `DEAD_AFTER` batches.
    """

    samples: int
    loss: float
    l0: float
    dead: float


@dataclass(frozen=True)
class Training:
    """A trained autoencoder, ready for use, its course, the seconds it took, and the settings."""

    sae: Any
    history: list[Moment]
    seconds: float
    settings: dict[str, Any]


@torch.enable_grad()
def train(
    data: Activations,
    *,
    d_sae: int = 2304,
    k: int = 32,
    samples: int = 250_000,
    batch: int = 1024,
    lr: float = 2e-3,
    seed: int = 0,
    model_name: str = "",
    every: int = 5,
    frozen: Float[Tensor, "d_sae d_model"] | None = None,
) -> Training:
    """Train with sae-lens on `samples` vectors, passing over the data as often as that takes.

    The decoder bias starts at the mean of the data, which is worth more than any other setting at this size. The
    learning rate rises over the first tenth of the steps and falls to a tenth over the last quarter.

    Args:
        d_sae: latents. k: of these, how many a token may use.
        every: steps between two entries of the history.
        frozen: directions that stay as they are, divided by their lengths: only the encoder and the biases are trained.

    Returns:
        The autoencoder as a sae-lens `TopKSAE` in float32 for unscaled activations, decoder rows of norm 1.

    Raises:
        SaeError: fewer vectors than one batch, an impossible k, frozen directions of another shape, or a NaN, in the
            data or during training.

    Source: Gao et al. 2024, section 2.3 (TopK) and appendix A (initialisation).
    """
    n = len(data)
    if n < batch:
        raise SaeError(f"{n} activations are fewer than one batch of {batch}: collect more, or make the batch smaller")
    if not 0 < k <= d_sae:
        raise SaeError(f"k = {k} active latents of {d_sae}: k has to lie between 1 and the number of latents")
    if not torch.isfinite(data.values).all():
        raise SaeError("NaN or infinite numbers among the activations: look at the run that made them")
    shape = (d_sae, data.values.shape[1])
    if frozen is not None and tuple(frozen.shape) != shape:
        raise SaeError(f"frozen directions of shape {tuple(frozen.shape)}: {d_sae} latents need {shape}")
    steps = max(1, samples // batch)
    settings = {"d_sae": d_sae, "k": k, "samples": steps * batch, "batch": batch, "lr": lr, "seed": seed}
    settings |= {"steps": steps, "layer": data.layer, "vectors": n}
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainer = _trainer(data, d_sae, k, steps, batch, lr, model_name)
        if frozen is not None:  # the encoder at full length: no row of it could grow into what its partner is
            rows = torch.nn.functional.normalize(frozen.float(), dim=-1)
            trainer.sae.W_enc.data, trainer.sae.W_dec.data = rows.T.contiguous(), rows.clone()
            trainer.sae.W_dec.requires_grad_(False)
        history = []
        for step, chosen in progress(enumerate(batches(n, batch, steps, seed)), "training", steps):
            out = trainer.step(data.values[chosen].float())
            trainer.n_training_steps += 1
            loss = float(out.losses["mse_loss"].detach())
            if not math.isfinite(loss):
                raise SaeError(
                    f"the loss is {loss} at step {step} of {steps}: lower the learning rate ({lr:g})",
                    see="training-diverged",
                )
            if step % every == 0 or step == steps - 1:
                history.append(_moment(trainer, out, loss))
    return Training(_finished(trainer), history, time.perf_counter() - started, settings)


def _trainer(data: Activations, d_sae: int, k: int, steps: int, batch: int, lr: float, model_name: str) -> Any:
    from sae_lens import LoggingConfig, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    d_model = data.values.shape[1]
    config = TopKTrainingSAEConfig(d_in=d_model, d_sae=d_sae, k=k, normalize_activations="expected_average_only_in")
    sae = TrainingSAE.from_dict(config.to_dict())
    some = data.values[:: max(1, len(data) // 20_000)].float()
    scale = d_model**0.5 / float(some.norm(dim=-1).mean())
    sae.b_dec.data = some.mean(0) * scale  # sae-lens starts it at 0
    sae.cfg.metadata.hook_name = hook(data.layer)
    sae.cfg.metadata.model_name = model_name
    if data.weights:
        sae.cfg.metadata.weights_key = data.weights
    cfg = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=lr,
        lr_end=lr / 10,
        lr_warm_up_steps=steps // 10,
        lr_decay_steps=steps // 4,
        dead_feature_window=DEAD_AFTER,
        feature_sampling_window=10**9,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=iter(()))
    trainer.activation_scaler.scaling_factor = scale  # exact; sae-lens would estimate it from some batches
    return trainer


def batches(n: int, batch: int, steps: int, seed: int) -> Iterator[Int[Tensor, " batch"]]:
    """Indices of `steps` batches of `n` samples, in passes over all of them, each in a new random order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(n, generator=generator)[: n // batch * batch].split(batch):
            if steps == 0:
                return
            steps -= 1
            yield chosen


def _moment(trainer: Any, out: Any, loss: float) -> Moment:
    variance = float((out.sae_in - out.sae_in.mean(0)).pow(2).sum(-1).mean())
    active = float((out.feature_acts > 0).float().sum(-1).mean())
    return Moment(trainer.n_training_samples, loss / variance, active, float(trainer.dead_neurons.float().mean()))


def _finished(trainer: Any) -> Any:
    """The autoencoder for use: scale folded in, decoder rows of norm 1, as sae-lens saves and loads it."""
    sae = trainer.sae
    sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.set_final_sae_metadata()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae.save_inference_model(folder)
        done = _read(Path(folder))
    # Saving divided the rows by their norms. Left on, the flag would rescale by whatever float16 makes of a norm of 1.
    done.cfg.rescale_acts_by_decoder_norm = False
    return done


@dataclass(frozen=True)
class Quality:
    """What `evaluate` measures.

    Attributes:
        explained: 1 - squared error / variance around the mean, over all vectors.
        l0: active latents of a token, on average. dead: share of latents that fire on none of `n` tokens.
        dense: latents that fire on more than a tenth of the tokens.
        cross_entropy: for "clean", "spliced", "mean" and "zero": of each context, the mean over its tokens, in nats.
        n: tokens that were looked at, for reconstruction.
    """

    explained: float
    l0: float
    dead: float
    dense: int
    cross_entropy: dict[str, Float[Tensor, " context"]]
    n: int

    def recovered(self, against: str) -> float:
        """Cross-entropy recovered, of means over contexts: (CE_against - CE_spliced) / (CE_against - CE_clean).

        1 where nothing is lost, 0 where it is as bad as `against` ("mean" or "zero"), and 0 where replacing the stream
        by that costs less than a thousandth of a nat: nothing is there to recover.
        """
        worst, clean, found = self.ce(against), self.ce("clean"), self.ce("spliced")
        return 0.0 if worst - clean < 1e-3 else (worst - found) / (worst - clean)

    def ce(self, which: str) -> float:
        """Mean cross-entropy of a condition, in nats."""
        return float(self.cross_entropy[which].mean())


# sae_lens.evals measures much of this, but its mask goes by token: it can leave out the start token and no massive
# vector, which is known by its length only.
def evaluate(
    model: TransformerBridge,
    sae: Any,
    tokens: Int[Tensor, "context pos"],
    layer: int,
    *,
    center: Float[Tensor, " d_model"],
    contexts: int = 16,
) -> Quality:
    """Judge an autoencoder on held-out contexts.

    Twice: by the variance that its reconstruction explains, and by what the model makes of the reconstruction when that
    takes the place of the residual stream.

    Args:
        tokens: contexts that were not trained on.
        center: mean vector of the training data: variance is measured around it, and "mean" puts it in.
        contexts: on so many of them the cross-entropy is measured, the slow part.

    Raises:
        SaeError: an autoencoder that does not fit, no contexts, or no such layer.
    """
    check_fits(sae, model, layer)
    check_weights(sae, model)
    found = collect(model, tokens, layer)
    x = found.values.float()
    with torch.no_grad():
        codes = torch.cat([sae.encode(piece) > 0 for piece in x.split(4096)])
    fires = codes.float().mean(0)
    replacements: dict[str, Replace] = {
        "spliced": lambda h: sae.decode(sae.encode(h)),
        "mean": lambda h: center.expand_as(h),
        "zero": torch.zeros_like,
    }
    return Quality(
        explained=explained(x, replacements["spliced"], center),
        l0=float(codes.float().sum(-1).mean()),
        dead=float((fires == 0).float().mean()),
        dense=int((fires > 0.1).sum()),
        cross_entropy=splice(model, tokens[:contexts], layer, replacements, found.median),
        n=len(x),
    )


def explained(x: Float[Tensor, "sample d_model"], reconstruct: Replace, center: Float[Tensor, " d_model"]) -> float:
    """Explained variance: 1 - |x - x̂|² / |x - center|², summed over samples and dimensions."""
    error = total = 0.0
    with torch.no_grad():
        for piece in x.float().split(4096):
            error += float((piece - reconstruct(piece)).pow(2).sum())
            total += float((piece - center).pow(2).sum())
    return 1 - error / total


def splice(
    model: TransformerBridge,
    tokens: Int[Tensor, "context pos"],
    layer: int,
    replacements: Mapping[str, Replace],
    median: float,
    batch_size: int = AT_ONCE,
) -> dict[str, Float[Tensor, " context"]]:
    """Cross-entropy of each context with the output of `layer` replaced, and "clean", as it is.

    Position 0 and massive vectors stay as they are: no autoencoder was trained on them. The prediction of the first
    token is left out, since position 0 makes it.

    Args:
        median: of norms, for the rule on massive vectors in `ordinary`.

    Raises:
        SaeError: no such layer, no contexts, or none of three tokens: the second predicts the third.
    """
    check_contexts(tokens)
    if tokens.shape[1] < 3:
        raise SaeError("contexts of two tokens predict nothing that counts: take contexts of at least three")
    rows: dict[str, list[Tensor]] = {name: [] for name in ("clean", *replacements)}
    for piece in progress(tokens.split(batch_size), "splicing"):
        with torch.no_grad():
            logits, stream, rest = _lower(model, piece, layer)
            rows["clean"].append(cross_entropy(logits, piece))
            mask = ordinary(stream, median)
            for name, replace in replacements.items():
                changed = stream.clone()
                changed[mask] = replace(stream[mask])
                rows[name].append(cross_entropy(rest(changed), piece))
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _lower(model: TransformerBridge, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The logits of a run, the output of block `layer`, and what the blocks above make of such an output: logits.

    Conditions of a splice share the blocks below, which the bridge would compute for each of them again.

    Raises:
        SaeError: these blocks do not give the bridge's logits: the model runs under hooks.
    """
    network, above = Network(model), range(layer + 1, model.cfg.n_layers)
    wheels = [f"blocks.{i}.attn.hook_{name}" for i in above for name in ("cos", "sin")]
    wheels = [name for name in wheels if name in model.hook_dict]
    logits, cache = model.run_with_cache(tokens, names_filter=[hook(layer), *wheels])
    stream, wheel = cache[hook(layer)].float(), {name: cache[name] for name in wheels}
    seen = torch.ones(1, tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()

    def rest(h: Tensor) -> Tensor:
        for i in above:
            cos, sin = (wheel.get(f"blocks.{i}.attn.hook_{name}") for name in ("cos", "sin"))
            rotary = None if cos is None or sin is None else (cos[:1], sin[:1])
            x = network.norm(h, network.layers[i].norm1)
            z = network.attend(network.queries(i, x, rotary), *network.keys_values(i, x, rotary), seen)
            h = h + network.project(i, z)
            h = h + network.mlp(i, h)
        return network.logits(h)

    gap = float((rest(stream[:1]) - logits[:1]).abs().max())
    if not gap <= 1e-3 * max(1.0, 0.1 * float(logits[:1].abs().max())):
        raise SaeError(f"the model's logits differ from those of its weights, by {gap:.1g}", see="hooked-model")
    return logits, stream, rest


def cross_entropy(
    logits: Float[Tensor, "context pos d_vocab"], tokens: Int[Tensor, "context pos"]
) -> Float[Tensor, " context"]:
    """Mean over positions 1 to the last but one of -log P(next token), in nats."""
    logits = logits[:, 1:-1].float()
    return (logits.logsumexp(-1) - logits.gather(-1, tokens[:, 2:, None])[..., 0]).mean(-1)


def pursue(
    x: Float[Tensor, "sample d_model"],
    directions: Float[Tensor, "d_sae d_model"],
    k: int,
    *,
    at_once: bool = False,
) -> Float[Tensor, "sample d_model"]:
    """The best that k of these directions give for each vector, found greedily: orthogonal matching pursuit.

    Again and again the direction is added that is nearest to what is left over, and the weights of all that were
    chosen are solved anew (Pati et al. 1993). Weights may be negative, as those of no autoencoder here are.

    Args:
        x: vectors with their centre taken off. directions: of any length.
        at_once: take the k directions nearest to the vector in one step instead.

    Raises:
        SaeError: vectors and directions of different width, or more directions asked for than there are.

    Limits: the k directions that explain most together need not be among those; nobody knows a fast way to find them.
    """
    if not 0 < k <= len(directions):
        raise SaeError(f"{k} of {len(directions)} directions: k has to lie between 1 and the number of directions")
    atoms = torch.nn.functional.normalize(directions.detach(), dim=-1)
    gram = atoms @ atoms.T
    found = []
    for piece in x.split(256):
        near = piece @ atoms.T  # [sample d_sae]
        left, chosen = near, torch.empty(len(piece), 0, dtype=torch.long)
        while chosen.shape[1] < k:
            new = left.abs().scatter(1, chosen, -1.0).topk(k if at_once else 1).indices
            chosen = torch.cat([chosen, new], dim=1)
            inner = gram[chosen[:, :, None], chosen[:, None]] + 1e-5 * torch.eye(chosen.shape[1])
            weights = torch.linalg.solve(inner, near.gather(1, chosen)[..., None])  # [sample chosen 1]
            rebuilt = (atoms[chosen].mT @ weights)[..., 0]
            left = (piece - rebuilt) @ atoms.T
        found.append(rebuilt)
    return torch.cat(found) if found else torch.empty_like(x)


def save(sae: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write an autoencoder as sae-lens does, its weights in float16, and a record beside it.

    All files are written into a folder beside the target, which then takes its place: it is never half there.

    Raises:
        SaeError: weights that are not finite in float16, or a place that can't be written.
    """
    half = copy.deepcopy(sae).half()
    bad = [name for name, value in half.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise SaeError(
            f"{', '.join(bad)} of this autoencoder are NaN, infinite or too large for float16: nothing saved"
        )
    old = folder.with_name(f".{folder.name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
            aside = Path(beside) / folder.name
            weights, _ = half.save_model(aside)
            weights.chmod(0o644)  # safetensors writes for the owner only
            sealed.write(aside / RECORD, record, *_beside(aside))
            if folder.exists():
                os.replace(folder, old)
            os.replace(aside, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise SaeError(f"{folder} can't be written ({error.strerror}): make room, or choose another place") from error


def load(folder: Path, model: TransformerBridge | None = None) -> tuple[Any, dict[str, Any]]:
    """An autoencoder and its record.

    Args:
        model: if given, the autoencoder has to be one of this model.

    Returns:
        A sae-lens `TopKSAE` in float32, gradients off, and the record.

    Raises:
        SaeError: files that are missing or damaged, NaN among the weights, or a model that it does not fit.
    """
    record = _record(folder)
    try:
        sae = _read(folder)
    except Exception as error:  # whatever is wrong with the files, the way out is the same
        raise _unreadable(folder, error) from error
    _check_numbers(sae)
    if record.get("weights"):
        sae.cfg.metadata.weights_key = record["weights"]
    if model is not None:
        check_fits(sae, model, layer_of(sae))
        check_weights(sae, model)
    return sae, record


def layer_of(sae: Any) -> int:
    """The block whose output this autoencoder reads.

    The stream before a block is the output of the one below, under another name.

    Raises:
        SaeError: it reads some other place, such as an MLP's output, or the stream before the first block.
    """
    name = str(sae.cfg.metadata.hook_name)
    place = PLACE.fullmatch(name)
    layer = -1 if place is None else int(place[1]) - (place[2] in ("hook_in", "hook_resid_pre"))
    if layer < 0:
        raise SaeError(
            f"this autoencoder reads {name!r}: the lab's read the residual stream after a block, blocks.N.hook_out, or "
            "blocks.N.hook_resid_pre from block 1 on"
        )
    return layer


def _record(folder: Path) -> dict[str, Any]:
    try:
        return sealed.opened(folder / RECORD, *_beside(folder))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(folder, error) from error


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder / "cfg.json", folder / "sae_weights.safetensors"


def _unreadable(folder: Path, error: Exception) -> SaeError:
    return SaeError(f"{folder} holds no autoencoder that can be read ({error}): restore it, or train it again")


def _read(folder: Path) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SAE.load_from_disk(folder, dtype="float32").eval().requires_grad_(False)


@dataclass(frozen=True)
class Shipped:
    """An autoencoder for this run's model.

    Attributes:
        sae: a sae-lens `TopKSAE`. layer: the block whose output it reads.
        record: how it was trained. live: whether it was trained on this machine because none is shipped for the model.
        center: mean of the vectors it was trained on.
    """

    sae: Any
    layer: int
    record: dict[str, Any]
    live: bool
    center: Float[Tensor, " d_model"]


def shipped(model: TransformerBridge, text: Corpus | None = None) -> Shipped:
    """The shipped autoencoder if it was trained on exactly this model, else a small one, trained now and kept.

    A live one has the same shape of recipe, fewer latents and less data: enough to run the chapters, not to judge by.

    Raises:
        SaeError: the shipped one is missing or damaged.
    """
    mark, folder = weights_key(model), DATA / "sae-smollm2"
    live = edition(model) != "smollm2" or _record(folder)["weights"] != mark
    sae, record = _own(model, load_corpus(model) if text is None else text, mark) if live else load(folder, model)
    return Shipped(sae, layer_of(sae), record, live, torch.tensor(record["center"]))


def _own(model: TransformerBridge, text: Corpus, mark: str) -> tuple[Any, dict[str, Any]]:
    parts = text.split()[0][:LIVE_CONTEXTS]
    where = str(model.cfg.device).replace("cpu", "")  # another device's last digits give another dictionary
    target = cache_dir() / "sae" / f"{mark[:16]}-{len(parts)}-v{LIVE_VERSION}{where}"

    def build(aside: Path) -> None:
        must_be_clean(model)
        data = collect(model, parts, choose_layer(model, parts[:16]).layer)
        samples = min(LIVE_SAMPLES, 8 * len(data))
        made = train(data, d_sae=1024, k=16, samples=samples, batch=min(512, len(data)))
        record = {"trained_on": text.written_by, "tokens": len(data), "settings": made.settings}
        save(made.sae, aside, record | {"center": [round(value, 5) for value in data.center.tolist()]})

    return load(made_here(target, load, build), model)


def made_here(target: Path, load: Callable[[Path], Any], build: Callable[[Path], None]) -> Path:
    """A folder of the cache with an autoencoder or a transcoder, which is trained now if none can be loaded there."""

    def readable(folder: Path) -> bool:
        try:
            load(folder)
        except SaeError:
            return False
        return True

    return build_once(target, readable, build, needs=2**24)


def res_jb(model: TransformerBridge, block: int = 9) -> tuple[Any, int] | None:
    """A published autoencoder for the stream before `block` of GPT-2 small, and the layer whose output that is.

    Returns:
        None for another model, or where the hub does not answer; whatever else goes wrong is said, and is no error.
    """
    if edition(model) != "gpt2" or not hub_answers():
        return None
    try:
        from sae_lens import SAE

        with quiet():
            sae = SAE.from_pretrained(RES_JB, f"blocks.{block}.hook_resid_pre")
    except Exception as error:
        say(f"No published autoencoder: {type(error).__name__}: {error}")
        return None
    return (sae.eval().requires_grad_(False), block - 1) if sae.cfg.d_in == model.cfg.d_model else None


guard(globals(), SaeError)
