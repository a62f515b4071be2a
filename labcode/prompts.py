"""Prompts of the indirect-object task, as populations whose named positions are found, never typed.

A prompt introduces two names, A and B, and repeats one of them, the subject S. The other is the indirect object IO,
the right next token (Wang et al. 2022, section 2). Five positions have names in every prompt:

    When John and Mary went to the store, John gave a drink to
         S1       IO                      S2                END        and S1+1, the token after S1

A `Population` holds many prompts as one right-padded batch. Attention is causal, so padding after END changes
nothing before it: no mask is needed, and every measurement reads END, not the last column.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from string import Formatter
from typing import TYPE_CHECKING, Literal

import torch

from labcode.errors import PromptError
from labcode.inputs import guard, tokenizer_key

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

POSITIONS = ("IO", "S1", "S1+1", "S2", "END")

CANONICAL = "When {A} and {B} went to the {place}, {S} gave a {object} to"
"""The frame of the literature (Wang et al. 2022; the TransformerLens demos)."""

TEMPLATES = (
    CANONICAL,
    "After {A} and {B} met at the {place}, {S} handed the {object} to",
    "While {A} and {B} were waiting at the {place}, {S} offered the {object} to",
    "Yesterday {A} and {B} walked to the {place}, and {S} passed the {object} to",
    "Because {A} and {B} were alone in the {place}, {S} showed the {object} to",
    "As soon as {A} and {B} had left the {place}, {S} gave the {object} to",
    "The moment {A} and {B} reached the {place}, {S} threw the {object} to",
    "Last week {A} and {B} visited the {place}, where {S} sold a {object} to",
    "Before {A} and {B} went home from the {place}, {S} brought the {object} to",
    "When {A} and {B} were talking outside the {place}, {S} decided to give the {object} to",
)
"""The canonical frame and nine that were written for this book. Articles are such that every object fits."""

PLACES = ("store", "park", "school", "office", "station", "garden", "restaurant", "library", "hospital", "market")
OBJECTS = ("drink", "book", "ring", "letter", "ball", "key", "camera", "coat", "picture", "basket")

NAMES = (
    "Aaron Adam Alan Albert Alex Alice Amanda Amy Andrea Andrew Angela Anna Anne Anthony Arthur Barbara Ben Bill Bob "
    "Brian Carl Carlos Carol Caroline Charles Charlie Chris Christine Claire Clara Daniel Dan David Diana Diane Donald "
    "Dylan Edward Elizabeth Ellen Emily Emma Eric Eva Frank Fred George Grace Graham Hannah Harry Helen Henry Howard "
    "Ian Jack Jacob James Jane Janet Jason Jean Jennifer Jerry Jessica Jim Joan Joe John Jonathan Joseph Joshua Judy "
    "Julia Julie Karen Kate Keith Kelly Kevin Kim Larry Laura Lawrence Lee Linda Lisa Louis Lucy Luke Margaret Maria "
    "Mark Martin Mary Matthew Michael Mike Nancy Nick Oliver Patricia Patrick Paul Peter Philip Rachel Richard Robert "
    "Roger Rose Ryan Sam Samuel Sarah Scott Sean Simon Stephen Steve Susan Thomas Tim Tom Tony Victoria Walter William"
).split()


@dataclass(frozen=True)
class Prompt:
    """One sentence without its last word.

    Attributes:
        text: the sentence up to and including the word before the answer.
        io: the indirect object, the right answer, as a bare name ("Mary").
        s: the subject, the name that occurs twice.
        order: "ABBA" if IO is named before S, "BABA" if S is named first.
        template: index into `TEMPLATES`, or -1 for a sentence of the caller's own.
        draw: prompts that share names, place and object share a draw; the bootstrap resamples draws.
    """

    text: str
    io: str
    s: str
    order: str
    template: int = -1
    draw: int = 0


@dataclass(frozen=True)
class Population:
    """Prompts as one batch, with their named positions.

    Attributes:
        prompts: the clean prompts, in batch order. A corrupted population keeps them: they hold the right answers.
        tokens: token ids, BOS first, padded on the right with BOS.
        lengths: number of tokens of each prompt, BOS included.
        positions: for each name in `POSITIONS`, its index in each prompt, BOS counted as 0.
        io_ids: token id of each prompt's indirect object. s_ids: of its subject.
        str_tokens: the tokens as strings, without padding.
        corruption: "" for the clean prompts, else the `how` of `corrupt`.
        tokenizer: whose numbers `tokens` are, its `inputs.tokenizer_key`; "" where that isn't known.
    """

    prompts: tuple[Prompt, ...]
    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    positions: dict[str, Int[Tensor, " batch"]]
    io_ids: Int[Tensor, " batch"]
    s_ids: Int[Tensor, " batch"]
    str_tokens: tuple[tuple[str, ...], ...]
    corruption: str = ""
    tokenizer: str = ""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def draws(self) -> Int[Tensor, " batch"]:
        """The draw of each prompt: the groups that `metrics.bootstrap` resamples."""
        return torch.tensor([p.draw for p in self.prompts])

    @property
    def end(self) -> Int[Tensor, " batch"]:
        """Position of END in each prompt."""
        return self.positions["END"]

    def subset(self, index: Sequence[int]) -> Population:
        """The prompts at `index`, in that order, without columns that hold padding only.

        Raises:
            PromptError: no prompt, one that isn't there, or a mask of truth values.
        """
        chosen = list(index)
        if not chosen:
            raise PromptError("this selection leaves an empty population: choose at least one prompt")
        if min(chosen) < 0 or max(chosen) >= len(self):
            bad = next(i for i in chosen if not 0 <= i < len(self))
            raise PromptError(f"no prompt {bad}: there are {len(self)}, counted from 0")
        rows = torch.tensor(chosen)
        lengths = self.lengths[rows]
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in chosen),
            tokens=self.tokens[rows, : int(lengths.max())],
            lengths=lengths,
            positions={name: at[rows] for name, at in self.positions.items()},
            io_ids=self.io_ids[rows],
            s_ids=self.s_ids[rows],
            str_tokens=tuple(self.str_tokens[i] for i in chosen),
        )

    def chunks(self, size: int) -> Iterator[Population]:
        """The population in pieces of at most `size` prompts, in order."""
        for start in range(0, len(self), size):
            yield self.subset(range(start, min(start + size, len(self))))


def token_id(model: TransformerBridge, word: str) -> int:
    """The id of `word`, which has to be one token of this model's tokenizer (a leading space counts).

    Raises:
        PromptError: if it is several tokens; the message lists them.
    """
    ids = model.tokenizer.encode(word, add_special_tokens=False)
    unknown = model.tokenizer.unk_token_id
    if len(ids) != 1 or (ids[0] == unknown and word != model.tokenizer.unk_token):
        pieces = [model.tokenizer.decode([i]) for i in ids]
        raise PromptError(
            f"{word!r} is {len(ids)} tokens of this tokenizer, {pieces}: the logit difference needs one known token. "
            "Choose another name; labcode.prompts.single_token_names(model) lists those that work.",
            see="name-of-several-tokens",
        )
    return int(ids[0])


def quoted(model: TransformerBridge, token: Int[Tensor, ""] | int) -> str:
    """A token as text that a sentence or a table can show: in quotes, so that its space can be seen.

    Raises:
        PromptError: a number that stands for no token.
    """
    if not 0 <= int(token) < len(model.tokenizer):
        raise PromptError(f"no token {int(token)}: this tokenizer has {len(model.tokenizer)}, counted from 0")
    text = model.tokenizer.decode([int(token)])
    return "“" + text.replace("\n", "\\n") + "”"


def single_token_names(model: TransformerBridge) -> tuple[list[str], list[str]]:
    """`NAMES` split into those that are one token after a space, and those that are not (dropped)."""
    kept: list[str] = []
    dropped: list[str] = []
    for name in NAMES:
        try:
            token_id(model, " " + name)
        except PromptError:
            dropped.append(name)
        else:
            kept.append(name)
    return kept, dropped


def build(model: TransformerBridge, prompts: Sequence[Prompt]) -> Population:
    """Tokenise prompts and find their named positions.

    The start token comes first, as the model's tokenizer defines it; positions count it. What a prompt says of itself
    is held against its tokens here, once for everything that a reader may write.

    Raises:
        PromptError: no prompts; a name of several tokens; IO not found once or S not found twice; IO behind S2; an
            answer that stands in the sentence already, at END; S twice in a row; another order than the prompt says.
    """
    if not prompts:
        raise PromptError("an empty population: give at least one prompt")
    rows, found, answers = [], [], []
    for prompt in prompts:
        io, s = token_id(model, " " + prompt.io), token_id(model, " " + prompt.s)
        row = [model.tokenizer.bos_token_id, *model.tokenizer.encode(prompt.text, add_special_tokens=False)]
        at_io = [i for i, token in enumerate(row) if token == io]
        at_s = [i for i, token in enumerate(row) if token == s]
        if len(at_io) != 1 or len(at_s) != 2:
            raise PromptError(
                f"the prompt {prompt.text!r} names {prompt.io} {len(at_io)} times and {prompt.s} {len(at_s)} times: "
                "IO has to occur once and S twice, each with a space before it"
            )
        if wrong := _misplaced(prompt, at_io[0], at_s[0], at_s[1], len(row) - 1):
            raise PromptError(f"the prompt {prompt.text!r} {wrong}")
        rows.append(row)
        found.append(dict(zip(POSITIONS, (at_io[0], at_s[0], at_s[0] + 1, at_s[1], len(row) - 1), strict=True)))
        answers.append((io, s))
    return padded(model, prompts, rows, found, answers)


def _misplaced(prompt: Prompt, io: int, s1: int, s2: int, end: int) -> str:
    """What is wrong with the order of the names in a prompt, or nothing."""
    order = "ABBA" if io < s1 else "BABA"
    if end in (io, s2):
        return "ends with a name, where the answer is to come: stop at the word before the answer"
    if s2 == s1 + 1:
        return f"names {prompt.s} twice in a row: S1+1 and S2 have to be two positions"
    if io > s2:
        return f"names {prompt.io} after both mentions of {prompt.s}: IO has to stand before S2"
    return "" if prompt.order == order else f"says of itself {prompt.order!r}, and its names stand in order {order!r}"


def padded(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    rows: Sequence[list[int]],
    places: Sequence[Mapping[str, int]],
    answers: Sequence[tuple[int, int]],
    corruption: str = "",
) -> Population:
    """One batch of prompts whose tokens, named positions and right answers (ids of IO and of S) are known."""
    width, bos = max(map(len, rows)), model.tokenizer.bos_token_id
    return Population(
        prompts=tuple(prompts),
        tokens=torch.tensor([row + [bos] * (width - len(row)) for row in rows]),
        lengths=torch.tensor([len(row) for row in rows]),
        positions={name: torch.tensor([at[name] for at in places]) for name in places[0]},
        io_ids=torch.tensor([io for io, _ in answers]),
        s_ids=torch.tensor([s for _, s in answers]),
        str_tokens=tuple(tuple(model.tokenizer.decode([i]) for i in row) for row in rows),
        corruption=corruption,
        tokenizer=tokenizer_key(model.tokenizer),
    )


def canonical(model: TransformerBridge, io: str = "Mary", s: str = "John", subject_first: bool = True) -> Population:
    """The one prompt that the book starts from, or the same sentence with other names.

    "When John and Mary went to the store, John gave a drink to": subject first, so IO is Mary.
    """
    first, second = (s, io) if subject_first else (io, s)
    text = CANONICAL.format(A=first, B=second, S=s, place="store", object="drink")
    return build(model, [Prompt(text, io, s, "BABA" if subject_first else "ABBA", template=0)])


def population(
    model: TransformerBridge,
    n: int,
    seed: int = 0,
    templates: Sequence[str] = TEMPLATES,
    names: Sequence[str] | None = None,
    exact: bool = False,
) -> Population:
    """Draw `n` distinct prompts with balanced roles.

    Prompts come in neighbouring pairs that share template, names, place and object, once with either name as the
    subject. So names, orders (ABBA and BABA) and answers are balanced, templates differ in count by at most one pair,
    and the mean logit difference cannot come from a preference for some name. The same seed gives the same prompts on
    every machine, for one tokenizer.

    Args:
        n: number of prompts, even and at least 2. The environment variable LAB_PROMPTS changes it in the whole book:
            8 is a cap, for a quick look; x4 asks for four times as many, which takes four times as long and halves the
            intervals.
        names: those to draw from, each one token after a space; by default all of `NAMES` that are.
        exact: take `n` whatever LAB_PROMPTS says: the prompts of a record.

    Raises:
        PromptError: LAB_PROMPTS is no even number from 4 on and no multiple; n odd, below 2, or more than there are
            distinct prompts; fewer than two usable names, or one twice; a template that can't be filled in.
    """
    n = n if exact else _asked(n)
    if n < 2 or n % 2:
        raise PromptError(f"n = {n}: prompts come in pairs with swapped roles, so n has to be even and at least 2")
    names = single_token_names(model)[0] if names is None else list(names)
    if len(names) < 2:
        raise PromptError(f"this tokenizer holds {len(names)} of our {len(NAMES)} names as one token: two are needed")
    if len(set(names)) < len(names):
        raise PromptError(f"{max(names, key=names.count)!r} stands among the names twice")
    # A pair of names, in either role, and what else a template takes; each template gets as many prompts.
    limit = len(templates) * min(map(_fillings, templates), default=0) * len(names) * (len(names) - 1)
    if n > limit:
        raise PromptError(f"n = {n}: these templates and names give at most {limit} distinct prompts")
    rng = random.Random(seed)
    order = rng.sample(range(len(templates)), len(templates))
    prompts: list[Prompt] = []
    seen: set[tuple[object, ...]] = set()
    while len(prompts) < n:
        draw = len(prompts) // 2
        template = order[draw % len(order)]
        first, second = rng.sample(names, 2)
        place, thing = rng.choice(PLACES), rng.choice(OBJECTS)
        filled = partial(templates[template].format, place=place, object=thing)
        key = (template, frozenset((first, second)), filled(A="", B="", S=""))
        if key in seen:
            continue
        seen.add(key)
        for s, io in ((first, second), (second, first)):
            text = filled(A=first, B=second, S=s)
            prompts.append(Prompt(text, io, s, "BABA" if s == first else "ABBA", template, draw))
    return build(model, prompts)


def _fillings(template: str) -> int:
    """How many places and objects a template can be filled with.

    Raises:
        PromptError: stray braces, an unknown field, or not each of the names once.
    """
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise PromptError(f"the template {template!r} can't be filled in ({error})") from error
    fields = [name for _, name, how, kind in parts if not how and not kind]
    if (
        len(fields) < len(parts)
        or set(fields) - {*"ABS", "place", "object"}
        or any(fields.count(x) != 1 for x in "ABS")
    ):
        raise PromptError(
            f"the template {template!r} has to hold {{A}}, {{B}} and {{S}} once each, and of other braces only "
            "{place} and {object}"
        )
    return (len(PLACES) if "place" in fields else 1) * (len(OBJECTS) if "object" in fields else 1)


def _asked(n: int) -> int:
    """`n`, or what LAB_PROMPTS makes of it."""
    asked = os.environ.get("LAB_PROMPTS", "").strip()
    multiple = asked.removeprefix("x")
    if not asked:
        return n
    if asked != multiple and multiple.isdigit() and int(multiple) > 0:
        return n * int(multiple)
    if not asked.isdigit() or int(asked) < 4 or int(asked) % 2:
        raise PromptError(
            f"LAB_PROMPTS={asked}: use an even number of prompts, at least 4, or a multiple such as x2, "
            "or leave it unset"
        )
    return min(n, int(asked))


def corrupt(
    model: TransformerBridge, pop: Population, how: Literal["swap", "abc", "first"], seed: int = 0
) -> Population:
    """The same prompts with names exchanged, aligned with the clean ones token by token.

    "swap" writes IO at S2, so the other name becomes the right answer. "abc" writes three different names that the
    prompt does not contain at IO, S1 and S2, so no name is repeated: the reference distribution p_ABC of Wang et al.
    2022, section 2.1. "first" writes a new name at S1 alone: the token at S2 stays what it is and repeats nothing, so
    what differs at S2 is the repetition and not the name. Right answers (`io_ids`, `s_ids`) stay those of the clean
    prompts: a metric means the same in all of them.

    Raises:
        PromptError: unknown `how`; a population that is corrupted already; too few usable names.
    """
    if pop.corruption:
        raise PromptError(f"these prompts are corrupted already ({pop.corruption!r}): corrupt the clean population")
    if how == "swap":
        return renamed(model, pop, {"S2": pop.io_ids}, how)
    if how == "first":
        return renamed(model, pop, {"S1": fresh_names(model, pop, 1, seed)[:, 0]}, how)
    names = fresh_names(model, pop, 3, seed).unbind(-1)
    return renamed(model, pop, dict(zip(("IO", "S1", "S2"), names, strict=True)), how)


def renamed(
    model: TransformerBridge, pop: Population, ids: Mapping[str, Int[Tensor, " batch"]], corruption: str
) -> Population:
    """The same prompts with other tokens at some named positions; right answers stay those of `pop`.

    Raises:
        PromptError: an unknown position, or not one token for each prompt.
    """
    if unknown := set(ids) - set(pop.positions):
        raise PromptError(f"unknown position {min(unknown)!r}: choose among {', '.join(pop.positions)}")
    tokens, rows = pop.tokens.clone(), torch.arange(len(pop))
    for place, new in ids.items():
        tokens[rows, pop.positions[place]] = new
    strings = tuple(
        tuple(model.tokenizer.decode([i]) for i in tokens[row, :length].tolist())
        for row, length in enumerate(pop.lengths.tolist())
    )
    return replace(pop, tokens=tokens, str_tokens=strings, corruption=corruption)


def fresh_names(model: TransformerBridge, pop: Population, n: int, seed: int) -> Int[Tensor, "batch n"]:
    """Token ids of `n` different names for each prompt, neither its IO nor its S.

    Raises:
        PromptError: too few usable names.
    """
    ids = [token_id(model, " " + name) for name in single_token_names(model)[0]]
    if len(ids) < n + 2:
        raise PromptError(f"{n} fresh names beside IO and S need {n + 2} usable names, this tokenizer has {len(ids)}")
    rng = random.Random(seed)
    answers = zip(pop.io_ids.tolist(), pop.s_ids.tolist(), strict=True)
    return torch.tensor([rng.sample([i for i in ids if i not in taken], n) for taken in answers])


guard(globals(), PromptError)
