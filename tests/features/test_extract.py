"""A cache holds, for every clip, what the encoder gives for it; whoever makes it, however often it is stopped."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gamut.data.reader import Reader
from gamut.errors import FeatureError, GamutError, RecipeError
from gamut.features import FeatureCache, extract
from gamut.features.extract import Job, pool, prepare, run
from gamut.features.store import Store
from gamut.models.whisper import load_whisper
from gamut.recipe.find import list_recipes
from gamut.recipe.load import load_recipe
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.shards.__main__ import main as shards
from tests.close import assert_close
from tests.features.conftest import SHARD, changed, opened
from tests.models.whispers import saved_by_transformers


def extracted(recipe: Recipe) -> FeatureCache:
    job = prepare(recipe)
    return run(job, job.begin())


@functools.cache
def reference(data: str, model: str, rows: tuple[int, ...], seconds: float, width: int, fill: str) -> np.ndarray:
    """Clip after clip, from the samples: every block's output, pooled in NumPy."""
    whisper, reader, found = load_whisper(model), Reader(Index.open(data)), []
    for row in rows:
        clip = np.zeros(round(16_000 * seconds), np.float32)
        own = reader.decode(row)[: len(clip)] / 32768
        clip[: len(own)] = own
        mel = whisper.log_mel(torch.from_numpy(clip)[None])
        if fill == "zero":  # whisper-at's own: the log-mel of the clip, and then 0.0
            alone = whisper.log_mel(torch.from_numpy(own.astype(np.float32))[None])
            mel = torch.nn.functional.pad(alone, (0, mel.shape[2] - alone.shape[2]))
        blocks = whisper(mel).blocks
        found.append([block[0].numpy().reshape(-1, width, whisper.dim).mean(1) for block in blocks])
    return np.array(found, np.float32)


def expected(recipe: Recipe, cache: FeatureCache, rows: np.ndarray | None = None) -> np.ndarray:
    extract = recipe.extract
    rows = cache.rows if rows is None else rows
    return reference(recipe.data, recipe.init, tuple(rows.tolist()), extract.seconds, extract.pool, extract.pad_with)


def test_a_cache_holds_what_the_encoder_gives_clip_by_clip(recipe: Recipe) -> None:
    cache = extracted(recipe)
    assert (cache.info.layers, cache.info.steps, cache.info.dim, len(cache)) == (3, 10, 64, 40)
    assert_close(cache.read(cache.rows), expected(recipe, cache), 2e-5)
    index = opened(recipe)
    np.testing.assert_array_equal(cache.clip_id, index.clip_id[cache.rows])
    assert [cache.key(place) for place in range(40)] == [index.key(row) for row in cache.rows]
    cache.check_index(index.fingerprint)


@pytest.mark.parametrize(
    "keys",
    [
        {"batch": 1, "dtype": "fp16"},
        {"batch": 16, "dtype": "int8"},
        {"blocks": [0, 2]},
        {"pool": 1, "seconds": 1.0},
        {"seconds": 5.6, "batch": 4},  # longer than some clips
        {"seconds": 5.6, "batch": 4, "pad_with": "zero"},
    ],
)
def test_any_way_to_keep_them(recipe: Recipe, keys: dict) -> None:
    recipe = changed(replace(recipe, subset={"per_class": 1}), **keys)
    cache = extracted(recipe)
    exact = expected(recipe, cache)[:, list(cache.info.blocks)]
    got = cache.read(cache.rows).astype(np.float32)
    within = {"fp32": 1e-5, "fp16": 5e-4, "int8": 2e-2}[recipe.extract.dtype]
    assert np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean()) < within
    assert max(cache.info.error) < within


def test_workers_change_nothing(recipe: Recipe, tmp_path: Path) -> None:
    one = extracted(recipe)
    other = extracted(
        changed(replace(recipe, loader=replace(recipe.loader, workers=2)), folder=str(tmp_path / "other"))
    )
    assert other.folder != one.folder
    assert other.info.fingerprint == one.info.fingerprint
    np.testing.assert_array_equal(other.read(other.rows), one.read(one.rows))


def test_means_of_neighbours_the_last_of_what_is_left() -> None:
    x = torch.randn(2, 499, 5, generator=torch.Generator().manual_seed(0))
    got = pool(x, 20)
    assert got.shape == (2, 25, 5)
    assert_close(got[:, 0], x[:, :20].mean(1))
    assert_close(got[:, 24], x[:, 480:].mean(1))  # of 19
    assert torch.equal(pool(x, 1), x)
    assert_close(pool(x[:, :7], 20), x[:, :7].mean(1, keepdim=True))


def test_goes_on_after_a_kill(recipe: Recipe, tmp_path: Path) -> None:
    whole = extracted(changed(recipe, folder=str(tmp_path / "whole")))
    job = prepare(recipe)

    def killed() -> None:
        torch.set_num_threads(1)  # the parent's others are not there after a fork
        put = Store.put

        def deadly(made: Store, *args: object) -> None:
            put(made, *args)  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGKILL)

        Store.put = deadly  # type: ignore[assignment, method-assign]
        run(job, job.begin())

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(FeatureError, match=r"not finished \(1 shards are there\)"):
        FeatureCache(job.folder)
    first = (job.folder / "000000.safetensors").stat()
    cache = extracted(recipe)
    assert (job.folder / "000000.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    np.testing.assert_array_equal(cache.read(cache.rows), whole.read(whole.rows))


def test_an_extraction_that_hangs_says_so_and_ends(recipe: Recipe, tmp_path: Path) -> None:
    """Slow it may be: sixteen clips of a shard take longer together than may pass without one."""
    job = prepare(replace(recipe, run=replace(recipe.run, timeout_seconds=3.0)))

    def hung() -> None:
        torch.set_num_threads(1)
        os.dup2(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), 2)
        encode, calls = extract.encode, iter((2.0, 2.0, 99.0))

        def slowly(*given: object) -> torch.Tensor:
            time.sleep(next(calls))
            return encode(*given)  # type: ignore[arg-type]

        extract.encode = slowly
        run(job, job.begin())

    child = multiprocessing.get_context("fork").Process(target=hung)
    child.start()
    child.join(60)
    assert child.exitcode == 1
    assert "Timeout: nothing has moved for 3 s in process" in (said := (tmp_path / "log").read_text())
    assert "which is at: encoding." in said
    assert (job.folder / "000000.safetensors").exists()


def test_jobs_at_once_share_the_work(recipe: Recipe) -> None:
    job = prepare(recipe)
    log = job.folder.parent.parent / "log"

    def work(first: int) -> None:
        torch.set_num_threads(1)
        put = Store.put

        def noted(made: Store, records, holes) -> None:  # type: ignore[no-untyped-def]
            put(made, records, holes)
            with open(log, "a") as file:
                file.write(f"{records.number} ")
            time.sleep(0.3)

        Store.put = noted  # type: ignore[assignment, method-assign]
        run(job, job.begin(), first, 2)

    job.folder.mkdir(parents=True)
    jobs = [multiprocessing.get_context("fork").Process(target=work, args=(first,)) for first in (0, 1, 2)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join(120)
    assert [one.exitcode for one in jobs] == [0, 0, 0]
    assert sorted(log.read_text().split()) == ["0", "1", "2"]  # each made once
    cache = FeatureCache(job.folder)
    assert_close(cache.read(cache.rows), expected(recipe, cache), 2e-5)


@pytest.mark.long
def test_killed_at_random_again_and_again(recipe: Recipe, tmp_path: Path) -> None:
    """Three jobs at a time, each killed within half a second, until one of them comes to the end."""
    whole = extracted(changed(recipe, folder=str(tmp_path / "whole"), batch=4))
    generator, context = np.random.default_rng(0), multiprocessing.get_context("fork")
    for trial in range(10):
        job = prepare(changed(recipe, folder=str(tmp_path / f"trial{trial}"), batch=4))

        def work(job: Job = job) -> None:
            torch.set_num_threads(1)
            run(job, job.begin())

        kills = 0
        while not (job.folder / "cache.json").exists():
            jobs = [context.Process(target=work) for _ in range(3)]
            for one in jobs:
                one.start()
            for one in jobs:
                one.join(float(generator.uniform(0.0, 0.5)) * (1 + kills / 30))
                one.kill()
                one.join()
                kills += one.exitcode == -signal.SIGKILL
            if (job.folder / "cache.json").exists():
                break
            with pytest.raises(FeatureError):
                FeatureCache(job.folder)
        cache = FeatureCache(job.folder)
        np.testing.assert_array_equal(cache.read(cache.rows), whole.read(whole.rows))


def damage(data: Path, row: int) -> None:
    """Flip a bit of a clip in its tar."""
    index = Index.open(data)
    with open(index.shard_path(int(index.shard[row])), "r+b") as file:
        file.seek(int(index.offset[row]) + int(index.size[row]) // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_a_changed_clip_is_a_hole_and_comes_back_when_mended(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "shards"
    shutil.copytree(recipe.data, data)
    recipe = replace(recipe, data=str(data), loader=replace(recipe.loader, max_holes=0.05))
    row = int(prepare(recipe).clips.row[SHARD + 1])
    key = opened(recipe).key(row)
    damage(data, row)
    cache = extracted(recipe)
    assert [(hole.row, hole.key, hole.reason) for hole in cache.holes] == [(row, key, "checksum")]
    with pytest.raises(FeatureError, match=rf"Clip {key} has no features.*checksum"):
        cache.read([row])
    others = cache.rows[cache.rows != row]
    assert_close(cache.read(others), expected(recipe, cache, others), 2e-5)

    damage(data, row)  # back as it was
    from gamut.features.__main__ import mend

    mend(cache.folder)
    assert "1 shards are damaged or lack clips" in capsys.readouterr().out
    cache = extracted(recipe)
    assert not cache.holes
    assert_close(cache.read([row]), expected(recipe, cache, np.array([row])), 2e-5)


def test_too_many_unusable_clips_stop_it_with_their_names(recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "shards"
    shutil.copytree(recipe.data, data)
    recipe = replace(recipe, data=str(data))
    rows = prepare(recipe).clips.row[:2].tolist()
    keys = [opened(recipe).key(row) for row in rows]
    for row in rows:
        damage(data, row)
    with pytest.raises(GamutError, match=rf"2 of 40 clips cannot be used.*max_holes=0.01.*{keys[0]} \(checksum\)"):
        extracted(recipe)


def test_other_sounds_and_other_weights_have_another_address(recipe: Recipe, tmp_path: Path) -> None:
    job = prepare(recipe)
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    index = opened(recipe)
    for row in range(2):
        (source / "a" / f"{row}.flac").write_bytes(Reader(index).read(row))
    assert shards(["convert", "folder", str(source), str(tmp_path / "one")]) == 0
    (source / "a" / "1.flac").write_bytes(Reader(index).read(2))  # the same name, another sound
    assert shards(["convert", "folder", str(source), str(tmp_path / "two")]) == 0
    jobs = [prepare(replace(recipe, data=str(tmp_path / name), subset={})) for name in ("one", "two")]
    other = prepare(replace(recipe, init=str(saved_by_transformers(tmp_path / "other", seed=9))))
    keys = ({"pool": 5}, {"dtype": "fp16"}, {"blocks": [1]}, {"seconds": 1.5})
    jobs += [other, *(prepare(changed(recipe, **key)) for key in keys), prepare(replace(recipe, precision="bf16"))]
    assert len({one.about.fingerprint for one in [job, *jobs]}) == len(jobs) + 1
    assert prepare(changed(recipe, batch=2)).about.fingerprint == job.about.fingerprint
    renamed = prepare(replace(recipe, run=replace(recipe.run, name="other")))
    assert renamed.about.fingerprint == job.about.fingerprint


def test_the_same_features_by_another_name_are_found(recipe: Recipe) -> None:
    cache = extracted(recipe)
    renamed = prepare(replace(recipe, run=replace(recipe.run, name="other")))
    assert renamed.folder == cache.folder


def test_a_disk_without_room_is_refused_before_it_begins(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(recipe)
    made = job.begin()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(FeatureError, match=r"needs 0.00 GB for 3 shards, and its disk has 0.00 GB free.*int8"):
        run(job, made)
    assert made.missing() == [0, 1, 2]


def test_large_records_make_small_shards(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    record = prepare(recipe).about.record_bytes
    monkeypatch.setattr("gamut.features.extract.LARGEST", 5 * record)
    cache = extracted(recipe)
    assert cache.about.per_shard == 4
    assert_close(cache.read(cache.rows), expected(recipe, cache), 2e-5)


def test_what_cannot_be_is_a_sentence(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="names block 3; the encoder has 0 to 2"):
        prepare(changed(recipe, blocks=[3]))
    with pytest.raises(RecipeError, match="more than the 30 s that this Whisper's positions"):
        prepare(changed(recipe, seconds=31.0))
    with pytest.raises(RecipeError, match="names no encoder: add init=PATH"):
        prepare(replace(recipe, init=""))
    for wrong, said in (
        ("extract.batch=24", "must divide 128, such as 16, not 24"),
        ("extract.blocks=[2, 1]", "ascending"),
        ("extract.dtype=fp8", "fp16, fp32 or int8"),
        ("mixture={a: 1}", "one shard set"),
        ("augment.mixup=0.5", "is for finetune recipes"),
    ):
        with pytest.raises(RecipeError, match=said):
            load_recipe("features", "whisper_tiny_esc50", [wrong])
    with pytest.raises(RecipeError, match="must be fp32 or bf16, not 'fp16'"):
        load_recipe("pretrain", "asit_tiny", ["precision=fp16"])
    with pytest.raises(RecipeError, match="is for features recipes"):
        load_recipe("pretrain", "asit_tiny", ["extract.pool=2"])


def test_every_recipe_can_be_read() -> None:
    names = list_recipes("features")
    assert len(names) >= 8
    for name in names:
        assert load_recipe("features", name).run.name == name
