"""The criteria of head families: the same ones on every model, written down before the search.

A family's definition asks for both kinds of evidence, where a head looks and what it costs to intervene on it. The
thresholds stand here and nowhere else. They are round numbers taken from the literature, not fitted: an effect of one
fiftieth of the gap between clean and corrupted runs is twice what Wang et al. (2022, section 4.2) ask of a head before
they call it needed, and a tenth of a head's attention is several times an even share over a sentence.

Used in chapters 07 to 12 and 16, through `labcode.families`.
"""

from __future__ import annotations

from dataclasses import dataclass

from labcode.errors import FamilyError as FamilyError

Head = tuple[int, int]
Node = tuple[int, int, str]

LOOKS = 0.1  # mean attention that counts as looking somewhere
EFFECT = 0.02  # mean effect that counts, as a share of the gap; its interval must lie on the same side of 0


@dataclass(frozen=True)
class Test:
    """One condition of a definition.

    Attributes:
        text: the condition in words.
        kind: "looks" (observational) or "acts" (an intervention, or what is written to the logits).
        measure: the name of the measurement in `labcode.evidence`.
        sign: +1 where it has to reach the threshold from above, -1 where it has to fall below its negative.
        over: name of another measurement that this one has to exceed, if any, instead of a threshold: the interval of
            the difference has to lie above 0.
    """

    text: str
    kind: str
    measure: str
    sign: int = 1
    over: str = ""


@dataclass(frozen=True)
class Family:
    """A family: what its heads do, the position at which they act, and the tests that a member passes, all of them.

    Attributes:
        name: key in `FAMILIES`. title: the name in running text.
        position: where its heads act: S1+1, S2 or END.
        definition: one sentence.
        colour: kept through the whole book.
    """

    name: str
    title: str
    position: str
    definition: str
    tests: tuple[Test, ...]
    colour: str


def _look(source: str, target: str) -> Test:
    text = f"attention {source} → {target} at least {LOOKS}"
    return Test(text, "looks", f"attention {source}→{target}")


def _costs(place: str) -> Test:
    text = f"corrupting it at {place} loses at least {EFFECT:.0%} of the gap"
    return Test(text, "acts", f"total {place}")


def _more(text: str, measure: str, over: str) -> Test:
    return Test(text, "looks" if measure.startswith("attention") else "acts", measure, over=over)


_WRITES_FOR = Test(f"its wire to the logits is worth at least {EFFECT:.0%} of the gap", "acts", "direct")
_WRITES_AGAINST = Test(f"its wire to the logits is worth at most −{EFFECT:.0%} of the gap", "acts", "direct", sign=-1)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "previous",
            "previous-token heads",
            "S1+1",
            "At the word after the first S it looks back at S, and corrupting it there costs part of the answer.",
            (_look("S1+1", "S1"), _costs("S1+1")),
            "#999999",
        ),
        Family(
            "duplicate",
            "duplicate-token heads",
            "S2",
            "At the second S it looks at the first, and corrupting it there costs part of the answer.",
            (_look("S2", "S1"), _costs("S2")),
            "#E69F00",
        ),
        Family(
            "induction",
            "induction heads",
            "S2",
            "At the second S it looks at the word after the first, and corrupting it there costs part of the answer.",
            (_look("S2", "S1+1"), _costs("S2")),
            "#F0E442",
        ),
        Family(
            "s-inhibition",
            "S-inhibition heads",
            "END",
            "At END it looks at the second S, and part of the answer is lost when the writers' queries hear it wrong.",
            (
                _look("END", "S2"),
                Test(f"its wire to the writers' queries is worth at least {EFFECT:.0%} of the gap", "acts", "query"),
            ),
            "#56B4E9",
        ),
        Family(
            "name mover",
            "name movers",
            "END",
            "At END it looks at IO and writes for the answer, more by raising IO than by lowering S.",
            (_look("END", "IO"), _WRITES_FOR, _more("raises IO more than it lowers S", "for IO", "against S")),
            "#0072B2",
        ),
        Family(
            "suppressor",
            "subject suppressors",
            "END",
            "At END it looks at the second S and writes for the answer, more by lowering S than by raising IO.",
            (_look("END", "S2"), _WRITES_FOR, _more("lowers S more than it raises IO", "against S", "for IO")),
            "#009E73",
        ),
        Family(
            "negative",
            "negative name movers",
            "END",
            "At END it looks at IO and writes against the answer.",
            (_look("END", "IO"), _WRITES_AGAINST),
            "#D55E00",
        ),
        Family(
            "backup",
            "backup writers",
            "END",
            "At END it looks at IO, and writes for the answer once the writers are out, more than before.",
            (
                _look("END", "IO"),
                Test(
                    f"its attribution with the writers out is at least {EFFECT:.0%} of the gap",
                    "acts",
                    "attribution, alone",
                ),
                _more("writes more with the writers out", "attribution, alone", "attribution"),
            ),
            "#CC79A7",
        ),
    )
}

UNKNOWN: dict[str, Test] = {
    "writes for the answer": _WRITES_FOR,
    "writes against the answer": _WRITES_AGAINST,
    "acts at S2": _costs("S2"),
    "acts at END": _costs("END"),
}
"""What a head does that matters and passes no definition: it is listed under the first of these that fits."""
