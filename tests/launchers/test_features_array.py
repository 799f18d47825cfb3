"""An extraction on a real SLURM: the jobs of an array make one cache."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from gamut.features import FeatureCache
from gamut.shards.__main__ import main as shards
from launchers.corpus import synthesise
from launchers.executor import ROOT
from tests.models.whispers import saved_by_transformers

if TYPE_CHECKING:
    from conftest import Slurm


@pytest.mark.slurm
@pytest.mark.long
def test_a_real_array(slurm: Slurm) -> None:
    folder = slurm.folder / "features-work"
    synthesise(folder / "corpus", 300, seconds=0.5)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "shards")]) == 0
    saved_by_transformers(folder / "whisper")
    words = ["features", "whisper_tiny_esc50", f"init={folder}/whisper", f"data={folder}/shards"]
    words += [f"extract.folder={folder}/features", "extract.seconds=0.4", "run.threads=1", "loader.workers=1"]
    asked = ["--jobs", "2", "--cpus-only", "--cpus-per-task", "1", "--partition", "low", "--time", "30"]
    said = slurm.run(sys.executable, str(ROOT / "launchers" / "slurm.py"), *words, *asked)
    assert "2 jobs," in said
    assert "share 3 shards" in said
    last = said.split("; job ")[1].split()[0]
    cache = folder / "features" / "whisper_tiny_esc50"
    log = next(cache.glob("*/slurm")) / f"{last}_0_log.out"
    over = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
    slurm.wait("the last job is over", lambda: slurm.job(last).get("JobState") in over, 400, log)
    assert slurm.job(last)["JobState"] == "COMPLETED", log.read_text()
    found = FeatureCache(cache)
    assert found.read(found.rows).shape == (300, 3, 2, 64)
    assert "features of 300 clips are in" in log.read_text()
