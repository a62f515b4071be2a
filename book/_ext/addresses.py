"""Where the site and its source are published: the one place that knows, and nothing where they are not.

`LAB_ADDRESS` is the site's own address, `LAB_REPOSITORY` what git clones it from (with `@` and a revision), and for the
build of another edition `LAB_CERTIFIED` that of the certified one; `_config.yml` can name the first two for good.
From these come canonical links, the card of a shared page, the first cell of the notebooks and the links that open one
elsewhere.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from labbook._ext.execution import halt

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

# Publishing pushes the students' notebooks to this branch: the services open a file of a repository, not of a site.
BRANCH = "notebooks"
HOST = re.compile(r"[a-z][\w+.-]*://[^/]*|[^/:]+:", re.I)  # with the user, as a URL or as ssh writes it
SERVICES = {
    "Colab": "https://colab.research.google.com/github/{owner}/{name}/blob/{branch}/{file}",
    "Binder": "https://mybinder.org/v2/gh/{owner}/{name}/{branch}?labpath={file}",
}


def settle(app: Sphinx, config: Config) -> None:
    """Take what the environment says where the configuration says nothing.

    Raises:
        SystemExit: An address that isn't one.
    """
    config.lab_repository = source(config.lab_repository or os.environ.get("LAB_REPOSITORY", ""))
    config.lab_certified = site("LAB_CERTIFIED", os.environ.get("LAB_CERTIFIED", ""))
    config.html_baseurl = site("LAB_ADDRESS", config.html_baseurl or os.environ.get("LAB_ADDRESS", ""))


def site(name: str, address: str) -> str:
    """The address with a slash at its end, which makes it a folder; nothing stays nothing.

    Raises:
        SystemExit: It isn't the http or https address of a folder.
    """
    address = address.strip()
    if not address:
        return ""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        halt(f"{name}={address} isn't the address of a site: give it whole, like https://example.org/interp-lab/")
    return address.rstrip("/") + "/"


def source(repository: str) -> str:
    """What git clones, wherever the notebook runs; nothing stays nothing.

    Raises:
        SystemExit: It is neither a URL, nor of ssh's form, nor a whole path.
    """
    repository = repository.strip()
    if not repository:
        return ""
    address, _ = split(repository)
    host = HOST.match(address)
    path = address[host.end() :] if host else address
    whole = path.strip("/") and (host or path.startswith("/")) and not re.match(r"-|(?!file:)\w+:///", address)
    if not whole or repository.endswith("@"):
        halt(
            f"LAB_REPOSITORY={repository} isn't what git can clone from anywhere: give it whole, like "
            "https://github.com/owner/name or git@github.com:owner/name.git, and @ and a revision behind it for one"
        )
    return repository


def split(repository: str) -> tuple[str, str]:
    """The address that git clones, and the revision behind its last @, or nothing.

    An @ before the host is a user's, and one at the beginning of a name belongs to the name.
    """
    host = HOST.match(repository)
    begin = host.end() if host else 0
    path, _, revision = repository[begin:].rpartition("@")
    if not path or path.endswith("/") or ":" in revision or ("/" in revision and not host):
        return repository, ""
    return repository[:begin] + path, revision


def elsewhere(repository: str, file: str) -> dict[str, str]:
    """Addresses that open a student's notebook in a hosted Jupyter, by the service's name; for GitHub alone."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?(?:@.*)?", repository)
    if not found:
        return {}
    place = {"owner": found[1], "name": found[2], "branch": BRANCH, "file": quote(file)}
    return {service: address.format(**place) for service, address in SERVICES.items()}


def setup(app: Sphinx) -> None:
    """Register the settings."""
    app.add_config_value("lab_repository", "", "", [str])
    app.add_config_value("lab_certified", "", "", [str])
    app.connect("config-inited", settle, priority=300)
