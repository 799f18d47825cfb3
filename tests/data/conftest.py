"""Real shards of synthesised sounds, whose every sample is known."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gamut.data.batch import PackedBatch
from gamut.plan import Epoch, Policy
from gamut.shards import Index
from gamut.shards.__main__ import main as shards

# Samples: shorter than a window, than 16 frames, just 16 frames, a crop of 48 frames, and longer, all mixed up.
LENGTHS = (160, 399, 400, 1500, 2800, 2801, 5000, 7920, 7921, 12000, 16000, 20011, 24000, 31999)
CLASSES = ("bell", "dog", "rain")
POLICIES = {
    "two padded crops": Policy(packs=4, clips=3, tokens=None, views=2, crop_frames=48),
    "native lengths": Policy(packs=2, clips=None, tokens=160, views=1, pad=False, max_frames=96),
    "three crops at mixed resolution": Policy(
        packs=4, clips=None, tokens=256, views=3, crop_frames=32, pad=False, hops=(160, 320, 640)
    ),
    "rolled, with local crops": Policy(
        packs=4, clips=3, tokens=None, views=2, crop_frames=48, local_views=2, local_frames=16, roll=0.5
    ),
    "mixed, pooled, tokens dropped": Policy(
        packs=2, clips=None, tokens=160, pad=False, max_frames=96, pools=(1, 2, 3), mixup=0.7, drop_tokens=0.1
    ),
    "mixtures, pooled": Policy(
        packs=2, clips=None, tokens=320, views=2, pad=False, max_frames=96, pools=(1, 2), hops=(160, 200), mixtures=0.7
    ),
    "in order": Policy(packs=3, clips=None, tokens=96, pad=False, max_frames=64, packer="next_fit", shuffle=False),
}


@dataclass(frozen=True)
class Corpus:
    """A shard set and the samples that went into it."""

    folder: Path
    index: Index
    waveforms: dict[int, np.ndarray]  # row -> int16 [samples]
    classes: dict[int, str]  # row -> class

    def copy(self, to: Path) -> Corpus:
        """The same shards in another folder, to be damaged there."""
        shutil.copytree(self.folder, to)
        return replace(self, folder=to, index=Index.open(to))

    def assert_is_plan(self, batch: PackedBatch, epoch: Epoch, packs: list[int], missing: tuple[int, ...] = ()) -> None:
        """The batch against the samples that were written and the plan's arrays, clip by clip and view by view."""
        numbers = [
            n for pack in packs if pack >= 0 for n in range(epoch.pack_offset[pack], epoch.pack_offset[pack + 1])
        ]
        numbers = [n for n in numbers if int(epoch.row[n]) not in missing]
        assert batch.clips == len(numbers)
        ends = [epoch.pack_offset[pack + 1] for pack in packs if pack >= 0]
        starts = [epoch.pack_offset[pack] for pack in packs if pack >= 0]
        inside = [[n for n in numbers if first <= n < last] for first, last in zip(starts, ends)]
        assert batch.pack_clips == tuple(len(pack) for pack in inside)
        assert batch.segments == len(numbers) * batch.views
        assert batch.row.tolist() == [epoch.row[n] for n in numbers]
        assert batch.draw.tolist() == [epoch.draw[n] for n in numbers]
        assert batch.clip_id.numpy().view(np.uint64).tolist() == [epoch.clip_id[n] for n in numbers]
        assert batch.sizes == tuple(batch.frames.tolist())
        assert (batch.views, batch.epoch, batch.local_views) == (epoch.views, epoch.number, epoch.local_views)
        segment = 0
        for clip, n in enumerate(numbers):
            row = int(epoch.row[n])
            labels = batch.label[batch.label_offset[clip] : batch.label_offset[clip + 1]].tolist()
            assert [self.index.labels[label] for label in labels] == [self.classes[row]]
            for view in range(epoch.views):
                start, length = int(epoch.start[n, view]), int(epoch.length[n, view])
                hop, frames = int(epoch.hop[n, view]), int(epoch.frames[n, view])
                pool = 1 if epoch.pool is None else int(epoch.pool[n, view])
                expected = np.zeros((frames * pool - 1) * hop + 400, np.int16)
                expected[:length] = np.roll(self.waveforms[row], -start)[:length]
                assert epoch.rolled or start + length <= len(self.waveforms[row])
                found = batch.waveform[batch.offset[segment] : batch.offset[segment + 1]].numpy()
                np.testing.assert_array_equal(found, expected)
                assert (batch.length[segment], batch.hop[segment], batch.frames[segment]) == (length, hop, frames)
                if batch.pool is not None:
                    assert (batch.pool[segment], batch.pools[segment]) == (pool, pool)
                segment += 1
        for name in ("pool", "partner"):
            there = (getattr(batch, "partner_row" if name == "partner" else name), getattr(epoch, name))
            assert (there[0] is None) == (there[1] is None)
        if batch.partner_row is not None:
            self.assert_are_partners(batch, epoch, numbers, missing)
        assert batch.offset[-1] == len(batch.waveform)
        integers = (batch.offset, batch.length, batch.hop, batch.frames, batch.clip_id, batch.draw, batch.row,
                    batch.label_offset, batch.label)  # fmt: skip
        assert batch.waveform.dtype == torch.int16
        assert all(tensor.dtype == torch.int64 for tensor in integers)

    def assert_are_partners(
        self, batch: PackedBatch, epoch: Epoch, numbers: list[int], missing: tuple[int, ...]
    ) -> None:
        """A clip's partner is the planned cut of the planned clip with its labels; a missing one leaves nothing."""
        assert batch.partner_waveform.dtype == torch.int16
        apart = epoch.partner_weight is None
        assert (batch.partner_gain if apart else batch.partner_weight).dtype == torch.float32
        assert (batch.partner_weight is None, batch.partner_gain is None) == (apart, not apart)
        assert batch.partner_sizes == (tuple(batch.partner_frames.tolist()) if apart else ())
        unusable = []
        for clip, n in enumerate(numbers):
            partner = int(epoch.partner[n])
            labels = batch.partner_label[batch.partner_label_offset[clip] : batch.partner_label_offset[clip + 1]]
            spans = batch.partner_offset[clip * batch.views : (clip + 1) * batch.views + 1].tolist()
            of_clip = slice(clip * batch.views, (clip + 1) * batch.views)
            if partner < 0 or partner in missing:
                assert (batch.partner_row[clip], len(labels)) == (-1, 0)
                assert apart or batch.partner_weight[clip] == 1.0
                assert not apart or batch.partner_sizes[of_clip] == (0,) * batch.views
                assert spans[0] == spans[-1]
                unusable += [partner] * (partner >= 0)
                continue
            assert batch.partner_row[clip] == partner
            assert apart or batch.partner_weight[clip] == epoch.partner_weight[n]
            assert [self.index.labels[label] for label in labels] == [self.classes[partner]]
            for view, (first, last) in enumerate(itertools.pairwise(spans)):
                start, length = int(epoch.partner_start[n, view]), int(epoch.partner_length[n, view])
                found = batch.partner_waveform[first:last].numpy()
                expected = self.waveforms[partner][start : start + length]
                segment = clip * batch.views + view
                if apart:
                    hop, pool = int(epoch.hop[n, view]), 1 if epoch.pool is None else int(epoch.pool[n, view])
                    frames = max((1 + (length - 400) // hop) // pool // 16 * 16, 16)
                    assert (batch.partner_length[segment], batch.partner_frames[segment]) == (length, frames)
                    assert length in (len(self.waveforms[partner]), (frames * pool - 1) * hop + 400) or frames == 16
                    own = batch.waveform[batch.offset[segment] :][: batch.length[segment]].double()
                    power = [
                        float((part - part.mean()).square().mean()) for part in (own, torch.tensor(expected * 1.0))
                    ]
                    gain = np.clip(np.sqrt(power[0] / power[1]), 0.1, 10) if all(power) else 1.0
                    assert batch.partner_gain[segment] == pytest.approx(gain, rel=1e-5)
                    expected = np.pad(expected, (0, (frames * pool - 1) * hop + 400 - length))
                np.testing.assert_array_equal(found, expected)
                assert last - first <= batch.offset[segment + 1] - batch.offset[segment]
                assert length <= batch.length[segment]
        assert [hole.row for hole in batch.partner_holes] == unusable
        assert batch.partner_offset[-1] == len(batch.partner_waveform)
        assert len(batch.partner_offset) == batch.segments + 1


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "set"
    rng = np.random.default_rng(0)
    made = {}
    for number in range(48):
        samples = LENGTHS[number % len(LENGTHS)]
        pitch = np.sin(np.arange(samples) * rng.uniform(0.02, 0.6)) * rng.uniform(500, 20000)
        waveform = (pitch + rng.normal(scale=50, size=samples)).round().astype(np.int16)
        name = f"sound{number:03d}"
        made[name] = waveform
        path = source / CLASSES[number % len(CLASSES)] / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, waveform, 16000, subtype="PCM_16")
    assert shards(["convert", "folder", str(source), str(folder), "--clips-per-shard", "7", "--workers", "1"]) == 0
    index = Index.open(folder)
    assert len(index) == len(made)
    assert len(np.unique(index.shard)) == 7
    names = {row: index.key(row).rsplit("/", 1)[-1] for row in range(len(index))}
    classes = {row: CLASSES[int(name[-3:]) % len(CLASSES)] for row, name in names.items()}
    return Corpus(folder, index, {row: made[name] for row, name in names.items()}, classes)


@pytest.fixture(scope="session")
def policy() -> Callable[[str], Policy]:
    return POLICIES.__getitem__


@pytest.fixture(scope="session")
def equal() -> Callable[[PackedBatch, PackedBatch], bool]:
    """Whether two batches are alike in every field, tensors in dtype, shape and value."""

    def equal(a: PackedBatch, b: PackedBatch) -> bool:
        for f in fields(a):
            x, y = getattr(a, f.name), getattr(b, f.name)
            same = x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
            if not same:
                return False
        return True

    return equal
