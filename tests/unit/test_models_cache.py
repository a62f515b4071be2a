"""The cache: all or nothing, one at a time, and clear when the disk or its owner says no."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labcode.errors import ModelError
from labcode.models import cache, convert
from labcode.models.known import Pin

# A process that builds a folder slowly and appends a line to `log` for each build it begins.
BUILDER = """
import signal, sys, time
# A shell that starts the tests in the background lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from labcode.models.cache import build_once
target, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build(folder):
    with (target.parent.parent / "log").open("a") as log:
        log.write(f"{folder}\\n")
    (folder / "first").write_text("1")
    time.sleep(seconds)
    (folder / "last").write_text("2")
build_once(target, lambda folder: (folder / "last").is_file(), build, 0)
print(sorted(path.name for path in target.iterdir()))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def builder(target: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(target), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("LAB_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_dir() == Path("/x/interp-lab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache.cache_dir() == Path("/h/.cache/interp-lab")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_dir() == Path("/h/Library/Caches/interp-lab")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache.cache_dir() == Path("/local/interp-lab")


def test_two_processes_at_once_build_one_folder(own_cache, tmp_path):
    own_cache.mkdir()
    target = own_cache / "thing"
    both = [builder(target, 1.0) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {out for out, _ in outputs} == {"['first', 'last']\n"}
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert visible(own_cache) == ["thing"]


def test_a_killed_builder_leaves_nothing_that_counts(own_cache, tmp_path):
    own_cache.mkdir()
    target = own_cache / "thing"
    first = builder(target, 60)
    wait_for(lambda: list(own_cache.glob("thing.building-*/first")))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not target.exists()
    second = builder(target, 0)
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (0, "['first', 'last']\n"), err
    assert visible(own_cache) == ["thing"]
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_an_interrupted_builder_cleans_up(own_cache):
    own_cache.mkdir()
    target = own_cache / "thing"
    process = builder(target, 60)
    wait_for(lambda: list(own_cache.glob("thing.building-*/first")))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert visible(own_cache) == []


def test_a_folder_that_is_not_good_is_built_again(own_cache):
    target = own_cache / "thing"
    target.mkdir(parents=True)
    (target / "old").write_text("x")
    cache.build_once(target, lambda f: (f / "new").exists(), lambda f: (f / "new").write_text("y"), 0)  # type: ignore
    assert visible(target) == ["new"]


def test_a_good_folder_is_taken_from_a_cache_that_cannot_be_locked(own_cache):
    target = own_cache / "thing"
    target.mkdir(parents=True)
    (own_cache / "thing.lock").mkdir()
    assert cache.build_once(target, Path.is_dir, lambda folder: pytest.fail("built"), 0) == target  # type: ignore


def test_a_disk_without_room_is_said_before_building(own_cache):
    with pytest.raises(ModelError, match=r"cache folder .*cache is full .*MB are needed.*LAB_CACHE"):
        cache.build_once(own_cache / "thing", Path.is_dir, lambda folder: pytest.fail("built"), 10**18)  # type: ignore
    assert visible(own_cache) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits on this system")
@pytest.mark.parametrize("which", ["weights", "text"])
def test_a_disk_that_fills_up_half_way_leaves_nothing(own_cache, tiny_llama, which):
    """A limit on the size of a file stands in for the full disk: the write itself fails, in the middle."""

    def build(folder: Path) -> None:
        if which == "weights":
            convert._write(tiny_llama.hf, tiny_llama.bridge.tokenizer, folder)
        else:
            (folder / "small").write_text("ok")
            (folder / "large").write_text("x" * 3_000_000)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(ModelError, match=r"cache folder .*cache is full .*LAB_CACHE"):
            cache.build_once(own_cache / "thing", Path.is_dir, build, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert visible(own_cache) == []


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"cache folder .*file/cache can't be written .*set LAB_CACHE"):
        convert.converted_folder()


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    pin = Pin(cache.sha256(file), 3)
    hashed = []
    real = cache.sha256
    monkeypatch.setattr(cache, "sha256", lambda path: hashed.append(path) or real(path))
    assert cache.matches(file, pin)
    assert cache.matches(file, pin)
    assert len(hashed) == 1
    assert not cache.matches(file, Pin("0" * 64, 3))
    file.write_bytes(b"abd")
    os.utime(file, ns=(1, 1))
    assert not cache.matches(file, pin)
    file.write_bytes(b"ab")
    assert not cache.matches(file, pin)
    with pytest.raises(FileNotFoundError):
        cache.matches(tmp_path / "none", pin)


@pytest.fixture
def converted(tmp_path) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    convert.write_manifest(folder)
    return folder


def test_a_converted_folder_is_intact_only_as_it_was_written(converted):
    assert convert.intact(converted)
    assert not convert.intact(converted.parent / "none")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", convert.MANIFEST])
@pytest.mark.parametrize("damage", ["altered", "truncated", "removed"])
def test_damage_to_a_converted_folder_is_seen(converted, name, damage):
    assert convert.intact(converted)
    file = converted / name
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + (b"#" if damage == "altered" else b""))
    assert not convert.intact(converted)
