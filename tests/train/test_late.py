"""On a network file system that shows late what other machines wrote nothing good is set aside, nothing begins anew."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gamut.errors import CheckpointError
from gamut.files import LAG
from gamut.shards.__main__ import main as shards
from gamut.track.checkpoints import Checkpoints, read_verified, verify
from gamut.track.metrics import History
from launchers.corpus import synthesise
from tests import warm
from tests.late import Late
from tests.soak.__main__ import RECIPE
from tests.soak.steps import Steps

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 3.0
EPOCHS = 4


def start(folder: Path, name: str, late: Late | None, nodes: tuple[int, ...]) -> list[subprocess.Popen[bytes]]:
    """The ranks of a run, each on a node of its own; rank 0 on the first of `nodes`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(folder / "tiny.yaml"), f"data={folder}/shards", f"run.folder={folder}/runs", f"run.name={name}"]
    words += [f"epochs={EPOCHS}", "checkpoint.every_epochs=1", "checkpoint.least_minutes=0"]
    ranks = []
    for rank, node in enumerate(nodes):
        told = {"RANK": rank, "WORLD_SIZE": len(nodes), "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
        environment = (
            os.environ
            | {"MASTER_ADDR": "127.0.0.1", LAG: "20" if late is not None else "0.5"}
            | {key: str(told[key]) for key in told}
        )
        environment |= late.environment(node) if late is not None else warm.FIXED
        with open(folder / f"{name}-{rank}.log", "ab") as log:
            ranks.append(
                subprocess.Popen(
                    [sys.executable if late else warm.python(), str(ROOT / "pretrain" / "run.py"), *words],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    return ranks


def through(folder: Path, name: str, ranks: list[subprocess.Popen[bytes]]) -> None:
    ends = [rank.wait(200) for rank in ranks]
    said = "".join((folder / f"{name}-{rank}.log").read_text() for rank in (0, 1))
    assert ends == [0, 0], said
    assert "passed over" not in said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("late")
    (folder / "tiny.yaml").write_text(RECIPE)
    synthesise(folder / "corpus", 48, seconds=1.0)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "shards"), "--workers", "1"]) == 0
    through(folder, "quiet", start(folder, "quiet", None, (0, 1)))
    return folder


@pytest.mark.long
def test_a_run_whose_nodes_change_places_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """All is killed right after a checkpoint; then rank 0 is where rank 1 was, and sees for three seconds neither that
    checkpoint nor `latest`."""
    late = Late(folder / "runs", tmp_path, SECONDS)
    run = folder / "runs" / "stormy"
    ranks = start(folder, "stormy", late, (0, 1))
    told = run / "metrics.jsonl"
    end = time.monotonic() + 120
    while not told.exists() or History.read(told).checkpoint is None:
        assert all(rank.poll() is None for rank in ranks), (folder / "stormy-0.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.01)
    for rank in ranks:
        os.killpg(rank.pid, signal.SIGKILL)
        rank.wait()
    at = History.read(told).checkpoint
    assert at is not None
    before = late.hidden
    through(folder, "stormy", start(folder, "stormy", late, (1, 0)))
    assert late.hidden > before
    taken = Steps(told)
    taken.follow()
    second = [step for attempt, step, _ in taken.times if attempt == 2]
    assert second[0] == at["step"] + 1
    made = [
        verify(Checkpoints(folder / "runs" / name / "checkpoints").newest())["files"] for name in ("quiet", "stormy")
    ]
    assert made[0] == made[1]
    assert not [*run.rglob("damaged-*")]


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(folder: Path) -> None:
    """Not even where the folder is gone with all that was in it."""
    run = folder / "runs" / "quiet"
    (run / "checkpoints").rename(folder / "elsewhere")
    try:
        (rank,) = start(folder, "quiet", None, (0,))
        assert rank.wait(100) == 2
        assert "has had checkpoints, and all are gone" in (folder / "quiet-0.log").read_text()
    finally:
        (folder / "elsewhere").rename(run / "checkpoints")


def test_a_stale_handle_of_a_checkpoints_file_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"all of it")
    entry = {"size": 9, "sha256": hashlib.sha256(b"all of it").hexdigest()}
    read, left = Path.read_bytes, [1]

    def stale(path: Path) -> bytes:
        if left:
            left.pop()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert read_verified(tmp_path / "x", entry) == b"all of it"
    left += [1, 1]
    with pytest.raises(CheckpointError, match="Stale file handle"):
        read_verified(tmp_path / "x", entry)
