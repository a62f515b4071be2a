"""Text for the sparse autoencoders: written by the model itself, since no data set can be counted on.

The repository carries a corpus that SmolLM2 wrote. `load` gives it to every model that has its tokenizer; for another
tokenizer, text comes from the hub where it answers, or that model writes a small corpus of its own, kept in the cache
folder. `python -m labcode.sae.corpus` writes a corpus from the beginning; it shows progress, and goes on where it was
interrupted.

A context is stored without its start token. It is written and read after the start token that the book's prompts have.

Used in chapters 14 to 16.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labcode.errors import LabError
from labcode.models import sha256
from labcode.sae.errors import CorpusError
from labcode.sae.writing import LENGTH, generate, pack, tokenizer_key

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

DATA = Path(__file__).parents[2] / "book" / "data"
SHIPPED = "smollm2"
HELD_OUT = 128  # contexts that no autoencoder of the book is trained on: the last ones of the corpus
LIVE_TOKENS = 40_000  # what a model of another tokenizer writes, if it has to: minutes on one core
LEAST = 1024


@dataclass(frozen=True)
class Corpus:
    """Contexts of text.

    Attributes:
        tokens: token ids, the start token of the book's prompts at position 0.
        written_by: who wrote it. live: whether it was made for this model, and not shipped.
        record: how it was made.
    """

    tokens: Int[Tensor, "context pos"]
    written_by: str
    live: bool
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, held_out: int = HELD_OUT) -> tuple[Int[Tensor, "train pos"], Int[Tensor, "held pos"]]:
        """Contexts to train on, and the last `held_out` of those that are never trained on (at most a quarter of all).

        Raises:
            CorpusError: more than `HELD_OUT` are asked for: the rest is training data.
        """
        if not 0 < held_out <= HELD_OUT:
            raise CorpusError(
                f"{held_out} held-out contexts: choose between 1 and {HELD_OUT}, the others are trained on",
                see="held-out",
            )
        reserved = min(HELD_OUT, max(1, len(self) // 4))
        return self.tokens[:-reserved], self.tokens[-min(held_out, reserved) :]

    def used(self, d_vocab: int) -> Bool[Tensor, " d_vocab"]:
        """Which tokens of the vocabulary occur."""
        return torch.bincount(self.tokens[:, 1:].flatten(), minlength=d_vocab) > 0


def load(model: TransformerBridge, folder: Path | None = None) -> Corpus:
    """A corpus in this model's tokens.

    The environment variable LAB_TOKENS caps its size, for a quick look; the held-out contexts stay the same ones.

    Args:
        folder: where the model's files are, for a model of another tokenizer that has to write its own text; by default
            the folder of the model that LAB_MODEL chooses.

    Raises:
        CorpusError: the shipped corpus is missing or altered, LAB_TOKENS is no number from 1024 on, or the model has
            another tokenizer and `folder` is not known.

    Used in chapters 14 to 16.
    """
    contexts, record = read(DATA, SHIPPED)
    live = record["tokenizer"] != tokenizer_key(model.tokenizer)
    if live:
        contexts, record = _own(model, folder)
    text = torch.from_numpy(contexts.astype(np.int64))
    wanted = min(len(text), max(4, _cap() // LENGTH))
    reserved = min(HELD_OUT, max(1, wanted // 4))
    text = torch.cat([text[: wanted - reserved], text[len(text) - reserved :]])
    start = torch.full((len(text), 1), model.tokenizer.bos_token_id)
    return Corpus(torch.cat([start, text], dim=1), str(record["model"]), live, record)


def read(folder: Path, name: str, tokenizer: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
    """The stored contexts [context pos], without start tokens, and their record, checked against the hash in it.

    Raises:
        CorpusError: files that are missing or altered; or, where a tokenizer is given, text in another one.
    """
    path = folder / f"corpus-{name}.npy.xz"
    try:
        record = json.loads((folder / f"corpus-{name}.json").read_text())
        if sha256(path) != record["sha256"]:
            raise CorpusError(
                f"{path} was altered: its SHA-256 isn't the recorded one; restore it, or write it again",
                see="file-altered",
            )
        with lzma.open(path) as packed:
            contexts = np.lib.format.read_array(packed, allow_pickle=False)
    except (OSError, ValueError, KeyError, lzma.LZMAError, EOFError) as error:
        raise CorpusError(
            f"{path} can't be read ({error}): restore it, or write it with {COMMAND}", see="corpus-unreadable"
        ) from error
    if tokenizer is not None and record["tokenizer"] != tokenizer_key(tokenizer):
        raise CorpusError(
            f"{path} holds ids of another tokenizer: its text would be nonsense here; write one with {COMMAND}",
            see="corpus-of-another-tokenizer",
        )
    return contexts, record


COMMAND = "`python -m labcode.sae.corpus`"


def _own(model: TransformerBridge, folder: Path | None) -> tuple[np.ndarray, dict[str, Any]]:
    from labcode import models
    from labcode.sae.hubtext import from_hub

    found = from_hub(model.tokenizer, LIVE_TOKENS // LENGTH)
    if found is not None:
        return found
    if folder is None:
        source = models.prepare()
        if source.title != model.cfg.model_name:
            raise CorpusError(
                f"the shipped corpus is in another tokenizer than that of {model.cfg.model_name}, which has to write "
                f"its own text: give the folder of its files, or write one with {COMMAND}",
                see="corpus-of-another-tokenizer",
            )
        folder = source.folder
    contexts, record = generate(folder, min(LIVE_TOKENS, max(LEAST, _cap())), batch=32)
    return contexts, {"model": str(model.cfg.model_name), **record}


def _cap() -> int:
    asked = os.environ.get("LAB_TOKENS", "").strip()
    if not asked:
        return sys.maxsize
    if not asked.isdigit() or int(asked) < LEAST:
        raise CorpusError(
            f"LAB_TOKENS={asked}: use a number of tokens from {LEAST} on, or leave it unset", see="lab-tokens"
        )
    return int(asked)


def main() -> int:
    """Write a corpus and its record; exit status 2 with one line on stderr if that fails."""
    from labcode import models

    parser = argparse.ArgumentParser(prog="python -m labcode.sae.corpus", description=str(__doc__).splitlines()[0])
    parser.add_argument("--tokens", type=int, default=620_000, help="tokens to keep (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the model")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to (default book/data)")
    options = parser.parse_args()
    os.environ["LAB_PROGRESS"] = "1"
    try:
        source = models.prepare()
        contexts, record = generate(source.folder, options.tokens, options.seed, options.dtype)
        arguments = f"--tokens {options.tokens} --seed {options.seed} --dtype {options.dtype}"
        record = {"model": source.title, "command": f"python -m labcode.sae.corpus {arguments}", **record}
        pack(contexts, record, options.out, source.name if source.name in models.KNOWN else source.title)
    except LabError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
