"""Measurements that several chapters share: made once and kept in the lab's cache folder.

A name alone would go stale. The key of a measurement holds the weights and the tokenizer, the prompts or settings that
the caller names, the source of every labcode module that the measuring one imports, and the version of torch. So a
result is found again only where the same code would give it again. It is written aside and renamed, and a lock lets one
process measure while others wait for it.

Used in chapters 07 to 12 and 14 to 16, through `labcode.families` and `labcode.sae`.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labcode.errors import ModelError
from labcode.models import build_once, cache_dir, weights_key

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population


def remember(
    name: str, model: TransformerBridge, key: Iterable[object], measure: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `measure` returns, from the cache folder if the same measurement was made before.

    Args:
        name: of the measurement, for the file's name.
        model: enters the key with its weights.
        key: whatever else the result depends on; anything whose `str` says all. For prompts see `prompt_key`.
        measure: makes the tensors. Called at most once, and by one process at a time. A function of a labcode module:
            the source of its module enters the key.

    Returns:
        The tensors, by name. Where the cache folder can't be used there is a warning, and they are measured.

    Used in chapters 07 to 12 and 14 to 16, through `labcode.families` and `labcode.sae`.
    """
    from safetensors.torch import load_file, save_file

    digest = hashlib.sha256(
        "\0".join([name, source_key(measure.__module__), weights_key(model), *map(str, key)]).encode()
    )
    folder = cache_dir() / "measured" / f"{name}-{digest.hexdigest()[:20]}"
    made: dict[str, Tensor] = {}

    def build(aside: Path) -> None:
        made.update(measure())
        save_file({key: value.detach().contiguous() for key, value in made.items()}, aside / "values.safetensors")

    def readable(target: Path) -> bool:
        return _read(target, load_file) is not None

    try:
        build_once(folder, readable, build, needs=2**20)
    except ModelError as reason:
        warnings.warn(f"this measurement is not kept: {reason}", stacklevel=2)
        return made or measure()
    found = made or _read(folder, load_file)
    return measure() if found is None else found


def prompt_key(pop: Population) -> str:
    """Everything about prompts that a measurement can depend on, as a short text."""
    parts = [
        pop.tokens,
        pop.lengths,
        pop.io_ids,
        pop.s_ids,
        pop.draws,
        *(pop.positions[k] for k in sorted(pop.positions)),
    ]
    return hashlib.sha256(b"\0".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


@cache
def source_key(module: str) -> str:
    """A hash of the source of a labcode module and of all labcode modules that it imports, and of torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    for name, path in sorted(_imported(module).items()):
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()


def _imported(module: str) -> dict[str, Path]:
    """The files of a module and of what it imports from its own package, imports inside functions included."""
    package, found, waiting = module.split(".")[0], {}, [module]
    while waiting:
        name = waiting.pop()
        spec = find_spec(name)
        if name in found or spec is None or not str(spec.origin).endswith(".py"):
            continue
        found[name] = Path(str(spec.origin))
        for node in ast.walk(ast.parse(found[name].read_text(encoding="utf8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting += [name for name in names if name.split(".")[0] == package and _is_module(name)]
    return found


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a function of a module, not a module of a package
        return False


def _read(folder: Path, load_file: Callable[..., dict[str, Any]]) -> dict[str, Tensor] | None:
    try:
        return load_file(folder / "values.safetensors")
    except Exception:  # whatever is wrong with the file, measuring again mends it
        return None
