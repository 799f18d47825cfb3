"""What a reader must tell apart: wrong bytes, which are a hole, and a failed read, which is not."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from gamut.data import reader as module
from gamut.data.reader import FILES, Reader, may_open
from gamut.errors import AudioError, ShardError


def test_every_clip_is_what_was_written(corpus) -> None:
    reader = Reader(corpus.index)
    for row in np.random.default_rng(0).permutation(len(corpus.index)):
        waveform = reader.decode(int(row))
        assert waveform.dtype == np.int16
        np.testing.assert_array_equal(waveform, corpus.waveforms[row])


def test_few_shards_stay_open(corpus) -> None:
    before = set(os.listdir("/proc/self/fd"))
    reader = Reader(corpus.index, files=2)
    for row in np.random.default_rng(1).permutation(len(corpus.index)):
        reader.read(int(row))
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 2
    reader.close()
    assert set(os.listdir("/proc/self/fd")) <= before
    assert len(reader.read(0)) == corpus.index.size[0]  # and it opens again


@pytest.mark.parametrize(("limit", "opened"), [(40, 10), (3, 1), (4096, FILES), (-1, FILES)])
def test_a_quarter_of_what_may_be_opened_is(monkeypatch, limit: int, opened: int) -> None:
    monkeypatch.setattr(module.resource, "getrlimit", lambda what: (limit, -1))
    assert may_open() == opened


def test_a_flipped_bit_is_found_wherever_it_is(corpus, tmp_path) -> None:
    damaged = corpus.copy(tmp_path / "set")
    index = damaged.index
    for row, share in ((3, 0.0), (10, 0.5), (20, 1.0)):
        at = int(index.offset[row]) + int(share * (int(index.size[row]) - 1))
        with open(index.shard_path(int(index.shard[row])), "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 16]))
    reader = Reader(index)
    for row in range(len(index)):
        if row in (3, 10, 20):
            with pytest.raises(AudioError, match=f"{index.key(row)}.*checksum.*verify") as caught:
                reader.decode(row)
            assert caught.value.reason == "checksum"
        else:
            np.testing.assert_array_equal(reader.decode(row), corpus.waveforms[row])


@pytest.mark.parametrize("left", [-1, 0, 1, 100])
def test_a_shard_that_ends_early_gives_no_partial_clip(corpus, tmp_path, left: int) -> None:
    damaged = corpus.copy(tmp_path / "set")
    index, row = damaged.index, 9
    reader = Reader(index)
    os.truncate(index.shard_path(int(index.shard[row])), max(0, int(index.offset[row]) + left))
    with pytest.raises(AudioError, match=index.key(row)) as caught:
        reader.decode(row)
    assert caught.value.reason == "truncated"


def test_another_length_than_the_index_says_is_refused(corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gamut.shards.index.decode_flac", lambda payload, samples: np.zeros(samples - 1, np.int16))
    reader = Reader(corpus.index)
    with pytest.raises(AudioError) as caught:
        reader.decode(5)
    assert caught.value.reason == "length"


def test_reads_in_small_pieces_are_joined(corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 997), at))
    np.testing.assert_array_equal(Reader(corpus.index).decode(12), corpus.waveforms[12])


@pytest.mark.parametrize("problem", [errno.EIO, errno.ESTALE])
def test_a_failed_read_is_tried_again_and_then_stops_the_run(
    corpus, monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    """On a handle of its own each time: a stale one (NFS) stays so."""
    pread, opened, used = os.pread, os.open, []
    monkeypatch.setattr(os, "open", lambda *words, **more: used.append(opened(*words, **more)) or used[-1])
    failures = 0

    def failing(file: int, size: int, at: int) -> bytes:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(problem, os.strerror(problem))
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", failing)
    reader = Reader(corpus.index, tries=4, pause=0.001)
    failures = 3
    np.testing.assert_array_equal(reader.decode(12), corpus.waveforms[12])
    assert len(used) == 4
    failures = 4
    with pytest.raises(ShardError, match=rf"could not be read .*4 tries.*{os.strerror(problem)}") as caught:
        reader.decode(12)
    shard = corpus.index.shard_path(int(corpus.index.shard[12]))
    assert corpus.index.key(12) in str(caught.value)
    assert str(shard) in str(caught.value)
    np.testing.assert_array_equal(reader.decode(12), corpus.waveforms[12])  # the storage is back


def test_a_missing_shard_names_itself_and_may_come_back(corpus, tmp_path) -> None:
    moved = corpus.copy(tmp_path / "set")
    path = moved.index.shard_path(int(moved.index.shard[12]))
    path.rename(tmp_path / "away")
    reader = Reader(moved.index, tries=2, pause=0.001)
    with pytest.raises(ShardError, match=f"{moved.index.key(12)}.*{path.name}.*No such file"):
        reader.decode(12)
    (tmp_path / "away").rename(path)
    np.testing.assert_array_equal(reader.decode(12), corpus.waveforms[12])


def test_a_shard_replaced_under_an_open_reader_is_read_anew(corpus, tmp_path) -> None:
    moved = corpus.copy(tmp_path / "set")
    path = moved.index.shard_path(int(moved.index.shard[12]))
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    reader = Reader(moved.index)
    with pytest.raises(AudioError):
        reader.read(12)
    (tmp_path / "new").write_bytes(good)
    os.replace(tmp_path / "new", path)
    np.testing.assert_array_equal(reader.decode(12), corpus.waveforms[12])
