"""Kill installations and builds at random moments, and see whether the next plain one ends well: `make faults`.

It works on a book of two pages in a copy of this checkout, with an environment and a cache folder of its own; one page
executes cells with the embedded model, and keeps a measurement. Each time something is taken away (packages of the
environment, the converted model, the outputs of the cells, or the written pages), `make book` begins to make it again,
and `kill -9` ends its whole process group and the kernels, which have groups of their own. A kill that comes when the
build has ended is none: it is drawn again, sooner. The next `make book` must end well, and its pages must be those of a
build that nobody disturbed, byte by byte; after an installation every package must be as its record says. The first
installation, from nothing, is killed three times.

Not covered: a power cut, in which files that were closed can be lost; the chapters themselves, and their recorded data.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT), str(ROOT / "tests" / "book")]
import compare_builds  # noqa: E402

import install  # noqa: E402

WHOLE = 900.0  # seconds after which a build is taken to hang
TRIES = 9  # times that a kill is drawn
ONE = """\
---
file_format: mystnb
kernelspec:
  name: python3
---

# One

```{code-cell} ipython3
from labcode import metrics, models, plots, prompts, recorded, report

model = models.load()
pop = prompts.population(model, 8)
def measure():
    return {"gaps": metrics.logit_difference(metrics.end_logits(model, pop), pop)}

gaps = recorded.remember("faults", model, [pop], measure)["gaps"]
report.put(gap=float(gaps.mean()), model=models.summary(model))
report.check("the answer is preferred", bool(gaps.mean() > 0))
plots.bars([str(n) for n in range(len(gaps))], gaps.tolist(), alt="Eight bars.", value_title="gap")
```

On {glue:text}`model` the gap is {glue:text}`gap:+.3f`.
"""
TWO = "# Two\n\nThe other page has {glue:text}`one.md::gap:+.2f`, and $a^2 + b^2$.\n"
PAGES = {"one": ONE, "two": TWO}


class Lab:
    """The copy in which everything happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.build = folder / "_build"
        self.cache = folder / "cache"
        self.venv = folder / ".venv"
        self.said = folder / "said.txt"

    def fill(self) -> None:
        """Copy what Git knows of this checkout, with two pages for a book."""
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file() and not re.match(r"tests/|book/[^/]*\.md$|book/api/", name):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
        for name, text in PAGES.items():
            (self.folder / f"{name}.md").write_text(text, encoding="utf8")
        (self.folder / "_toc.yml").write_text("format: jb-book\nroot: one\nchapters:\n- file: two\n", encoding="utf8")

    def start(self, target: str = "book") -> subprocess.Popen[bytes]:
        """Begin `make` in a process group of its own."""
        given = {name: value for name, value in os.environ.items() if not name.startswith("LAB_")}
        given |= {"LAB_CACHE": str(self.cache), "LAB_MODEL": "smollm2", "PYTHONUNBUFFERED": "1"}
        with self.said.open("wb") as said:
            return subprocess.Popen(
                ["make", target], cwd=self.folder, env=given, stdout=said, stderr=said, start_new_session=True
            )

    def last(self) -> str:
        """The last line that it said."""
        lines = self.said.read_text(encoding="utf8", errors="replace").strip().splitlines()
        return re.sub(r"\x1b\[[0-9;]*m", "", lines[-1])[:60] if lines else "nothing said yet"

    def plain(self) -> float:
        """A `make book` that must end well; the seconds that it took."""
        begun, process = time.monotonic(), self.start()
        try:
            status = process.wait(WHOLE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Fault(f"the build hangs; last: {self.last()}") from None
        if status:
            raise Fault(f"the next build ends with {status}:\n{self.said.read_text(encoding='utf8')[-3000:]}")
        return time.monotonic() - begun

    def kill(self, after: float, target: str = "book") -> tuple[str, int] | None:
        """Kill a `make` after so many seconds.

        Returns:
            What it was at, and how many groups were killed besides its own (kernels); None if it had ended before.

        Raises:
            Fault: It had failed before.
        """
        process = self.start(target)
        try:
            if status := process.wait(after):
                raise Fault(f"`make {target}` ends with {status} by itself; last: {self.last()}")
            return None
        except subprocess.TimeoutExpired:
            others = groups_below(process.pid) - {process.pid}
            for group in (process.pid, *others):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            process.wait()
            return self.last(), len(others)

    def hit(
        self, take: Callable[[], None], chance: random.Random, least: float, most: float, target: str = "book"
    ) -> tuple[float, str, int]:
        """Take something away and kill the `make` that makes it again, sooner each time until it is still at work.

        Returns:
            The seconds after which it was killed, and what `kill` returns.

        Raises:
            Fault: It always had ended.
        """
        for _ in range(TRIES):
            take()
            after = chance.uniform(least, most)
            if found := self.kill(after, target):
                return after, *found
            most = max(least, after)
        raise Fault(f"no kill hit: `make {target}` ends within {most:.1f} s")

    def pages(self) -> dict[str, str]:
        """A hash of each file of the site."""
        html = self.build / "html"
        return {
            path.relative_to(html).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(html.rglob("*"))
            if path.is_file()
        }


def groups_below(pid: int, proc: Path = Path("/proc")) -> set[int]:
    """The process groups of all that a process has started, from Linux's records; nothing elsewhere."""
    started: dict[int, list[tuple[int, int]]] = {}
    for path in proc.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # After the name in brackets, which may hold anything: state, parent, group.
            _, parent, group = path.read_text().rpartition(")")[2].split()[:3]
            started.setdefault(int(parent), []).append((int(path.parent.name), int(group)))
    found, left = set[int](), [pid]
    while left:
        for child, group in started.get(left.pop(), []):
            found.add(group)
            left.append(child)
    return found


class Fault(Exception):
    """What a kill left, and the next run did not mend."""


def without_packages(lab: Lab, chance: random.Random) -> None:
    """Take four packages from the environment."""
    names = (lab.folder / "requirements.txt").read_text(encoding="utf8").split()
    chosen = [name.partition("==")[0] for name in chance.sample([one for one in names if "==" in one], 4)]
    python = lab.venv / "bin" / "python"
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *chosen], check=True, capture_output=True)
    (lab.venv / ".ready").unlink()


def without_model(lab: Lab, chance: random.Random) -> None:
    """Take the converted model, and what was measured and executed with it."""
    shutil.rmtree(lab.cache)
    shutil.rmtree(lab.build / ".jupyter_cache")


def without_outputs(lab: Lab, chance: random.Random) -> None:
    """Take the outputs of the cells."""
    shutil.rmtree(lab.build / ".jupyter_cache")


def without_pages(lab: Lab, chance: random.Random) -> None:
    """Take the site, and what Sphinx has read."""
    shutil.rmtree(lab.build / "html")
    shutil.rmtree(lab.build / ".doctrees")


PHASES: dict[str, Callable[[Lab, random.Random], None]] = {
    "installation": without_packages,
    "conversion": without_model,
    "execution": without_outputs,
    "writing": without_pages,
}


def main() -> int:
    """Kill and build; 1 if anything was not mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the copy is made, an empty folder")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    lab = Lab(asked.folder.resolve())
    faults, hits, kernels = 0, 0, 0
    lab.fill()
    chance = random.Random(asked.seed)

    def without_finished() -> None:
        if (lab.venv / ".ready").is_file():
            shutil.rmtree(lab.venv)

    for number in range(3):
        after, at, _ = lab.hit(without_finished, chance, 2, 60, ".venv/.ready")
        print(f"first installation, kill {number + 1} after {after:.1f} s: {at}", flush=True)
    print(f"a first build: {lab.plain():.0f} s", flush=True)
    if left := install.broken(lab.venv):
        raise Fault(f"damaged packages: {left}")
    without_pages(lab, random.Random())
    without_model(lab, random.Random())
    lab.plain()
    pages, values = lab.pages(), compare_builds.glued(lab.build)
    print(f"undisturbed: {len(pages)} files, {len(values)} values", flush=True)
    lasts: dict[str, float] = {}
    for number in range(asked.kills):
        phase = list(PHASES)[number % len(PHASES)]
        chance = random.Random(f"{asked.seed} {number}")
        if phase not in lasts:  # how long it takes undisturbed
            PHASES[phase](lab, random.Random(f"{asked.seed} {phase}"))
            lasts[phase] = lab.plain()
        after, at, beside = 0.0, "", 0
        try:
            after, at, beside = lab.hit(partial(PHASES[phase], lab, chance), chance, 0.3, lasts[phase])
            hits += 1
            kernels += bool(beside)
            taken = lab.plain()
            if lab.pages() != pages:
                other = lab.pages()
                names = sorted(name for name in {*pages, *other} if pages.get(name) != other.get(name))
                raise Fault(f"other files than undisturbed: {', '.join(names[:9])}")
            if compare_builds.glued(lab.build) != values:
                raise Fault("other values than undisturbed")
            if phase == "installation" and (left := install.broken(lab.venv)):
                raise Fault(f"damaged packages: {[info.name for info in left]}")
            became = f"mended in {taken:.0f} s"
        except Fault as fault:
            faults += 1
            became = f"FAULT {fault}"
        row = {"kill": number, "phase": phase, "after": round(after, 1), "at": at, "beside": beside, "became": became}
        with (lab.folder / "kills.jsonl").open("a", encoding="utf8") as kept:
            kept.write(json.dumps(row) + "\n")
        print(f"{number + 1:2d} {phase:12s} {after:5.1f} s  {at:60s}  {became}", flush=True)
    print(f"{hits} kills hit a build at work, {kernels} of them kernels too; {faults} of {asked.kills} not mended")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
