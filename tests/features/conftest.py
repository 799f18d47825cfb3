"""A fold of ESC-10 in shards, small encoders with random weights, and recipes for them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from gamut.features import extract
from gamut.recipe.load import load_recipe
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from tests.models.whispers import saved_by_transformers

SHARD = 16  # clips of a shard of the cache, so that a few clips make several


@pytest.fixture(scope="session")
def esc10(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of each class."""
    folder = tmp_path_factory.mktemp("esc10")
    (folder / "source" / "meta").mkdir(parents=True)
    (folder / "source" / "audio").symlink_to(shared_data / "esc10" / "audio")
    with open(shared_data / "esc10" / "meta" / "esc50.csv", newline="") as file:
        rows = [row for row in csv.reader(file) if row[1] in ("fold", "1")]
    kept = [row for n, row in enumerate(rows) if sum(row[2] == other[2] for other in rows[:n]) < 4]
    with open(folder / "source" / "meta" / "esc50.csv", "w", newline="") as file:
        csv.writer(file).writerows(kept)
    words = ["convert", "esc50", str(folder / "source"), str(folder / "shards"), "--clips-per-shard", "15"]
    assert shards(words) == 0
    return folder / "shards"


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_by_transformers(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "CLIPS_A_SHARD", SHARD)


@pytest.fixture
def overrides(esc10: Path, whisper_folder: Path, tmp_path: Path, small_shards: None) -> list[str]:
    """What makes `whisper_tiny_esc50` a recipe for a small Whisper on 40 clips: three shards of the cache."""
    return [
        f"init={whisper_folder}",
        f"data={esc10}",
        f"extract.folder={tmp_path / 'features'}",
        "extract.batch=8",
        "extract.seconds=2",
        "extract.dtype=fp32",
        "loader.workers=0",
        "run.threads=1",
    ]


@pytest.fixture
def recipe(overrides: list[str]) -> Recipe:
    return load_recipe("features", "whisper_tiny_esc50", overrides)


def changed(recipe: Recipe, **keys: object) -> Recipe:
    """The recipe with other values in its section `extract`."""
    return replace(recipe, extract=replace(recipe.extract, **keys))  # type: ignore[arg-type]


def opened(recipe: Recipe) -> Index:
    return Index.open(recipe.data)
