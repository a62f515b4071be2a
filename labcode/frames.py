"""Sentence frames for the recorded evidence: one half to find heads with, the other to judge what was found.

The two halves share no frame, and `names` shares out the names in the same way. So what is found on the first half and
holds on the second does not hang on a turn of phrase, nor on a name. Each frame was written for this book. Articles are
such that every place and every object of `labcode.prompts` fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from labcode.errors import PromptError
from labcode.inputs import guard

DISCOVERY = (
    "When {A} and {B} arrived at the {place}, {S} handed a {object} to",
    "After {A} and {B} had dinner near the {place}, {S} offered the {object} to",
    "While {A} and {B} stood in front of the {place}, {S} passed a {object} to",
    "Because {A} and {B} were late for the {place}, {S} threw the {object} to",
    "Once {A} and {B} were inside the {place}, {S} showed a {object} to",
    "Before {A} and {B} left the {place}, {S} returned the {object} to",
    "Although {A} and {B} had quarrelled at the {place}, {S} sent a {object} to",
    "On Monday {A} and {B} cleaned the {place}, and {S} gave the {object} to",
    "In the evening {A} and {B} came back from the {place}, and {S} lent a {object} to",
    "Last summer {A} and {B} worked at the {place}, where {S} sold the {object} to",
    "It rained when {A} and {B} reached the {place}, so {S} brought a {object} to",
    "The day that {A} and {B} opened the {place}, {S} presented the {object} to",
    "Years ago {A} and {B} met in the {place}, and later {S} mailed a {object} to",
    "As {A} and {B} were walking past the {place}, {S} pointed out the {object} to",
    "Since {A} and {B} had nothing to do at the {place}, {S} described a {object} to",
    "During the break {A} and {B} sat behind the {place}, and {S} slid the {object} to",
    "The moment that {A} and {B} entered the {place}, {S} promised a {object} to",
    "Whenever {A} and {B} go to the {place}, {S} carries the {object} to",
    "Not long after {A} and {B} found the {place}, {S} delivered a {object} to",
    "With the help of {A} and {B} the {place} was saved, and {S} awarded the {object} to",
    "Everybody saw {A} and {B} at the {place} when {S} gave a {object} to",
    "Somebody told {A} and {B} about the {place}, and {S} forwarded the {object} to",
    "The rain kept {A} and {B} in the {place}, so {S} tossed the {object} to",
    "A taxi took {A} and {B} to the {place}, where {S} handed over a {object} to",
)
"""Frames on which heads are found, families judged and circuits chosen."""

TEST = (
    "Then {A} and {B} went to the {place}. {S} gave the {object} to",
    "In front of the {place} there were {A} and {B}. {S} handed a {object} to",
    "Yesterday {A} met {B} at the {place}, and {S} offered the {object} to",
    "One day {A} was at the {place} with {B}, when {S} sent a {object} to",
    "Here is what {A} and {B} did at the {place}: {S} passed the {object} to",
    "Last week {A} drove {B} to the {place}, where {S} brought a {object} to",
    "The {place} was too loud for {A} and {B}, so {S} slid the {object} to",
    "At the {place}, next to {A}, stood {B}. Quietly {S} tossed a {object} to",
    "The two friends {A} and {B} like the {place}, which is why {S} lent the {object} to",
    "Both {A} and {B} knew the {place} well. Once more {S} showed a {object} to",
    "Not only {A} but also {B} came to the {place}. First {S} described the {object} to",
    "This is a story about {A} and {B}. In the {place}, {S} awarded a {object} to",
    "The owner of the {place} called {A} and {B}, and {S} returned the {object} to",
    "All day {A} had waited for {B} at the {place}, until {S} threw a {object} to",
    "My neighbours {A} and {B} share the {place}, and this morning {S} sold the {object} to",
    "The key to the {place} belongs to {A} and {B}. At night {S} mailed a {object} to",
    "Between {A} and {B} lay the {place}; {S} carried the {object} to",
    "Our friend {A}, who lives near the {place}, called {B}, and then {S} delivered a {object} to",
    "You can ask {A} or {B} about the {place}: {S} promised the {object} to",
    "Neither {A} nor {B} had opened the {place} yet, so {S} forwarded a {object} to",
    "Suddenly {A} saw {B} behind the {place}, and {S} presented the {object} to",
    "The door of the {place} opened for {A} and {B}. Without a word {S} shipped a {object} to",
    "Then {A} and {B}, both tired of the {place}, sat down, and {S} handed over the {object} to",
    "If {A} and {B} are in the {place}, {S} usually gives a {object} to",
)
"""Frames on which all that is judged: other sentences, some of other forms.

A discovery frame is one sentence whose first clause joins the names by "and". So do 14 of these 24, often in a sentence
of its own; in the others the names stand apart or are joined by a verb, by "or" or by "nor".
"""


def names(known: Sequence[str], half: Literal["discovery", "test"]) -> list[str]:
    """Every other name of those that a tokenizer holds as one token: "discovery" begins with the first of them."""
    return list(known)[("discovery", "test").index(half) :: 2]


guard(globals(), PromptError)
