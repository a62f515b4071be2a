"""Sentence frames for the recorded evidence: one half to find heads with, the other to judge what was found.

The two halves share no frame, and `names` shares out the names in the same way. So what is found on the first half and
holds on the second does not hang on a turn of phrase, nor on a name. Each frame was written for this book. Articles are
such that every place and every object of `labcode.prompts` fits.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    "When {A} and {B} got lost near the {place}, {S} gave the {object} to",
    "After {A} and {B} closed the {place}, {S} sent a {object} to",
    "While {A} and {B} were painting the {place}, {S} tossed the {object} to",
    "Because {A} and {B} had won a prize at the {place}, {S} awarded a {object} to",
    "Once {A} and {B} had seen the {place}, {S} passed the {object} to",
    "Before {A} and {B} went into the {place}, {S} handed a {object} to",
    "Although {A} and {B} did not like the {place}, {S} showed the {object} to",
    "On Friday {A} and {B} visited the {place}, and {S} offered a {object} to",
    "At noon {A} and {B} had coffee in the {place}, and {S} returned the {object} to",
    "Last winter {A} and {B} lived above the {place}, where {S} lent a {object} to",
    "It was dark when {A} and {B} left the {place}, so {S} carried the {object} to",
    "The night that {A} and {B} slept in the {place}, {S} brought a {object} to",
    "Long ago {A} and {B} built the {place}, and in the end {S} sold the {object} to",
    "As {A} and {B} were waiting outside the {place}, {S} threw a {object} to",
    "Since {A} and {B} were neighbours of the {place}, {S} delivered the {object} to",
    "During the holidays {A} and {B} ran the {place}, and {S} mailed a {object} to",
    "The minute that {A} and {B} saw the {place}, {S} gave up the {object} to",
    "Whenever {A} and {B} talk about the {place}, {S} describes the {object} to",
    "Soon after {A} and {B} moved to the {place}, {S} promised a {object} to",
    "Thanks to {A} and {B} the {place} looked new, and {S} presented the {object} to",
    "Nobody noticed {A} and {B} in the {place} until {S} slid a {object} to",
    "A friend invited {A} and {B} to the {place}, and {S} forwarded the {object} to",
    "The snow kept {A} and {B} away from the {place}, so {S} shipped a {object} to",
    "A bus took {A} and {B} past the {place}, where {S} handed the {object} to",
)
"""Frames on which all that is judged."""


def names(known: Sequence[str], half: str) -> list[str]:
    """Every other name of those that a tokenizer holds as one token: "discovery" begins with the first of them."""
    return list(known)[("discovery", "test").index(half) :: 2]
