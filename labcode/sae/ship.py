"""Train the autoencoder that the book ships: `python -m labcode.sae.ship`, with the settings of the record by default.

Longer than the chapter can: all of the corpus but its held-out contexts, more latents, more passes. It shows progress,
and writes `book/data/sae-smollm2` only when it is done and was judged on the held-out contexts.

The shipped one was trained with bfloat16 products, as its record says. The same command, in float32 today, gives a
slightly different one.

Used for chapters 15 and 16.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path

from labcode.errors import LabError
from labcode.sae import activations, corpus, evaluate, files, shipped, train


def main() -> int:
    """Train, judge, save; exit status 2 with one line on stderr if that fails."""
    parser = argparse.ArgumentParser(prog="python -m labcode.sae.ship", description=str(__doc__).splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10**9, help="train on the first so many tokens (default: all)")
    parser.add_argument("--d-sae", type=int, default=3072, help="latents (default %(default)s)")
    parser.add_argument("--k", type=int, default=32, help="active latents of a token (default %(default)s)")
    parser.add_argument("--samples", type=int, default=800_000, help="vectors to train on (default %(default)s)")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=shipped.FOLDER)
    options = parser.parse_args()
    os.environ["LAB_PROGRESS"] = "1"
    try:
        make(options)
    except LabError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def make(options: argparse.Namespace) -> None:
    """What the command line asks for."""
    from labcode import models
    from labcode.store import weights_key

    model = models.load()
    text = corpus.load(model)
    parts, held = text.split()
    parts = parts[: max(1, options.tokens // (parts.shape[1] - 1))]
    layer = activations.choose_layer(model, parts[:16]).layer
    data = activations.collect(model, parts, layer)
    made = train.train(
        data,
        d_sae=options.d_sae,
        k=options.k,
        samples=options.samples,
        batch=options.batch,
        lr=options.lr,
        seed=options.seed,
        model_name=str(model.cfg.model_name),
    )
    quality = evaluate.evaluate(model, made.sae, held, layer, center=data.center)
    given = ("tokens", "d_sae", "k", "samples", "batch", "lr", "seed")
    settings = " ".join(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in given)
    record = {
        "model": str(model.cfg.model_name),
        "weights": weights_key(model),
        "command": f"python -m labcode.sae.ship {settings}",
        "trained_on": text.written_by,
        "corpus": text.record.get("sha256", ""),
        "tokens": len(data),
        "settings": made.settings,
        "seconds": round(made.seconds),
        "held_out": {
            "tokens": quality.n,
            "explained": round(quality.explained, 4),
            "l0": round(quality.l0, 2),
            "dead": round(quality.dead, 4),
            "dense": quality.dense,
            "cross_entropy": {name: round(quality.ce(name), 4) for name in quality.cross_entropy},
            "recovered_mean": round(quality.recovered("mean"), 4),
            "recovered_zero": round(quality.recovered("zero"), 4),
        },
        "versions": {name: metadata.version(name) for name in ("torch", "transformer-lens", "sae-lens")},
        "history": [
            [step.samples, round(step.loss, 4), round(step.l0, 2), round(step.dead, 4)] for step in made.history
        ],
        "center": [round(value, 5) for value in data.center.tolist()],
    }
    files.save(made.sae, options.out, record)


if __name__ == "__main__":
    sys.exit(main())
