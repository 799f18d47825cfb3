"""`verify`, `stats` and `index` as SLURM arrays: what they find is what one command finds, whoever is killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.shards.arguments import parser
from gamut.shards.indexing import index, read_share
from gamut.shards.statistics import describe_in_shares, hear_share
from gamut.shards.tars import Tars
from gamut.shards.verify import verify, verify_share
from launchers import arrays
from launchers import slurm as command

from .test_convert_array import FakeExecutor, contents, reference, src  # noqa: F401 (fixtures)


@pytest.fixture
def made(reference: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A set of 20 clips in 7 shards."""
    return Path(shutil.copytree(reference, tmp_path / "set"))


def without_marks(tar: Path, to: Path) -> None:
    """The same clips as somebody else would have written them."""
    with tarfile.open(tar) as old, tarfile.open(to, "w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name.endswith(".json"):
                content = json.dumps({"labels": json.loads(content)["labels"]}).encode()
            about = tarfile.TarInfo(member.name)
            about.size = len(content)
            new.addfile(about, io.BytesIO(content))


def submitted(words: list[str], executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(arrays, "array_executor", lambda place, name, cluster, jobs: executor)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    return command.main([*words, "--cpus-per-task", "1"])


@pytest.mark.parametrize("jobs", [1, 3, 50])
def test_any_number_of_jobs_makes_the_same_statistics(
    made: Path, jobs: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made / "index" / "statistics.json"
    before = path.read_bytes()
    path.unlink()
    kills = dict.fromkeys(range(jobs), 1)

    def kill(number: int) -> bool:
        kills[number] -= 1
        return kills[number] >= 0

    executor = FakeExecutor(kill)
    assert submitted(["stats", str(made), "--jobs", str(jobs)], executor, monkeypatch) == 0
    assert any(map(os.WIFSIGNALED, executor.statuses)) == (jobs < 7)  # each is killed at its second shard
    assert path.read_bytes() == before
    assert not (made / "index" / "heard").exists()
    out = capsys.readouterr().out
    assert f"{min(jobs, 7)} jobs, 17, read 20 clips in 7 shards" in out
    assert "log-mel: mean" in out


def test_a_damaged_set_is_told_of_by_the_last_job(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted(["verify", str(made), "--jobs", "3"], FakeExecutor(), monkeypatch) == 0
    assert "20 clips in 7 shards are as they were written" in capsys.readouterr().out
    assert not (made / "index" / "verified").exists()
    index = Index.open(made)
    for shard in (1, 5):
        with index.shard_path(shard).open("r+b") as file:
            file.seek(int(index.offset[index.rows_of(shard).start]) + 60)
            file.write(b"\xff\x00\xff\x00")
    expected = verify(made)[1]
    assert {one.place.partition(".tar")[0] for one in expected} == {"shard-000001", "shard-000005"}
    capsys.readouterr()
    assert submitted(["verify", str(made), "--jobs", "3"], FakeExecutor(), monkeypatch) == 2
    out, err = capsys.readouterr()
    assert f"is damaged in {len(expected)} places" in err
    for one in expected:
        assert f"{one.place}: {one.what}" in out


def test_what_was_read_is_not_read_again_unless_it_has_changed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        verify_share(made, number, 3)
        hear_share(made, number, 3)
    index = Index.open(made)
    tar = index.shard_path(2)
    tar.write_bytes(tar.read_bytes()[:-1] + b"\x01")
    found = {one.place for one in verify(made, in_shares=True)[1]}
    assert found == {one.place for one in verify(made)[1]} == {tar.name}
    opened: list[str] = []
    real = type(index.tars).open

    @contextlib.contextmanager
    def noted(self, name: str):
        opened.append(name)
        with real(self, name) as file:
            yield file

    monkeypatch.setattr(type(index.tars), "open", noted)
    describe_in_shares(made)
    assert opened == [tar.name]


@pytest.mark.parametrize("jobs", [1, 3, 50])
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_any_number_of_jobs_makes_the_same_index(
    made: Path,
    tmp_path: Path,
    jobs: int,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tars, one, many = tmp_path / "tars", tmp_path / "one", tmp_path / "many"
    options = [] if kind == "ours" else ["--labels", "json:labels", "--name", "noises", "--folds", "3"]
    tars.mkdir()
    for tar in sorted(made.glob("*.tar")):
        shutil.copy(tar, tars) if kind == "ours" else without_marks(tar, tars / tar.name)
    assert shards(["index", str(tars), "--out", str(one), "--workers", "1", *options]) == 0
    expected = capsys.readouterr().out
    kills = dict.fromkeys(range(jobs), 1)

    def kill(number: int) -> bool:
        kills[number] -= 1
        return kills[number] >= 0

    executor = FakeExecutor(kill)
    monkeypatch.chdir(tmp_path)
    words = ["index", "tars", "--out", "many", "--jobs", str(jobs), *options]
    assert submitted(words, executor, monkeypatch) == 0
    assert any(map(os.WIFSIGNALED, executor.statuses)) == (jobs < 7)
    assert contents(many) == contents(one)
    assert not (many / "index" / "scans").exists()
    out = capsys.readouterr().out
    assert f"{min(jobs, 7)} jobs, 17, read 7 tars" in out
    assert expected.replace(str(one), str(many)) in out


def test_the_last_job_reads_no_tar_that_a_share_has_read(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = parser().parse_args(["index", str(made), "--out", str(tmp_path / "out"), "--workers", "1"])
    for number in range(2):
        read_share(asked, number, 3)
    opened: list[str] = []
    real = Tars.open

    @contextlib.contextmanager
    def noted(self, name: str):
        opened.append(name)
        with real(self, name) as file:
            yield file

    monkeypatch.setattr(Tars, "open", noted)
    monkeypatch.setattr("gamut.shards.rebuild.describe", lambda *given: None)
    index(asked)
    assert opened == [opened[0], "shard-000002.tar", "shard-000005.tar"]  # the first tells whose the tars are


def test_what_is_remote_or_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["verify", "s3://bucket/set"]) == 2
    assert "The jobs of an array meet in the folder of the set's index" in capsys.readouterr().err
    assert command.main(["stats", str(tmp_path), "--dry-run"]) == 2
    assert "There are no shards in" in capsys.readouterr().err
    assert command.main(["index", str(tmp_path), "--dry-run"]) == 2
    assert "There are no tars in" in capsys.readouterr().err


def test_a_dry_run_shows_the_script(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(made.rglob("*"))
    assert command.main(["verify", str(made), "--jobs", "4", "--partition", "short", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --array=0-3%4" in out
    assert "4 jobs of at most 2 shards, each with 8 processes, and 1 after them" in out
    assert sorted(made.rglob("*")) == before
