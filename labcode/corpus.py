"""Text for the sparse autoencoders, in a model's own tokens.

It is written by a model itself, since no data set can be counted on. The repository carries a corpus that SmolLM2
wrote; for another tokenizer text comes from the hub where it answers, or that model writes a small one.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from labcode import sealed
from labcode.errors import SaeError
from labcode.inputs import guard, tokenizer_key
from labcode.models import build_once, cache_dir, must_be_clean, quiet, say, weights_key
from labcode.progress import progress
from labcode.prompts import NAMES
from labcode.recorded import fetch, store

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

DATA = Path(__file__).parents[1] / "book" / "data"
# Another sampler, or other openings, write another text; another kind of line ends doesn't.
CODE = hashlib.sha256(Path(__file__).read_text(encoding="utf8").encode()).hexdigest()
HELD_OUT = 128  # contexts that no autoencoder of the book is trained on: the last ones of the corpus
LENGTH = 127  # tokens of a context, the start token not counted
LIVE_TOKENS = 40_000  # what a model of another tokenizer writes, if it has to: minutes on one core
LEAST_TOKENS = 1024
TOP_P, TOP_K = 0.95, 512  # of nucleus sampling (Holtzman et al. 2020, section 3.1), with a cut added
KEEP_FROM = 0.5  # share of distinct 4-grams below which a context is thrown away
HUB_TEXT = "NeelNanda/pile-10k"  # ten thousand documents of the Pile (Gao et al. 2020)
PER_DOCUMENT = 2

# Openings of sampled texts. A model that starts from nothing repeats itself; an opening costs a few tokens and spreads
# the texts. Names mostly stand after another word: after a space a name is another token than alone.
WORDS = (
    "The In When It She He Once My How If We They After Before On At One Many Some Most There This That These Although "
    "Because While During From For With Without What Why Who Where Every Each Last Next First Yesterday Today Tomorrow "
    "People Children Scientists Students Two Three Several Our Your Their His Her And But So Then Now Here Let Imagine "
    "Consider According To As Even Only Perhaps Suddenly Finally However Meanwhile Under Over Near Between Until Since"
).split()
LEADS = ("When", "Then", "Yesterday", "One day", "After school,", "My friend", "I met", "Dear", "Because", "Once,")
PAIRS = ("{} and {}", "When {} and {}", "Yesterday {} met {}", "The story of {} and {}")

# What a page doesn't spell out when it shows text that a model wrote. The data keep it.
COARSE = re.compile(
    r"(?:fuck|shit|bitch|whore|slut|cunt|nigg|faggot|prostitut|porn|\brap(?:e|es|ed|ist)\b)", re.IGNORECASE
)


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
            SaeError: more than `HELD_OUT` are asked for: the rest is training data.
        """
        if not 0 < held_out <= HELD_OUT:
            raise SaeError(f"{held_out} held-out contexts: choose between 1 and {HELD_OUT}, the others are trained on")
        reserved = min(HELD_OUT, max(1, len(self) // 4))
        return self.tokens[:-reserved], self.tokens[-min(held_out, reserved) :]

    def used(self, d_vocab: int) -> Bool[Tensor, " d_vocab"]:
        """Which tokens of the vocabulary occur."""
        return torch.bincount(self.tokens[:, 1:].flatten(), minlength=d_vocab) > 0


def load_corpus(model: TransformerBridge) -> Corpus:
    """A corpus in this model's tokens: the shipped one, or for another tokenizer one from the hub or of its own.

    The environment variable LAB_TOKENS caps its size, for a quick look; the held-out contexts stay the same ones.

    Raises:
        EvidenceError: the shipped corpus can't be read.
        SaeError: LAB_TOKENS is no number from 1024 on.
    """
    contexts, record = read_corpus(DATA, "smollm2")
    live = record["tokenizer"] != tokenizer_key(model.tokenizer)
    if live:
        found = _from_hub(model.tokenizer, LIVE_TOKENS // LENGTH)
        contexts, record = found or write_corpus(model, min(LIVE_TOKENS, max(LEAST_TOKENS, _cap())))
    text = torch.from_numpy(contexts.astype(np.int64))
    wanted = min(len(text), max(4, _cap() // LENGTH))
    reserved = min(HELD_OUT, max(1, wanted // 4))
    text = torch.cat([text[: wanted - reserved], text[len(text) - reserved :]])
    start = torch.full((len(text), 1), model.tokenizer.bos_token_id)
    return Corpus(torch.cat([start, text], dim=1), str(record["model"]), live, record)


def read_corpus(folder: Path, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Stored contexts [context pos], without start tokens, and their record.

    Raises:
        EvidenceError: files that are missing, damaged or changed.
    """
    path = folder / f"corpus-{name}.npy.xz"
    record = sealed.read(folder / f"corpus-{name}.json", path)
    with lzma.open(path) as packed:
        return np.lib.format.read_array(packed, allow_pickle=False), record


def write_corpus(
    model: TransformerBridge, tokens: int, seed: int = 0, batch: int = 64
) -> tuple[np.ndarray, dict[str, Any]]:
    """Let the model write until `tokens` tokens are kept.

    Contexts in which fewer than half of the 4-grams are distinct are thrown away. Each batch is kept in the cache
    folder, so an interrupted run is taken up again.

    Returns:
        Contexts of `LENGTH` tokens as uint16 (uint32 for a larger vocabulary), [context pos], and a record of how they
        were made.

    Raises:
        SaeError: most of what the model writes is repetition.
    """
    record = {
        "model": str(model.cfg.model_name),
        "seed": seed,
        "batch": batch,
        "length": LENGTH,
        "top_p": TOP_P,
        "top_k": TOP_K,
        "start": model.tokenizer.decode([model.tokenizer.bos_token_id]),
        "tokenizer": tokenizer_key(model.tokenizer),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
    key = hashlib.sha256(json.dumps([record, weights_key(model), CODE]).encode()).hexdigest()[:16]
    kept: list[np.ndarray] = []
    made = count = 0
    needed = -(-tokens // (batch * LENGTH))
    for number in progress(range(4 * needed), "writing text", total=needed):

        def build(aside: Path, number: int = number) -> None:
            must_be_clean(model)
            store(aside / "text.safetensors", {"text": sample(model, number * batch, batch, seed)})

        folder = cache_dir() / "corpus" / key / f"{number:05d}"
        build_once(folder, _readable, build, needs=2**20)
        contexts = fetch(folder / "text.safetensors")[0]["text"].numpy().astype(np.uint32)
        whole = (distinct(torch.from_numpy(contexts.astype(np.int64))) >= KEEP_FROM).numpy()
        kept.append(contexts[whole])
        made, count = made + len(contexts), count + int(whole.sum()) * LENGTH
        say(f"{count} of {tokens} tokens")
        if count >= tokens:
            break
    else:
        raise SaeError(f"of {made} contexts that {model.cfg.model_name} wrote, {count // LENGTH} are no repetition")
    together = np.concatenate(kept)
    small = together.astype(np.uint16) if len(model.tokenizer) <= 2**16 else together
    record |= {"contexts": len(small), "tokens": int(small.size), "removed": made - len(small), "keep_from": KEEP_FROM}
    return small, record


def _readable(folder: Path) -> bool:
    try:
        return fetch(folder / "text.safetensors")[0]["text"].shape[1] == LENGTH
    except Exception:  # whatever is wrong with the file, writing again mends it
        return False


def sample(model: TransformerBridge, first: int, batch: int, seed: int) -> Int[Tensor, "batch pos"]:
    """Contexts number `first` to `first + batch - 1`, each of `LENGTH` tokens, written after the start token.

    Special tokens are never drawn: an instruction model would otherwise end its turn and begin another. The same seed
    and numbers give the same contexts on the same machine.
    """
    tokenizer, writer = model.tokenizer, cast(Any, model.original_model)
    start = int(tokenizer.bos_token_id)
    begun = [
        torch.tensor([start, *tokenizer.encode(opening(number), add_special_tokens=False)])
        for number in range(first, first + batch)
    ]
    ids = pad_sequence(begun, batch_first=True, padding_side="left")
    there = pad_sequence([torch.ones_like(row) for row in begun], batch_first=True, padding_side="left")
    new = LENGTH + 1 - min(map(len, begun))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed * 1_000_003 + first)
        text = writer.generate(
            input_ids=ids.to(writer.device),
            attention_mask=there.to(writer.device),
            do_sample=True,
            temperature=1.0,
            top_p=TOP_P,
            top_k=TOP_K,
            min_new_tokens=new,
            max_new_tokens=new,
            suppress_tokens=sorted(set(tokenizer.all_special_ids)),
            pad_token_id=start,
        ).cpu()
    at = ids.shape[1] - there.sum(1, keepdim=True) + 1  # where each text goes on after its start token
    return text.gather(1, at + torch.arange(LENGTH))


def opening(number: int) -> str:
    """The opening of context `number`: of three in a row, two open with a word and the third with a name or two.

    The lists have lengths without common factors where it matters, so that leads and names meet in ever new pairs.
    """
    turn, kind = divmod(number, 3)
    if kind < 2:
        return WORDS[(2 * turn + kind) % len(WORDS)]
    name, other = NAMES[turn % len(NAMES)], NAMES[(5 * turn + 1) % len(NAMES)]
    if turn % 4 or name == other:
        return f"{LEADS[turn % len(LEADS)]} {name}"
    return PAIRS[turn // 4 % len(PAIRS)].format(name, other)


def distinct(text: Int[Tensor, "context pos"], n: int = 4) -> Float[Tensor, " context"]:
    """The share of distinct n-grams within each context, given without start tokens: 1 where nothing is repeated."""
    shares = []
    for row in text.tolist():
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        shares.append(len(set(grams)) / max(1, len(grams)))
    return torch.tensor(shares)


def _from_hub(tokenizer: Any, contexts: int) -> tuple[np.ndarray, dict[str, Any]] | None:
    """So many contexts of `LENGTH` tokens, a few from the beginning of each document; None without an answer.

    Whatever goes wrong on the way there, the caller has another source: it is said, and is no error.
    """
    if not hub_answers():
        return None
    try:
        from datasets import load_dataset

        with quiet():
            documents = load_dataset(HUB_TEXT, split="train")
        rows: list[list[int]] = []
        for text in documents["text"]:
            ids = tokenizer.encode(text[: 12 * LENGTH * PER_DOCUMENT], add_special_tokens=False)
            rows += [ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH + 1, LENGTH)][:PER_DOCUMENT]
            if len(rows) >= contexts:
                break
        array = np.array(rows[:contexts], dtype=np.uint32).reshape(-1, LENGTH)
    except Exception as error:
        say(f"No text from the hub: {type(error).__name__}: {error}")
        return None
    record = {"model": f"the authors of {HUB_TEXT}", "tokenizer": tokenizer_key(tokenizer), "contexts": len(array)}
    return (array, record) if len(array) >= 4 else None


def hub_answers() -> bool:
    """Whether the hub can be reached: where it can't, the libraries would try again and again."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=5):
            return True
    except (OSError, ValueError):
        return False


def _cap() -> int:
    asked = os.environ.get("LAB_TOKENS", "").strip()
    if not asked:
        return sys.maxsize
    if not asked.isdigit() or int(asked) < LEAST_TOKENS:
        raise SaeError(f"LAB_TOKENS={asked}: use a number of tokens from {LEAST_TOKENS} on, or leave it unset")
    return int(asked)


def masked(text: str) -> str:
    """A text with the letters of coarse words starred but for the first: "s***". Its length stays."""
    return COARSE.sub(lambda found: found[0][0] + "*" * (len(found[0]) - 1), text)


def masked_tokens(tokens: Sequence[str]) -> tuple[str, ...]:
    """The same for a text in pieces, where a word may be spread over several."""
    whole, at = masked("".join(tokens)), 0
    pieces = []
    for token in tokens:
        pieces.append(whole[at : at + len(token)])
        at += len(token)
    return tuple(pieces)


guard(globals(), SaeError)
