"""Train several autoencoders and record how good they are: `python -m labcode.sae.sweep`.

Over k, over the number of latents, and over seeds; for each also whether a latent for repeated words appears, by the
criterion of `labcode.sae.repeats`. It takes some minutes, so the book shows recorded data: `book/data/sae-sweep.json`.

Used for chapters 14 and 16.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from labcode.errors import LabError
from labcode.models import say
from labcode.sae import activations, corpus, edits, evaluate, latents, repeats, train, writing

BASE = {"d_sae": 2304, "k": 32}
RUNS = (
    {**BASE, "seed": 0},
    {**BASE, "seed": 1},
    {**BASE, "seed": 2},
    {"d_sae": 2304, "k": 16, "seed": 0},
    {"d_sae": 2304, "k": 64, "seed": 0},
    {"d_sae": 1152, "k": 32, "seed": 0},
    {"d_sae": 4608, "k": 32, "seed": 0},
)


def main() -> int:
    """Train, judge, write; exit status 2 with one line on stderr if that fails."""
    parser = argparse.ArgumentParser(prog="python -m labcode.sae.sweep", description=str(__doc__).splitlines()[0])
    parser.add_argument("--samples", type=int, default=150_000, help="vectors to train on (default %(default)s)")
    parser.add_argument("--contexts", type=int, default=448, help="contexts they come from (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=64, help="prompts for the ablation (default %(default)s)")
    parser.add_argument("--out", type=Path, default=corpus.DATA / "sae-sweep.json")
    options = parser.parse_args()
    os.environ["LAB_PROGRESS"] = "1"
    try:
        record = sweep(options)
    except LabError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    text = json.dumps(record, indent=1) + "\n"
    writing.write_aside(options.out, lambda handle: handle.write(text.encode()))
    return 0


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """All runs on the same activations, judged on the same held-out contexts and the same prompts."""
    from labcode import models, prompts

    model = models.load()
    text = corpus.load(model)
    parts, _ = text.split()
    held = parts[options.contexts : options.contexts + 64]  # not trained on here
    more = parts[options.contexts + 64 : options.contexts + 192]
    layer = activations.choose_layer(model, parts[:16]).layer
    data = activations.collect(model, parts[: options.contexts], layer)
    bench = edits.Bench(model, prompts.population(model, options.prompts, seed=16), layer)
    rows = []
    for run in RUNS:
        say(f"{run}")
        made = train.train(data, d_sae=run["d_sae"], k=run["k"], seed=run["seed"], batch=512, samples=options.samples)
        quality = evaluate.evaluate(model, made.sae, held, layer, center=data.center, contexts=8)
        rows.append(
            {
                **run,
                "explained": round(quality.explained, 4),
                "l0": round(quality.l0, 2),
                "dead": round(quality.dead, 4),
                "recovered_mean": round(quality.recovered("mean"), 4),
                "duplicates": _duplicates(bench, made.sae, more),
            }
        )
    return {
        "model": str(model.cfg.model_name),
        "command": f"python -m labcode.sae.sweep --samples {options.samples} --contexts {options.contexts} "
        f"--prompts {options.prompts}",
        "base": BASE,
        "layer": layer,
        "vectors": len(data),
        "versions": {name: metadata.version(name) for name in ("torch", "transformer-lens", "sae-lens")},
        "rows": rows,
    }


def _duplicates(bench: edits.Bench, sae: Any, contexts: Any) -> list[dict[str, float]]:
    """The latents for repeated words, their rates, and what ablating each at S2 does to the logit difference."""
    words = repeats.words(bench.model.tokenizer)
    found = repeats.rates(latents.scan(bench.model, sae, contexts, bench.layer), words)
    rows = []
    for latent in found.duplicate()[:4]:
        change = edits.ablation(bench, sae, "S2", [latent])
        rows.append(
            {
                "repeat": round(float(found.repeat[latent]), 3),
                "first": round(float(found.first[latent]), 3),
                "active": round(float((change.activation[:, 0] > 0).float().mean()), 3),
                "change": round(float(change.change[:, 0].mean()), 3),
                "negative": int((change.change[:, 0] < 0).sum()),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
