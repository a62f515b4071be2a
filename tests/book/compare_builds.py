"""Compare every number and claim of two builds: `python tests/book/compare_builds.py OLD NEW`, two folders `_build`.

For whoever moves code and wants to know that nothing else moved. It prints what was lost, what came, each claim whose
verdict changed and each value that differs by more than `--near` of its size (1e-6 if it isn't given), and ends with 1
where there is any, or where a build has no numbers at all. Measured seconds are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import sys
from pathlib import Path


def glued(build: Path) -> dict[tuple[str, str], object]:
    """Everything that the chapters of a build glued, by page and name; claims and comparisons by what they say."""
    found: dict[tuple[str, str], object] = {}
    for path in sorted((build / "jupyter_execute").rglob("*.glue.json")):
        page = path.name.removesuffix(".glue.json")
        for name, output in json.loads(path.read_text(encoding="utf8")).items():
            if name.rpartition("_")[2] in ("seconds", "minutes"):
                continue
            value = ast.literal_eval(output["data"]["text/plain"])
            if name.startswith("ledger."):
                value = json.loads(value)
                name = f"{value.pop('kind')}: {value.pop('text', '') or value.pop('key', '')}"
            found[page, name] = value
    return found


def same(old: object, new: object, near: float) -> bool:
    """Equal, or numbers that are near."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same(old[key], new[key], near) for key in old)
    if isinstance(old, float) and isinstance(new, int | float):
        return math.isclose(old, new, rel_tol=near, abs_tol=1e-9)
    return old == new


def main(old_build: Path, new_build: Path, near: float) -> int:
    """Print the differences; 1 if there are any."""
    old, new = glued(old_build), glued(new_build)
    different = [key for key in old if key in new and not same(old[key], new[key], near)]
    for title, keys in (("lost", old.keys() - new.keys()), ("came", new.keys() - old.keys()), ("differs", different)):
        for page, name in sorted(keys):
            values = [str(one[page, name]) for one in (old, new) if (page, name) in one]
            print(f"{title}: {page} {name}: {' -> '.join(values)}")
    print(f"{len(old)} values before, {len(new)} now, {len(different)} differ by more than {near:g}")
    return int(bool(different) or not old or old.keys() != new.keys())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--near", type=float, default=1e-6)
    options = parser.parse_args()
    sys.exit(main(options.old, options.new, options.near))
