"""A large index that is opened before it has been checked: its checks go on in threads, and are waited for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gamut.errors import ShardError
from gamut.recipe.find import STAGES
from gamut.shards import Index
from gamut.shards.check import Checks, parts_of
from gamut.shards.joined import Joined, open_sets
from gamut.train import loop
from gamut.train.main import main_of
from gamut.watchdog import WATCHDOG


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every index counts as a large one, on a node of four cores."""
    monkeypatch.setattr("gamut.shards.index.SMALL", 0)
    monkeypatch.setattr("gamut.shards.check.BY_ONE", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3})


def flip(path: Path, bit: int = 0) -> None:
    """Change one bit of the last entry."""
    content = bytearray(path.read_bytes())
    content[-1 - bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def columns(shards: Path) -> list[Path]:
    return sorted((shards / "index").glob("*.npy"))


@pytest.mark.usefixtures("large")
def test_one_bit_in_any_column_is_named_before_it_is_used(shards: Path) -> None:
    for path in columns(shards):
        flip(path)
        with pytest.raises(ShardError, match=rf"{shards} is damaged.*python -m gamut.shards index {shards}"):
            Index.open(shards, later=True).require_sound()
        flip(path)
    index = Index.open(shards, later=True)
    index.require_sound()
    index.require_sound()
    assert len(index) == 24


@pytest.mark.usefixtures("large")
def test_a_tar_that_is_missing_is_named_when_it_is_waited_for(shards: Path) -> None:
    (shards / "shard-000002.tar").unlink()
    for opened in (Index.open(shards, later=True), open_sets([shards], later=True)):
        with pytest.raises(ShardError, match=r"shard-000002\.tar is in the index but cannot be found"):
            opened.require_sound()


@pytest.mark.usefixtures("large")
def test_of_several_sets_each_is_waited_for(shards: Path, pristine: Path) -> None:
    (shards / "shard-000001.tar").unlink()
    sets = [Index.open(pristine, later=True), Index.open(shards, later=True)]
    sets[0].name = "another"
    with pytest.raises(ShardError, match="cannot be found"):
        Joined(sets).require_sound()


def test_a_small_index_is_checked_when_it_is_opened(shards: Path) -> None:
    flip(shards / "index" / "samples.npy")
    with pytest.raises(ShardError, match="samples"):
        Index.open(shards, later=True)


@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize("own", ["1", "2", "8", "no number"])
def test_the_threads_of_all_ranks_check_everything_once(monkeypatch: pytest.MonkeyPatch, ranks: int, own: str) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", own)
    shares = [parts_of((rank, ranks), 1 << 40) for rank in range(ranks)]
    assert {len(each) for each in shares} == {{"2": 8, "8": 2}.get(own, 8)}
    seen = [place for each in shares for number, of in each for place in range(number, 1000, of)]
    assert sorted(seen) == list(range(1000))
    assert parts_of((1, 3), 1000) == [(1, 3)]


def test_the_first_failure_by_place_is_raised() -> None:
    done = []

    def fail(number: int) -> None:
        done.append(number)
        if number >= 2:
            raise ValueError(number)

    checks = Checks([lambda number=number: fail(number) for number in range(6)], 2)  # type: ignore[misc]
    with pytest.raises(ValueError, match="2"):
        checks.wait()
    assert {0, 1, 2} <= {*done}
    Checks([]).wait()
    with pytest.raises(ValueError, match="7"):
        Checks([lambda: fail(7)]).wait()


@pytest.mark.usefixtures("large")
def test_no_plan_is_taken_of_a_damaged_index(shards: Path) -> None:
    flip(shards / "index" / "size.npy")
    index = Index.open(shards, later=True)
    told: list[object] = []

    def agree(problem: Exception | None, what: str) -> None:
        told.append(what)
        if problem is not None:
            raise problem

    plans = SimpleNamespace(take=lambda number, step: pytest.fail("a plan was taken"))
    session = SimpleNamespace(index=index, plans=plans, world=SimpleNamespace(agree=agree))
    with WATCHDOG.within(60, "a test"), pytest.raises(ShardError, match="size"):
        loop.take(session, 0)  # type: ignore[arg-type]
    assert told == ["get the plan of epoch 0"]


def misled(recipe: object, index: Index) -> None:
    """Meets something in a damaged index that nobody has foreseen."""
    raise ZeroDivisionError("out of a damaged column")


@pytest.mark.usefixtures("large")
def test_whatever_comes_of_a_damaged_index_the_damage_is_named(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STAGES, "pretrain", replace(STAGES["pretrain"], work=f"{__name__}:misled"))
    words = ["demo", f"data={shards}", "front.mean=-4", "front.std=4"]
    flip(shards / "index" / "label.npy")
    assert main_of("pretrain")(words) == 2
    assert "python -m gamut.shards index" in capsys.readouterr().err
    flip(shards / "index" / "label.npy")
    with pytest.raises(ZeroDivisionError):
        main_of("pretrain")(words)
