"""The installation finds what a killed pip leaves, and mends it: a real environment, with one small package."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
import install  # noqa: E402

FILES = {
    "small/__init__.py": "def main(): print('it runs')\n",
    "small/data.txt": "words\n" * 1000,
    "small-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: small\nVersion: 1\n",
    "small-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "small-1.dist-info/entry_points.txt": "[console_scripts]\nsmall = small:main\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an environment, in which `small` is installed."""
    folder = tmp_path_factory.mktemp("Anna's wörk shop")
    subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
    marks = (urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip("=") for text in FILES.values())
    rows = [f"{name},sha256={mark},\n" for name, mark in zip(FILES, marks, strict=True)]
    names = "".join([*rows, "small-1.dist-info/RECORD,,\n"])
    with zipfile.ZipFile(folder / "small-1-py3-none-any.whl", "w") as wheel:
        for name, text in {**FILES, "small-1.dist-info/RECORD": names}.items():
            wheel.writestr(name, text)
    get(folder / ".venv", folder)
    return folder


def get(venv: Path, wheels: Path, *options: str) -> None:
    command = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, "--find-links", wheels, *options, "small"], check=True, timeout=120)


@pytest.fixture
def venv(folder):
    found = folder / ".venv"
    assert install.broken(found) == []
    return found


def site(venv: Path) -> Path:
    return next(venv.glob("lib/python3*/site-packages"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def as_unpacked(path: Path) -> None:
    """The record as it lies in the wheel: pip was killed before it wrote its own."""
    path.write_text("".join(f"{name},,\n" for name in FILES))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("small-1.dist-info/RECORD", Path.unlink),
        ("small-1.dist-info/RECORD", as_unpacked),
        ("small-1.dist-info/RECORD", lambda path: path.write_bytes(b"\0\xff")),
        ("small-1.dist-info/METADATA", cut),
        ("small/data.txt", cut),
        ("small/__init__.py", Path.unlink),
        ("../../../bin/small", Path.unlink),
        ("../../../bin/small", lambda path: path.write_text(path.read_text().replace("shop", "house"))),
    ],
)
def test_a_half_installed_package_is_found_and_installed_again(venv, folder, file, damage):
    damage(site(venv) / file)
    found = install.broken(venv)
    assert [info.name for info in found] == ["small-1.dist-info"]
    assert install.usable(venv, found)
    install.forget(venv, found)
    get(venv, folder)
    assert install.broken(venv) == []
    assert subprocess.run([venv / "bin" / "small"], capture_output=True, text=True).stdout == "it runs\n"


def test_the_mend_that_an_error_proposes_works_without_a_record(venv, folder):
    proposed = set(re.findall(r"\{INSTALL\} (--[\w-]+)", (ROOT / "labcode" / "models.py").read_text()))
    assert len(proposed) == 1
    (site(venv) / "small-1.dist-info" / "RECORD").unlink()
    (site(venv) / "small" / "data.txt").unlink()
    get(venv, folder, *proposed)
    assert install.broken(venv) == []


def test_a_command_that_the_record_does_not_list_was_never_installed(venv, folder):
    """Python 3.12.1 brings a pip that names its command pip3.11, and installs it as pip3.12."""
    listed = site(venv) / "small-1.dist-info" / "RECORD"
    listed.write_text("".join(row for row in listed.open() if "bin/small" not in row))
    (venv / "bin" / "small").unlink()
    assert install.broken(venv) == []
    get(venv, folder, "--force-reinstall")


def test_what_pip_put_aside_goes(venv):
    (site(venv) / "~mall-1.dist-info").mkdir()
    install.forget(venv, [])
    assert not list(site(venv).glob("~*"))


def test_an_environment_whose_pip_is_damaged_or_gone_is_of_no_use(venv, tmp_path):
    copy = tmp_path / ".venv"
    shutil.copytree(venv, copy, symlinks=True)
    assert [info.name for info in install.broken(copy)] != [], (
        "its scripts start the environment that it was copied from"
    )
    assert install.usable(copy, [])
    cut(site(copy) / "pip" / "_internal" / "commands" / "install.py")
    assert not install.usable(copy, install.broken(copy))
    shutil.rmtree(next(site(copy).glob("pip-*.dist-info")))
    assert not install.usable(copy, [])
    assert not install.usable(tmp_path / "none", [])


def test_a_moved_environment_is_seen_and_its_scripts_are_damaged(folder, venv, tmp_path):
    assert install.at_home(venv)
    moved = tmp_path / ".venv"
    shutil.copytree(venv, moved, symlinks=True)
    assert not install.at_home(moved)
    install.make(moved, sys.executable, "--without-pip")
    assert install.at_home(moved)
    install.forget(moved, [info for info in install.broken(moved) if info.name.startswith("small")])
    get(moved, folder)
    assert [info.name for info in install.broken(moved) if info.name.startswith("small")] == []


@pytest.mark.parametrize("form", ['VIRTUAL_ENV="{}"', "    export VIRTUAL_ENV={}"])
def test_an_environment_is_at_home_where_its_whole_path_is_named(tmp_path, form):
    (tmp_path / "bin").mkdir()
    activate = tmp_path / "bin" / "activate"
    for named, is_at_home in ((tmp_path, True), (f"/mnt{tmp_path}", False), (f"{tmp_path}/.venv", False)):
        activate.write_text(f"deactivate () {{\n}}\n{form.format(named)}\n")
        assert install.at_home(tmp_path) == is_at_home


def test_an_apostrophe_may_be_quoted_for_the_shell(tmp_path):
    venv = tmp_path / "Anna's" / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text(f"export VIRTUAL_ENV={shlex.quote(str(venv))}\n")
    assert install.at_home(venv)


@pytest.mark.parametrize("line", ["#!{}/python", "#!/bin/sh\n'''exec' \"{}/python3.11\" \"$0\" \"$@\"\n' '''"])
def test_a_command_is_of_the_environment_whose_whole_path_it_names(tmp_path, line):
    info, scripts = tmp_path / "small-1.dist-info", tmp_path / "Anna's" / "bin"
    info.mkdir()
    scripts.mkdir(parents=True)
    (info / "entry_points.txt").write_text(FILES["small-1.dist-info/entry_points.txt"])
    for named, is_of_it in ((scripts, True), (f"/mnt{scripts}", False), (tmp_path / "bin", False)):
        (scripts / "small").write_text(line.format(named) + "\n")
        assert install.starts(info, [(str(scripts / "small"), "")], scripts) == is_of_it


def test_a_second_installation_waits_for_nothing(tmp_path, capsys):
    with install.alone(tmp_path), pytest.raises(SystemExit, match="another process is installing"):
        install.main(tmp_path)
    with install.alone(tmp_path):
        pass


def test_an_unknown_python_is_refused_with_those_that_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "NEWEST", (3, 10))
    monkeypatch.setattr(install, "OLDEST", (3, 9))
    with pytest.raises(SystemExit, match=r"Python 3\.9, 3\.10 can be used, this is 3\."):
        install.main(tmp_path)


def test_pyproject_names_the_same_pythons():
    least, beyond = install.OLDEST[1], install.NEWEST[1] + 1
    assert f'requires-python = ">=3.{least},<3.{beyond}"' in (ROOT / "pyproject.toml").read_text()


def make(target: str, folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    given = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "--no-print-directory", "-f", ROOT / "Makefile", target, *options, *given]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_a_taken_port_and_a_missing_site_are_a_sentence(tmp_path):
    done = make("serve", tmp_path, PYTHON=sys.executable)
    assert "there is no site yet" in done.stdout
    (tmp_path / "_build" / "html").mkdir(parents=True)
    (tmp_path / "_build" / "html" / "index.html").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = make("serve", tmp_path, PYTHON=sys.executable, PORT=str(taken.getsockname()[1]))
    assert done.returncode != 0
    assert "can't be had, another server may use it" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_files_that_a_reader_leaves_are_not_taken_for_modules(tmp_path):
    for name in ("requirements.txt", "pyproject.toml", "install.py", "_build/html/index.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    recipe = (ROOT / "Makefile").read_text()
    for target in re.search(r"^\.PHONY: (.*)", recipe, re.M)[1].split():
        done = make(target, tmp_path, "--dry-run", "--always-make", PYTHON="python3", TASK="t", BROWSER="b")
        assert done.returncode == 0, done.stderr
        # A script of `tests` looks for modules beside itself and not in this folder.
        first = re.findall(r"\bpython3? +(\S+)", done.stdout)
        assert [one for one in first if not one.startswith(("-P", "-I", "tests/"))] == [], target
    (tmp_path / "test_one.py").write_text("def test_one(): pass")
    for name in ("code", "socket"):  # pdb's, and one that a worker of the tests loads before it has its path
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a reader wrote this')")
    command = make("test", tmp_path, "--dry-run", "-o", ".venv/.ready").stdout.replace("3*", "1*")
    command = command.replace(".venv/bin/python", shlex.quote(sys.executable))
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "1 passed" in done.stdout, done.stderr
