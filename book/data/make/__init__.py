"""The commands that made the recorded data: `python -m labbook.data.make.NAME`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from labcode.errors import LabError


def run(parser: ArgumentParser, make: Callable[[Namespace], None]) -> int:
    """Make what a command line asks for, with progress; exit status 2 with one line on stderr if that fails."""
    options = parser.parse_args()
    os.environ["LAB_PROGRESS"] = "1"
    try:
        make(options)
    except LabError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def command(name: str, options: Namespace, *left_out: str) -> str:
    """The command line that gives these options, for the record."""
    given = [f"--{key.replace('_', '-')} {value}" for key, value in vars(options).items() if key not in left_out]
    return " ".join([f"python -m labbook.data.make.{name}", *given])
