"""What is measured once and found again: by name in the cache folder, or row by row in the recorded evidence.

`remember` keeps tensors in the lab's cache folder. `Recorded` holds rows of one value per prompt, each under a key made
of all that it depends on: the prompts, the intervention, the heads or edges. Whoever measures (`circuit.Runner`,
`edges.arrows`, `edges.run` and what is built on it) can be given one: rows that it holds are taken from it, others are
measured. So a chapter that asks for something new is slower and never wrong. Of what is taken, a part is measured again
on a few prompts, by the day, and a difference stops the build.
"""

from __future__ import annotations

import contextlib
import datetime
import dis
import functools
import hashlib
import importlib
import json
import math
import random
import sys
import types
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labcode.errors import EvidenceError, ModelError
from labcode.forward import ELSEWHERE
from labcode.inputs import guard, shown, tokenizer_key
from labcode.models import build_once, cache_dir, unclean, weights_key

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

TOLERANCE = 1e-4  # in the unit of each value: nats, or shares of attention
AT_ONCE = 2  # prompts on which a build measures again
SHARE = 0.02  # of the rows that are taken from the record: at least so many of each context, and at least one

Measure = Callable[[list[int], list[int] | None], "Float[Tensor, 'row batch']"]
"""Measures the rows of these numbers, on the prompts of these numbers or on all."""


def today() -> datetime.date:
    """The day that chooses what is measured again, the same all over the world."""
    return datetime.datetime.now(datetime.UTC).date()


@dataclass
class Recorded:
    """Rows of one value per prompt, by what they depend on.

    Attributes:
        rows: by context and key, both hashed. A context holds the prompts and the intervention; its rows have one
            length.
        tables: larger things that are no rows, by context.
        day: chooses what is measured again.
        taken: the rows that came from the record. measured: those that were measured in this run, kept from then on.
        n_again, largest: how many values were measured again, and the largest difference.
        watch: called after each measurement, so that a long recording can be saved on its way.
        state: a clause that says why the model isn't in the state that was recorded, or nothing; `guard` sets it.
        tolerance: the largest difference that is allowed, in the unit of each value.
    """

    rows: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    tables: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    day: datetime.date = field(default_factory=today)
    taken: set[tuple[str, int]] = field(default_factory=set)
    measured: set[tuple[str, int]] = field(default_factory=set)
    n_again: int = 0
    largest: float = 0.0
    watch: Callable[[Recorded], None] | None = None
    state: Callable[[], str] = str
    tolerance: float = TOLERANCE
    _checked: dict[str, int] = field(default_factory=dict)

    def values(
        self, context: Sequence[Hashable], keys: Sequence[Hashable], n: int, measure: Measure
    ) -> Float[Tensor, "row batch"]:
        """The rows of these keys, from the record where it has them.

        Args:
            context: what all rows depend on, hashed by their text: strings, numbers, and tuples of them.
            keys: of each row.
            n: number of prompts.
            measure: what is not known, and a part of what is.

        Raises:
            EvidenceError: a row with another number of prompts; one that differs from what is measured again.
        """
        if self.state():  # neither taken nor kept
            return measure(list(range(len(keys))), None).cpu()
        name = digest("row", *context)
        known = self.rows.setdefault(name, {})
        numbers = [int(digest(key)[:15], 16) for key in keys]
        missing = [i for i, number in enumerate(numbers) if number not in known]
        fresh = [
            i
            for i, number in enumerate(numbers)
            if number in known and (name, number) not in self.measured and (name, number) not in self.taken
        ]
        for i in fresh:
            if known[numbers[i]].shape != (n,):
                raise EvidenceError(
                    f"a recorded row has {known[numbers[i]].numel()} values for {n} prompts: make the record again "
                    "with `make evidence`",
                    see="evidence",
                )
        if fresh:
            self.taken |= {(name, numbers[i]) for i in fresh}
            here = sum(context == name for context, _ in self.taken)
            due = min(len(fresh), math.ceil(SHARE * here) - self._checked.get(name, 0))
            if due > 0:
                some = sorted(random.Random(f"{self.day} {name} {here}").sample(fresh, due))
                prompts = self.prompts(name, n)
                old = torch.stack([known[numbers[i]] for i in some])[:, prompts]
                self.compare(measure(some, prompts), old, f"{context[0]}, row {some[0]} of {len(keys)}")
                self._checked[name] = self._checked.get(name, 0) + due
        if missing:
            for i, row in zip(missing, measure(missing, None), strict=True):
                known[numbers[i]] = row.detach().cpu().clone()
                self.measured.add((name, numbers[i]))
            self.saved()
        return torch.stack([known[number] for number in numbers])

    def has_given(self, context: Sequence[Hashable]) -> bool:
        """Whether some rows of this context came from the record."""
        name = digest("row", *context)
        return any(name == one for one, _ in self.taken)

    def table(
        self,
        context: Sequence[Hashable],
        n: int,
        measure: Callable[[], dict[str, Tensor]],
        again: Callable[[dict[str, Tensor], list[int]], tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        """Something larger that depends on prompts: tensors by name.

        Args:
            again: takes what is recorded and a few prompts; returns what it measures on them and what is recorded.

        Raises:
            EvidenceError: what is measured again differs.
        """
        if self.state():
            return _on_cpu(measure())
        name = digest("table", *context)
        at = (name, 0)
        if name in self.tables and at not in self.taken and at not in self.measured:
            new, old = again(self.tables[name], self.prompts(name, n))
            self.compare(new, old, str(context[0]))
            self.taken.add(at)
        if name not in self.tables:
            self.tables[name] = _on_cpu(measure())
            self.measured.add(at)
            self.saved()
        return self.tables[name]

    def prompts(self, name: str, n: int) -> list[int]:
        """On which prompts of a context the day measures again."""
        return sorted(random.Random(f"{self.day} {name}").sample(range(n), min(AT_ONCE, n)))

    def compare(self, new: Tensor, old: Tensor, what: str) -> None:
        """Count what was measured again.

        Raises:
            EvidenceError: a difference above `tolerance`, or values that are not finite.
        """
        gap = float((new.cpu() - old.cpu()).abs().max())
        self.n_again += new.numel()
        self.largest = max(self.largest, gap)
        if not gap <= self.tolerance:
            raise stale(gap, what, self.tolerance)

    def guard(self, model: TransformerBridge) -> None:
        """Take and keep rows only while the model stays as it is now: no hooks, evaluation mode, the same weights.

        On another device than the CPU, where records are made, values that are measured again may differ by more.

        Weights that are changed through `.data`, past torch's counter of changes, are seen by the next `evidence.load`.
        """
        weights = list(model.parameters())
        if str(model.cfg.device) != "cpu":
            self.tolerance = max(self.tolerance, ELSEWHERE)

        def versions() -> list[int]:
            return [0 if weight.is_inference() else weight._version for weight in weights]

        before = versions()
        self.state = lambda: unclean(model) or ("" if versions() == before else "its weights were changed")

    def saved(self) -> None:
        """Tell the watcher that something was measured."""
        if self.watch:
            self.watch(self)

    def asked(self) -> Recorded:
        """Only what this run asked for: what goes into a new record."""
        of = self.taken | self.measured
        rows = {
            name: {number: row for number, row in known.items() if (name, number) in of}
            for name, known in self.rows.items()
        }
        tables = {name: table for name, table in self.tables.items() if (name, 0) in of}
        return Recorded({name: known for name, known in rows.items() if known}, tables)


def stale(gap: float, where: str, allowed: float = TOLERANCE) -> EvidenceError:
    """What is said where a record and a run differ."""
    return EvidenceError(
        f"the recorded evidence differs from this run by {gap:.1g} ({where}), and {allowed:g} is allowed: "
        "the code or the model has changed since; make it again with `make evidence`",
        see="evidence",
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same on the CPU, where records are, wherever the model is."""
    return {name: value.detach().cpu() for name, value in tensors.items()}


def digest(*parts: Hashable) -> str:
    """A short text for everything that a value depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def remember(
    name: str, model: TransformerBridge, of: Sequence[Population | Tensor], measure: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `measure` returns, from the lab's cache folder if it was measured before.

    A name alone would go stale. The key of a measurement holds the model's weights and vocabulary, the prompts, all of
    labcode's source as this process imported it, that of the measurement and all values that it takes from around it
    (`doing`), the version of torch and the kind of device, so a result is found again only where the same code would
    give it again. It carries a checksum, is written aside and renamed, and a lock lets one process measure while others
    wait for it.

    Args:
        name: of the measurement, since others may be made of the same prompts.
        of: prompts, or contexts of token ids.
        measure: makes the tensors, by name. Called at most once, and by one process at a time.

    Returns:
        The tensors, on the CPU. Where the cache folder can't be used, the model isn't as its weights say
        (`models.unclean`), labcode's files have changed since they were imported, or the measurement depends on
        something that no key can hold, another model say, there is a warning, and they are measured and not kept.
    """
    given = [*model.named_parameters(), *model.named_modules(), ("model", model), ("tokenizer", model.tokenizer)]
    known = {id(one): name for name, one in given} | {id(one): f"of {number}" for number, one in enumerate(of)}
    try:
        why, does = _changed(model), doing(measure, known)
    except EvidenceError as reason:
        why = str(reason)
    if why:
        warnings.warn(f"this measurement is not kept: {why}", stacklevel=3)
        return _on_cpu(measure())
    weights, device = weights_key(model), next(model.parameters()).device.type
    parts = [name, weights, tokenizer_key(model.tokenizer), device, SOURCE, does]
    parts += map(prompt_key, of)
    folder = cache_dir() / "measured" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    made: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}

    def build(aside: Path) -> None:
        made.update(_on_cpu(measure()))
        why = _changed(model) or ("" if weights_key(model) == weights else "its weights were changed meanwhile")
        if why:
            raise ModelError(why)
        store(aside / "values.safetensors", made)

    def read(target: Path) -> bool:
        try:
            kept.update(fetch(target / "values.safetensors")[0])
        except Exception:  # whatever is wrong with the file, measuring again mends it
            return False
        return True

    try:
        build_once(folder, read, build, needs=2**20)
    except ModelError as reason:
        warnings.warn(f"this measurement is not kept: {reason}", stacklevel=3)
        return made or _on_cpu(measure())
    return made or kept or _on_cpu(measure())


def doing(function: Callable[..., Any], known: Mapping[int, str] = types.MappingProxyType({})) -> str:
    """What a function does, as a short text: it is another after an edit, also of a notebook's cell, which is no file.

    Its code, and what this takes from around it: numbers, texts, tensors, containers of these, packages' dataclasses,
    and functions and modules of one's own with all that they take. What an installed package has goes by its name, and
    so does what labcode has, since `SOURCE` holds it whole.

    Args:
        known: texts for objects that aren't looked into, by their `id`.

    Raises:
        EvidenceError: it depends on something else, whose state nothing here can tell.

    Limits: files that are read, random numbers, and what is looked up by a text (`globals()[name]`) are not seen.
    """
    seen: set[int] = set()

    def told(one: Any) -> Any:
        kind = f"{type(one).__module__}.{type(one).__qualname__}"
        if id(one) in known:
            return known[id(one)]
        if one is None or isinstance(one, bool | int | float | complex | str | bytes | range | torch.dtype | PurePath):
            return kind, repr(one)
        if isinstance(one, torch.Tensor):
            return kind, checksum({"": one}, {})
        if isinstance(one, np.ndarray) and not one.dtype.hasobject:
            return kind, str(one.dtype), one.shape, one.tobytes()
        if isinstance(one, tuple | list):
            return kind, [told(part) for part in one]
        if isinstance(one, set | frozenset):
            return kind, sorted(map(repr, map(told, one)))  # texts have another order in each process
        if isinstance(one, dict):
            return kind, [(told(name), told(value)) for name, value in one.items()]
        if isinstance(one, types.CodeType):
            takes = one.co_flags, one.co_argcount, one.co_kwonlyargcount, one.co_varnames
            return one.co_code, one.co_exceptiontable, one.co_names, takes, [told(value) for value in one.co_consts]
        if isinstance(one, functools.partial):
            return kind, told(one.func), told(one.args), told(one.keywords)
        if isinstance(one, types.MethodType):
            return kind, told(one.__func__), told(one.__self__)
        if isinstance(one, types.ModuleType):
            if _installed(one.__name__) or id(one) in seen:
                return kind, one.__name__
            seen.add(id(one))
            return kind, around({name: value for name, value in vars(one).items() if not name.startswith("__")})
        if isinstance(one, types.BuiltinFunctionType):
            return kind, one.__qualname__, isinstance(one.__self__, types.ModuleType | type) or told(one.__self__)
        if isinstance(one, type | types.FunctionType) and _installed(one.__module__):
            return kind, one.__module__, one.__qualname__
        if isinstance(one, types.FunctionType):
            if id(one) in seen:
                return kind, one.__qualname__
            seen.add(id(one))
            given = {"defaults": one.__defaults__, "defaults by name": one.__kwdefaults__, "attributes": vars(one)}
            return kind, told(one.__code__), around(given), around(_around(one))
        if is_dataclass(one) and _installed(type(one).__module__):
            return kind, around({part.name: getattr(one, part.name) for part in fields(one)})
        raise TypeError(kind)

    def around(values: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = []
        for name, value in sorted(values.items()):
            try:
                found.append((name, told(value)))
            except (TypeError, ImportError) as error:
                raise EvidenceError(
                    f"it depends on `{name}`, {shown(value)}, and nothing tells whether that has changed; let it "
                    "depend on the numbers, texts or tensors that it needs of that"
                ) from error
        return found

    return digest(repr(around({"measure": function})))


def _around(function: types.FunctionType) -> dict[str, Any]:
    """What a function, with those in it, takes from around it, by name; what it imports while it runs too."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a name that has no value yet
            found[name] = cell.cell_contents
    codes = [function.__code__]
    for code in codes:
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                found[step.argval] = function.__globals__[step.argval]
            elif step.opname == "IMPORT_NAME":
                found[step.argval] = sys.modules.get(step.argval) or importlib.import_module(step.argval)
    return found


def _installed(module: str | None) -> bool:
    """Whether a module is labcode's, Python's or an installed package's, and not a file or notebook of one's own."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names | {"labcode", "__main__"}:
        return top != "__main__"  # whatever package has started it
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _changed(model: TransformerBridge) -> str:
    """Why a measurement of now can't be kept, as a clause; "" if it can."""
    if why := unclean(model):
        return why
    here = Path(__file__).parent
    return "" if source_key(here) == SOURCE else f"the files in {here} have changed since they were imported"


def checksum(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> str:
    """A hash of tensors, by name, and of what is said about them."""
    mark = hashlib.sha256(json.dumps(dict(said), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        mark.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        mark.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return mark.hexdigest()


def store(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str] | None = None) -> None:
    """Write tensors, what is said about them, and a checksum of both."""
    from safetensors.torch import save_file

    flat = {name: value.contiguous() for name, value in _on_cpu(tensors).items()}
    save_file(flat, path, {**(said or {}), "checksum": checksum(flat, said or {})})


def fetch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `store` has written: the tensors, and what is said about them.

    Raises:
        ValueError: another checksum, or none. OSError, SafetensorError: no such file, or a damaged one.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        said = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if said.pop("checksum", "") != checksum(tensors, said):
        raise ValueError("its checksum is another: the file is damaged or was changed")
    return tensors, said


def prompt_key(pop: Population | Tensor) -> str:
    """Everything about prompts, or about contexts of token ids, that a measurement can depend on, as a short text."""
    if isinstance(pop, torch.Tensor):
        return digest(tuple(pop.shape), str(pop.dtype), pop.cpu().numpy().tobytes())
    places = [pop.positions[name] for name in sorted(pop.positions)]
    templates = torch.tensor([prompt.template for prompt in pop.prompts])
    parts = [pop.tokens, pop.lengths, pop.io_ids, pop.s_ids, pop.draws, templates, *places]
    return hashlib.sha256(b"\0".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


def source_key(folder: Path) -> str:
    """A hash of all Python files of a folder, and of torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


SOURCE = source_key(Path(__file__).parent)
"""Of the files as this process has imported them."""


guard(globals(), EvidenceError)
