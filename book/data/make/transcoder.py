"""Train the transcoder that the book ships: `python -m labbook.data.make.transcoder`.

More text and more latents than the chapter's own. What it has to beat is trained on the same pairs and judged on the
same held-out contexts: a linear map, one through as few numbers as the code has, a transcoder without the linear map,
and one whose directions stay random. About ten minutes on one core; the transcoder is there after half of them.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from importlib import metadata
from typing import Any

import torch

from labbook.data.make import command, run
from labcode import corpus, models, sae, transcoder

OUT = corpus.DATA / "transcoder-smollm2"
SPLICED = 24  # held-out contexts on which the MLP is replaced


def make(options: Namespace) -> None:
    """Train, save, judge, save again."""
    model = models.load()
    text = corpus.load_corpus(model)
    parts, held = text.split()
    pairs = transcoder.collect(model, parts[: options.contexts], options.layer)
    unseen = transcoder.collect(model, held[:32], options.layer)
    linear = transcoder.linear_map(pairs)
    wanted: dict[str, Any] = {"d_sae": options.d_sae, "k": options.k, "samples": options.samples}
    wanted |= {"batch": options.batch, "lr": options.lr, "seed": options.seed}
    made = transcoder.train(pairs, linear=linear, model_name=str(model.cfg.model_name), **wanted)
    record = transcoder.record_of(model, pairs, linear, made) | {
        "command": command("transcoder", options),
        "trained_on": text.written_by,
        "versions": {name: metadata.version(name) for name in ("torch", "transformer-lens", "sae-lens")},
    }
    sae.save(made.transcoder, OUT, record)
    others = {
        "code alone": transcoder.train(pairs, **wanted).transcoder,
        "random directions": transcoder.train(pairs, linear=linear, decoder="random", **wanted).transcoder,
    }
    record["dead"] = dead(pairs, unseen, linear)
    record["held_out"] = judged(model, held, pairs, unseen, linear, made.transcoder, others)
    sae.save(made.transcoder, OUT, record)


def judged(
    model: Any,
    held: torch.Tensor,
    pairs: transcoder.Pairs,
    unseen: transcoder.Pairs,
    linear: transcoder.LinearMap,
    made: Any,
    others: dict[str, Any],
) -> dict[str, Any]:
    """FVU, active latents and cross-entropy of each context, for each way to predict the MLP."""
    ways = transcoder.predictions(made, linear, pairs) | others
    losses = transcoder.evaluate(model, held[:SPLICED], pairs.layer, ways, pairs.median)
    return {
        "pairs": len(unseen),
        "unexplained": {
            name: round(transcoder.unexplained(unseen, way, pairs.center), 4) for name, way in ways.items()
        },
        "fires": {name: fires(way, unseen) for name, way in ({"transcoder": made} | others).items()},
        "cross_entropy": {name: [round(value, 4) for value in row.tolist()] for name, row in losses.items()},
    }


def fires(made: Any, pairs: transcoder.Pairs) -> dict[str, float]:
    """Active latents of a token, and the share of latents that fire on no token."""
    on = torch.cat([made.encode(piece) > 0 for piece in pairs.reads.split(4096)]).float()
    return {"l0": round(float(on.sum(-1).mean()), 2), "dead": round(float((on.sum(0) == 0).float().mean()), 4)}


def dead(pairs: transcoder.Pairs, unseen: transcoder.Pairs, linear: transcoder.LinearMap) -> list[dict[str, Any]]:
    """Dead latents after a short training, from two starts, with and without a loss of their own."""
    rows: list[dict[str, Any]] = []
    for start in ("tokens", "random"):
        for aux in (0.0, transcoder.AUX):
            made = transcoder.train(
                pairs, d_sae=2048, k=32, samples=50_000, batch=256, linear=linear, aux=aux, start=start
            )
            found = fires(made.transcoder, unseen)
            missed = transcoder.unexplained(unseen, made.transcoder, pairs.center)
            rows.append({"start": start, "aux": aux, "dead": found["dead"], "unexplained": round(missed, 4)})
    return rows


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m labbook.data.make.transcoder", description=str(__doc__).splitlines()[0])
    parser.add_argument("--layer", type=int, default=20, help="whose MLP (default %(default)s; see mlps-smollm2.json)")
    parser.add_argument("--contexts", type=int, default=384, help="contexts to train on (default %(default)s)")
    parser.add_argument("--d-sae", type=int, default=2048, help="latents (default %(default)s)")
    parser.add_argument("--k", type=int, default=32, help="active latents of a token (default %(default)s)")
    parser.add_argument("--samples", type=int, default=250_000, help="pairs to train on (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(run(parser, make))
