"""HEAR's and X-ARES' interfaces to any model, by the text of their APIs; and by their own checkers in the long form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gamut
from gamut.benchmarks import hear
from gamut.benchmarks.model import regular
from gamut.benchmarks.xares import GamutEncoder
from gamut.embed.model import Embedded
from gamut.errors import AudioError, CheckpointError, RecipeError
from tests.close import assert_close
from tests.embed.conftest import sound
from tests.embed.test_model import a_round
from tests.models.whispers import saved_by_transformers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    elastic = ("model.positions=factorised", "model.pooling=attention", "views.frames=null")
    return {
        "whisper": saved_by_transformers(folder / "whisper"),
        "fixed": a_round(folder / "fixed")[0],
        "any length": a_round(folder / "any", *elastic)[0],
    }


def heard(*seconds: float) -> torch.Tensor:
    """float32 [sounds, samples] in [-1, 1], of one length."""
    longest = max(seconds)
    return torch.stack([torch.from_numpy(sound(longest, seed) / np.float32(32768)) for seed in range(len(seconds))])


@pytest.mark.parametrize("kind", ["whisper", "fixed", "any length"])
def test_the_api_of_hear(kind: str, places: dict[str, Path]) -> None:
    """Attributes, shapes, types, times in milliseconds at regular intervals; alone as in a batch."""
    model = hear.load_model(str(places[kind]), **({"window": 2.0} if kind == "whisper" else {}))
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate == 16000
    assert isinstance(model.scene_embedding_size, int)
    assert isinstance(model.timestamp_embedding_size, int)
    for seconds in (0.01, 0.5, 3.74, 7.3):
        audio = heard(seconds, seconds, seconds)
        audio[2] = 0  # silence
        scenes = hear.get_scene_embeddings(audio, model)
        assert scenes.dtype == torch.float32
        assert scenes.shape == (3, model.scene_embedding_size)
        frames, times = hear.get_timestamp_embeddings(audio, model)
        assert frames.dtype == times.dtype == torch.float32
        assert frames.shape == (*times.shape, model.timestamp_embedding_size)
        assert len(frames) == 3
        assert frames.isfinite().all()
        assert scenes.isfinite().all()
        between = times.diff()
        assert (between > 0).all()
        if between.numel():
            assert (between - between.mean()).abs().max() < 2e-3
            assert times[0, -1] < 1000 * seconds + between.mean()
            assert abs(float(times[0, -1]) - 1000 * seconds) < 1.5 * float(between.mean())
        assert (times == times[0]).all()
        assert torch.equal(hear.get_scene_embeddings(audio[1:2], model)[0], scenes[1])
        assert torch.equal(hear.get_timestamp_embeddings(audio[1:2], model)[0][0], frames[1])
        own = gamut.load(places[kind], window=2.0 if kind == "whisper" else None).embed(list(audio), 16000)
        assert np.array_equal(scenes.numpy(), own)
    assert hear.get_scene_embeddings(torch.zeros(0, 100), model).shape == (0, model.scene_embedding_size)
    assert hear.get_timestamp_embeddings(torch.zeros(0, 100), model)[0].shape == (0, 0, model.timestamp_embedding_size)


def test_times_are_regular_across_windows() -> None:
    times = np.concatenate([0.1 + 0.2 * np.arange(5), 1.07 + 0.1 + 0.2 * np.arange(4)])
    found = regular(Embedded(np.arange(9.0)[:, None], times))
    assert_close(np.diff(found.times), np.full(8, 0.2))
    assert np.abs(times[found.values[:, 0].astype(int)] - found.times).max() <= 0.135  # the nearest step of each
    assert found.times[-1] == pytest.approx(times[-1], abs=0.1)


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (torch.zeros(100), r"\[sounds, samples\]"),
        (torch.zeros(2, 1, 100), r"\[sounds, samples\]"),
        (np.zeros((2, 100)), r"\[sounds, samples\]"),
        (torch.zeros(2, 0), "hold no sample"),
        (torch.stack([torch.zeros(99), torch.full((99,), torch.nan)]), "sound 1 has samples that are NaN"),
        (torch.full((2, 99), 2e4), "floats are in"),
    ],
)
def test_what_is_no_sound_is_said(audio: torch.Tensor, said: str, places: dict[str, Path]) -> None:
    model = hear.load_model(str(places["fixed"]))
    with pytest.raises((AudioError, RecipeError), match=said):
        hear.get_scene_embeddings(audio, model)
    with pytest.raises((AudioError, RecipeError), match=said):
        hear.get_timestamp_embeddings(audio, model)


def test_a_model_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: dict[str, Path]) -> None:
    monkeypatch.delenv("GAMUT_MODEL", raising=False)
    for made in (hear.load_model, GamutEncoder):
        with pytest.raises(RecipeError, match=r"No model is named.*GAMUT_MODEL"):
            made()
        with pytest.raises(CheckpointError, match="no such file or folder"):
            made(str(tmp_path / "nowhere"))
        with pytest.raises(RecipeError, match="no option 'windw'"):
            made(str(places["fixed"]), windw=1)
    monkeypatch.setenv("GAMUT_MODEL", str(places["fixed"]))
    assert hear.load_model().scene_embedding_size == GamutEncoder().output_dim


@pytest.mark.parametrize("kind", ["fixed", "any length"])
def test_the_encoder_that_x_ares_asks_for(kind: str, places: dict[str, Path]) -> None:
    """What its check looks at, with its noise of deviation 1; and that two models never share a folder of scores."""
    encoder = GamutEncoder(places[kind])
    assert isinstance(encoder, torch.nn.Module)
    assert type(encoder).__name__.endswith("Encoder")
    assert type(encoder).__name__.isidentifier()
    noise = torch.randn(2, 50000)
    with torch.inference_mode():
        found = encoder(noise)
    assert found.shape[0] == 2
    assert found.shape[2] == encoder.output_dim
    assert found.shape[1] == pytest.approx(3125 / encoder.hop_size_in_ms, abs=1)
    assert torch.equal(encoder(noise[1])[0], found[1])
    assert torch.equal(encoder(noise.clamp(-1, 1)), found)
    with pytest.raises(AudioError, match="floats are in"):
        encoder(torch.full((2, 99), 2e4))
    assert type(encoder).__name__ == type(GamutEncoder(places[kind])).__name__
    assert type(encoder).__name__ != type(GamutEncoder(places[kind], window=1.0)).__name__


def test_x_ares_finds_one_class_in_the_module() -> None:
    import gamut.benchmarks.xares as module

    assert [name for name in dir(module) if name.endswith("Encoder")] == ["GamutEncoder"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with HEAR's validator and X-ARES, over this one's packages."""
    folder = tmp_path_factory.mktemp("kept")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    own = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "over.pth").write_text("\n".join(own))
    pins = ["-c", str(ROOT / "requirements.txt")]
    for words in (["tensorflow-cpu", *pins], ["--no-deps", "hearvalidator"], ["xares", "torchcodec==0.11.*", *pins]):
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *words], capture_output=True, text=True, timeout=1200, check=False
        )
        if "No matching distribution" in done.stderr or "Connection" in done.stderr:
            pytest.skip(f"the package registry cannot be reached: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr
    return python


def said(*line: str | Path, cwd: Path | None = None, **environment: str) -> str:
    told = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, check=False, env=told, cwd=cwd)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("kind", ["whisper", "fixed", "any length"])
def test_hears_own_validator_passes(kind: str, places: dict[str, Path], kept: Path, tmp_path: Path) -> None:
    words = ("gamut.benchmarks.hear", "-m", places[kind], "-d", "cpu")
    assert "Looks good!" in said(kept.with_name("hear-validator"), *words, cwd=tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["whisper", "fixed", "any length"])
def test_x_ares_own_check_passes(kind: str, places: dict[str, Path], kept: Path, tmp_path: Path) -> None:
    code = (
        "from xares.audio_encoder_checker import check_audio_encoder as check; from gamut.benchmarks.xares import *; "
    )
    code += "assert check(GamutEncoder())"
    said(kept, "-c", code, cwd=tmp_path, GAMUT_MODEL=str(places[kind]))
