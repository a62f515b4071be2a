"""What the tests of sweeps and of paths both patch: a tiny model of either kind, and a pair of populations."""

from __future__ import annotations

import pytest

from labcode import prompts


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def tiny(request):
    return request.getfixturevalue(request.param).bridge


@pytest.fixture
def pair(tiny):
    """Two prompts of different lengths, and the same with three unrelated names."""
    pop = prompts.population(tiny, 4, seed=1).subset([1, 2])
    assert pop.lengths.unique().numel() == 2
    return pop, prompts.corrupt(tiny, pop, "abc")
