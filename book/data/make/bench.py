"""Record the patch bench: `python -m labbook.data.make.bench`.

For each pair of sentences every patch of four kinds in both directions, by the sweep engine: the logit difference and
the five likeliest next tokens. The page *The patch bench* shows them without a kernel. With `--task FILE` the pairs are
those of a reader's own task, and what is made is one page that holds all it needs.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labbook.data.make import command, run
from labcode import corpus, models, patching, prompts, sealed, tasks
from labcode.errors import PromptError
from labcode.models import say

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.patching import Direction, Kind
    from labcode.prompts import Population

OUT = corpus.DATA / "bench"
KINDS: tuple[Kind, ...] = ("resid_pre", "attn_out", "mlp_out", "z")
DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
TOP = 5
LEAST = 0.5  # nats between the two runs of a reader's pair: with less, shares of the way are shares of nothing
UNIT = 1000  # logit differences, probabilities and shares are written as thousandths


@dataclass(frozen=True)
class Pair:
    """A pair of the bench.

    Attributes:
        name: of its file. title: for readers.
        clean, corrupted: one prompt each, aligned.
        frame: the sentence frame over whose prompts the same patches are averaged, or -1.
    """

    name: str
    title: str
    clean: Population
    corrupted: Population
    frame: int = -1


def book_pairs(model: TransformerBridge) -> Iterator[Pair]:
    """The pairs that the book shows. The model leads clearly on the clean sentence of each."""
    mary = prompts.canonical(model)
    text = prompts.TEMPLATES[1].format(A="Anna", B="Tom", S="Tom", place="park", object="ring")
    anna = prompts.build(model, [prompts.Prompt(text, "Anna", "Tom", "ABBA", template=1)])
    lisa = torch.tensor([prompts.token_id(model, " Lisa")])
    yield Pair("swap-mary", "Roles swapped: Mary and John", mary, prompts.corrupt(model, mary, "swap"), 0)
    yield Pair("swap-anna", "Roles swapped: Anna and Tom", anna, prompts.corrupt(model, anna, "swap"), 1)
    yield Pair("three-names", "Three other names", mary, prompts.corrupt(model, mary, "abc", seed=2))
    first = prompts.renamed(model, mary, {"S1": lisa}, "another name at S1")
    yield Pair("first-name", "Another name at the first mention", mary, first)
    city = "The capital of {} is the city of"
    tired, there = "I think that {} is very tired, isn't", "My friend {} was there too, wasn't"
    others = (
        ("capital-france", "Capitals: France and Italy", city, "France", "Italy", " Paris", " Rome"),
        ("capital-japan", "Capitals: Japan and China", city, "Japan", "China", " Tokyo", " Beijing"),
        ("pronoun-lisa", "Pronoun: Lisa and Mark", tired, "Lisa", "Mark", " she", " he"),
        ("pronoun-sarah", "Pronoun: Sarah and David", there, "Sarah", "David", " she", " he"),
    )
    for name, title, frame, one, other, right, wrong in others:
        pair = tasks.Pair(frame.format(one), frame.format(other), right, wrong)
        yield Pair(name, title, *tasks.populations(model, tasks.Task(title, "", (pair,))))


def task_pairs(model: TransformerBridge, task: tasks.Task) -> Iterator[Pair]:
    """The pairs of a reader's task."""
    clean, corrupted = tasks.populations(model, task)
    for number, pair in enumerate(task.pairs):
        words = re.sub(r"\W+", "-", pair.clean.lower()).strip("-")[-24:].strip("-")
        title = f"{number + 1}. {pair.clean}"
        yield Pair(f"pair-{number + 1}-{words}", title, clean.subset([number]), corrupted.subset([number]))


class Kept:
    """A metric that keeps what a reader wants to see of each run, and whose value is the number under which it lies.

    So the grid of a sweep says which entry belongs to which cell, in whatever order the engine runs them.
    """

    def __init__(self) -> None:
        self.difference: list[float] = []
        self.tokens: list[list[int]] = []
        self.shares: list[list[float]] = []

    def __call__(self, logits: Float[Tensor, "batch d_vocab"], clean: Population) -> Float[Tensor, " batch"]:
        """Keep these runs; the numbers of their entries."""
        rows, first = torch.arange(len(logits)), len(self.difference)
        best = logits.topk(TOP)
        shares = (best.values - logits.logsumexp(-1, keepdim=True)).exp()
        self.difference += (logits[rows, clean.io_ids] - logits[rows, clean.s_ids]).tolist()
        self.tokens += best.indices.tolist()
        self.shares += shares.tolist()
        return (first + rows).double()


def thousandths(values: Sequence[float]) -> list[int]:
    """Each value in thousandths."""
    return [round(UNIT * value) for value in values]


def record(model: TransformerBridge, pair: Pair, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """All patches of a pair.

    `words` are the tokens that any run has among its five likeliest; `top` counts in them, five for each cell. Cells
    stand in row-major order, layer by layer; the columns of a stream begin at `start`, the first token that differs:
    before it nothing can be patched.
    """
    clean, corrupted = pair.clean, pair.corrupted
    start = int(patching.first_difference(clean, corrupted)[0])
    runs, kept = patching.Runs(model), Kept()
    words: dict[int, int] = {}

    def entries(numbers: Tensor) -> dict[str, list[int]]:
        chosen = numbers.long().flatten().tolist()
        return {
            "diff": thousandths([kept.difference[i] for i in chosen]),
            "top": [words.setdefault(token, len(words)) for i in chosen for token in kept.tokens[i]],
            "share": thousandths([share for i in chosen for share in kept.shares[i]]),
        }

    cells: dict[str, Any] = {}
    for kind in KINDS:
        cells[kind] = {}
        for direction in DIRECTIONS:
            grid = patching.sweep(
                *(model, clean, corrupted, kind),
                at="all" if kind == "z" else "each",
                direction=direction,
                layers=layers,
                metric=kept,
                runs=runs,
            )
            cells[kind][direction] = entries(grid.values[:, :, 0] if kind == "z" else grid.values[:, start:, 0])
            ends = {"clean": entries(grid.clean), "corrupted": entries(grid.corrupted)}
    read = model.tokenizer.decode
    return {
        "name": pair.name,
        "title": pair.title,
        "clean": list(clean.str_tokens[0]),
        "corrupted": list(corrupted.str_tokens[0]),
        "answers": [read([int(clean.io_ids[0])]), read([int(clean.s_ids[0])])],
        "start": start,
        "layers": list(range(model.cfg.n_layers) if layers is None else layers),
        "heads": model.cfg.n_heads,
        "runs": ends,
        "cells": cells,
        "words": [read([token]) for token in words],
    }


def averages(model: TransformerBridge, pair: Pair, draws: int, seed: int = 41) -> dict[str, Any]:
    """What the same patches do on average over prompts of the pair's frame: the share of the way, with its interval.

    Each draw is a sentence with either name as the subject, and the swap of one is the other. So a patch of clean
    activations into the corrupted run of one is the patch of corrupted activations into the clean run of the other,
    and the means hold for both directions.
    """
    names = prompts.single_token_names(model)[0]
    template = (prompts.TEMPLATES[pair.frame],)
    pop = prompts.population(model, 4 * draws, seed, template, names, exact=True)
    as_long = [i for i, length in enumerate(pop.lengths.tolist()) if length == int(pair.clean.lengths[0])]
    pop = pop.subset(as_long[: 2 * draws])
    corrupted, runs = prompts.corrupt(model, pop, "swap"), patching.Runs(model)
    start = int(patching.first_difference(pop, corrupted)[0])
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        grid = patching.sweep(model, pop, corrupted, kind, at="all" if kind == "z" else "each", runs=runs)
        parts = (grid.mean(), *grid.bounds())
        chosen = [part if kind == "z" else part[:, start:] for part in parts]
        kinds[kind] = {
            key: thousandths(part.flatten().tolist()) for key, part in zip(("mean", "low", "high"), chosen, strict=True)
        }
    return {"prompts": len(pop), "pairs": len(pop.draws.unique()), "kinds": kinds}


def made_by(model: TransformerBridge, how: str) -> dict[str, Any]:
    """What a record says about where it comes from."""
    return {
        "model": Path(str(model.cfg.model_name)).name,
        "weights": models.weights_key(model),
        "versions": {name: metadata.version(name) for name in ("torch", "transformer-lens")},
        "command": how,
    }


def make(options: Namespace) -> None:
    """Measure, write: the book's pairs, or the page of a task."""
    task = tasks.load(options.task) if options.task else None  # before the model: a typing mistake shows at once
    model = models.load()
    if task is not None:
        write_page(model, task, Path(options.out))
        return
    how = command("bench", options, "task", "out", "only")
    pairs = [pair for pair in book_pairs(model) if not options.only or pair.name in options.only]
    OUT.mkdir(exist_ok=True)
    for pair in pairs:
        sealed.write(OUT / f"{pair.name}.json", {**made_by(model, how), **record(model, pair)}, indent=None)
        say(f"recorded {pair.title}")
    for pair in pairs:
        if pair.frame < 0 or not options.draws:
            continue
        path = OUT / f"{pair.name}.json"
        known = sealed.read(path)
        sealed.write(path, {**known, "average": averages(model, pair, options.draws)}, indent=None)
        say(f"averaged over sentences like {pair.title}")


def write_page(model: TransformerBridge, task: tasks.Task, out: Path) -> None:
    """The bench of a task as one file that needs no other."""
    from labbook.show import bench

    origin = made_by(model, "make patch-bench")
    found: list[dict[str, Any]] = []
    for pair in task_pairs(model, task):
        found.append({**origin, **record(model, pair)})
        clean, corrupted = bench.ends(found[-1])
        if clean - corrupted < LEAST:
            right, wrong = found[-1]["answers"]
            raise PromptError(
                f"{pair.title!r}: {right!r} leads {wrong!r} by {clean:+.2f} nats after the clean sentence and by "
                f"{corrupted:+.2f} after the corrupted one. This model does not tell the two apart, so no patch can "
                "bring anything back: choose other sentences or other answers"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(bench.standalone(task.name, task.question, found), encoding="utf8")
    say(f"the bench of {task.name!r} is in {out}: open it in a browser")


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m labbook.data.make.bench", description=str(__doc__).splitlines()[0])
    parser.add_argument("--draws", type=int, default=12, help="sentences for the averages (default %(default)s)")
    parser.add_argument("--only", nargs="*", help="only the pairs of these names")
    parser.add_argument("--task", help="a TOML file with pairs of your own: make a page of these instead")
    parser.add_argument("--out", default="_build/patch-bench.html", help="where that page goes (default %(default)s)")
    sys.exit(run(parser, make))
