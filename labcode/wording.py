"""The sentence frames, names, places and objects that populations are drawn from.

The first frame is the canonical one of the literature (Wang et al. 2022; the TransformerLens demos); the others were
written for this book. Articles are such that every object fits.
"""

from __future__ import annotations

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
