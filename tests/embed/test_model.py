"""gamut.load and what it embeds: equal to other programs' models, to the cache of features, to tags, and to itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import timm
import torch
from torchaudio.compliance.kaldi import fbank

import gamut
from finetune.objective import Classify
from gamut.data.memory import packed
from gamut.embed.model import Model
from gamut.errors import AudioError, CheckpointError, RecipeError
from gamut.features import FeatureCache
from gamut.features.__main__ import main as features
from gamut.recipe import cli
from gamut.shards.__main__ import main as shards
from gamut.tag import Recording
from gamut.tag import load as load_tagger
from tests.close import assert_close
from tests.embed.conftest import sound
from tests.models.test_public import AstReference, filled
from tests.models.test_speech import made
from tests.models.whispers import of_openai, saved_by_openai
from tests.tag.rounds import leave_round

CLASSES = ["Dog", "Rain", "Siren", "Speech"]


def a_round(folder: Path, *words: str) -> tuple[Path, Classify]:
    """Of fine-tuning, as `finetune/run.py` leaves it, and its objective."""
    recipe = cli.parse("finetune", ["esc10", "model.dim=48", "model.depth=2", "precision=fp32", *words]).recipe
    task = Classify(recipe, len(CLASSES), -6.0, 4.0, 0, torch.device("cpu"))
    filled(task.model)
    leave_round(folder, recipe, task.model, {**task.described(), "labels": CLASSES, "loss": "ce"})
    return folder, task


def mel(waveform: np.ndarray) -> torch.Tensor:
    """Kaldi's log-mel [frames, 128] as AST, SSAST and ASiT take it (torchaudio)."""
    x = torch.from_numpy(waveform.astype(np.float32) / 32768)[None]
    return fbank(
        x - x.mean(), htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip


def test_an_asit_file_gives_what_timms_model_gives(tmp_path: Path) -> None:
    """A public file, its section told by its tensors alone, beside timm's dense ViT on Kaldi's log-mel."""
    vit = filled(
        timm.models.vision_transformer.VisionTransformer(
            img_size=(192, 128), patch_size=16, in_chans=1, embed_dim=64, depth=2, num_heads=1, num_classes=0
        )
    )
    file = tmp_path / "asit.pth"
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}}, file)
    model = gamut.load(file)
    waveform = sound(1.98)[: 191 * 160 + 400 + 77]  # 192 frames, 12 columns
    x = (mel(waveform)[:192] - -4.2677393) / (2 * 4.5689974)
    with torch.no_grad():
        blocks = vit.forward_intermediates(x[None, None], intermediates_only=True, output_fmt="NLC", norm=False)
        tokens = vit.norm(vit.blocks[1](vit.blocks[0](vit._pos_embed(vit.patch_embed(x[None, None])))))
    vectors = model.embed(waveform, 16000)
    assert vectors.shape == (1, 64) == (1, model.dim)
    assert_close(vectors[0], tokens[0, 0].numpy(), 2e-4)
    (patches,) = model.embed(waveform, 16000, level="patch")
    assert_close(patches.values, tokens[0, 1:].unflatten(0, (12, 8)).numpy(), 2e-4)
    (frames,) = model.embed(waveform, 16000, level="frame")
    assert_close(frames.values, patches.values.mean(1), 1e-5)
    assert frames.times[:2].tolist() == pytest.approx([1400 / 16000, 1400 / 16000 + 0.16])
    (layers,) = model.embed(waveform, 16000, level="layer")
    for ours, theirs in zip(layers.values, blocks, strict=True):
        assert_close(ours, theirs[0].unflatten(0, (12, 8)).mean(1).numpy(), 2e-4)
    assert model.labels is None
    with pytest.raises(RecipeError, match=r"has no classes, so it gives no tags; `embed` gives"):
        model.tag(waveform, 16000)


def test_transformers_ast_embeds_and_tags_as_its_own_pipeline_does(tmp_path: Path) -> None:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    names = dict(enumerate(CLASSES))
    config = ASTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, max_length=128, id2label=names
    )
    theirs = filled(ASTForAudioClassification(config))
    theirs.save_pretrained(tmp_path)
    extractor = ASTFeatureExtractor(max_length=128, mean=-5.0, std=4.0)
    extractor.save_pretrained(tmp_path)
    model = gamut.load(tmp_path)
    assert model.labels == tuple(CLASSES)
    for seconds in (1.2, 0.7):  # cut to the table's 128 frames, 1.295 s; padded to them
        waveform = sound(seconds)
        x = extractor(waveform.astype(np.float32) / 32768, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            pooled = theirs.audio_spectrogram_transformer(**x).pooler_output[0]
            expected = theirs(**x).logits[0].softmax(-1)
        assert_close(model.embed(waveform, 16000)[0], pooled.numpy(), 5e-4)
        (tagged,) = model.tag(waveform, 16000)
        assert_close(tagged.spans[0].probabilities, expected.numpy(), 5e-4)


def test_what_the_tensors_do_not_tell_is_asked_for(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in filled(AstReference(128)).state_dict().items()}
    torch.save(state, tmp_path / "ast.pth")  # 144 positions: 12 columns of 12, or 18 of 8; 24 dimensions: any heads
    with pytest.raises(RecipeError, match=r"does not tell the model's heads: say it, such as model=\{'heads': 12\}"):
        gamut.load(tmp_path / "ast.pth")
    with pytest.raises(RecipeError, match="does not tell the model's stride"):
        gamut.load(tmp_path / "ast.pth", model={"heads": 2})
    with pytest.raises(RecipeError, match="no key 'head' in a model section; the nearest valid name is heads"):
        gamut.load(tmp_path / "ast.pth", model={"head": 2})
    told = {"heads": 2, "stride": 10}
    assert gamut.load(tmp_path / "ast.pth", model=told).labels is None
    with pytest.raises(CheckpointError, match="5 classes apart, and 4 names were given"):
        gamut.load(tmp_path / "ast.pth", model=told, labels=CLASSES)
    model = gamut.load(tmp_path / "ast.pth", model=told, labels=[*CLASSES, "Wind"])
    assert model.labels == (*CLASSES, "Wind")
    assert model.embed(sound(1.0), 16000).shape == (1, 24)


def test_whisper_gives_what_transformers_gives(whisper: Path) -> None:
    from transformers import WhisperFeatureExtractor, WhisperModel

    model, waveform = gamut.load(whisper), sound(33.0)
    theirs, extractor = WhisperModel.from_pretrained(whisper).eval().encoder, WhisperFeatureExtractor()
    expected = []
    for part in (waveform[: 30 * 16000], waveform[30 * 16000 :]):
        x = extractor(part.astype(np.float32) / 32768, sampling_rate=16000, return_tensors="pt").input_features
        with torch.no_grad():
            expected.append(theirs(x).last_hidden_state[0, : len(part) // 320].numpy())
    (frames,) = model.embed(waveform, 16000, level="frame")
    assert_close(frames.values, np.concatenate(expected), 1e-5)
    assert_close(frames.times, 0.02 * np.arange(1650), 1e-9)
    assert_close(model.embed(waveform, 16000)[0], frames.values.mean(0), 1e-5)


def test_an_openai_file_is_a_whisper(tmp_path: Path) -> None:
    model = gamut.load(saved_by_openai(tmp_path / "tiny.pt", of_openai()))
    assert model.embed([sound(1.0), sound(0.5)], 16000).shape == (2, 64)
    with pytest.raises(RecipeError, match="has no patches: its levels are clip, frame and layer"):
        model.embed(sound(1.0), 16000, level="patch")


def test_hubert_gives_what_transformers_gives_at_a_clips_own_length(tmp_path: Path) -> None:
    theirs = made("hubert", True)
    theirs.save_pretrained(tmp_path)
    model = gamut.load(tmp_path)
    for seconds in (1.0, 0.73):
        x = torch.from_numpy(sound(seconds).astype(np.float32) / 32768)[None]
        x = (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-7)
        with torch.no_grad():
            expected = theirs(x).last_hidden_state[0].numpy()
        (frames,) = model.embed([sound(seconds)], 16000, level="frame")
        assert_close(frames.values, expected, 1e-5)
        spacing = np.diff(frames.times)
        assert_close(spacing, np.full(len(spacing), spacing[0]), 1e-9)
    assert model.embed(sound(0.003), 16000).shape == (1, theirs.config.hidden_size)


@pytest.mark.parametrize("kind", ["asit", "round", "elastic", "whisper"])
def test_a_sound_gives_the_same_alone_and_among_others(
    kind: str, files: list[Path], asit: Path, whisper: Path, tmp_path: Path
) -> None:
    """To the bit, on a CPU: each window is a forward of its own."""
    words = {"round": [], "elastic": ["model.positions=factorised", "model.pooling=attention", "views.frames=null"]}
    place = {"asit": asit, "whisper": whisper}.get(kind) or a_round(tmp_path / "round", *words[kind])[0]
    model = gamut.load(place, window=2.0 if kind == "whisper" else None)
    sounds = [*files, sound(0.003), sound(6.5).astype(np.float32) / 32768, torch.from_numpy(sound(1.3))[None]]
    for level in ("clip", "frame", "layer", "patch")[: 3 if kind == "whisper" else 4]:
        together = model.embed(sounds, 16000, level=level)  # type: ignore[call-overload]
        for one, expected in zip(sounds[2:], together[2:], strict=True):
            (alone,) = model.embed([one], 16000, level=level)  # type: ignore[call-overload]
            assert np.array_equal(getattr(alone, "values", alone), getattr(expected, "values", expected))
            assert np.isfinite(getattr(alone, "values", alone)).all()
            if level != "clip":
                assert len(alone.times) == alone.values.shape[level == "layer"]
                assert (np.diff(alone.times) > 0).all()


def same(first: Model, sounds: list, rate: int, second: list[Path]) -> None:
    for level in ("clip", "frame"):
        for a, b in zip(first.embed(sounds, rate, level=level), first.embed(second, level=level), strict=True):  # type: ignore[call-overload]
            assert np.array_equal(getattr(a, "values", a), getattr(b, "values", b))


def test_an_array_is_what_its_file_is(files: list[Path], asit: Path) -> None:
    """Of any type, rate and orientation of channels."""
    model = gamut.load(asit)
    (one, _), (stereo, rate) = (soundfile.read(file, dtype="int16") for file in (files[0], files[2]))
    same(model, [one, one.astype(np.int32) << 16, one / 32768, torch.from_numpy(one)], 16000, [files[0]] * 4)
    same(model, [stereo, stereo.T, torch.from_numpy(stereo.T / np.float32(32768))], rate, [files[2]] * 3)
    same(model, [one, stereo], [16000, 44100], [files[0], files[2]])  # type: ignore[arg-type]
    same(model, np.stack([one, one]), 16000, [files[0]] * 2)  # type: ignore[arg-type]
    assert model.embed([]).shape == (0, 32)
    with Recording(files[0]) as recording:
        assert np.array_equal(model.embed(recording), model.embed(str(files[0])))


@pytest.mark.parametrize(
    ("sounds", "rate", "said"),
    [
        (np.zeros(0), 16000, "sound 0 holds no sample"),
        ([sound(1), np.array([0.0, np.nan])], 16000, "sound 1 has samples that are NaN"),
        (np.full(100, 20000.0), 16000, "samples of up to 2e.04, and floats are in"),
        (np.zeros(100, np.int64), 16000, "is of int64: give floats"),
        (np.zeros(100), None, "the sample rate must be given"),
        (np.zeros(100), 16, "a sample rate of 16 Hz"),
        (np.zeros((1000, 2)), 16000, r"put it into a list: \[array\]"),
        ([np.zeros((40, 50))], 16000, "no sound has 40 channels"),
        ([np.zeros((2, 2, 2))], 16000, "a sound is .samples. or .channels, samples."),
        ([0.1, 0.2], 16000, "A list is one of sounds, not of samples"),
        ([None], 16000, "Sound 0 is of type NoneType"),
        ([np.zeros(9)] * 2, [16000], "There are 2 sounds and 1 rates"),
        (np.float32(3), 16000, "sound 0 has the shape"),
        (3, 16000, "Sound 0 is of type int: give an array"),
        (np.zeros(100), "16k", "A sample rate is a number, in Hz, such as 16000, not '16k'"),
        ([np.zeros(9)], ["16k"], "not '16k'"),
        ("nowhere.wav", None, "nowhere.wav cannot be read"),
    ],
)
def test_what_is_no_sound_is_said(sounds: object, rate: object, said: str, asit: Path) -> None:
    with pytest.raises((AudioError, RecipeError), match=said):
        gamut.load(asit).embed(sounds, rate)


def extracted(folder: Path, files: list[Path], init: Path, *words: str) -> tuple[FeatureCache, dict[str, int]]:
    """The features of the files by `gamut features extract`, and the row of each."""
    if not (folder / "set").exists():
        assert shards(["convert", "folder", str(files[0].parents[1]), str(folder / "set"), "--workers", "1"]) == 0
    recipe = "asit_esc50" if init.name == "asit" else "whisper_tiny_esc50"
    line = [f"init={init}", f"data={folder / 'set'}", f"extract.folder={folder / init.name}", "extract.dtype=fp32"]
    line += ["extract.pool=1", "extract.batch=1", "loader.workers=0", "extract.seconds=2", "precision=fp32"]
    assert features(["extract", recipe, *line, *words]) == 0
    cache = FeatureCache(folder / init.name)
    return cache, {cache.key(row): row for row in cache.rows.tolist()}


@pytest.mark.parametrize("kind", ["asit", "whisper"])
def test_layers_are_what_extraction_keeps(
    kind: str, files: list[Path], asit: Path, whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: the first window, as long as that of the cache, of the steps that are the sound's own."""
    init = {"asit": asit, "whisper": whisper}[kind]
    cache, rows = extracted(tmp_path, files, init, "extract.pad_with=silence")  # as a model by itself fills up
    model = gamut.load(init, window=2.0)
    step = {"asit": 0.16, "whisper": 0.02}[kind]
    for file, found in zip(files, model.embed(files, level="layer"), strict=True):
        (kept,) = cache.read(np.array([rows[f"some/{file.stem}"]]))
        own = min(found.values.shape[1], kept.shape[1])
        assert np.array_equal(found.values[:, :own], kept[:, :own])
        assert own == min(kept.shape[1], int(np.ceil(soundfile.info(file).duration / step - 1e-6)))


@pytest.mark.parametrize("words", [(), ("model.stride=10", "model.distilled=true", "views.pad_with=zero")])
def test_the_vector_of_a_clip_is_what_the_classifier_reads(
    words: tuple[str, ...], files: list[Path], tmp_path: Path
) -> None:
    folder, task = a_round(tmp_path / "round", *words)
    model = gamut.load(folder)
    assert model.labels == tuple(CLASSES)
    with torch.no_grad():
        logits = task.model.head(torch.from_numpy(model.embed(files)))  # type: ignore[operator]
    tagged = model.tag(files)
    for one, expected in zip(tagged, logits.softmax(-1).numpy(), strict=True):
        assert_close(one.spans[0].probabilities, expected, 1e-5)
    for one, file in zip(tagged, files):
        with Recording(file) as recording:
            (alone,) = load_tagger(folder).tag([recording])
        assert one.path == file
        assert_close(one.spans[0].probabilities, alone.spans[0].probabilities, 1e-6)
    with pytest.raises(RecipeError, match="writes no text"):
        model.tag(files, text={})


def test_an_array_is_tagged_as_its_file(files: list[Path], tmp_path: Path) -> None:
    model = gamut.load(a_round(tmp_path / "round")[0])
    waveform, rate = soundfile.read(files[2])
    (one,), (other,) = model.tag([waveform], rate, every=1.0), model.tag(files[2], every=1.0)
    assert [span.start for span in one.spans] == [span.start for span in other.spans] == [0, 1, 2]
    for a, b in zip(one.spans, other.spans):
        assert np.array_equal(a.probabilities, b.probabilities)


def test_importing_is_instant_and_load_is_found() -> None:
    code = "import sys, gamut; assert 'torch' not in sys.modules; assert callable(gamut.load); gamut.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "module 'gamut' has no attribute 'nothing'" in done.stderr


def test_there_is_nothing_to_load(tmp_path: Path, asit: Path) -> None:
    for place, said in ((tmp_path / "x", "There is nothing at"), (tmp_path, "neither a run nor a checkpoint")):
        with pytest.raises(CheckpointError, match=said):
            gamut.load(place)
    with pytest.raises(RecipeError, match="says which model it is of: leave `model` out"):
        gamut.load(asit, model={"heads": 2})
    with pytest.raises(RecipeError, match="no Whisper and no head of one"):
        gamut.load(asit, text=True)
    with pytest.raises(RecipeError, match="A window is of"):
        gamut.load(asit, window=0)
    assert packed([sound(0.1)], gamut.load(asit).encoder.policy(1)).clips == 1
