"""Execute the chapters that have no outputs in the cache, two at a time, before Sphinx reads them.

myst-nb then finds every one of them in the cache. Alone it would run one after the other, say nothing meanwhile, stop
at the first failure, and know of nothing but the cells that can change an output: here the cache is named after the
model, labcode and all else that can. The model is asked for once, before the first chapter. What is damaged in the
cache is executed again, and one build at a time works in a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from filelock import FileLock, Timeout
from ipykernel.kernelspec import RESOURCES, make_ipkernel_cmd
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.db import DB_NAME, OrmBase
from jupyter_cache.cache.main import JupyterCacheBase
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from myst_nb.core.read import create_nb_reader
from nbclient import NotebookClient
from nbformat import NotebookNode
from sphinx.util import logging

import labcode
from labcode.errors import LabError

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config
    from sphinx.environment import BuildEnvironment

T = TypeVar("T")
logger = logging.getLogger(__name__)
ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
WRITE_TEXT = ("-c", "from labcode import corpus, models; corpus.load_corpus(models.load())")
BUILT = {"html", "singlehtml", "jupyter_execute", ".doctrees", ".jupyter_cache"}  # what builds write in `_build`
TEXT = {".py", ".json", ".txt", ".md"}
KEPT = 3  # old caches that are worth their place: switching between two models should not run everything again
# Kernels run side by side, so each takes one thread; nothing may write a progress bar into a page.
KERNEL_ENVIRONMENT = {
    "LAB_BUILD": "1",  # the page shows the verdicts of claims, so `report.claim` prints none
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "passive",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONHASHSEED": "0",
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def halt(message: str, *, see: str = "", status: int = 1) -> NoReturn:
    """Print the message as an error, with its entry of the page Troubleshooting if there is one, and end the process.

    An exception would end it too, but Jupyter Book prints a page of its own traceback after it, and the message, which
    says what to do, is lost above that.

    Raises:
        SystemExit: Always, with this status.
    """
    logger.critical("%s", LabError(message, see))
    raise SystemExit(status)


# The folder


def claim_folder(app: Sphinx, config: Config) -> None:
    """Keep other builds out of the folder `_build` until this one ends.

    Raises:
        SystemExit: Something in the folder can't be written, or another build is at work there.
    """
    folder = Path(app.doctreedir).parent
    if (barred := unwritable(folder)) is not None:
        halt(f"{barred} can't be written: mend its permissions, or delete it", see="build-folder")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        halt(f"another build is at work in {folder}: wait for its end, or end it", see="build-folder")
    except NotImplementedError:
        return  # a file system without locks
    app.connect("build-finished", lambda app, error: lock.release(), priority=999)


def unwritable(folder: Path) -> Path | None:
    """The first thing in the folder that a build writes and can't, if there is any."""
    for place, inside, files in os.walk(folder):
        if Path(place) == folder:
            inside[:] = sorted(BUILT.intersection(inside))
        for path in (Path(place), *(Path(place, name) for name in files)):
            if not path.is_symlink() and not os.access(path, os.W_OK):
                return path
    return None


# The model


def choose_and_key(app: Sphinx, config: Config) -> None:
    """Choose the model once, hand it to the kernels, and name the execution cache after all that matters."""
    model = config.lab_subject = chosen(config.lab_model)
    prepare_environment(model)
    if not config.nb_execution_cache_path:
        root = Path(app.srcdir)
        device = model.get("device", "cpu")  # other devices round otherwise
        mark = fingerprint(root, model.get("fingerprint", "") + (device if device != "cpu" else ""))
        # An "env" value: a new path also makes Sphinx read every page again.
        config.nb_execution_cache_path = str(cache_folder(root / "_build" / ".jupyter_cache", mark))


def chosen(wanted: bool, command: tuple[str, ...] = ("-m", "labcode.models", "--json")) -> dict[str, Any]:
    """Ask `python -m labcode.models` for the model: name, title, why, folder, fingerprint, edition, device, certified.

    A process of its own, so that torch never enters Sphinx. Its progress and its errors show on the terminal.

    Args:
        wanted: False for a book whose chapters need no model; the answer is then empty.
        command: What to run with this Python; tests replace it.

    Raises:
        SystemExit: There is no model; the process has said why, and what to do.
    """
    if not wanted:
        return {}
    given = {**os.environ, **({"LAB_PROGRESS": "1"} if sys.stderr.isatty() else {})}
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, env=given, check=False)
    if done.returncode:
        halt("labcode.models gave no model; what it said is above", see="no-answer-about-the-model")
    # Libraries may print to stdout while they load; the answer is the last line.
    model: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    logger.info("model: %s (%s)", model.get("title", model["name"]), model["why"])
    return model


def prepare_environment(model: dict[str, Any]) -> None:
    """Set the variables that every kernel of this build inherits."""
    os.environ.update(KERNEL_ENVIRONMENT)
    if model:
        if os.environ.get("LAB_MODEL"):
            os.environ["LAB_MODEL"] = model["name"]  # in full: a kernel runs in the folder of its chapter
        os.environ["LAB_DEVICE"] = model.get("device", "cpu")
        # Everything is on this machine now; a kernel that asked the hub again could hang or differ.
        os.environ["HF_HUB_OFFLINE"] = "1"


# The cache


def fingerprint(root: Path, model: str, package: Path | None = None) -> str:
    """Hash what can change a chapter's outputs besides its cells; the Sphinx side isn't in it.

    It is labcode, what `book/` adds to it and its recorded data, the lock, the model and the Python version.

    Args:
        root: The folder with `requirements.txt` and `book/`, where there are any.
        model: What `labcode.models` says identifies weights and tokenizer.
        package: The folder of labcode, if not the installed one.
    """
    package = package or Path(labcode.__file__).parent
    files = [root / "requirements.txt", *package.rglob("*")]
    for folder in ("show", "checks", "data"):
        files += (root / "book" / folder).rglob("*")
    caps = [os.environ.get(name, "") for name in ("LAB_PROMPTS", "LAB_TOKENS")]  # less to measure, other numbers
    digest = hashlib.sha256("\0".join([platform.python_version(), model, *caps, ""]).encode())
    for path in sorted(files):
        name = path.relative_to(package if path.is_relative_to(package) else root)
        hidden = any(part.startswith((".", "__pycache__")) for part in name.parts)  # an editor's, or Jupyter's
        if path.is_file() and not hidden and "make" not in name.parts:
            content = path.read_bytes()
            if path.suffix in TEXT:
                content = content.replace(b"\r\n", b"\n")  # Git may write either
            digest.update(f"{name.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def cache_folder(root: Path, mark: str) -> Path:
    """The cache folder of this fingerprint, newest now; of the older ones only the newest few stay."""
    folder = root / mark
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    others = [path for path in root.iterdir() if path.is_dir() and path != folder]
    for old in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def notebook(env: BuildEnvironment, docname: str) -> NotebookNode | None:
    """The page as a notebook, read exactly as myst-nb will read it; None for a page that isn't one."""
    path = Path(env.doc2path(docname))
    text = path.read_text(encoding="utf8")
    reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, text)  # type: ignore[attr-defined]
    return reader.read(text) if reader else None


def opened(folder: Path) -> JupyterCacheBase:
    """The execution cache in this folder; one whose database is damaged is thrown away and made anew.

    Raises:
        SystemExit: The database can't be opened, which says nothing of what is in it.
    """
    database = folder / DB_NAME
    try:
        whole = not database.exists() or _readable(database)
    except sqlite3.OperationalError as error:
        halt(f"{database} can't be opened ({error}): end what uses it, or delete {folder}", see="build-folder")
    if not whole:
        logger.info("the execution cache is damaged: every chapter is executed again")
        shutil.rmtree(folder)
    return get_cache(folder)


def _readable(database: Path) -> bool:
    with contextlib.closing(sqlite3.connect(database)) as opened:
        try:
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            whole = opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        except sqlite3.OperationalError:
            raise  # it can't be opened
        except sqlite3.DatabaseError:
            return False
    return whole and tables >= set(OrmBase.metadata.tables)


def keep(cache: JupyterCacheBase, notebook: NotebookNode, path: Path, used: dict[str, float]) -> None:
    """Store a page's outputs at once, so that an interrupted build goes on where it was.

    Only the main thread comes here: two writers would fight over the cache's database.

    Args:
        cache: Where to.
        notebook: The page with its outputs.
        path: The page.
        used: What the execution took: execution_seconds, and what `usage` says.
    """
    # A build that was killed may have left the notebook's folder without the notebook, which the cache can't overwrite.
    shutil.rmtree(cache.path / "executed" / cache.create_hashed_notebook(notebook)[1], ignore_errors=True)
    bundle = CacheBundleIn(notebook, str(path), data=used)
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True, description=checksum(notebook))


def kept(cache: JupyterCacheBase, notebook: NotebookNode) -> bool:
    """Whether the cache has the page's outputs, whole and as they were stored."""
    try:
        record = cache.match_cache_notebook(notebook)
    except KeyError:
        return False
    try:
        if record.description == checksum(cache.get_cache_bundle(record.pk).nb):
            return True
    except Exception:  # whatever is wrong with the file, executing again mends it
        pass
    logger.info("%s: its outputs in the execution cache are damaged or were altered", record.uri)
    return False


def checksum(notebook: NotebookNode) -> str:
    """A hash of the code cells with their outputs."""
    cells = [[cell.source, cell.execution_count, cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


# The kernels


class ThisPython(AsyncKernelManager):
    """Starts a kernel of this interpreter, whatever a JUPYTER_PATH or the reader's home has by the name of python3."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel of the ipykernel that is installed here."""
        return KernelSpec(argv=make_ipkernel_cmd(), display_name="Python 3", language="python", resource_dir=RESOURCES)


@dataclass
class Job:
    """A page to execute, and what became of it."""

    docname: str
    path: Path
    notebook: NotebookNode
    client: NotebookClient | None = None
    seconds: float = 0.0
    failure: str = ""  # the traceback, or nothing
    used: dict[str, float] = field(default_factory=dict)  # see `usage`

    @property
    def taken(self) -> dict[str, float]:
        """What the execution took, as the cache keeps it."""
        return {"execution_seconds": self.seconds, **self.used}

    @property
    def cells(self) -> int:
        """How many cells there are to execute."""
        return sum(cell.cell_type == "code" for cell in self.notebook.cells)


def run_chapters(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Run the chapters whose outputs the cache doesn't have, and report each as it finishes.

    Pages that Sphinx didn't mean to read, but whose outputs are gone, are added to `docnames`: all pages are written
    if one is, and their notebooks with the outputs from the cache.

    Raises:
        SystemExit: After all have run, if any failed; their tracebacks have been printed.
    """
    settings = env.mystnb_config  # type: ignore[attr-defined]
    if settings.execution_mode != "cache":
        return
    cache = opened(Path(settings.execution_cache_path))
    read = ((name, notebook(env, name)) for name in [*docnames, *sorted(env.found_docs - set(docnames))])
    jobs = [Job(name, Path(env.doc2path(name)), found) for name, found in read if found]
    missing = [job for job in jobs if not kept(cache, job.notebook)]
    docnames += [job.docname for job in missing if job.docname not in docnames]
    for job in missing:
        if not job.cells:
            keep(cache, job.notebook, job.path, job.taken)  # else myst-nb would start a kernel for it
    missing = [job for job in missing if job.cells]
    if missing:
        write_text(app.config.lab_subject, missing)
        side_by_side = min(at_once(), len(missing))
        logger.info("chapters to execute: %d, %d at a time", len(missing), side_by_side)
        _run_all(missing, side_by_side, settings.execution_timeout, cache)
    elif jobs:
        logger.info("nothing to execute: %d pages come from the cache", len(jobs))
    failed = [job for job in missing if job.failure]
    for job in failed:
        logger.error("%s\n%s\n", job.docname, job.failure, location=job.docname)
    if failed:
        count = "a chapter" if len(failed) == 1 else f"{len(failed)} chapters"
        names = ", ".join(job.docname for job in failed)
        halt(f"{count} failed: {names} (the tracebacks are above)", see="chapter-failed")


def write_text(model: dict[str, Any], jobs: Sequence[Job], command: tuple[str, ...] = WRITE_TEXT) -> None:
    """Let a model without a shipped corpus write its text before the chapters that ask for it.

    In a cell it would show no progress, run into the limit of a cell on a busy machine, and two chapters would wait for
    the same text. It is kept batch by batch in the cache folder, so an interrupted build goes on where it was.

    Args:
        model: What `chosen` said.
        jobs: The pages to execute.
        command: What to run with this Python; tests replace it.

    Raises:
        SystemExit: The model wrote no text; the process has said why.
    """
    code = "".join(cell.source for job in jobs for cell in job.notebook.cells if cell.cell_type == "code")
    if not model or model.get("certified") or not re.search(r"\b(corpus|sae)\.", code):
        return
    logger.info("text for the autoencoders: written by %s where there is none yet", model.get("title", model["name"]))
    given = {**os.environ, **({"LAB_PROGRESS": "1"} if sys.stderr.isatty() else {})}
    given.pop("OMP_NUM_THREADS", None)  # no chapter runs yet: all cores may write
    if subprocess.run([sys.executable, *command], env=given, check=False).returncode:
        halt("the model wrote no text for the autoencoders; what it said is above")


def at_once() -> int:
    """How many chapters run at a time: `LAB_JOBS`, else two.

    Raises:
        SystemExit: `LAB_JOBS` isn't a whole number above 0.
    """
    asked = os.environ.get("LAB_JOBS", "").strip() or "2"
    if not asked.isdigit() or int(asked) < 1:
        halt(f"LAB_JOBS={asked} isn't a number of chapters: use a whole number above 0")
    return int(asked)


def in_turn(jobs: Sequence[T], size: Callable[[T], int]) -> list[T]:
    """The largest, then the first, the last, the second, the last but one, and so on.

    The largest would else run alone at the end. Neighbours share measurements: begun together, one of them would only
    wait until the other has measured.
    """
    largest = max(jobs, key=size, default=None)
    rest = [job for job in jobs if job is not largest]
    both_ends = [job for pair in zip(rest, reversed(rest), strict=True) for job in pair][: len(rest)]
    return both_ends if largest is None else [largest, *both_ends]


def duration(seconds: float) -> str:
    """Seconds in words: "4.2 s", "41 s", "1 min 3 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _run_all(jobs: list[Job], side_by_side: int, timeout: int, cache: JupyterCacheBase) -> None:
    begun = time.monotonic()
    with ThreadPoolExecutor(side_by_side) as pool:
        futures = [pool.submit(run, job, timeout) for job in in_turn(jobs, lambda job: job.cells)]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                job = future.result()
                if not job.failure:
                    keep(cache, job.notebook, job.path, job.taken)
                became = "FAILED after" if job.failure else "ran in"
                taken, in_all = duration(job.seconds), duration(time.monotonic() - begun)
                logger.info("[%d/%d] %s %s %s (%s in all)", done, len(jobs), job.docname, became, taken, in_all)
        except BaseException as reason:
            logger.info("stopping the kernels")
            _stop(jobs, futures)
            if isinstance(reason, KeyboardInterrupt):
                halt("interrupted; the next build goes on with the chapters that are left", status=130)
            raise


def run(job: Job, timeout: int) -> Job:
    """Execute the page's notebook in place, in its own folder; a failure is noted as text.

    Args:
        job: The page; its notebook gets the outputs.
        timeout: The most seconds that one cell may take.
    """
    begun = time.monotonic()
    job.client = NotebookClient(
        job.notebook,
        timeout=timeout,
        kernel_manager_class=ThisPython,
        record_timing=False,  # times in the cells' metadata would change the notebook's key in the cache
        resources={"metadata": {"path": str(job.path.parent)}},
        # Without this each kernel tells the terminal that it talks over TCP unencrypted, and that it was stopped.
        extra_arguments=["--IPKernelApp.log_level=50"],
        # Measured anew after each cell: after the last one the kernel is gone.
        on_cell_executed=lambda **_: job.used.update(usage(getattr(_process(job), "pid", 0))),
    )
    try:
        job.client.execute()
    except Exception as error:  # a dead kernel and a time-out come as different classes; all end the chapter
        job.failure = ANSI.sub("", f"{type(error).__name__}: {error}").strip()
    job.seconds = time.monotonic() - begun
    return job


def usage(pid: int, proc: Path = Path("/proc")) -> dict[str, float]:
    """Processor seconds and peak memory in bytes of a process, from Linux's records; nothing elsewhere."""
    try:
        # After the name in brackets, which may hold anything, come the state and the numbers.
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        status = (proc / str(pid) / "status").read_text()
        ticks = int(fields[11]) + int(fields[12])
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return {"cpu_seconds": ticks / os.sysconf("SC_CLK_TCK"), "peak_bytes": 1024 * int(peak.split()[1])}
    except (OSError, ValueError, IndexError, StopIteration):
        return {}


def _process(job: Job) -> Any:
    provisioner = getattr(job.client and job.client.km, "provisioner", None)
    return getattr(provisioner, "process", None)


def _stop(jobs: list[Job], futures: list[Future[Job]]) -> None:
    """Kill the kernels until none of the threads that wait for them is left."""
    for future in futures:
        future.cancel()
    while any(not future.done() for future in futures):
        for process in filter(None, map(_process, jobs)):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    # A kernel leads a session of its own, so Ctrl-C on the terminal didn't reach it.
                    os.killpg(process.pid, signal.SIGKILL)
        wait(futures, timeout=0.2)


def setup(app: Sphinx) -> None:
    """Register the settings, choose the model before myst-nb reads its own, and execute before Sphinx reads."""
    app.add_config_value("lab_model", True, "env", [bool])
    app.add_config_value("lab_subject", {}, "", [dict])
    app.connect("config-inited", claim_folder, priority=90)
    app.connect("config-inited", choose_and_key, priority=100)
    app.connect("env-before-read-docs", run_chapters)
