"""A GPU that is none: tensors that say they are on CUDA, and an error where a program mixes them with those of the CPU.

Numbers are computed on the CPU, so what a program gives there can be compared with what it gives here, to the last bit.
What a real GPU allows is allowed, and nothing else: CPU tensors of no dimension in arithmetic entry by entry, CPU
tensors as indices, copies both ways. Random numbers are drawn by a generator of the device that they are made on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _device
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CUDA, META = torch.device("cuda", 0), torch.device("meta")
# Where a tensor of the CPU may stand beside one of the GPU, whatever its shape.
COPIES = {aten.copy_.default, aten._to_copy.default, aten.copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
FILLED = {aten.fill.Tensor, aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}  # with one number
FILLED |= {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class There(torch.Tensor):
    """A tensor of the CPU that says it is on CUDA."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """What programs are told."""
        return CUDA

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("meta"),  # to torch's own code, which would look for a driver
            requires_grad=held.requires_grad,
        )
        made.held = held.detach()
        return made

    def tolist(self) -> Any:
        """As for any tensor; torch has none for its subclasses."""
        return self.held.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU, with the rules of the other device."""
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, There) for x in flat)
    if there and func not in COPIES:
        strict = flat
        if func in INDEXED:  # indices may be on the CPU where what is indexed is not; not the other way round
            strict = [args[0], *args[2:3]] if isinstance(args[0], There) else flat
        entries = torch.Tag.pointwise in func.tags or func in FILLED
        alone = strict[func._schema.is_mutable :] if entries else []  # what is written to is never a number of the CPU
        numbers = [id(x) for x in alone if isinstance(x, torch.Tensor) and not x.dim()]
        cpu = [x for x in strict if isinstance(x, torch.Tensor) and not isinstance(x, There)]
        if any(id(x) not in numbers for x in cpu):
            shapes = [(tuple(x.shape), "cuda" if isinstance(x, There) else "cpu") for x in flat]
            raise RuntimeError(f"{func}: tensors on several devices: {shapes}")
    asked = kwargs.get("device")
    to_there = there if asked is None else torch.device(asked).type in ("cuda", "meta")
    inner = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    plain_args, plain_kwargs = tree_map(lambda x: x.held if isinstance(x, There) else x, (args, inner))
    if func is aten._fused_sdp_choice.default:
        return 0  # the plain formula, which every device has
    if func is aten._to_copy.default and not there and not to_there:
        return func(*plain_args, **plain_kwargs)
    out = func(*plain_args, **plain_kwargs)
    if func in COPIES and func is not aten._to_copy.default:
        to_there = isinstance(args[0], There)
    if not to_there:
        return out
    out = tree_map(lambda x: There(x) if isinstance(x, torch.Tensor) and not isinstance(x, There) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if there else out


class Elsewhere(TorchDispatchMode):
    """Inside, what is made there stays there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Asked(TorchFunctionMode):
    """Inside, nobody looks for a driver: who asks for CUDA is given the device that stands for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return func(args[0], _indices(args[1]), *args[2:])
        if func in _device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = _device.CURRENT_DEVICE  # what `with torch.device(...)` says
        if (generator := kwargs.get("generator")) is not None:
            made = any(isinstance(x, There) for x in args) or _is_cuda(kwargs.get("device"))
            if (generator.device.type == "cuda") != made:
                raise RuntimeError(f"{func}: a generator of the {generator.device.type} for numbers made elsewhere")
        if func in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            if isinstance(args[0], There):
                return args[0].to(kwargs.get("dtype") or args[0].dtype)
            return There(func(*args, **{**kwargs, "device": "cpu"}))
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = META
        return func(*(META if _is_cuda(one) else one for one in args), **kwargs)


def _indices(index: Any) -> Any:
    """An index without lists: torch would make tensors of them itself, on the device that stands for CUDA."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(list(index)) if isinstance(index, list | range) else index


def _is_cuda(what: Any) -> bool:
    return (isinstance(what, torch.device) and what.type == "cuda") or (isinstance(what, str) and what[:4] == "cuda")


@contextmanager
def a_gpu() -> Iterator[None]:
    """Inside, this machine has a CUDA GPU, as far as programs can tell by using it."""
    was = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Elsewhere(), Asked():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(was)
