"""The sentence frames, names, places and objects that populations are drawn from, and words that pages mask.

The first frame is the canonical one of the literature (Wang et al. 2022; the TransformerLens demos); the others were
written for this book. Articles are such that every object fits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

CANONICAL = "When {A} and {B} went to the {place}, {S} gave a {object} to"

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

# What a page doesn't spell out when it shows text that a model wrote. The data keep it.
COARSE = re.compile(
    r"(?:fuck|shit|bitch|whore|slut|cunt|nigg|faggot|prostitut|porn|\brap(?:e|es|ed|ist)\b)", re.IGNORECASE
)


def masked(text: str) -> str:
    """A text with the letters of coarse words starred but for the first: "s***". Its length stays.

    Used in chapters 14 to 16.
    """
    return COARSE.sub(lambda found: found[0][0] + "*" * (len(found[0]) - 1), text)


def masked_tokens(tokens: Sequence[str]) -> tuple[str, ...]:
    """The same for a text in pieces, where a word may be spread over several.

    Used in chapter 15, through `labcode.dashboards`.
    """
    whole, at = masked("".join(tokens)), 0
    pieces = []
    for token in tokens:
        pieces.append(whole[at : at + len(token)])
        at += len(token)
    return tuple(pieces)
