"""Variants of the task that ought to be hard for a model that only looks for a repeated name.

Each variant is an edit of the same two-sentence prompts, so that every varied prompt has a plain twin with the same
names, place and object:

    Then John and Mary went to the store. John gave a drink to                        plain
    Then John and Mary went to the store. Mary had a good day. John gave a drink to   extra IO

The result is a `prompts.Population`, and every metric works on it. What it calls IO, S1, S2 and END is found in the new
text; an extra name has a position of its own, "extra".

Used in chapter 11.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from labcode.errors import PromptError
from labcode.prompts import Population, Prompt, single_token_names
from labcode.rarenames import rare_names

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FRAMES = (
    "Then {A} and {B} went to the {place}. {S} gave a {object} to",
    "Yesterday {A} and {B} met at the {place}. {S} handed the {object} to",
    "Last week {A} and {B} visited the {place}. {S} showed the {object} to",
    "After lunch {A} and {B} walked to the {place}. {S} passed the {object} to",
    "This morning {A} and {B} waited at the {place}. {S} offered the {object} to",
    "Later {A} and {B} came home from the {place}. {S} brought the {object} to",
)
"""Frames of two sentences, as in Wang et al. 2022, section 4.4: a third fits between them."""

FILLERS = (
    "It was a good day.",
    "The weather was fine.",
    "Nobody was in a hurry.",
    "Music came from a window.",
    "The streets were empty.",
    "A bus went by.",
    "The air smelled of rain.",
    "Somewhere a dog barked.",
)
"""Sentences without a person's name, to lengthen the way from S1 to S2."""


@dataclass(frozen=True)
class Variant:
    """What a variant is called, what it asks, and how it edits a text.

    Attributes:
        edit: from text, IO, S and a third name to the new text.
        extra: which name is added: "IO", "S", "third", or "" for none.
        giver: who gives, and so stands at S2: "S" or "third".
        rare: both names are replaced by names of several tokens first.
    """

    title: str
    question: str
    edit: Callable[[str, str, str, str], str]
    extra: str = ""
    giver: str = "S"
    rare: bool = False


def _between(sentence: str) -> Callable[[str, str, str, str], str]:
    def edit(text: str, io: str, s: str, third: str) -> str:
        first, last = text.split(". ", 1)
        return f"{first}. {sentence.format(IO=io, S=s, third=third)} {last}"

    return edit


def _three(text: str, io: str, s: str, third: str) -> str:
    for first, second in ((io, s), (s, io)):
        text = text.replace(f" {first} and {second} ", f" {first}, {second} and {third} ", 1)
    return text


def _fresh(text: str, io: str, s: str, third: str) -> str:
    first, last = text.rsplit(f" {s} ", 1)
    return f"{first} {third} {last}"


VARIANTS: dict[str, Variant] = {
    "plain": Variant("unchanged", "the two sentences by themselves", lambda text, io, s, third: text),
    "no name": Variant("one more sentence, no name", "does another sentence hurt as such?", _between(FILLERS[0])),
    "extra S": Variant("S once more", "does more repetition help?", _between("{S} had a good day."), "S"),
    "extra IO": Variant("IO once more", "what if both names are repeated?", _between("{IO} had a good day."), "IO"),
    "third between": Variant(
        "a third name between", "does a name in the way hurt?", _between("{third} had a good day."), "third"
    ),
    "three names": Variant("three names", "what if two names are left to choose from?", _three, "third"),
    "fresh name": Variant("a fresh name gives", "what if no name is repeated?", _fresh, giver="third"),
    "rare names": Variant(
        "rare names", "does it work for names of several tokens?", lambda text, io, s, third: text, rare=True
    ),
    "trailing space": Variant(
        "a space at the end", "what if the answer's space is already there?", lambda text, io, s, third: text + " "
    ),
}


def vary(model: TransformerBridge, pop: Population, name: str, seed: int = 0) -> Population:
    """A variant of two-sentence prompts, prompt by prompt; third and rare names are drawn once for each draw.

    Args:
        pop: prompts of `FRAMES`, as `prompts.population(model, n, templates=FRAMES)` makes them.
        name: key of `VARIANTS`.

    Returns:
        A population marked by its `corruption`, with right answers `io_ids` and `s_ids` as the variant needs them: the
        first token of a rare name; after a trailing space the first token of the name without a space.

    Raises:
        PromptError: an unknown variant; prompts of one sentence, or edited already; no name left to draw; two rare
            names that cannot be told apart by their first tokens.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 4.4, for the extra mentions. Limits: the first token of a rare
    name may begin other words too, so P(IO) counts those in. After a space, two names may begin with the same token:
    such prompts have a logit difference of 0, and `distinct` leaves them out.

    Used in chapter 11.
    """
    if name not in VARIANTS:
        raise PromptError(f"unknown variant {name!r}: choose among {', '.join(VARIANTS)}", see="unknown-variant")
    variant, prompts, thirds = VARIANTS[name], [], []
    names, rare = single_token_names(model)[0], rare_names(model) if VARIANTS[name].rare else []
    for prompt in _fit(pop):
        rng = random.Random(f"{seed} {prompt.draw}")
        free = [other for other in names if other not in (prompt.io, prompt.s)]
        if not free:
            raise PromptError(
                f"no third name is left beside {prompt.io} and {prompt.s}: this tokenizer has too few",
                see="too-few-names",
            )
        third, text, io, s = rng.choice(free), prompt.text, prompt.io, prompt.s
        if variant.rare:
            pair = rng.sample(rare, 2)  # the same for both roles, whoever is IO
            io, s = pair if io < s else pair[::-1]
            text = _rename(text, {prompt.io: io, prompt.s: s})
        text = variant.edit(text, io, s, third)
        prompts.append(replace(prompt, text=text, io=io, s=s))
        thirds.append(third)
    space = "" if name == "trailing space" else " "
    return _build(model, prompts, thirds, variant, pop.dropped_names, name, space)


def gap(model: TransformerBridge, pop: Population, sentences: int) -> Population:
    """Two-sentence prompts with some of `FILLERS` between the sentences: a longer way from S1 to S2.

    Raises:
        PromptError: fewer than none or more than `FILLERS` has; prompts as in `vary`.

    Used in chapter 11.
    """
    if not 0 <= sentences <= len(FILLERS):
        raise PromptError(
            f"{sentences} filler sentences asked for: there are {len(FILLERS)}, so take 0 to that many",
            see="filler-sentences",
        )
    prompts = _fit(pop)
    if sentences:
        edit = _between(" ".join(FILLERS[:sentences]))
        prompts = [replace(prompt, text=edit(prompt.text, prompt.io, prompt.s, "")) for prompt in prompts]
    variant = VARIANTS["plain"]
    return _build(model, prompts, [""] * len(prompts), variant, pop.dropped_names, f"{sentences} fillers")


def _fit(pop: Population) -> list[Prompt]:
    if pop.corruption:
        raise PromptError(
            f"these prompts are edited already ({pop.corruption!r}): take the clean population", see="corrupted-twice"
        )
    for prompt in pop.prompts:
        if prompt.text.count(". ") != 1:
            raise PromptError(
                f"{prompt.text!r} is not two sentences, so nothing fits between them: draw the prompts with "
                "prompts.population(model, n, templates=breakage.FRAMES)",
                see="not-two-sentences",
            )
    return list(pop.prompts)


def _rename(text: str, names: dict[str, str]) -> str:
    return " ".join(names.get(word, word) for word in text.split(" "))


def _build(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    thirds: Sequence[str],
    variant: Variant,
    dropped: tuple[str, ...],
    name: str,
    space: str = " ",
) -> Population:
    """Tokenise, and find each name where it stands; a name of several tokens stands at its first one."""
    bos = model.tokenizer.bos_token_id

    def ids(text: str) -> list[int]:
        return [int(token) for token in model.tokenizer.encode(text, add_special_tokens=False)]

    rows, found, answers = [], [], []
    for prompt, third in zip(prompts, thirds, strict=True):
        row = [bos, *ids(prompt.text)]
        who = {"IO": prompt.io, "S": prompt.s, "third": third}
        at = {key: _places(row, ids(" " + name)) for key, name in who.items() if name}
        if not at["IO"] or not at["S"] or not at[variant.giver]:
            raise PromptError(
                f"{prompt.io}, {prompt.s} or the giver is not found in {prompt.text!r} as tokens", see="giver-not-found"
            )
        s1 = at["S"][0]
        places = {"IO": at["IO"][0], "S1": s1, "S1+1": s1 + len(ids(" " + prompt.s)), "S2": at[variant.giver][-1]}
        if variant.extra:
            # An extra IO is its second mention, an extra S the one in the middle, a third name stands there once.
            places["extra"] = at[variant.extra][0 if variant.extra == "third" else 1]
        rows.append(row)
        found.append(places | {"END": len(row) - 1})
        answers.append((ids(space + prompt.io)[0], ids(space + prompt.s)[0]))
    width = max(map(len, rows))
    return Population(
        prompts=tuple(prompts),
        tokens=torch.tensor([row + [bos] * (width - len(row)) for row in rows]),
        lengths=torch.tensor([len(row) for row in rows]),
        positions={key: torch.tensor([places[key] for places in found]) for key in found[0]},
        io_ids=torch.tensor([io for io, _ in answers]),
        s_ids=torch.tensor([s for _, s in answers]),
        str_tokens=tuple(tuple(model.tokenizer.decode([i]) for i in row) for row in rows),
        dropped_names=dropped,
        corruption=name,
    )


def _places(row: list[int], name: list[int]) -> list[int]:
    return [i for i in range(len(row)) if row[i : i + len(name)] == name]
