"""A set read from a server is the set read from the disk; a server that fails is named, and never makes a hole."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gamut.data import remote as module
from gamut.data.assemble import assemble
from gamut.data.loader import Loader
from gamut.data.reader import Reader
from gamut.data.remote import cache_needed, cut_pieces, require_cache
from gamut.errors import ShardError
from gamut.files import with_digest
from gamut.plan import Policy, plan_epoch
from gamut.remote import Remote
from gamut.remote.mirror import mirror
from gamut.shards import Index

from ..servers import Server, http_server


@pytest.fixture
def server(corpus) -> Iterator[Server]:
    with http_server(corpus.folder) as server:
        yield server


@pytest.fixture
def quick(tmp_path: Path) -> Remote:
    return Remote(
        cache=str(tmp_path / "cache"), cache_gb=0.01, piece_mb=0.05, timeout_seconds=60, tries=3, pause_seconds=0.01
    )


def opened(url: str, settings: Remote) -> Index:
    return Index.open(mirror(url, settings), remote=settings)


def test_pieces_are_runs_of_whole_clips(corpus) -> None:
    index = corpus.index
    for largest in (1, 20_000, 50_000, 10**9, None):
        pieces = cut_pieces(index, largest)
        assert pieces.first[0] == 0
        assert pieces.first[-1] == len(index)
        for row in range(len(index)):
            piece = pieces.of(row)
            assert pieces.shard[piece] == index.shard[row]
            assert pieces.begin[piece] <= index.offset[row]
            assert index.offset[row] + index.size[row] <= pieces.end[piece]
        if largest is None:
            assert pieces.sizes.tolist() == [shard["size"] for shard in index.shards]
        else:
            clips = np.diff(pieces.first)
            assert np.all((pieces.sizes <= largest) | (clips == 1))


def test_two_workers_over_http_give_the_batches_of_the_disk(corpus, server, quick, policy, equal) -> None:
    settings = replace(quick, cache_gb=0.0004, piece_mb=0.03)  # smaller than the set: pieces go and come again
    index = opened(server.url, settings)
    assert index.fingerprint == corpus.index.fingerprint
    assert sum(shard["size"] for shard in index.shards) > settings.cache_bytes
    for name in ("two padded crops", "native lengths"):
        epoch = plan_epoch(corpus.index.table(), 3, 0, policy(name))
        here = Loader(corpus.index, epoch, rank=0, world=1, per_forward=1, workers=0)
        there = Loader(index, epoch, rank=0, world=1, per_forward=1, workers=2)
        for (step, mine), (other, theirs) in zip(here, there, strict=True):
            assert step == other
            assert all(equal(a, b) for a, b in zip(mine, theirs, strict=True))
    held = sum(path.stat().st_size for path in (Path(settings.cache) / "pieces").iterdir())
    assert 0 < held <= settings.cache_bytes
    assert all(part.startswith("bytes=") for part in server.seen())


def test_what_is_in_the_cache_is_not_asked_for_again(corpus, server, quick) -> None:
    index = opened(server.url, quick)
    for _ in range(2):
        with Reader(index) as reader:
            for row in range(len(index)):
                np.testing.assert_array_equal(reader.decode(row), corpus.waveforms[row])
    assert len(server.seen()) == len(set(server.seen())) or len(server.seen()) == len(cut_pieces(index, 50_000))
    asked = len(server.seen(".npy"))
    opened(server.url, quick)
    assert len(server.seen(".npy")) == asked  # nor is the index
    assert len(server.seen(".json")) == 4


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "stall", "short", "flip", "etag", "416"])
def test_a_failure_that_passes_is_tried_again(corpus, server, quick, fault: str) -> None:
    index = opened(server.url, replace(quick, timeout_seconds=2, tries=9) if fault == "stall" else quick)
    server.fault = lambda name, number: fault if name.endswith(".tar") and number == 0 else None
    np.testing.assert_array_equal(Reader(index).decode(0), corpus.waveforms[0])


def test_a_connection_that_is_cut_is_taken_up_where_it_stopped(corpus, server, quick) -> None:
    index = opened(server.url, replace(quick, piece_mb=1))
    server.fault = lambda name, number: "cut" if number < 2 else None
    np.testing.assert_array_equal(Reader(index).decode(0), corpus.waveforms[0])
    first, second, third = (part.removeprefix("bytes=").split("-") for part in server.seen())
    assert int(first[0]) < int(second[0]) < int(third[0])
    assert first[1] == second[1] == third[1]


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("500", "answered 500"), ("503", "answered 503"), ("cut", "ended after"), ("stall", "sent nothing for 1 s"),
        ("flip", "does not have its checksum"), ("short", "answered with bytes"),
    ],
)  # fmt: skip
def test_a_failure_that_stays_stops_the_run_with_its_name(corpus, server, quick, fault: str, seen: str) -> None:
    index = opened(server.url, quick)
    if fault == "stall":
        index = Index.open(index.folder, remote=replace(quick, timeout_seconds=1))
    epoch = plan_epoch(index.table(), 0, 0, Policy(packs=2, clips=2, crop_frames=32))
    server.fault = lambda name, number: fault if name.endswith(".tar") else None
    with pytest.raises(ShardError, match=seen) as caught:
        assemble(Reader(index), epoch, [0])
    assert f"{server.url}/shard-" in str(caught.value)
    assert ", bytes " in str(caught.value)
    assert "in 3 tries" in str(caught.value)
    assert not list((Path(quick.cache) / "pieces").glob("*-*"))


def test_a_changed_file_is_found_out(corpus, tmp_path, quick) -> None:
    copy = corpus.copy(tmp_path / "set")
    with http_server(copy.folder) as server:
        index = opened(server.url, quick)
        tar = copy.index.shard_path(0)
        tar.write_bytes(tar.read_bytes() + bytes(512))
        with pytest.raises(ShardError, match=r"the file has \d+ bytes instead of \d+"):
            Reader(index).read(0)
        tar.unlink()
        with pytest.raises(ShardError, match=r"shard-000000\.tar, bytes .*answered 404"):
            Reader(index).read(0)
        assert len(server.seen()) == quick.tries + 1  # what is not there is not asked for again


def test_a_rotten_cache_is_fetched_again_and_then_named(corpus, server, quick, monkeypatch) -> None:
    index = opened(server.url, quick)
    reader = Reader(index)
    reader.read(0)
    (piece,) = (path for path in (Path(quick.cache) / "pieces").iterdir() if path.name != "lock")

    def rot() -> None:
        content = piece.read_bytes()
        piece.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])

    rot()
    np.testing.assert_array_equal(reader.decode(0), corpus.waveforms[0])
    real = module.RemoteShards.read
    monkeypatch.setattr(module.RemoteShards, "read", lambda self, row: bytes(len(real(self, row))))
    with pytest.raises(ShardError, match=r"its disk is faulty"):
        reader.read(0)


def test_a_server_without_ranges_is_refused_unless_a_piece_is_a_file(corpus, server, quick) -> None:
    index = opened(server.url, quick)
    server.fault = lambda name, number: "whole" if name.endswith(".tar") else None
    with pytest.raises(ShardError, match=r"whole files only"):
        Reader(index).read(0)


def test_credentials_come_from_netrc_and_go_nowhere_else(corpus, server, quick, tmp_path, monkeypatch) -> None:
    import base64

    server.login = "Basic " + base64.b64encode(b"me:hidden-word").decode()
    with pytest.raises(ShardError, match=r"401.*credentials"):
        mirror(server.url, quick)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden-word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    index = opened(server.url, quick)
    server.fault = lambda name, number: "500"
    with pytest.raises(ShardError) as caught:
        Reader(index).read(0)
    assert "hidden" not in str(caught.value)
    for url in ("http://me:hidden-word@127.0.0.1/x/", "https://host/x?token=hidden"):
        with pytest.raises(ShardError, match=r"would end up in recipes and logs") as caught:
            mirror(url, quick)
        assert "hidden" not in str(caught.value)


def test_a_server_sends_us_to_no_file_and_no_other_host(corpus, server, quick, tmp_path, monkeypatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden-word\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with http_server(corpus.folder) as other:
        by_name = other.url.replace("127.0.0.1", "localhost")
        for there in ("file:///etc/passwd", "ftp://127.0.0.1/x", other.url, by_name, "http://169.254.169.254/latest"):
            server.fault = lambda name, number, there=there: f"to {there}"
            with pytest.raises(ShardError, match=r"sends us to|is not allowed"):
                mirror(server.url, quick)
        assert not other.requests
    moved = dict.fromkeys(("index/index.json",), 0)
    server.fault = lambda name, number: f"to {server.url}/{name}" if moved.get(name) == number else None
    assert len(opened(server.url, quick)) == len(corpus.waveforms)  # elsewhere on the same server


def test_what_is_longer_than_asked_or_compressed_is_not_taken(corpus, server, quick) -> None:
    index = opened(server.url, quick)
    server.fault = lambda name, number: "long" if name.endswith(".tar") else None
    with pytest.raises(ShardError, match=r"more than the requested \d+ bytes arrived|has more than \d+ bytes"):
        Reader(index).read(0)
    server.fault = lambda name, number: "gzip" if name.endswith(".tar") else None
    with pytest.raises(ShardError, match="sends the file compressed, though it was asked not to"):
        Reader(index).read(0)


def test_an_index_does_not_say_which_server_or_file_is_asked(corpus, tmp_path, quick, monkeypatch) -> None:
    """Settings of access are ours alone: data that has some is read as if it had none."""
    folder = tmp_path / "set"
    shutil.copytree(corpus.folder, folder)
    description = folder / "index" / "index.json"
    content = json.loads(description.read_text())
    evil = {"s3_endpoint": "http://127.0.0.1:9", "allow_pipe": True}
    description.write_text(json.dumps(with_digest(content | {"remote": evil} | evil)))
    assert Index.open(folder, remote=quick).tars.remote == quick
    for place in ("file:///etc", "ftp://127.0.0.1/x", "gopher://127.0.0.1"):
        description.write_text(json.dumps(with_digest(content | {"place": place})))
        with pytest.raises(ShardError, match=r"unknown url type|not .*://"):
            Reader(Index.open(folder, remote=quick)).read(0)


def test_an_index_elsewhere_is_checked_and_may_not_name_commands(corpus, tmp_path, quick) -> None:
    folder = tmp_path / "set"
    shutil.copytree(corpus.folder, folder)
    with http_server(folder) as server:
        server.fault = lambda name, number: "flip" if name.endswith("samples.npy") else None
        with pytest.raises(
            ShardError, match=r"samples\.npy could not be fetched.*does not have the checksum in index\.json"
        ):
            mirror(server.url, quick)
        server.fault = None
        description = folder / "index" / "index.json"
        whole = description.read_text()
        owned = json.loads(whole) | {"place": "pipe:touch /tmp/owned {}"}
        description.write_text(json.dumps(with_digest(owned)))
        with pytest.raises(ShardError, match=r"names a command"):
            mirror(server.url, replace(quick, allow_pipe=True))
        outside = json.loads(whole.replace('"key"', '"../../x"'))
        description.write_text(json.dumps(with_digest(outside)))
        with pytest.raises(ShardError, match=r"is not the index of a shard set"):
            mirror(server.url, quick)
        description.unlink()
        with pytest.raises(ShardError, match=r"404.*gamut\.shards index .*--out"):
            mirror(server.url, quick)


def test_a_cache_that_is_not_ours_is_refused(quick, tmp_path) -> None:
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ShardError, match=r"others may write into it"):
        quick.folder()
    (tmp_path / "cache").rmdir()
    assert stat.S_IMODE(quick.folder().stat().st_mode) == 0o700


def test_the_cache_must_hold_the_windows_of_its_lanes(server, quick) -> None:
    index = opened(server.url, quick)
    clips, pieces = index.table(), cut_pieces(index, quick.piece_bytes)
    total, largest = int(pieces.sizes.sum()), int(pieces.sizes.max())
    assert cache_needed(index, clips, Policy(packs=4, clips=1)) == total  # permuted altogether
    assert cache_needed(index, clips, Policy(packs=1, clips=1, shuffle=False)) == min(total, 2 * largest)
    assert cache_needed(index, clips, Policy(packs=1, clips=1, window=5, mixup=0.5)) == total  # partners from anywhere
    for packs, nodes, lanes in ((2, 1, 2), (4, 2, 2), (4, 4, 1)):
        policy = Policy(packs=packs, clips=1, window=5, locality="node" if nodes > 1 else "none")
        assert cache_needed(index, clips, policy, nodes) == min(total, lanes * (5 * total // len(index) + 2 * largest))
    require_cache(index, quick.cache_bytes)
    with pytest.raises(ShardError, match=r"needs 0\.010 GB of cache on every node.*remote\.cache_gb is 0\.01"):
        require_cache(index, quick.cache_bytes + 1)


def test_a_command_gives_the_same_set_where_it_is_allowed(corpus, quick, tmp_path) -> None:
    place = f"pipe:cat {corpus.folder}/{{}}"
    with pytest.raises(ShardError, match=r"remote\.allow_pipe=true"):
        mirror(place, quick)
    allowed = replace(quick, allow_pipe=True)
    index = opened(place, allowed)
    for row in (0, len(index) - 1):
        np.testing.assert_array_equal(Reader(index).decode(row), corpus.waveforms[row])
    with pytest.raises(ShardError, match=r"remote\.allow_pipe=true"):
        Index.open(index.folder, remote=quick)
    with pytest.raises(ShardError, match=r"in 3 tries; .*status 1: .*No such file"):
        mirror("pipe:cat /nowhere/{}", allowed)
    with pytest.raises(ShardError, match=r"wrote nothing for 1 s"):
        mirror("pipe:sh -c 'exec sleep 60' {}", replace(allowed, tries=1, timeout_seconds=1))
    for shell in ("pipe:cat {} | tail", "pipe:cat '{}"):
        with pytest.raises(ShardError, match=r"run without one|not a command"):
            mirror(shell, allowed)
