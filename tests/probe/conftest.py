"""A small labelled shard set in folds, and a small backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gamut.models.vit import VisionTransformer
from gamut.probe.features import Encoder, FrontEnd
from gamut.recipe import schema
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from launchers.corpus import synthesise

RECIPE = schema.Recipe(
    model=schema.Model(dim=32, depth=2, heads=2, table_frames=96, drop_path=0.2),
    views=schema.Views(count=2, frames=96),
    step=schema.Step(packs=4, clips=3),
    loader=schema.Loader(workers=0),
    epochs=4,
    probe=schema.Probe(every_epochs=2.0),
    track=schema.Track(picture_epochs=4.0, mlflow="off"),
)


def encoder(pooling: str = "cls") -> Encoder:
    model = replace(RECIPE.model, pooling=pooling, pooling_heads=2)
    vit = VisionTransformer(model, seed=3)
    return Encoder(vit, FrontEnd(-4.0, 4.0, "fast"), "fp32", torch.device("cpu"))


@pytest.fixture(scope="session")
def labelled_set(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """60 clips of 1.2 s, 6 classes, 5 folds."""
    folder = tmp_path_factory.mktemp("labelled")
    synthesise(folder / "corpus", 60, seconds=1.2)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "shards")]) == 0
    return Index.open(folder / "shards")


@pytest.fixture
def recipe(labelled_set: Index, tmp_path: Path) -> schema.Recipe:
    run = schema.Run(folder=str(tmp_path), name="run")
    front = schema.FrontEnd(mean=-4.0, std=4.0)
    return replace(RECIPE, data=str(labelled_set.folder), run=run, front=front)
