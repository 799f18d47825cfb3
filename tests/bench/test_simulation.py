"""`python -m bench.simulation` against the code that it follows, and against what can be said in closed form."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest import mock

import numpy as np
import pytest
import soundfile
from torch.utils.data import get_worker_info

from bench.planning import imbalance
from bench.simulated import (
    Assumed,
    Job,
    Layout,
    Made,
    fetched,
    follow,
    opened,
    pieces_of,
    read_seconds,
    times,
)
from bench.simulation import asked, main
from bench.started import Counted, Start, begin, without_share
from gamut.data.cache import Cache
from gamut.data.loader import Loader
from gamut.data.plans import load_epoch, save_epoch
from gamut.data.reader import Reader
from gamut.data.remote import cache_needed
from gamut.plan import Border, Epoch, Held, Policy, deal, plan_block
from gamut.plan.blocks import plan_in_blocks
from gamut.remote import Remote
from gamut.shards import Index
from gamut.shards.__main__ import main as shards

POLICY = Policy(packs=32, tokens=2048, max_frames=2992, class_token=False, window=256, block=2048)
AT_ONCE = Assumed(latency=0.0, jitter=0.0, slow=0.0, worker=math.inf)


@pytest.fixture(scope="module")
def made() -> Made:
    return Made(12_000, "VoxCeleb-like", 50, 0.58)


@pytest.fixture(scope="module")
def plans(made: Made) -> list[Epoch]:
    border, plans = Border(), []
    for block in range(2):
        plan, border = plan_block(made, 0, 0, POLICY, block, border)
        plans.append(plan)
    return plans


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted set of 48 sounds in seven tars."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "set"
    rng = np.random.default_rng(0)
    (source / "bell").mkdir()
    for number in range(48):
        waveform = rng.normal(scale=1000, size=4000 + 200 * number).astype(np.int16)
        soundfile.write(source / "bell" / f"{number:02d}.wav", waveform, 16000, subtype="PCM_16")
    assert shards(["convert", "folder", str(source), str(folder), "--clips-per-shard", "7", "--workers", "1"]) == 0
    return folder


@pytest.mark.parametrize(("ranks", "local"), [(8, False), (32, False), (16, True)])
def test_every_draw_is_read_once_by_the_rank_that_has_its_pack(
    plans: list[Epoch], made: Made, ranks: int, local: bool
) -> None:
    job = Job(ranks, workers=3, per_forward=2, local=local)
    reads = follow(plans, job)
    assert sorted(reads.row.tolist()) == sorted(np.concatenate([plan.row for plan in plans]).tolist())
    assert made.sizes(reads.row).sum() == sum(made.sizes(plan.row).sum() for plan in plans)
    step = plans[1].first_step  # a step behind a border
    dealt = deal(plans[1].pack_cost[:32], ranks, 2, 2 if local else 1)
    for rank, packs in enumerate(dealt.reshape(ranks, -1)):
        expected = [plans[1].row[slice(*plans[1].pack_offset[pack : pack + 2])] for pack in packs if pack >= 0]
        assert reads.row[(reads.step == step) & (reads.rank == rank)].tolist() == np.concatenate(expected).tolist()
    cost = reads.cost[: plans[0].steps - 1]
    assert float((cost.max(1) / cost.mean(1) - 1).mean()) == pytest.approx(
        imbalance(plans[0], ranks, job.nodes if local else 1)
    )
    assert set(reads.worker // 3 - reads.rank) == {0}


def test_the_ends_of_an_epoch_are_refused(made: Made) -> None:
    plans = plan_in_blocks(made, 0, 0, POLICY)
    with pytest.raises(ValueError, match="fewer blocks"):
        follow(plans, Job(8))


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_the_clips_and_open_the_tars_that_are_simulated(
    real: Path, workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Real loaders over several blocks, with readers that keep two tars open."""
    index = Index.open(real)
    policy = Policy(packs=8, clips=1, max_frames=64, pad=False, window=16, block=16)
    plans = [plan for plan in plan_in_blocks(Held(index.table()), 0, 0, policy)[:-1] if plan.steps]
    assert len(plans) > 1
    job = Job(2, workers=workers, per_forward=2, files=2)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    told, real_open = Reader._payload, os.open
    rank = 0

    def note(what: object) -> None:
        info = get_worker_info()
        assert info is not None
        os.write(log, f"{rank * workers + info.id} {what}\n".encode())

    def payload(self: Reader, row: int) -> bytes:
        note(row)
        return told(self, row)

    def watched(path: Any, *words: Any, **named: Any) -> int:
        if str(path).endswith(".tar"):
            note("open")
        return real_open(path, *words, **named)

    monkeypatch.setattr(Reader, "_payload", payload)
    monkeypatch.setattr(os, "open", watched)
    monkeypatch.setattr("gamut.data.loader.open_reader", lambda index: Reader(index, files=2))
    later = {(plan.number, plan.block): plan for plan in plans}
    for rank in range(2):
        loader = Loader(
            index, plans[0], rank=rank, world=2, per_forward=2, workers=workers,
            later=lambda number, block: later.get((number, block)),
        )  # fmt: skip
        for plan in plans:
            if plan is not plans[0]:
                loader.go_on(plan)
            assert len(list(loader)) == plan.steps
        loader.close()

    reads = follow(plans, job)
    opens = opened(reads, np.asarray(index.shard)[reads.row], files=2)
    assert 0 < opens.sum() < len(opens)
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    for worker in range(2 * workers):
        mine = reads.worker == worker
        seen = [what for who, what in lines if int(who) == worker]
        assert [int(what) for what in seen if what != "open"] == reads.row[mine].tolist()
        assert seen.count("open") == opens[mine].sum()


def fill(filled: list[int], size: int, file: BinaryIO) -> None:
    filled.append(file.write(bytes(size)))


def test_pieces_are_those_of_the_reader_and_a_cache_fetches_them_when_it_is_said_to(
    plans: list[Epoch], made: Made, tmp_path: Path
) -> None:
    reads = follow(plans[:1], Job(16))
    pieces, of = pieces_of(made, reads.row, 2_000_000)
    there = np.unique(reads.row // made.shard_clips)
    assert int(pieces.sizes.sum()) == int(Layout(made, there).size.sum())
    assert there[pieces.shard[of]].tolist() == (reads.row // made.shard_clips).tolist()
    limit = int(pieces.sizes.sum()) // 20
    found = fetched(reads, of, pieces.sizes, limit)
    order = np.lexsort((reads.rank, reads.forward, reads.step, reads.rank // 8))[:300]  # of the first node
    cache, here = Cache(tmp_path / "cache", limit), []
    for at in order.tolist():
        size = int(pieces.sizes[of[at]])
        filled: list[int] = []
        cache.read(str(of[at]), size, partial(fill, filled, size), 0, 1)
        here.append(bool(filled))
    assert here == found.here[order].tolist()
    assert len(np.unique(of[order])) < sum(here) < len(order)  # some twice
    assert 0.9 * limit < found.most <= limit
    whole = fetched(reads, of, pieces.sizes, int(pieces.sizes.sum()))
    assert whole.here.sum() == len(np.unique(2 * of + reads.rank // 8))  # with room for all, each piece once a node


def test_two_windows_a_lane_are_in_a_cache_at_once(plans: list[Epoch], made: Made) -> None:
    """What is asked of a cache is what `cache_needed` says; twice that fetches nearly nothing twice."""
    every: Any = Layout(made, np.arange(len(made.counts)))
    pieces, _ = pieces_of(made, np.arange(len(made)), 500_000)
    for local, nodes in ((False, 1), (True, 4)):
        job = Job(8 * nodes, local=local)
        every.tars = SimpleNamespace(place="s3://bucket/set", remote=Remote(piece_mb=0.5))
        needed = cache_needed(every, Held(made.select(np.arange(len(made)))), POLICY, nodes)
        asks = asked(POLICY, every.size.mean(), int(pieces.sizes.max()), job)
        assert asks == pytest.approx(needed, rel=1e-4)
    reads = follow(plans, Job(8))
    cut, of = pieces_of(made, reads.row, 500_000)
    least = len(np.unique(of))
    assert fetched(reads, of, cut.sizes, 2 * asked(POLICY, every.size.mean(), 500_000, Job(8))).here.sum() < 1.1 * least


def test_times_are_those_of_closed_forms(plans: list[Epoch], made: Made) -> None:
    job = Job(16, workers=2)
    reads = follow(plans, job)
    opens = opened(reads, reads.row // made.shard_clips, 64)
    longest = float(reads.cost.max(1).sum())
    free = times(reads, read_seconds(made, reads, opens, AT_ONCE), job, 32, AT_ONCE)
    assert (free.waiting, free.first, free.jitter, free.slow) == (0, 0, 0, 0)
    assert free.steps == pytest.approx(longest / AT_ONCE.cost_a_second)
    assert free.work == pytest.approx(float(reads.cost.mean(1).sum()) / AT_ONCE.cost_a_second)

    alike = reads._replace(cost=np.ones((400, 64)))
    uneven = times(alike, np.zeros(len(reads.row)), Job(64), 64, replace(AT_ONCE, jitter=0.01, slow=0.1))
    assert uneven.slow / uneven.work == pytest.approx(0.1)
    assert uneven.jitter / uneven.work == pytest.approx(0.01 * 2.344, rel=0.03)  # the mean of the largest of 64 normals
    assert uneven.imbalance == 0


def test_a_rank_that_reads_more_slowly_than_it_computes_takes_as_long_as_its_reads(
    plans: list[Epoch], made: Made
) -> None:
    by, job = replace(AT_ONCE, worker=50.0), Job(1, workers=1)
    reads = follow(plans, job)
    seconds = read_seconds(made, reads, np.zeros(len(reads.row), bool), by)
    assert float(seconds.sum()) == pytest.approx(float(made.lengths(reads.row)[1].sum()) / 160_000 / 50)
    found = times(reads, seconds, job, 32, by)
    last = float(reads.cost[-1, 0]) / by.cost_a_second
    assert found.first + found.steps == pytest.approx(float(seconds.sum()) + last)


def test_a_storage_that_stands_still_holds_up_no_step_within_what_is_said(plans: list[Epoch]) -> None:
    """Steps alike, readers at once but for one read."""
    job = Job(16, workers=2)
    reads = follow(plans, job)
    reads = reads._replace(cost=np.ones_like(reads.cost))
    middle = int(np.flatnonzero(reads.step == len(reads.cost) // 2)[0])

    def waiting(stands: float) -> float:
        return times(reads, np.where(np.arange(len(reads.row)) == middle, stands, 1e-12), job, 32, AT_ONCE).waiting

    hidden = times(reads, np.full(len(reads.row), 1e-12), job, 32, AT_ONCE).hidden
    assert waiting(0.99 * hidden) == pytest.approx(0, abs=1e-9)
    assert waiting(1.5 * hidden) == pytest.approx(0.5 * hidden, rel=0.01)


def test_opens_and_stats_of_a_start_are_those_of_real_ranks(real: Path, tmp_path: Path, plans: list[Epoch]) -> None:
    with without_share(), Counted(real) as opening:
        Index.open(real, tars=False)
    save_epoch(plans[0], tmp_path / "plan")
    with Counted(tmp_path / "plan") as mapping:
        load_epoch(tmp_path / "plan")
    index = Index.open(real)
    columns = len(index.arrays)
    assert opening.all == columns + 1
    assert mapping.all <= 2 * 13 + 2  # each file is looked for and opened once
    nothing: dict[str, Any] = dict.fromkeys(("named", "checking", "planning", "compared"), 0.0)
    start = Start(48, 7, opening.all, columns, columns, 0, plan_bytes=0, mapping=mapping.all, again=0, **nothing)
    with (
        mock.patch("gamut.shards.index.SMALL", 0),
        mock.patch("gamut.shards.index.MANY_TARS", 0),
        Counted(real) as opened,
        Counted(tmp_path / "plan") as mapped,
    ):
        for rank in range(3):
            with mock.patch.dict(os.environ, RANK=str(rank), WORLD_SIZE="3"):
                Index.open(real)
                load_epoch(tmp_path / "plan")
    assert opened.all + mapped.all == start.operations(3)


def test_a_start_on_more_ranks_compares_less_each(made: Made, plans: list[Epoch], tmp_path: Path) -> None:
    start = begin(made, plans[0], 2.0, tmp_path)
    assert start.opening == start.columns + 1 > 15  # so many tars that they are columns
    assert 0 < start.again <= start.mapping
    few, many = (start.seconds(Job(ranks), Assumed()) for ranks in (8, 512))
    assert many["check"] < few["check"]
    assert few["plan"] > 2.0
    slow = start.seconds(Job(512), Assumed(metadata=1000.0))
    assert slow["open"] - start.named + slow["tars"] == pytest.approx(start.operations(512) / 1000)


def test_the_command_prints_its_tables_and_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = "--clips 12000 --shard-clips 50 --packs 32 --window 256 --block 2048 --ranks 8 32 --remote-ranks 16"
    main([*words.split(), "--piece-mb", "2", "--out", str(tmp_path / "figure.png")])
    tables = _tables(capsys.readouterr().out)
    assert [len(table) for table in tables] == [2, 2, 2]
    pace, storage, stores = tables
    assert [row["ranks"] for row in (*pace, *storage, *stores)] == ["8", "32", "8", "32", "16", "16"]
    assert all(row["slow rank"] in ("9.9%", "10.0%") for row in pace[:1])
    assert [row["locality"] for row in stores] == ["none", "node"]
    for row, other in itertools.pairwise(stores):
        assert float(other["cache, GB"]) <= float(row["cache, GB"])
    assert all(1 <= float(row["with twice"][:-1]) <= float(row["fetched"][:-1]) for row in stores)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="divides --packs 32"):
        main([*words.split(), "--ranks", "24"])


def _tables(printed: str) -> list[list[dict[str, str]]]:
    found: list[list[dict[str, str]]] = []
    lines: Sequence[str] = [line.strip() for line in printed.splitlines()]
    for line, following in itertools.pairwise(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if following.startswith("|-"):
            names = cells
            found.append([])
        elif line.startswith("| "):
            found[-1].append(dict(zip(names, cells, strict=True)))
    return found
