"""The lab's cache folder: where it is, how a file is checked once, and how a folder is built all or nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from labcode.errors import ModelError
from labcode.models.known import Pin

LOCK_SECONDS = 900.0


def cache_dir() -> Path:
    """`LAB_CACHE`, else `interp-lab` in the cache folder that the system gives this user.

    Nothing is created here.
    """
    chosen = os.environ.get("LAB_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "interp-lab"


def wants_progress() -> bool:
    """Is somebody waiting who would see progress on stderr? Not in a pipe, unless `LAB_PROGRESS` is set."""
    return sys.stderr.isatty() or bool(os.environ.get("LAB_PROGRESS"))


def say(text: str) -> None:
    """One line of progress on stderr."""
    if wants_progress():
        print(text, file=sys.stderr, flush=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def matches(path: Path, pin: Pin) -> bool:
    """Is this file exactly the pinned one?

    A file that passed leaves a stamp with its size and time of change in the cache, so that half a gigabyte
    is hashed once and not at every start. Where the cache can't be written the file is hashed each time.

    Raises:
        OSError: The file can't be read.
    """
    state = path.stat()
    if pin.size is not None and state.st_size != pin.size:
        return False
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:24]
    stamp = cache_dir() / "stamps" / f"{name}.json"
    wanted = {"sha256": pin.sha256, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    with contextlib.suppress(OSError, ValueError):
        if json.loads(stamp.read_text()) == wanted:
            return True
    if sha256(path) != pin.sha256:
        return False
    write_stamp(stamp, wanted)
    return True


def write_stamp(stamp: Path, content: object) -> None:
    """Write a small JSON file in one step; a stamp only saves time, so a cache that refuses it is no error."""
    with contextlib.suppress(OSError):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=stamp.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as out:
                json.dump(content, out)
            os.replace(aside, stamp)
        except OSError:
            Path(aside).unlink(missing_ok=True)


def build_once(target: Path, good: Callable[[Path], bool], build: Callable[[Path], None], needs: int) -> Path:
    """Give `target`, building it first if it isn't there or isn't good.

    The folder is built beside its place and renamed into it, so that it is never half there. A lock, which
    the system drops when its owner dies, lets one process build; the others wait and find the result. What
    lies beside the target while the lock is held was left by a process that is gone, and is removed.

    Args:
        target: The folder wanted.
        good: Says whether an existing folder may be used.
        build: Fills an empty folder.
        needs: Bytes that the build takes, to say so before half of them are written.

    Raises:
        ModelError: The cache can't be written or locked, the disk is full, or another process holds the lock
            too long.
    """
    if good(target):
        return target
    from filelock import FileLock, Timeout

    lock = FileLock(target.parent / f"{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"Waiting for another process that is building {target}")
            lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise ModelError(
            f"{lock.lock_file} has been held for {LOCK_SECONDS:.0f} s by another process; end that process, or "
            "set LAB_CACHE to another folder",
            see="cache-held",
        ) from None
    except NotImplementedError:
        raise ModelError(
            f"the file system of {target.parent} has no locks; set LAB_CACHE to a folder on another disk",
            see="cache-without-locks",
        ) from None
    except OSError as error:
        raise refused(target.parent, error) from error
    try:
        if not good(target):
            _build_aside(target, build, needs)
    except OSError as error:
        raise refused(target.parent, error) from error
    finally:
        lock.release()
    return target


def _build_aside(target: Path, build: Callable[[Path], None], needs: int) -> None:
    for left in target.parent.glob(f"{target.name}.building-*"):
        shutil.rmtree(left, ignore_errors=True)
    if target.exists():
        say(f"{target} is damaged and is built again")
        shutil.rmtree(target)
    free = shutil.disk_usage(target.parent).free
    if free < needs:
        raise OSError(errno.ENOSPC, f"{needs / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
    aside = Path(tempfile.mkdtemp(prefix=f"{target.name}.building-", dir=target.parent))
    try:
        build(aside)
        # mkdtemp makes the folder private; a cache may be shared.
        aside.chmod(0o755)
        os.replace(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def refused(folder: Path, error: OSError) -> ModelError:
    """The error for a cache that the system won't let us write."""
    what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "can't be written"
    return ModelError(
        f"the cache folder {folder} {what} ({error.strerror or error}); make room or mend its permissions, or "
        "set LAB_CACHE to a folder on another disk",
        see="cache-not-writable",
    )
