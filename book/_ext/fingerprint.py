"""The name of the execution cache: a hash of all that can change a chapter's outputs besides its cells.

jupyter-cache knows only the code cells. A new labcode, another model, another lock or another Python must also
run the chapters again. Used by every chapter, through the build.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from pathlib import Path

import labcode

KEPT = 3  # old caches that are worth their place: switching between two models should not run everything again


def fingerprint(book: Path, model: str, package: Path | None = None) -> str:
    """Hash labcode, what `book/` adds to it, the lock, the model and the Python version; the Sphinx side isn't in it.

    Args:
        book: The folder with `requirements.txt` and `book/`, where there are any.
        model: What `labcode.models` says identifies weights and tokenizer.
        package: The folder of labcode, if not the installed one.
    """
    package = package or Path(labcode.__file__).parent
    files = [book / "requirements.txt", *package.rglob("*")]
    for folder in ("show", "checks", "data"):
        files += (book / "book" / folder).rglob("*")
    caps = [os.environ.get(name, "") for name in ("LAB_PROMPTS", "LAB_TOKENS")]  # less to measure, other numbers
    digest = hashlib.sha256("\0".join([platform.python_version(), model, *caps, ""]).encode())
    for path in sorted(files):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(package) if path.is_relative_to(package) else path.relative_to(book)
            digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder(root: Path, mark: str) -> Path:
    """The cache folder of this fingerprint, newest now; of the older ones only the newest few stay."""
    folder = root / mark
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    others = sorted(
        (path for path in root.iterdir() if path.is_dir() and path != folder),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for old in others[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
