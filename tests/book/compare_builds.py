"""Compare every number and claim of two builds: `python tests/book/compare_builds.py OLD NEW`, two folders `_build`.

For whoever moves code and wants to know that nothing else moved. It prints what was lost, what came, each claim whose
verdict changed and each value that differs by more than 1e-6 of its size, and ends with 1 where there is any.
"""

from __future__ import annotations

import ast
import json
import math
import sys
from pathlib import Path

NEAR = 1e-6


def glued(build: Path) -> dict[tuple[str, str], object]:
    """Everything that the chapters of a build glued, by page and name; claims and comparisons by what they say."""
    found: dict[tuple[str, str], object] = {}
    for path in sorted((build / "jupyter_execute").rglob("*.glue.json")):
        page = path.name.removesuffix(".glue.json")
        for name, output in json.loads(path.read_text(encoding="utf8")).items():
            value = ast.literal_eval(output["data"]["text/plain"])
            if name.startswith("ledger."):
                value = json.loads(value)
                name = f"{value.pop('kind')}: {value.pop('text', '') or value.pop('key', '')}"
            found[page, name] = value
    return found


def same(old: object, new: object) -> bool:
    """Equal, or numbers that are near."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same(old[key], new[key]) for key in old)
    if isinstance(old, float) and isinstance(new, int | float):
        return math.isclose(old, new, rel_tol=NEAR, abs_tol=NEAR)
    return old == new


def main(old_build: str, new_build: str) -> int:
    """Print the differences; 1 if there are any."""
    old, new = glued(Path(old_build)), glued(Path(new_build))
    different = [key for key in old if key in new and not same(old[key], new[key])]
    for title, keys in (("lost", old.keys() - new.keys()), ("came", new.keys() - old.keys()), ("differs", different)):
        for page, name in sorted(keys):
            values = [str(one[page, name]) for one in (old, new) if (page, name) in one]
            print(f"{title}: {page} {name}: {' -> '.join(values)}")
    print(f"{len(old)} values before, {len(new)} now, {len(different)} differ by more than {NEAR:g}")
    return int(bool(different) or old.keys() != new.keys())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
