"""Count a model's forward passes in a chapter's kernel, without a line in the chapter or in the modules it uses.

`install` waits for TransformerLens to be imported and then wraps the bridge's forward method, so a kernel that needs no
model pays nothing. A sweep that replays parts of a pass by itself is not counted, only whole passes are.
Used by every chapter, through the build, and shown on the page "What it costs".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

BRIDGE = "transformer_lens.model_bridge.bridge"


@dataclass
class Seen:
    """How many passes there were, and how many prompts in them."""

    passes: int = 0
    prompts: int = 0


seen = Seen()


class _Watch(MetaPathFinder):
    """Finds the one module, once, and wraps its class when it has been loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != BRIDGE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_count(module: ModuleType) -> None:
            load(module)
            count(module.TransformerBridge)

        spec.loader.exec_module = load_and_count  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Count from now on."""
    if BRIDGE in sys.modules:
        count(sys.modules[BRIDGE].TransformerBridge)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def count(model_class: type) -> None:
    """Wrap the class's forward method; a second call changes nothing."""
    forward: Any = model_class.forward  # type: ignore[attr-defined]
    if hasattr(forward, "__wrapped__") and forward.__module__ == __name__:
        return

    @wraps(forward)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("input")
        seen.passes += 1
        seen.prompts += _rows(given)
        return forward(self, *args, **kwargs)

    counted.__module__ = __name__
    model_class.forward = counted  # type: ignore[attr-defined]


def _rows(given: Any) -> int:
    if hasattr(given, "shape"):
        return int(given.shape[0]) if len(given.shape) > 1 else 1
    return len(given) if isinstance(given, list) else 1


def total() -> dict[str, int]:
    """What was counted so far."""
    return {"passes": seen.passes, "prompts": seen.prompts}
