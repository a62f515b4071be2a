"""The Sphinx extension of the book: it wires the other modules of this package to Sphinx's events.

Add `labbook._ext.ext` to the extensions in `_config.yml`. Used by every chapter.
"""

from __future__ import annotations

import gc
import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labbook._ext import (
    api,
    chapters,
    closing,
    costtable,
    coursemap,
    execute,
    exercisenumbers,
    fingerprint,
    glossarylinks,
    ledger,
    ledgerpage,
    mathml,
    notebooks,
    predictions,
    subject,
)
from labbook._ext.halt import halt
from labcode import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config
    from sphinx.environment import BuildEnvironment

ASSETS = Path(__file__).with_name("assets")
# From installed packages, so that the site asks no other host and this repository carries nobody's files.
CARRIED = (("plotly", "package_data/plotly.min.js"), ("ziamath", "fonts/STIXTwoMath-Regular.ttf"))


def choose_and_key(app: Sphinx, config: Config) -> None:
    """Choose the model once, hand it to the kernels, and name the execution cache after all that matters."""
    chosen = subject.chosen(config.lab_model)
    config.lab_subject = chosen
    subject.prepare_environment(chosen)
    if not config.nb_execution_cache_path:
        mark = fingerprint.fingerprint(Path(app.srcdir), chosen.get("fingerprint", ""))
        folder = fingerprint.cache_folder(Path(app.srcdir) / "_build" / ".jupyter_cache", mark)
        # An "env" value: a new path also makes Sphinx read every page again.
        config.nb_execution_cache_path = str(folder)


def copy_assets(app: Sphinx) -> None:
    """Put the style sheet, the script that draws figures, one plotly.min.js and the maths font into `_static`."""
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    for source in [*sorted(ASSETS.iterdir()), *map(carried, CARRIED)]:
        target = static / source.name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copyfile(source, target)


def carried(file: tuple[str, str]) -> Path:
    """A file that an installed package carries, found without importing the package.

    Raises:
        SystemExit: The package isn't installed, or it no longer carries the file.
    """
    package, inside = file
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        halt(f"{package} isn't installed: pip install -r requirements.txt", see="package-missing")
    path = Path(found.origin).parent / inside
    if not path.is_file():
        halt(
            f"{path} doesn't exist: install the version of {package} that requirements.txt names", see="package-missing"
        )
    return path


def add_icon(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Name the site's icon on each page: without one every browser asks for /favicon.ico."""
    address = context["pathto"]("_static/lab-icon.svg", resource=True)
    link = f'<link rel="icon" href="{address}" type="image/svg+xml"/>'
    context["metatags"] = context.get("metatags", "") + link


def rewrite_every_page(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Write all pages in each build: a page may show another page's numbers, which Sphinx doesn't know."""
    return sorted(env.found_docs)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    # Python's collector went through all of Sphinx's trees again and again: a quarter of a build with nothing changed.
    gc.set_threshold(200_000, 50, 100)
    app.add_config_value("lab_model", True, "env", [bool])
    app.add_config_value("lab_subject", {}, "", [dict])
    app.add_css_file("lab.css")
    app.add_css_file("labboard.css")
    app.add_css_file("labdashboards.css")
    app.add_js_file("lab.js", loading_method="defer")
    app.add_js_file("labboard.js", loading_method="defer")
    app.add_js_file("labdashboards.js", loading_method="defer")
    mathml.setup(app)
    ledger.setup(app)
    ledgerpage.setup(app)
    chapters.setup(app)
    api.setup(app)
    costtable.setup(app)
    coursemap.setup(app)
    glossarylinks.setup(app)
    predictions.setup(app)
    exercisenumbers.setup(app)
    notebooks.setup(app)
    # Before myst-nb reads its own settings.
    app.connect("config-inited", choose_and_key, priority=100)
    app.connect("builder-inited", copy_assets)
    app.connect("html-page-context", add_icon)
    app.connect("env-before-read-docs", execute.run_chapters)
    app.connect("env-updated", rewrite_every_page)
    app.connect("build-finished", closing.finish, priority=900)
    return {"version": __version__, "env_version": 1, "parallel_read_safe": False, "parallel_write_safe": True}
