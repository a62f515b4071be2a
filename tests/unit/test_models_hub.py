"""GPT-2 small and the hub, against a real server on this machine: answers, hangs, breaks off, hands out other files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hubserver import Hub

from labcode.models import hub
from labcode.models.known import KNOWN

GPT2 = KNOWN["gpt2"]
CONFIG = json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}).encode()


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **options) -> Hub:
        servers.append(Hub(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def online(monkeypatch, clean_env):
    """Lift the ban on networks, and point it at this machine."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return lambda url: monkeypatch.setenv("HF_ENDPOINT", url)


def lab(url: str, home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """`python -m labcode.models` with a hub at `url` and an empty hub cache at `home`."""
    drop = ("HF_HUB_OFFLINE", "LAB_MODEL", "LAB_MODEL_WHY", "LAB_PROGRESS")
    base = {name: value for name, value in os.environ.items() if name not in drop and "proxy" not in name.lower()}
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    command = [sys.executable, "-m", "labcode.models", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**base, **settings}, timeout=200)


def test_a_hub_that_hands_out_the_config_answers(serve, online):
    server = serve({"config.json": CONFIG})
    online(server.url)
    assert hub.unreachable() is None
    assert server.asked == [f"/{GPT2.source}/resolve/{GPT2.revision}/config.json"]


@pytest.mark.parametrize(
    ("files", "status", "why"),
    [
        ({}, 200, "can't be reached (Not Found)"),
        ({"config.json": CONFIG}, 503, "can't be reached (Service Unavailable)"),
        ({"config.json": b"<html>sign in first</html>"}, 200, "can't be reached ("),
        ({"config.json": b'{"model_type": "bert"}'}, 200, "isn't GPT-2's config"),
        ({"config.json": b"[]"}, 200, "can't be reached ("),
    ],
)
def test_a_hub_that_answers_something_else_does_not_count(serve, online, files, status, why):
    online(serve(files, status=status).url)
    assert why in str(hub.unreachable())


def test_nothing_listening_is_found_at_once(online):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        online(f"http://127.0.0.1:{free.getsockname()[1]}")
    start = time.monotonic()
    assert "can't be reached" in str(hub.unreachable())
    assert time.monotonic() - start < 2


def test_offline_is_respected_without_a_request(serve, online, monkeypatch):
    server = serve({"config.json": CONFIG})
    online(server.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"
    assert server.asked == []


def test_a_server_that_says_nothing_costs_at_most_five_seconds(online):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert hub.unreachable() is not None
        assert time.monotonic() - start < 5


def test_a_server_that_drips_costs_at_most_five_seconds(online):
    """Each byte comes before the socket's own timeout, so that only a deadline for the whole helps."""
    stop = threading.Event()
    with socket.socket() as dripping:
        dripping.bind(("127.0.0.1", 0))
        dripping.listen()

        def drip():
            connection, _ = dripping.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
                while not stop.wait(0.5):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        threading.Thread(target=drip, daemon=True).start()
        online(f"http://127.0.0.1:{dripping.getsockname()[1]}")
        start = time.monotonic()
        assert hub.unreachable() == f"the hub didn't answer within {hub.PROBE_SECONDS:g} s"
        assert time.monotonic() - start < 5
        stop.set()


def test_a_name_server_that_hangs_costs_at_most_five_seconds(online, monkeypatch):
    """No name server here can be made to hang, so the system's call is replaced by one that doesn't come back."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: time.sleep(30) or [])
    online("http://hub.invalid")
    start = time.monotonic()
    assert hub.unreachable() == f"the hub didn't answer within {hub.PROBE_SECONDS:g} s"
    assert time.monotonic() - start < 5


WRONG = {
    "config.json": CONFIG,
    "model.safetensors": b"not the weights",
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "tokenizer.json": b"{}",
}


def test_auto_falls_back_when_the_files_are_not_the_pinned_ones(serve, tmp_path):
    server = serve(WRONG)
    done = lab(server.url, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["name"] == "smollm2"
    assert record["why"].startswith("GPT-2 small can't be used here: ")
    assert "model.safetensors isn't the pinned file" in record["why"]
    assert done.stderr == ""
    fetched = {path.split("?")[0].rpartition("/")[2] for path in server.asked if "/resolve/" in path}
    assert fetched == set(WRONG)


def test_gpt2_by_name_says_that_its_files_are_not_the_pinned_ones(serve, tmp_path):
    done = lab(serve(WRONG).url, tmp_path, "gpt2")
    assert done.returncode == 2
    assert "model.safetensors isn't the pinned file" in done.stderr
    assert "delete" in done.stderr
    assert str(tmp_path) in done.stderr


def test_auto_falls_back_when_the_download_breaks_off(serve, tmp_path):
    files = {**WRONG, "model.safetensors": b"x" * 1_000_000}
    server = serve(files, breaks=("model.safetensors",))
    done = lab(server.url, tmp_path, "--json")
    assert any(path.endswith("/model.safetensors") for path in server.asked)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["name"] == "smollm2"
    assert "the download of GPT-2 small broke off" in record["why"]
    assert done.stderr == ""


# The self-check of downloaded weights, with the pins of a tiny random model in the place of the real ones.
SELF_CHECK = """
import sys, json
from dataclasses import replace
from pathlib import Path
from labcode import models
from labcode.models import hub
from labcode.models.cache import sha256
from labcode.models.known import Pin
folder = Path(sys.argv[1])
hub.GPT2 = replace(hub.GPT2, files={"model.safetensors": Pin(sha256(folder / "model.safetensors"))})
choice = models.prepare("auto")
print(json.dumps([choice.name, choice.why]))
models.prepare("gpt2")
"""


def test_auto_falls_back_when_the_self_check_fails_and_gpt2_by_name_says_so(tmp_path, tiny_gpt2):
    snapshot = tmp_path / "hub" / "models--openai-community--gpt2" / "snapshots" / GPT2.revision
    snapshot.mkdir(parents=True)
    for file in tiny_gpt2.folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    (snapshot / "vocab.json").write_text("{}")
    (snapshot / "merges.txt").write_text("")
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env.pop("LAB_MODEL", None)
    command = [sys.executable, "-c", SELF_CHECK, str(tiny_gpt2.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)
    name, why = json.loads(done.stdout)
    assert name == "smollm2"
    assert why.startswith("GPT-2 small can't be used here: GPT-2 small fails its self-check on device cpu")
    # Asked for by name: prepare hands the files over, and the error comes, as it should, from the check.
    assert done.returncode != 0
    assert "GPT-2 small fails its self-check on device cpu" in done.stderr
