"""Models shared by the tests, each loaded once: the embedded one, the toy, and two tiny random ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

# Before any library reads it: no test may look for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side: one thread each, or they wait for each other
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}

import folders
from both import Pair, load_both

from labcode import models
from labcode.toy import build

# Begun first: a worker that comes to one of them last would work on alone.
LONGEST = (
    "test_build test_running_notebooks test_sphinxext_build test_site test_sphinxext_pages test_notebooks "
    "test_models test_prediction_boxes"
).split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; all others stay in order."""
    rank = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The embedded model, whatever LAB_MODEL says."""
    return models.load("smollm2")


@pytest.fixture(scope="session")
def toy() -> Any:
    """The model wired by hand."""
    return build()


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Three layers in the shape of GPT-2 with random weights, norms and biases."""
    return load_both(folders.write_gpt2(tmp_path_factory.mktemp("tiny-gpt2")))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Three layers in the shape of Llama with grouped keys and values and random weights and norms."""
    return load_both(folders.write_llama(tmp_path_factory.mktemp("tiny-llama")))


@pytest.fixture(scope="session")
def random_gpt2_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which `gpt2` is a model of random weights; half a gigabyte, so it goes with the session."""
    home = tmp_path_factory.mktemp("random-gpt2")
    yield folders.write_hub_with_random_gpt2(home)
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def gpt2() -> Any:
    """GPT-2 small where its pinned files are in the hub's cache; elsewhere the test is skipped."""
    if models.gpt2_cached() is None:
        pytest.skip("the pinned weights of GPT-2 small are not in the local hub cache")
    return models.load("gpt2")
