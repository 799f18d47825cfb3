"""Pretraining on damaged shards, through the commands that people type: holes are counted, listed once, limited."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gamut.plan import plan_epoch
from gamut.recipe import cli
from gamut.recipe.policy import training_policy
from gamut.shards import Index
from gamut.shards.__main__ import main
from launchers.corpus import synthesise

from .test_whole_way import ROOT, arguments, command, environment

BAD = {3: "checksum", 21: "checksum", 30: "checksum"}  # row -> why


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 clips in shards of 12."""
    folder = tmp_path_factory.mktemp("damaged")
    synthesise(folder / "corpus", 36, seconds=1.0)
    line = ["convert", "esc50", str(folder / "corpus"), str(folder / "set"), "--clips-per-shard", "12"]
    assert main([*line, "--workers", "1"]) == 0
    assert main(["stats", str(folder / "set"), "--workers", "1"]) == 0
    return folder / "set"


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Path:
    """The same with three clips that have a flipped bit."""
    folder = Path(shutil.copytree(sound, tmp_path / "set"))
    index = Index.open(folder)
    for row in BAD:
        path, at = index.shard_path(int(index.shard[row])), int(index.offset[row]) + 200
        content = bytearray(path.read_bytes())
        content[at] ^= 4
        path.write_bytes(content)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected(words: list[str], index: Index) -> list[tuple[int, int, str, str]]:
    """(step, row, key, reason) of the holes that the plan of the command's run leads to."""
    recipe = cli.parse("pretrain", words[1:]).recipe
    found, before = [], 0
    for number in range(recipe.epochs):
        epoch = plan_epoch(index.table(), recipe.seed, number, training_policy(recipe))
        for step in range(epoch.steps):
            span = slice(*epoch.pack_offset[[step * epoch.packs, (step + 1) * epoch.packs]])
            rows = sorted(int(row) for row in epoch.row[span] if int(row) in BAD)
            found += [(before + step + 1, row, index.key(row), BAD[row]) for row in rows]
        before += epoch.steps
    return found


def listed(run: Path) -> list[tuple[int, int, str, str]]:
    return [(hole["step"], hole["row"], hole["key"], hole["reason"]) for hole in lines(run / "holes.jsonl")]


def test_holes_are_counted_by_reason_and_listed_once_and_past_the_limit_the_run_stops(
    damaged: Path, tmp_path: Path
) -> None:
    index = Index.open(damaged)
    more = ["epochs=2", "loader.max_holes=0.2", "run.name=holed"]
    strict = arguments(damaged, tmp_path, "holed", *more[:1], "loader.max_holes=0.05")
    printed = command(*strict, ok=2)
    assert "of 36 clips of this epoch cannot be used, more than the recipe allows (loader.max_holes=0.05" in printed
    assert str(tmp_path / "holed" / "holes.jsonl") in printed
    assert "gamut.shards verify" in printed
    assert "Traceback" not in printed
    there = listed(tmp_path / "holed")
    for _, _, key, reason in there:
        assert f"{key} ({reason})" in printed
    assert len(there) >= 2

    line = arguments(damaged, tmp_path, *more[2].split("=")[1:], *more[:2])
    printed = command(*line)  # the limit may be raised: it decides nothing that was computed
    assert "6 planned clips were left out as unusable (6 checksum)" in printed
    wanted = expected(line, index)
    assert len(wanted) == 6
    assert listed(tmp_path / "holed") == wanted
    steps = [one for one in lines(tmp_path / "holed" / "metrics.jsonl") if "holes" in one and one["attempt"] == 2]
    for one in steps:
        count = sum(step <= one["step"] for step, *_ in wanted)
        assert one["holes"] == count
        assert one.get("holes/checksum", 0) == count
    assert all(key in steps[0] for key in ("padded_short", "cut"))


@pytest.mark.long
def test_holes_are_listed_once_though_the_run_is_killed_again_and_again(damaged: Path, tmp_path: Path) -> None:
    line = arguments(
        damaged,
        tmp_path,
        "killed",
        "epochs=4",
        "loader.max_holes=0.2",
        "loader.workers=2",
        "checkpoint.every_epochs=0.4",
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for goal in (3, 6, 9):
        process = subprocess.Popen(
            [sys.executable, *line], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < until:
            if metrics.exists() and f'"step": {goal},' in metrics.read_text():
                process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        assert process.wait() == -signal.SIGKILL
    command(*line)
    assert listed(tmp_path / "killed") == expected(line, Index.open(damaged))


@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a_run_does_not_start_on_a_cut_or_missing_tar(sound: Path, tmp_path: Path, how: str, capsys) -> None:
    """Neither do the commands that read the set; each says which tar, and what to do."""
    folder = Path(shutil.copytree(sound, tmp_path / "set"))
    tar = folder / "shard-000001.tar"
    if how == "missing":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[:-2048])
    from pretrain.run import main as pretrain

    assert pretrain(arguments(folder, tmp_path, "never")[1:]) == 2
    err = capsys.readouterr().err
    assert "shard-000001.tar" in err
    assert "python -m gamut.shards" in err
    assert not (tmp_path / "never").exists()
    assert main(["verify", str(folder), "--workers", "1"]) == 1
    captured = capsys.readouterr()
    assert "shard-000001.tar" in captured.out
    assert "run the conversion again" in captured.err
