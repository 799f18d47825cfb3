"""A packed batch is the planned cuts of the planned clips, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gamut.data.assemble import assemble
from gamut.data.reader import Reader
from gamut.errors import AudioError, PlanError
from gamut.plan import plan_epoch, plan_evaluation

POLICIES = (
    "two padded crops",
    "native lengths",
    "three crops at mixed resolution",
    "rolled, with local crops",
    "mixed, pooled, tokens dropped",
    "mixtures, pooled",
    "in order",
)


@pytest.mark.parametrize("name", POLICIES)
def test_batches_are_the_planned_samples(corpus, policy, name: str) -> None:
    epoch = plan_epoch(corpus.index.table(), 5, 1, policy(name))
    for step in range(epoch.steps):
        packs = [step * epoch.packs + pack for pack in range(epoch.packs)]
        corpus.assert_is_plan(assemble(corpus.index, epoch, packs), epoch, packs)
        single = assemble(Reader(corpus.index), epoch, [-1, packs[-1], -1, packs[0]])
        corpus.assert_is_plan(single, epoch, [packs[-1], packs[0]])


def test_an_evaluation_plan_assembles_too(corpus, policy) -> None:
    epoch = plan_evaluation(corpus.index.table(), policy("native lengths"))
    packs = list(range(epoch.steps * epoch.packs))
    batch = assemble(corpus.index, epoch, packs)
    corpus.assert_is_plan(batch, epoch, packs)
    assert batch.row.tolist() == list(range(len(corpus.index)))


@pytest.mark.parametrize("packs", [[], [-1], [-1, -1]])
def test_no_pack_is_an_empty_batch(corpus, policy, packs: list[int]) -> None:
    epoch = plan_epoch(corpus.index.table(), 0, 0, policy("two padded crops"))
    batch = assemble(corpus.index, epoch, packs)
    assert (batch.clips, batch.segments, batch.views) == (0, 0, 2)
    assert batch.offset.tolist() == batch.label_offset.tolist() == [0]
    assert (batch.sizes, batch.holes, len(batch.waveform)) == ((), (), 0)


def test_unusable_clips_are_holes_and_the_rest_is_untouched(corpus, policy, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = plan_epoch(corpus.index.table(), 5, 0, policy("two padded crops"))
    packs = list(range(epoch.packs))
    rows = [int(row) for row in epoch.row[: epoch.pack_offset[epoch.packs]]]
    bad = {rows[0]: "checksum", rows[4]: "length", rows[-1]: "unreadable"}
    decode = Reader.decode

    def broken(reader: Reader, row: int) -> np.ndarray:
        if row in bad:
            raise AudioError("It is broken.", bad[row])
        return decode(reader, row)

    monkeypatch.setattr(Reader, "decode", broken)
    batch = assemble(corpus.index, epoch, packs)
    corpus.assert_is_plan(batch, epoch, packs, missing=tuple(bad))
    assert [(hole.row, hole.key, hole.reason) for hole in batch.holes] == [
        (row, corpus.index.key(row), reason) for row, reason in bad.items()
    ]
    bad |= dict.fromkeys(rows, "checksum")
    nothing = assemble(corpus.index, epoch, packs)
    assert (nothing.clips, len(nothing.waveform), len(nothing.holes)) == (0, 0, len(rows))


@pytest.mark.parametrize("name", ["mixed, pooled, tokens dropped", "mixtures, pooled"])
def test_an_unusable_partner_leaves_its_clip_as_it_is(
    corpus, policy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = plan_epoch(corpus.index.table(), 5, 0, policy(name))
    packs = list(range(epoch.packs))
    rows = set(epoch.row[: epoch.pack_offset[epoch.packs]].tolist())
    partners = {int(row) for row in epoch.partner[: len(rows)] if row >= 0}
    bad = (min(partners - rows), min(partners & rows))  # one that is a partner only, one that is planned itself too
    decode = Reader.decode

    def broken(reader: Reader, row: int) -> np.ndarray:
        if row in bad:
            raise AudioError("It is broken.", "checksum")
        return decode(reader, row)

    monkeypatch.setattr(Reader, "decode", broken)
    batch = assemble(corpus.index, epoch, packs)
    corpus.assert_is_plan(batch, epoch, packs, missing=bad)
    assert [hole.row for hole in batch.holes] == [bad[1]]
    assert {hole.row for hole in batch.partner_holes} == set(bad)


def test_a_plan_of_other_clips_is_refused(corpus, policy) -> None:
    clips = corpus.index.table()
    longer = plan_epoch(replace(clips, samples=clips.samples + 16000), 5, 0, policy("native lengths"))
    with pytest.raises(PlanError, match="another index"):
        assemble(corpus.index, longer, list(range(longer.packs)))
