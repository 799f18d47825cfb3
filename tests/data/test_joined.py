"""Several shard sets as one: every clip is read from its own set, with its label by name."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.data.assemble import assemble
from gamut.data.loader import Loader
from gamut.data.reader import open_reader
from gamut.errors import AudioError, ShardError
from gamut.plan import Policy, plan_epoch, plan_evaluation
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from gamut.shards.joined import Joined, open_sets
from gamut.shards.select import chosen_rows

from .conftest import Corpus


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second set: 9 clips of dog and siren, 2 shards, told apart by their constant samples."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "other"
    for number in range(9):
        path = source / ("siren", "dog")[number % 2] / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.full(4000 + number, number + 1, np.int16), 16000, subtype="PCM_16")
    assert shards(["convert", "folder", str(source), str(folder), "--clips-per-shard", "5", "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def joined(corpus: Corpus, other: Path) -> Index:
    return open_sets([corpus.folder, other])


def test_rows_shards_keys_and_labels_are_those_of_the_sets(corpus: Corpus, other: Path, joined: Index) -> None:
    assert isinstance(joined, Joined)
    second = Index.open(other)
    assert len(joined) == len(corpus.index) + len(second) == 57
    assert joined.labels == ("bell", "dog", "rain", "siren")
    assert joined.keys() == corpus.index.keys() + second.keys()
    for row in (0, 30, 47, 48, 56):
        part, own = joined.place(row)
        index = (corpus.index, second)[part]
        assert joined.key(row) == index.key(own)
        assert joined.shard_path(joined.shard[row]) == index.shard_path(index.shard[own])
        assert [joined.labels[i] for i in joined.label_ids(row)] == [index.labels[i] for i in index.label_ids(own)]
    table = joined.table()
    assert table.source.tolist() == [0] * 48 + [1] * 9
    assert table.row.tolist() == list(range(57))
    assert [joined.keys()[row] for row in chosen_rows(joined, {"label": ["siren"]})] == [
        key for key, row in zip(second.keys(), range(9)) if second.labels[second.label_ids(row)[0]] == "siren"
    ]
    assert joined.fingerprint != open_sets([other, corpus.folder]).fingerprint
    assert pickle.loads(pickle.dumps(joined)).fingerprint == joined.fingerprint
    assert corpus.index.statistics() is not None
    assert joined.statistics() is None  # the other set is silent


def test_a_mixture_is_read_from_both_sets(corpus: Corpus, other: Path, joined: Index) -> None:
    own = {row: corpus.waveforms[row] for row in range(48)}
    second = open_reader(Index.open(other))
    own |= {48 + row: second.decode(row) for row in range(9)}
    policy = Policy(packs=2, tokens=160, max_frames=96, draws=40, proportions=(1.0, 3.0))
    for epoch in (plan_epoch(joined.table(), 0, 0, policy), plan_evaluation(joined.table(), policy)):
        batch = assemble(joined, epoch, range(epoch.steps * epoch.packs))
        assert not batch.holes
        assert batch.row.tolist() == epoch.row.tolist()
        for segment, row in enumerate(batch.row.tolist()):
            at, length = int(batch.offset[segment]), int(batch.length[segment])
            start = int(epoch.start[segment, 0])
            np.testing.assert_array_equal(batch.waveform[at : at + length], own[row][start : start + length])
            label = batch.label[batch.label_offset[segment]]
            assert joined.labels[label] == joined.labels[joined.label_ids(row)[0]]
    drawn = plan_epoch(joined.table(), 0, 0, policy).row
    assert np.bincount(drawn >= 48).tolist() == [10, 30]


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_take_a_mixture_as_planned(joined: Index, workers: int) -> None:
    policy = Policy(packs=4, tokens=160, max_frames=96, draws=60, proportions=(1.0, 1.0))
    epoch = plan_epoch(joined.table(), 1, 0, policy)
    taken: Counter = Counter()
    for rank in range(2):
        for step, batches in Loader(joined, epoch, rank=rank, world=2, per_forward=1, workers=workers):
            for batch in batches:
                taken.update(
                    zip([step] * batch.clips, batch.clip_id.numpy().view(np.uint64).tolist(), batch.draw.tolist())
                )
    step = np.repeat(np.arange(epoch.steps * 4) // 4, np.diff(epoch.pack_offset))
    assert taken == Counter(zip(step.tolist(), epoch.clip_id.tolist(), epoch.draw.tolist()))


def test_a_hole_names_its_own_set(corpus: Corpus, other: Path, tmp_path: Path) -> None:
    moved = corpus.copy(tmp_path / "moved")
    joined = open_sets([other, moved.folder])
    path = joined.shard_path(int(joined.shard[9]))
    content = bytearray(path.read_bytes())
    content[int(joined.offset[9]) + 50] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(AudioError, match=f"{moved.folder}.*checksum"):
        open_reader(joined).decode(9)


def test_one_set_twice_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"are both named .* convert one of them again with another --name"):
        open_sets([corpus.folder, corpus.copy(tmp_path / "copy").folder])
    assert not isinstance(open_sets([corpus.folder]), Joined)
