"""Train a TopK sparse autoencoder with sae-lens, on stored activations.

sae-lens brings the architecture, the loss and the step (`TopKTrainingSAE`, `SAETrainer.step`). What is added here: the
decoder bias starts at the mean of the data, which is worth more than any other setting at this size; the norm estimate
is exact; loss, L0 and dead latents are kept over time; and a NaN stops the training where it appears.

`python -m labcode.sae.train` trains the autoencoder that the repository ships.

Used in chapters 14 and 16.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labcode.progress import progress
from labcode.sae.activations import hook
from labcode.sae.errors import SaeError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from labcode.sae.activations import Activations

DEAD_AFTER = 50  # batches without firing


@dataclass(frozen=True)
class Step:
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
    history: list[Step]
    seconds: float
    settings: dict[str, Any]


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
) -> Training:
    """Train on `samples` vectors, passing over the data as often as that takes.

    The learning rate rises over the first tenth of the steps and falls to a tenth over the last quarter.

    Args:
        d_sae: latents. k: of these, how many a token may use.
        every: steps between two entries of the history.

    Returns:
        The autoencoder as a sae-lens `TopKSAE` in float32 for unscaled activations, decoder rows of norm 1.

    Raises:
        SaeError: fewer vectors than one batch, an impossible k, or a NaN, in the data or during training.

    Source: Gao et al. 2024, section 2.3 (TopK) and appendix A (initialisation). Used in chapter 14.
    """
    n, d_model = data.values.shape
    if n < batch:
        raise SaeError(
            f"{n} activations are fewer than one batch of {batch}: collect more, or make the batch smaller",
            see="too-few-activations",
        )
    if not 0 < k <= d_sae:
        raise SaeError(
            f"k = {k} active latents of {d_sae}: k has to lie between 1 and the number of latents", see="k-out-of-range"
        )
    if not torch.isfinite(data.values).all():
        raise SaeError(
            "NaN or infinite numbers among the activations: look at the run that made them", see="nan-in-the-values"
        )
    steps = max(1, samples // batch)
    settings = {
        "d_sae": d_sae,
        "k": k,
        "samples": steps * batch,
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "steps": steps,
    }
    settings |= {"layer": data.layer, "vectors": n}
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainer = _trainer(data, d_model, d_sae, k, steps, batch, lr, model_name)
        history = []
        for step, x in progress(enumerate(_batches(data.values, batch, steps, seed)), "training", steps):
            out = trainer.step(x)
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


def _trainer(
    data: Activations, d_model: int, d_sae: int, k: int, steps: int, batch: int, lr: float, model_name: str
) -> Any:
    from sae_lens import LoggingConfig, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    config = TopKTrainingSAEConfig(d_in=d_model, d_sae=d_sae, k=k, normalize_activations="expected_average_only_in")
    sae = TrainingSAE.from_dict(config.to_dict())
    sample = data.values[:: max(1, len(data) // 20_000)].float()
    scale = d_model**0.5 / float(sample.norm(dim=-1).mean())
    sae.b_dec.data = sample.mean(0) * scale  # sae-lens starts it at 0
    sae.cfg.metadata.hook_name = hook(data.layer)
    sae.cfg.metadata.model_name = model_name
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
    trainer.activation_scaler.scaling_factor = scale
    return trainer


def _batches(
    values: Float[Tensor, "sample d_model"], batch: int, steps: int, seed: int
) -> Iterator[Float[Tensor, "batch d_model"]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(values), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            if steps == 0:
                return
            steps -= 1
            yield values[chosen].float()


def _moment(trainer: Any, out: Any, loss: float) -> Step:
    variance = float((out.sae_in - out.sae_in.mean(0)).pow(2).sum(-1).mean())
    active = float((out.feature_acts > 0).float().sum(-1).mean())
    return Step(trainer.n_training_samples, loss / variance, active, float(trainer.dead_neurons.float().mean()))


def _finished(trainer: Any) -> Any:
    """The autoencoder for use: scale folded in, decoder rows of norm 1, as sae-lens saves and loads it."""
    from sae_lens import SAE

    sae = trainer.sae
    sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.set_final_sae_metadata()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae.save_inference_model(Path(folder))
        done = SAE.load_from_disk(folder)
    # Saving divided the rows by their norms. Left on, the flag would rescale by whatever float16 makes of a norm of 1.
    done.cfg.rescale_acts_by_decoder_norm = False
    return done.eval().requires_grad_(False)
