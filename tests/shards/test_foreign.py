"""Third-party tars, used where and as they are."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gamut.audio.decode import encode_flac, read_audio, to_int16_16k
from gamut.audio.members import decode_member, read_member, stated_samples
from gamut.data.reader import Reader
from gamut.errors import AudioError, ShardError
from gamut.shards import Index, adopt
from gamut.shards.__main__ import main
from gamut.shards.foreign import Taking, scan_foreign
from gamut.shards.labels import LabelSource, class_table
from gamut.shards.tars import Tars

from .conftest import encode

FORMS = {
    "flac": ("FLAC", "PCM_24"), "wav": ("WAV", "FLOAT"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", None),
    "WAV": ("WAV", "PCM_16"), "left.flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS"),
}  # fmt: skip


def sound(number: int, ending: str) -> bytes:
    """Half a second or less of noise; every number has its own rate, channels and length."""
    rng = np.random.default_rng(number)
    rate = 48000 if ending == "opus" else (8000, 16000, 22050, 44100, 48000)[number % 5]
    shape = (int(rate * (0.2 + 0.05 * (number % 5))), 1 + number % 2)
    return encode(rng.uniform(-0.5, 0.5, size=shape), rate, *FORMS[ending])


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars with the same keys, of every form, labels before or behind the audio, and things that are not clips."""
    folder = tmp_path_factory.mktemp("theirs") / "noises"
    for shard in range(2):
        members: list[tuple[str, bytes]] = [("README", b"no key"), ("__meta__.json", b"{}")]
        for number, ending in enumerate(FORMS):
            labels = json.dumps({"tags": ["rain", f"kind {number % 3}"], "caption": "x"}).encode()
            clip = (f"a/{'long' * 40 if number == 2 else 'clip'}{number}", sound(10 * shard + number, ending))
            both = [(f"{clip[0]}.{ending}", clip[1]), (f"{clip[0]}.json", labels)]
            members += both if number % 2 else both[::-1]
            members.append((f"{clip[0]}.jpg", b"picture"))
        write_tar(folder / f"{shard:05d}.tar", members, tarfile.GNU_FORMAT if shard else tarfile.PAX_FORMAT)
    return folder


def index(where: Path, out: Path, *words: str) -> Index:
    assert main(["index", str(where), "--out", str(out), "--workers", "1", *words]) == 0
    return Index.open(out)


def test_every_form_becomes_the_samples_that_conversion_would_give(theirs: Path, tmp_path: Path, capsys) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in theirs.iterdir()}
    made = index(theirs, tmp_path / "index")
    printed = capsys.readouterr().out
    assert "14 clips" in printed
    assert "6 flac" not in printed
    assert "14 .jpg members" in printed
    assert "4 members without a key" in printed
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in theirs.iterdir()} == before
    assert (made.name, made.labels) == ("noises", ("kind 0", "kind 1", "kind 2", "rain"))
    assert len(np.unique(made.clip_id)) == len(made) == 14  # though keys repeat over the tars
    assert made.key(0) == made.key(7) == "a/clip0"
    again = pickle.loads(pickle.dumps(made))
    with Reader(again) as reader:
        for row in range(len(made)):
            number, ending = row % 7, list(FORMS)[row % 7]
            expected, _ = to_int16_16k(*read_audio(sound(10 * (row // 7) + number, ending)))
            np.testing.assert_array_equal(reader.decode(row), expected)
            assert made.samples[row] == len(expected)
            assert made.codecs[made.codec[row]] == {"opus": "ogg", "WAV": "wav", "left.flac": "flac"}.get(
                ending, ending
            )
            assert [made.labels[label] for label in made.label_ids(row)] == ["rain", f"kind {number % 3}"]
    assert main(["verify", str(tmp_path / "index"), "--workers", "1"]) == 0


def test_in_place_out_of_place_and_fast_are_one_set(theirs: Path, tmp_path: Path) -> None:
    there = tmp_path / "noises"
    there.mkdir()
    for tar in theirs.glob("*.tar"):
        os.link(tar, there / tar.name)
    assert main(["index", str(there), "--workers", "2"]) == 0
    apart, fast = index(theirs, tmp_path / "apart"), index(theirs, tmp_path / "fast", "--fast")
    assert Index.open(there).fingerprint == apart.fingerprint == fast.fingerprint
    assert Index.open(there).shard_path(1) == there / "00001.tar"
    assert apart.shard_path(1) == theirs / "00001.tar"


def test_tars_of_a_relative_folder_are_found_from_anywhere(theirs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(theirs.parent)
    index(Path(theirs.name), tmp_path / "index", "--fast")
    monkeypatch.chdir(tmp_path)
    assert Index.open("index").shard_path(1) == theirs / "00001.tar"


def test_a_set_with_tars_of_its_own_keeps_its_index(theirs: Path, shards: Path, pristine: Path, capsys) -> None:
    before = Index.open(shards).fingerprint
    for where in (theirs, pristine):
        assert main(["index", str(where), "--out", str(shards), "--workers", "1"]) == 2
        assert f"{shards} holds other tars" in capsys.readouterr().err
    assert Index.open(shards).fingerprint == before
    assert not (shards / "index" / "scans").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--name", "x"],
        ["--labels", "cls"],
        ["--classes", "x"],
        ["--fast"],
        ["--largest-mb", "3"],
        ["--on-error", "stop"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_for_tars_of_others_is_refused_for_ours(shards: Path, words: list[str], capsys) -> None:
    assert main(["index", str(shards), "--workers", "1", *words]) == 2
    assert f"already hold what {words[0]} would set" in capsys.readouterr().err


def test_headers_tell_the_length_that_decoding_gives() -> None:
    for number, ending in enumerate(FORMS):
        payload = sound(number, ending)
        # Of floats the samples alone show whether they are in [-1, 1].
        assert stated_samples(payload) == (None if "FLOAT" in FORMS[ending] else len(read_member(payload)[0]))
    for rate in (8000, 11025, 12345, 32000, 96000, 192000):
        for samples in (1, 2, 7, 441, 5003):
            payload = encode(np.zeros(samples), rate)
            try:
                length = len(read_member(payload)[0])
            except AudioError:
                assert stated_samples(payload) is None
            else:
                assert stated_samples(payload) == length


def test_our_own_flac_takes_the_short_way_to_the_same_samples() -> None:
    waveform = (np.random.default_rng(0).normal(size=5000) * 9000).astype(np.int16)
    payload = encode_flac(waveform)
    np.testing.assert_array_equal(decode_member(payload, 5000), waveform)
    np.testing.assert_array_equal(read_member(payload)[0], waveform)
    with pytest.raises(AudioError, match=r"5000"):
        decode_member(payload, 4999)


def test_damage_is_left_out_by_name_and_counted(tmp_path: Path, capsys) -> None:
    good, long = sound(1, "wav"), sound(3, "wav")
    bomb = bytearray(sound(2, "flac"))
    bomb[18:26] = (int.from_bytes(bomb[18:26], "big") | 1 << 35).to_bytes(8, "big")
    write_tar(tmp_path / "set" / "x.tar", [
        ("good.wav", good), ("../../etc/passwd.wav", good), ("cut.wav", good[:-999]), ("none.ogg", b""),
        ("text.mp3", b"hello" * 99), ("good.flac", good), ("bomb.flac", bytes(bomb)), ("odd\n.wav", good),
        ("labels.wav", good), ("labels.json", b'{"label": {"a": 1}}'), ("rot.wav", good), ("rot.json", b'{"label": "a'),
        ("deep.wav", good), ("deep.json", b"[" * 200_000), ("alone.json", b"{}"), ("evil.pkl", b"cos\nsystem\n"),
        ("\udcff.wav", good), ("big.wav", bytes(2 << 20)), ("plain.wav", long),
    ])  # fmt: skip
    made = index(tmp_path / "set", tmp_path / "index", "--largest-mb", "1")
    assert [made.key(row) for row in range(len(made))] == ["good", "../../etc/passwd", "plain"]
    content = json.loads((tmp_path / "index" / "index" / "quarantine.json").read_text())
    assert {one["file"]: one["reason"] for one in content["files"]} == {
        "x.tar/cut.wav": "truncated", "x.tar/none.ogg": "empty", "x.tar/text.mp3": "unreadable",
        "x.tar/good.flac": "duplicate", "x.tar/bomb.flac": "too_long", "x.tar/'odd\\n.wav'": "name",
        "x.tar/labels.wav": "labels", "x.tar/rot.wav": "labels", "x.tar/deep.wav": "labels",
        "x.tar/\\udcff.wav": "name", "x.tar/big.wav": "too_large",
    }  # fmt: skip
    assert content["ignored"] == {".pkl members": 1, "labels without audio": 1}
    assert "left out 11 unusable files" in capsys.readouterr().out
    assert main(["index", str(tmp_path / "set"), "--out", str(tmp_path / "other"), "--on-error", "stop"]) == 2


@pytest.mark.parametrize("where", ["between members", "in a header", "in a payload", "damaged header"])
def test_a_cut_tar_is_reported_and_gives_what_is_before_the_cut(tmp_path: Path, where: str, capsys) -> None:
    whole = write_tar(tmp_path / "set" / "a.tar", {f"{n}.wav": sound(n, "wav") for n in range(4)}).read_bytes()
    write_tar(tmp_path / "set" / "b.tar", {"0.wav": sound(9, "wav")})
    header = whole.index(b"2.wav")
    cut = {"between members": header, "in a header": header + 300, "in a payload": header + 2000}.get(where, len(whole))
    broken = whole[:cut] if cut < len(whole) else whole[:header] + b"3" + whole[header + 1 :]
    (tmp_path / "set" / "a.tar").write_bytes(broken)
    made = index(tmp_path / "set", tmp_path / "index")
    assert [made.key(row) for row in range(len(made))] == ["0", "1", "0"]
    assert "damaged: " in (error := capsys.readouterr().err)
    assert "a.tar" in error
    assert list(json.loads((tmp_path / "index/index/quarantine.json").read_text())["damaged"]) == [
        str(tmp_path / "set" / "a.tar")
    ]


def test_compressed_tars_and_empty_folders_are_one_sentence(tmp_path: Path, capsys) -> None:
    tar = write_tar(tmp_path / "set" / "a.tar", {"0.wav": sound(0, "wav")})
    packed = gzip.compress(tar.read_bytes())
    (tmp_path / "set" / "b.tar.gz").write_bytes(packed)
    assert main(["index", str(tmp_path / "set")]) == 2
    assert "b.tar.gz is compressed" in capsys.readouterr().err
    (tmp_path / "set" / "b.tar.gz").rename(tmp_path / "set" / "b.tar")
    assert main(["index", str(tmp_path / "set"), "--workers", "1"]) == 2
    assert "is compressed with gzip" in capsys.readouterr().err
    write_tar(tmp_path / "none" / "a.tar", {"0.txt": b"x"})
    assert main(["index", str(tmp_path / "none")]) == 2
    assert "No clip in the tars" in capsys.readouterr().err
    assert main(["index", str(tmp_path / "absent")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_labels_come_from_where_one_says(tmp_path: Path) -> None:
    clip = sound(1, "wav")
    members = {"a.wav": clip, "a.json": b'{"target": 2, "meta": {"who": ["x", "y"]}}', "a.cls": b"0\n", "a.txt": b"dog"}
    write_tar(tmp_path / "set" / "a.tar", members | {"b.wav": clip, "b.cls": b"1"})
    for source, table, labels in (
        ("auto", ["(class 0, without clips)", "1", "2"], [[2], [1]]),
        ("json:meta.who", ["x", "y"], [[0, 1], []]),
        ("cls", ["0", "1"], [[0], [1]]),
        ("txt", ["dog"], [[0], []]),
        ("none", [], [[], []]),
    ):
        made = index(tmp_path / "set", tmp_path / source, "--labels", source)
        assert list(made.labels) == table
        assert [made.label_ids(row).tolist() for row in range(2)] == labels
    names = tmp_path / "names"
    names.write_text("cat\ndog\nbird\n")
    made = index(tmp_path / "set", tmp_path / "named", "--classes", str(names))
    assert (made.labels, made.label_ids(0).tolist()) == (("cat", "dog", "bird"), [2])
    made = index(tmp_path / "set", tmp_path / "named", "--labels", "txt", "--classes", str(names))
    assert made.label_ids(0).tolist() == [1]
    assert main(["index", str(tmp_path / "set"), "--labels", "pickle"]) == 2


def test_a_class_table_is_of_names_or_numbers() -> None:
    assert class_table(["b", "3", "a"]) == (["3", "a", "b"], {"3": 0, "a": 1, "b": 2})
    assert class_table([]) == ([], {})
    with pytest.raises(ShardError, match=r"20240131"):
        class_table(["20240131"])
    with pytest.raises(ShardError, match=r"1 labels of the clips, such as 'c'"):
        class_table(["a", "c"], ["a", "b"])
    for content in (b'{"label": true}', b'{"label": 1.5}', b'{"label": [null]}', b'{"label": ""}', b"{", b"\xff"):
        with pytest.raises(ValueError):
            LabelSource.parse("json").read({"json": content})
    assert LabelSource.parse("auto").read({"json": b'{"label": 3.0}'}).names == ("3",)


def test_indexing_goes_on_behind_the_tars_that_were_finished(theirs: Path, tmp_path: Path, monkeypatch) -> None:
    whole, out = index(theirs, tmp_path / "whole"), tmp_path / "out"
    scanned: list[str] = []
    scan = adopt.scan_foreign

    def counted(file: io.BufferedReader, name: str, taking: object) -> object:
        scanned.append(name)
        if name == "00001.tar" and scanned.count(name) == 1:
            raise KeyboardInterrupt
        return scan(file, name, taking)

    monkeypatch.setattr(adopt, "scan_foreign", counted)
    assert main(["index", str(theirs), "--out", str(out), "--workers", "1"]) == 130
    kept = out / "index" / "scans"
    assert [path.name for path in kept.iterdir()] == ["00000.tar.json"]
    (kept / "00001.tar.json.1.partial").write_bytes(b"{")  # of a writer that was killed outright
    assert index(theirs, out).fingerprint == whole.fingerprint
    assert scanned == ["00000.tar", "00001.tar", "00001.tar"]
    assert not kept.exists()


@pytest.mark.parametrize("change", ["tar", "labels", "rotten"])
def test_what_was_kept_counts_only_for_the_same_tar_taken_the_same_way(theirs: Path, tmp_path: Path, change) -> None:
    here, taking = tmp_path / "here", Taking("noises")
    shutil.copytree(theirs, here)
    tars = Tars.find(str(here))
    kept = adopt._kept(tars, tmp_path, taking)
    with open(here / "00000.tar", "rb") as file:
        found = scan_foreign(file, "00000.tar", taking)
    kept.keep("00000.tar", found, tars.stamp("00000.tar"))
    assert json.dumps(kept["00000.tar"].dump(), default=list) == json.dumps(found.dump(), default=list)
    assert list(kept) == ["00000.tar"]
    if change == "tar":
        os.utime(here / "00000.tar", ns=(1, 1))
    elif change == "labels":
        kept = adopt._kept(tars, tmp_path, Taking("noises", LabelSource.parse("cls")))
    else:
        (tmp_path / "index" / "scans" / "00000.tar.json").write_bytes(b'{"of": {}, "found": 3}')
    assert kept.get("00000.tar") is None
    assert not list(kept)
    kept.remove()
    with pytest.raises(ShardError, match=r"00000\.tar\.json was written a moment ago and cannot be read"):
        kept.again("00000.tar")
