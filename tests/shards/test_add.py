"""Sets that grow: each generation is the index that its shards would have had at once, and stays it for ever."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gamut.data.reader import Reader
from gamut.errors import ShardError
from gamut.files import with_digest
from gamut.remote import pages
from gamut.shards import Index, build, check, columns
from gamut.shards.__main__ import main
from gamut.shards.add import add
from gamut.shards.build import clip_id
from gamut.shards.joined import open_sets
from gamut.shards.part import Part
from pretrain.run import main as pretrain

from .conftest import encode, write_sounds
from .test_resume import in_a_child

COLUMNS = (
    "clip_id", "shard", "offset", "size", "samples", "checksum", "label", "label_offset", "event_offset", "event",
    "event_onset", "event_end", "codec",
)  # fmt: skip


def same(one: Index, other: Index) -> None:
    """But for the fingerprint, which tells how they came to be."""
    assert (one.name, one.labels, one.names) == (other.name, other.labels, other.names)
    assert list(one.shards) == list(other.shards)
    assert one.keys() == other.keys()
    for name in COLUMNS:
        mine, theirs = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal([] if mine is None else mine, [] if theirs is None else theirs, err_msg=name)
    assert one.columns.keys() == other.columns.keys()
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, other.columns[name])
    for name in ("clips", "samples", "first", "label_offset", "label", "label_count"):
        np.testing.assert_array_equal(getattr(one.sums, name), getattr(other.sums, name), err_msg=name)


@pytest.fixture
def three(converted: Path, tmp_path: Path) -> list[Path]:
    """Copies of the sets."""
    return [Path(shutil.copytree(converted / f"set{number}", tmp_path / f"set{number}")) for number in range(3)]


def test_a_set_that_has_grown_is_the_index_of_its_tars_and_its_generations_stay(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Index.open(three[0])
    before = shutil.copytree(three[0], tmp_path / "before")
    assert main(["add", *map(str, three[:2])]) == 0
    assert "9 clips in 3 shards were added" in capsys.readouterr().out
    second = Index.open(three[0])
    middle = shutil.copytree(three[0], tmp_path / "middle")
    assert main(["add", str(three[0]), str(three[2])]) == 0
    grown = Index.open(three[0])
    assert (len(first), len(second), len(grown), grown.generation) == (10, 19, 27, 2)
    assert main(["verify", str(three[0]), "--workers", "1"]) == 0
    with Reader(grown) as reader:
        for row in range(27):
            reader.decode(row)
    for old, folder in ((first, before), (second, middle)):
        again = Index.open(three[0], generation=old.fingerprint)
        assert (again.fingerprint, again.generation) == (old.fingerprint, old.generation)
        same(again, Index.open(folder))
        shutil.rmtree(folder / "index")
        assert main(["index", str(folder), "--workers", "1"]) == 0
        same(again, Index.open(folder))  # made at once, of the tars alone
    (three[0] / "index").rename(tmp_path / "index")
    assert main(["index", str(three[0]), "--workers", "1"]) == 0
    same(grown, Index.open(three[0]))
    with pytest.raises(ShardError, match=rf"The fingerprint {second.fingerprint} is not that of the set in"):
        Index.open(three[0], generation=second.fingerprint)


def made(folder: Path, parts: Sequence[Part], labels: Sequence[str] = ("x", "y", "z")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        (folder / part.shard).write_bytes(os.urandom(8) + bytes(part.size - 8))
    build.build(folder, "set", labels, parts, names={"split": {"train": [0], "all": [0, 1]}})
    return folder


@st.composite
def shards(draw: st.DrawFn) -> list[Part]:
    """Shards of any clips, empty ones and such without labels, events or keys of one byte among them."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        keys = draw(st.lists(st.text("aü-/0", min_size=1, max_size=4), min_size=0, max_size=5, unique=True))
        one = Part("", 64, 0, "set" if keys else "", key=keys)
        one.offset, one.bytes = list(range(len(keys))), [1] * len(keys)
        one.samples = [draw(st.integers(10, 99)) for _ in keys]
        one.clip_checksum = [draw(st.integers(0, 2**64 - 1)) for _ in keys]
        one.labels = [draw(st.lists(st.integers(0, 2), max_size=3)) for _ in keys]
        one.columns = {"split": [draw(st.integers(0, 1)) for _ in keys]} if keys else {}
        if draw(st.booleans()):
            one.events = [[[0, 5, label] for label in sorted(set(labels))] for labels in one.labels]
        parts.append(one)
    return parts


@settings(max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(first=shards(), more=st.lists(shards(), min_size=1, max_size=3), page=st.sampled_from([7, 64, 1 << 23]))
def test_any_generation_is_the_index_made_at_once(
    tmp_path_factory: pytest.TempPathFactory, first: list[Part], more: list[list[Part]], page: int
) -> None:
    place = tmp_path_factory.mktemp("grown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PAGE", page)
        patch.setattr(check, "ROWS", 3)
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(build, "IDS", 4)
        groups = [parts for parts in (first, *more) if any(part.key for part in parts)]
        so_far: list[Part] = []
        opened: list[Index] = []
        for number, parts in enumerate(groups):
            for part in parts:
                part.shard, part.checksum = f"shard-{len(so_far):06d}.tar", len(so_far) if part.key else 0
                so_far.append(part)
            numbers = range(len(so_far) - len(parts), len(so_far))
            new = made(place / f"new{number}", [_as(part, f"shard-{at:06d}.tar") for at, part in enumerate(parts)])
            if number == 0:
                shutil.copytree(new, place / "set")
            else:
                add(place / "set", [new])
            whole = place / f"whole{number}"
            whole.mkdir()
            for at in numbers:
                assert (place / "set" / f"shard-{at:06d}.tar").exists()
            for part in so_far:
                os.link(place / "set" / part.shard, whole / part.shard)
            made_at_once = [_as(part, part.shard) for part in so_far]
            build.build(whole, "set", ["x", "y", "z"], made_at_once, names={"split": {"train": [0], "all": [0, 1]}})
            opened.append(Index.open(whole))
            same(Index.open(place / "set"), opened[-1])
        for one, fingerprint in zip(opened, [_fingerprint(place / "set", at) for at in range(len(opened))]):
            same(Index.open(place / "set", generation=fingerprint), one)


def _as(part: Part, name: str) -> Part:
    return Part(**{**vars(part), "shard": name})


def _fingerprint(folder: Path, number: int) -> str:
    content = json.loads((folder / "index" / "index.json").read_text())
    return content["fingerprint"] if "fingerprint" in content else content["parts"][number]["fingerprint"]


def test_a_kill_at_any_write_fsync_or_rename_of_adding_leaves_the_set_as_it_was(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill loses nothing that is not on the disk yet
    reference = Path(shutil.copytree(three[0], tmp_path / "reference"))
    wanted = add(reference, [three[1]]).index
    old = Index.open(three[0])
    point = unfinished = 0
    while True:
        dst = Path(shutil.copytree(three[0], tmp_path / f"killed{point}"))

        def killed(left: int = point, dst: Path = dst) -> None:
            def count(real: Callable) -> Callable:
                def counting(*args: object, **more: object) -> object:
                    nonlocal left
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    return real(*args, **more)

                return counting

            os.fsync, os.replace, os.link = count(os.fsync), count(os.replace), count(os.link)
            columns._Column.write = count(columns._Column.write)  # type: ignore[method-assign]
            add(dst, [three[1]])

        status = in_a_child(killed)
        if not os.WIFSIGNALED(status):
            break
        now = Index.open(dst)
        if now.generation == 0:
            unfinished += 1
            assert now.fingerprint == old.fingerprint
            same(now, old)
            added = add(dst, [three[1]]).index
        else:
            added = now
        assert added.fingerprint == wanted.fingerprint, f"after a kill at call {point}"
        assert sorted(path.name for path in dst.glob("*.tar")) == sorted(path.name for path in reference.glob("*.tar"))
        same(added, wanted)
        shutil.rmtree(dst)
        point += 9 if point < 110 else 1  # writes of columns, most of them, come first
    assert point > 100
    assert unfinished > 20


def test_what_is_no_part_of_a_set_is_refused_in_words(
    three: list[Path], converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {path: path.read_bytes() for path in (three[0] / "index").iterdir() if path.is_file()}
    src = converted / "src1"

    def like(name: str, *more: str, source: str = "folder", of: Path = src) -> Path:
        assert main(["convert", source, str(of), str(tmp_path / name), "--workers", "1", *more]) == 0
        return tmp_path / name

    write_sounds(tmp_path / "other", 4, ("bell", "cat", "rain"))
    (tmp_path / "list.csv").write_text("".join(["path,n\n", *(f"{path},1\n" for path in sorted(src.rglob("*.wav")))]))
    for new, said in (
        (three[0], "cannot be added to itself"),
        (like("named"), r"is the set 'src1', and .* is 'tones'.*--name tones"),
        (like("classes", "--name", "tones", of=tmp_path / "other"), r"Class 1 is 'dog' in .*, and 'cat' in"),
        (
            like("columns", "--name", "tones", source="csv", of=tmp_path / "list.csv"),
            r"has the columns \['n'\], and .* has \['fold'\]",
        ),
        (tmp_path / "nowhere", "There are no shards in"),
    ):
        with pytest.raises(ShardError, match=said):
            add(three[0], [new])
    add(three[0], [three[1]])
    with pytest.raises(ShardError, match=r"is in .*set0 already, as are 3 of the 3 tars of .*set1.*come twice"):
        add(three[0], [three[1]])
    shutil.copy(three[1] / "shard-000000.tar", three[0] / "shard-000006.tar")
    with pytest.raises(ShardError, match=r"shard-000006\.tar is not in the index of .*, and would be replaced"):
        add(three[0], [three[2]])
    for path, content in whole.items():
        assert (path.read_bytes()[: len(content)] == content) == (path.name != "index.json")
    capsys.readouterr()
    assert main(["convert", "folder", str(converted / "src0"), str(three[0]), "--name", "tones"]) == 2
    assert f"python -m gamut.shards add {three[0]} FOLDER" in capsys.readouterr().err


def test_a_part_that_is_damaged_or_cut_off_is_named_before_anything_is_read(three: list[Path]) -> None:
    first = Index.open(three[0])
    grown = add(three[0], [three[1]]).index
    index = three[0] / "index"
    rng = np.random.default_rng(0)
    for path in sorted(index.glob("*.npy")):
        whole = path.read_bytes()
        start = len(whole) - grown.arrays[path.stem].nbytes
        for place in rng.integers(8 * start, 8 * len(whole), 5).tolist():
            broken = bytearray(whole)
            broken[place // 8] ^= 1 << (place % 8)
            path.write_bytes(broken)
            with pytest.raises(ShardError, match=rf"{path.name} (is not what was written|says).*gamut\.shards index"):
                Index.open(three[0])
        path.write_bytes(whole[:-1])
        with pytest.raises(ShardError, match=rf"{path.name} has \d+ entries where \d+ are expected"):
            Index.open(three[0])
        path.write_bytes(whole + b"left by a killed writer")
        same(Index.open(three[0]), grown)
        same(Index.open(three[0], generation=first.fingerprint), first)
        path.write_bytes(whole)
    content = json.loads((index / "index.json").read_text())
    for broken_json in (
        {**content, "parts": []},
        {**content, "parts": content["parts"][1:]},
        {key: value for key, value in content.items() if key != "digest"},
    ):
        told = broken_json if "digest" not in broken_json else with_digest(broken_json)
        (index / "index.json").write_text(json.dumps(told))
        with pytest.raises(ShardError, match=r"The index in .* is damaged"):
            Index.open(three[0])


def test_statistics_of_a_generation_stay_its_own(three: list[Path]) -> None:
    assert main(["stats", str(three[0]), "--workers", "1"]) == 0
    first = Index.open(three[0])
    was = first.statistics()
    grown = add(three[0], [three[1]]).index
    assert grown.statistics() is None
    assert Index.open(three[0], generation=first.fingerprint).statistics() == was
    assert main(["stats", str(three[0]), "--workers", "1"]) == 0
    assert Index.open(three[0]).statistics() not in (None, was)
    assert Index.open(three[0], generation=first.fingerprint).statistics() == was


def test_an_index_of_many_shards_has_them_as_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for number in range(5):
        part = Part(f"shard-{number:06d}.tar", 64, number, "set", key=[f"{number}"], offset=[0], bytes=[1])
        part.samples, part.clip_checksum, part.labels, part.columns = [9], [1], [[number % 3]], {"split": [0]}
        parts.append(part)
    listed = Index.open(made(tmp_path / "listed", parts))
    monkeypatch.setattr(build, "MANY", 4)
    many = Index.open(made(tmp_path / "many", parts))
    assert "shards" not in json.loads((tmp_path / "many" / "index" / "index.json").read_text())
    same(many, listed)
    assert many.fingerprint != listed.fingerprint
    assert many.clip_id[3] == clip_id("set", "shard-000003.tar", "3")


def test_ranks_share_the_checks_of_a_large_index_and_workers_make_none(
    three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page is read and each tar looked for once by a job, and not again by its loader workers."""
    index = add(three[0], [three[1]]).index
    monkeypatch.setattr("gamut.shards.index.SMALL", 0)
    monkeypatch.setattr("gamut.shards.index.MANY_TARS", 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    read: list[tuple[str, int]] = []
    looked: list[Path] = []
    digest, stat = pages.digest, Path.stat
    monkeypatch.setattr(
        pages, "digest", lambda file, begin, end: read.append((file.name, begin)) or digest(file, begin, end)
    )

    def counted(path: Path, **more: object) -> os.stat_result:
        if path.suffix == ".tar":
            looked.append(path)
        return stat(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "stat", counted)
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        columns._intact.clear()
        Index.open(three[0])
    assert sorted(read) == sorted((str(columns.path_of(three[0], page.name)), page.begin) for page in index.pages)
    assert sorted(looked) == sorted(index.shard_path(shard) for shard in range(len(index.shards)))
    read.clear(), looked.clear()
    columns._intact.clear()
    again, arguments = index.__reduce__()
    same(again(*arguments), index)
    assert not read
    assert not looked


def test_opening_takes_as_many_files_however_many_parts_there_are(three: list[Path]) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    add(three[0], [three[1]])
    before = held()
    one = Index.open(three[0])
    files = held() - before
    del one
    add(three[0], [three[2]])
    before = held()
    two = Index.open(three[0])
    assert held() - before == files == len(list((three[0] / "index").glob("*.npy")))
    assert two.generation == 2


def test_third_party_tars_grow_in_their_place(tmp_path: Path) -> None:
    import io
    import tarfile

    place, rng = tmp_path / "tars", np.random.default_rng(0)
    place.mkdir()
    for number, container in enumerate(("WAV", "FLAC", "OGG")):
        with tarfile.open(place / f"{number}.tar", "w") as tar:
            for clip in range(3):
                content = encode(rng.normal(size=900) * 0.1, 16_000, container)
                about = tarfile.TarInfo(f"{number}-{clip}.{container.lower()}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    for name, which in (("whole", "{0..2}"), ("a", "{1..2}"), ("b", "{0..0}")):
        where = f"pipe:cat {place}/{which}.tar"
        words = ["index", where, "--out", str(tmp_path / name), "--name", "x", "--allow-pipe", "--workers", "1"]
        assert main(words) == 0
    assert main(["add", str(tmp_path / "a"), str(tmp_path / "b"), "--allow-pipe"]) == 0
    from gamut.remote import Remote

    settings = Remote(allow_pipe=True)
    grown, whole = (Index.open(tmp_path / name, remote=settings) for name in ("a", "whole"))
    order = [whole.clip_id.tolist().index(one) for one in grown.clip_id.tolist()]
    assert sorted(order) == list(range(9))
    assert [grown.codecs[at] for at in grown.codec] == [whole.codecs[whole.codec[at]] for at in order]
    with Reader(grown) as reader, Reader(whole) as theirs:
        for row, at in enumerate(order):
            np.testing.assert_array_equal(reader.decode(row), theirs.decode(at))


def test_sets_are_opened_as_they_were_when_a_run_began(
    three: list[Path], pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, mixed = open_sets([three[0]]), open_sets([three[0], pristine])
    totals = np.bincount(mixed.label, minlength=len(mixed.labels))
    assert mixed.sums.label_totals(len(mixed.labels)).tolist() == totals.tolist()
    assert mixed.sums.samples.sum() == mixed.samples.sum()
    run = tmp_path / "runs" / "x"
    words = [
        "esc10/sparse", f"data={three[0]}", f"run.folder={run.parent}", "run.name=x", "subset={}", "front.mean=-4",
        "front.std=4", "model.dim=32", "model.depth=1", "model.heads=2", "--dry-run",
    ]  # fmt: skip
    assert pretrain(words) == 0
    then = [line for line in capsys.readouterr().out.splitlines() if "clips" in line]
    add(three[0], [three[1]])
    assert len(open_sets([three[0]])) == 19
    for sets, began in (([three[0]], alone), ([three[0], pristine], mixed)):
        again = open_sets(sets, began=began.fingerprint)
        assert again.has_grown
        assert (again.fingerprint, again.keys()) == (began.fingerprint, began.keys())
        assert len(open_sets(sets, began="another")) == len(open_sets(sets)) == len(began) + 9
        assert not open_sets(sets).has_grown
    assert pretrain(words) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "clips" in line] != then
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("")
    (run / "metrics.jsonl").write_text(json.dumps({"event": "start", "index": alone.fingerprint}) + "\n")
    assert pretrain(words) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "clips" in line] == then
