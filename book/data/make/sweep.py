"""Train several autoencoders and record how good they are: `python -m labbook.data.make.sweep`.

Over k, over the number of latents, and over seeds; for each also whether a latent for repeated words appears, by the
criterion of `labcode.latents.Rates`. It takes some minutes, so the book shows what is recorded in
`book/data/sae-sweep.json`.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labbook.data.make import command, run, write_json
from labcode import corpus, latents, models, prompts, sae
from labcode.models import say

if TYPE_CHECKING:
    from torch import Tensor

BASE = {"d_sae": 2304, "k": 32}
RUNS: tuple[dict[str, Any], ...] = (
    {**BASE, "seed": 0},
    {**BASE, "seed": 1},
    {**BASE, "seed": 2},
    {"d_sae": 2304, "k": 16, "seed": 0},
    {"d_sae": 2304, "k": 64, "seed": 0},
    {"d_sae": 1152, "k": 32, "seed": 0},
    {"d_sae": 4608, "k": 32, "seed": 0},
)


def make(options: Namespace) -> None:
    """All runs on the same activations, judged on the same held-out contexts and the same prompts."""
    model = models.load()
    parts, _ = corpus.load_corpus(model).split()
    held = parts[options.contexts : options.contexts + 64]  # not trained on here
    more = parts[options.contexts + 64 : options.contexts + 192]
    layer = sae.choose_layer(model, parts[:16]).layer
    data = sae.collect(model, parts[: options.contexts], layer)
    editor = latents.Editor(model, prompts.population(model, options.prompts, seed=16), layer)
    rows = []
    for setting in RUNS:
        say(f"{setting}")
        made = sae.train(data, **setting, batch=512, samples=options.samples)
        quality = sae.evaluate(model, made.sae, held, layer, center=data.center, contexts=8)
        rows.append(
            {
                **setting,
                "explained": round(quality.explained, 4),
                "l0": round(quality.l0, 2),
                "dead": round(quality.dead, 4),
                "recovered_mean": round(quality.recovered("mean"), 4),
                "duplicates": duplicates(editor, made.sae, more),
            }
        )
    record = {
        "model": str(model.cfg.model_name),
        "command": command("sweep", options, "out"),
        "base": BASE,
        "layer": layer,
        "vectors": len(data),
        "versions": {name: metadata.version(name) for name in ("torch", "transformer-lens", "sae-lens")},
        "rows": rows,
    }
    write_json(options.out, record)


def duplicates(editor: latents.Editor, autoencoder: Any, contexts: Tensor) -> list[dict[str, float]]:
    """The latents for repeated words, their rates, and what ablating each at S2 does to the logit difference."""
    words = latents.words(editor.model.tokenizer)
    found = latents.rates(latents.scan(editor.model, autoencoder, contexts, editor.layer), words)
    rows = []
    for latent in found.duplicate()[:4]:
        change = latents.ablation(editor, autoencoder, "S2", [latent])
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
    parser = ArgumentParser(prog="python -m labbook.data.make.sweep", description=str(__doc__).splitlines()[0])
    parser.add_argument("--samples", type=int, default=150_000, help="vectors to train on (default %(default)s)")
    parser.add_argument("--contexts", type=int, default=448, help="contexts they come from (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=64, help="prompts for the ablation (default %(default)s)")
    parser.add_argument("--out", type=Path, default=corpus.DATA / "sae-sweep.json")
    sys.exit(run(parser, make))
