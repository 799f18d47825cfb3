"""A conversion that is killed goes on where it was, and its bytes do not tell."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gamut.errors import ShardError
from gamut.shards import Index, pool
from gamut.shards.__main__ import main

from .conftest import write_sounds


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a shard set but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def convert(src: Path, dst: Path, *more: str) -> int:
    return main(["convert", "folder", str(src), str(dst), "--clips-per-shard", "7", "--workers", "1", *more])


def in_a_child(work: Callable[[], None]) -> int:
    """The wait status of a forked child that does the work."""
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def test_bytes_do_not_depend_on_workers_or_on_the_order_of_the_files(
    sounds: Path, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert convert(sounds, tmp_path / "two", "--workers", "2") == 0
    assert contents(tmp_path / "two") == contents(pristine)
    reverse = tmp_path / "sounds"
    for path in sorted(sounds.rglob("*.wav"), reverse=True):
        copy = reverse / path.relative_to(sounds)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(pool, "BRIEF", 0.0)  # a shard that was begun here is written by another process
    words = ["convert", "folder", str(reverse), str(tmp_path / "other"), "--clips-per-shard", "7"]
    assert main(words) == 0
    assert contents(tmp_path / "other") == contents(pristine)


def test_a_kill_at_any_fsync_or_rename_leaves_nothing_wrong(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_sounds(src, clips=10)
    assert convert(src, tmp_path / "reference") == 0
    reference = contents(tmp_path / "reference")
    fingerprint = Index.open(tmp_path / "reference").fingerprint
    point, unfinished = 0, 0
    while True:
        dst = tmp_path / f"killed{point}"

        def killed_at_point(left: int = point, dst: Path = dst) -> None:
            def count(real: Callable[..., None]) -> Callable[..., None]:
                def counting(*args) -> None:
                    nonlocal left
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    real(*args)

                return counting

            os.fsync, os.replace = count(os.fsync), count(os.replace)  # type: ignore[assignment]
            convert(src, dst)

        status = in_a_child(killed_at_point)
        if not os.WIFSIGNALED(status):
            break
        if (dst / "index" / "index.json").exists():
            assert Index.open(dst).fingerprint == fingerprint  # there is an index only where it is right
        else:
            unfinished += 1
            with pytest.raises(ShardError, match=r"python -m gamut\.shards"):
                Index.open(dst)
        assert convert(src, dst) == 0
        assert contents(dst) == reference, f"after a kill at call {point}"
        point += 1
    assert point > 30
    assert unfinished > 20


def test_finished_shards_are_not_written_again(sounds: Path, shards: Path, capsys) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    (shards / "shard-000001.tar").unlink()
    with open(shards / "shard-000002.tar", "ab") as file:
        file.write(bytes(10240))
    capsys.readouterr()
    assert convert(sounds, shards) == 0
    assert "2 of them already there" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    assert [name for name in before if before[name] != after[name]] == ["shard-000001.tar", "shard-000002.tar"]


def test_a_part_that_cannot_be_read_is_written_again(sounds: Path, pristine: Path, shards: Path) -> None:
    parts = shards / "index" / "parts"
    (parts / "shard-000000.json").write_bytes(b"")
    (parts / "shard-000001.json").write_bytes((parts / "shard-000001.json").read_bytes()[:100])
    (parts / "shard-000002.json").write_bytes(b'{"part": {"shard": 3}, "quarantined": [], "saturated": {}}')
    assert convert(sounds, shards) == 0
    assert contents(shards) == contents(pristine)


def test_killing_the_command_ends_its_workers_and_the_next_run_goes_on(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "set"
    write_sounds(src, clips=300)
    command = [sys.executable, "-m", "gamut.shards", "convert", "folder", str(src), str(dst), "--clips-per-shard", "2"]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(dst.glob("shard-*.tar"))) >= 3, 60)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    assert len(children) >= 2
    wait_for(lambda: not any(alive(child) for child in children), 20)
    done = len(list(dst.glob("shard-*.tar")))
    assert 3 <= done < 150
    with pytest.raises(ShardError, match="have no index"):
        Index.open(dst)
    assert main([*command[3:], "--workers", "1"]) == 0
    assert main(["convert", "folder", str(src), str(tmp_path / "ref"), "--clips-per-shard", "2", "--workers", "1"]) == 0
    assert contents(dst) == contents(tmp_path / "ref")


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_conversions_do_not_write_into_one_folder(sounds: Path, shards: Path, capsys) -> None:
    with open(shards / "index" / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert convert(sounds, shards) == 2
        assert "Another process is writing shards" in capsys.readouterr().err
        assert main(["index", str(shards)]) == 2
    assert convert(sounds, shards) == 0


def test_another_conversion_into_the_folder_is_refused(sounds: Path, shards: Path, tmp_path: Path, capsys) -> None:
    before = contents(shards)
    write_sounds(tmp_path / "sounds", clips=12)
    write_sounds(tmp_path / "more" / "sounds", clips=24, classes=("cat", "dog", "rain"))
    for src, more, field in (
        (tmp_path / "sounds", [], "clips"),
        (tmp_path / "more" / "sounds", [], "labels"),
        (sounds, ["--clips-per-shard", "8"], "clips_per_shard"),
        (sounds, ["--name", "other"], "name"),
    ):
        assert convert(src, shards, *more) == 2
        assert f"another conversion: its {field} is" in capsys.readouterr().err
    (shards / "index" / "convert.json").unlink()
    assert convert(sounds, shards) == 2
    assert "holds tars from elsewhere" in capsys.readouterr().err
    before.pop("index/convert.json")
    assert contents(shards) == before


def test_a_full_or_read_only_disk_is_one_sentence(sounds: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert convert(sounds, tmp_path / "set") == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert not list((tmp_path / "set").rglob("*.partial"))
    assert convert(sounds, tmp_path / "set") == 0
    assert convert(sounds, Path("/proc/nowhere")) == 2
    assert "/proc/nowhere cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ends", "workers", "said"),
    [
        ("os.kill(os.getpid(), 9)", 2, "error: A worker process was killed"),
        ("time.sleep(99)", 2, "error: A worker process was killed"),
        ("time.sleep(99)", 1, "which is at: one of the shards."),
    ],
)
def test_a_worker_that_is_killed_or_hangs_ends_the_command_with_a_sentence(
    sounds: Path, tmp_path: Path, ends: str, workers: int, said: str
) -> None:
    script = (
        "import os, sys, time, gamut.shards.pool as pool, gamut.shards.write as write\n"
        "from gamut.shards.__main__ import main\n"
        f"def lost(record, job, way): {ends}\n"
        f"write.convert_clip, pool.LIMIT = lost, {2.0 if 'sleep' in ends else 99.0}\n"
        "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "lost.py").write_text(script)
    command = [sys.executable, str(tmp_path / "lost.py"), "convert", "folder", str(sounds), str(tmp_path / "set")]
    command += ["--clips-per-shard", "7", "--workers", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == (2 if workers > 1 else 1)
    assert said in result.stderr
    assert ("Timeout: nothing has moved for 2 s" in result.stderr) == ("sleep" in ends)
    assert "Traceback" not in result.stderr
