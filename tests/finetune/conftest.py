"""What fine-tuning's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.corpus import synthesise
from tests.shards.layouts import convert


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 30 clips of 0.4 s in the folds of ESC-50."""
    folder = tmp_path_factory.mktemp("small")
    synthesise(folder / "corpus", 30, seconds=0.4)
    assert convert("esc50", folder / "corpus", folder / "shards") == 0
    return folder / "shards"
