"""Let a model write a corpus, batch by batch, in files that an interrupted run finds again.

Used in chapter 14, through `labcode.sae.corpus`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labcode.models import cache_dir, say, sha256
from labcode.progress import progress
from labcode.sae import sampling
from labcode.sae.errors import CorpusError

LENGTH = 127  # tokens of a context, the start token not counted
KEEP_FROM = 0.5  # share of distinct 4-grams below which a context is thrown away
BATCH = 128


def generate(
    folder: Path, tokens: int, seed: int = 0, dtype: str = "float32", batch: int = BATCH
) -> tuple[np.ndarray, dict[str, Any]]:
    """Let the model in `folder` write until `tokens` tokens are kept.

    Contexts in which fewer than half of the 4-grams are distinct are thrown away. Each batch goes into a file of its
    own in the cache folder, so an interrupted run is taken up again.

    Returns:
        Contexts of `LENGTH` tokens as uint16 (uint32 for a larger vocabulary), [context pos], and a record of how they
        were made.

    Raises:
        CorpusError: most of what the model writes is repetition, or the cache can't be written.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from labcode.models import quiet

    sampling.register()
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=sampling.ATTENTION
        ).eval()
    start = int(tokenizer.bos_token_id)
    record = {
        "seed": seed,
        "dtype": dtype,
        "batch": batch,
        "length": LENGTH,
        "top_p": sampling.TOP_P,
        "top_k": sampling.TOP_K,
        "start": tokenizer.decode([start]),
        "tokenizer": tokenizer_key(tokenizer),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
    parts = _parts_folder(folder, record)
    kept: list[np.ndarray] = []
    made, count = 0, 0
    needed = -(-tokens // (batch * LENGTH))
    for number in progress(range(4 * needed), "writing text", total=needed):
        path = parts / f"{number:05d}.npy"
        if not path.exists():
            written = sampling.write(model, tokenizer, start, number * batch, batch, LENGTH + 1, seed)
            text = written[:, 1:].numpy().astype(np.uint32)
            write_aside(path, lambda out, text=text: np.save(out, text))  # type: ignore[misc]
        contexts = np.load(path, allow_pickle=False)
        whole = sampling.distinct(torch.from_numpy(contexts.astype(np.int64))).numpy() >= KEEP_FROM
        kept.append(contexts[whole])
        made, count = made + len(contexts), count + int(whole.sum()) * LENGTH
        say(f"{count} of {tokens} tokens")
        if count >= tokens:
            break
    else:
        raise CorpusError(
            f"of {made} contexts that the model in {folder} wrote, {count // LENGTH} are no repetition",
            see="repetitive-text",
        )
    together = np.concatenate(kept)
    small = together.astype(np.uint16) if len(tokenizer) <= 2**16 else together
    record |= {"contexts": len(small), "tokens": int(small.size), "removed": made - len(small), "keep_from": KEEP_FROM}
    return small, record


def tokenizer_key(tokenizer: Any) -> str:
    """A fingerprint of a tokenizer's vocabulary: which text each id stands for."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def pack(contexts: np.ndarray, record: dict[str, Any], folder: Path, name: str) -> None:
    """Write `corpus-NAME.npy.xz` and `corpus-NAME.json`, each aside and renamed, the record with the hash last."""
    path = folder / f"corpus-{name}.npy.xz"

    def write(handle: Any) -> None:
        with lzma.open(handle, "wb", preset=9 | lzma.PRESET_EXTREME) as packed:
            np.lib.format.write_array(packed, contexts, allow_pickle=False)

    write_aside(path, write)
    text = json.dumps({**record, "sha256": sha256(path), "bytes": path.stat().st_size}, indent=1) + "\n"
    write_aside(folder / f"corpus-{name}.json", lambda handle: handle.write(text.encode()))


def write_aside(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file beside its place and rename it into it; nothing is left where that fails.

    Raises:
        CorpusError: the system does not let us write there.
    """
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as out:
            write(out)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException as error:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CorpusError(
                f"{path} can't be written ({error.strerror}): make room, or set LAB_CACHE", see="cannot-write"
            ) from error
        raise


def _parts_folder(folder: Path, record: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps({**record, "sampler": sampling.VERSION}, sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        state = path.stat()
        digest.update(f"{path.name} {state.st_size}".encode())
        with path.open("rb") as handle:  # a fixed sample of the weights: another model has other numbers there
            for share in range(8):
                handle.seek(state.st_size * share // 8)
                digest.update(handle.read(4096))
    return cache_dir() / "corpus" / digest.hexdigest()[:16]
