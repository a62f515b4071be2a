"""Record what inference needs at full size: `make evidence`, or `python -m labbook.data.make.evidence`.

It measures every head on both halves of the prompts (`labcode.evidence`) for the model that LAB_MODEL names, shows
progress, and goes on where it was cut off: a half that is done is kept in the lab's cache folder as long as labcode and
the model stay as they are. It writes `book/data/evidence-MODEL.safetensors` when both are there.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from importlib import metadata
from pathlib import Path

from labbook.data.make import command, run
from labcode import evidence, families, models
from labcode.errors import EvidenceError
from labcode.models import say


def make(options: Namespace) -> None:
    """Measure both halves and write them."""
    model = models.load()
    name = models.edition(model)
    if not name:
        raise EvidenceError(
            "only known models have a record, since others are not the same on every machine: leave LAB_MODEL unset, "
            f"or choose among {', '.join(models.KNOWN)}",
            see="evidence",
        )
    pops = evidence.populations(model)

    def keep(half, made):  # type: ignore[no-untyped-def]
        say(f"{half}: {len(pops[half][0])} prompts")
        if options.fresh:
            return made()
        return families.remember(f"evidence {half}", model, pops[half], made)

    tables = evidence.measure(model, pops, keep)
    path = options.out / f"evidence-{name}.safetensors"
    said = {
        "command": command("evidence", options, "out"),
        "weights": models.pins(name),
        "model": str(model.cfg.model_name),
        "seeds": " ".join(f"{half} {seed}" for half, (_, seed) in evidence.HALVES.items()),
        "versions": " ".join(f"{one} {metadata.version(one)}" for one in ("torch", "transformer-lens")),
    }
    evidence.write(path, tables, said)
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> int:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], help="the folder to write to")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run has kept")
    return run(parser, make)


if __name__ == "__main__":
    sys.exit(main())
