"""An extraction as a SLURM array: what is submitted, and that its cache is that of one command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from gamut.features import FeatureCache
from gamut.features.extract import prepare, run
from gamut.recipe.load import load_recipe
from launchers import features
from launchers import slurm as command
from launchers.arrays import Share
from tests.launchers.test_convert_array import FakeExecutor


def test_jobs_of_an_array_make_the_cache_of_one_command_though_one_is_killed(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = prepare(load_recipe("features", "whisper_tiny_esc50", [*overrides, f"extract.folder={tmp_path / 'whole'}"]))
    expected = run(whole, whole.begin())
    job = prepare(load_recipe("features", "whisper_tiny_esc50", overrides))
    executor = FakeExecutor(kill=lambda number: not executor.statuses)
    assert features.submit("whisper_tiny_esc50", overrides, job, 3, executor) == 0  # type: ignore[arg-type]
    assert sum(map(os.WIFSIGNALED, executor.statuses)) == 1
    assert executor.statuses[-1] == 0
    told = capsys.readouterr().out
    assert "3 jobs, 17, share 3 shards; job 18 then does what is left" in told
    cache = FeatureCache(job.folder)
    assert cache.info.fingerprint == expected.info.fingerprint
    np.testing.assert_array_equal(cache.read(cache.rows), expected.read(expected.rows))
    assert json.loads((job.folder / "slurm" / "job.json").read_text())["jobs"] == 3
    assert features.submit("whisper_tiny_esc50", overrides, job, 3, executor) == 0  # type: ignore[arg-type]
    assert "all features exist already" in capsys.readouterr().out


def test_the_dry_run_shows_the_script_and_writes_nothing(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["features", "whisper_tiny_esc50", "--jobs", "8", *overrides, "--dry-run", "--partition", "short"]
    assert command.main(words) == 0
    told = capsys.readouterr().out
    assert "#SBATCH --gpus-per-node=1" in told
    assert "#SBATCH --partition=short" in told
    assert "#SBATCH --array=0-2%3" in told
    assert "3 jobs share 3 shards; 1 more after them does what is left" in told
    assert "40 clips" in told
    assert not (tmp_path / "features").exists()
    assert command.main([*words, "--cpus-only"]) == 0
    assert "gpus" not in capsys.readouterr().out.replace("GPU", "")


def test_a_node_that_sees_another_set_refuses(overrides: list[str], tmp_path: Path) -> None:
    job = prepare(load_recipe("features", "whisper_tiny_esc50", overrides))
    job.begin()
    told = {"recipe": "whisper_tiny_esc50", "overrides": [*overrides, "extract.pool=5"], "jobs": 1}
    (tmp_path / "job.json").write_text(json.dumps(told | {"folder": str(job.folder)}))
    with pytest.raises(features.FeatureError, match=r"was submitted: the encoder or the shard set has changed"):
        Share("features", str(tmp_path / "job.json"), 0)()
