"""Text is transformers' own; tags come from the very passes that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from gamut.errors import RecipeError
from gamut.models.tagger import Tagger
from gamut.models.whisper import Whisper, load_whisper
from gamut.recipe import schema
from gamut.tag.mels import short
from gamut.tag.recording import Recording
from gamut.tag.speech import Head, Speech
from gamut.tag.units import Units
from tests.close import assert_close

from .whispers import DIM, LAYERS, talking_whisper

CLASSES = ("dog", "rain", "siren", "speech", "silence")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_whisper(tmp_path_factory.mktemp("models") / "whisper")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 7.3, 21, 75.5 and 30.6 s: tones that change, in noise."""
    rng = np.random.default_rng(0)
    paths = []
    for number, seconds in enumerate([7.3, 21.0, 75.5, 30.6]):
        time = np.arange(int(16000 * seconds)) / 16000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 100 * number + 50 * np.floor(time * 3) % 900) * time)
        paths.append(tmp_path_factory.mktemp("sounds") / f"{number}.wav")
        soundfile.write(paths[-1], tone + rng.normal(0, 0.02, len(time)), 16000, "FLOAT")
    return paths


def head(seed: int = 0, **known: Any) -> Head:
    tagger = Tagger(schema.Head(kind="tl_tr", dim=16, layer_heads=2), LAYERS, DIM, len(CLASSES), seed)
    with torch.no_grad():
        for parameter in tagger.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return Head(tagger.eval(), CLASSES, **known)


def tokenizer(folder: Path) -> Any:
    from transformers import WhisperTokenizer

    return WhisperTokenizer.from_pretrained(folder, local_files_only=True)


def by_transformers(folder: Path, sounds: list[Path], **options: Any) -> list[tuple[str, list[tuple[float, float]]]]:
    """(text, times of segments) of each file, as its documentation has it done: short ones in a batch."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    extractor = WhisperFeatureExtractor()
    waveforms = [soundfile.read(path, dtype="float32")[0] for path in sounds]
    whole = {"truncation": False, "padding": "longest"} if max(map(len, waveforms)) > 480_000 else {}
    mel = extractor(waveforms, sampling_rate=16000, return_tensors="pt", **whole)["input_features"]
    made = model.generate(mel, return_timestamps=True, return_segments=True, **options)
    texts = tokenizer(folder).batch_decode(made["sequences"], skip_special_tokens=True)
    times = [[(float(one["start"]), float(one["end"])) for one in segments] for segments in made["segments"]]
    return list(zip(texts, times))


@pytest.mark.parametrize("which", [[0], [0, 1], [2], [3]], ids=["short", "batch", "long", "hardly-long"])
@pytest.mark.parametrize("options", [{}, {"language": "de", "task": "translate"}], ids=["detected", "german"])
def test_the_text_is_what_transformers_gives(
    folder: Path, sounds: list[Path], which: list[int], options: dict[str, str]
) -> None:
    files = [sounds[number] for number in which]
    speech = Speech(load_whisper(folder, decoder=True), head(), tokenizer(folder))
    found = list(speech.tag([Recording(path) for path in files], every=0.4, text=options))
    expected = by_transformers(folder, files, **options)
    assert all(len(text) > 3 for text, _ in expected)
    assert [one.text for one in found] == [text for text, _ in expected]
    for one, (_, times) in zip(found, expected):
        assert [(words.start, words.end) for words in one.words] == [
            (pytest.approx(start), pytest.approx(end)) for start, end in times
        ]
        assert len(one.words) > 1


def windows_of(whisper: Whisper, speech: Speech, recordings: list[Recording], **options: Any) -> list[int]:
    """How many windows each pass of the encoder's first layer sees while recordings are tagged."""
    seen: list[int] = []
    handle = whisper.encoder.conv1.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    list(speech.tag(recordings, **options))
    handle.remove()
    return seen


def test_every_window_is_encoded_once(folder: Path, sounds: list[Path]) -> None:
    """Though the language is detected first, and temperatures are fallen back to."""
    whisper = load_whisper(folder, decoder=True)
    speech = Speech(whisper, head(), tokenizer(folder))
    plain = windows_of(whisper, speech, [Recording(sounds[2])], every=2.0, text={"language": "en"})
    assert len(plain) >= 3
    assert plain == [1] * len(by_window(folder, sounds[2], {"language": "en"}))
    torch.manual_seed(0)
    fallen = {"temperature": (0.0, 0.2, 0.4), "logprob_threshold": 0.0, "compression_ratio_threshold": 0.01}
    assert windows_of(whisper, speech, [Recording(sounds[0])], every=2.0, text=fallen) == [1] * len(
        by_window(folder, sounds[0], fallen)
    )


def by_window(folder: Path, sound: Path, options: dict[str, Any]) -> list[int]:
    """Where transformers' windows begin."""
    starts: list[int] = []
    torch.manual_seed(0)
    by_transformers(folder, [sound], monitor_progress=lambda seek: starts.append(int(seek[0, 0])), **options)
    return starts


def test_no_decoder_runs_and_none_is_needed_for_tags_alone(folder: Path, sounds: list[Path]) -> None:
    whisper = load_whisper(folder)
    assert whisper.generator is None
    (found,) = Speech(whisper, head(seconds=10.0)).tag([Recording(sounds[0])])
    assert found.text is None
    assert [(one.start, one.end) for one in found.spans] == [(0.0, 7.3)]
    assert windows_of(whisper, Speech(whisper, head()), [Recording(sounds[2])]) == [1, 1, 1]  # 75.5 s


@pytest.mark.parametrize("every", [None, 10.0])
@pytest.mark.parametrize("known", [{}, {"unit": 10, "blocks": (1, 0)}], ids=["all", "some"])
def test_tags_of_a_window_are_the_heads_on_its_pooled_blocks(
    folder: Path, sounds: list[Path], every: float | None, known: dict[str, Any]
) -> None:
    """Of 21 s in windows of 10 s, as features are extracted for training. The last one is of a second, and silence
    counts unless spans of sound are asked for."""
    whisper, judge = load_whisper(folder), head(seconds=10.0, **known)
    unit = judge.unit
    waveform = soundfile.read(sounds[1], dtype="float32")[0]
    (found,) = Speech(whisper, judge).tag([Recording(sounds[1])], every=every)
    for number, span in enumerate(found.spans):
        part = waveform[number * 160_000 : (number + 1) * 160_000]
        blocks = torch.stack(whisper(short([part], 80, 10.0)).blocks, 1)
        blocks = blocks[:, list(judge.blocks)] if judge.blocks else blocks
        steps = -(-len(part) // 320) if every else 500
        units = [blocks[:, :, at : min(at + unit, steps)].mean(2) for at in range(0, steps, unit)]
        with torch.no_grad():
            expected = judge.tagger(torch.stack(units, 2)).sigmoid()[0]
        assert_close(span.probabilities, expected.numpy(), 1e-5)
    assert [span.end for span in found.spans] == [10.0, 20.0, 21.0]


def test_tags_beside_text_are_of_the_same_pass(folder: Path, sounds: list[Path]) -> None:
    """A short file's first window is the whole of it, at 30 s: text or not."""
    judge = head(seconds=30.0)
    speech = Speech(load_whisper(folder, decoder=True), judge, tokenizer(folder))
    (alone,) = speech.tag([Recording(sounds[0])], every=4.4)
    (beside,) = speech.tag([Recording(sounds[0])], every=4.4, text={})
    assert [(one.start, one.end) for one in beside.spans] == [(0.0, 4.4), (4.4, 7.3)]
    for one, other in zip(alone.spans, beside.spans):
        assert_close(one.probabilities, other.probabilities, 1e-5)


@pytest.mark.parametrize("text", [None, {}])
def test_files_at_once_are_the_files_one_by_one(folder: Path, sounds: list[Path], text: dict | None) -> None:
    speech = Speech(load_whisper(folder, decoder=True), head(seconds=10.0), tokenizer(folder))
    together = list(speech.tag([Recording(path) for path in sounds], every=2.0, text=text))
    for path, one in zip(sounds, together):
        (alone,) = speech.tag([Recording(path)], every=2.0, text=text)
        assert (one.path, one.text, one.words) == (path, alone.text, alone.words)
        assert len(one.spans) == -(-Recording(path).samples // 32_000)
        for mine, other in zip(one.spans, alone.spans, strict=True):
            assert (mine.start, mine.end) == (other.start, other.end)
            assert_close(mine.probabilities, other.probabilities, 1e-5)


def test_a_window_of_no_whole_units_is_cut_to_them(folder: Path, sounds: list[Path]) -> None:
    (found,) = Speech(load_whisper(folder), head(seconds=5.0)).tag([Recording(sounds[0])])
    assert [(span.start, span.end) for span in found.spans] == [(0.0, 4.8), (4.8, 7.3)]
    (short,) = Speech(load_whisper(folder), head(seconds=5.0, unit=300)).tag([Recording(sounds[0])])
    assert [(span.start, span.end) for span in short.spans] == [(0.0, 6.0), (6.0, 7.3)]


@pytest.mark.parametrize("text", [None, {"language": "en"}], ids=["tags", "text"])
def test_a_few_samples_behind_the_last_span_are_none(folder: Path, text: dict[str, Any] | None, tmp_path: Path) -> None:
    """A file of 5 s at 44.1 kHz often has some more at 16 kHz; silence would be tagged behind them."""
    whisper = load_whisper(folder, decoder=text is not None)
    speech = Speech(whisper, head(seconds=5.0, unit=10), tokenizer(folder) if text else None)
    wave = np.random.default_rng(0).normal(0, 0.1, 6 * 16000)
    for samples, ends in ((1000, [0.0625]), (80_016, [5.0]), (81_599, [5.0]), (81_600, [5.0, 5.1])):
        soundfile.write(tmp_path / "wave.wav", wave[:samples], 16000, "FLOAT")
        (told,) = speech.tag([Recording(tmp_path / "wave.wav")], text=text)
        assert [span.end for span in told.spans] == ends
        if text is None:
            assert windows_of(whisper, speech, [Recording(tmp_path / "wave.wav")]) == [1] * len(ends)


def test_a_time_between_units_is_refused(folder: Path, sounds: list[Path]) -> None:
    with pytest.raises(RecipeError, match=r"multiple of 0\.4 s for this model, not 0\.5 s"):
        list(Speech(load_whisper(folder), head()).tag([Recording(sounds[0])], every=0.5))


def test_what_is_heard_adds_up_to_the_files(folder: Path, sounds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """And text alone gathers no features, of which a long file has many."""
    monkeypatch.setattr(Units, "add", lambda *window: pytest.fail("features were gathered"))
    heard: list[float] = []
    speech = Speech(load_whisper(folder, decoder=True), None, tokenizer(folder))
    (found,) = speech.tag([Recording(sounds[2])], text={"language": "en"}, heard=heard.append)
    assert sum(heard) == pytest.approx(75.5, abs=0.02)
    assert found.spans == ()
    assert found.text
