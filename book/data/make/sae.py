"""Train the autoencoder that the book ships: `python -m labbook.data.make.sae`.

Longer than the chapter can: all of the corpus but its held-out contexts, more latents, more passes; seventeen minutes
on two cores. It writes `book/data/sae-smollm2` only when it is done and was judged on the held-out contexts.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from importlib import metadata
from pathlib import Path

from labbook.data.make import command, run
from labcode import corpus, models, sae


def make(options: Namespace) -> None:
    """Train, judge, save."""
    model = models.load()
    text = corpus.load_corpus(model)
    parts, held = text.split()
    parts = parts[: max(1, options.tokens // (parts.shape[1] - 1))]
    layer = sae.choose_layer(model, parts[:16]).layer
    data = sae.collect(model, parts, layer)
    made = sae.train(
        data,
        d_sae=options.d_sae,
        k=options.k,
        samples=options.samples,
        batch=options.batch,
        lr=options.lr,
        seed=options.seed,
        model_name=str(model.cfg.model_name),
    )
    quality = sae.evaluate(model, made.sae, held, layer, center=data.center)
    record = {
        "model": str(model.cfg.model_name),
        "weights": models.weights_key(model),
        "command": command("sae", options, "out"),
        "trained_on": text.written_by,
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
        "history": [[at.samples, round(at.loss, 4), round(at.l0, 2), round(at.dead, 4)] for at in made.history],
        "center": [round(value, 5) for value in data.center.tolist()],
    }
    sae.save(made.sae, options.out, record)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m labbook.data.make.sae", description=str(__doc__).splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10**9, help="train on the first so many tokens (default: all)")
    parser.add_argument("--d-sae", type=int, default=3072, help="latents (default %(default)s)")
    parser.add_argument("--k", type=int, default=32, help="active latents of a token (default %(default)s)")
    parser.add_argument("--samples", type=int, default=800_000, help="vectors to train on (default %(default)s)")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=corpus.DATA / "sae-smollm2")
    sys.exit(run(parser, make))
