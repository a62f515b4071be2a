"""Record what inference needs at full size: `make evidence`, or `python -m labbook.data.make.evidence`.

It measures every head on both halves of the prompts (`labcode.evidence`) for the model that LAB_MODEL names. Then it
executes the chapters that ask more of the circuit found, and keeps what they ask. It shows progress and goes on where
it was cut off: what is done is kept in the lab's cache folder as long as labcode and the model stay as they are. It
writes `book/data/evidence-MODEL.safetensors` when all is there.

After a change of such a chapter, `--extend` takes what the present record holds, a part of it measured again, and
measures what is new.
"""

from __future__ import annotations

import contextlib
import io
import sys
from argparse import ArgumentParser, Namespace
from importlib import metadata
from pathlib import Path

from labbook.data.make import command, run
from labcode import evidence, models
from labcode.errors import EvidenceError
from labcode.models import say
from labcode.recorded import SOURCE, Recorded, remember

CHAPTERS = ("11-the-circuit", "10-duplicates-and-induction")
BOOK = Path(__file__).parents[2]


def make(options: Namespace) -> None:
    """Measure both halves and write them."""
    model = models.load(device="cpu")  # whose numbers are the reference
    name = models.edition(model)
    if not name:
        raise EvidenceError(
            "only known models have a record, since others are not the same on every machine: leave LAB_MODEL unset, "
            f"or choose among {', '.join(models.KNOWN)}",
            see="evidence",
        )
    pops = evidence.populations(model)

    path = options.out / f"evidence-{name}.safetensors"
    key = models.pins(name)

    def keep(half, made):  # type: ignore[no-untyped-def]
        say(f"{half}: {len(pops[half][0])} prompts")
        if options.fresh:
            return made()
        return remember(f"evidence {half}", model, pops[half], made)

    if options.extend:
        tables, known = evidence.read(path, key)
    else:
        tables, known = evidence.measure(model, pops, keep), Recorded()
        aside = models.cache_dir() / f"evidence-{SOURCE}-{name}.safetensors"
        if aside.is_file() and not options.fresh:
            _, known = evidence.read(aside, key)
        known.watch = lambda now: evidence.write(aside, tables, {"weights": key}, now.asked())
    found = evidence.Evidence(tables, pops, "recorded", model, known)
    found.arrows()
    with evidence.recording(found):
        for chapter in CHAPTERS:
            say(f"chapter {chapter}")
            execute(chapter)
    said = {
        "command": command("evidence", options, "out", "fresh", "extend"),
        "weights": key,
        "model": str(model.cfg.model_name),
        "seeds": " ".join(f"{half} {seed}" for half, (_, seed) in evidence.HALVES.items()),
        "versions": " ".join(f"{one} {metadata.version(one)}" for one in ("torch", "transformer-lens")),
    }
    evidence.write(path, tables, said, known.asked())
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def execute(chapter: str) -> None:
    """Run the code of a chapter here, and show nothing of what it shows."""
    from myst_nb.core.config import NbParserConfig
    from myst_nb.core.read import create_nb_reader
    from myst_parser.config.main import MdParserConfig

    path = BOOK / f"{chapter}.md"
    text = path.read_text(encoding="utf8")
    reader = create_nb_reader(str(path), MdParserConfig(), NbParserConfig(), text)
    names: dict[str, object] = {}
    with contextlib.chdir(BOOK), contextlib.redirect_stdout(io.StringIO()):
        for cell in reader.read(text).cells if reader else ():
            if cell.cell_type == "code":
                exec(compile(cell.source, path.name, "exec"), names)


def main() -> int:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], help="the folder to write to")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run has kept")
    parser.add_argument("--extend", action="store_true", help="keep the present record and add what chapters ask for")
    return run(parser, make)


if __name__ == "__main__":
    sys.exit(main())
