"""`python -m labcode.models`: get the chosen model ready and say which it is and why."""

from __future__ import annotations

import argparse
import json
import sys

from labcode.errors import LabError
from labcode.models import fingerprint, prepare


def main() -> int:
    """Print the choice as one line, or as JSON; exit status 2 with one line on stderr if there is none."""
    parser = argparse.ArgumentParser(prog="python -m labcode.models", description=__doc__)
    parser.add_argument("request", nargs="?", help="auto, gpt2, smollm2 or a folder; default: LAB_MODEL")
    parser.add_argument("--json", action="store_true", help="name, title, why, folder, fingerprint")
    options = parser.parse_args()
    try:
        choice = prepare(options.request)
        mark = fingerprint(choice)
    except LabError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.json:
        record = {"name": choice.name, "title": choice.title, "why": choice.why}
        print(json.dumps({**record, "folder": str(choice.folder), "fingerprint": mark}))
    else:
        print(f"{choice.title}: {choice.why} ({choice.folder})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
