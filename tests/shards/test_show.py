"""One clip, plotted; a key that is not there names those that are like it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.plot import clip_picture, mel_bin

from .test_verify import flip


def test_a_clip_is_drawn_and_described(pristine: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(pristine), "dog/004"]) == 0
    out = capsys.readouterr().out
    index = Index.open(pristine)
    row = [index.key(row) for row in range(len(index))].index("dog/004")
    assert f"dog/004 in {index.shard_path(index.shard[row]).name}: dog" in out
    assert f"{index.samples[row] / 16000:.2f} s" in out
    assert image.imread(tmp_path / "dog-004.png").shape[:2] == (605, 1100)
    assert main(["show", str(pristine), "bell/000", "--out", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "b.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("dog/04", "dog/004"),  # a slip
        ("019", "dog/019"),  # a part
        ("Bell/003", "bell/003"),
        ("zzzzzzzz", "no key like it"),
    ],
)
def test_a_wrong_key_names_the_nearest(pristine: Path, key: str, said: str, capsys) -> None:
    assert main(["show", str(pristine), key]) == 2
    err = capsys.readouterr().err
    assert f"There is no clip {key} among the 24" in err
    assert said in err


def test_a_damaged_clip_is_not_drawn(shards: Path, tmp_path: Path, capsys) -> None:
    index = Index.open(shards)
    flip(index.shard_path(index.shard[3]), int(index.offset[3]) + 99)
    assert main(["show", str(shards), index.key(3), "--out", str(tmp_path / "x.png")]) == 2
    err = capsys.readouterr().err
    assert index.key(3) in err
    assert "gamut.shards verify" in err
    assert not (tmp_path / "x.png").exists()
    index.shard_path(index.shard[4]).unlink()
    assert main(["show", str(shards), index.key(4)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_frequencies_stand_at_the_centres_of_their_filters() -> None:
    from gamut.audio.logmel import mel_weights

    weights = mel_weights()
    for mel in (40, 80, 120):
        centre = float((weights[mel] * np.arange(257)).sum() / weights[mel].sum()) * 16000 / 512
        assert mel_bin(centre) == pytest.approx(mel, abs=0.6)
    assert mel_bin(8000) == pytest.approx(128)


@pytest.mark.parametrize("samples", [1, 160, 400, 16000])
def test_clips_of_any_length_and_silence_can_be_drawn(samples: int) -> None:
    from gamut.shards.heard import clip_log_mel

    waveform = np.zeros(samples, np.int16)
    clip_picture(waveform, clip_log_mel(waveform).numpy(), r"$\silence$").savefig(io.BytesIO(), format="png")
