"""Seconds of labcode.patching beside those of transformer_lens.patching: CPU time on one thread, or a GPU's time.

    python -m labbook.data.make.benchmark [--quick | --full]

For the embedded model and one with random weights in the shape of GPT-2 small: heads' z at all positions and at END,
and the residual stream by position, on 1 and on 16 prompts. Our time is that of the whole sweep, with the two unpatched
runs and the comparison with the bridge. Theirs is one forward pass for each cell, so it is measured on a random sample
of cells and scaled up; --full times every cell (hours), --quick only a few. The same cells give the largest difference.

Where LAB_DEVICE takes a GPU, both run there and the clock on the wall counts; else it is process time on one thread, so
that other load on the machine hardly matters. It is no test, and never fails for being slow.
The table goes to standard output, the numbers to _build/benchmark/patching.json.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformer_lens import patching as tl

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests"))  # they can make a random model
import folders

from labcode import models, prompts, sealed
from labcode.metrics import logit_difference
from labcode.patching import Grid, sweep

OUT = Path("_build/benchmark/patching.json")
SWEEPS: dict[str, tuple[Any, Any]] = {
    "heads' z, all positions": ("z", "all"),
    "heads' z at END": ("z", "END"),
    "residual by position": ("resid_pre", None),
}


def subjects() -> Iterator[tuple[str, Any]]:
    """The models, one after the other, so that one is in memory at a time."""
    yield "SmolLM2-135M", models.load("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        yield "GPT-2 small, random weights", models.load(str(folders.write_random_gpt2_small(Path(folder))))


def clock(model: Any) -> float:
    """Seconds: of this process on the CPU, else of the wall, when the GPU has done what it was given."""
    if torch.device(model.cfg.device).type == "cpu":
        return time.process_time()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(model: Any, clean: Any, corrupted: Any, kind: Any, at: Any) -> tuple[Grid, float]:
    """The whole sweep and its seconds."""
    start = clock(model)
    grid = sweep(model, clean, corrupted, kind, at=at)
    return grid, clock(model) - start


def theirs(
    model: Any, clean: Any, corrupted: Any, kind: str, at: Any, cells: list[tuple[int, ...]]
) -> tuple[Any, float]:
    """Some cells by transformer_lens, [cell], and the seconds for one of them."""
    _, cache = model.run_with_cache(
        clean.tokens.to(model.cfg.device), names_filter=lambda name: name.endswith(("hook_z", "hook_resid_pre"))
    )
    rows = torch.arange(len(clean))

    def positions(place: int) -> Any:
        if at == "all":
            return slice(None)
        return place if at == "each" else clean.positions[at if isinstance(at, str) else at[place]]

    def setter(activation: Any, index: Any, clean_activation: Any) -> Any:
        where = positions(index[-1])
        which: Any = (slice(None) if isinstance(where, slice) else rows, where)
        which = which if kind == "resid_pre" else (*which, index[1])
        activation[which] = clean_activation[which]
        return activation

    def metric(logits: Any) -> Any:
        return logit_difference(logits[rows, clean.end], clean).mean()

    start = clock(model)
    values = tl.generic_activation_patch(
        model,
        corrupted.tokens.to(model.cfg.device),
        cache,
        metric,
        setter,
        kind,
        index_df=pd.DataFrame(cells, columns=range(len(cells[0]))),
    )
    return values.cpu(), (clock(model) - start) / len(cells)


def compare(name: str, model: Any, what: str, n: int, n_timed: int | None) -> dict[str, Any]:
    """One line of the table."""
    kind, at = SWEEPS[what]
    clean = prompts.canonical(model) if n == 1 else prompts.population(model, n)
    corrupted = prompts.corrupt(model, clean, "swap")
    if at is None:
        at = "each" if n == 1 else list(prompts.POSITIONS)
    grid, our_seconds = ours(model, clean, corrupted, kind, at)
    shape = grid.values.shape[:-1]
    order = torch.randperm(shape.numel(), generator=torch.Generator().manual_seed(0))[:n_timed]
    cells = [tuple(int(i) for i in torch.unravel_index(cell, shape)) for cell in order]
    values, seconds = theirs(model, clean, corrupted, kind, at, cells)
    difference = (grid.values.mean(-1).flatten()[order] - values).abs().max()
    return {
        "model": name,
        "sweep": what,
        "prompts": n,
        "cells": shape.numel(),
        "cells_timed": len(cells),
        "ours_cpu_s": round(our_seconds, 3),
        "transformer_lens_cpu_s": round(seconds * shape.numel(), 3),
        "ratio": round(seconds * shape.numel() / our_seconds, 1),
        "largest_difference": float(difference),
    }


def write(rows: list[dict[str, Any]]) -> None:
    """Write the file in one step, so that a build never reads half of it."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "torch": torch.__version__,
        "transformer_lens": version("transformer-lens"),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if models.device_of().startswith("cuda") else models.device_of(),
    }
    sealed.write(OUT, {"threads": 1, **about, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("-k", "--quick", action="store_true", help="time 4 cells of transformer_lens, 1 prompt only")
    effort.add_argument("--full", action="store_true", help="time all cells of transformer_lens")
    options = parser.parse_args()
    n_timed = 4 if options.quick else None if options.full else 24
    torch.set_num_threads(1)
    tl.tqdm = iter  # no progress bars between the lines of the table
    line = "{:28} {:24} {:>7} {:>6} {:>9} {:>18} {:>7} {:>11}"
    print(line.format("model", "sweep", "prompts", "cells", "ours, s", "transformer_lens, s", "ratio", "difference"))
    rows = []
    for name, model in subjects():
        model(prompts.canonical(model).tokens.to(model.cfg.device))
        for what in SWEEPS:
            for n in (1,) if options.quick else (1, 16):
                row = compare(name, model, what, n, n_timed)
                rows.append(row)
                numbers = row["ours_cpu_s"], row["transformer_lens_cpu_s"], row["ratio"]
                print(
                    line.format(name, what, n, row["cells"], *numbers, f"{row['largest_difference']:.1e}"), flush=True
                )
                write(rows)
    print(
        f"Seconds on {models.device_of()}, one thread; transformer_lens timed on {n_timed or 'all'} cells each. {OUT}"
    )


if __name__ == "__main__":
    main()
