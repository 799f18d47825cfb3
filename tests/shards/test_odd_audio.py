"""Rotten, cut, empty, tiny, silent, wide and fast files: quarantined by name at conversion, or clips like any other."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gamut.audio.decode import read_audio, to_int16_16k
from gamut.data.loader import Loader
from gamut.errors import AudioError
from gamut.plan import Policy, plan_epoch
from gamut.shards import Index
from gamut.shards.__main__ import main
from gamut.shards.heard import clip_log_mel

from .conftest import encode

REASONS = ("unreadable", "truncated", "corrupt", "empty", "not_finite", "format")
CONTAINERS = {"WAV": 16_000, "FLAC": 16_000, "OGG": 32_000, "MP3": 44_100}


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=(samples, channels))


def flipped(payload: bytes, seed: int, times: int = 20) -> bytes:
    chance, content = random.Random(seed), bytearray(payload)
    for _ in range(times):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def make(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Files in folder/odd: {name: the reasons it may be quarantined for}, {name: samples it must have at 16 kHz}."""
    bad: dict[str, tuple[bytes, str]] = {}
    for container, rate in CONTAINERS.items():
        whole = encode(noise(rate), rate, container)
        ending = container.lower()
        bad[f"cut.{ending}"] = (whole[: len(whole) * 2 // 3], "truncated corrupt")
        bad[f"header.{ending}"] = (whole[:20], "truncated corrupt unreadable empty")
        bad[f"zeros.{ending}"] = (bytes(len(whole)), "unreadable corrupt")
        bad[f"nothing.{ending}"] = (b"", "empty")
    for container in ("FLAC", "OGG"):  # these carry checksums: a flipped bit cannot hide
        whole = encode(noise(CONTAINERS[container]), CONTAINERS[container], container)
        bad[f"rotten.{container.lower()}"] = (whole[:500] + flipped(whole[500:], 1), "corrupt truncated unreadable")
    nan = noise(8000)
    nan[4000] = np.nan
    bad["nan.wav"] = (encode(nan, 16_000, "WAV", "FLOAT"), "not_finite")
    bad["no_sample.wav"] = (encode(noise(0), 16_000), "empty")
    good = {
        "hundredth.wav": (encode(noise(160), 16_000), 160),
        "hundredth.ogg": (encode(noise(441), 44_100, "OGG"), 160),
        "silence.flac": (encode(np.zeros(16_000), 16_000, "FLAC"), 16_000),
        "eight.wav": (encode(noise(16_000, 8), 16_000), 16_000),
        "fast.wav": (encode(noise(192_000), 192_000, "WAV", "PCM_24"), 16_000),
        "one.wav": (encode(noise(1), 16_000), 1),
        "usual.mp3": (encode(noise(44_100), 44_100, "MP3"), 16_000),
    }
    (folder / "odd").mkdir(parents=True)
    for name, (content, _) in (bad | good).items():
        (folder / "odd" / name).write_bytes(content)
    return {name: reasons for name, (_, reasons) in bad.items()}, {name: n for name, (_, n) in good.items()}


def quarantined(folder: Path) -> dict[str, str]:
    content = json.loads((folder / "index" / "quarantine.json").read_bytes())
    assert sum(content["counts"].values()) == len(content["files"])
    assert all(Path(one["file"]).name in one["message"] for one in content["files"])
    return {Path(one["file"]).name: one["reason"] for one in content["files"]}


def test_every_odd_file_is_named_or_becomes_a_clip_the_same_way_in_any_process(tmp_path: Path) -> None:
    bad, good = make(tmp_path / "src")
    for workers, each in (("1", "50"), ("2", "3")):
        line = ["convert", "folder", str(tmp_path / "src"), str(tmp_path / workers), "--clips-per-shard", each]
        assert main([*line, "--workers", workers]) == 0
    found = quarantined(tmp_path / "1")
    assert found == quarantined(tmp_path / "2")
    assert found.keys() == bad.keys()
    for name, reason in found.items():
        assert reason in bad[name].split(), name

    index = Index.open(tmp_path / "1")
    samples = {index.key(row).rsplit("/", 1)[1].split("-")[0]: int(index.samples[row]) for row in range(len(index))}
    assert len(index) == len(good)
    assert sorted(samples) == sorted({name.split(".")[0] for name in good})
    assert sorted(int(n) for n in index.samples) == sorted(good.values())
    other = Index.open(tmp_path / "2")
    assert {index.key(r): int(index.checksum[r]) for r in range(len(index))} == {
        other.key(r): int(other.checksum[r]) for r in range(len(other))
    }
    assert main(["verify", str(tmp_path / "1"), "--workers", "1"]) == 0
    assert main(["stats", str(tmp_path / "1"), "--workers", "1"]) == 0
    mean, std = index.statistics() or (np.nan, np.nan)
    assert np.isfinite([mean, std]).all()

    epoch = plan_epoch(index.table(), 0, 0, Policy(packs=2, clips=2, views=2, crop_frames=48))
    assert epoch.summary()["padded_short"] == 0  # padded to the crop, all of them
    for policy in (Policy(packs=2, clips=2, views=2, crop_frames=48), Policy(packs=2, tokens=400, pad=False)):
        epoch, clips = plan_epoch(index.table(), 0, 0, policy), 0
        for _, batches in Loader(index, epoch, rank=0, world=1, per_forward=2, workers=0):
            for batch in batches:
                assert not batch.holes
                clips += batch.clips
                for first, last in zip(batch.offset[:-1], batch.offset[1:]):
                    assert torch.isfinite(clip_log_mel(batch.waveform[first:last].numpy())).all()
        assert clips == len(good)
    assert plan_epoch(index.table(), 0, 0, policy).summary()["padded_short"] == 3  # two of 0.01 s, one of one sample


def check(payload: bytes, whole: np.ndarray, must_fail: bool, told: str) -> str:
    """A file that is not what it was: refused with a reason, or read to its full length, and never shorter."""
    try:
        waveform, _ = to_int16_16k(*read_audio(payload))
    except AudioError as error:
        assert error.reason in REASONS, told  # noqa: PT017
        return error.reason
    assert not must_fail, f"{told} was read as if it were whole"
    return "" if len(waveform) >= len(whole) else "shorter"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("count", [15, pytest.param(400, marks=pytest.mark.long)])
def test_no_cut_and_no_checked_rot_passes_for_a_whole_file(container: str, count: int) -> None:
    rate = CONTAINERS[container]
    payload = encode(noise(rate), rate, container)
    whole, _ = to_int16_16k(*read_audio(payload))
    chance, reasons = random.Random(count), set()
    for _ in range(count):
        keep = chance.randrange(1, len(payload))
        reasons.add(check(payload[:keep], whole, True, f"{container} cut to {keep} of {len(payload)} bytes"))
        seed = chance.randrange(1 << 30)
        rotten = payload[:300] + flipped(payload[300:], seed, 3)
        checked = container in ("FLAC", "OGG")
        reasons.add(check(rotten, whole, checked, f"{container} with bits flipped by {seed}"))
    assert reasons & {"truncated", "corrupt"}
    assert "shorter" not in reasons
