"""Speech among sounds: mixtures at the stated ratio, word errors pooled, a class by its cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.analyse import transcribe
from gamut.analyse.__main__ import main
from gamut.analyse.noise import Material, material, measure, mixed, normal, plain, word_errors
from gamut.errors import CheckpointError, RunError, ShardError
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.shards.read import texts
from tests.shards.layouts import sound

RATIOS = [-10.0, 0.0, 20.0]


def level(x: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_mixture_has_the_ratio_that_was_asked_for(ratio: float) -> None:
    random = np.random.default_rng(0)
    speech, noise = (random.normal(size=8000).astype(np.float32) * scale for scale in (0.1, 0.03))
    added = mixed(speech, noise, ratio) - speech
    assert level(speech) - level(added) == pytest.approx(ratio, abs=0.01)
    np.testing.assert_array_equal(mixed(speech, 0 * noise, ratio), speech)  # a silent sound


def test_text_is_compared_in_upper_case_without_punctuation() -> None:
    assert plain(" Mr. Quilter's  manner -- 'tis, well: done_!") == "MR QUILTERS MANNER TIS WELL DONE"
    assert plain("'Hello,' she said: don\N{RIGHT SINGLE QUOTATION MARK}t ''!") == "HELLO SHE SAID DONT"
    wrong, words = word_errors(["One too three.", "for"], ["one, too tree", ""], plain)
    assert (wrong, words) == (2, 4)  # pooled over words


@pytest.mark.parametrize(
    ("spoken", "heard", "wrong", "words"),
    [
        ("SEVEN", " 7.", 0, 1),
        ("ONE", "1", 0, 1),
        ("SEVEN TWO ONE", "7, 2, 1.", 0, 3),
        ("SEVEN TWO ONE", "721", 0, 3),
        ("ZERO ZERO ONE", "0 0 one", 0, 3),
        ("SEVEN TWO ONE", "Seven, two, one, nine.", 1, 3),
        ("SEVEN TWO ONE", "7 3", 2, 3),
        ("SEVEN TWO", "Seven, too.", 1, 2),
        ("ZERO ZERO ONE", "0-0-1", 0, 3),
        ("ZERO ZERO ONE", "001", 0, 3),
        ("ZERO ZERO ONE", "0, 1.", 1, 3),
        ("NINE OH", "90", 0, 2),
        ("HE CAN'T COME AT SEVEN", "He can not come, um, at 7.", 0, 6),
        ("HE CAME TWENTY ONE TIMES", "he came 21 times", 0, 4),
    ],
)
def test_text_is_compared_as_whispers_authors_do(spoken: str, heard: str, wrong: int, words: int) -> None:
    assert word_errors([spoken], [heard]) == (wrong, words)


def test_other_languages_have_no_english_numbers() -> None:
    assert normal(" Sieben, ONE!", english=False).split() == ["sieben", "one"]


def voice(number: int, samples: int = 1600) -> np.ndarray:
    return np.full(samples, 0.001 * (number + 1), np.float32)


def recogniser(sounds: list[np.ndarray]) -> list[str]:
    """Hears `word K` of voice K where the first sample is still nearly the voice's."""
    heard = []
    for one in sounds:
        number = round(float(one[0]) / 0.001) - 1
        heard.append(f"word {number}" if abs(float(one[0]) / 0.001 - 1 - number) < 0.2 else "word")
    return heard


def test_errors_are_counted_by_ratio_and_class() -> None:
    """A loud class spoils the second word at 0 dB and below, a silent one nothing."""
    speech = [voice(number) for number in range(4)]
    loud = np.random.default_rng(1).uniform(0.6, 1.0, 700).astype(np.float32)
    parts = Material(speech, [f"word {n}" for n in range(4)], [[loud], [np.zeros(900, np.float32)]], ["loud", "silent"])
    told: list[tuple[float, float]] = []
    found = measure(parts, [-10.0, 60.0], recogniser, batch=3, told=lambda *one: told.append(one))
    assert found.clean == (0, 8)
    assert found.words.tolist() == [[8, 8], [8, 8]]
    assert found.wrong[0, 0] >= 3
    assert found.wrong[1].tolist() == [0, 0]
    assert found.wrong[0, 1] == 0
    assert found.silent == 8
    assert [ratio for ratio, _ in told] == [-10.0, 60.0]
    assert found.rates[0] == pytest.approx(found.wrong[0].sum() / 16)
    with pytest.raises(RunError, match="1 texts for 3 sounds"):
        measure(parts, [0.0], lambda sounds: ["one"], batch=3)


def test_a_sound_is_tiled_or_cut_to_the_speech() -> None:
    parts = Material([voice(0, 10), voice(0, 3)], ["a", "b"], [[np.arange(4.0), np.arange(8.0)]], ["x"])
    assert parts.noise(0, 0).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert parts.noise(0, 1).tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Spoken words (labels), utterances with transcripts, and sounds of two classes."""
    folder = tmp_path_factory.mktemp("noise")
    for word in ("one", "two"):
        for speaker in range(3):
            sound(folder / "words" / word / f"{speaker:08x}_nohash_0.wav", 0.2, seed=speaker)
    for table in ("validation", "testing"):
        (folder / "words" / f"{table}_list.txt").write_text("")
    chapter = folder / "LibriSpeech" / "test-clean" / "61" / "70968"
    chapter.mkdir(parents=True)
    lines = []
    for number in range(3):
        wave = np.random.default_rng(number).normal(size=3200 * (number + 1)) * 0.1
        soundfile.write(chapter / f"61-70968-{number:04d}.flac", wave, 16000)
        lines.append(f"61-70968-{number:04d} HE SAID {number}")
    (chapter / "61-70968.trans.txt").write_text("\n".join(lines) + "\n")
    for label in ("dog", "rain"):
        for number in range(3):
            sound(folder / "sounds" / label / f"{number}.wav", 0.3, seed=number)
    made = []
    for name, converter, source in (
        ("words", "speechcommands", "words"), ("speech", "librispeech", "LibriSpeech"), ("sound", "folder", "sounds"),
    ):  # fmt: skip
        made.append(folder / f"{name}-set")
        line = ["convert", converter, str(folder / source), str(made[-1]), "--workers", "1", "--clips-per-shard", "2"]
        assert shards(line) == 0
    return made[0], made[1], made[2]


def test_what_is_said_comes_from_the_transcript_or_the_label(sets: tuple[Path, Path, Path]) -> None:
    words, speech, sounds = (Index.open(folder) for folder in sets)
    said = texts(speech, range(len(speech)))
    assert sorted(said) == ["HE SAID 0", "HE SAID 1", "HE SAID 2"]
    assert texts(speech, [2, 0, 2]) == [said[2], said[0], said[2]]
    found = material(speech, sounds, utterances=2, of_class=2)
    assert len(found.speech) == 2
    assert set(found.text) <= set(said)
    assert (found.labels, [len(of) for of in found.sounds]) == (["dog", "rain"], [2, 2])
    lengths = {text: len(wave) for text, wave in zip(found.text, found.speech)}
    assert all(lengths[f"HE SAID {n}"] == 3200 * (n + 1) for n in range(3) if f"HE SAID {n}" in lengths)
    digits = material(words, sounds, utterances=10, of_class=1)
    assert sorted(digits.text) == ["one"] * 3 + ["two"] * 3
    again = material(words, sounds, utterances=10, of_class=1)
    assert all(np.array_equal(a, b) for a, b in zip(digits.speech, again.speech))
    with pytest.raises(ShardError, match="have no labels"):
        material(words, speech, 2, 2)


def test_the_command_writes_tables_and_pictures(
    sets: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def deaf(path: Path, **options: object) -> transcribe.Transcriber:
        """Hears `one` in all that is loud, and nothing else."""
        return lambda sounds: ["one" if np.abs(s).max() > float(Path(path).name) else "" for s in sounds]

    monkeypatch.setattr(transcribe, "transcriber", deaf)
    layers = {"encoders": [{"labels": ["dog", "rain", "cat"], "f1": [[0.1, 0.2, 0.3], [0.5, 0.75, 1.0]]}]}
    (tmp_path / "layers.json").write_text(json.dumps(layers))
    line = ["noise", str(sets[0]), str(sets[2]), "0.0", "9.0", "--snr=-10,0,20", "--per-class", "2"]
    line += ["--layers", str(tmp_path / "layers.json"), "--out", str(tmp_path / "out")]
    assert main(line) == 0
    content = json.loads((tmp_path / "out" / "noise.json").read_text())
    assert content["snr"] == RATIOS
    assert content["models"]["9.0"]["wrong"] == [[6, 6]] * 3  # it hears nothing
    assert content["models"]["0.0"]["clean"] == [3, 6]  # `one` is right half the time
    assert content["f1"] == {"dog": 0.5, "rain": 0.75}
    table = (tmp_path / "out" / "noise.md").read_text()
    assert "| signal to noise | 0.0 | 9.0 |" in table
    assert "| without noise | 50.0% | 100.0% |" in table
    assert "| dog | 0.50 | " in table
    for picture in ("noise.png", "f1_against_wer.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 5_000
    capsys.readouterr()
    assert main([*line, "--increase=-5,20"]) == 2
    assert "both be in --snr" in capsys.readouterr().err
    for option in ("--per-class", "--batch", "--utterances"):
        assert main([*line, option, "0"]) == 2
        assert f"{option} is 0; it must be 1 or more" in capsys.readouterr().err

    def second_is_gone(path: Path, **options: object) -> transcribe.Transcriber:
        if Path(path).name == "9.0":
            raise CheckpointError("There is no model at 9.0.")
        return deaf(path)

    monkeypatch.setattr(transcribe, "transcriber", second_is_gone)
    assert main(line) == 2
    assert " dB: WER" not in capsys.readouterr().out  # before the first of them is measured
    assert main([*line, "--snr=a"]) == 2
    assert "numbers separated by commas" in capsys.readouterr().err
