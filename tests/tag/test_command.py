"""python -m gamut.tag, on models as runs leave them."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from finetune.objective import Classify
from gamut.data.assemble import assemble
from gamut.errors import CheckpointError, RecipeError
from gamut.export.__main__ import main as export
from gamut.models.tagger import Tagger
from gamut.models.weights import save_weights
from gamut.plan import plan_evaluation
from gamut.recipe import cli, schema
from gamut.recipe.policy import evaluation_policy
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.tag import Recording, load
from gamut.tag.__main__ import main
from gamut.tag.choose import classes_among, read_labels
from gamut.tag.formats import as_table
from gamut.tag.result import Choice, Span, Tagged, Words
from tests.close import assert_close

from .rounds import CLASSES, a_run, leave_round
from .whispers import DIM, LAYERS, talking_whisper


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three sounds, of 5, 3.2 and 12.5 s, and one that is none."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for name, seconds, rate in [("a.wav", 5.0, 16000), ("b.flac", 3.2, 44100), ("c.wav", 12.5, 16000)]:
        time = np.arange(round(seconds * rate)) / rate
        tone = 0.3 * np.sin(2 * np.pi * 300 * (1 + np.floor(time)) * time)
        soundfile.write(folder / name, tone + rng.normal(0, 0.02, len(time)), rate, "PCM_16")
    (folder / "d.wav").write_bytes(b"no sound")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classify]:
    folder, task = a_run(tmp_path_factory.mktemp("runs") / "esc10" / "test-5-seed-0")
    return folder.parent, task


def tags(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, Any]]:
    assert main([*map(str, words), "--format", "json", "--top", str(len(CLASSES))]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("words", [(), ("model.stride=10", "model.distilled=true")], ids=["plain", "overlapping"])
def test_tags_are_what_evaluation_gives(sounds: Path, words: tuple[str, ...], tmp_path: Path, capsys) -> None:
    """Clips converted to shards, planned and scored as fine-tuning does it, beside the files themselves."""
    import shutil

    folder, task = a_run(tmp_path / "run", *words)
    for name in ("a.wav", "b.flac"):
        place = tmp_path / "src" / "some" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sounds / name, place)
    assert shards(["convert", "folder", str(tmp_path / "src"), str(tmp_path / "set"), "--workers", "1"]) == 0
    capsys.readouterr()
    index = Index.open(tmp_path / "set")
    epoch = plan_evaluation(index.table(), evaluation_policy(task.recipe))
    batch = assemble(index, epoch, range(epoch.steps * epoch.packs))
    expected = {index.key(int(row)): p for row, p in zip(batch.row, task.logits(batch).softmax(-1).numpy())}
    for one in tags(capsys, folder, sounds / "a.wav", sounds / "b.flac"):
        (span,) = one["spans"]
        found = {tag["label"]: tag["probability"] for tag in span["tags"]}
        wanted = expected[f"some/{Path(one['file']).stem}"]
        assert [found[name] for name in CLASSES] == pytest.approx(wanted.tolist(), abs=2e-6)
        assert span["start"] == 0
        assert span["end"] == pytest.approx(one["seconds"], abs=1e-4)
        assert list(found) == sorted(found, key=lambda name: -found[name])


def test_spans_cover_a_long_file_whatever_is_tagged_beside_it(sounds: Path, run: tuple[Path, Classify]) -> None:
    folder, _ = run
    model = load(folder)
    together = list(model.tag([Recording(sounds / name) for name in ("a.wav", "b.flac", "c.wav")], every=2.0))
    for name, one in zip(("a.wav", "b.flac", "c.wav"), together):
        (alone,) = model.tag([Recording(sounds / name)], every=2.0)
        assert [span.end for span in one.spans][-1] == pytest.approx(one.seconds, abs=1e-4)
        assert len(one.spans) == -(-one.seconds // 2.0)
        for mine, other in zip(one.spans, alone.spans, strict=True):
            assert_close(mine.probabilities, other.probabilities, 1e-5)
            assert mine.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(RecipeError, match=r"reads spans of 0\.1 to 5\.\d* s, not of 60 s"):
        list(model.tag([Recording(sounds / "a.wav")], every=60.0))


@pytest.mark.parametrize("words", [(), ("model.stride=10", "model.distilled=true")], ids=["plain", "overlapping"])
def test_the_longest_span_is_what_fits_a_pack(sounds: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    """1,206 tokens: 2.4 s at least where patches overlap, 12 s where they do not; a frame more does not fit."""
    own = ("views.frames=null", "views.pad=false", "step.clips=null", "step.tokens=1206")
    folder, task = a_run(tmp_path / "run", *own, *words)
    model = load(folder)
    frames = 1008 if words else 2400
    assert model.seconds == pytest.approx((frames - 1) * 0.01 + 0.025)
    where = task.model.backbone.layout(torch.tensor([frames, frames + 16]), (frames, frames + 16))
    assert where.lengths[0] <= 1206 < where.lengths[1]
    (found,) = model.tag([Recording(sounds / "c.wav")])
    assert found.spans[0].end == pytest.approx(min(model.seconds, 12.5), abs=1e-3)


def test_a_folder_with_a_bad_file_gives_the_others_and_exit_1(sounds: Path, run, tmp_path: Path, capsys) -> None:
    out = tmp_path / "tags.csv"
    assert main([str(run[0]), str(sounds), "--format", "csv", "--top", "1", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "d.wav is not a sound file" in said
    rows = list(csv.DictReader(out.open()))
    assert [Path(row["file"]).name for row in rows] == ["a.wav", "b.flac", *["c.wav"] * 3]
    assert all(row["label"] in CLASSES and 0 < float(row["probability"]) <= 1 for row in rows)
    assert main([str(run[0]), str(sounds / "d.wav")]) == 2
    assert "None of the files" in capsys.readouterr().err


def test_a_folder_says_what_it_passed_over(sounds: Path, run, tmp_path: Path, capsys) -> None:
    for name in ("b/a.wav", "b/notes.txt", "b/c/more.TXT", "b/list.json", "b/README", "z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((sounds / "a.wav").read_bytes() if name.endswith("wav") else b"text")
    assert main([str(run[0]), str(tmp_path)]) == 0
    told = "3 .txt, 1 without an ending, 1 .json (b/README, b/c/more.TXT, b/list.json and 2 more)"
    assert (
        f"{tmp_path}: passed over what is hidden or has no ending of a sound file: {told}\n" in capsys.readouterr().err
    )
    assert main([str(run[0]), str(tmp_path / "b" / "c")]) == 2
    assert "1 .txt (more.TXT)\nerror: There is no sound file in" in capsys.readouterr().err


def test_a_file_without_a_length_is_said_to_be_read_to_its_end(sounds: Path, run, tmp_path: Path, capsys) -> None:
    payload = (sounds / "a.wav").read_bytes()
    at = payload.index(b"data") + 4
    (tmp_path / "x.wav").write_bytes(payload[:at] + bytes(4) + payload[at + 4 :])
    assert main([str(run[0]), str(tmp_path / "x.wav")]) == 0
    assert f"{tmp_path / 'x.wav'} states no length: it was read to its end.\n" in capsys.readouterr().err


def test_a_file_each_of_what_holds_one_recording(sounds: Path, run, tmp_path: Path, capsys) -> None:
    whole = [str(run[0]), str(sounds), "--every", "2", "--top", "1"]
    assert main([*whole, "--format", "srt"]) == 2
    assert "is of one recording, and 4 are given: add --out FOLDER" in capsys.readouterr().err
    out = tmp_path / "labels" / "of"
    assert main([*whole, "--format", "audacity", "--out", str(out)]) == 1  # of d.wav, which is no sound
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "b.txt", "c.txt"]
    lines = [line.split("\t") for line in (out / "a.txt").read_text().splitlines()]
    assert [(float(start), float(end)) for start, end, _ in lines] == [(0, 2), (2, 4), (4, 5)]
    assert {label for *_, label in lines} <= set(CLASSES)
    assert main([*whole, "--format", "csv", "--out", str(out)]) == 1  # it is a folder now: a file each as well
    assert (out / "a.csv").read_text().startswith("file,start,end,label,probability\n")
    assert main([str(run[0]), str(sounds / "a.wav"), "--format", "srt", "--out", str(tmp_path / "one.srt")]) == 0
    assert (tmp_path / "one.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:05,000\n")
    (tmp_path / "a.wav").write_bytes((sounds / "a.wav").read_bytes())
    twice = [str(run[0]), str(sounds / "a.wav"), str(tmp_path / "a.wav"), "--format", "srt", "--out", str(tmp_path)]
    assert main(twice) == 2
    assert "would both be written to" in capsys.readouterr().err
    assert main([*whole, "--format", "srt", "--out", str(tmp_path / "one.srt")]) == 2
    (tmp_path / "one.srt").unlink()
    assert main([*whole, "--format", "srt", "--out", str(tmp_path / "one.srt")]) == 2
    assert (
        capsys.readouterr().err.count("one.srt ends like a file, and 4 recordings need one of --format srt each") == 2
    )
    assert not (tmp_path / "one.srt").exists()


def test_a_table_for_people(sounds: Path, run, capsys) -> None:
    assert main([str(run[0]), str(sounds / "c.wav"), "--every", "2.5", "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert "12.5 s" in shown
    assert "10.0 - 12.5" in shown
    assert sum(name in shown for name in CLASSES) >= 2


def test_the_filter_comes_before_the_best_are_chosen(sounds: Path, run, capsys) -> None:
    whole = tags(capsys, run[0], sounds / "a.wav")[0]["spans"][0]["tags"]
    last = whole[-1]["label"]
    assert main([str(run[0]), str(sounds / "a.wav"), "--classes", last.upper(), "--top", "1", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["spans"][0]["tags"] == whole[-1:]
    assert main([str(run[0]), str(sounds / "a.wav"), "--classes", "Dog,Rainy"]) == 2
    assert "There is no class 'Rainy'." in capsys.readouterr().err


def test_the_best_of_a_span() -> None:
    span = Span(0.0, 1.0, np.array([0.1, 0.7, 0.7, 0.3], np.float32))
    assert span.top(2) == [1, 2]  # ties in order of the classes
    assert span.top(9, least=0.2) == [1, 2, 3]
    assert span.top(1, np.array([0, 3])) == [3]
    each = np.array([0.05, 0.75, 0.7, 0.3], np.float32)
    assert span.top(9, least=each) == [2, 3, 0]
    assert span.top(1, np.array([0, 1, 3]), each) == [3]
    assert classes_among([], CLASSES) is None
    assert classes_among(["speech", "dog"], CLASSES).tolist() == [0, 3]
    assert classes_among(["Dog, rain", ","], CLASSES).tolist() == [0, 1]
    assert classes_among(["male speech, man speaking", "Dog"], ["Dog", "Male speech, man speaking"]).tolist() == [0, 1]


def test_thresholds_that_were_chosen_decide_where_they_are_asked_for(
    sounds: Path, run: tuple[Path, Classify], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a run and in an exported folder; where there are none it is said."""
    file = sounds / "a.wav"
    (one,) = tags(capsys, run[0], file)
    whole = {tag["label"]: tag["probability"] for tag in one["spans"][0]["tags"]}
    assert main([str(run[0]), str(file), "--least", "chosen"]) == 2
    assert "No thresholds were chosen" in capsys.readouterr().err
    recipe, task = run[1].recipe, run[1]
    thresholds = [whole[name] + (0.01 if number % 2 else -0.01) for number, name in enumerate(CLASSES)]
    about = {**task.described(), "labels": CLASSES, "loss": "ce", "thresholds": thresholds}
    recipe = replace(recipe, folds=replace(recipe.folds, test=[[5]], validation=[4]))
    folder = leave_round(tmp_path / "run", recipe, task.model, about)
    assert export([str(folder), "--to", "safetensors", str(tmp_path / "exported")]) == 0
    for place in (folder, tmp_path / "exported"):
        capsys.readouterr()
        assert main([str(place), str(file), "--format", "json", "--least", "chosen"]) == 0
        said = capsys.readouterr()
        assert {tag["label"] for tag in json.loads(said.out)["spans"][0]["tags"]} == set(CLASSES[::2])
        assert "thresholds: of each class, as chosen on validation clips" in said.err


def test_brackets_in_names_are_no_markup() -> None:
    span, words = Span(0.0, 1.0, np.array([0.9, 0.1], np.float32)), Words(0.0, 1.0, "so [/] it [b]goes\\")
    tagged = Tagged(Path("a[red].wav"), 1.0, ("Dog [/b]", "Rain"), (span,), words.text, (words,))
    shown = "".join(as_table([tagged], Choice()))
    for text in ("a[red].wav", "Dog [/b] 90%", "so [/] it [b]goes\\"):
        assert text in shown


def test_a_file_without_ffmpeg_and_one_without_a_tag(sounds: Path, run, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "x.m4a").write_bytes(b"some sound")
    monkeypatch.setenv("PATH", "")
    line = [str(run[0]), str(tmp_path / "x.m4a"), str(sounds / "a.wav"), "--format", "csv", "--least", "1.1"]
    assert main(line) == 1
    said = capsys.readouterr()
    assert "x.m4a can only be read through ffmpeg" in said.err
    assert said.out.splitlines() == ["file,start,end,label,probability"]


def test_a_span_of_a_model_that_refuses_long_clips_is_as_long_as_it_reads(sounds: Path, tmp_path: Path) -> None:
    own = ("views.frames=null", "views.pad=false", "step.clips=null", "step.tokens=1206")
    folder, _ = a_run(tmp_path / "run", *own, "views.max_seconds=1.6", "views.too_long=error")
    (found,) = load(folder).tag([Recording(sounds / "a.wav")], every=1.7)
    assert len(found.spans) == 3


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_whisper(tmp_path_factory.mktemp("models") / "whisper")


def a_head(folder: Path, kind: str = "whisper", layers: int = LAYERS) -> Path:
    """A round of training a head on features, as `finetune/run.py` leaves it."""
    about = schema.Head(kind="wa_tr", dim=None, time_heads=2)
    note = {
        "head": asdict(about), "shape": [layers, 25, DIM], "labels": CLASSES, "loss": "bce",
        "encoder": {"model": {"kind": kind, "precision": "fp32"}, "front": {"seconds": 10.0}},
    }  # fmt: skip
    recipe = cli.parse("finetune", ["whisper_at"]).recipe
    return leave_round(folder, recipe, Tagger(about, layers, DIM, len(CLASSES)), note)


def test_tags_and_text_of_a_whisper(sounds: Path, whisper: Path, tmp_path: Path, capsys) -> None:
    head = a_head(tmp_path / "runs" / "at" / "test-5-seed-0").parent
    words = [sounds / "a.wav", sounds / "c.wav", "--every", "0.8", "--transcribe", "--language", "en"]
    first = tags(capsys, whisper, "--head", head, *words)
    assert tags(capsys, head, "--encoder", whisper, *words) == first
    for one, seconds in zip(first, (5.0, 12.5)):
        assert len(one["spans"]) == -(-seconds // 0.8)
        assert one["text"]
        assert one["segments"]
        assert all(segment["start"] <= segment["end"] for segment in one["segments"])
    assert main([str(whisper), str(sounds / "a.wav"), "--transcribe", "--language", "en", "--format", "json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert "spans" not in alone
    assert alone["text"] == tags(capsys, whisper, "--head", head, sounds / "a.wav", *words[2:])[0]["text"]


def test_a_public_head_takes_its_names_from_a_file(sounds: Path, whisper: Path, tmp_path: Path, capsys) -> None:
    tagger = Tagger(schema.Head(kind="tl_tr", dim=16, layer_heads=8), LAYERS, DIM, len(CLASSES))
    torch.save({f"at_model.{name}": value for name, value in tagger.state_dict().items()}, tmp_path / "head.pth")
    (tmp_path / "names.csv").write_text(
        "index,mid,display_name\n" + "".join(f'{n},/m/{n},"{name}"\n' for n, name in enumerate(CLASSES))
    )
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    assert read_labels(tmp_path / "names.csv") == read_labels(tmp_path / "names.txt") == tuple(CLASSES)
    words = [str(whisper), str(sounds / "a.wav"), "--head", str(tmp_path / "head.pth")]
    assert main(words) == 2
    assert "4 classes, and it does not say which: give --labels FILE" in capsys.readouterr().err
    found = tags(capsys, *words, "--labels", tmp_path / "names.csv")
    assert {tag["label"] for tag in found[0]["spans"][0]["tags"]} == set(CLASSES)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("nothing", "There is nothing that tags at"),
        ("whisper alone", "a Whisper, which has no tags of its own"),
        ("head alone", "say where that is, with --encoder"),
        ("other whisper", "reads 3 layers of 32 dimensions, and this Whisper has 2 of 32"),
        ("hubert", "reads another encoder than Whisper"),
        ("text of a vit", "has no text"),
        ("folder of runs", "is a folder of runs: name one of the runs in it: "),
        ("two rounds", "has 2 rounds. Name one of them"),
        ("old", "does not say which classes"),
        ("no device", "--device gpu is not available here"),
        ("language alone", "--language is of text"),
        ("klingon", "does not know the language 'klingon'; it knows de, en."),
    ],
)
def test_what_does_not_go_together_is_said(
    what: str, sentence: str, sounds: Path, whisper: Path, run: tuple[Path, Classify], tmp_path: Path, capsys
) -> None:
    words: list[str | Path] = [tmp_path]
    if what == "whisper alone":
        words = [whisper]
    elif what in ("head alone", "other whisper", "hubert"):
        head = a_head(tmp_path / "head", "hubert" if what == "hubert" else "whisper", 3 if "other" in what else LAYERS)
        words = [head] if what == "head alone" else [head, "--encoder", whisper]
    elif what == "text of a vit":
        words = [run[0], "--transcribe"]
    elif what == "no device":
        words = [run[0], "--device", "gpu"]
    elif what == "language alone":
        words = [run[0], "--language", "en"]
    elif what == "klingon":
        words = [whisper, "--transcribe", "--language", "klingon"]
    elif what == "two rounds":
        words = [a_run(tmp_path / "x" / name)[0].parent for name in ("test-1-seed-0", "test-2-seed-0")][:1]
    elif what == "folder of runs":
        words = [a_run(tmp_path / "runs" / "pretrained")[0].parent]
    elif what == "old":
        folder, task = a_run(tmp_path / "x")
        words = [leave_round(folder, task.recipe, task.model, {"model": {}})]
    assert main([str(words[0]), str(sounds / "a.wav"), *map(str, words[1:])]) == 2
    error = capsys.readouterr().err
    assert sentence in error.replace("\n", " ")
    assert "Traceback" not in error


def test_without_validation_folds_the_last_epoch_tags_and_a_file_is_what_it_is(sounds: Path, tmp_path: Path) -> None:
    """The best epoch would have been chosen on the very folds that judge it."""
    folder, task = a_run(tmp_path / "run")
    last = load(folder)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.mul_(0.5)
    about = {**task.described(), "labels": CLASSES, "loss": "ce", "best": {"epoch": 3.0}, "chosen_on": "test folds 5"}
    save_weights(folder / "best.safetensors", task.model, about)
    (expected,) = last.tag([Recording(sounds / "a.wav")])
    (again,) = load(folder).tag([Recording(sounds / "a.wav")])
    assert np.array_equal(again.spans[0].probabilities, expected.spans[0].probabilities)
    best = load(folder / "best.safetensors")
    (other,) = best.tag([Recording(sounds / "a.wav")])
    assert np.abs(other.spans[0].probabilities - expected.spans[0].probabilities).max() > 1e-3
    assert "step-00000100" in last.weights
    assert last.weights.endswith("(no validation folds)")
    assert best.weights.endswith("best.safetensors, epoch 3, chosen on test folds 5")


def test_with_validation_folds_the_epoch_that_they_chose_tags(tmp_path: Path) -> None:
    folder, _ = a_run(tmp_path / "run", "folds.test=[[5]]", "folds.validation=[4]")
    assert load(folder).weights.startswith(str(folder / "best.safetensors"))


def test_help_has_an_example(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m gamut.tag runs/esc50/test-1-seed-0 clip.wav" in capsys.readouterr().out


def test_python_reads_like_the_command(sounds: Path, run: tuple[Path, Classify]) -> None:
    with Recording(sounds / "a.wav") as recording:
        (tagged,) = load(run[0]).tag([recording])
    assert tagged.labels == tuple(CLASSES)
    assert tagged.spans[0].top(1)[0] == int(np.argmax(tagged.spans[0].probabilities))
    with pytest.raises(CheckpointError, match="nothing that tags"):
        load(sounds)


def test_a_full_disk_is_one_sentence(sounds: Path, run, capsys) -> None:
    file = next(iter(sorted(sounds.glob("*.wav"))))
    assert main([str(run[0]), str(file), "--format", "json", "--out", "/dev/full"]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"/dev/full cannot be written: No space left on device \(\d{2,} bytes wanted, .* bytes free\)\.", said
    )
