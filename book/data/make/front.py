"""Compare autoencoder architectures and record their fronts: `python -m labbook.data.make.front`.

Six architectures of sae-lens on the same vectors, for as many samples, from the same start; for each the learning rate
with the lowest training loss, and several sparsities. Each is judged on held-out contexts as it would be used: what it
leaves unexplained, what the model loses when it is spliced in, how many latents are active. It takes about half an
hour, so chapter 15 shows `book/data/sae-front.json`. Rows are written as they are made, and rows that are there
already are kept if they were made in the same way, so that a run that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import math
import sys
import tempfile
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labbook.data.make import command, run
from labcode import corpus, models, sae, sealed
from labcode.errors import SaeError
from labcode.models import say

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

D_SAE, BATCH = 1536, 512
RATES = (3e-3, 6e-3)
SEEDS = (0, 1)


@dataclass(frozen=True)
class Architecture:
    """How one architecture is trained here.

    Attributes:
        title: its name for readers.
        dial: the setting that decides how sparse the code is. levels: its values, from sparse to dense; at the middle
            one the learning rate is chosen and a second seed is trained.
        warm_up: the setting for the steps over which a penalty rises to its full size, if it has one.
        more: what else differs from the defaults of sae-lens; why, is said at `ARCHITECTURES`.
    """

    title: str
    dial: str
    levels: tuple[float, ...]
    warm_up: str = ""
    more: tuple[tuple[str, Any], ...] = ()


# The levels of the penalties were moved, by what L0 they gave and nothing else, until it lay on both sides of 32.
# BatchTopK and Matryoshka learn a threshold as a moving average that starts at 0; at the default rate, 0.01, it is
# still rising after so few steps. JumpReLU's gradients reach a threshold only from within a window around it, and at
# the defaults (window 0.05, start 0.01, no gradient to the encoder) hardly anything lies there: nothing gets sparse.
ARCHITECTURES = {
    "topk": Architecture("TopK", "k", (16, 32, 64)),
    "batchtopk": Architecture("BatchTopK", "k", (16, 32, 64), more=(("topk_threshold_lr", 0.1),)),
    "matryoshka_batchtopk": Architecture(
        "Matryoshka",
        "k",
        (16, 32, 64),
        more=(("topk_threshold_lr", 0.1), ("matryoshka_widths", [D_SAE // 16, D_SAE // 4, D_SAE])),
    ),
    "jumprelu": Architecture(
        "JumpReLU",
        "l0_coefficient",
        (1.2, 0.8, 0.35),
        "l0_warm_up_steps",
        (("jumprelu_bandwidth", 1.0), ("jumprelu_init_threshold", 0.1), ("jumprelu_ste_to_input", True)),
    ),
    "gated": Architecture("Gated", "l1_coefficient", (4.0, 3.0, 1.5), "l1_warm_up_steps"),
    "standard": Architecture("L1", "l1_coefficient", (2.2, 1.0, 0.7), "l1_warm_up_steps"),
}

# Tried beside them, at the lower rate: why the settings above are not the defaults.
ELSEWHERE: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("batchtopk", 32, {"topk_threshold_lr": 0.01}),
    ("jumprelu", 1.0, {"jumprelu_bandwidth": 0.05, "jumprelu_init_threshold": 0.01, "jumprelu_ste_to_input": False}),
    ("jumprelu", 0.8, {"jumprelu_ste_to_input": False}),
)


def train(
    data: sae.Activations,
    architecture: str,
    dial: float,
    *,
    lr: float,
    samples: int,
    seed: int = 0,
    more: dict[str, Any] | None = None,
    d_sae: int = D_SAE,
    batch: int = BATCH,
) -> tuple[Any, dict[str, float]]:
    """Train one autoencoder with sae-lens, with the schedule and the start of `labcode.sae.train`.

    Args:
        architecture: one of `ARCHITECTURES`, sae-lens' name. dial: the value of its sparsity setting.
        more: settings of sae-lens that go before those of `ARCHITECTURES`.

    Returns:
        The autoencoder as sae-lens saves and loads it for use (BatchTopK and Matryoshka as JumpReLU), for unscaled
        activations. And means over the last tenth of the steps: the loss that is trained, the reconstruction's part of
        it as a share of the batch's variance (`fvu`), and active latents (`l0`); with `l0_in_use`, those of the
        finished one on training vectors.

    Raises:
        SaeError: a loss that is not finite.
    """
    from sae_lens import SAE, LoggingConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    kind, steps = ARCHITECTURES[architecture], max(1, samples // batch)
    settings = {**dict(kind.more), **(more or {}), kind.dial: int(dial) if kind.dial == "k" else dial}
    if kind.warm_up:
        settings[kind.warm_up] = steps // 5
    some = data.values[:: max(1, len(data) // 20_000)].float()
    scale = some.shape[1] ** 0.5 / float(some.norm(dim=-1).mean())
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        make, config = get_sae_training_class(architecture)
        wide = {"d_in": some.shape[1], "d_sae": d_sae, "normalize_activations": "expected_average_only_in"}
        autoencoder = make(config(**wide, **settings))
        autoencoder.b_dec.data = some.mean(0) * scale  # sae-lens starts it at 0
        schedule = SAETrainerConfig(
            total_training_samples=steps * batch,
            train_batch_size_samples=batch,
            lr=lr,
            lr_end=lr / 10,
            lr_warm_up_steps=steps // 10,
            lr_decay_steps=steps // 4,
            dead_feature_window=sae.DEAD_AFTER,
            feature_sampling_window=10**9,
            logger=LoggingConfig(log_to_wandb=False),
        )
        trainer = SAETrainer(cfg=schedule, sae=autoencoder, data_provider=iter(()))
        trainer.activation_scaler.scaling_factor = scale
        last = []
        for step, chosen in enumerate(sae.batches(len(data), batch, steps, seed)):
            out = trainer.step(data.values[chosen].float())
            trainer.n_training_steps += 1
            loss = float(out.loss.detach())
            if not math.isfinite(loss):
                raise SaeError(f"{architecture}: the loss is {loss} at step {step} of {steps}: lower the learning rate")
            if step >= steps - max(1, steps // 10):
                variance = float((out.sae_in - out.sae_in.mean(0)).pow(2).sum(-1).mean())
                active = float((out.feature_acts > 0).float().sum(-1).mean())
                last.append((loss, float(out.losses["mse_loss"].detach()) / variance, active))
        autoencoder.fold_activation_norm_scaling_factor(scale)
        with tempfile.TemporaryDirectory() as folder:
            autoencoder.save_inference_model(folder)
            done = SAE.load_from_disk(folder, dtype="float32").eval().requires_grad_(False)
    loss, fvu, l0 = (sum(values) / len(last) for values in zip(*last, strict=True))
    used = done.encode(data.values[:: max(1, len(data) // 4000)].float()) > 0
    return done, {"loss": loss, "fvu": fvu, "l0": l0, "l0_in_use": float(used.float().sum(-1).mean())}


class Judge:
    """Held-out contexts, and what does not depend on the autoencoder: measured once.

    Attributes:
        record: per context the vectors judged, their squared distance from the training mean, and the cross-entropy of
            the model as it is and with the mean put in.
    """

    def __init__(self, model: TransformerBridge, tokens: Int[Tensor, "context pos"], data: sae.Activations, n: int):
        self.model, self.layer, self.center = model, data.layer, data.center
        self.held = sae.collect(model, tokens, data.layer)
        self.tokens = tokens[:n]  # on these the cross-entropy is measured, the slow part
        whole = (self.held.values.float() - self.center).pow(2).sum(-1)
        mean = sae.splice(model, self.tokens, self.layer, {"mean": self.center.expand_as}, self.held.median)
        self.record: dict[str, list[float]] = {
            "vectors": self.by_context(torch.ones(len(self.held))),
            "variance": self.by_context(whole),
            "clean": mean["clean"].tolist(),
            "mean": mean["mean"].tolist(),
        }

    def by_context(self, values: Float[Tensor, " sample"]) -> list[float]:
        """Sums over the vectors of each context."""
        return torch.zeros(int(self.held.context.max()) + 1).index_add(0, self.held.context, values).tolist()

    def __call__(self, autoencoder: Any) -> dict[str, Any]:
        """Squared error, active latents and spliced cross-entropy of each context; and the share of dead latents."""
        h = self.held.values.float()
        with torch.no_grad():
            codes = torch.cat([autoencoder.encode(piece) for piece in h.split(2048)])
            left = torch.cat(
                [
                    (x - autoencoder.decode(f)).pow(2).sum(-1)
                    for x, f in zip(h.split(2048), codes.split(2048), strict=True)
                ]
            )
        fires = (codes > 0).float()

        def change(stream: Tensor, hook: Any) -> Tensor:
            mask = sae.ordinary(stream, self.held.median)
            changed = stream.clone()
            changed[mask] = autoencoder(stream[mask])
            return changed

        losses = []
        for piece in self.tokens.split(8):
            with torch.no_grad(), self.model.hooks(fwd_hooks=[(sae.hook(self.layer), change)]):
                losses.append(sae.cross_entropy(self.model(piece, return_type="logits"), piece))
        return {
            "dead": float((fires.sum(0) == 0).float().mean()),
            "dense": int((fires.mean(0) > 0.1).sum()),
            "left": self.by_context(left),
            "active": self.by_context(fires.sum(-1)),
            "spliced": torch.cat(losses).tolist(),
        }


def make(options: Namespace) -> None:
    """Choose the rates, train, judge; the file is written after each run."""
    model = models.load()
    parts, held = corpus.load_corpus(model).split(options.held)
    layer = sae.choose_layer(model, parts[:16]).layer
    data = sae.collect(model, parts[: options.contexts], layer)
    judge = Judge(model, held, data, options.spliced)
    tokens = torch.cat([parts[: options.contexts], held]).numpy().tobytes()
    head = {
        "model": str(model.cfg.model_name),
        "weights": models.weights_key(model),
        "text": hashlib.sha256(tokens).hexdigest()[:16],
        "command": command("front", options, "out"),
        "versions": {name: metadata.version(name) for name in ("torch", "transformer-lens", "sae-lens")},
        "layer": layer,
        "vectors": len(data),
        "settings": {"d_sae": D_SAE, "batch": BATCH, "samples": options.samples, "search_samples": options.search},
    }
    shown = {"architectures": {name: described(name) for name in ARCHITECTURES}, "held_out": judge.record}
    record = Record(options.out, head, shown)
    best = {}
    for name, kind in ARCHITECTURES.items():
        tried = {}
        for lr in RATES:  # on fewer samples, and by the loss that is trained: held-out text has no say
            short = record.row("searched", lambda at: search(data, options.search, at), name, kind.levels[1], lr)
            tried[lr] = short["train"]["loss"]
        best[name] = min(tried, key=lambda lr: tried[lr])
        for dial in kind.levels:
            record.row("rows", lambda at: full(data, judge, options.samples, at), name, dial, best[name])
    for seed in SEEDS[1:]:
        for name, kind in ARCHITECTURES.items():
            middle = kind.levels[1]
            record.row("rows", lambda at: full(data, judge, options.samples, at), name, middle, best[name], seed)
    for name, dial, more in ELSEWHERE:
        record.row("searched", lambda at: search(data, options.search, at), name, dial, RATES[0], more=more)
    record.finish()


def described(name: str) -> dict[str, Any]:
    """An architecture for the record."""
    kind = ARCHITECTURES[name]
    return {"title": kind.title, "dial": kind.dial, "levels": list(kind.levels)}


def search(data: sae.Activations, samples: int, setting: dict[str, Any]) -> dict[str, Any]:
    """A row of what was tried: how training ended, no more."""
    return {"train": train(data, samples=samples, **setting)[1]}


def full(data: sae.Activations, judge: Judge, samples: int, setting: dict[str, Any]) -> dict[str, Any]:
    """A row of the comparison."""
    started = time.perf_counter()
    autoencoder, course = train(data, samples=samples, **setting)
    return {"train": course, "seconds": round(time.perf_counter() - started), **judge(autoencoder)}


class Record:
    """The file that is made: rows are looked up by their settings, and written when they are new.

    Rows that an earlier run left count only where everything in the head is the same. What is `shown` beside it is
    no setting of a row.
    """

    def __init__(self, path: Path, head: dict[str, Any], shown: dict[str, Any]):
        self.path, self.head = path, rounded(head)
        old = sealed.read(path) if path.exists() else {}
        same = {key: old.get(key) for key in self.head} == self.head
        self.head |= rounded(shown)
        self.known = {part: old[part] if same else [] for part in ("rows", "searched")}
        self.asked: dict[str, list[Any]] = {part: [] for part in self.known}

    def row(
        self,
        part: str,
        measure: Callable[[dict[str, Any]], dict[str, Any]],
        architecture: str,
        dial: float,
        lr: float,
        seed: int = 0,
        more: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The row with these settings: from the file, or measured now and written."""
        more = dict(ARCHITECTURES[architecture].more) | (more or {})
        setting = {"architecture": architecture, "dial": dial, "lr": lr, "seed": seed, "more": more}
        row = next((row for row in self.known[part] if setting.items() <= row.items()), None)
        if row is None:
            say(f"{part}: {setting}")
            row = setting | rounded(measure(setting))
            self.known[part].append(row)
            sealed.write(self.path, self.head | self.known, indent=None)
        self.asked[part].append(row)
        return row

    def finish(self) -> None:
        """Write the file with the rows that were asked for, in their order, and no others."""
        sealed.write(self.path, self.head | self.asked, indent=None)


def rounded(value: Any) -> Any:
    """Five digits are more than the measurements have."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m labbook.data.make.front", description=str(__doc__).splitlines()[0])
    parser.add_argument("--contexts", type=int, default=512, help="contexts to train on (default %(default)s)")
    parser.add_argument("--samples", type=int, default=64_000, help="vectors of a training (default %(default)s)")
    parser.add_argument("--search", type=int, default=32_000, help="vectors of a try (default %(default)s)")
    parser.add_argument("--held", type=int, default=64, help="held-out contexts (default %(default)s)")
    parser.add_argument("--spliced", type=int, default=16, help="of these, spliced (default %(default)s)")
    parser.add_argument("--out", type=Path, default=corpus.DATA / "sae-front.json")
    sys.exit(run(parser, make))
