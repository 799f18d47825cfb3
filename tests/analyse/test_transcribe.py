"""Recognisers from folders of transformers: their own text, whatever else is in the batch; and digits among ESC-10."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gamut.analyse.__main__ import main
from gamut.analyse.transcribe import DECODINGS, transcriber
from gamut.errors import CheckpointError
from gamut.shards.__main__ import main as shards

from .speech_models import WORDS, tiny_ctc, tiny_whisper


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("recognisers")
    return tiny_whisper(folder / "whisper"), tiny_ctc(folder / "ctc")


def sounds() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(random.normal(size=n) * scale).astype(np.float32) for n, scale in ((8000, 0.1), (20000, 0.5), (100, 0.01))]


def test_whisper_says_what_transformers_own_model_says(models: tuple[Path, Path]) -> None:
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    theirs = WhisperForConditionalGeneration.from_pretrained(str(models[0]))
    inputs = WhisperFeatureExtractor()(sounds(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        tokens = theirs.generate(inputs)
    expected = WhisperTokenizer.from_pretrained(str(models[0])).batch_decode(tokens, skip_special_tokens=True)
    hear = transcriber(models[0], decoding="greedy")
    assert hear(sounds()) == expected
    assert [hear([sound])[0] for sound in sounds()] == expected
    assert any(expected)


def test_a_text_that_is_unlikely_is_drawn_again_and_the_same_each_time(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenAI's `transcribe`, at ever higher temperatures; here every text is called unlikely."""
    from transformers import WhisperForConditionalGeneration

    tried: list[float] = []
    again = WhisperForConditionalGeneration._need_fallback

    def need(self: object, *given: object, **named: object) -> tuple[bool, bool]:
        tried.append(inspect.signature(again).bind(self, *given, **named).arguments["temperature"])
        return again(self, *given, **named)

    monkeypatch.setattr(WhisperForConditionalGeneration, "_need_fallback", need)
    monkeypatch.setitem(DECODINGS["whisper"], "logprob_threshold", 0.0)
    before = torch.get_rng_state()
    hear = transcriber(models[0])
    found = hear(sounds())
    assert hear(sounds()) == found
    assert set(tried) == {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_with_a_ctc_head_is_decoded_greedily(models: tuple[Path, Path]) -> None:
    hear = transcriber(models[1])
    texts = hear(sounds()[:2])
    assert texts == [hear([sound])[0] for sound in sounds()[:2]]
    assert all(set(text) <= set("".join(WORDS).upper()) | {" ", "<", ">", "s", "/", "u", "n", "k"} for text in texts)


def test_what_is_missing_is_said(models: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer: give --tokens"):
        transcriber(tmp_path / "tiny.pt")
    shutil.copytree(models[0], tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(CheckpointError, match="bare has no tokenizer"):
        transcriber(tmp_path / "bare")


def test_digits_among_the_sounds_of_esc10(models: tuple[Path, Path], shared_data: Path, tmp_path: Path) -> None:
    """Figure 1 and 2 end to end: ten digits, ten classes of sound, a Whisper and a wav2vec2 of random weights."""
    for word in WORDS:
        (tmp_path / "digits" / word).mkdir(parents=True)
        for path in sorted((shared_data / "fsdd" / word).glob("*.wav"))[:1]:
            shutil.copy(path, tmp_path / "digits" / word)
    for table in ("validation", "testing"):
        (tmp_path / "digits" / f"{table}_list.txt").write_text("")
    meta = (shared_data / "esc10" / "meta" / "esc50.csv").read_text().splitlines()
    first = {line.split(",")[3]: line for line in reversed(meta[1:])}  # a clip of each class
    (tmp_path / "esc" / "meta").mkdir(parents=True)
    (tmp_path / "esc" / "audio").mkdir()
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("\n".join([meta[0], *first.values()]) + "\n")
    for line in first.values():
        shutil.copy(shared_data / "esc10" / "audio" / line.split(",")[0], tmp_path / "esc" / "audio")
    assert (
        shards(["convert", "speechcommands", str(tmp_path / "digits"), str(tmp_path / "speech"), "--workers", "1"]) == 0
    )
    assert shards(["convert", "esc50", str(tmp_path / "esc"), str(tmp_path / "sounds"), "--workers", "1"]) == 0
    f1 = {"encoders": [{"labels": sorted(first), "f1": [np.linspace(0, 1, len(first)).tolist()]}]}
    (tmp_path / "layers.json").write_text(json.dumps(f1))
    line = ["noise", str(tmp_path / "speech"), str(tmp_path / "sounds"), *map(str, models), "--utterances", "2"]
    line += [
        "--per-class",
        "1",
        "--snr=-10,20",
        "--layers",
        str(tmp_path / "layers.json"),
        "--batch",
        "40",
        "--decoding",
        "greedy",
    ]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "noise.json").read_text())
    assert sorted(content["labels"]) == sorted(first)
    assert list(content["models"]) == ["whisper", "ctc"]
    assert all(np.shape(one["wrong"]) == (2, 10) for one in content["models"].values())
    assert np.array(content["models"]["whisper"]["words"]).tolist() == [[2] * 10] * 2
    table = (tmp_path / "out" / "noise.md").read_text()
    assert "| 20 dB | " in table
    assert "the WER that its sounds add" in table
