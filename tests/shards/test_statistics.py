"""Mean and standard deviation of the log-mel against torchaudio, in one go and in float64."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib import image
from torchaudio.compliance import kaldi

from gamut.data.reader import Reader
from gamut.files import with_digest
from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.batching import spending
from gamut.shards.plot import set_picture
from gamut.shards.report import print_statistics
from gamut.shards.statistics import Statistics

from .conftest import encode
from .test_foreign import write_tar


def oracle(waveform: np.ndarray) -> torch.Tensor:
    """AST's features: Kaldi's log-mel of the mean-free waveform."""
    audio = torch.from_numpy(waveform.astype(np.float32) / 32768)[None]
    return kaldi.fbank(
        audio - audio.mean(),
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


@pytest.mark.parametrize("workers", ["2", pytest.param("1", marks=pytest.mark.long)])
def test_mean_and_std_are_those_of_all_frames_together(shards: Path, workers: str, capsys) -> None:
    index = Index.open(shards)
    (shards / "index" / "statistics.json").unlink()
    assert index.statistics() is None
    assert main(["stats", str(shards), "--workers", workers]) == 0
    reader = Reader(index)
    frames = torch.cat([oracle(reader.decode(row)) for row in range(len(index))]).double()
    mean, std = index.statistics() or (0.0, 0.0)
    assert mean == pytest.approx(frames.mean().item(), abs=1e-4)
    assert std == pytest.approx(frames.std(correction=0).item(), abs=1e-4)
    content = json.loads((shards / "index" / "statistics.json").read_bytes())
    assert content["frames"] == len(frames)
    assert content["clips"] == 24
    assert content["labels"] == {"bell": 8, "dog": 8, "rain": 8}
    assert sum(content["lengths"].values()) == 24
    assert content["hours"] == pytest.approx(index.samples.sum() / 16000 / 3600)
    assert content["rates"] == {"8000 Hz": 8, "16000 Hz": 8, "44100 Hz": 8}
    assert content["rarest"].keys() == {"bell", "dog", "rain"}
    assert content["unlabelled"] == 0
    assert content["batching"] == [asdict(one) for one in spending(np.asarray(index.samples))]
    out = capsys.readouterr().out
    assert f"mean {mean:.6f}" in out
    for told in ("bell", "44100 Hz", "in order, batches of 96", "exact fill"):
        assert told in out
    assert image.imread(shards / "index" / "statistics.png").shape[1] > 1000
    assert main(["stats", str(shards), "--workers", workers, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == content


def test_the_same_bits_whatever_the_workers(shards: Path) -> None:
    path = shards / "index" / "statistics.json"
    found = set()
    for workers in ("1", "2"):
        assert main(["stats", str(shards), "--workers", workers]) == 0
        found.add(path.read_bytes())
    assert len(found) == 1


def test_clips_shorter_than_a_window_and_silence_are_counted(tmp_path: Path) -> None:
    for name, samples in (("one", 1), ("short", 399), ("window", 400), ("silence", 16000)):
        path = tmp_path / "src" / "a" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio = np.zeros(samples) if name == "silence" else np.random.default_rng(samples).normal(size=samples) * 0.1
        path.write_bytes(encode(audio, 16000))
    dst = str(tmp_path / "set")
    assert main(["convert", "folder", str(tmp_path / "src"), dst, "--workers", "1"]) == 0
    assert main(["stats", dst]) == 0
    content = json.loads((tmp_path / "set" / "index" / "statistics.json").read_bytes())
    assert content["frames"] == 1 + 1 + 1 + 98
    assert np.isfinite([content["mean"], content["std"]]).all()


def test_statistics_of_other_shards_do_not_count(shards: Path) -> None:
    assert main(["stats", str(shards), "--workers", "1"]) == 0
    assert Index.open(shards).statistics() is not None
    assert main(["index", str(shards), "--workers", "1"]) == 0
    whole = Index.open(shards).statistics()
    assert whole is not None  # the same tars, indexed again
    path = shards / "index" / "statistics.json"
    before = path.read_bytes()
    (shards / "shard-000003.tar").unlink()
    assert main(["index", str(shards), "--workers", "1"]) == 0
    assert Index.open(shards).statistics() not in (None, whole)  # of the shards that are left
    path.write_bytes(before)
    assert Index.open(shards).statistics() is None


def test_damage_is_an_error_that_names_the_clip(shards: Path, capsys) -> None:
    index = Index.open(shards)
    path = index.shard_path(0)
    content = bytearray(path.read_bytes())
    content[int(index.offset[4]) + 50] ^= 1
    path.write_bytes(content)
    assert main(["stats", str(shards), "--workers", "1"]) == 2
    err = capsys.readouterr().err
    assert index.key(4) in err
    assert "gamut.shards verify" in err


def told_by(dst: Path) -> tuple[bytes, bytes]:
    """The bytes of statistics.json, as whoever wrote the index left it, and as `stats` then writes it."""
    path = dst / "index" / "statistics.json"
    before = path.read_bytes()
    path.unlink()
    assert main(["stats", str(dst), "--workers", "1"]) == 0
    return before, path.read_bytes()


def test_convert_tells_in_its_own_pass_what_stats_tells(sounds: Path, tmp_path: Path) -> None:
    src, dst = Path(shutil.copytree(sounds, tmp_path / "src")), tmp_path / "set"
    soundfile.write(src / "dog" / "loud.wav", np.linspace(-1.1, 1.0, 8000), 16000, subtype="FLOAT")
    soundfile.write(src / "dog" / "silent.flac", np.zeros(8000), 22050)
    shutil.copy(src / "dog" / "silent.flac", src / "dog" / "as silent.flac")
    (src / "bell" / "broken.wav").write_bytes(b"RIFF")
    assert main(["convert", "folder", str(src), str(dst), "--clips-per-shard", "6", "--workers", "2"]) == 0
    before, after = told_by(dst)
    assert before == after
    content = json.loads(before)
    assert (content["clips"], content["silent"], content["doubles"]["clips"]) == (27, 2, 1)
    assert sum(counts["clipped"] for counts in content["sources"].values()) == 1


def test_a_shard_that_an_earlier_version_wrote_is_read_for_the_statistics(sounds: Path, tmp_path: Path) -> None:
    told = []
    for earlier in (False, True):
        dst = tmp_path / str(earlier)
        words = ["convert", "folder", str(sounds), str(dst), "--clips-per-shard", "7", "--workers", "1", "--name", "x"]
        assert main(words) == 0
        if earlier:
            for part in (dst / "index" / "parts").glob("*.json"):
                content = json.loads(part.read_bytes())
                assert content.pop("heard")
                part.write_text(json.dumps(with_digest({k: v for k, v in content.items() if k != "digest"})))
            (dst / "index" / "statistics.json").unlink()
            assert main(words) == 0
        told.append((dst / "index" / "statistics.json").read_bytes())
    assert told[0] == told[1]


@pytest.mark.parametrize("rate", [8000, 16000])
def test_index_tells_in_its_own_pass_what_stats_tells(tmp_path: Path, rate: int, capsys) -> None:
    rng = np.random.default_rng(rate)
    for tar in range(2):
        sounds = {f"{n}.{'flac' if n % 2 else 'wav'}": rng.normal(scale=0.1, size=3000 + 700 * n) for n in range(5)}
        sounds["loud.wav"] = np.linspace(-1.1, 1.0, 8000)
        members = {
            name: encode(audio, rate, "FLAC" if name.endswith("flac") else "WAV", "FLOAT" if "loud" in name else None)
            for name, audio in sounds.items()
        }
        write_tar(tmp_path / "tars" / f"{tar}.tar", {**members, "broken.flac": b"fLaC"})
    dst = tmp_path / "set"
    assert main(["index", str(tmp_path / "tars"), "--out", str(dst), "--workers", "1"]) == 0
    before, after = told_by(dst)
    assert before == after
    content = json.loads(before)
    assert (content["clips"], content["unusable"]) == (12, {".flac": {"unreadable": 2}})
    assert sum(counts["clipped"] for counts in content["sources"].values()) == 2


def test_index_fast_has_no_statistics_and_says_how_to_make_them(tmp_path: Path, capsys) -> None:
    write_tar(tmp_path / "tars" / "0.tar", {"a.wav": encode(np.random.default_rng(0).normal(size=8000) * 0.1, 16000)})
    dst = tmp_path / "set"
    assert main(["index", str(tmp_path / "tars"), "--out", str(dst), "--fast", "--workers", "1"]) == 0
    assert f"no statistics yet, since --fast decodes no clip: python -m gamut.shards stats {dst}" in (
        capsys.readouterr().out
    )
    assert Index.open(dst).statistics() is None


def test_many_classes_and_none_are_told_and_drawn(capsys) -> None:
    labels = {f"class number {n}": n * n for n in range(527)}
    some = Statistics(
        index="x", clips=9, hours=1.0, shortest=1.0, median=2.0, longest=3.0, lengths={"1-2 s": 9},
        rates={"unknown": 9}, labels=labels, rarest={"class number 0": 0}, unlabelled=4,
        batching=spending(np.array([16000, 160000])), frames=10, mean=-4.0, std=4.0,
    )  # fmt: skip
    odd = dict.fromkeys(("[noise]", "[/b]", ":smile:", "$ and $", r"A$\x$AP"), 2)
    for one in (
        some,
        replace(some, labels=odd),
        replace(some, labels={}, rarest={}),
        replace(some, labels=dict(list(labels.items())[:8])),
    ):
        print_statistics(one, Path())
        text = capsys.readouterr().out
        assert "4 clips have no label" in text
        assert all(name in text for name in odd) == (one.labels is odd)
        assert ("the rarest classes" in text) == (len(one.labels) == 527)
        assert ("the 20 most frequent of 527 classes" in text) == (len(one.labels) == 527)
        set_picture(one, "$some$").savefig(io.BytesIO(), format="png", dpi=40)


def test_how_clips_were_read_is_told_by_kind_of_file(tmp_path: Path, capsys) -> None:
    noise, src, dst = np.random.default_rng(0).normal(scale=0.1, size=16000), tmp_path / "src" / "a", tmp_path / "set"
    src.mkdir(parents=True)
    for name, content in {
        "plain.wav": encode(noise, 16000),
        "peaks.wav": encode(np.where(np.arange(16000) % 100, noise, 1.5), 16000, "WAV", "FLOAT"),
        "short.WAV": encode(noise[:2799], 16000),
        "just.wav": encode(noise[:2800], 16000),
        "other.wav": encode(noise, 44100),
        "song.mp3": encode(noise, 16000, "MP3"),
        "cut.wav": encode(noise, 16000)[:5000],
        "text.flac": b"no sound",
    }.items():
        (src / name).write_bytes(content)
    assert main(["convert", "folder", str(src.parent), str(dst), "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["stats", str(dst), "--workers", "2"]) == 0
    content = json.loads((dst / "index" / "statistics.json").read_bytes())
    assert content["sources"] == {
        "mp3, 16000 Hz, by soundfile": {"clips": 1, "clipped": 0, "padded": 0},
        "wav, 16000 Hz, by soundfile": {"clips": 4, "clipped": 1, "padded": 1},
        "wav, 44100 Hz, by soundfile": {"clips": 1, "clipped": 0, "padded": 0},
    }
    assert content["unusable"] == {".flac": {"unreadable": 1}, ".wav": {"truncated": 1}}
    out = capsys.readouterr().out
    assert "how the clips were read" in out
    assert "left out as unusable: .wav: 1 truncated" in out


def test_how_members_of_others_are_read_is_told_too(tmp_path: Path, capsys) -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=16000)
    (tmp_path / "theirs").mkdir()
    with tarfile.open(tmp_path / "theirs" / "0.tar", "w") as tar:
        for name, content in {
            "plain.wav": encode(noise, 44100),
            "peaks.wav": encode(np.where(np.arange(16000) % 100, noise, 1.5), 16000, "WAV", "FLOAT"),
            "short.flac": encode(noise[:2799], 16000, "FLAC"),
            "song.mp3": encode(noise, 16000, "MP3"),
            "cut.wav": encode(noise, 16000)[:5000],
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for fast in ([], ["--fast"]):
        assert main(["index", str(tmp_path / "theirs"), "--workers", "1", *fast]) == 0
        assert main(["stats", str(tmp_path / "theirs"), "--workers", "1"]) == 0
        content = json.loads((tmp_path / "theirs" / "index" / "statistics.json").read_bytes())
        assert content["sources"] == {
            "flac, 16000 Hz, by soundfile": {"clips": 1, "clipped": 0, "padded": 1},
            "mp3, 16000 Hz, by soundfile": {"clips": 1, "clipped": 0, "padded": 0},
            "wav, 16000 Hz, by soundfile": {"clips": 1, "clipped": 1, "padded": 0},
            "wav, 44100 Hz, by soundfile": {"clips": 1, "clipped": 0, "padded": 0},
        }
        assert content["rates"] == {"16000 Hz": 3, "44100 Hz": 1}
        assert content["unusable"] == {".wav": {"truncated": 1}}
