"""A plan of cached clips: every clip costs the same, its record comes along, its partner lies in its pack."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gamut.data.assemble import assemble
from gamut.data.batch import Hole
from gamut.data.loader import Loader
from gamut.data.reader import FeatureReader
from gamut.errors import FeatureError
from gamut.plan import Policy, plan_epoch, plan_evaluation

POLICY = Policy(packs=4, clips=3, mixup=0.7, cached=True)
SHAPE = (2, 5, 4)


class Records:
    """A cache whose record says of which row it is."""

    info = SimpleNamespace(record_bytes=80)

    def __init__(self, holes: tuple[Hole, ...] = (), damaged: int = -1) -> None:
        self.holes, self.damaged = holes, damaged

    def read(self, rows: np.ndarray) -> np.ndarray:
        if self.damaged in rows:
            raise FeatureError(f"The features of clip {self.damaged} are damaged.")
        return np.broadcast_to(rows.astype(np.float16)[:, None, None, None], (len(rows), *SHAPE)).copy()


def test_every_clip_costs_the_same_and_is_mixed_within_its_pack(corpus) -> None:
    clips = corpus.index.table()
    epoch = plan_epoch(clips, 3, 0, POLICY)
    assert (epoch.draws, epoch.steps) == (48, 4)
    assert len({float(cost) for cost in np.asarray(epoch.tokens)}) == 1
    facts = epoch.summary()
    assert (facts["silence"], facts["padded_short"], facts["waste"]) == (0, 0, 0)
    for pack in range(epoch.steps * epoch.packs):
        mine = slice(epoch.pack_offset[pack], epoch.pack_offset[pack + 1])
        rows, partners = epoch.row[mine], epoch.partner[mine]
        assert set(partners[partners >= 0]) <= set(rows)
        assert not np.any(partners == rows)
    assert 20 < facts["mixed"] < 45
    alone = plan_epoch(clips, 3, 0, replace(POLICY, clips=1))
    assert alone.summary()["mixed"] == 0  # a clip alone in its pack has nobody to be mixed with
    other = plan_epoch(clips, 3, 1, POLICY)
    assert not np.array_equal(other.partner, epoch.partner)


def test_a_batch_has_the_records_of_its_clips_and_partners_by_number(corpus) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, POLICY)
    reader = FeatureReader(corpus.index, Records())
    for packs in ([0, 1, 2, 3], [5, -1, 4]):
        batch = assemble(reader, epoch, packs)
        numbers = np.concatenate([np.arange(epoch.pack_offset[p], epoch.pack_offset[p + 1]) for p in packs if p >= 0])
        assert batch.row.tolist() == epoch.row[numbers].tolist()
        assert tuple(batch.features.shape) == (len(numbers), *SHAPE)
        assert batch.features[:, 1, 2, 3].tolist() == batch.row.tolist()
        assert (len(batch.waveform), batch.bytes) == (0, 80 * len(numbers))
        for clip, number in enumerate(numbers.tolist()):
            partner = int(epoch.partner[number])
            assert batch.partner_row[clip] == partner
            if partner < 0:
                assert (batch.partner_clip[clip], batch.partner_weight[clip]) == (-1, 1.0)
                continue
            assert batch.row[batch.partner_clip[clip]] == partner
            assert batch.partner_weight[clip] == epoch.partner_weight[number]
            label = batch.partner_label[batch.partner_label_offset[clip]]
            assert corpus.index.labels[label] == corpus.classes[partner]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_the_same_at_any_split(corpus, workers: int) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, POLICY)
    rows: dict[int, list[int]] = {}
    for rank in range(2):
        loader = Loader(corpus.index, epoch, rank=rank, world=2, per_forward=1, workers=workers, features=Records())
        for step, batches in loader:
            for batch in batches:
                assert batch.features[:, 0, 0, 0].tolist() == batch.row.tolist()
                rows.setdefault(step, []).extend(batch.row.tolist())
    for step, found in rows.items():
        first, last = (int(epoch.pack_offset[n]) for n in (step * epoch.packs, (step + 1) * epoch.packs))
        assert sorted(found) == sorted(epoch.row[first:last].tolist())


def test_an_evaluation_reads_every_clip_once_in_order(corpus) -> None:
    epoch = plan_evaluation(corpus.index.table(), POLICY)
    batch = assemble(FeatureReader(corpus.index, Records()), epoch, range(epoch.steps * epoch.packs))
    assert batch.row.tolist() == list(range(len(corpus.index)))
    assert batch.partner_clip is None


def test_an_empty_pack_has_features_of_no_clip(corpus) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, POLICY)
    batch = assemble(FeatureReader(corpus.index, Records()), epoch, [-1])
    assert (batch.clips, tuple(batch.features.shape), batch.bytes) == (0, (0, *SHAPE), 0)
    assert len(batch.partner_clip) == 0


def test_holes_of_the_cache_are_holes_and_unmix_their_partners(corpus) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, POLICY)
    mixed = np.flatnonzero(np.asarray(epoch.partner) >= 0)[0]
    gone = int(epoch.partner[mixed])
    holes = (Hole(gone, corpus.index.key(gone), "checksum"),)
    batch = assemble(FeatureReader(corpus.index, Records(holes)), epoch, range(epoch.packs * epoch.steps))
    assert batch.holes == holes
    assert gone not in batch.row.tolist()
    assert holes[0] in batch.partner_holes
    clip = batch.row.tolist().index(int(epoch.row[mixed]))
    assert (batch.partner_clip[clip], batch.partner_weight[clip], batch.partner_row[clip]) == (-1, 1.0, -1)
    assert batch.features[:, 0, 0, 0].tolist() == batch.row.tolist()
    there = batch.partner_clip >= 0
    assert batch.row[batch.partner_clip[there]].tolist() == batch.partner_row[there].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_stops_the_run_by_name(corpus, workers: int) -> None:
    epoch = plan_epoch(corpus.index.table(), 3, 0, POLICY)
    loader = Loader(corpus.index, epoch, rank=0, world=1, per_forward=4, workers=workers, features=Records(damaged=7))
    with pytest.raises(FeatureError, match="clip 7 are damaged"):
        list(loader)
