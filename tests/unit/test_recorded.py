"""What was measured once is found again as long as nothing that it depends on has changed."""

from __future__ import annotations

import copy
import datetime
import importlib
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from elsewhere import There, a_gpu
from safetensors.torch import load_file

from labbook.show import sketch
from labcode import edges, evidence, models, prompts, recorded, sae
from labcode.circuit import Keep, Out, Runner, references
from labcode.errors import EvidenceError, PatchError
from labcode.recorded import Recorded, remember, source_key

NODES = [(0, 0, "S2"), (1, 1, "END")]
STATES = [Out(), Keep(NODES), Keep(), Out(NODES)]


@pytest.fixture
def pop(toy):
    return prompts.population(toy, 8, seed=3)


def found_again(known, day=None):
    """The record as a later build reads it."""
    again = known.asked()
    again.day = day or datetime.date(2026, 1, 2)
    return again


# Rows of the record


@pytest.mark.parametrize("how", ["template-mean", "mean", "zero", "resample", "corrupted"])
def test_recorded_states_are_those_of_a_run(toy, pop, how, monkeypatch):
    reference = prompts.corrupt(toy, pop, "abc") if how == "corrupted" else references(toy, pop)
    plain = Runner(toy, pop, reference, how=how).values(STATES)
    first = Runner(toy, pop, reference, how=how, known=Recorded())
    assert torch.equal(first.values(STATES), plain)
    assert first.origin == "measured"
    known = found_again(first.known)
    second = Runner(toy, pop, reference, how=how, known=known)
    assert torch.equal(second.values(STATES[::-1]), plain.flip(0))
    assert second.origin == "recorded"
    assert (len(known.taken), len(known.measured), known.n_again) == (4, 0, 2), "one state on two prompts"
    assert known.largest < 1e-5
    monkeypatch.setattr(Runner, "_measured", None)
    assert torch.equal(second.values([Keep(NODES[::-1])])[0], plain[1]), "the order of heads is no matter"


def test_another_state_other_prompts_and_another_reference_are_measured(toy, pop):
    reference = references(toy, pop)
    first = Runner(toy, pop, reference, known=Recorded())
    first.values(STATES)
    known = first.known
    n = len(known.measured)
    other = references(toy, pop, seed=9)
    for number, (run, states) in enumerate(
        (
            (first, [Keep([(0, 0, "END")])]),
            (Runner(toy, pop, other, known=known), STATES[:1]),
            (Runner(toy, pop.subset(range(6)), reference, known=known), STATES[:1]),
            (Runner(toy, pop, reference, how="mean", known=known), STATES[:1]),
        ),
        1,
    ):
        run.values(states)
        assert len(known.measured) == n + number
    assert not known.taken


def test_means_are_not_measured_under_hooks(toy, pop):
    """With a record they are measured late: a hook that asks for them would call itself without end."""
    reference = references(toy, pop)
    first = Runner(toy, pop, reference, known=Recorded())
    first.values(STATES)
    later = Runner(toy, pop, reference, known=found_again(first.known))
    later.values(STATES)
    hooks = [("blocks.0.attn.hook_z", lambda z, hook: z)]
    with toy.hooks(fwd_hooks=hooks), pytest.raises(PatchError, match="take hooks off"):
        later.means  # noqa: B018
    assert torch.equal(later.means.of(pop, 0, 5), first.means.of(pop, 0, 5))


def test_a_stale_row_stops_the_build(toy, pop):
    reference = references(toy, pop)
    first = Runner(toy, pop, reference, known=Recorded())
    first.values(STATES)
    for damage, message in ((lambda row: row + 2e-4, r"states, row \d of 4"), (lambda row: row[:-1], "7 values for 8")):
        stale = found_again(first.known)
        stale.rows = {name: {n: damage(row) for n, row in rows.items()} for name, rows in stale.rows.items()}
        with pytest.raises(EvidenceError, match=message):
            Runner(toy, pop, reference, known=stale).values(STATES)


def test_the_day_chooses_what_is_measured_again(toy, pop):
    found = Recorded(day=datetime.date(2026, 1, 2)).prompts("a", 48)
    assert len({*found}) == 2
    days = [Recorded(day=datetime.date(2026, 1, day)).prompts("a", 48) for day in range(1, 29)]
    assert len({*map(tuple, days)}) > 20
    reference = references(toy, pop)
    first = Runner(toy, pop, reference, known=Recorded())
    many = [Keep([(layer, head, place)]) for layer in range(3) for head in range(2) for place in pop.positions]
    first.values(many)
    known = found_again(first.known)
    again = Runner(toy, pop, reference, known=known)
    for state in many:
        again.values([state])
    assert known.n_again == 2, "one of thirty states is more than two in a hundred, also where each is asked alone"


def test_recorded_arrows_and_edges_are_those_of_a_run(tiny_gpt2):
    model, known = tiny_gpt2.bridge, Recorded()
    pop = prompts.population(model, 4, seed=1)
    abc = prompts.corrupt(model, pop, "abc")
    a, b = {"a": [(0, 0, "S2"), (0, 1, "S2")]}, {"b": [(1, 0, "END")]}
    graph = edges.Graph(model)
    ranking = edges.eap_ig(model, pop, abc).ranking()
    quarter = len(ranking) // 4

    def asked(known):
        found = edges.arrows(model, pop, abc, a, b, known=known)
        scores = [edges.eap(model, pop, abc, known=known), edges.eap_ig(model, pop, abc, known=known)]
        points = edges.curve(model, pop, abc, ranking, [0, quarter, len(graph.edges)], known=known)
        left = edges.prune(model, pop, abc, ranking[:quarter], 0.01, block=quarter // 3, known=known)
        return found, scores, points, left

    plain, (made, later) = asked(None), (asked(known), asked(found_again(known)))
    for found, scores, points, left in (made, later):
        assert found.keys() == plain[0].keys()
        assert all(torch.allclose(found[arrow], lost, atol=1e-6) for arrow, lost in plain[0].items())
        for some, every in zip(scores, plain[1], strict=True):
            assert some.ranking() == every.ranking()[:quarter]
            assert some.top(3) == every.top(3)
        assert all(torch.equal(one.values, other.values) for one, other in zip(points, plain[2], strict=True))
        assert left == plain[3]
    stale = found_again(known)
    for table in stale.tables.values():
        table["some"] += 2e-4
    with pytest.raises(EvidenceError, match="scores"):
        edges.eap(model, pop, abc, known=stale)


@pytest.mark.parametrize("state", ["", "a hook is left"])
def test_what_is_measured_on_another_device_comes_back_to_the_cpu(state):
    """As what a record holds does; also where nothing is kept."""
    known = Recorded(state=lambda: state)
    with a_gpu():
        table = known.table(("t",), 2, lambda: {"x": There(torch.ones(2))}, lambda table, some: (table, table))
        rows = known.values(("c",), ("k",), 2, lambda rows, prompts: There(torch.ones(1, 2)))
        assert (table["x"].device.type, rows.device.type) == ("cpu", "cpu")


def test_scores_that_were_measured_on_another_device_are_found_on_the_cpu(tiny_gpt2):
    with a_gpu():
        model = models._loaded(models.prepare(str(tiny_gpt2.folder)), "cuda")
        pop = prompts.population(model, 4, seed=1)
        known = Recorded()
        edges.eap(model, pop, prompts.corrupt(model, pop, "abc"), known=known)
        (table,) = known.tables.values()
        assert {value.device.type for value in table.values()} == {"cpu"}
    tiny = tiny_gpt2.bridge
    edges.eap(tiny, pop, prompts.corrupt(tiny, pop, "abc"), known=found_again(known))


# Memory in the cache folder

# What is remembered is found again, made again when anything changed, and no obstacle where nothing can be kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    return tmp_path


CALLS: list[int] = []


@pytest.fixture
def counted():
    CALLS.clear()

    def measure():
        calls = globals()["CALLS"]  # by a text, so that the count is no part of the key
        calls.append(1)
        return {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor(float(len(calls)))}

    return CALLS, measure


def test_a_measurement_is_made_once(cache, toy, counted):
    calls, measure = counted
    first = remember("thing", toy, [], measure)
    again = remember("thing", toy, [], measure)
    assert len(calls) == 1
    assert torch.equal(first["x"], again["x"])
    assert float(again["y"]) == 1


def test_changed_weights_are_measured_again(cache, tiny_gpt2, counted):
    calls, measure = counted
    model = tiny_gpt2.bridge
    remember("thing", model, [], measure)
    weight = next(iter(dict(sorted(model.named_parameters())).values()))
    kept = weight.data.clone()
    try:
        weight.data += 1
        remember("thing", model, [], measure)
    finally:
        weight.data.copy_(kept)
    remember("thing", model, [], measure)
    assert len(calls) == 2


def test_other_prompts_are_measured_again(cache, toy, counted):
    calls, measure = counted
    pop = prompts.population(toy, 4, seed=1)
    others = [prompts.population(toy, 4, seed=seed) for seed in (1, 2)]
    for other in (pop, *others, prompts.corrupt(toy, pop, "abc")):
        remember("thing", toy, [other], measure)
    assert len(calls) == 3, "the same prompts once, other names, and three unrelated ones"


def test_any_change_of_labcodes_source_changes_the_key(tmp_path):
    def key():
        return source_key(tmp_path)

    (tmp_path / "one.py").write_text("x = 1\n")
    before = key()
    assert key() == before
    (tmp_path / "one.py").write_text("x = 2\n")
    changed = key()
    (tmp_path / "two.py").write_text("")
    assert len({before, changed, key()}) == 3


def test_a_damaged_file_is_measured_again(cache, toy, counted):
    calls, measure = counted
    remember("thing", toy, [], measure)
    (file,) = (cache / "measured").rglob("values.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    assert torch.equal(remember("thing", toy, [], measure)["x"], torch.arange(6.0).view(2, 3))
    assert len(calls) == 2


def test_a_value_that_was_altered_in_the_file_is_measured_again(cache, toy, counted):
    """The file is whole, and one bit of an exponent is another."""
    calls, measure = counted
    remember("thing", toy, [], measure)
    (file,) = (cache / "measured").rglob("values.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert float(load_file(file)["y"]) != 1
    assert float(remember("thing", toy, [], measure)["y"]) == 2
    assert len(calls) == 2


@pytest.mark.parametrize("trouble", ["hook", "torch", "training", "source", "meanwhile"])
def test_what_a_model_in_another_state_gives_is_neither_kept_nor_taken(cache, tiny_gpt2, counted, trouble, monkeypatch):
    calls, measure = counted
    model = tiny_gpt2.bridge
    if trouble == "hook":
        model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: value)
    elif trouble == "torch":
        handle = model.blocks[0].mlp.register_forward_hook(lambda module, given, made: 0 * made)
    elif trouble == "training":
        model.train()
    elif trouble == "source":
        monkeypatch.setattr(recorded, "source_key", lambda folder: "another")
    else:
        measure = lambda: (model.add_hook("hook_embed", lambda value, hook: value), counted[1]())[1]  # noqa: E731
    try:
        with pytest.warns(UserWarning, match="this measurement is not kept: .*(hook|training|changed)"):
            remember("thing", model, [], measure)
    finally:
        model.reset_hooks()
        model.eval()
        if trouble == "torch":
            handle.remove()
    monkeypatch.undo()
    monkeypatch.setenv("LAB_CACHE", str(cache))
    assert not list(cache.rglob("values.safetensors"))
    assert float(remember("thing", model, [], counted[1])["y"]) == len(calls) == 2


def test_the_code_of_the_measurement_is_part_of_the_key(cache, toy, tmp_path):
    for text in ("1.0", "2.0"):
        (tmp_path / "mine.py").write_text(f"import torch\ndef measure():\n    return {{'x': torch.tensor({text})}}\n")
        names: dict = {}
        exec(compile((tmp_path / "mine.py").read_text(), str(tmp_path / "mine.py"), "exec"), names)
        assert float(remember("thing", toy, [], names["measure"])["x"]) == float(text)


CELL = """
import torch
scale = {scale}
def helper(x):
    return x * {factor}
def measure(much={much}):
    return {{"x": torch.tensor([helper(y) for y in ({value},)]) * scale + much}}
"""


def test_a_cell_that_was_edited_measures_again(cache, toy):
    """A notebook's cell is no file: its code counts, with its helpers, constants and defaults."""
    plain = {"scale": 1.0, "factor": 1.0, "much": 0.0, "value": 1.0}
    for change in ({}, {"scale": 2.0}, {"factor": 3.0}, {"much": 4.0}, {"value": 5.0}):
        names: dict = {}
        exec(compile(CELL.format(**(plain | change)), "/tmp/ipykernel_1/1.py", "exec"), names)
        expected = max([1.0, *change.values()]) + bool("much" in change)
        assert float(remember("thing", toy, [], names["measure"])["x"]) == expected
    assert len(list(cache.rglob("values.safetensors"))) == 5


def test_what_a_measurement_encloses_is_part_of_the_key_and_the_line_it_stands_on_is_not():
    def made(value):
        return lambda: value

    assert recorded.doing(made(1.0)) == recorded.doing(made(1.0)) != recorded.doing(made(2.0))
    assert recorded.doing(made(made(1.0))) != recorded.doing(made(made(2.0)))
    cells = ["def f(x):\n    return x in {'a', 'b', 3}", "\n\ndef f(x):\n\n    return x in {3, 'b', 'a'}"]
    found = []
    for cell in cells:
        names: dict = {}
        exec(compile(cell, "<cell>", "exec"), names)
        found.append(recorded.doing(names["f"]))
    assert found[0] == found[1]


KINDS = {  # one cell for each, in which {} is what changes
    "list": "value = [(0, {})]",
    "dictionary": "value = {'a': [{}]}",
    "set": "value = {'a', 'b', 'c', {}}",
    "tensor": "value = torch.tensor([1.0, {}], dtype=torch.bfloat16)",
    "tensor's type": "value = torch.zeros(2, dtype=[torch.float32, torch.int32][{} - 1])",
    "tensor's shape": "value = torch.zeros(2, {})",
    "array": "value = np.array([1, {}])",
    "NumPy's number": "value = np.float64({})",
    "path": "value = pathlib.Path('{}')",
    "partial": "value = functools.partial(max, {})",
    "text's method": "value = '{}'.join",
    "labcode's dataclass": "value = circuit.Keep([({}, 0, 'END')])",
    "default": "def value(x=[{}]): return x",
    "default by name": "def value(*, x=[{}]): return x",
    "name of an argument": "def value(x{}, y): return y",
    "attribute of a function": "def value(): return 1\nvalue.x = {}",
    "wrapper": "def by(x): return lambda f: functools.wraps(f)(lambda: f() * x)\n@by({})\ndef value(): return 1",
    "functions that call each other": "def value(n): return other(n)\ndef other(n): return value(n - {})",
    "beside functions of packages": "value = [F.softmax, torch.zeros, circuit.ablate, {}]",
}
KIND = """
import functools, pathlib
import numpy as np, torch
import torch.nn.functional as F
from labcode import circuit, recorded
{}
def enclosed(value):
    return lambda: value
keys = recorded.doing(lambda: value), recorded.doing(enclosed(value))
"""


def keys_of(cell):
    names: dict = {"__name__": "__main__"}
    exec(compile(KIND.replace("{}", cell), "<cell>", "exec", dont_inherit=True), names)
    return names["keys"]


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_measurement_takes_from_around_it_is_part_of_the_key(kind):
    one, same, other = (keys_of(KINDS[kind].replace("{}", number)) for number in "112")
    assert one == same
    assert not {*one} & {*other}, "neither of a notebook nor of a closure"


def test_another_process_finds_the_same_keys():
    cells = [cell.replace("{}", "1") for cell in KINDS.values()]
    code = f"import json, sys\nsys.path += {sys.path}\nimport test_recorded\n"
    code += f"print(json.dumps([test_recorded.keys_of(cell) for cell in {cells}]))"
    asked = [sys.executable, "-c", code]
    made = subprocess.run(asked, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    found = dict(zip(KINDS, json.loads(made.stdout.splitlines()[-1]), strict=True))
    assert found == {kind: [*keys_of(cell)] for kind, cell in zip(KINDS, cells, strict=True)}


@pytest.mark.parametrize("how", ["import mine", "from mine import look", "inside", "inside, its part"])
def test_a_file_of_ones_own_that_was_edited_measures_again(cache, toy, tmp_path, monkeypatch, how):
    """Also where it is imported late, and what a function of it looks up."""
    (tmp_path / "mine").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for number in (1, 1, 2):
        (tmp_path / "mine" / "__init__.py").write_text(f"HEADS = [{number}]\ndef look(): return HEADS[0]\n")
        (tmp_path / "mine" / "part.py").write_text(f"HEADS = [{number}]\ndef look(): return HEADS[0]\n")
        for name in ("mine", "mine.part"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        late = {"inside": "import mine", "inside, its part": "from mine.part import look"}.get(how, "pass")
        call = "mine.look()" if late == "import mine" or how == "import mine" else "look()"
        text = f"import torch\n{'pass' if late != 'pass' else how}\ndef measure():\n    {late}\n"
        names: dict = {"__name__": "a notebook"}
        exec(compile(f"{text}    return {{'x': torch.tensor({call})}}", "<cell>", "exec"), names)
        assert int(remember("thing", toy, [], names["measure"])["x"]) == number
    assert len(list(cache.rglob("values.safetensors"))) == 2


@pytest.mark.parametrize("what", ["another model", "a lock", "an open file"])
def test_what_no_key_can_hold_is_measured_each_time_and_said(cache, toy, tiny_gpt2, counted, what):
    inner = counted[1]
    with open(os.devnull) as file:
        thing = {"another model": tiny_gpt2.bridge, "a lock": threading.Lock(), "an open file": file}[what]

        def measure():
            assert thing
            return inner()

        for number in (1, 2):
            with pytest.warns(
                UserWarning, match="is not kept: it depends on `thing`, an? .*; let it depend on the num"
            ):
                assert float(remember("thing", toy, [], measure)["y"]) == number
    assert not list(cache.rglob("values.safetensors"))


@pytest.mark.filterwarnings("error:this measurement is not kept")
def test_whoever_remembers_finds_it_again(cache, tiny_gpt2, monkeypatch):
    """All callers of labcode and of the book, and a chapter's own cell with a model and prompts."""
    model = tiny_gpt2.bridge
    cell: dict = {"__name__": "__main__", "model": model, "pop": prompts.population(model, 8, seed=1)}
    made = "metrics.logit_difference(metrics.end_logits(model, pop), pop)"
    code = f"from labcode import metrics\ndef measure():\n    return {{'x': {made}}}"
    exec(compile(code, "<cell>", "exec"), cell)

    def asked():
        seen = evidence.load(model)
        seen.arrows({"a": [(0, 0, "S2")]}, {"b": [(1, 0, "END")]})
        sketch._said(model, [(1, 0), (1, 1)])
        sae.collect(model, cell["pop"].tokens, 0, keep=True)
        remember("of a chapter", model, [cell["pop"]], cell["measure"])

    asked()
    assert len(list(cache.rglob("values.safetensors"))) == 6, "two halves, arrows, signals, activations, the cell"
    monkeypatch.setattr(recorded, "store", None)
    asked()


def test_another_vocabulary_of_the_same_size_is_measured_again(cache, tiny_gpt2, counted, monkeypatch):
    calls, measure = counted
    model = tiny_gpt2.bridge
    remember("thing", model, [], measure)

    other = copy.deepcopy(model.tokenizer)
    names = [*other.get_vocab()]
    other.get_vocab = lambda: dict(zip(names, reversed(range(len(names))), strict=True))
    key = recorded.weights_key(model)
    monkeypatch.setattr(model, "_tokenizer", other)
    assert recorded.weights_key(model) == key
    remember("thing", model, [], measure)
    assert len(calls) == 2


def test_what_is_kept_is_read_once(cache, toy, counted, monkeypatch):
    calls, measure = counted
    remember("thing", toy, [], measure)
    read = []
    fetch = recorded.fetch
    monkeypatch.setattr(recorded, "fetch", lambda path: (read.append(path), fetch(path))[1])
    assert torch.equal(remember("thing", toy, [], measure)["x"], torch.arange(6.0).view(2, 3))
    assert (len(read), len(calls)) == (1, 1)


def test_rows_are_neither_taken_nor_kept_while_the_model_is_changed(tiny_gpt2):
    model = tiny_gpt2.bridge
    known = Recorded()
    known.guard(model)
    known.values(("c",), ("k",), 2, lambda rows, prompts: torch.ones(1, 2))

    def another(rows, prompts):
        return torch.full((1, 2), 5.0)

    with model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: value)]):
        assert known.values(("c",), ("k",), 2, another).tolist() == [[5.0, 5.0]]
        assert known.values(("c",), ("new",), 2, another).tolist() == [[5.0, 5.0]]
        assert known.table(("t",), 2, lambda: {"x": torch.ones(1)}, lambda table, some: None)["x"].tolist() == [1.0]
    assert (len(known.rows[recorded.digest("row", "c")]), known.tables) == (1, {})
    assert known.values(("c",), ("k",), 2, another).tolist() == [[1.0, 1.0]]
    weight = model.blocks[0].ln1.weight
    with torch.no_grad():
        weight += 0
    assert known.values(("c",), ("k",), 2, another).tolist() == [[5.0, 5.0]]


def test_a_cache_that_cannot_be_written_costs_a_warning_only(cache, toy, counted):
    calls, measure = counted
    (cache / "measured").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not kept: the cache folder .* set LAB_CACHE"):
        found = remember("thing", toy, [], measure)
    assert torch.equal(found["x"], torch.arange(6.0).view(2, 3))
    assert len(calls) == 1


def test_an_error_while_measuring_is_the_callers_and_leaves_nothing(cache, toy):
    def measure():
        raise ZeroDivisionError("the measurement's own")

    with pytest.raises(ZeroDivisionError):
        remember("thing", toy, [], measure)
    assert not list((cache / "measured").rglob("values.safetensors"))
