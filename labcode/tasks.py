"""Tasks of a reader's own: aligned pairs of sentences with a right and a wrong next word.

Everything that patches needs no more than that: a clean and a corrupted sentence of as many tokens, two words of one
token each, whose logits are compared at END, and names for positions. A task is a TOML file:

    name = "Capitals"
    question = "Which city comes next?"

    [[pair]]
    clean = "The capital of France is called"
    corrupted = "The capital of Italy is called"
    right = " Paris"
    wrong = " Rome"
    at = { country = " France" }      # names for words of the clean sentence, as they stand there

Pairs that say the same with the two sentences exchanged share a `group`, so that intervals count them once; without one
each pair is a group of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labcode.errors import PromptError
from labcode.inputs import guard
from labcode.prompts import Population, Prompt, padded, token_id

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KEYS = {"clean", "corrupted", "right", "wrong", "at", "group"}
MOST_DIFFERENT = 0.5  # share of a pair's tokens that may differ; more are two sentences, and not a pair


@dataclass(frozen=True)
class Pair:
    """Two sentences that part in what matters, and what comes next.

    Attributes:
        clean, corrupted: the sentences up to and including the word before the answer.
        right, wrong: the next word after the clean sentence, and the one that it is compared with; the space before a
            word counts.
        at: for each name of a position, the word of the clean sentence that stands there.
        group: pairs of one group are resampled together.
    """

    clean: str
    corrupted: str
    right: str
    wrong: str
    at: Mapping[str, str] = field(default_factory=dict)
    group: int = -1


@dataclass(frozen=True)
class Task:
    """A name, what is asked, and the pairs."""

    name: str
    question: str
    pairs: tuple[Pair, ...]


def load(path: str | Path) -> Task:
    """Read a task.

    Raises:
        PromptError: a file that is missing or no TOML, a key that is unknown or missing, no pairs.
    """
    try:
        text = Path(path).read_text(encoding="utf8")
        found = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PromptError(f"{path} is no task that can be read ({error})") from error
    return parse(found, str(path))


def parse(found: Mapping[str, Any], where: str = "the task") -> Task:
    """A task from what its file holds.

    Raises:
        PromptError: as `load`.
    """
    listed = found.get("pair")
    if not isinstance(listed, list) or not listed:
        raise PromptError(f"{where} has no pairs: begin each with a line [[pair]]")
    pairs = []
    for number, one in enumerate(listed):
        missing, unknown = {"clean", "corrupted", "right", "wrong"} - set(one), set(one) - KEYS
        if missing or unknown:
            raise PromptError(
                f"pair {number} of {where}: {', '.join(sorted(missing)) or 'nothing'} missing, "
                f"{', '.join(sorted(unknown)) or 'nothing'} unknown; a pair has {', '.join(sorted(KEYS))}"
            )
        wrong_type = [key for key in ("clean", "corrupted", "right", "wrong") if not isinstance(one[key], str)]
        if wrong_type or not isinstance(one.get("at", {}), Mapping):
            raise PromptError(f"pair {number} of {where}: {', '.join(wrong_type) or 'at'} is no text")
        pairs.append(Pair(**one))
    return Task(str(found.get("name", "A task")), str(found.get("question", "")), tuple(pairs))


def populations(model: TransformerBridge, task: Task) -> tuple[Population, Population]:
    """The clean and the corrupted sentences, aligned, as every sweep takes them.

    Positions are END and the names that all pairs have. In a `Population` the right answer is called the indirect
    object and the wrong one the subject, as in the task that the book is about.

    Raises:
        PromptError: an answer that is no single token, sentences of different length or that differ in more than half
            of their tokens, or not at all, a named word that is not there exactly once, the same answer twice.
    """
    names = [name for name in task.pairs[0].at if all(name in pair.at for pair in task.pairs)]
    prompts, places, answers = [], [], []
    rows: tuple[list[list[int]], list[list[int]]] = ([], [])
    for number, pair in enumerate(task.pairs):
        right, wrong = token_id(model, pair.right), token_id(model, pair.wrong)
        if right == wrong:
            raise PromptError(f"pair {number}: {pair.right!r} is the right and the wrong answer")
        clean, corrupted = (_ids(model, text) for text in (pair.clean, pair.corrupted))
        _check_aligned(model, number, clean, corrupted)
        places.append({name: _find(model, number, clean, pair.at[name]) for name in names} | {"END": len(clean) - 1})
        rows[0].append(clean)
        rows[1].append(corrupted)
        answers.append((right, wrong))
        group = pair.group if pair.group >= 0 else number
        prompts.append(Prompt(pair.clean, pair.right.strip(), pair.wrong.strip(), "", draw=group))
    made = [
        padded(model, prompts, ids, places, answers, corruption=how)
        for ids, how in zip(rows, ("", "task"), strict=True)
    ]
    return made[0], made[1]


def _ids(model: TransformerBridge, text: str) -> list[int]:
    return [model.tokenizer.bos_token_id, *model.tokenizer.encode(text, add_special_tokens=False)]


def _check_aligned(model: TransformerBridge, number: int, clean: Sequence[int], corrupted: Sequence[int]) -> None:
    if len(clean) != len(corrupted):
        first = next((i for i, (a, b) in enumerate(zip(clean, corrupted, strict=False)) if a != b), -1)
        shown = [[model.tokenizer.decode([i]) for i in row[first : first + 4]] for row in (clean, corrupted)]
        raise PromptError(
            f"pair {number}: the clean sentence has {len(clean)} tokens and the corrupted one {len(corrupted)}. They "
            f"part at {shown[0]} and {shown[1]}: use words of as many tokens",
            see="misaligned-prompts",
        )
    different = sum(a != b for a, b in zip(clean, corrupted, strict=True))
    if not different:
        raise PromptError(f"pair {number}: the two sentences are the same, so nothing is there to patch")
    if different > MOST_DIFFERENT * len(clean):
        raise PromptError(
            f"pair {number}: {different} of {len(clean)} tokens differ. In a pair as few as possible do: else a patch "
            "carries more than what you ask about"
        )


def _find(model: TransformerBridge, number: int, row: Sequence[int], word: str) -> int:
    """The position of the last token of a word, which stands in the sentence once."""
    wanted = model.tokenizer.encode(word, add_special_tokens=False)
    n = len(wanted)
    found = [i + n - 1 for i in range(1, len(row) - n + 1) if n and list(row[i : i + n]) == wanted]
    if len(found) != 1:
        raise PromptError(
            f"pair {number}: {word!r} stands in the clean sentence {len(found)} times, and once is needed; mind the "
            "space before a word"
        )
    return found[0]


guard(globals(), PromptError)
