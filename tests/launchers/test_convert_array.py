"""A conversion as a SLURM array: what is submitted, and that its shards are those of one command."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from gamut.estimate.standin import LIKE
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from launchers import convert
from launchers import slurm as command
from launchers.executor import ROOT

if TYPE_CHECKING:
    from conftest import Slurm


class FakeExecutor:
    """Runs what it is given when a batch ends: every job in a process of its own, some killed and started again."""

    def __init__(self, kill: Callable[[int], bool] = lambda number: False) -> None:
        self.kill, self.waiting, self.asked = kill, [], {}
        self.statuses: list[int] = []
        self.batching = False

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        self.batching = True
        yield
        self.batching = False
        jobs, self.waiting = self.waiting, []
        for number, call in reversed(list(enumerate(jobs))):
            while True:
                self.statuses.append(self.run(call, self.kill(number)))
                if not os.WIFSIGNALED(self.statuses[-1]):
                    break

    def submit(self, call: Any) -> SimpleNamespace:
        call = pickle.loads(pickle.dumps(call))  # what SLURM's jobs would read
        if self.batching:
            self.waiting.append(call)
            return SimpleNamespace(job_id=f"17_{len(self.waiting) - 1}")
        assert self.asked["dependency"] == "afterany:17"
        assert call() == 0
        return SimpleNamespace(job_id="18")

    def update_parameters(self, **parameters: Any) -> None:
        self.asked |= parameters

    @staticmethod
    def run(call: Any, killed: bool) -> int:
        child = os.fork()
        if child == 0:
            if killed:
                real, left = os.replace, [1]

                def replace(source: str, target: str) -> None:
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                    real(source, target)

                os.replace = replace  # type: ignore[assignment]
            try:
                call()
            except BaseException:
                os._exit(1)
            os._exit(0)
        return os.waitpid(child, 0)[1]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a shard set but the lock and what SLURM's jobs left."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.parent.name != "slurm"}


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("src") / "sounds"
    rng = np.random.default_rng(0)
    for number in range(20):
        path = folder / ("dog", "cat")[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(scale=0.1, size=800), 16000)
    (folder / "cat" / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def reference(src: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "set"
    assert shards(["convert", "folder", str(src), str(folder), "--clips-per-shard", "3", "--workers", "1"]) == 0
    return folder


@pytest.mark.parametrize("jobs", [1, 3, 50])
def test_any_number_of_jobs_makes_the_same_bytes(
    src: Path, reference: Path, tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    kills = dict.fromkeys(range(jobs), 2)

    def kill(number: int) -> bool:
        kills[number] -= 1
        return kills[number] >= 0

    executor = FakeExecutor(kill)
    monkeypatch.setattr(convert, "_executor", lambda options, cluster, jobs: executor)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    words = ["convert", "folder", str(src), str(tmp_path / "set"), "--clips-per-shard", "3", "--jobs", str(jobs)]
    assert command.main([*words, "--cpus-per-task", "1"]) == 0
    assert sum(map(os.WIFSIGNALED, executor.statuses)) >= min(jobs, 7)
    assert contents(tmp_path / "set") == contents(reference)
    out = capsys.readouterr().out
    assert f"{min(jobs, 7)} jobs, 17, write 21 clips in 7 shards" in out
    assert "20 clips" in out  # what the last job says
    assert "left out 1 unusable file: 1 unreadable" in out
    assert "scancel 17 18" in out


def test_a_dry_run_writes_nothing(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "folder", str(src), str(tmp_path / "set"), "--clips-per-shard", "3", "--jobs", "4"]
    assert command.main([*words, "--partition", "short", "--time", "2:00:00", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for line in ("--array=0-3%4", "--partition=short", "--time=120", "--cpus-per-task=8"):
        assert f"#SBATCH {line}" in out
    assert "21 clips in 7 shards of at most 3 clips" in out
    assert "4 jobs of at most 2 shards" in out
    assert "minutes a job" not in out  # of a folder nobody knows the lengths
    assert not (tmp_path / "set").exists()


def test_what_a_known_data_set_takes() -> None:
    """2 million clips of 9.6 s by 64 jobs of 8 processes, each 350 s of sound in a second."""
    said = convert._forecast(2_000_000, LIKE["audioset"], 64, 8)
    assert said.startswith("about 1.8 minutes a job and 357.8 GB in all")
    assert "9.6 s each, of which a core converts 36 a second" in said


def test_local_becomes_the_command(src: Path, tmp_path: Path, became: list[list[str]]) -> None:
    words = ["convert", "folder", str(src), str(tmp_path / "set"), "--name", "x", "--on-error", "stop", "--local"]
    with pytest.raises(SystemExit):
        command.main([*words, "--jobs", "64", "--cpus-per-task", "3"])
    ((interpreter, *rest),) = became
    assert interpreter == sys.executable
    assert rest[:6] == ["-m", "gamut.shards", "convert", "folder", str(src), str(tmp_path / "set")]
    assert rest[6:] == ["--name", "x", "--on-error", "stop", "--workers", "3"]


def test_mistakes_are_sentences(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    words = ["convert", "folder", str(src), str(tmp_path / "set")]
    with pytest.raises(SystemExit) as caught:
        command.main([*words, "--jobs", "0"])
    assert caught.value.code == 2
    assert "'0' is not a number from 1 to 1000" in capfd.readouterr().err
    for arguments, message in (
        (["convert", "folder", str(tmp_path / "nowhere"), str(tmp_path / "set"), "--dry-run"], "is not a folder"),
        ([*words, "--cluster", "exmple"], "example"),
        ([*words, "--only", "train", "--dry-run"], "has no split train; it has no splits"),
    ):
        assert command.main(arguments) == 2
        assert message in capfd.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.main(words) == 2
    assert "no sbatch" in capfd.readouterr().err
    assert not (tmp_path / "set").exists()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["convert", "--help"])
    assert caught.value.code == 0
    assert "python launchers/slurm.py convert audioset" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.slurm
def test_a_real_array(slurm: Slurm, src: Path, reference: Path) -> None:
    dst = slurm.folder / "converted"
    words = ["convert", "folder", str(src), str(dst), "--clips-per-shard", "3", "--jobs", "2", "--cpus-per-task", "1"]
    said = slurm.run(sys.executable, str(ROOT / "launchers" / "slurm.py"), *words, "--partition", "low", "--time", "30")
    last = said.split("\njob ")[1].split()[0]
    log = dst / "index" / "slurm" / f"{last}_0_log.out"
    over = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
    slurm.wait("the index is built", lambda: slurm.job(last).get("JobState") in over, 300, log)
    assert slurm.job(last)["JobState"] == "COMPLETED", log.read_text()
    assert contents(dst) == contents(reference)
    assert len(Index.open(dst)) == 20
