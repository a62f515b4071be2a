"""Model folders for tests: the shapes of GPT-2 and Llama with random weights and the embedded model's tokenizer.

Every weight is random, the norms' scales and all biases too: an identity scale or a zero bias would let a measurement
that forgets them pass. The seeds are fixed, so that a test fails today as it did yesterday.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from labcode import models

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def copy_tokenizer(folder: Path) -> int:
    """Put the embedded model's tokenizer into a folder; returns the size of its vocabulary."""
    source = models.prepare("smollm2").folder
    assert source is not None
    for name in TOKENIZER:
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


def write_gpt2(
    folder: Path,
    *,
    n_layer: int = 3,
    n_head: int = 4,
    n_embd: int = 48,
    n_positions: int = 128,
    std: float = 0.15,
    seed: int = 0,
) -> Path:
    """A GPT-2-shaped model: LayerNorm, learned positions, biases everywhere, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True, exist_ok=True)
    config = GPT2Config(
        vocab_size=copy_tokenizer(folder),
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        n_positions=n_positions,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config)
    randomise(model, std, seed)
    model.save_pretrained(folder)
    return folder


def write_llama(folder: Path, *, n_layer: int = 3, d_model: int = 48, std: float = 0.15, seed: int = 1) -> Path:
    """A Llama-shaped model: RMSNorm, rotary positions, four heads that share two keys and values, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=copy_tokenizer(folder),
        hidden_size=d_model,
        intermediate_size=3 * d_model,
        num_hidden_layers=n_layer,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    randomise(model, std, seed)
    model.save_pretrained(folder)
    return folder


def write_random_gpt2_small(folder: Path) -> Path:
    """Random weights in the shape of GPT-2 small: 12 layers of 12 heads, d_model 768. About 500 MB."""
    return write_gpt2(folder, n_layer=12, n_head=12, n_embd=768, n_positions=1024, std=0.02)
