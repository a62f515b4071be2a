"""Train small autoencoders that differ in their seed, and ask each for its marks of repetition.

`python -m labbook.data.make.seeds` writes `book/data/sae-seeds.json`. Each is asked what chapter 17 asks of the
shipped one: which latents does plain text name, does other text confirm them, and how much of the message at S2 is
theirs?
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labbook.data.make import command, run
from labcode import corpus, latents, metrics, models, prompts, sae, sealed
from labcode.models import say

if TYPE_CHECKING:
    from torch import Tensor

TEXT = 64  # contexts of each half of the text that names and confirms


def make(options: Namespace) -> None:
    """The same activations, text and prompts for all of them."""
    model = models.load()
    parts, _ = corpus.load_corpus(model).split()
    layer = sae.choose_layer(model, parts[:16]).layer
    data = sae.collect(model, parts[: options.contexts], layer)
    halves = parts[options.contexts : options.contexts + 2 * TEXT].split(TEXT)  # not trained on here
    text = [(half, sae.collect(model, half, layer)) for half in halves]
    pop = prompts.population(model, options.prompts, seed=16)
    editor = latents.Editor(model, pop, layer)
    words = latents.words(model.tokenizer)
    here, other = (_at_s2(model, one, layer) for one in (pop, prompts.corrupt(model, pop, "first")))
    whole = editor.change("S2", other - here)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        say(f"seed {seed}")
        made = sae.train(data, d_sae=options.d_sae, k=options.k, batch=512, samples=options.samples, seed=seed).sae
        first, second = (latents.codes_of(acts, made, half) for half, acts in text)
        named, check = latents.rates(first, words).duplicate(), latents.rates(second, words)
        widest = float(latents.widest_by_chance(second, words).max())
        with torch.no_grad():
            code, new = made.encode(here), made.encode(other)
        kept = [i for i in named if float(check.gap[i]) > widest]
        changes = {
            "latents": editor.change("S2", (new - code) @ made.W_dec),
            "marks": editor.change("S2", (new - code)[:, kept] @ made.W_dec[kept]),
        }
        rows.append(
            {
                "seed": seed,
                "explained": round(sae.explained(text[0][1].values, _rebuild(made), data.center), 4),
                "widest": round(widest, 4),
                "named": [
                    {
                        "repeat": round(float(check.repeat[i]), 3),
                        "first": round(float(check.first[i]), 3),
                        "confirmed": i in kept,
                        "active": round(float((code[:, i] > 0).float().mean()), 3),
                        "change": round(float(editor.change("S2", (new - code)[:, [i]] @ made.W_dec[[i]]).mean()), 3),
                    }
                    for i in named
                ],
                **{name: _interval(change, pop) for name, change in changes.items()},
                "share": _share(changes["marks"], whole, pop),
            }
        )
    record = {
        "model": str(model.cfg.model_name),
        "weights": models.weights_key(model),
        "command": command("seeds", options, "out"),
        "layer": layer,
        "vectors": len(data),
        "whole": _interval(whole, pop),
        "versions": {name: metadata.version(name) for name in ("torch", "transformer-lens", "sae-lens")},
        "rows": rows,
    }
    sealed.write(options.out, record)


def _at_s2(model: Any, pop: prompts.Population, layer: int) -> Tensor:
    return sae.residual(model, pop.tokens, layer)[torch.arange(len(pop)), pop.positions["S2"]]


def _rebuild(made: Any) -> Any:
    return lambda x: made.decode(made.encode(x))


def _three(found: metrics.Interval) -> list[float]:
    return [round(value, 3) for value in (found.mean, found.low, found.high)]


def _interval(change: Tensor, pop: prompts.Population) -> list[float]:
    return _three(metrics.bootstrap(change, pop.draws))


def _share(part: Tensor, whole: Tensor, pop: prompts.Population) -> list[float]:
    return _three(metrics.bootstrap_ratios(part[None], whole, pop.draws)[0])


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m labbook.data.make.seeds", description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many, counted from 0 (default %(default)s)")
    parser.add_argument("--d-sae", type=int, default=2304, help="latents (default %(default)s)")
    parser.add_argument("--k", type=int, default=32, help="active latents of a token (default %(default)s)")
    parser.add_argument("--samples", type=int, default=150_000, help="vectors to train on (default %(default)s)")
    parser.add_argument("--contexts", type=int, default=448, help="contexts they come from (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=64, help="prompts for the task (default %(default)s)")
    parser.add_argument("--out", type=Path, default=corpus.DATA / "sae-seeds.json")
    sys.exit(run(parser, make))
