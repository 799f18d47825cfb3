"""A large remote index is read page by page, a small one once, and of one that has grown only what is new."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gamut.data.assemble import assemble
from gamut.data.reader import Reader
from gamut.data.remote import cache_needed, cut_pieces
from gamut.errors import ShardError
from gamut.files import with_digest
from gamut.plan import Policy
from gamut.plan.blocks import plan_in_blocks
from gamut.remote import Remote, mirror, pages, ranges
from gamut.shards import Index, build
from gamut.shards.add import add
from gamut.shards.catalogue import Indexed
from gamut.shards.select import select
from gamut.shards.statistics import describe
from gamut.shards.verify import verify

from ..servers import Server, http_server
from .test_add import same
from .test_bounded import A_SHARD, parts

CLIPS = 20 * A_SHARD
POLICY = Policy(packs=2, clips=4, crop_frames=32, block=3000)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index in format 2 of 40,000 clips in 20 shards, whose tars are not there."""
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "MANY", 1)
        patch.setattr(pages, "PAGE", 1 << 13)
        build.build(folder, "set", [str(n) for n in range(50)], parts(CLIPS))
    return folder


@pytest.fixture
def server(many: Path) -> Iterator[Server]:
    with http_server(many) as server:
        yield server


@pytest.fixture
def quick(tmp_path: Path) -> Remote:
    return Remote(cache=str(tmp_path / "cache"), tries=2, pause_seconds=0.01, timeout_seconds=60)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every index is too large to be fetched whole."""
    monkeypatch.setattr(mirror, "WHOLE", 0)


def opened(url: str, settings: Remote) -> Index:
    return Index.open(mirror.mirror(url, settings), remote=settings)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "index").glob("*.npy"))


@pytest.mark.usefixtures("large")
def test_opening_a_large_index_fetches_none_of_its_clips(server: Server, many: Path, quick: Remote) -> None:
    index, here = opened(server.url, quick), Index.open(many, tars=False)
    assert index.by_ranges
    assert not here.by_ranges
    assert (len(index), index.fingerprint, index.labels) == (len(here), here.fingerprint, here.labels)
    assert list(index.shards) == list(here.shards)
    described = (many / "index" / "index.json").stat().st_size
    assert server.sent < described + len(index.arrays) * mirror.HEADER + 100 * len(index.shards)
    assert server.sent - described < size_of(many) / 50
    row = 12_345
    before = server.sent
    assert index.key(row) == here.key(row)
    assert index.samples.item(row) == here.samples[row]
    assert index.label_ids(row).tolist() == here.label_ids(row).tolist()
    assert server.sent - before <= 5 * pages.PAGE
    before = len(server.requests)
    assert index.samples[row - 1] == here.samples[row - 1]  # of a page that is there
    again = opened(server.url, quick)
    assert again.samples[row] == here.samples[row]  # and stays there
    assert [name for name, _ in server.requests[before:]] == ["index/index.json", "index/statistics.json"]


@pytest.mark.usefixtures("large")
def test_columns_by_ranges_are_those_on_the_disk(server: Server, many: Path, quick: Remote) -> None:
    index, here = opened(server.url, quick), Index.open(many, tars=False)
    rows = np.array([39_999, 5, -1, 20_000, 5])
    for name, column in here.arrays.items():
        far, last = index.arrays[name], len(column) - 1
        assert (len(far), far.dtype, far.nbytes, far.shape) == (len(column), column.dtype, column.nbytes, column.shape)
        for at in (
            0,
            -1,
            last // 2,
            slice(3, 7),
            slice(-3, None),
            slice(7, 3),
            slice(9, 1, -2),
            np.minimum(rows, last),
        ):
            np.testing.assert_array_equal(far[at], column[at])
    for name in ("clip_id", "label_offset"):
        np.testing.assert_array_equal(np.asarray(index.arrays[name]), here.arrays[name])
    with pytest.raises(IndexError):
        index.samples[len(here)]
    same(index, here)


@pytest.mark.usefixtures("large")
def test_plans_by_ranges_are_those_of_the_disk(server: Server, many: Path, quick: Remote) -> None:
    """With a subset, and by weight, in blocks and, of few clips, whole; also in the process that plans ahead."""
    index, here = opened(server.url, quick), Index.open(many, tars=False)
    for subset, weights in (({"split": [1]}, ""), ({}, "balanced"), ({"label": ["3"]}, "")):
        far, near = (select(one, subset, weights, POLICY) for one in (index, here))
        assert far.fingerprint() == near.fingerprint()
        if isinstance(far, Indexed):
            told, columns = far.sent()
            far = Indexed.received(json.loads(json.dumps(told)), columns)
        place = np.arange(0, len(near), 7)
        for name, column in vars(near.select(place)).items():
            np.testing.assert_array_equal(getattr(far.select(place), name), column)
    far, near = (select(one, {}, "", POLICY) for one in (index, here))
    for mine, theirs in zip(plan_in_blocks(far, 3, 0, POLICY), plan_in_blocks(near, 3, 0, POLICY), strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(mine.row, theirs.row)
        np.testing.assert_array_equal(mine.start, theirs.start)


@pytest.mark.usefixtures("large")
def test_only_the_pages_of_the_clips_asked_for_are_fetched(server: Server, many: Path, quick: Remote) -> None:
    index = opened(server.url, quick)
    clips = select(index, {}, "", POLICY)
    before = len(server.seen(".npy")), server.sent
    clips.select(np.arange(4000, 6000))  # a shard
    asked = [name for name, _ in server.requests if name.endswith(".npy")][before[0] :]
    assert sorted(set(asked)) == [f"index/{name}.npy" for name in ("clip_id", "samples", "size")]
    assert server.sent - before[1] <= 3 * (2000 * 8 + 2 * (1 << 13))


@pytest.mark.usefixtures("large")
def test_a_missing_or_shorter_column_is_named_before_anything_else(server: Server, quick: Remote) -> None:
    server.fault = lambda name, number: "missing" if name.endswith("/offset.npy") else None
    with pytest.raises(ShardError, match=r"index/offset\.npy.* cannot be read: the server answered 404"):
        opened(server.url, quick)
    server.fault = None
    assert len(opened(server.url, quick)) == CLIPS


@pytest.mark.usefixtures("large")
def test_a_shorter_column_is_named(many: Path, tmp_path: Path, quick: Remote) -> None:
    shutil.copytree(many, tmp_path / "set")
    column = tmp_path / "set" / "index" / "size.npy"
    column.write_bytes(column.read_bytes()[:-1])
    told = r"index/size\.npy.*the file has \d+ bytes of \d+"
    with http_server(tmp_path / "set") as server, pytest.raises(ShardError, match=told):
        opened(server.url, quick)


@pytest.mark.usefixtures("large")
def test_a_damaged_page_is_never_used(many: Path, tmp_path: Path, quick: Remote) -> None:
    """Neither one that the server has, nor one that this node's disk has lost."""
    shutil.copytree(many, tmp_path / "set")
    column = tmp_path / "set" / "index" / "size.npy"
    content = bytearray(column.read_bytes())
    content[128 + 8 * 30_000] ^= 4
    column.write_bytes(content)
    here = Index.open(many, tars=False)
    with http_server(tmp_path / "set") as server:
        index = opened(server.url, quick)
        assert index.size[100] == here.size[100]
        with pytest.raises(ShardError, match=r"index/size\.npy, bytes \d+ to \d+,.*the checksum in index\.json"):
            index.size[30_000]
        content[128 + 8 * 30_000] ^= 4
        column.write_bytes(content)
        assert index.size[30_000] == here.size[30_000]
        copy = index.folder / "index" / "size.npy"
        lost = bytearray(copy.read_bytes())
        lost[128 : 128 + (1 << 13)] = bytes(1 << 13)
        copy.write_bytes(lost)
        again = opened(server.url, quick)
        assert again.size[100] == here.size[100]


@pytest.mark.usefixtures("large")
def test_values_that_point_nowhere_are_refused_when_they_come(many: Path, tmp_path: Path, quick: Remote) -> None:
    """With digests that fit: the index need not be of our making."""
    folder = tmp_path / "set"
    shutil.copytree(many, folder)
    column, description = folder / "index" / "shard.npy", folder / "index" / "index.json"
    values = np.load(column)
    values[30_000] = -1
    np.save(column, values)
    content = json.loads(description.read_text())
    own = [page for page in pages.pages_of(content["parts"]) if page.name == "shard"]
    with column.open("rb") as file:
        content["parts"][0]["arrays"]["shard"] = [pages.digest(file, page.begin, page.end) for page in own]
    description.write_text(json.dumps(with_digest(content)))
    with http_server(folder) as server:
        index = opened(server.url, quick)
        assert index.shard[100] == 0
        with pytest.raises(ShardError, match=r"shard\.npy has values outside of 0 to 19"):
            index.shard[29_999]


def grown(place: Path, converted: Path, sets: int = 2) -> Path:
    """A set of which some others have become a part."""
    shutil.copytree(converted / "set0", place / "set")
    for number in range(1, sets):
        add(place / "set", [converted / f"set{number}"])
    return place / "set"


@pytest.mark.parametrize("whole", [0, 1 << 30])
def test_a_set_that_grows_has_its_new_pages_fetched_alone(
    tmp_path: Path,
    converted: Path,
    quick: Remote,
    monkeypatch: pytest.MonkeyPatch,
    whole: int,
) -> None:
    """From one part to two, and from two to three; runs that began before go on with the set as it was."""
    monkeypatch.setattr(mirror, "WHOLE", whole)
    monkeypatch.setattr(pages, "PAGE", 64)
    monkeypatch.setattr(ranges, "RUN", 2)
    shutil.copytree(converted / "set0", tmp_path / "set")
    (tmp_path / "set" / "index" / "statistics.json").unlink(missing_ok=True)
    described = describe(tmp_path / "set")
    began: list[tuple[Index, str]] = []
    with http_server(tmp_path / "set") as server:
        for number in range(3):
            if number:
                add(tmp_path / "set", [converted / f"set{number}"])
            before = len(server.requests)
            index = opened(server.url, quick)
            assert index.by_ranges == (number > 0 and whole == 0)
            same(index, Index.open(tmp_path / "set"))
            content = json.loads((tmp_path / "set" / "index" / "index.json").read_text())
            ends = content["parts"][number - 1]["ends"] if number else {}
            asked = [(Path(name).stem, part) for name, part in server.requests[before:] if name.endswith(".npy")]
            assert asked
            for name, part in asked:
                begin = int(part.removeprefix("bytes=").split("-")[0] or 0)
                assert begin == 0 or begin >= ends.get(name, 0)  # of 0 on the header
            assert sum(part.startswith("bytes=0-") for _, part in asked) <= len(index.arrays)
            began.append((index, index.fingerprint))
            for then, fingerprint in began:
                one = Index.open(index.folder, remote=quick, generation=fingerprint)
                same(one, Index.open(tmp_path / "set", generation=fingerprint))
                assert len(one) == len(then)
        first = Index.open(index.folder, remote=quick, generation=began[0][1])
        assert first.statistics() == (described.mean, described.std)


@pytest.mark.usefixtures("large")
def test_another_set_at_the_same_place_is_kept_apart(
    tmp_path: Path,
    converted: Path,
    quick: Remote,
) -> None:
    one, other = grown(tmp_path / "one", converted), grown(tmp_path / "other", converted, 3)
    shutil.rmtree(tmp_path / "other" / "set")
    shutil.copytree(converted / "set0", other)
    add(other, [converted / "set2"])
    served = tmp_path / "served"
    with http_server(served) as server:
        for folder in (one, other, one):
            shutil.copytree(folder, served)
            same(opened(server.url, quick), Index.open(folder))
            shutil.rmtree(served)


@pytest.mark.usefixtures("large")
def test_sounds_are_read_by_ranges_of_index_and_tars(tmp_path: Path, converted: Path, quick: Remote) -> None:
    folder = grown(tmp_path, converted)
    quick = replace(quick, piece_mb=0.05)
    here = Index.open(folder)
    with http_server(folder) as server:
        index = opened(server.url, quick)
        assert index.by_ranges
        with Reader(index) as far, Reader(here) as near:
            for row in (len(here) - 1, 0, 11):
                np.testing.assert_array_equal(far.decode(row), near.decode(row))
        policy = Policy(packs=2, clips=2, crop_frames=32, block=8)
        clips = select(index, {}, "", policy)
        assert isinstance(clips, Indexed)
        plan = plan_in_blocks(clips, 0, 0, policy)[0]
        theirs = assemble(Reader(here), plan, [0, 1])
        ours = assemble(Reader(index), plan, [0, 1])
        assert ours.waveform.equal(theirs.waveform)
        assert ours.bytes == theirs.bytes
        exact = int(cut_pieces(here, quick.piece_bytes).sizes.sum())
        needed = cache_needed(index, clips, policy)
        assert exact <= needed <= sum(shard["size"] for shard in here.shards)
        found, damages = verify(index.folder, remote=quick)
        assert (len(found), damages) == (len(here), [])
        assert describe(index.folder, remote=quick) == describe(folder)
