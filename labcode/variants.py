"""Prompts changed on purpose: variants of the task, names of several tokens, and the two signals of a repeated name.

Three kinds of change, each made on a whole population and as a `prompts.Population`, so that every metric works on it:

* `vary` and `gap` edit two-sentence prompts so that they ought to be hard for a model that only looks for a repeated
  name. Every varied prompt has a plain twin with the same names, place and object; what it calls IO, S1, S2 and END is
  found in the new text, and an extra name has a position of its own, "extra".

      Then John and Mary went to the store. John gave a drink to                        plain
      Then John and Mary went to the store. Mary had a good day. John gave a drink to   extra IO

* `rare_names` are several tokens each. The logit difference compares single tokens, so for them it can only compare the
  first ones; `log_probability` takes the whole name, and needs one more run for each.
* `signal_variant` changes which name was repeated, or where it first stood, and keeps the other. A head that tells the
  writers who the subject is can say its *name* (token signal) or its *place*, first or second of the two (position
  signal); `patching.exchange` takes its output from such prompts, `fit_signals` weighs the two (Wang et al. 2022,
  appendix A).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from labcode.errors import PromptError
from labcode.inputs import guard
from labcode.progress import progress
from labcode.prompts import NAMES, Population, Prompt, fresh_names, padded, renamed, single_token_names

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
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
    """
    if name not in VARIANTS:
        raise PromptError(f"unknown variant {name!r}: choose among {', '.join(VARIANTS)}")
    variant, prompts, thirds = VARIANTS[name], [], []
    names, rare = single_token_names(model)[0], rare_names(model) if VARIANTS[name].rare else []
    for prompt in _fit(pop):
        rng = random.Random(f"{seed} {prompt.draw}")
        free = [other for other in names if other not in (prompt.io, prompt.s)]
        if not free:
            raise PromptError(f"no third name is left beside {prompt.io} and {prompt.s}: this tokenizer has too few")
        third, text, io, s = rng.choice(free), prompt.text, prompt.io, prompt.s
        if variant.rare:
            pair = rng.sample(rare, 2)  # the same for both roles, whoever is IO
            io, s = pair if io < s else pair[::-1]
            text = _rename(text, {prompt.io: io, prompt.s: s})
        text = variant.edit(text, io, s, third)
        prompts.append(replace(prompt, text=text, io=io, s=s))
        thirds.append(third)
    space = "" if name == "trailing space" else " "
    return _build(model, prompts, thirds, variant, name, space)


def gap(model: TransformerBridge, pop: Population, sentences: int) -> Population:
    """Two-sentence prompts with some of `FILLERS` between the sentences: a longer way from S1 to S2.

    Raises:
        PromptError: fewer than none or more than `FILLERS` has; prompts as in `vary`.
    """
    if not 0 <= sentences <= len(FILLERS):
        raise PromptError(f"{sentences} filler sentences asked for: there are {len(FILLERS)}, so take 0 to that many")
    prompts = _fit(pop)
    if sentences:
        edit = _between(" ".join(FILLERS[:sentences]))
        prompts = [replace(prompt, text=edit(prompt.text, prompt.io, prompt.s, "")) for prompt in prompts]
    variant = VARIANTS["plain"]
    return _build(model, prompts, [""] * len(prompts), variant, f"{sentences} fillers")


def _fit(pop: Population) -> list[Prompt]:
    if pop.corruption:
        raise PromptError(f"these prompts are edited already ({pop.corruption!r}): take the clean population")
    for prompt in pop.prompts:
        if prompt.text.count(". ") != 1:
            raise PromptError(
                f"{prompt.text!r} is not two sentences, so nothing fits between them: draw the prompts with "
                "prompts.population(model, n, templates=variants.FRAMES)"
            )
    return list(pop.prompts)


def _rename(text: str, names: dict[str, str]) -> str:
    return " ".join(names.get(word, word) for word in text.split(" "))


def _build(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    thirds: Sequence[str],
    variant: Variant,
    name: str,
    space: str = " ",
) -> Population:
    """Tokenise, and find each name where it stands; a name of several tokens stands at its first one."""

    def ids(text: str) -> list[int]:
        return [int(token) for token in model.tokenizer.encode(text, add_special_tokens=False)]

    rows, found, answers = [], [], []
    for prompt, third in zip(prompts, thirds, strict=True):
        row = [model.tokenizer.bos_token_id, *ids(prompt.text)]
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
    return padded(model, prompts, rows, found, answers, name)


def _places(row: list[int], name: list[int]) -> list[int]:
    return [i for i in range(len(row)) if row[i : i + len(name)] == name]


RARE = (
    "Bartholomew Wilhelmina Thaddeus Persephone Cornelius Evangeline Leopoldine Nebuchadnezzar Ottoline Zebediah "
    "Hildegarde Ezekiel Guinevere Montgomery Octavius Radomir Ferdinanda Yolanthe Quintilian Anneliese"
).split()
"""Names that tokenizers tend to split; which ones this tokenizer does split is found, not assumed."""


def rare_names(model: TransformerBridge) -> list[str]:
    """Names that are several tokens here, no two with the same first token.

    Raises:
        PromptError: fewer than two.
    """
    found: dict[int, str] = {}
    for name in (*RARE, *NAMES):
        ids = model.tokenizer.encode(" " + name, add_special_tokens=False)
        if len(ids) > 1:
            found.setdefault(ids[0], name)
    if len(found) < 2:
        raise PromptError(f"{len(found)} names of several tokens that differ in the first: two are needed, extend RARE")
    return list(found.values())


def distinct(pop: Population) -> list[int]:
    """The prompts whose two answers begin with different tokens: on others no logit can tell them apart."""
    return (pop.io_ids != pop.s_ids).nonzero().flatten().tolist()


def log_probability(
    model: TransformerBridge, pop: Population, words: Sequence[str], batch_size: int = 16
) -> Float[Tensor, " batch"]:
    """The log-probability, in nats, of a whole continuation of each prompt, however many tokens it has.

    Args:
        words: one for each prompt, with its space (" Bartholomew").

    Raises:
        PromptError: another number of words than prompts, or an empty word.
    """
    if len(words) != len(pop) or not all(words):
        raise PromptError(f"{len(words)} continuations for {len(pop)} prompts: give one to each, none of them empty")
    added = [model.tokenizer.encode(word, add_special_tokens=False) for word in words]
    found = []
    for piece in progress([range(i, min(i + batch_size, len(pop))) for i in range(0, len(pop), batch_size)], "names"):
        rows = [[*pop.tokens[i, : pop.lengths[i]].tolist(), *added[i]] for i in piece]
        width = max(map(len, rows))
        padded = torch.tensor([row + [row[0]] * (width - len(row)) for row in rows])
        with torch.no_grad():
            logits = model(padded.to(model.cfg.device), return_type="logits").float()
        for row, i in enumerate(piece):
            where = torch.arange(len(added[i])) + int(pop.lengths[i]) - 1  # a token is predicted one place before it
            chosen = logits[row, where].log_softmax(-1)[range(len(where)), added[i]]
            found.append(chosen.sum())
    return torch.stack(found)


TOKEN = {"original": 1.0, "random": 0.0, "inverted": -1.0}
"""The names of a variant, and the value that the token signal has there in the fit."""
POSITION = {"original": 1.0, "inverted": -1.0}
"""The place of the repeated name in a variant, and the value that the position signal has there."""


def signal_variant(model: TransformerBridge, pop: Population, token: str, position: str, seed: int = 0) -> Population:
    """The same prompts with another repeated name, or with the same name first in the other place, or both.

    For "When John and Mary …, John …", S John and IO Mary:

    ========  ========  =============================  ===============================================
    token     position  prompt
    ========  ========  =============================  ===============================================
    original  original  John and Mary …, John
    original  inverted  Mary and John …, John          the same name, its first mention elsewhere
    random    original  Alice and Bob …, Alice         other names, the repeated one in the same place
    random    inverted  Bob and Alice …, Alice
    inverted  original  Mary and John …, Mary          IO is the repeated one, in the place of S
    inverted  inverted  John and Mary …, Mary          `prompts.corrupt(model, pop, "swap")`
    ========  ========  =============================  ===============================================

    Returns:
        Prompts aligned with `pop` token by token. Right answers and named positions stay those of `pop`.

    Raises:
        PromptError: an unknown token or position; prompts that are corrupted already; fewer than four usable names.
    """
    if token not in TOKEN or position not in POSITION:
        raise PromptError(
            f"no variant with {token!r} token and {position!r} position: choose a token among {', '.join(TOKEN)} "
            f"and a position among {', '.join(POSITION)}"
        )
    if pop.corruption:
        raise PromptError(f"these prompts are changed already ({pop.corruption!r}): start from the clean population")
    repeated, other = (pop.io_ids, pop.s_ids) if token == "inverted" else (pop.s_ids, pop.io_ids)
    if token == "random":
        repeated, other = fresh_names(model, pop, 2, seed).unbind(-1)
    first, second = (repeated, other) if position == "original" else (other, repeated)
    ids = {"S1": first, "IO": second, "S2": repeated}
    return renamed(model, pop, ids, f"{token} token, {position} position")


def fit_signals(values: Mapping[tuple[str, str], Float[Tensor, " batch"]]) -> dict[str, Float[Tensor, " batch"]]:
    """The least-squares line, constant + a · position + b · token, of each prompt.

    Args:
        values: for each (token, position) the logit difference of every prompt.

    Returns:
        "position", "token" and "constant" for each prompt, in the unit of the values; since the fit is linear, their
        means are the fit of the means. "residual" is the root mean square of what each prompt's line misses.

    Raises:
        PromptError: too few variants to tell the three apart.
    """
    design = torch.tensor([[POSITION[position], TOKEN[token], 1.0] for token, position in values])
    if len(design) == 0 or int(torch.linalg.matrix_rank(design)) < 3:
        raise PromptError(f"{len(values)} variants cannot tell position, token and constant apart: take all six")
    table = torch.stack([value.float() for value in values.values()])  # [variant batch]
    weights = torch.linalg.lstsq(design, table).solution
    missed = (table - design @ weights).square().mean(0).sqrt()
    return dict(zip(("position", "token", "constant"), weights, strict=True)) | {"residual": missed}


guard(globals(), PromptError)
