"""Text from the hub, for a model whose tokenizer the shipped corpus does not fit: only where the hub answers.

Used in chapter 14, through `labcode.sae.corpus`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from labcode.models import quiet, say
from labcode.sae.writing import LENGTH, tokenizer_key

SOURCE = "NeelNanda/pile-10k"  # ten thousand documents of the Pile (Gao et al. 2020)
PER_DOCUMENT = 2


def from_hub(tokenizer: Any, contexts: int) -> tuple[np.ndarray, dict[str, Any]] | None:
    """So many contexts of `LENGTH` tokens, at most two from the beginning of each document; None without an answer.

    Whatever goes wrong on the way there, the caller has another source: it is said, and is no error.
    """
    try:
        from datasets import load_dataset

        with quiet():
            documents = load_dataset(SOURCE, split="train")
        rows: list[list[int]] = []
        for text in documents["text"]:
            ids = tokenizer.encode(text[: 12 * LENGTH * PER_DOCUMENT], add_special_tokens=False)
            rows += [ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH + 1, LENGTH)][:PER_DOCUMENT]
            if len(rows) >= contexts:
                break
        array = np.array(rows[:contexts], dtype=np.uint32)
    except Exception as error:
        say(f"No text from the hub: {type(error).__name__}: {error}")
        return None
    if array.ndim != 2 or len(array) < 4:
        return None
    return array, {"model": f"the authors of {SOURCE}", "tokenizer": tokenizer_key(tokenizer), "contexts": len(array)}
