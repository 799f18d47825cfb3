"""The CPU operator: a build that was killed does not hold up those who come later."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from gamut import files
from gamut.commands import ROOT
from gamut.train import build

LOAD = "from gamut.train.build import build; build(); print('loaded')"


def test_a_killed_build_is_not_waited_for() -> None:
    """torch alone waits for ever for the file that a killed build leaves; two processes at once both get through."""
    build.build()
    left = build.operators() / "deepspeed_shm_comm" / build.BATON
    left.write_bytes(b"")
    both = [subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=120)[0].strip().endswith("loaded")
    assert not left.exists()


def test_a_turn_ends_with_its_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time, pathlib; from gamut.files import lock\n"
         "with lock(pathlib.Path(sys.argv[1])): print('mine', flush=True); time.sleep(600)", str(tmp_path / ".turn")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with files.lock(tmp_path / ".turn"):
        assert time.monotonic() - began < 30


def test_environments_and_processors_build_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for prefix, instructions in (("/a", "flags: avx2"), ("/b", "flags: avx2"), ("/a", "flags: avx512f")):
        monkeypatch.delenv(build.FOLDER, raising=False)
        monkeypatch.setattr(sys, "prefix", prefix)
        monkeypatch.setattr(build, "_instructions", lambda it=instructions: it)
        folders.add(build.operators())
        assert tmp_path in build.operators().parents
    assert len(folders) == 3
    monkeypatch.setenv(build.FOLDER, "/elsewhere")
    assert build.operators() == Path("/elsewhere")
    os.environ.pop(build.FOLDER)


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        pytest.param("no-such-compiler", f"there is no no-such-compiler. {build.REMEDY}", marks=pytest.mark.long),
        ("false", "Command '['false', '--version']' returned non-zero exit status 1."),
    ],
)
def test_without_a_compiler_that_works_it_says_why(compiler: str, why: str, tmp_path: Path) -> None:
    environment = os.environ | {"CXX": compiler, build.FOLDER: str(tmp_path), "DS_ACCELERATOR": "cpu"}
    line = [sys.executable, "-m", "gamut.train.build"]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"error: DeepSpeed's operator for CPUs cannot be compiled: {why}"


def test_without_the_headers_of_python_they_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert build.lacking() == []
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert build.lacking() == [f"Python.h of Python {platform.python_version()}"]
