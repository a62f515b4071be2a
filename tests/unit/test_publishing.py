"""What publishes the book: workflows that can be trusted, a citation, and links that lead where the source is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import labcode
from labbook._ext import addresses

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
sys.path.insert(0, str(ROOT / "tests"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def test_there_is_one_workflow_for_each_purpose():
    assert {path.stem for path in WORKFLOWS} == {"check", "publish", "release", "watch"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_holds_no_more_rights_than_it_needs(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        rights = job.get("permissions", {})
        if "write" in rights.values():
            # What may write runs none of the code that it would publish, and installs nothing.
            ran = " ".join(step.get("run", "") for step in job["steps"])
            assert not re.search(r"\b(make|pip|pipx|python|bash)\b", ran), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_leave_no_token_behind(path):
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]), step
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", ""), "a name could end the command: hand it over in env"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_makes_is_a_target(path):
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    asked = re.findall(r"\bmake ([a-z-]+)", " ".join(step.get("run", "") for step in steps(path)))
    assert set(asked) <= set(known)


def test_two_editions_are_published_and_only_the_certified_one_can_stop_it():
    jobs = read(ROOT / ".github" / "workflows" / "publish.yml")["jobs"]
    made = {
        name: next(step["env"] for step in jobs[name]["steps"] if step.get("run") == "make book")
        for name in jobs
        if name in ("certified", "gpt2")
    }
    assert (made["certified"]["LAB_MODEL"], made["certified"]["LAB_STRICT"]) == ("smollm2", "1")
    assert made["gpt2"]["LAB_MODEL"] == "gpt2"
    assert "LAB_STRICT" not in made["gpt2"]
    assert jobs["gpt2"]["continue-on-error"] is True
    assert jobs["deploy"]["needs"] == "certified", "the first edition waits for nothing else"
    ran = [step.get("run") for step in jobs["certified"]["steps"]]
    assert {"make lint", "make book", "make test"} <= set(ran)
    assert read(ROOT / ".github" / "workflows" / "publish.yml")["concurrency"]["cancel-in-progress"] is False


@pytest.mark.parametrize(("tag", "passes"), [("v{}", True), ("{}", False), ("v{}.1", False), ("main", False)])
def test_a_release_is_of_the_version_that_its_tag_names(tmp_path, tag, passes):
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    first = next(step for step in jobs["archive"]["steps"] if "run" in step)
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    (tmp_path / "labcode").mkdir()
    shutil.copy(ROOT / "labcode" / "__init__.py", tmp_path / "labcode")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {"TAG": tag.format(labcode.__version__), "PATH": path}
    done = subprocess.run(["bash", "-e", "-c", first["run"]], cwd=tmp_path, env=given, capture_output=True, timeout=60)
    assert (done.returncode == 0) == passes, done.stderr
    if passes:
        notes = (tmp_path / "_build" / "notes.md").read_text()
        assert "* Eighteen chapters" in notes
        assert "##" not in notes
    assert "--notes-file notes.md" in jobs["release"]["steps"][-1]["run"]


def test_the_scheduled_workflow_can_publish_nothing():
    assert not any("permissions" in job for job in read(ROOT / ".github" / "workflows" / "watch.yml")["jobs"].values())


def test_each_python_that_the_project_names_is_checked():
    matrix = read(ROOT / ".github" / "workflows" / "check.yml")["jobs"]["check"]["strategy"]["matrix"]["python"]
    assert matrix == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize(("user", "how"), [("0", "apt-get"), ("1000", "sudo -n apt-get")])
def test_the_check_installs_a_browser_with_the_rights_that_it_has(tmp_path, user, how):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    said = {"id": f"echo {user}", "make": ":", **dict.fromkeys(("apt-get", "sudo"), 'echo "${0##*/} $*" >> asked')}
    for name, does in said.items():
        (tools / name).write_text(f"#!{tools}/bash\n{does}\n")
        (tools / name).chmod(0o755)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    subprocess.run([tools / "bash", ".ci/run"], cwd=tmp_path, env={"PATH": str(tools)}, check=True, timeout=60)
    assert (tmp_path / "asked").read_text() == f"{how} update -q\n{how} install -y -q chromium\n"
    (tmp_path / "asked").unlink()
    (tools / "google-chrome").symlink_to(tools / "make")
    subprocess.run([tools / "bash", ".ci/run"], cwd=tmp_path, env={"PATH": str(tools)}, check=True, timeout=60)
    assert not (tmp_path / "asked").exists()


def test_the_citation_is_of_this_version():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == labcode.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert f"## {labcode.__version__}" in (ROOT / ".github" / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_an_issue_form_is_whole(path):
    form = read(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) > 0


def test_the_canary_asks_for_no_pinned_version():
    from newest import newest

    asked = newest(ROOT / "pyproject.toml")
    assert "torch" in asked
    assert "jupyter-book<2" in asked
    assert not any("==" in name for name in asked)


@pytest.mark.parametrize("revision", ["", ".git", "/", "@0a1b2c"])
def test_a_notebook_opens_elsewhere_once_the_source_is_on_github(revision):
    links = addresses.elsewhere(f"https://github.com/lab/book{revision}", "01-one.ipynb")
    assert links["Colab"] == "https://colab.research.google.com/github/lab/book/blob/notebooks/01-one.ipynb"
    assert links["Binder"] == "https://mybinder.org/v2/gh/lab/book/notebooks?labpath=01-one.ipynb"


@pytest.mark.parametrize("repository", ["", "https://git.example.org/lab", "/home/lab", "https://github.com/lab"])
def test_no_link_where_no_service_would_find_the_notebook(repository):
    assert addresses.elsewhere(repository, "01-one.ipynb") == {}


@pytest.mark.parametrize(
    "address",
    [
        "https://git.example.org/o/n",
        "https://user@git.example.org/o/n.git",
        "https://user:pa@ss@git.example.org/o/n.git",
        "ssh://git@git.example.org:22/o/n.git",
        "git@git.example.org:o/n.git",
        "git.example.org:n",
        "https://git.example.org/@o/n",
        "file:///home/lab",
        "/home/a@b/lab",
    ],
)
def test_a_revision_stands_behind_the_last_at_sign_and_a_user_is_none(address):
    assert addresses.split(address) == (address, "")
    for revision in ("v1", "0a1b2c"):
        assert addresses.split(f"{address}@{revision}") == (address, revision)
    assert addresses.source(f" {address}@v1 ") == f"{address}@v1"


def test_a_branch_may_have_a_folder():
    assert addresses.split("https://git.example.org/o/n.git@mine/new") == (
        "https://git.example.org/o/n.git",
        "mine/new",
    )


@pytest.mark.parametrize(
    "repository",
    [
        "github.com/lab/book",
        "lab",
        "./lab",
        "https://",
        "https://github.com",
        "https:///o/n",
        "-o:x",
        "git@github.com:",
        "https://github.com/o/n@",
    ],
)
def test_a_source_that_git_cannot_clone_from_anywhere_stops_with_a_sentence(repository, caplog):
    with pytest.raises(SystemExit):
        addresses.source(repository)
    assert f"LAB_REPOSITORY={repository} isn't what git can clone from anywhere" in caplog.text


@pytest.mark.parametrize("address", ["lab.example", "ftp://lab.example/", "https://", "https://lab.example/?a=b"])
def test_an_address_that_is_none_stops_with_a_sentence(address, caplog):
    with pytest.raises(SystemExit):
        addresses.site("LAB_ADDRESS", address)


def test_an_address_is_a_folder():
    assert addresses.site("LAB_ADDRESS", " https://lab.example/book ") == "https://lab.example/book/"
    assert addresses.site("LAB_ADDRESS", "") == ""
