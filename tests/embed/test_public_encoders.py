"""gamut.load of public encoders of spectrograms: what their own packages give, in the terms of `embed`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gamut
from tests.close import assert_close
from tests.models import public_files as files


@pytest.fixture(scope="module")
def sounds() -> list[np.ndarray]:
    """int16, of 2.1 and 0.9 s: a chord in noise."""
    rng = np.random.default_rng(0)
    t = np.arange(33_600) / 16_000
    whole = (0.2 * np.sin(6.28 * 500 * t) * (1 + t) / 3 + rng.normal(0, 0.03, len(t))) * 32767
    return [whole.astype(np.int16), whole[:14_400].astype(np.int16)]


def as_float(sound: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(sound).float() / 32768.0


def test_beats_and_openbeats(tmp_path: Path, sounds: list[np.ndarray]) -> None:
    theirs = files.beats()
    model = gamut.load(files.beats_file(tmp_path, theirs))
    frames, patches = (model.embed(sounds, 16_000, level=level) for level in ("frame", "patch"))
    for number, sound in enumerate(sounds):
        wave = as_float(sound)[None]
        with torch.no_grad():
            expected = theirs(wave, torch.tensor([wave.shape[1]]))[0][0].unflatten(0, (-1, 8))
        assert_close(patches[number].values, expected, 1e-4)
        assert_close(frames[number].values, expected.mean(1), 1e-4)
        assert_close(frames[number].times, 0.0875 + 0.16 * np.arange(len(expected)))
        assert_close(model.embed(sound, 16_000)[0], expected.mean((0, 1)), 1e-4)


def test_dasheng_and_its_package(tmp_path: Path, sounds: list[np.ndarray]) -> None:
    theirs = files.dasheng_model()
    model = gamut.load(files.dasheng_file(tmp_path, theirs))
    found = model.embed(sounds, 16_000, level="frame")
    for number, sound in enumerate(sounds):
        with torch.no_grad():
            expected = theirs(as_float(sound)[None])[0]
        assert_close(found[number].values, expected, 1e-4)
        assert_close(found[number].times, 0.015 + 0.04 * np.arange(len(expected)))
        assert_close(model.embed(sound, 16_000)[0], expected.mean(0), 1e-4)


def test_the_vector_of_a_clip_is_eats_class_token(tmp_path: Path, sounds: list[np.ndarray]) -> None:
    theirs = files.Eat()
    model = gamut.load(files.eat_of_transformers(tmp_path, theirs))
    for sound in sounds:
        with torch.no_grad():
            expected = theirs(files.ast_mel(as_float(sound), -4.268, 4.569))[0, 0]
        assert_close(model.embed(sound, 16_000)[0], expected, 1e-4)


@pytest.mark.parametrize("kind", files.FILES)
def test_a_sound_alone_is_the_sound_in_a_list(tmp_path: Path, sounds: list[np.ndarray], kind: str) -> None:
    model = gamut.load(files.FILES[kind](tmp_path))
    assert model.labels is None
    together = model.embed(sounds, 16_000)
    assert together.shape == (2, model.dim)
    for number, sound in enumerate(sounds):
        assert np.array_equal(model.embed(sound, 16_000)[0], together[number])
        frame = model.embed(sound, 16_000, level="frame")[0]
        steps = len(sound) / 640 if kind == "dasheng" else len(sound) / 2560
        assert steps - 1.2 <= len(frame.values) <= steps + 1
    layers = model.embed(sounds[0], 16_000, level="layer")[0]
    assert layers.values.shape[::2] == (files.DEPTH, model.dim)
