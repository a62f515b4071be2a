"""Recorded data in JSON, with a checksum: what was damaged or edited since it was made is noticed where it is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from labcode.errors import EvidenceError
from labcode.inputs import guard


def seal(path: Path, record: dict[str, Any], *beside: Path) -> str:
    """A hash of a file's name, its record and files beside it: of what JSON says, whatever line ends, else of bytes."""
    parts = [
        path.name,
        record,
        *(json.loads(_text(file)) if file.suffix == ".json" else _hash(file) for file in beside),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write(path: Path, record: dict[str, Any], *beside: Path, indent: int | None = 1) -> None:
    """Write a record with its checksum, beside its place, and rename it into it, so that it is never half there.

    Args:
        beside: files that the checksum holds too, written before.
        indent: None for a single line without spaces.
    """
    plain = json.loads(json.dumps(record))
    between = (",", ": ") if indent else (",", ":")
    text = json.dumps(
        plain | {"checksum": seal(path, plain, *beside)}, indent=indent, separators=between, ensure_ascii=False
    )
    aside = path.with_suffix(".tmp")
    aside.write_text(text + "\n", encoding="utf8")
    aside.replace(path)


def read(path: Path, *beside: Path) -> dict[str, Any]:
    """What `write` has written, with the same files beside it.

    Raises:
        EvidenceError: a file that is missing or damaged, or was changed.
    """
    try:
        return opened(path, *beside)
    except (OSError, ValueError, TypeError) as error:
        raise EvidenceError(
            f"{path} can't be read ({error}): restore it, or make it again as `book/data/make` does", see="evidence"
        ) from error


def opened(path: Path, *beside: Path) -> dict[str, Any]:
    """The same, for who has a sentence of its own.

    Raises:
        ValueError: another checksum, or none; a file under another name than it was written. OSError: no such file.
    """
    record = dict(json.loads(_text(path)))
    if record.pop("checksum", "") != seal(path, record, *beside):
        raise ValueError("its checksum is another: the file is damaged or was changed, or has another file's name")
    return record


def _text(path: Path) -> str:
    return path.read_text(encoding="utf8")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


guard(globals(), EvidenceError)
