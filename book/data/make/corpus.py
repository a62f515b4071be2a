"""Let the model that LAB_MODEL chooses write a corpus: `python -m labbook.data.make.corpus`.

It shows progress, and goes on where it was interrupted. The shipped corpus was written by an earlier sampler, so this
command does not give the same text again: it draws from nearly the same distribution, with other random numbers.
"""

from __future__ import annotations

import lzma
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np

from labbook.data.make import command, run
from labcode import corpus, models, sealed


def make(options: Namespace) -> None:
    """Write a corpus and its record."""
    model = models.load()
    contexts, record = corpus.write_corpus(model, options.tokens, options.seed)
    name = models.edition(model) or model.cfg.model_name
    pack(contexts, {"command": command("corpus", options, "out"), **record}, options.out, name)


def pack(contexts: np.ndarray, record: dict[str, Any], folder: Path, name: str) -> None:
    """Write `corpus-NAME.npy.xz` and `corpus-NAME.json`, each aside and renamed, the record last."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"corpus-{name}.npy.xz"
    aside = path.with_suffix(".tmp")
    with lzma.open(aside, "wb", preset=9 | lzma.PRESET_EXTREME) as packed:
        np.lib.format.write_array(packed, contexts, allow_pickle=False)
    aside.replace(path)
    sealed.write(folder / f"corpus-{name}.json", record, path)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m labbook.data.make.corpus", description=str(__doc__).splitlines()[0])
    parser.add_argument("--tokens", type=int, default=620_000, help="tokens to keep (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=corpus.DATA, help="folder to write to (default book/data)")
    sys.exit(run(parser, make))
