"""Whisper's encoder is transformers' and OpenAI's to float rounding, with every block's output and at any window."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper.audio
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from gamut.audio.whisper_mel import whisper_log_mel
from gamut.errors import CheckpointError
from gamut.models.whisper import Whisper, load_whisper
from tests.close import assert_close
from tests.models.public_files import blocks_of
from tests.models.whispers import (
    BLOCKS,
    DIM,
    of_openai,
    of_transformers,
    saved_by_openai,
    saved_by_transformers,
    sounds,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_by_transformers(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def mine(folder: Path) -> Whisper:
    return load_whisper(folder)


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("seconds", [5, 10, 30])
def test_the_log_mel_is_that_of_both_libraries(mels: int, seconds: int) -> None:
    waveform = sounds(16_000 * seconds)
    got = whisper_log_mel(waveform, mels)
    assert got.shape == (3, mels, 100 * seconds)
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
    theirs = extractor(list(waveform.numpy()), sampling_rate=16_000, return_tensors="pt").input_features
    assert_close(got, theirs, 1e-6)
    for one, clip in zip(got, waveform):
        openai = whisper.audio.log_mel_spectrogram(clip, mels)
        assert_close(one, openai, 1e-6)


def test_the_floor_is_a_clips_own(mine: Whisper) -> None:
    waveform = sounds(32_000)
    together = mine.log_mel(waveform)
    for one, clip in zip(together, waveform):
        assert_close(mine.log_mel(clip[None])[0], one, 1e-6)
    int16 = (waveform * 32768).round().clamp(-32768, 32767).to(torch.int16)
    assert_close(mine.log_mel(int16), mine.log_mel(int16 / 32768.0), 0)


def test_blocks_and_final_are_those_of_transformers(mine: Whisper, folder: Path) -> None:
    theirs = WhisperForConditionalGeneration.from_pretrained(folder).eval().model.encoder
    mel = mine.log_mel(sounds(480_000, 2))
    final: list[torch.Tensor] = []
    blocks = blocks_of(list(theirs.layers), lambda: final.append(theirs(mel).last_hidden_state))
    encoded = mine(mel)
    assert len(encoded.blocks) == BLOCKS
    for ours, expected in zip(encoded.blocks, blocks):
        assert ours.shape == (2, 1500, DIM)
        assert_close(ours, expected, 1e-5)
    assert_close(encoded.final, final[0], 1e-5)
    # What transformers calls the last hidden state is not the last block's output.
    assert (encoded.final - encoded.blocks[-1]).abs().max() > 0.1


@pytest.mark.parametrize("seconds", [5, 10, 30])
def test_blocks_are_those_of_openai_with_positions_cut(tmp_path: Path, seconds: int) -> None:
    theirs = of_openai(seed=3)
    mine = load_whisper(saved_by_openai(tmp_path / "tiny.pt", theirs))
    mel = mine.log_mel(sounds(16_000 * seconds))
    encoder = theirs.encoder
    encoder.positional_embedding = encoder.positional_embedding[: 50 * seconds]
    final: list[torch.Tensor] = []
    blocks = blocks_of(list(encoder.blocks), lambda: final.append(encoder(mel)))
    encoded = mine(mel)
    for ours, expected in zip(encoded.blocks, blocks):
        assert ours.shape == (3, 50 * seconds, DIM)
        assert_close(ours, expected, 1e-5)
    assert_close(encoded.final, final[0], 1e-5)


def test_outputs_can_be_made_small_as_they_come(mine: Whisper) -> None:
    mel = mine.log_mel(sounds(80_000))
    whole = mine(mel)
    means = mine(mel, lambda number, x: x.mean(1) if number != 1 else None)
    assert len(means.blocks) == BLOCKS - 1
    assert_close(means.blocks[1], whole.blocks[2].mean(1))
    assert_close(means.final, whole.final)


@pytest.mark.parametrize(("precision", "within"), [("bf16", 0.1), ("fp16", 0.02)])
def test_lower_precisions_are_near(mine: Whisper, folder: Path, precision: str, within: float) -> None:
    low = load_whisper(folder, precision=precision)
    mel = mine.log_mel(sounds(80_000))
    encoded = low(mel)
    assert encoded.final.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for ours, expected in zip(encoded.blocks, mine(mel).blocks):
        assert_close(ours.float(), expected, within)


def test_text_from_the_same_pass_is_that_of_transformers(folder: Path) -> None:
    theirs = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    mine = load_whisper(folder, decoder=True)
    mel = mine.log_mel(sounds(480_000, 2))
    ours = reference = torch.full((2, 1), 1)
    encoded = mine(mel).for_decoder()
    with torch.no_grad():  # greedy, a token at a time
        for _ in range(12):
            logits = mine.generator(encoder_outputs=encoded, decoder_input_ids=ours).logits
            ours = torch.cat([ours, logits[:, -1:].argmax(-1)], 1)
            logits = theirs(mel, decoder_input_ids=reference).logits
            reference = torch.cat([reference, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ours, reference)
    assert not torch.equal(ours[0], ours[1])  # it depends on the sound


def test_an_openai_file_gives_transformers_whole_model(tmp_path: Path) -> None:
    theirs = of_openai(seed=4)
    mine = load_whisper(saved_by_openai(tmp_path / "tiny.pt", theirs), decoder=True)
    mel = mine.log_mel(sounds(480_000, 2))
    tokens = torch.tensor([[1, 7, 9], [1, 3, 4]])
    with torch.no_grad():
        expected = theirs(mel, tokens)
        got = mine.generator(encoder_outputs=mine(mel).for_decoder(), decoder_input_ids=tokens).logits
    assert_close(got, expected, 2e-5)


def test_a_model_without_its_head_and_in_several_files(tmp_path: Path, mine: Whisper) -> None:
    model = of_transformers()
    model.model.save_pretrained(tmp_path / "trunk")
    model.save_pretrained(tmp_path / "split", max_shard_size="200KB")
    assert (tmp_path / "split" / "model.safetensors.index.json").exists()
    mel = mine.log_mel(sounds(32_000))
    for name in ("trunk", "split"):
        assert_close(load_whisper(tmp_path / name)(mel).final, mine(mel).final, 0)
    assert load_whisper(tmp_path / "trunk", decoder=True).generator is not None


def test_what_is_not_a_whisper_is_a_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no Whisper at"):
        load_whisper(tmp_path / "none")
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt is not a Whisper of OpenAI's: it lacks 'n_audio_ctx'"):
        load_whisper(tmp_path / "a.pt")
    torch.save({"dims": Path("x")}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"b.pt holds something other than tensors and is not loaded"):
        load_whisper(tmp_path / "b.pt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="a model of type 'bert', not whisper"):
        load_whisper(tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="There are no weights in"):
        load_whisper(whole)
    state = load_file(folder / "model.safetensors")
    lacking = state.pop("model.encoder.layers.1.fc1.bias")
    save_file(state, whole / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no tensor layers.1.fc1.bias"):
        load_whisper(whole)
    save_file(state | {"model.encoder.layers.1.fc1.bias": lacking[:-1].clone()}, whole / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.1.fc1.bias in .* has shape \(255,\), not \(256,\)"):
        load_whisper(whole)
    (whole / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_whisper(whole)


def test_a_window_beyond_the_positions_is_refused(mine: Whisper) -> None:
    with pytest.raises(ValueError, match="1600 steps are more than the 1500 positions"):
        mine(torch.zeros(1, 80, 3200))
    assert mine.longest == 30.0
