"""The hash under everything: its bits, the same in NumPy and torch, and that they look random where we use them."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from gamut import randomness
from gamut.randomness import (
    Purpose,
    begun,
    integers,
    integers_torch,
    key,
    key_torch,
    permutation,
    uniform,
    uniform_torch,
)

word = st.integers(-(2**63), 2**64 - 1)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def slow_key(*parts: int) -> int:
    """SplitMix64's finaliser over the parts, in integers of any size."""
    mask, state = 2**64 - 1, 0
    for part in parts:
        state = ((state ^ (part & mask)) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_known_values() -> None:
    assert int(key(0)) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 seeded with 0
    assert int(key(0, 1, 2)) == 0x5DEF8C1F8A9E3322
    assert int(key(7, 3, 2**64 - 1, 0, 1, Purpose.CROP)) == slow_key(7, 3, 2**64 - 1, 0, 1, 4)
    assert [int(p) for p in Purpose] == list(range(1, len(Purpose) + 1))  # numbers are part of the format


def test_the_example_in_the_docstring_holds() -> None:
    assert doctest.testmod(randomness) == (0, 1)


@given(st.lists(word, min_size=1, max_size=7))
def test_numpy_is_the_slow_reference(parts: list[int]) -> None:
    assert int(key(*parts)) == slow_key(*parts)


@pytest.mark.parametrize("device", DEVICES)
@given(seed=word, ids=st.lists(word, min_size=1, max_size=20), epoch=st.integers(0, 1000), view=st.integers(0, 11))
def test_torch_has_numpys_bits(device: str, seed: int, ids: list[int], epoch: int, view: int) -> None:
    clip_id = np.array([i & (2**64 - 1) for i in ids], np.uint64)
    ours = key(seed, epoch, clip_id, 0, view, Purpose.MASK)
    tensor = torch.from_numpy(clip_id.view(np.int64)).to(device)
    theirs = key_torch(seed, epoch, tensor, 0, view, Purpose.MASK, device=device)
    assert theirs.cpu().numpy().view(np.uint64).tolist() == ours.tolist()
    assert uniform_torch(theirs).cpu().tolist() == uniform(ours).tolist()
    for low, high in ((0, 1), (0, 16), (-5, 1000003), (0, 2**31)):
        assert integers_torch(theirs, low, high).cpu().tolist() == integers(ours, low, high).tolist()


@given(st.lists(word, min_size=1, max_size=5), st.lists(word, min_size=1, max_size=5))
def test_arrays_broadcast_like_one_key_at_a_time(rows: list[int], columns: list[int]) -> None:
    mask = 2**64 - 1
    first = np.array([r & mask for r in rows], np.uint64)[:, None]
    second = np.array([c & mask for c in columns], np.uint64)
    whole = key(3, first, second)
    assert whole.tolist() == [[slow_key(3, r, c) for c in columns] for r in rows]
    signed = key_torch(3, torch.from_numpy(first.view(np.int64)), torch.from_numpy(second.view(np.int64)))
    assert signed.numpy().view(np.uint64).tolist() == whole.tolist()


def test_a_key_that_was_begun_is_the_key_of_all_parts() -> None:
    ids, which = torch.arange(5, dtype=torch.int64) - 2, torch.tensor([4, 0])
    start = begun(7, 3, ids)
    assert torch.equal(key_torch(start, Purpose.MASK), key_torch(7, 3, ids, Purpose.MASK))
    assert torch.equal(key_torch(start[which][:, None], ids, 1), key_torch(7, 3, ids[which][:, None], ids, 1))
    assert torch.equal(start.word, key_torch(7, 3, ids))


def test_signed_and_unsigned_words_are_one() -> None:
    assert int(key(-1)) == int(key(2**64 - 1)) == int(key(np.array([-1]))[0]) == int(key(np.uint64(2**64 - 1)))
    assert int(key(np.int32(-1))) == int(key(np.array([-1], np.int32))[0]) == int(key(-1))


@given(st.integers(0, 200), word)
def test_a_permutation_has_every_place_once(n: int, seed: int) -> None:
    order = permutation(n, seed, 1)
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == permutation(n, seed, 1).tolist()


@given(word, st.integers(-1000, 1000), st.integers(1, 2**31))
def test_integers_stay_in_their_range(seed: int, low: int, span: int) -> None:
    assert low <= int(integers(key(seed), low, low + span)) < low + span
    # The extreme keys reach the ends.
    assert int(integers(np.uint64(0), low, low + span)) == low
    assert int(integers(np.uint64(2**64 - 1), low, low + span)) == low + span - 1


def test_uniform_is_below_one_and_exact_in_float32() -> None:
    top = uniform(np.uint64(2**64 - 1))
    assert top < 1.0
    assert np.float32(top) == top
    assert uniform(np.uint64(0)) == 0.0


# What changes from key to key when the framework draws: one part, counted up, the others at small values.
STREAMS = {
    "clips": lambda n: key(0, 0, np.arange(n), 0, 0, Purpose.CROP),
    "seeds": lambda n: key(np.arange(n), 0, 12345, 0, 0, Purpose.CROP),
    "epochs": lambda n: key(0, np.arange(n), 12345, 0, 0, Purpose.CROP),
    "draws and views": lambda n: key(0, 0, 12345, np.arange(n) // 8, np.arange(n) % 8, Purpose.MASK),
    "purposes": lambda n: key(0, 0, np.arange(n) // 20, 0, 0, np.arange(n) % 20 + 1),
    "high bits": lambda n: key(0, 0, np.arange(n, dtype=np.uint64) << np.uint64(40), 0, 0, Purpose.CROP),
    "nested": lambda n: key(key(5, 6, 7, 0, 0, Purpose.FILL), np.arange(n)),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_is_uniform_by_chi_square(stream: str) -> None:
    n = 1 << 16
    keys = STREAMS[stream](n)
    assert len(np.unique(keys)) == n
    for shift in range(0, 64, 8):  # every byte of the word
        bins = np.bincount(((keys >> np.uint64(shift)) & np.uint64(255)).astype(np.int64), minlength=256)
        assert chisquare(bins).pvalue > 1e-5
    assert chisquare(np.bincount((uniform(keys) * 100).astype(int), minlength=100)).pvalue > 1e-5
    assert chisquare(np.bincount(integers(keys, 0, 37), minlength=37)).pvalue > 1e-5
    neighbours = integers(keys[:-1], 0, 16) * 16 + integers(keys[1:], 0, 16)
    assert chisquare(np.bincount(neighbours, minlength=256)).pvalue > 1e-5


def test_one_flipped_bit_of_any_part_flips_half_the_key() -> None:
    base = np.arange(2000, dtype=np.uint64)
    for bit in range(64):
        flipped = base ^ np.uint64(1 << bit)
        for before, after in ((key(1, base, 2), key(1, flipped, 2)), (key(base, 1, 2), key(flipped, 1, 2))):
            changed = np.unpackbits((before ^ after).view(np.uint8)).mean()
            assert abs(changed - 0.5) < 0.01


def test_uses_and_orders_of_parts_are_independent() -> None:
    clips = np.arange(20000)
    draws = {purpose: uniform(key(0, 0, clips, 0, 0, purpose)) for purpose in Purpose}
    draws |= {f"epoch {e}": uniform(key(0, e, clips, 0, 0, Purpose.CROP)) for e in (1, 2)}
    draws["swapped"] = uniform(key(0, clips, 0, 0, 0, Purpose.CROP))
    correlation = np.corrcoef(np.stack(list(draws.values())))
    assert np.abs(correlation - np.eye(len(draws))).max() < 0.04  # 5.6 standard errors


def test_a_permutation_is_unbiased() -> None:
    orders = np.stack([permutation(8, seed, Purpose.ORDER_CLIPS) for seed in range(4000)])
    for place in range(8):
        assert chisquare(np.bincount(orders[:, place], minlength=8)).pvalue > 1e-5
