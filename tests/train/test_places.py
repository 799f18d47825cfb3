"""Where nothing can be written: a sentence that names the place and what is free, never a traceback."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from probe_cases import pretrained
from ranks import Ranks

from gamut.shards.__main__ import main as shards
from gamut.train.world import World
from launchers.corpus import synthesise

SMALL = [
    "front.mean=-6",
    "front.std=5",
    "model.dim=32",
    "model.depth=1",
    "model.heads=2",
    "epochs=1",
    "loader.workers=0",
]
SMALL += ["asit.hidden=32", "asit.bottleneck=16", "asit.prototypes=24", "step.packs=2", "probe.every_epochs=0"]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    synthesise(folder / "corpus", 12, seconds=1.0)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "shards")]) == 0
    return folder


def no_place(folder: Path, kind: str) -> Path:
    """A folder in which nothing can be made, for this process and its children."""
    if kind == "proc":
        return Path("/proc/runs")
    if kind == "file":
        (folder / "file").write_text("")
        return folder / "file" / "runs"
    system = ctypes.CDLL(None, use_errno=True)
    (folder / "mounted").mkdir()
    private, read_only, slave, recursive = 0x20000, 1, 1 << 19, 1 << 14
    assert system.unshare(private) == 0, os.strerror(ctypes.get_errno())
    assert system.mount(b"none", b"/", None, slave | recursive, None) == 0
    assert system.mount(b"none", bytes(folder / "mounted"), b"tmpfs", read_only, None) == 0
    return folder / "mounted"


def trained(world: World, data: Path, folder: Path, kind: str) -> int:
    place = no_place(folder, kind) if world.first else folder
    return pretrained(world, ["asit_tiny", f"data={data}", f"run.folder={place}", "run.name=a", *SMALL])


KINDS = [
    "proc",
    "file",
    pytest.param("mount", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_folder_that_cannot_be_made(few: Path, tmp_path: Path, kind: str) -> None:
    ranks = Ranks(2, trained, few / "shards", tmp_path, kind)
    assert ranks.wait() == [2, 2], ranks.log()
    assert "Traceback" not in (log := ranks.log())
    assert log.count("Rank 0: ") == 2  # both say it
    assert log.count(" bytes free)") == 2
    assert "run.folder=" in log
