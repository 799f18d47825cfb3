"""Files are there whole or not at all, whoever fails or is killed; locks end with their holder."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path

import pytest

from gamut import files
from gamut.errors import GamutError, ShardError
from gamut.files import LAG, appears, network_file_system
from tests.volatile import Volatile


@pytest.mark.parametrize("at", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def no_disk(action: str, of: Path) -> None:
        if action == at and of == path:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "hook", no_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "new")
    with pytest.raises(
        ShardError, match=r"a\.json cannot be written: No space left on device \(3 bytes wanted, [\d,]+ bytes free\)\."
    ):
        files.write_bytes(path, b"new", ShardError)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_killed_writer_leaves_the_old_file_and_a_temporary_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_text(path, "old")
    child = os.fork()
    if child == 0:
        files.hook = lambda action, of: os.kill(os.getpid(), signal.SIGKILL) if action == "rename" else None
        files.write_text(path, "new")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_text() == "old"
    assert [left.name for left in tmp_path.glob(f"*{files.TEMPORARY}")] == [f"a.{child}.partial"]


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with files.replacing(path) as mine:
        mine.write(b"mine")
        child = os.fork()
        if child == 0:
            files.write_bytes(path, b"theirs")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert path.read_bytes() == b"theirs"
    assert path.read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["a"]


def test_the_hash_is_that_of_what_was_written(tmp_path: Path) -> None:
    about = files.write_json(tmp_path / "a", {"b": 1})
    data = (tmp_path / "a").read_bytes()
    assert about == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def free(path: Path, **how: bool) -> bool:
    """Whether another process gets the lock at once."""
    child = os.fork()
    if child == 0:
        with files.lock(path, wait=False, **how) as held:
            os._exit(0 if held else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("inherited", [True, False])
def test_a_lock_is_held_by_one_process_for_the_block(tmp_path: Path, inherited: bool) -> None:
    path = tmp_path / "lock"
    with files.lock(path, inherited=inherited) as held:
        assert held
        assert not free(path, inherited=inherited)
    assert free(path, inherited=inherited)


def test_a_shared_lock_lets_others_in_who_share(tmp_path: Path) -> None:
    with files.lock(tmp_path / "lock", shared=True):
        assert free(tmp_path / "lock", shared=True)
        assert not free(tmp_path / "lock")


@pytest.mark.parametrize("inherited", [True, False])
def test_a_child_that_lives_on_does_not_keep_a_lock_that_was_given_up(tmp_path: Path, inherited: bool) -> None:
    path = tmp_path / "lock"
    with files.lock(path, inherited=inherited):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        assert free(path, inherited=inherited)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_is_written_survives_the_power(tmp_path: Path) -> None:
    disk = Volatile()
    files.write_json(tmp_path / "a", {"whole": 1})
    (tmp_path / "lost").write_text("never synced")
    disk.cut(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == '{\n "whole": 1\n}'


def test_a_renamed_folder_survives_the_power(tmp_path: Path) -> None:
    disk = Volatile()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "b").write_text("whole")
    with open(tmp_path / "made" / "b") as file:
        os.fsync(file.fileno())  # its content, not its name
    files.rename_folder(tmp_path / "made", tmp_path / "final")
    disk.cut(tmp_path)
    assert os.listdir(tmp_path) == ["final"]
    assert (tmp_path / "final" / "b").read_text() == "whole"


def test_what_does_not_show_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not appears(tmp_path / "x")  # a local file system shows all at once
    monkeypatch.setenv(LAG, "20")
    late = threading.Timer(0.5, (tmp_path / "x").touch)
    late.start()
    assert appears(tmp_path / "x")
    late.join()
    monkeypatch.setenv(LAG, "a minute")
    with pytest.raises(GamutError, match="GAMUT_STORAGE_LAG must be a number of seconds, not 'a minute'"):
        appears(tmp_path / "y")


@pytest.mark.parametrize(
    ("kind", "network"), [("nfs4", True), ("fuse.sshfs", True), ("fuse.overlayfs", False), ("ext4", False)]
)
def test_which_file_systems_are_of_a_network(monkeypatch: pytest.MonkeyPatch, kind: str, network: bool) -> None:
    read = Path.read_text
    mounts = f"none / ext4 rw 0 0\nserver:/x /shared/runs {kind} rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda path: mounts if str(path) == "/proc/mounts" else read(path))
    assert network_file_system(Path("/shared/runs/a/b")) == (kind if network else None)
    assert network_file_system(Path("/shared/other")) is None
