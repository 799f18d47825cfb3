"""Sound beyond full scale is left out or scaled, never clipped in bulk."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from gamut.audio.blocks import of_array
from gamut.audio.levels import Beyond, refuse_clipped
from gamut.audio.segment import Segment, load
from tests.close import assert_close

from .conftest import encode
from .layouts import clips, convert
from .test_foreign import index, write_tar

NOISE = np.random.default_rng(0).normal(scale=3000, size=16000).round().clip(-32768, 32767)


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """Floats in the range of int16, a sine of 1.5 times full scale, and what is as it should be."""
    folder = tmp_path / "src" / "a"
    folder.mkdir(parents=True)
    sine = np.sin(2 * np.pi * 441 * np.arange(44100) / 44100)
    square = np.sign(sine)
    for name, content in {
        "int16.wav": encode(NOISE, 16000, "WAV", "FLOAT"),
        "sine.wav": encode(1.5 * sine, 44100, "WAV", "DOUBLE"),
        "right.wav": encode(NOISE / 32768, 16000, "WAV", "FLOAT"),
        "peaks.wav": encode(np.where(np.arange(16000) % 100, 0.1, 1.2), 16000, "WAV", "FLOAT"),
        "square.wav": encode(0.999 * square, 44100, "WAV", "PCM_16"),  # rings when it is resampled
        "square.ogg": encode(0.999 * square, 44100, "OGG", "VORBIS"),
    }.items():
        (folder / name).write_bytes(content)
    return folder.parent


def quarantined(dst: Path) -> dict[str, str]:
    return {one["key"]: one["reason"] for one in json.loads((dst / "index" / "quarantine.json").read_bytes())["files"]}


def test_loud_files_are_left_out_unless_they_are_to_be_scaled(loud: Path, tmp_path: Path, capsys) -> None:
    assert convert("folder", loud, tmp_path / "set") == 0
    assert quarantined(tmp_path / "set") == {"a/int16": "level", "a/sine": "level"}
    assert len(clips(tmp_path / "set")) == 4
    assert convert("folder", loud, tmp_path / "set", "--levels", "scale") == 2
    assert 'its levels is "refuse", but this one\'s is "scale"' in capsys.readouterr().err
    assert convert("folder", loud, tmp_path / "scaled", "--levels", "scale") == 0
    found = clips(tmp_path / "scaled")
    assert len(found) == 6
    np.testing.assert_array_equal(found["a/int16"].audio, NOISE)
    np.testing.assert_array_equal(found["a/int16"].audio, found["a/right"].audio)
    assert [found[f"a/{key}"].about["provenance"].get("divided") for key in ("int16", "sine", "right")] == [
        32768,
        2,
        None,
    ]
    assert abs(int(np.abs(found["a/sine"].audio).max()) - 24576) < 100
    assert found["a/int16"].about["saturated"] == found["a/sine"].about["saturated"] == 0
    assert found["a/peaks"].about["saturated"] == 160


def test_loud_members_of_tars_are_left_out(loud: Path, tmp_path: Path) -> None:
    members = {path.name.replace("square.ogg", "ring.ogg"): path.read_bytes() for path in (loud / "a").iterdir()}
    write_tar(tmp_path / "tars" / "0.tar", members)
    assert len(index(tmp_path / "tars", tmp_path / "index")) == 4
    assert quarantined(tmp_path / "index") == {"int16": "level", "sine": "level"}


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "float32"])
def test_integers_in_hdf5_are_in_full_scale(tmp_path: Path, kind: str) -> None:
    wave = 0.5 * np.sin(np.arange(2400) / 7)
    bits = 8 * np.dtype(kind).itemsize
    held = wave if kind == "float32" else wave * 2 ** (bits - 1) + (2 ** (bits - 1) if kind[0] == "u" else 0)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["P01_01"] = held.round(8 if kind == "float32" else 0).astype(kind)
    made = np.concatenate([block for block, _ in load(tmp_path / "a.hdf5", Segment(0, 0.1, "P01_01", 24000))])
    assert_close(made[:, 0], wave, 2.0 ** (1 - min(bits, 16)) / float(np.abs(wave).max()))


@pytest.mark.parametrize(
    ("peak", "divisor"), [(1.5, 2), (2.0, 2), (7.0, 8), (9.0, 32768), (32768.0, 32768), (2e9, 2**31)]
)
def test_what_is_divided_by_is_a_power_of_two(peak: float, divisor: float) -> None:
    audio = peak * np.ones((1, 10), np.float32)
    with pytest.raises(Beyond, match="100% of its samples are beyond full scale") as raised:
        refuse_clipped(of_array(audio, 16000), None)
    assert raised.value.divisor == divisor
    assert raised.value.reason == "level"
