from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gamut.audio.whisper_mel import whisper_log_mel
from gamut.tag.mels import LongMel
from gamut.tag.recording import Recording
from tests.close import assert_close


def write(path: Path, seconds: float) -> Path:
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * 16000)) / 16000
    loud = np.where(time < seconds / 3, 0.5, 0.001)  # so that the floor is set by what comes first
    soundfile.write(path, loud * np.sin(time * 5000) + rng.normal(0, 1e-5, len(time)), 16000, "FLOAT")
    return path


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("seconds", [30.0125, 61.3])
def test_windows_are_those_of_the_whole_recordings_log_mel(tmp_path: Path, mels: int, seconds: float) -> None:
    recording = Recording(write(tmp_path / "x.wav", seconds))
    whole = whisper_log_mel(torch.from_numpy(np.concatenate(list(recording.blocks())))[None], mels)
    mel = LongMel(recording, mels)
    assert mel.shape == whole.shape
    assert float(whole.min()) == pytest.approx(float(whole.max()) - 2.0)  # the floor acts
    for first, last in [(0, 3000), (0, 100), (0, 3000), (1, 3), (2920, 5920), (2921, 9999), (whole.shape[2] - 1, 9999)]:
        assert_close(mel[0:1, :, first:last], whole[:, :, first:last], 1e-6)


def test_no_more_than_a_window_is_held(tmp_path: Path) -> None:
    recording = Recording(write(tmp_path / "x.wav", 400))
    mel = LongMel(recording, 80)
    tracemalloc.start()
    try:
        for first in range(0, mel.shape[2], 2500):
            mel[:, :, first : first + 3000]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400 * 16000 * 4 / 2  # half of the samples
