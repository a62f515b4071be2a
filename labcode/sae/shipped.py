"""The autoencoder that the book ships, or, for a model that it was not trained on, a small one trained on the spot.

Used in chapters 15 and 16.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labcode.models import build_once, cache_dir
from labcode.sae import activations, corpus, files, train
from labcode.sae.errors import SaeError
from labcode.store import weights_key

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

FOLDER = corpus.DATA / "sae-smollm2"
LIVE_SAMPLES = 60_000
LIVE_CONTEXTS = 256
VERSION = 2  # of the live training: raise it when it would give another autoencoder


@dataclass(frozen=True)
class Shipped:
    """An autoencoder for this run's model.

    Attributes:
        sae: a sae-lens `TopKSAE`. layer: the block whose output it reads.
        record: how it was trained. live: whether it was trained on this machine because none is shipped for the model.
        center: mean of the vectors it was trained on.
    """

    sae: Any
    layer: int
    record: dict[str, Any]
    live: bool
    center: Float[Tensor, " d_model"]


def get(model: TransformerBridge, text: corpus.Corpus | None = None) -> Shipped:
    """The shipped autoencoder if it was trained on exactly this model, else a small one, trained now and kept.

    A live one has the same shape of recipe, fewer latents and less data: enough to run the chapters, not to judge by.

    Raises:
        SaeError: files that are missing or altered.

    Used in chapters 14 to 16.
    """
    mark = weights_key(model)
    if (FOLDER / files.RECORD).exists():
        record = json.loads((FOLDER / files.RECORD).read_text())
        if record.get("weights") == mark:
            sae, record = files.load(FOLDER, model)
            return _shipped(sae, record, live=False)
    text = corpus.load(model) if text is None else text
    parts, _ = text.split()
    parts = parts[:LIVE_CONTEXTS]
    target = cache_dir() / "sae" / f"{mark[:16]}-{len(parts)}-v{VERSION}"

    def build(aside: Path) -> None:
        layer = activations.choose_layer(model, parts[:16]).layer
        data = activations.collect(model, parts, layer)
        batch = min(512, len(data))
        made = train.train(data, d_sae=1024, k=16, samples=min(LIVE_SAMPLES, 8 * len(data)), batch=batch)
        record = {"trained_on": text.written_by, "tokens": len(data), "settings": made.settings}
        record["center"] = [round(value, 5) for value in data.center.tolist()]
        state = {name: value.to(torch.float16).contiguous() for name, value in made.sae.state_dict().items()}
        files.write_files(state, made.sae.cfg.to_dict(), aside, record)

    build_once(target, _readable, build, needs=2**24)
    sae, record = files.load(target, model)
    return _shipped(sae, record, live=True)


def _shipped(sae: Any, record: dict[str, Any], live: bool) -> Shipped:
    return Shipped(sae, files.layer_of(sae), record, live, torch.tensor(record["center"]))


def _readable(folder: Path) -> bool:
    try:
        files.load(folder)
    except SaeError:
        return False
    return True
