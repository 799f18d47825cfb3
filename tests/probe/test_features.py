"""Vectors of whole clips: the same at any number of ranks, and nothing else is touched."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gamut.audio.logmel import unpatch
from gamut.data.assemble import assemble
from gamut.data.share import Share, in_order
from gamut.errors import ShardError
from gamut.models.layout import layout
from gamut.probe.features import extract, kinds, whole_clips
from gamut.probe.fit import join
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from tests.close import assert_close

from .conftest import encoder


def joined(shares: list[Share]) -> dict[str, np.ndarray]:
    found = in_order(share.arrays() for share in shares)
    assert (np.diff(found["row"]) > 0).all()
    return found


def test_the_same_bits_at_any_number_of_ranks(recipe: Recipe, labelled_set: Index) -> None:
    encode, clips = replace(encoder(), with_rows=True), labelled_set.table()
    before = {name: value.clone() for name, value in encode.backbone.state_dict().items()}
    state = torch.get_rng_state()
    encode.backbone.train()
    plan = whole_clips(clips, recipe)
    whole = joined([extract(encode, labelled_set, plan, workers=1, with_logmel=True)])
    assert {name: value.shape for name, value in whole.items()} == {
        "cls": (60, 32), "mean": (60, 32), "rows": (60, 8 * 32), "logmel": (60, 256), "row": (60,),
    }  # fmt: skip
    for world, packs in ((3, 16), (20, 20)):
        plan = whole_clips(clips, recipe, packs)
        shares = [extract(encode, labelled_set, plan, rank=r, world=world, with_logmel=True) for r in range(world)]
        assert sorted(row for share in shares for row in share.arrays()["row"]) == list(range(60))
        for name, value in joined(shares).items():
            assert value.tobytes() == whole[name].tobytes(), name
    assert encode.backbone.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in encode.backbone.state_dict().items())


@pytest.mark.parametrize("pooling", ["cls", "attention", "mean"])
def test_vectors_are_of_the_whole_clip_alone(pooling: str, recipe: Recipe, labelled_set: Index) -> None:
    recipe = replace(recipe, model=replace(recipe.model, pooling=pooling))
    encode, clips = replace(encoder(pooling), with_rows=True), labelled_set.table().select(np.array([7, 30]))
    found = joined([extract(encode, labelled_set, whole_clips(clips, recipe), with_logmel=True)])
    pooled = {"cls": {"cls"}, "attention": {"pool"}, "mean": set()}[pooling]
    assert set(found) == {"row", "mean", "rows", "logmel"} | pooled
    nothing = np.zeros(2, np.int64)
    vectors, *_ = join([found | {"row": np.arange(2)}], np.arange(2), nothing, nothing)
    assert set(kinds(replace(recipe, probe=replace(recipe.probe, rows=True)))) == set(vectors) - {"logmel"}
    assert set(kinds(recipe)) == set(vectors) - {"logmel", "rows"}
    encode.backbone.eval()
    for number in range(2):
        plan = whole_clips(clips.select(np.array([number])), recipe)
        batch = assemble(labelled_set, plan, range(plan.packs))
        assert batch.sizes == (112,)  # 118 frames of 1.2 s, floored to patches; the model's table has 96
        pixels = encode.front(batch)
        where = layout(batch.frames, batch.sizes, pooling == "cls")
        with torch.no_grad():
            tokens = encode.backbone(pixels, where)
            alone = {"mean": tokens[where.patch].mean(0), "cls": tokens[0]}
            of_row = [tokens[where.patch][where.frequency == row].mean(0) for row in range(8)]
            alone["rows"] = torch.cat(of_row)
            alone["pool"] = encode.backbone.pool(tokens, where)[0]
        mel = unpatch(pixels)
        alone["logmel"] = torch.cat([mel.mean(0), mel.std(0, correction=0)])
        assert found.pop("row", np.array([7, 30])).tolist() == [7, 30]
        for name, value in found.items():
            assert_close(value[number], alone[name].numpy(), 2e-5, name)


def test_a_rank_that_cannot_read_goes_on_with_empty_packs(recipe: Recipe, labelled_set: Index, monkeypatch) -> None:
    """All ranks forward equally often, whatever happens to one."""

    def refuse(*_: object) -> None:
        raise ShardError("The disk is gone.")

    calls: list[int] = []
    encode, plan = encoder(), whole_clips(labelled_set.table(), recipe)
    counting = replace(encode)
    monkeypatch.setattr(type(counting), "__call__", lambda self, batch, logmel=False: calls.append(batch.clips) or {})
    extract(counting, labelled_set, plan, rank=0, world=2)
    well = len(calls)
    monkeypatch.setattr("gamut.data.reader.Reader.decode", refuse)
    share = extract(counting, labelled_set, plan, rank=1, world=2)
    assert "disk is gone" in share.problem
    assert len(calls) == 2 * well
    assert any(calls[:well])
    assert not any(calls[well:])


def test_clips_that_cannot_be_read_are_named(recipe: Recipe, labelled_set: Index, tmp_path: Path) -> None:
    folder = shutil.copytree(labelled_set.folder, tmp_path / "damaged")
    tar = folder / labelled_set.shard_path(int(labelled_set.shard[5])).name
    data = bytearray(tar.read_bytes())
    data[int(labelled_set.offset[5]) + 100] ^= 1
    tar.write_bytes(bytes(data))
    index = Index.open(folder)
    share = extract(encoder(), index, whole_clips(index.table(), recipe))
    assert [hole.key for hole in share.holes] == [index.key(5)]
    assert share.arrays()["row"].tolist() == [row for row in range(60) if row != 5]
    assert len(share.arrays()["mean"]) == 59
