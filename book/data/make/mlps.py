"""Which MLP is worth a transcoder: `python -m labbook.data.make.mlps`.

For the MLP of every layer, what a linear map leaves unexplained of it, and what it contributes to the task at S2 and at
END. A chapter would need three minutes for it.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from importlib import metadata

from labbook.data.make import command, run
from labcode import corpus, latents, metrics, models, prompts, sealed, transcoder

OUT = corpus.DATA / "mlps-smollm2.json"


def make(options: Namespace) -> None:
    """Measure, write."""
    model = models.load()
    text, held = corpus.load_corpus(model).split()
    pop = prompts.population(model, n=options.prompts, seed=options.seed)
    first = prompts.fresh_names(model, pop, 1, options.seed)[:, 0]
    other = prompts.renamed(model, pop, {"S1": first}, "another name at S1")
    missed = transcoder.beyond_linear(model, text[: options.contexts], held[: options.contexts // 4])
    editor, rows = latents.Editor(model, pop, 0), []
    for layer in range(model.cfg.n_layers - 1):  # nothing reads the last one
        row: dict[str, object] = {"layer": layer, "unexplained": round(missed[layer], 4)}
        for at, change in transcoder.effects(editor.at(layer), other).items():
            found = metrics.bootstrap(change, pop.draws)
            row[at] = [round(value, 4) for value in (found.mean, found.low, found.high)]
        rows.append(row)
    record = {
        "weights": models.weights_key(model),
        "command": command("mlps", options),
        "prompts": len(pop),
        "versions": {name: metadata.version(name) for name in ("torch", "transformer-lens")},
        "layers": rows,
    }
    sealed.write(OUT, record)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m labbook.data.make.mlps", description=str(__doc__).splitlines()[0])
    parser.add_argument("--contexts", type=int, default=64, help="contexts for the linear maps (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=32, help="discovery prompts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=181)
    sys.exit(run(parser, make))
