"""Looks at a reader's own model folder before anything heavy is loaded from it."""

from __future__ import annotations

import json
from pathlib import Path

from labcode.errors import ModelError


def checked_folder(path: Path) -> Path:
    """The absolute path of a folder that looks like a decoder-only model with safetensors and a tokenizer.

    Raises:
        ModelError: Something is missing or not supported; the message says what, and how to get it.
    """
    folder = path.expanduser().absolute()
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "doesn't exist"
        raise ModelError(
            f"LAB_MODEL={path}: {folder} {kind}; give the folder that save_pretrained() wrote", see="no-such-folder"
        )
    try:
        _check_config(folder)
        _check_weights(folder)
    except OSError as error:
        raise ModelError(
            f"{folder} can't be read ({error}); mend its permissions, or copy it again", see="unreadable-folder"
        ) from error
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in tokenizers):
        raise ModelError(
            f"{folder} has no tokenizer ({', '.join(tokenizers)}); save one there with "
            "tokenizer.save_pretrained(folder)",
            see="no-tokenizer",
        )
    return folder


def _check_config(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = [str(name) for name in config.get("architectures") or []]
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no config.json; give the folder that model.save_pretrained() wrote", see="no-config"
        ) from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} can't be read ({error}); save the model again", see="unreadable-config"
        ) from error
    what = ", ".join(architectures) or str(config.get("model_type", "unnamed"))
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{folder} holds an encoder-decoder model ({what}); the lab needs a decoder-only one",
            see="wrong-architecture",
        )
    if architectures and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise ModelError(
            f"{folder} holds a {what}; the lab needs a decoder-only language model (...ForCausalLM)",
            see="wrong-architecture",
        )


def _check_weights(folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        held = f"only pickled weights ({', '.join(pickles)}), which may run code when opened" if pickles else ""
        raise ModelError(
            f"{folder} has {held or 'no weights'}; the lab takes safetensors: save them with "
            "model.save_pretrained(folder)",
            see="no-safetensors",
        )
    for path in weights:
        if not whole(path):
            raise ModelError(
                f"{path} is truncated or not a safetensors file; copy or save it again", see="truncated-weights"
            )


def whole(path: Path) -> bool:
    """Is a safetensors file as long as its own header says? Reads the header only."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            return False
        try:
            header = json.loads(handle.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)
