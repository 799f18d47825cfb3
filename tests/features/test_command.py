"""`python -m gamut.features` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gamut.features import FeatureCache, extract
from gamut.features.__main__ import main
from gamut.recipe.schema import Recipe


@pytest.fixture
def words(overrides: list[str]) -> list[str]:
    """An extraction of 20 clips."""
    changed = ["extract.seconds=1", "extract.dtype=fp16", "subset={per_class: 2}"]
    return ["extract", "whisper_tiny_esc50", *overrides, *changed]


def test_extract_verify_mend_and_describe(words: list[str], recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(recipe.extract.folder)
    assert main([*words[:4], "--dry-run", *words[4:]]) == 0
    told = capsys.readouterr().out
    assert "3 layers x 5 steps (of 10 each) x 64, fp16: 0.002 MB a clip" in told
    assert "20 clips" in told
    assert "20 clips are cut there" in told
    assert not folder.exists()

    assert main(words) == 0
    told = capsys.readouterr().out
    assert "2 of 2 shards are to be made" in told
    assert "features of 20 clips are in" in told
    assert main(words) == 0
    assert "all features exist already" in capsys.readouterr().out
    cache = FeatureCache(folder / "whisper_tiny_esc50")
    before = cache.read(cache.rows)

    assert main(["verify", str(cache.folder)]) == 0
    assert "features of 20 clips are as they were written" in capsys.readouterr().out
    shard = cache.folder / "000001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(cache.folder)]) == 1
    out, err = capsys.readouterr()
    assert f"clip {cache.key(19)} in" in out
    assert "1 damages" in err
    assert "--mend" in err
    assert main([*words, "--mend"]) == 0
    assert "1 of 2 shards are to be made" in capsys.readouterr().out
    mended = FeatureCache(cache.folder)
    assert (mended.read(mended.rows) == before).all()

    assert main(["info", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "20 clips of index" in told
    assert "front: kind whisper log-mel, mels 80, seconds 1.0" in told
    assert main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == cache.info.fingerprint


def test_a_cache_with_a_damaged_index_is_mended_from_its_shards(
    words: list[str], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    cache = FeatureCache(Path(recipe.extract.folder) / "whisper_tiny_esc50")
    shard = (cache.folder / "000000.safetensors").stat().st_mtime_ns
    (cache.folder / "index" / "row.npy").write_bytes(bytes(200))
    assert main(["verify", str(cache.folder)]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert main([*words, "--mend"]) == 0
    assert len(FeatureCache(cache.folder).read(cache.rows)) == 20
    assert (cache.folder / "000000.safetensors").stat().st_mtime_ns == shard


def test_mistakes_are_sentences(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["extract"]) == 2
    assert "whisper_large_as20k, whisper_large_as2m" in capsys.readouterr().err
    for wrong, said in (
        (["extract", "whisper_tiny_esc5"], "the nearest valid name is whisper_tiny_esc50"),
        (["extract", "whisper_tiny_esc50", "extract.pol=2"], "extract.pool"),
        (["extract", "whisper_tiny_esc50", "data=nowhere"], "convert esc50 SRC nowhere"),
        ([*words, "init=nowhere"], "there is no such file or folder"),
        (["verify", "nowhere"], "There is no cache of features in nowhere"),
        (["info", "nowhere"], "There is no cache of features in nowhere"),
    ):
        assert main(wrong) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(extract.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    assert main(words) == 2
    assert "its disk has 0.00 GB free" in capsys.readouterr().err
