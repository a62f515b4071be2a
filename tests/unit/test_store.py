"""Remembered measurements: found again, made again when anything changed, and no obstacle where nothing can be kept."""

from __future__ import annotations

import sys

import pytest
import torch

from labcode import prompts, store


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def counted():
    calls = []

    def measure():
        calls.append(1)
        return {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor(float(len(calls)))}

    measure.__module__ = "labcode.metrics"
    return calls, measure


def test_a_measurement_is_made_once(cache, toy, counted):
    calls, measure = counted
    first = store.remember("thing", toy, ["a", 1], measure)
    again = store.remember("thing", toy, ["a", 1], measure)
    assert len(calls) == 1
    assert torch.equal(first["x"], again["x"])
    assert float(again["y"]) == 1


@pytest.mark.parametrize(("name", "key"), [("other", ["a", 1]), ("thing", ["a", 2])])
def test_another_name_or_key_is_another_measurement(cache, toy, counted, name, key):
    calls, measure = counted
    store.remember("thing", toy, ["a", 1], measure)
    store.remember(name, toy, key, measure)
    assert len(calls) == 2


def test_changed_weights_are_measured_again(cache, tiny_gpt2, counted):
    calls, measure = counted
    model = tiny_gpt2.bridge
    store.remember("thing", model, [], measure)
    weight = next(iter(dict(sorted(model.named_parameters())).values()))
    kept = weight.data.clone()
    try:
        weight.data += 1
        store.remember("thing", model, [], measure)
    finally:
        weight.data.copy_(kept)
    store.remember("thing", model, [], measure)
    assert len(calls) == 2


def test_changed_prompts_have_another_key(toy):
    pop = prompts.population(toy, 4, seed=1)
    assert store.prompt_key(pop) == store.prompt_key(prompts.population(toy, 4, seed=1))
    assert store.prompt_key(pop) != store.prompt_key(prompts.population(toy, 4, seed=2))
    assert store.prompt_key(pop) != store.prompt_key(prompts.corrupt(toy, pop, "abc"))


def test_the_source_that_counts_is_what_the_module_imports(tmp_path, monkeypatch):
    """A change in a module that is imported, even inside a function, changes the key; one in a bystander does not."""
    package = tmp_path / "shelf"
    package.mkdir()
    files = {"__init__": "", "low": "x = 1\n", "bystander": "y = 1\n", "top": "def f():\n    from shelf.low import x\n"}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    def key():
        store.source_key.cache_clear()
        return store.source_key("shelf.top")

    try:
        before = key()
        (package / "bystander.py").write_text("y = 2\n")
        assert key() == before
        (package / "low.py").write_text("x = 2\n")
        assert key() != before
    finally:
        store.source_key.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] == "shelf"]:
            del sys.modules[name]


def test_a_damaged_file_is_measured_again(cache, toy, counted):
    calls, measure = counted
    store.remember("thing", toy, [], measure)
    (file,) = (cache / "measured").rglob("values.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    assert torch.equal(store.remember("thing", toy, [], measure)["x"], torch.arange(6.0).view(2, 3))
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_costs_a_warning_only(cache, toy, counted):
    calls, measure = counted
    (cache / "measured").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not kept: the cache folder .* set LAB_CACHE"):
        found = store.remember("thing", toy, [], measure)
    assert torch.equal(found["x"], torch.arange(6.0).view(2, 3))
    assert len(calls) == 1


def test_an_error_while_measuring_is_the_callers_and_leaves_nothing(cache, toy):
    def measure():
        raise ZeroDivisionError("the measurement's own")

    measure.__module__ = "labcode.metrics"
    with pytest.raises(ZeroDivisionError):
        store.remember("thing", toy, [], measure)
    assert not list((cache / "measured").rglob("values.safetensors"))
