"""Fit simple rules to latents on the whole corpus but its test text: `python -m labbook.data.make.readability`.

The codes of the whole corpus take minutes, so what they give is recorded in `book/data/readability.json`: for a random
sample of the shipped autoencoder's latents, and for those that are strong on the canonical prompt, a rule; for the
sample also rules that may say less, and rules for strong firing only. The chapter scores all of these on
the test text itself.

And one comparison that is recorded whole: an autoencoder of the model with shuffled weights, beside one of the model as
it is, both trained with the same recipe and on the same contexts, their latents matched in how often they fire.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labbook.data.make import command, run
from labcode import corpus, latents, models, prompts, readable, sae, sealed
from labcode.models import say

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

PROMPT = 4  # latents of each of its tokens that get a rule
SMALL: dict[str, Any] = {"d_sae": 2304, "k": 32, "batch": 512, "lr": 2e-3}


def make(options: Namespace) -> None:
    """Fit, compare, write."""
    model = models.load()
    text = corpus.load_corpus(model)
    learn, unseen = text.split()
    learn = learn[: options.contexts]
    ready = sae.shipped(model, text)
    acts, new = (sae.collect(model, part, ready.layer) for part in (learn, unseen))
    codes, new_codes = (latents.codes_of(of, ready.sae, part) for of, part in ((acts, learn), (new, unseen)))
    words = readable.Text(learn, lambda i: model.tokenizer.decode([i]))
    can = readable.can_be_tested(codes, new_codes)
    sample = readable.draw(can, options.sample)
    say(f"{int(can.sum())} latents can be tested")
    pop = prompts.canonical(model)
    strong = latents.codes(model, ready.sae, pop.tokens, ready.layer)[0, 1:].topk(PROMPT).indices.flatten().tolist()
    rest = [i for i in dict.fromkeys(strong) if can[i]]
    say("fitting")
    fits = readable.fit_all(codes, words, sample, rest, int(can.sum()))
    say("the model with shuffled weights")
    contexts = learn[: options.small]
    parts = acts.context < len(contexts)
    ours = sae.Activations(acts.values[parts], acts.context[parts], acts.position[parts], 0, acts.median, acts.layer)
    fits.shuffled.update(pair(model, contexts, unseen, ours, new, options))
    record = {
        "model": str(model.cfg.model_name),
        "weights": models.weights_key(model),
        "sae": readable.sae_key(ready.sae),
        "command": command("readability", options, "out"),
        "tokens": len(acts),
        "versions": {
            name: metadata.version(name) for name in ("torch", "transformer-lens", "sae-lens", "snowballstemmer")
        },
    }
    sealed.write(options.out, record | readable.pack(fits))


def shuffle(model: TransformerBridge, seed: int = 0) -> None:
    """Shuffle the entries of every weight matrix in the blocks, in place; embeddings stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.blocks:
            for weight in block.parameters():
                order = torch.randperm(weight.numel(), generator=generator)
                if weight.ndim > 1:
                    weight.copy_(weight.flatten()[order].view_as(weight))


def pair(
    model: TransformerBridge,
    contexts: Tensor,
    unseen: Tensor,
    ours: sae.Activations,
    new: sae.Activations,
    options: Namespace,
) -> dict[str, Any]:
    """How readable latents are on the model and on the model with shuffled weights, trained and read alike.

    A latent has to fire on enough tokens of both texts. A random sample of the model's latents is drawn, and for each
    the latent of the other that fires most nearly as often on the text that trained both, each only once.
    """
    other = models.load()
    shuffle(other)
    words, test = (readable.Text(part, lambda i: model.tokenizer.decode([i])) for part in (contexts, unseen))
    pairs = {
        "model": (ours, new),
        "shuffled": tuple(sae.collect(other, part, ours.layer) for part in (contexts, unseen)),
    }
    codes, explained = {}, {}
    for name, (train, held) in pairs.items():
        made = sae.train(train, **SMALL, samples=options.samples)
        codes[name] = latents.codes_of(train, made.sae, contexts), latents.codes_of(held, made.sae, unseen)
        explained[name] = sae.explained(held.values, rebuilt(made.sae), train.center)
    can = {name: readable.can_be_tested(*of) for name, of in codes.items()}
    chosen = {"model": readable.draw(can["model"], options.pairs)}
    chosen["shuffled"] = nearest(
        codes["model"][0].density[chosen["model"]], codes["shuffled"][0].density, can["shuffled"]
    )
    n = len(chosen["shuffled"])
    scores, kinds = {}, {}
    for name, (train_codes, held_codes) in codes.items():
        found = []
        for i in chosen[name][:n]:
            fires, fires_new = train_codes.of(i) > 0, held_codes.of(i) > 0
            found.append(readable.score(readable.fit(words, fires), test, fires_new))
        scores[name] = readable.Scores.of(found)
        kinds[name] = [one.kind for one in found]
    ahead = readable.interval(scores["model"], scores["shuffled"])
    return {
        "contexts": len(contexts),
        "settings": {**SMALL, "samples": options.samples},
        "explained": {name: round(value, 4) for name, value in explained.items()},
        "testable": {name: int(mask.sum()) for name, mask in can.items()},
        "density": {name: round(float(codes[name][0].density[chosen[name][:n]].median()), 5) for name in codes},
        "f1": {name: [round(value, 4) for value in of.f1.tolist()] for name, of in scores.items()},
        "kinds": {name: {kind: of.count(kind) for kind in readable.KINDS} for name, of in kinds.items()},
        "mean": {name: _ends(readable.interval(of)) for name, of in scores.items()},
        "ahead": _ends(ahead),
    }


def rebuilt(autoencoder: Any) -> sae.Replace:
    """What an autoencoder makes of vectors."""
    return lambda x: autoencoder.decode(autoencoder.encode(x))


def nearest(wanted: Tensor, density: Tensor, can: Tensor) -> list[int]:
    """For each wanted density the free latent whose own is nearest on a logarithmic scale, until none is left."""
    free = torch.where(can, density.clamp(min=1e-9).log(), torch.inf)
    found = []
    for one in wanted[: int(can.sum())].tolist():
        gap = (free - torch.tensor(one).log()).abs()
        found.append(int(gap.argmin()))
        free[found[-1]] = torch.inf
    return found


def _ends(one: Any) -> list[float]:
    return [round(one.mean, 4), round(one.low, 4), round(one.high, 4)]


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m labbook.data.make.readability", description=str(__doc__).splitlines()[0])
    parser.add_argument("--contexts", type=int, default=10**6, help="fit on the first so many (default: all)")
    parser.add_argument("--sample", type=int, default=300, help="latents for all questions (default %(default)s)")
    parser.add_argument("--small", type=int, default=640, help="contexts of the small pair (default %(default)s)")
    parser.add_argument("--samples", type=int, default=100_000, help="vectors of its training (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=150, help="latents of the pair (default %(default)s)")
    parser.add_argument("--out", type=Path, default=corpus.DATA / readable.RECORD)
    sys.exit(run(parser, make))
