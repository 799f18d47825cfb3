"""HuBERT and wav2vec2 give every block's output, of either library's models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchaudio.models
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from gamut.errors import CheckpointError
from gamut.models import speech
from gamut.models.speech import SpeechEncoder, load_speech
from tests.close import assert_close
from tests.models.whispers import sounds

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 40,
}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}


def run(model: SpeechEncoder, waveform: torch.Tensor, length: torch.Tensor | None = None) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    length = torch.full((len(waveform),), waveform.shape[1]) if length is None else length
    model(model.prepare(waveform, length), lambda block, x: seen.append(x))
    return seen


def made(kind: str, stable: bool) -> nn.Module:
    torch.manual_seed(0)
    config, model = (HubertConfig, HubertModel) if kind == "hubert" else (Wav2Vec2Config, Wav2Vec2Model)
    return model(config(**SIZES, **(STABLE if stable else {}))).eval()


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
@pytest.mark.parametrize("stable", [False, True])
def test_blocks_of_a_folder_of_transformers(tmp_path: Path, kind: str, stable: bool) -> None:
    theirs = made(kind, stable)
    theirs.save_pretrained(tmp_path)
    mine = load_speech(tmp_path)
    assert (mine.depth, mine.dim, mine.normalised, mine.kind) == (3, 32, stable, kind)
    waveform = sounds(8000)
    got = run(mine, waveform)
    x = waveform
    if stable:
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
        x = extractor(list(waveform.numpy()), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        told = theirs(x, output_hidden_states=True)
    assert len(got) == 3
    for ours, expected in zip(got[:-1], told.hidden_states[1:-1]):
        assert_close(ours, expected, 1e-5)
    last = theirs.encoder.layer_norm(got[-1]) if stable else got[-1]  # theirs is normed where the blocks norm first
    assert_close(last, told.last_hidden_state, 1e-5)
    if stable:
        assert (got[-1] - told.last_hidden_state).abs().max() > 0.05


def test_the_trunk_of_a_model_with_a_head_and_a_pickle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = HubertForCTC(HubertConfig(**SIZES)).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    waveform = sounds(4000)
    got = run(load_speech(tmp_path), waveform)
    with torch.no_grad():
        assert_close(got[-1], theirs.hubert(waveform).last_hidden_state, 1e-5)
    torch.save({"hubert.encoder": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="something other than tensors"):
        load_speech(tmp_path)


def test_weight_norm_by_the_names_of_older_files(tmp_path: Path) -> None:
    theirs = made("wav2vec2", True)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }
    assert set(old) != set(state)
    waveform = sounds(4000)
    expected = run(load_speech(tmp_path), waveform)
    save_file(old, path)
    for ours, one in zip(run(load_speech(tmp_path), waveform), expected, strict=True):
        assert torch.equal(ours, one)


def small(aux_num_out: int | None = None, mode: str = "layer_norm") -> nn.Module:
    return torchaudio.models.wav2vec2_model(
        extractor_mode=mode,
        extractor_conv_layer_config=[(16, 10, 5), (16, 3, 2), (16, 2, 2)],
        extractor_conv_bias=False,
        encoder_embed_dim=32,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=16,
        encoder_pos_conv_groups=2,
        encoder_num_layers=3,
        encoder_num_heads=2,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=64,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=mode == "layer_norm",
        encoder_layer_drop=0.0,
        aux_num_out=aux_num_out,
    )


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
@pytest.mark.parametrize("outputs", [None, 29])
def test_blocks_of_torchaudios_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, outputs: int | None
) -> None:
    torch.manual_seed(0)
    theirs = small(outputs, mode).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(torchaudio.models, "hubert_base", lambda aux_num_out: small(aux_num_out, mode))
    mine = load_speech(tmp_path / "weights.pth", "hubert_base")
    assert (mine.depth, mine.dim, mine.normalised) == (3, 32, mode == "layer_norm")
    waveform = sounds(4000)
    got = run(mine, waveform)
    with torch.no_grad():
        expected, _ = theirs.extract_features(mine.prepare(waveform, torch.full((3,), 4000)))
    for ours, one in zip(got, expected, strict=True):
        assert_close(ours, one, 1e-6)


def test_torchaudio_has_all_the_architectures_that_are_named() -> None:
    assert all(hasattr(torchaudio.models, name) for name in speech.ARCHITECTURES)


def test_a_waveform_is_normalised_by_its_own_samples(tmp_path: Path) -> None:
    made("hubert", True).save_pretrained(tmp_path)
    mine = load_speech(tmp_path)
    waveform = sounds(8000)
    short = waveform.clone()
    short[:, 5000:] = 0
    got = mine.prepare(short, torch.tensor([5000, 5000, 5000]))
    assert (got[:, 5000:] == 0).all()
    assert_close(got[:, :5000], mine.prepare(waveform[:, :5000], torch.full((3,), 5000)))
    assert got[:, :5000].mean(1).abs().max() <= 1e-5
    silent = mine.prepare(torch.zeros(1, 100, dtype=torch.int16), torch.tensor([100]))
    assert (silent == 0).all()


def test_what_is_none_of_these_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="torchaudio has no 'hubert_huge'; there are wav2vec2_base"):
        load_speech(tmp_path / "x.pth", "hubert_huge")
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match="a model of type 'whisper', not hubert or wav2vec2"):
        load_speech(tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        load_speech(tmp_path / "none")
