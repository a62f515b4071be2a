"""Published figures about GPT-2 small, each with its source and the tolerance of a comparison.

They describe GPT-2 small and no other model. `report.compare` sets a run's value beside them; tests marked `gpt2`
assert them where the weights are. Tolerances allow for what differs between set-ups (prompts, names, start token).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A published value: what it is, its value, how far a repetition may be off (same unit), and where it stands."""

    quantity: str
    value: float
    tolerance: float
    source: str


WANG = "Wang et al. 2022"
DEMOS = "TransformerLens demos, eight prompts"
LAB = "this project's first lab, one prompt"

PUBLISHED: dict[str, Figure] = {
    "wang.logit_difference": Figure("mean logit difference, 100,000 prompts", 3.56, 0.8, f"{WANG}, section 2"),
    "wang.accuracy": Figure("share of prompts with IO above S", 0.993, 0.02, f"{WANG}, section 2"),
    "wang.p_io": Figure("mean P(IO)", 0.49, 0.12, f"{WANG}, section 2"),
    "demos.logit_difference": Figure("mean logit difference, eight prompts", 3.5519, 0.01, DEMOS),
    "lab.mary_john": Figure("logit difference, IO Mary, S John", 3.172, 0.02, LAB),
    "lab.john_mary": Figure("logit difference, IO John, S Mary", 2.48, 0.02, LAB),
    "lab.alice_bob": Figure("logit difference, IO Alice, S Bob", 3.79, 0.02, LAB),
    "lab.bob_alice": Figure("logit difference, IO Bob, S Alice", 2.73, 0.02, LAB),
    "lab.corrupted": Figure("logit difference with S2 = Mary", -3.535, 0.02, LAB),
    "lab.dla.9.9": Figure("direct attribution of head 9.9", 1.66, 0.05, LAB),
    "lab.dla.9.6": Figure("direct attribution of head 9.6", 1.32, 0.05, LAB),
    "lab.dla.10.0": Figure("direct attribution of head 10.0", 0.88, 0.05, LAB),
    "lab.dla.10.10": Figure("direct attribution of head 10.10", 0.74, 0.05, LAB),
    "lab.dla.8.10": Figure("direct attribution of head 8.10", 0.46, 0.05, LAB),
    "lab.dla.10.7": Figure("direct attribution of head 10.7", -1.46, 0.05, LAB),
    "lab.dla.11.10": Figure("direct attribution of head 11.10", -1.10, 0.05, LAB),
    "lab.dla.11.1": Figure("direct attribution of head 11.1", -0.84, 0.05, LAB),
    "lab.dla.10.6": Figure("direct attribution of head 10.6", -0.54, 0.05, LAB),
}
