"""The words that sampled contexts open with: ordinary openings of sentences, and openings with a name in them.

A model that starts from nothing repeats itself: many of its texts open alike. An opening costs a few tokens and spreads
the texts. Names mostly stand after another word: a name after a space is another token than a bare
name.
"""

from __future__ import annotations

from labcode.wording import NAMES

WORDS = (
    "The In When It She He Once My How If We They After Before On At One Many Some Most There This That These Although "
    "Because While During From For With Without What Why Who Where Every Each Last Next First Yesterday Today Tomorrow "
    "People Children Scientists Students Two Three Several Our Your Their His Her And But So Then Now Here Let Imagine "
    "Consider According To As Even Only Perhaps Suddenly Finally However Meanwhile Under Over Near Between Until Since"
).split()
LEADS = ("When", "Then", "Yesterday", "One day", "After school,", "My friend", "I met", "Dear", "Because", "Once,")
PAIRS = ("{} and {}", "When {} and {}", "Yesterday {} met {}", "The story of {} and {}")


def opening(number: int) -> str:
    """The opening of context `number`: of three in a row, two open with a word and the third with a name or two.

    The lists have lengths without common factors where it matters, so that leads and names meet in ever new pairs.

    Used in chapter 14, through `labcode.sae.sampling`.
    """
    turn, kind = divmod(number, 3)
    if kind < 2:
        return WORDS[(2 * turn + kind) % len(WORDS)]
    name, other = NAMES[turn % len(NAMES)], NAMES[(5 * turn + 1) % len(NAMES)]
    if turn % 4 or name == other:
        return f"{LEADS[turn % len(LEADS)]} {name}"
    return PAIRS[turn // 4 % len(PAIRS)].format(name, other)
