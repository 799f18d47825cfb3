"""Models that come with the package are opened by their names, wherever a path could stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gamut
from gamut.errors import CheckpointError
from gamut.models.find import find_weights
from gamut.models.shipped import SHIPPED, located, shipped
from gamut.tag.__main__ import main as tag
from gamut.train.trained_on import LIST
from launchers.corpus import by_class


def test_every_shipped_model_is_whole_small_and_credited() -> None:
    assert shipped() == ("esc10",)
    for name in shipped():
        folder = SHIPPED / name
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4 << 20
        card = (folder / "README.md").read_text()
        assert "to be filled in" not in card
        assert "license: cc-by" in card
        assert "unknown" not in card.partition("---\n\n")[0]
        with np.load(folder / LIST) as heard:  # by which scores on these clips are marked
            assert heard["labelled"].shape == (240,)
            assert len({*heard["labelled"].tolist(), *heard["unlabelled"].tolist()}) == 240


def test_a_name_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("esc10") == SHIPPED / "esc10"
    assert find_weights("esc10") == SHIPPED / "esc10" / "model.safetensors"
    for other in ("runs/esc10", "./esc10", str(tmp_path / "esc10"), "esc11"):
        assert located(other) == Path(other)
    (tmp_path / "esc10").mkdir()
    assert located("esc10") == Path("esc10")  # what is there comes first
    with pytest.raises(CheckpointError, match="a model that comes with Gamut: esc10"):
        find_weights("esc11")


def test_it_tags_and_embeds_any_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    by_class(tmp_path / "sounds", 6, seconds=1.0)
    model = gamut.load("esc10")
    files = sorted(tmp_path.glob("sounds/*/*.wav"))
    vectors = model.embed(files)
    assert vectors.shape == (6, 96)
    assert np.isfinite(vectors).all()
    assert {"dog", "rain", "rooster"} < set(model.labels or ())
    assert tag(["esc10", "sounds", "--format", "json"]) == 0
    assert capsys.readouterr().out.count("sounds/") == 6
