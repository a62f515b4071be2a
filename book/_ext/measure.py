"""What a chapter's kernel used: processor time, the most memory it held, and forward passes.

Time and memory are read from the system, the passes are asked from the kernel. Whatever can't be had on this system is
left out, and nothing here can fail a chapter. Used by every chapter, through the build.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nbclient import NotebookClient

PASSES = "__import__('labbook._ext.passes', fromlist=['passes'])"


def usage(pid: int, proc: Path = Path("/proc")) -> dict[str, float]:
    """Processor seconds and peak memory in bytes of a process, from Linux's records; nothing elsewhere."""
    try:
        # After the name in brackets, which may hold anything, come the state and the numbers.
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        status = (proc / str(pid) / "status").read_text()
        ticks = int(fields[11]) + int(fields[12])
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return {"cpu_seconds": ticks / os.sysconf("SC_CLK_TCK"), "peak_bytes": 1024 * int(peak.split()[1])}
    except (OSError, ValueError, IndexError, StopIteration):
        return {}


def watch(client: NotebookClient) -> dict[str, float]:
    """Have a client measure its kernel; the answer is filled in anew after each cell, while it can be asked."""
    found: dict[str, float] = {}

    async def begin(**_: Any) -> None:
        await _ask(client, f"{PASSES}.install()")

    async def read(**_: Any) -> None:
        found.update(await _ask(client, f"{PASSES}.total()") or {})
        process = getattr(getattr(client.km, "provisioner", None), "process", None)
        found.update(usage(process.pid) if process else {})

    client.on_notebook_start = _harmless(begin)
    client.on_cell_executed = _harmless(read)
    return found


async def _ask(client: NotebookClient, expression: str) -> Any:
    """The value of an expression in the kernel, which leaves no trace there; None where it has none."""
    assert client.kc is not None
    number = client.kc.execute("", silent=True, store_history=False, user_expressions={"x": expression})
    reply = await client.async_wait_for_reply(number)
    answer = (reply or {}).get("content", {}).get("user_expressions", {}).get("x", {})
    return ast.literal_eval(answer["data"]["text/plain"]) if answer.get("status") == "ok" else None


def _harmless(hook: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def tried(**given: Any) -> None:
        try:
            await hook(**given)
        except Exception:  # a kernel in another language, or one that is ending
            return

    return tried
