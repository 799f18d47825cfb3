"""What is read from a cache is what was written, for the clip that was asked for, or an error that names it."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from gamut.data.batch import Hole
from gamut.errors import FeatureError
from gamut.features import FeatureCache, write_cache
from gamut.features.precision import Error, load, store
from tests.close import assert_close

SHAPE = (3, 5, 8)


def some(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "within"), [("fp32", 0.0), ("fp16", 1e-3), ("int8", 2e-2)])
def test_reads_what_was_written_in_any_order(tmp_path: Path, dtype: str, within: float) -> None:
    x = some(20)
    cache = write_cache(tmp_path / "c", x, rows=np.arange(20) * 3 + 1, dtype=dtype, per_shard=8)
    rows = [58, 1, 1, 25, 22]  # the last, the first twice, and both sides of a border
    got = cache.read(rows)
    assert got.dtype == (np.float32 if dtype == "fp32" else np.float16)
    assert_close(got, x[[19, 0, 0, 8, 7]], within)
    np.testing.assert_array_equal(cache.read_ids(cache.clip_id[[19, 0, 0, 8, 7]]), got)
    np.testing.assert_array_equal(cache.read_ids(cache.clip_id[[19, 0, 0, 8, 7]].view(np.int64)), got)
    assert (cache.info.layers, cache.info.steps, cache.info.dim, cache.info.dtype) == (*SHAPE, dtype)
    assert cache.read([]).shape == (0, *SHAPE)


def test_says_what_storing_has_cost(tmp_path: Path) -> None:
    x = some(20)
    cache = write_cache(tmp_path / "c", x, dtype="int8", per_shard=8)
    difference = cache.read(np.arange(20)).astype(np.float64) - x
    expected = np.sqrt((difference**2).sum((0, 2, 3)) / (x.astype(np.float64) ** 2).sum((0, 2, 3)))
    assert_close(cache.info.error, expected, 1e-6)
    assert 1e-4 < max(cache.info.error) < 1e-2


def test_int8_holds_channels_of_very_different_size() -> None:
    x = some(4) * np.array([1e3, 1e-3, 1, 1, 0, 1, 1, 1], np.float32)
    back = load(store(torch.from_numpy(x), "int8"), "int8").double().numpy()
    most = np.abs(x).max(2, keepdims=True)
    assert (np.abs(back - x) <= most * (0.51 / 127 + 2e-3)).all()


@given(st.integers(0, 2**31 - 1), st.floats(-6, 4))
@settings(max_examples=30)
def test_int8_is_within_half_a_level_of_any_channel(seed: int, size: float) -> None:
    x = torch.from_numpy(some(2, seed) * np.float32(10.0**size))
    error = Error.between(x, load(store(x, "int8"), "int8"))
    assert max(error.relative()) < 0.02


def test_what_fp16_cannot_hold_is_an_error_that_names_the_clip(tmp_path: Path) -> None:
    x = some(10)
    x[6, 1, 2, 3] = 1e5
    with pytest.raises(FeatureError, match=r"clip clip6 reach 1e\+05, more than fp16 holds.*extract.dtype=fp32"):
        write_cache(tmp_path / "c", x)
    x[6, 1, 2, 3] = np.nan
    with pytest.raises(FeatureError, match="clip clip6 are not finite"):
        write_cache(tmp_path / "d", x, dtype="fp32")


def test_a_hole_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    x = some(10)
    cache = write_cache(tmp_path / "c", x[:9], holes=[Hole(4, "clip4", "checksum")], per_shard=4)
    assert cache.info.holes == 1
    assert cache.has([3, 4, 5, 99]).tolist() == [True, False, True, False]
    with pytest.raises(FeatureError, match=r"Clip clip4 has no features.*\(checksum\)"):
        cache.read([3, 4])
    assert_close(cache.read([3, 5]), x[[3, 4]], 1e-3)
    with pytest.raises(FeatureError, match="no clip of row 10"):
        cache.read([10])
    with pytest.raises(FeatureError, match="no clip 0x0000000000000001"):
        cache.read_ids([1])


def test_any_library_that_knows_safetensors_reads_a_shard(tmp_path: Path) -> None:
    x = some(10)
    write_cache(tmp_path / "c", x, per_shard=8)
    with safe_open(tmp_path / "c" / "000001.safetensors", "np") as file:
        assert list(file.keys()) == ["x"]
        np.testing.assert_array_equal(file.get_tensor("x"), x[8:].astype(np.float16))
    header = int.from_bytes((tmp_path / "c" / "000001.safetensors").read_bytes()[:8], "little")
    assert (header + 8) % 4096 == 0


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", some(6), per_shard=4)
    path = cache.folder / "000000.safetensors"
    size = cache.info.record_bytes
    for record in range(4):
        flip(path, 4096 + record * size + 37 * record)
        with pytest.raises(
            FeatureError, match=rf"features of clip clip{record} in .*000000.* checksum.*verify.*--mend"
        ):
            cache.read([record])
        flip(path, 4096 + record * size + 37 * record)
    assert cache.read(np.arange(6)).shape == (6, *SHAPE)


@pytest.mark.parametrize("name", ["row", "clip_id", "shard", "slot", "checksum", "key", "key_offset"])
def test_a_flipped_bit_of_the_index_is_found(tmp_path: Path, name: str) -> None:
    cache = write_cache(tmp_path / "c", some(6), per_shard=4)
    flip(cache.folder / "index" / f"{name}.npy", -8)
    with pytest.raises(FeatureError, match=f"damaged.*{name}.npy"):
        FeatureCache(cache.folder)


class Hostile:
    """What runs code where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_pickles_in_the_place_of_a_caches_files_are_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in ("index/row.npy", "index/key.npy", "cache.json", "about.json", "000000.safetensors"):
        cache = write_cache(tmp_path / name.replace("/", "-"), some(4))
        if name.endswith(".npy"):
            np.save(cache.folder / name, np.array([Hostile(mark)] * 4, object), allow_pickle=True)
        else:
            (cache.folder / name).write_bytes(pickle.dumps(Hostile(mark)))
        if name == "about.json":  # read by those who write only
            with pytest.raises(FeatureError, match="damaged"):
                write_cache(cache.folder, some(4))
        else:
            with pytest.raises(FeatureError):
                FeatureCache(cache.folder).read([0])
        assert not mark.exists()


def test_missing_short_swapped_and_foreign_shards_are_errors(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", some(8), per_shard=4)
    other = write_cache(tmp_path / "d", some(8, seed=1), per_shard=4)
    first, second = (cache.folder / f"00000{number}.safetensors" for number in (0, 1))
    whole = first.read_bytes()
    for change in (
        lambda: first.unlink(),
        lambda: first.write_bytes(whole[:-1]),
        lambda: first.write_bytes(second.read_bytes()),
        lambda: first.write_bytes((other.folder / first.name).read_bytes()),
        lambda: first.write_bytes(b""),
    ):
        change()
        with pytest.raises(FeatureError, match="clip0"):
            FeatureCache(cache.folder).read([0])
        assert FeatureCache(cache.folder).read([4]).shape == (1, *SHAPE)
    first.write_bytes(whole)
    os.truncate(first, len(whole) - 1)
    with pytest.raises(FeatureError, match="clip3"):  # a descriptor that was open before
        cache.read([3])


def test_a_record_in_the_place_of_another_is_found(tmp_path: Path) -> None:
    """Even with its own checksum beside it: a checksum holds for one clip of one cache."""
    cache = write_cache(tmp_path / "c", some(4))
    path, size = cache.folder / "000000.safetensors", cache.info.record_bytes
    data = path.read_bytes()
    path.write_bytes(
        data[:4096] + data[4096 + size : 4096 + 2 * size] + data[4096 : 4096 + size] + data[4096 + 2 * size :]
    )
    cache._checksum = np.asarray(cache._checksum)[[1, 0, 2, 3]]
    with pytest.raises(FeatureError, match="clip0"):
        cache.read([0])


def test_threads_and_forked_workers_read_through_one_object(tmp_path: Path) -> None:
    x = some(40)
    cache = write_cache(tmp_path / "c", x, per_shard=4, dtype="fp32")
    cache.read([0])
    wrong: list[int] = []

    def work(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, 40, 200).tolist():
            if not np.array_equal(cache.read([row])[0], x[row]):
                wrong.append(row)

    children = []
    for seed in range(2):
        child = os.fork()
        if not child:
            work(seed)
            os._exit(bool(wrong))
        children.append(child)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert not wrong
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).read([7])[0], x[7])


def test_descriptors_of_ended_threads_are_given_back(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", some(8), per_shard=4)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        thread = threading.Thread(target=cache.read, args=([0, 7],))
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_cache_is_found_by_the_name_above_it(tmp_path: Path) -> None:
    write_cache(tmp_path / "name" / "a", some(4))
    assert FeatureCache(tmp_path / "name").folder == tmp_path / "name" / "a"
    assert FeatureCache(tmp_path).folder == tmp_path / "name" / "a"
    write_cache(tmp_path / "name" / "b", some(4, seed=1))
    with pytest.raises(FeatureError, match=r"2 caches \(a, b\)"):
        FeatureCache(tmp_path / "name")
    with pytest.raises(FeatureError, match="There is no cache of features"):
        FeatureCache(tmp_path / "nothing")


def test_a_cache_of_another_index_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", some(4), index="abc")
    cache.check_index("abc")
    with pytest.raises(FeatureError, match=r"index abc.*index def.*Extract its features again"):
        cache.check_index("def")
