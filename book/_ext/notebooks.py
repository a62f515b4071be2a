"""Two notebooks for each chapter, written at the end of a build and offered under the chapter's title.

`notebooks/NAME.ipynb` is the student's: solutions out, outputs cleared, checks in. `notebooks/NAME-solved.ipynb` has
solutions and the outputs from the execution cache. A chapter is a page with code whose name starts with its number.
Used by every chapter, through the build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.core.read import create_nb_reader
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

from labbook._ext import authoryear, installcell, notebookcells
from labbook._ext.plaininline import Page

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

logger = logging.getLogger(__name__)
FOLDER = "notebooks"
KINDS = {"student": "", "solved": "-solved"}
CHAPTER = re.compile(r"\d\d-")


def chapters(env: BuildEnvironment) -> dict[str, str]:
    """The docname of each chapter that has code, by the name of its notebooks."""
    found = {}
    for docname in sorted(env.found_docs):
        name = PurePosixPath(docname).name
        if CHAPTER.match(name) and "{code-cell}" in Path(env.doc2path(docname)).read_text(encoding="utf8"):
            found[name] = docname
    return found


def offer(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the links to a chapter's notebooks under its title."""
    name = PurePosixPath(docname).name
    if app.builder.format != "html" or name not in chapters(app.env):
        return
    here = app.builder.get_target_uri(docname)
    links = " · ".join(
        f'<a href="{relative_uri(here, f"{FOLDER}/{name}{suffix}.ipynb")}" download '
        f'aria-label="Download the {kind} notebook">{kind}</a>'
        for kind, suffix in KINDS.items()
    )
    title = next(iter(doctree.findall(nodes.title)), None)
    if title is not None:
        link = nodes.raw("", f'<p class="lab-notebooks">Notebook: {links}</p>', format="html")
        title.parent.insert(title.parent.index(title) + 1, link)


def write_all(app: Sphinx, failure: Exception | None) -> None:
    """Write the notebooks that changed, and take away those of chapters that are gone."""
    if failure is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir) / FOLDER
    written = 0
    made = {f"{name}{suffix}.ipynb": text for name, suffix, text in _all(app)}
    for old in folder.glob("*.ipynb"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        target = folder / name
        if not target.is_file() or target.read_text(encoding="utf8") != text:
            nbformat.validate(nbformat.reads(text, as_version=4))
            folder.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf8")
            written += 1
    if written:
        logger.info("notebooks written: %d, in %s", written, folder)


def _all(app: Sphinx) -> list[tuple[str, str, str]]:
    """Name, suffix and text of every notebook; a warning for each thing that has no plain translation."""
    env, root = app.env, Path(app.srcdir)
    known = chapters(env)
    if not known:
        return []
    sources = {name: _executed(env, docname) for name, docname in known.items()}
    values = {name: notebookcells.values(source) for name, source in sources.items()}
    for docname in env.found_docs - set(known.values()):  # a chapter may show a number of another page
        if "code-cell" in (text := Path(env.doc2path(docname)).read_text(encoding="utf8")) and text.startswith("---"):
            values[PurePosixPath(docname).name] = notebookcells.values(_executed(env, docname))
    install = installcell.source(root, app.config.lab_repository or os.environ.get("LAB_REPOSITORY", ""))
    works = authoryear.load(root / file for file in getattr(app.config, "bibtex_bibfiles", []))
    labels = _labels(env)
    result = []
    for name, docname in known.items():
        problems: dict[str, None] = {}
        for kind, suffix in KINDS.items():
            path = Path(env.doc2path(docname))
            page = Page(name, path, kind == "solved", values, known, labels, works)
            made = notebookcells.assemble(sources[name], page, install, app.config.lab_subject.get("title", ""))
            result.append((name, suffix, nbformat.writes(made) + "\n"))
            problems.update(dict.fromkeys(page.problems))
        for problem in problems:
            logger.warning("the notebooks: %s", problem, location=docname, type="lab", subtype="notebook")
    return result


def _executed(env: BuildEnvironment, docname: str) -> NotebookNode:
    """The page as myst-nb reads it, with its outputs where the execution cache has them."""
    path = Path(env.doc2path(docname))
    text = path.read_text(encoding="utf8")
    settings = env.mystnb_config  # type: ignore[attr-defined]
    reader = create_nb_reader(str(path), env.myst_config, settings, text)  # type: ignore[attr-defined]
    if reader is None:
        return nbformat.v4.new_notebook()
    notebook = reader.read(text)
    if settings.execution_mode == "cache":
        try:
            _, notebook = get_cache(settings.execution_cache_path).merge_match_into_notebook(notebook)
        except KeyError:
            logger.warning("the notebooks: the execution cache doesn't have this page", location=docname, type="lab")
    return notebook


def _labels(env: BuildEnvironment) -> dict[str, tuple[str, str]]:
    """For each label, and for each page's name, the page and the words that a reference to it shows."""
    found = {
        PurePosixPath(docname).name: (PurePosixPath(docname).name, env.titles[docname].astext())
        for docname in env.titles
    }
    standard = env.domaindata["std"]
    for label, (docname, _, words) in standard["labels"].items():
        found[label] = (PurePosixPath(docname).name, words)
    for label, (docname, anchor) in standard["anonlabels"].items():
        number = env.toc_fignumbers.get(docname, {}).get("figure", {}).get(anchor)
        if number:
            found[label] = (PurePosixPath(docname).name, "Fig. " + ".".join(map(str, number)))
    return found


def setup(app: Sphinx) -> None:
    """Register the setting, the links and the writing."""
    app.add_config_value("lab_repository", "", "", [str])
    app.connect("doctree-resolved", offer)
    app.connect("build-finished", write_all, priority=800)
