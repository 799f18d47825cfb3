"""Whatever a file holds, reading it gives what it says or an error of ours, in under a second and a gigabyte.

Seeds are fixed: `pytest -s` prints them, and the same ones find the same input again, which the message holds whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import xxhash
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from gamut.audio.decode import decode_flac, encode_flac
from gamut.audio.longest import Longest
from gamut.audio.members import decode_member, read_member, stated_samples
from gamut.data.reader import Reader
from gamut.errors import GamutError
from gamut.features.about import About
from gamut.features.arrays import write_cache
from gamut.features.cache import FeatureCache
from gamut.files import with_digest
from gamut.recipe.load import load_recipe
from gamut.recipe.text import parse_yaml
from gamut.shards import Index
from gamut.shards.foreign import Taking, scan_foreign
from gamut.shards.generations import fingerprint
from gamut.track.checkpoints import verify
from tests.mutations import Trial, altered, changed, dumped
from tests.shards.layouts import convert

SEED = 17
SHORT, LONG = 1_000, 100_000  # the short ones take 20 s of a core together
LIMIT = Longest(10.0)  # as of a recipe of ten seconds


def sound(form: str, samples: int = 2_000, rate: int = 16_000, channels: int = 1, subtype: str | None = None) -> bytes:
    audio = np.random.default_rng(samples).normal(scale=0.1, size=(samples, channels))
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=form, subtype=subtype)
    return file.getvalue()


def fuzz(trial: Trial, examples: int, of: Callable[[bytes], None] | None = None) -> None:
    @seed(SEED)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(min_size=9, max_size=41))
    def run(program: bytes) -> None:
        (of or trial)(program)

    for payload in (*trial.seeds, b""):
        trial.give(payload)
    run()
    print(f"seed {SEED}, {examples} examples: {trial}")


def lengths(short: int = SHORT) -> list[object]:
    return [pytest.param(short, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.long)]


@pytest.fixture
def no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libsndfile does not open would start a process, which has no bounds of ours but those it is given."""
    monkeypatch.setenv("PATH", str(tmp_path))


AUDIO = {
    "flac": lambda: [
        sound("FLAC"), sound("FLAC", 3_000, 44_100, 2), sound("FLAC", 500, 96_000, 8, "PCM_24"),
        encode_flac(np.arange(3_000).astype(np.int16)), sound("OGG", 500),
    ],
    "wav": lambda: [
        sound("WAV"), sound("WAV", 900, 44_100, 2, "FLOAT"), sound("WAVEX", 500, 48_000, 6, "PCM_24"),
        sound("WAV", 900, 8_000, 1, "GSM610"), sound("WAV", 900, 8_000, 1, "IMA_ADPCM"), sound("RF64", 900),
        sound("AIFF", 900), sound("W64", 900), sound("AU", 900), sound("CAF", 900),
    ],
    "mp3": lambda: [
        sound("MP3"), sound("MP3", 4_000, 44_100, 2), sound("MP3", 4_000, 8_000)[400:],
        b"ID3\x04\0\0\0\0\x02\x01" + bytes(257) + sound("MP3", 3_000, 22_050),
    ],
}  # fmt: skip


@pytest.mark.parametrize("examples", lengths())
@pytest.mark.parametrize("kind", AUDIO)
@pytest.mark.usefixtures("no_ffmpeg")
def test_sound(kind: str, examples: int) -> None:
    def read(payload: bytes) -> None:
        for way in (decode_flac, decode_member):
            with contextlib.suppress(GamutError):
                assert len(way(payload, 3_000)) == 3_000
        with contextlib.suppress(GamutError):
            stated_samples(payload, LIMIT)
        waveform, saturated = read_member(payload, LIMIT)
        assert 0 < len(waveform) <= 16_000 * (LIMIT.seconds + 1)
        assert 0 <= saturated <= len(waveform)

    fuzz(Trial(read, AUDIO[kind]()), examples)


@pytest.mark.parametrize("examples", lengths())
@pytest.mark.usefixtures("no_ffmpeg")
def test_tar(examples: int) -> None:
    def tar(form: int) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as made:
            for number in range(3):
                for ending, content in (
                    ("wav", sound("WAV", 100 + number)),
                    ("json", json.dumps({"labels": ["a", f"b{number}"]}).encode()),
                ):
                    member = tarfile.TarInfo(f"{'long' * 40 if number == 1 else 'clip'}{number}.{ending}")
                    member.size = len(content)
                    made.addfile(member, io.BytesIO(content))
        return file.getvalue()

    seeds = [tar(tarfile.GNU_FORMAT), tar(tarfile.PAX_FORMAT)]
    fuzz(Trial(lambda payload: scan_foreign(io.BytesIO(payload), "x.tar", Taking("x", longest=LIMIT)), seeds), examples)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files are in memory."""
    folder = Path("/dev/shm") / f"gamut-fuzz-{tmp_path.name}-{id(tmp_path)}"
    if not folder.parent.is_dir():
        folder = tmp_path / "memory"
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("examples", lengths())
def test_index(examples: int, memory: Path) -> None:
    """Of somebody's making: its digests are those of what it holds."""
    folder = memory / "set"
    for number in range(4):
        (memory / f"{number}.wav").write_bytes(sound("WAV", 1_000 + number))
    (memory / "x.csv").write_text("path,labels,split,n\n0.wav,a;b,u,1\n1.wav,b,v,2\n2.wav,c,v,3\n3.wav,,u,4\n")
    (memory / "y.csv").write_text("filename,onset,offset,event_label\n0.wav,0,0.03,a\n0.wav,0.01,0.05,b\n")
    assert convert("csv", memory / "x.csv", folder, "--events", str(memory / "y.csv")) == 0
    place = folder / "index"
    content = json.loads((place / "index.json").read_bytes())
    arrays = {name: (place / f"{name}.npy").read_bytes() for name in content["arrays"]}

    def read(_: bytes) -> None:
        index = Index.open(folder)
        keys = index.keys()
        index.table()
        index.where({})
        for row in range(min(len(index), 4)):
            assert index.key(row) == keys[row]
            assert len([index.labels[label] for label in index.label_ids(row)]) == len(index.label_ids(row))
            index.events(row)
        with Reader(index, tries=1) as reader:
            for row in range(min(len(index), 2)):
                reader.decode(row)

    trial = Trial(read, [b"whole"])

    def of(program: bytes) -> None:
        now = content
        for name, whole in arrays.items():  # what the example before this one changed
            if (place / f"{name}.npy").stat().st_size != len(whole) or name in touched:
                (place / f"{name}.npy").write_bytes(whole)
        touched.clear()
        which, raw = program[0] % (2 * len(arrays)), program[0] > 250
        if which < len(arrays) and not raw:
            name = list(arrays)[which]
            payload = changed(arrays[name], program[1:])
            (place / f"{name}.npy").write_bytes(payload)
            touched.add(name)
            now = content | {"arrays": content["arrays"] | {name: xxhash.xxh3_64_hexdigest(payload)}}
        elif not raw:
            now = altered(content, program[1:])
        with contextlib.suppress(KeyError, TypeError, ValueError):
            now = with_digest(now | {"fingerprint": fingerprint(now)})
        described = changed(dumped(now), program[1:]) if raw else dumped(now)
        (place / "index.json").write_bytes(described)
        trial.give(described)

    touched: set[str] = set()
    fuzz(trial, examples, of)


@pytest.mark.parametrize("examples", lengths())
def test_manifest_of_features(examples: int, memory: Path) -> None:
    cache = write_cache(memory / "cache", np.random.default_rng(0).normal(size=(5, 2, 3, 4)), per_shard=2)
    names = {path: path.read_bytes() for path in sorted(cache.folder.rglob("*")) if path.is_file()}
    names = {path: whole for path, whole in names.items() if whole and "locks" not in str(path)}
    manifest = cache.folder / "cache.json"

    def read(_: bytes) -> None:
        opened = FeatureCache(memory / "cache")
        assert opened.read([0, 4, 2]).shape == (3, *opened.about.stored)

    trial = Trial(read, [b"whole"])
    last: list[Path] = []

    def of(program: bytes) -> None:
        for path in last:
            path.write_bytes(names[path])
        last.clear()
        if program[0] % 2:
            path = list(names)[program[0] // 2 % len(names)]
            payload = changed(names[path], program[1:])
        else:
            path, now = manifest, altered(json.loads(names[manifest]), program[1:])
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
                now["fingerprint"] = About.of(now["about"]).fingerprint
                now = with_digest(now)
            payload = dumped(now)
        last.append(path)
        path.write_bytes(payload)
        trial.give(payload)

    fuzz(trial, examples, of)


@pytest.mark.parametrize("examples", lengths())
def test_manifest_of_a_checkpoint(examples: int, memory: Path) -> None:
    files = {"state.json": b"{}", "engine/x.pt": bytes(100), "model.safetensors": bytes(range(200))}
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()}
    for name, data in files.items():
        (memory / name).parent.mkdir(exist_ok=True)
        (memory / name).write_bytes(data)
    whole = {"files": entries, "step": 3}

    def read(payload: bytes) -> None:
        (memory / "manifest.json").write_bytes(payload)
        verify(memory)

    trial = Trial(read, [dumped(whole)])

    def of(program: bytes) -> None:
        if program[0] % 4:
            now = altered(whole, program[1:])
            if program[0] % 4 == 3 and isinstance(now, dict) and isinstance(now.get("files"), dict) and now["files"]:
                name = ("/dev/zero", "../x", "a\0b", "", "x" * 300, "/etc/passwd", "engine")[program[1] % 7]
                now["files"][name] = dict(entries["state.json"])
            trial.give(dumped(now))
        else:
            trial(program)

    fuzz(trial, examples, of)


RECIPES = [
    b"defaults: asit_tiny\nfront:\n  mean: &a -4.2\n  std: 1.0\nmodel:\n  depth: 2\n  dim: 64\nviews: {count: 2}\n",
    b"defaults: asit_tiny\noptim: {lr: 1e-3, betas: [0.9, 0.99]}\ndata: x\nseed: 3\nloader: {workers: 1}\n",
    b"defaults: asit_tiny\nsubset: {split: [train]}\nrun: {name: x}\noptions: {a: [1, {b: null}]}\n",
]


@pytest.mark.parametrize("examples", lengths())
def test_recipe_text(examples: int) -> None:
    def read(payload: bytes) -> None:
        parse_yaml(payload.decode("utf-8", "replace"), "x.yaml")

    fuzz(Trial(read, RECIPES), examples)


@pytest.mark.parametrize(
    "examples", [pytest.param(60, id="short"), pytest.param(20_000, id="long", marks=pytest.mark.long)]
)
def test_recipe(examples: int, memory: Path) -> None:
    """Loaded as a whole, which takes 30 ms of one core: so fewer of them."""

    def read(payload: bytes) -> None:
        (memory / "x.yaml").write_bytes(payload)
        load_recipe("pretrain", str(memory / "x.yaml"))

    fuzz(Trial(read, RECIPES), examples)
