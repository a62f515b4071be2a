"""Circuits: what is left of the answer when only some heads keep their own output, or when some lose it.

`ablate` takes heads out in one of four ways. `values` runs a model in many states at once, each keeping (`Keep`) or
losing (`Out`) heads at named positions; `faithfulness`, `completeness` and `minimality` are built on it.

Used in chapters 05 and 07 to 12.
"""

from labcode.circuit.ablation import How, ablate
from labcode.circuit.bench import Bench, values
from labcode.circuit.means import Means
from labcode.circuit.measures import (
    Faithfulness,
    Incompleteness,
    Worth,
    completeness,
    faithfulness,
    greedy_sets,
    minimality,
    random_circuit,
    random_sets,
    ratio,
)
from labcode.circuit.states import Keep, Node, Out

__all__ = [
    "Bench",
    "Faithfulness",
    "How",
    "Incompleteness",
    "Keep",
    "Means",
    "Node",
    "Out",
    "Worth",
    "ablate",
    "completeness",
    "faithfulness",
    "greedy_sets",
    "minimality",
    "random_circuit",
    "random_sets",
    "ratio",
    "values",
]
