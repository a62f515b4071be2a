"""Autoencoders on disk: weights as float16 safetensors, and a record beside them that holds their hash.

Used in chapters 14 to 16.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labcode.models import sha256
from labcode.sae.errors import SaeError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WEIGHTS, CONFIG, RECORD = "sae_weights.safetensors", "cfg.json", "record.json"


def save(sae: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write an autoencoder: float16 weights, sae-lens's config, and `record` with sizes and hashes.

    All files are written into a folder beside the target, which then takes its place: it is never half there.

    Raises:
        SaeError: weights that are not finite in float16, or a place that can't be written.
    """
    state = {name: value.detach().to(torch.float16).contiguous() for name, value in sae.state_dict().items()}
    bad = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise SaeError(
            f"{', '.join(bad)} of this autoencoder are NaN, infinite or too large for float16: nothing saved",
            see="autoencoder-not-finite",
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise SaeError(
            f"{folder} can't be written ({error.strerror}): choose another place", see="cannot-write"
        ) from error
    try:
        write_files(state, sae.cfg.to_dict(), aside, record)
        aside.chmod(0o755)
        _take_place(aside, folder)
    except OSError as error:
        raise SaeError(
            f"{folder} can't be written ({error.strerror}): make room, or choose another place", see="cannot-write"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_files(state: dict[str, torch.Tensor], config: dict[str, Any], folder: Path, record: dict[str, Any]) -> None:
    """Fill a folder with weights, config and, last, the record."""
    from safetensors.torch import save_file

    save_file(state, folder / WEIGHTS)
    config = {key: value for key, value in config.items() if key != "device"} | {"dtype": "float32", "device": "cpu"}
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    for name in (WEIGHTS, CONFIG):
        (folder / name).chmod(0o644)
    files = {
        name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in (WEIGHTS, CONFIG)
    }
    (folder / RECORD).write_text(json.dumps({**record, "files": files}, indent=1) + "\n")


def load(folder: Path, model: TransformerBridge | None = None) -> tuple[Any, dict[str, Any]]:
    """An autoencoder and its record, after its files were compared with the hashes in the record.

    Args:
        model: if given, width and layer have to fit it.

    Returns:
        A sae-lens `TopKSAE` in float32, gradients off, and the record.

    Raises:
        SaeError: files that are missing or altered, or a model that it does not fit.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        wrong = [name for name in (WEIGHTS, CONFIG) if sha256(folder / name) != record["files"][name]["sha256"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SaeError(
            f"{folder} holds no autoencoder that can be read ({error}): train it again", see="autoencoder-unreadable"
        ) from error
    if wrong:
        raise SaeError(
            f"{', '.join(wrong)} in {folder} was altered: its hash is not the one in {RECORD}; restore it",
            see="file-altered",
        )
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = SAE.load_from_disk(folder, dtype="float32").eval().requires_grad_(False)
    if model is not None:
        from labcode.sae.evaluate import check_fits

        check_fits(sae, model, layer_of(sae))
    return sae, record


def layer_of(sae: Any) -> int:
    """The block whose output this autoencoder reads.

    Raises:
        SaeError: its hook is none of ours.
    """
    name = str(sae.cfg.metadata.hook_name)
    if not (name.startswith("blocks.") and name.endswith(".hook_out")):
        raise SaeError(
            f"this autoencoder reads {name!r}; the lab's read blocks.N.hook_out", see="autoencoder-elsewhere"
        )
    return int(name.split(".")[1])


def _take_place(aside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)
