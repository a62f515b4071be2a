"""GPT-2 small from the Hugging Face hub or its local cache: is it there, does the hub answer, fetch, verify."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import urllib.request
from pathlib import Path

from labcode.errors import ModelError
from labcode.models.cache import matches, say, wants_progress
from labcode.models.known import KNOWN
from labcode.models.quiet import quiet

# A little under the five seconds that the lab promises: starting Python's part of it takes time too.
PROBE_SECONDS = 4.5
GPT2 = KNOWN["gpt2"]
NEEDED = ("config.json", "model.safetensors", "vocab.json", "merges.txt")
# Nothing else is fetched: the repository also holds pickles and weights for other frameworks.
WANTED = (*NEEDED, "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def offline() -> bool:
    """Has the reader switched the hub off (`HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`)?"""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def cached() -> Path | None:
    """The folder of the pinned revision in the hub's cache if every needed file is in it, else None.

    Used in chapter 12.
    """
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(GPT2.source, name, revision=GPT2.revision) for name in NEEDED]
    return Path(found[0]).parent if all(isinstance(path, str) for path in found) else None  # type: ignore


def unreachable() -> str | None:
    """None if the hub hands out the pinned config in time, else a clause that says why not.

    The request runs in a thread that is left behind when time is up: a name server that doesn't answer
    blocks inside the system, where no timeout of ours reaches.
    """
    if offline():
        return "HF_HUB_OFFLINE is set"
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer: list[str | None] = []

    def ask() -> None:
        url = f"{base}/{GPT2.source}/resolve/{GPT2.revision}/config.json"
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as reply:
                kind = json.loads(reply.read(100_000)).get("model_type")
            answer.append(None if kind == "gpt2" else "the hub's answer isn't GPT-2's config")
        except Exception as error:
            reason = getattr(error, "reason", None) or error
            answer.append(f"the hub can't be reached ({reason})")

    thread = threading.Thread(target=ask, daemon=True, name="hub-probe")
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0] if answer else f"the hub didn't answer within {PROBE_SECONDS:g} s"


def fetched_folder(probed: bool = False) -> Path:
    """The verified folder of GPT-2 small, downloaded now unless the cache has it.

    Args:
        probed: The hub has just answered, so that asking it again would only cost time.

    Raises:
        ModelError: No hub, a download that breaks off, a full disk, or files that aren't the pinned ones.
    """
    folder = cached()
    if folder is None:
        why_not = None if probed else unreachable()
        if why_not:
            raise ModelError(
                f"GPT-2 small isn't in the hub's cache and {why_not}; connect to {GPT2.source} on the hub, or "
                "set LAB_MODEL=smollm2, which needs no hub",
                see="no-hub",
            )
        folder = _download()
    for name, pin in GPT2.files.items():
        try:
            wrong = "" if matches(folder / name, pin) else f"isn't the pinned file (not SHA-256 {pin.sha256[:12]}...)"
        except OSError as error:
            wrong = f"can't be read ({error.strerror})"
        if wrong:
            raise ModelError(
                f"{folder / name} {wrong}; delete {folder.parent.parent} and run again", see="damaged-download"
            )
    return folder


def _download() -> Path:
    from huggingface_hub import snapshot_download

    say(f"Fetching GPT-2 small from the hub, 550 MB: {GPT2.source} at {GPT2.revision[:8]}")
    shown = contextlib.nullcontext() if wants_progress() else quiet()
    try:
        with shown:
            return Path(snapshot_download(GPT2.source, revision=GPT2.revision, allow_patterns=list(WANTED)))
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise ModelError(
            f"the download of GPT-2 small broke off ({type(error).__name__}: {first}); run again to resume it, "
            "or set LAB_MODEL=smollm2",
            see="download-broke-off",
        ) from error
