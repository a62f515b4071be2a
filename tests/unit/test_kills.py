"""The run that kills builds: a kill that came too late is none, and kernels die with their build."""

from __future__ import annotations

import random
import shlex
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "faults"))
import kills


@pytest.fixture
def lab(tmp_path):
    return kills.Lab(tmp_path)


def makes(lab, *lines: str) -> None:
    (lab.folder / "Makefile").write_text("book:\n" + "".join(f"\t{line}\n" for line in lines))


def test_a_kill_that_comes_too_late_is_drawn_again(lab):
    makes(lab, "@echo at work", "@sleep 1.5")
    taken = []
    after, at, beside = lab.hit(lambda: taken.append(1), random.Random(3), 0.3, 60)
    assert len(taken) > 1, "the first moments that this seed draws are far behind the end"
    assert (after < 1.6, at, beside) == (True, "at work", 0)


def test_what_no_kill_can_hit_is_said(lab, monkeypatch):
    monkeypatch.setattr(lab, "kill", lambda after, target: None)
    with pytest.raises(kills.Fault, match="no kill hit: `make book` ends within"):
        lab.hit(lambda: None, random.Random(0), 0.3, 60)


def test_a_build_that_fails_by_itself_was_not_killed(lab):
    makes(lab, "@echo no; exit 3")
    with pytest.raises(kills.Fault, match="ends with 2 by itself"):
        lab.kill(60)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="groups are found in Linux's records")
def test_a_kernel_in_a_session_of_its_own_dies_too(lab):
    code = (
        "from subprocess import Popen; started = Popen(['sleep', '60'], start_new_session=True); "
        "print(started.pid, flush=True); started.wait()"
    )
    makes(lab, f'@{shlex.quote(sys.executable)} -S -c "{code}"')
    at, beside = lab.kill(3.0)
    assert beside == 1
    for _ in range(50):  # until somebody has taken note of its end
        stat = Path("/proc", at, "stat")
        if not stat.is_file() or " Z " in stat.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the kernel lives on")
