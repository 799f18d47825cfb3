"""`pretrain/masks.py`: the masks that the picture shows are those that training draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib import image

from gamut.recipe.load import load_recipe
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from pretrain.masking import Blocks, block_masks, mask_keys
from pretrain.masks import main, masked

FRONT = ["front.mean=-4.0", "front.std=4.0", "subset={}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "set"
    rng = np.random.default_rng(0)
    for number in range(3):
        path = source / "sound" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.normal(scale=0.1, size=50_000), 16000, subtype="PCM_16")
    assert shards(["convert", "folder", str(source), str(folder), "--workers", "1"]) == 0
    return folder


def test_the_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "figure4.png"
    assert main(["asit_tiny", f"data={folder}", *FRONT, "--clip", "sound/1", "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("unaligned: 7")
    assert said[1].startswith("aligned: 7")
    assert said[2] == str(out)
    assert image.imread(out).shape[:2] == (660, 880)
    assert main(["asit_tiny", f"data={folder}", *FRONT, "--clip", "sound/9"]) == 2
    assert "sound/9" in capsys.readouterr().err


def test_masks_of_a_clip_are_those_of_its_training(folder: Path) -> None:
    index = Index.open(folder)
    recipe = load_recipe("pretrain", "asit_tiny", FRONT)
    clean, variants = masked(recipe, index, "sound/2", epoch=3)
    clip = torch.from_numpy(index.table().clip_id.view(np.int64)[[index.keys().index("sound/2")]])
    zero = torch.zeros(1, dtype=torch.int64)
    for name, aligned in (("unaligned", False), ("aligned", True)):
        key = mask_keys(recipe.seed, 3, clip, zero, zero)
        expected = block_masks(key, zero + 288, (288,), 0.7, Blocks(aligned=aligned))
        assert torch.equal(variants[name].masks.pixels, expected.pixels)
        assert torch.equal(variants[name].patches, clean.masked_fill(expected.patches, 0.0))
    filled = masked(load_recipe("pretrain", "asit_tiny", [*FRONT, "asit.mask_fill=clip"]), index, "sound/2", epoch=3)[1]
    others = [masked(recipe, index, key, epoch=3)[0] for key in ("sound/0", "sound/1")]
    hidden = filled["aligned"].masks.patches
    assert sum(torch.equal(filled["aligned"].patches[hidden], other[hidden]) for other in others) == 1
