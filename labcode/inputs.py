"""One entrance for all arguments: what a public function asks for stands in its signature, and is checked by it.

A module ends with `guard(globals(), ItsError)`. From then on each public function, method and constructor of it looks
at its arguments before it begins: heads are pairs of whole numbers, a tensor has as many dimensions as its annotation
names, and the same length along a name wherever that occurs, neither a text nor a set is a list, a population was made
with the tokenizer of the model that it comes with. The same thing in another dress is taken: whole numbers of NumPy and
torch, a generator in place of a list, a text in place of a path. All else is an error that names the argument.

Then it goes to where the model is (`there`), so that a function that measures says nothing of devices: what is given is
moved, what is made is made there, and what comes of it is brought back to the CPU. An object that holds runs, a `Joint`
or a `Runner`, stays there with all its attributes: its methods return what is on the CPU. What a reader gives to be
called, a metric say, is called with what is there.

Only what comes from outside is looked at: modules of the lab call each other freely, and what a reader gives to be
called, a metric say, is outside. So no function checks types of its own; what its numbers must be to make sense, it
still says itself. A library that checks types, such as beartype, would refuse what can be taken, and speak to the
reader in its own words.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import math
import operator
import os
import sys
import types
import weakref
from collections.abc import Callable, Collection, ItemsView, Iterable, KeysView, Mapping, Set
from contextvars import ContextVar
from copy import copy, deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from labcode.errors import HeadError, LabError

Check = Callable[[Any, dict[str, Any]], Any]
"""Takes a value, and what is known of the call: the model, populations, sizes by name. Returns the value to use."""


class Misfit(Exception):
    """A value that is not what its argument asks for; the text goes on after the argument's name."""


class NoHead(Misfit):
    """A value that can be no head of any model."""


ONE = "is 1 or more"
_WORDS = {  # arguments whose name says everywhere what they can be
    "level quantile": (lambda x: 0 < x < 1, "lies between 0 and 1, as 0.95 does"),
    "epsilon": (lambda x: 0 < x < 0.5, "lies between 0 and a half"),
    "lr factor bin_width height tau": (lambda x: x > 0, "is above 0"),
    "seed seeds more ridge": (lambda x: x >= 0, "is 0 or more"),
    "n size batch batch_size n_resamples n_flips n_shuffles n_permutations every steps": (lambda x: x >= 1, ONE),
    "few candidates top d_sae block contexts": (lambda x: x >= 1, ONE),
}
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    name: rule for names, rule in _WORDS.items() for name in names.split()
}

NOT_MEASURING = {f"labcode.{name}" for name in ("models", "prompts", "tasks", "corpus")}
"""Modules that only load and describe a model, or take its tokenizer: they work with any precision."""

STAYING = NOT_MEASURING | {"labcode.recorded", "labcode.evidence", "labcode.sae.shipped", "labcode.transcoder.shipped"}
"""Modules and functions that stay on the CPU: what they keep has to be there, and what they call goes by itself."""

_classes: dict[str, type] = {}  # the public classes of guarded modules, by name


def shown(value: object) -> str:
    """A value in a few words."""
    if value is None:
        return "None"
    name = type(value).__name__
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, int) and value.bit_length() > 63:
        return "a whole number of more than 64 bits"  # more than 4,300 digits Python itself refuses to write
    if hasattr(value, "shape"):
        return f"a {name} of {str(getattr(value, 'dtype', '')).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, str | bool | int | float):
        return repr(value) if len(repr(value)) < 60 else f"a {name} of {len(repr(value))} characters"
    if type(value) is tuple and len(value) < 5:
        return f"({', '.join(map(shown, value))})"
    return "a function" if isinstance(value, types.FunctionType) else f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def whole(value: Any, call: dict[str, Any]) -> int:
    """A whole number of at most 64 bits: of Python, NumPy or torch, no truth value and no 1.0."""
    if type(value) is int and value.bit_length() < 64:
        return value
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        raise Misfit(f"{shown(value)} is a truth value, and a whole number is asked for")
    try:
        found = operator.index(value)
    except (TypeError, RuntimeError, ValueError):
        raise Misfit(f"{shown(value)} is no whole number") from None
    if found.bit_length() > 63:
        raise Misfit(f"{shown(found)}: too large")
    return found


def number(value: Any, call: dict[str, Any]) -> float:
    """A number that may be NaN, as the entries of a table may."""
    if type(value) is float or (type(value) is int and value.bit_length() < 64):
        return value
    if isinstance(value, bool | str | bytes) or "bool" in str(getattr(value, "dtype", "")):
        raise Misfit(f"{shown(value)} is no number")
    try:
        return float(value)
    except OverflowError:
        raise Misfit(f"{shown(value)}: too large") from None
    except (TypeError, RuntimeError, ValueError):
        raise Misfit(f"{shown(value)} is no number") from None


def finite(value: Any, call: dict[str, Any]) -> float:
    """A number that is neither NaN nor infinite."""
    found = number(value, call)
    if not math.isfinite(found):
        raise Misfit(f"{found} is no finite number")
    return found


def truth(value: Any, call: dict[str, Any]) -> bool:
    """True or False, also of NumPy, or of a tensor with one entry."""
    try:
        found = value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError):  # more than one entry
        found = value
    if not isinstance(found, bool):
        raise Misfit(f"{shown(value)} is not one truth value, True or False")
    return found


def needs(fits: Callable[[Any], bool], said: str) -> Check:
    """What is taken as it is, if it fits."""

    def check(value: Any, call: dict[str, Any]) -> Any:
        if not fits(value):
            raise Misfit(f"{shown(value)} {said}")
        return value

    return check


def path(value: Any, call: dict[str, Any]) -> Path:
    """A path, or the text of one."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise Misfit(f"{shown(value)} is no path")
    return Path(value)


def model(value: Any, call: dict[str, Any]) -> Any:
    """A loaded model, which the call remembers."""
    kind = type(value)  # asked itself, a bridge would collect its hooks for 15 ms at each call
    if not hasattr(kind, "hook_dict") or not hasattr(value, "cfg"):
        raise Misfit(f"{shown(value)} is no loaded model: give models.load()")
    call["model"] = value
    for name, size in (("d_model", value.cfg.d_model), ("d_vocab", value.cfg.d_vocab)):
        if call.setdefault(name, size) != size:
            raise Misfit(f"its {name} is {size}, and another argument has {call[name]} entries along it")
    return value


def head(value: Any, call: dict[str, Any]) -> tuple[int, int]:
    """A head: layer and number, whole."""
    layer, number_ = _entries(value, 2, "a head is (layer, head), such as (9, 6)")
    return _of_head(layer, call), _of_head(number_, call)


def node(value: Any, call: dict[str, Any]) -> tuple[int, int, str]:
    """A head at a position."""
    layer, number_, place = _entries(value, 3, 'a node is (layer, head, position), such as (9, 6, "END")')
    return _of_head(layer, call), _of_head(number_, call), text(place, call)


def _of_head(value: Any, call: dict[str, Any]) -> int:
    try:
        return whole(value, call)
    except Misfit as misfit:
        raise NoHead(*misfit.args) from None


def _entries(value: Any, n: int, what: str) -> tuple[Any, ...]:
    if type(value) is not tuple:
        if isinstance(value, str | Mapping | Set) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
            raise NoHead(f"{shown(value)}: {what}")
        value = value.tolist() if hasattr(value, "tolist") else value
        value = tuple(value) if isinstance(value, Iterable) else (value,)
    if len(value) != n:
        raise NoHead(f"{shown(value)}: {what}")
    return value


def tensor(kind: str, dims: str) -> Check:
    """A tensor of truth values, whole numbers or any real ones, with these dimensions."""
    names = dims.split()
    open_ = next((i for i, name in enumerate(names) if name.startswith(("*", "..."))), None)
    back = 0 if open_ is None else len(names) - open_ - 1
    front = len(names) if open_ is None else open_
    asked = {"Bool": "truth values", "Int": "whole numbers", "Float": "real numbers"}[kind]

    def check(value: Any, call: dict[str, Any]) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor):
            raise Misfit(f"{shown(value)} is no tensor: give torch.as_tensor(...)")
        binary = value.dtype == torch.bool
        if binary != (kind == "Bool") or value.is_complex() or (kind == "Int" and value.is_floating_point()):
            raise Misfit(f"{shown(value)}: {asked} are asked for")
        shape = tuple(value.shape)
        if len(shape) < front + back or (open_ is None and len(shape) != front):
            raise Misfit(f"its shape is {shape}, and [{dims.strip()}] is asked for")
        sizes = [*zip(names[:front], shape, strict=False)]
        if back:
            sizes += zip(names[-back:], shape[-back:], strict=True)
        for name, size in sizes:
            if name.isdigit() and size != int(name):
                raise Misfit(f"its shape is {shape}, and [{dims.strip()}] is asked for")
            if not name.isdigit() and call.setdefault(name, size) != size:
                raise Misfit(f"it has {size} entries along {name!r}, and another argument has {call[name]}")
        return value

    return check


def options(every: tuple[Any, ...]) -> Check:
    """One of a few values."""

    def check(value: Any, call: dict[str, Any]) -> Any:
        if not isinstance(value, str | int):
            raise Misfit(f"{shown(value)} is none of {', '.join(map(str, every))}")
        if value not in every:
            raise Misfit(f"unknown {call['argument']} {shown(value)}: choose one of {', '.join(map(str, every))}")
        return value

    return check


def instance(kind: type) -> Check:
    """Something of a class of the lab; a population is remembered by the call."""

    def check(value: Any, call: dict[str, Any]) -> Any:
        if not isinstance(value, kind):
            raise Misfit(f"{shown(value)} is no {kind.__module__.removeprefix('labcode.')}.{kind.__name__}")
        if kind.__name__ == "Population":
            _remember(value, call)
        return value

    return check


def _remember(population: Any, call: dict[str, Any]) -> None:
    """Note a population; all of one call are as long as each other, except the one that means are taken over."""
    before = call.setdefault("populations", [])
    if call["argument"] != "reference":
        size, n = len(population), call.setdefault("batch", len(population))
        if size != n and before:
            raise Misfit(f"{size} prompts against {n}: each prompt needs one partner")
        if size != n:
            raise Misfit(f"{n} entries along 'batch' of another argument for {size} prompts: give one for each")
    before.append(population)


def listed(each: Check | None, keep: bool) -> Check:
    """Several things in order: a list, or what can be made one.

    Args:
        keep: sets and the like stay what they are. Without it order counts: a set has none, and a dictionary would be
            taken for its keys.
    """

    def check(value: Any, call: dict[str, Any]) -> Any:
        if isinstance(value, str | bytes):
            raise Misfit(f"{shown(value)} is one text, and a list is asked for")
        if hasattr(value, "tolist"):
            if "bool" in str(value.dtype) and each is whole:
                raise Misfit(f"{shown(value)} is a mask, and numbers are asked for: give mask.nonzero()[:, 0]")
            value = value.tolist()
        if not isinstance(value, Iterable):
            raise Misfit(f"{shown(value)} is no list")
        if not keep and isinstance(value, Set | Mapping) and not isinstance(value, KeysView | ItemsView):
            raise Misfit(f"{shown(value)} is no list: give its entries in the order that you mean")
        if not isinstance(value, list | tuple) and (not isinstance(value, Collection) or not keep):
            value = value if isinstance(value, range) else list(value)
        if each is None or (each is whole and isinstance(value, range)):
            return value
        found = [each(one, {**call}) for one in value]  # they may differ in size
        same = all(a is b for a, b in zip(found, value, strict=True))
        return value if same else tuple(found) if isinstance(value, tuple) else found

    return check


def mapped(key: Check | None, each: Check | None) -> Check:
    """A dictionary."""

    def check(value: Any, call: dict[str, Any]) -> Any:
        if not isinstance(value, Mapping):
            raise Misfit(f"{shown(value)} is no dictionary")
        found: dict[Any, Any] = {}
        for a, b in value.items():
            name = key(a, call) if key else a
            if name in found:
                raise Misfit(f"two of its keys are {shown(name)}")
            found[name] = each(b, {**call}) if each else b
        return found

    return check


def pair(parts: list[Check | None]) -> Check:
    """A tuple of so many entries."""

    def check(value: Any, call: dict[str, Any]) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise Misfit(f"{shown(value)}: {len(parts)} entries are asked for")
        return tuple(part(one, call) if part else one for part, one in zip(parts, value, strict=True))

    return check


def either(parts: list[Check]) -> Check:
    """What fits one of several."""

    def check(value: Any, call: dict[str, Any]) -> Any:
        misfits: list[Misfit] = []
        for part in parts:
            try:
                return part(value, call)
            except Misfit as misfit:
                misfits += [misfit] if part is not nothing else []
        raise (NoHead if isinstance(misfits[-1], NoHead) else Misfit)("; ".join(dict.fromkeys(map(str, misfits))))

    return check


def _in_a_set(value: Any) -> bool:
    try:
        return bool({value})
    except TypeError:
        return False


text = needs(lambda x: isinstance(x, str), "is no text")
nothing = needs(lambda x: x is None, "is not None")
function = needs(callable, "is no function")
dictionary = needs(  # an autoencoder or a transcoder, of sae-lens or shaped like one
    lambda x: not isinstance(x, str) and any(hasattr(x, part) for part in ("cfg", "encode", "W_dec")),
    "has neither weights nor settings of an autoencoder",
)

_NAMED: dict[str, Check] = {
    "int": whole,
    "float": finite,
    "bool": truth,
    "str": text,
    "Path": path,
    "Callable": function,
    "Hashable": needs(_in_a_set, "can be in no set: give tuples in place of lists"),
    "TransformerBridge": model,
    "Head": head,
    "Node": node,
    "None": nothing,
    "Tensor": tensor("Float", "..."),
    "device": needs(lambda x: type(x).__name__ == "device", "is no device of torch"),
}


def _compiled(of: ast.expr, names: Mapping[str, Any]) -> Check | None:
    """The check for an annotation; None where it says nothing."""
    if isinstance(of, ast.Constant):
        return nothing if of.value is None else _compiled(ast.parse(str(of.value), mode="eval").body, names)
    if isinstance(of, ast.BinOp):
        parts = [_compiled(one, names) for one in (of.left, of.right)]
        return None if None in parts else either([one for one in parts if one])
    if isinstance(of, ast.Name | ast.Attribute):
        return _of_name(of.id if isinstance(of, ast.Name) else of.attr, names)
    if not isinstance(of, ast.Subscript) or not isinstance(of.value, ast.Name):
        return None
    outer, inner = of.value.id, of.slice
    several = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if outer in ("Float", "Int", "Bool"):
        kind, dims = several
        return tensor(outer, ast.literal_eval(dims)) if getattr(kind, "id", "") == "Tensor" else None
    if outer == "Literal":
        return options(tuple(ast.literal_eval(one) for one in several))
    if outer in ("Sequence", "list", "Iterable", "Collection"):
        each = _compiled(several[0], names)
        return listed(number if each is finite else each, keep=outer in ("Iterable", "Collection"))
    if outer in ("Mapping", "dict"):
        return mapped(*(_compiled(one, names) for one in several))
    if outer == "tuple" and isinstance(several[-1], ast.Constant) and several[-1].value is ...:
        return listed(_compiled(several[0], names), keep=False)
    if outer == "tuple":
        return pair([_compiled(one, names) for one in several])
    return function if outer == "Callable" else None


def _of_name(name: str, names: Mapping[str, Any]) -> Check | None:
    found = names.get(name)
    if name in ("Head", "Node") and isinstance(found, type) and found is not type(None) and get_origin(found) is None:
        return instance(found)  # a class of that name, not the alias of `labcode.heads`
    if name in _NAMED:
        return _NAMED[name]
    if get_origin(found) is Literal:
        return options(get_args(found))
    if isinstance(found, types.UnionType):
        return either([instance(one) for one in get_args(found)])
    if get_origin(found) is Callable or get_origin(found) is type(Callable):
        return function
    found = found if isinstance(found, type) else _classes.get(name)
    return instance(found) if isinstance(found, type) and found.__module__.startswith("labcode.") else None


def _ranged(name: str, check: Check | None) -> Check | None:
    """The check, and what an argument of this name means everywhere."""
    if name in ("sae", "transcoder") and check is None:
        return dictionary
    if check is None or name not in RANGES:
        return check
    fits, which = RANGES[name]

    def checked(value: Any, call: dict[str, Any]) -> Any:
        found = check(value, call)
        for one in found if name == "seeds" else [found]:
            if isinstance(one, int | float) and not fits(one):
                raise Misfit(f"{one}: give a number that {which}")
        return found

    return checked


def guarded(of: Callable[..., Any], error: type[LabError], names: Mapping[str, Any]) -> Callable[..., Any]:
    """A function that looks at its arguments first, unless another module of the lab calls it."""
    made = of.__code__.co_filename == "<string>"  # the constructor of a dataclass: its fields hold what was measured
    goes = STAYING.isdisjoint((names["__name__"], f"{names['__name__']}.{of.__name__}")) and not made
    signature = inspect.signature(of)
    takes = [one for one in signature.parameters.values() if isinstance(one.annotation, str)]
    checks: dict[str, Check] = {}

    def compiled() -> None:
        for one in takes:
            check = None if one.kind in (2, 4) else _compiled(ast.parse(one.annotation, mode="eval").body, names)
            if (check := check if made else _ranged(one.name, check)) is not None:
                checks[one.name] = check
        takes.clear()

    def run(*args: Any, **kwargs: Any) -> Any:
        device = _elsewhere(args, kwargs) if goes and not _is_there.get() else None
        return of(*args, **kwargs) if device is None else there(device, of, *args, **kwargs)

    @functools.wraps(of)
    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True  # notebooks and pytest leave this frame out
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("labcode."):
            return run(*args, **kwargs)
        if takes:
            compiled()
        bound = None
        with contextlib.suppress(TypeError):
            bound = signature.bind(*args, **kwargs)
        if bound is None:  # Python says it better
            return of(*args, **kwargs)
        call: dict[str, Any] = {"populations": []}
        given = bound.arguments  # in the signature's order: sizes are compared with those that came before
        for name in [name for name in given if name in checks]:
            call["argument"] = name
            try:
                given[name] = checks[name](given[name], {"argument": name} if made else call)
            except Misfit as misfit:
                kind = HeadError if isinstance(misfit, NoHead) else error
                raise kind(f"{of.__qualname__.removesuffix('.__init__')}, argument {name}: {misfit}") from None
        if "model" in call:
            _check_model(call, given, error, names["__name__"] not in NOT_MEASURING)
        torch = sys.modules.get("torch")
        if torch is not None and torch.is_inference_mode_enabled():  # where no gradient can be had
            with torch.inference_mode(False), torch.no_grad():
                return run(*bound.args, **bound.kwargs)
        return run(*bound.args, **bound.kwargs)

    return checked


_is_there: ContextVar[bool] = ContextVar("there", default=False)


def _elsewhere(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The device of the model that is given, or that something given holds; None where all is usual, on the CPU."""
    for one in (*args, *kwargs.values()):
        model: Any = one if hasattr(type(one), "hook_dict") else getattr(one, "__dict__", {}).get("model")
        if hasattr(type(model), "hook_dict"):
            import torch

            device = str(model.cfg.device)
            usual = device == torch.get_default_device().type == "cpu" and torch.get_default_dtype() == torch.float32
            return None if usual else torch.device(device)
    return None


def there(device: Any, of: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call on a device, in float32, whatever a reader has set in torch; what it returns comes back to the CPU.

    What is called inside leaves things where they are.
    """
    import torch

    token, dtype = _is_there.set(True), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with device:
            return moved(of(*moved(args, device), **moved(kwargs, device)), torch.device("cpu"))
    finally:
        torch.set_default_dtype(dtype)
        _is_there.reset(token)


def moved(value: Any, device: Any) -> Any:
    """A value with its tensors on a device: of tensors, dictionaries of latents, containers and frozen dataclasses.

    A function stays what it is, except a method of what is moved, as `sae.encode`.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if hasattr(type(value), "hook_dict"):  # the model itself
        return value
    if isinstance(value, torch.nn.Module):
        away = any(part.device.type != device.type for part in (*value.parameters(), *value.buffers()))
        return deepcopy(value).to(device) if away else value
    if isinstance(value, types.MethodType):
        holder = moved(value.__self__, device)
        return value if holder is value.__self__ else types.MethodType(value.__func__, holder)
    if isinstance(value, dict):
        parts = {name: moved(one, device) for name, one in value.items()}
        return value if all(parts[name] is one for name, one in value.items()) else parts
    if isinstance(value, list | tuple):
        found = [moved(one, device) for one in value]
        if all(a is b for a, b in zip(found, value, strict=True)):
            return value
        return type(value)(*found) if hasattr(value, "_fields") else type(value)(found)
    kind: Any = type(value)
    if getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        parts = {field.name: getattr(value, field.name) for field in fields(kind)}
        if (found := moved(parts, device)) is not parts:
            value = object.__new__(kind)  # without what properties have cached there
            for name, one in found.items():
                object.__setattr__(value, name, one)
    elif hasattr(value, "__dict__") and (hasattr(value, "W_dec") or hasattr(value, "cfg")):  # shaped like a dictionary
        found = moved(vars(value), device)
        if found is not vars(value):
            value = copy(value)
            vars(value).update(found)
    return value


def _check_model(call: Mapping[str, Any], given: Mapping[str, Any], error: type[LabError], measures: bool) -> None:
    """Whether prompts, tokens and a layer can be this model's, and whether what it computes can be measured."""
    of, layer = call["model"], given.get("layer")
    native = getattr(of, "original_model", None)  # the bridge itself would take much longer to find one
    if measures and native is not None and (kind := str(next(native.parameters()).dtype)) != "torch.float32":
        raise error(
            f"this model computes in {kind.removeprefix('torch.')}, and the lab measures in float32: take models.load()"
        )
    for population in call["populations"]:
        if population.tokenizer and population.tokenizer != tokenizer_key(of.tokenizer):
            raise error(
                f"these prompts were made with another tokenizer than that of {of.cfg.model_name}: their numbers stand "
                "for other words there; make them anew with this model"
            )
    if type(layer) is int and layer not in range(of.cfg.n_layers):
        raise error(f"no layer {layer}: this model has {of.cfg.n_layers} layers, counted from 0")
    several: list[Any] = [given.get(name) for name in ("tokens", "held", "ids")]
    n_ctx = getattr(of.cfg, "n_ctx", math.inf)
    for tokens in [*several, *(one.tokens for one in call["populations"])]:
        if measures and getattr(tokens, "ndim", 0) == 2 and tokens.shape[1] > n_ctx:
            raise error(f"contexts of {tokens.shape[1]} tokens: this model reads {n_ctx}, the start token included")
    for tokens in several:
        if hasattr(tokens, "numel") and tokens.numel():
            least, most = int(tokens.min()), int(tokens.max())
            if not 0 <= least <= most < of.cfg.d_vocab:
                raise error(f"tokens from {least} to {most}: this model knows {of.cfg.d_vocab}, counted from 0")


_keys: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()


def tokenizer_key(tokenizer: Any) -> str:
    """A fingerprint of a tokenizer's vocabulary: which text each id stands for."""
    import hashlib
    import json

    size, key = _keys.get(tokenizer, (-1, ""))
    if size != len(tokenizer):  # tokens may have been added since
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        key = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
        _keys[tokenizer] = len(tokenizer), key
    return key


def guard(module: dict[str, Any], error: type[LabError]) -> None:
    """Let the public functions, methods and constructors of a module look at their arguments.

    Args:
        module: its `globals()`, at its end.
        error: what it raises.
    """
    here = module["__name__"]
    for name, one in list(module.items()):
        if name.startswith("_") or getattr(one, "__module__", "") != here:
            continue
        if isinstance(one, types.FunctionType):
            module[name] = guarded(one, error, module)
        elif isinstance(one, type) and not getattr(one, "_is_protocol", False):
            _classes[name] = one
            for part, value in list(vars(one).items()):
                if part.startswith("_") and part != "__init__":
                    continue
                if isinstance(value, types.FunctionType):
                    setattr(one, part, guarded(value, error, module))
                elif isinstance(value, classmethod | staticmethod):
                    setattr(one, part, type(value)(guarded(value.__func__, error, module)))
