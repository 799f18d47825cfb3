"""Public weights, head and all, give from a waveform what their own model gives from Kaldi's filter banks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchaudio.compliance import kaldi

from finetune.objective import Classify
from gamut.data.batch import PackedBatch
from gamut.errors import CheckpointError
from gamut.recipe import schema
from tests.models.elastic_reference import ElasticReference
from tests.packs import packed

MEAN, STD = -4.2677393, 4.5689974
MODEL = schema.Model(
    dim=24, depth=2, heads=2, positions="factorised", pooling="attention", attention_scale=1.0, table_frames=192,
    drop_path=0.0,
)  # fmt: skip


def filter_banks(batch: PackedBatch) -> list[torch.Tensor]:
    """Normalised log-mels [128, frames] of each clip, by torchaudio."""
    mels = []
    for first, last, hop in zip(batch.offset[:-1].tolist(), batch.offset[1:].tolist(), batch.hop.tolist()):
        wave = batch.waveform[first:last].float() / 32768
        mel = kaldi.fbank(
            (wave - wave.mean())[None], htk_compat=True, sample_frequency=16000, use_energy=False,
            window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=hop / 16 + 1e-6,
        )  # fmt: skip
        mels.append(((mel - MEAN) / (2 * STD)).T)
    return mels


@pytest.mark.parametrize("kind", ["elastic", "own"])
def test_logits_from_the_waveform_are_the_public_model_s(tmp_path: Path, kind: str) -> None:
    reference = ElasticReference(24, 2, 2, 12, classes=5)
    generator = torch.Generator().manual_seed(0)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    torch.save({f"module.{name}": value for name, value in reference.state_dict().items()}, tmp_path / "elastic.pth")
    recipe = schema.Recipe(stage="finetune", model=MODEL, init=str(tmp_path), finetune=schema.Finetune(take_head=True))
    task = Classify(recipe, 5, MEAN, STD, seed=1, device=torch.device("cpu"))
    task.start_from(str(tmp_path / "elastic.pth"))
    if kind == "own":  # what a fine-tuned run keeps
        torch.save(task.model.state_dict(), tmp_path / "best.pth")
        task = Classify(recipe, 5, MEAN, STD, seed=2, device=torch.device("cpu"))
        task.start_from(str(tmp_path / "best.pth"))
    batch = packed([16, 96, 192, 48], hops=[160, 160, 320, 640])  # C of 1, 1, 2 and 4
    mels = filter_banks(batch)
    with torch.no_grad():
        expected = reference([mels[:2], mels[2:]])
    assert (task.logits(batch) - expected).abs().max() <= 1e-4 * expected.abs().max()  # the log-mels are within 1e-4
    other = Classify(recipe, 6, MEAN, STD, seed=2, device=torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"shape \(5, 24\), this classifier's has \(6, 24\)"):
        other.start_from(str(tmp_path / "elastic.pth"))
