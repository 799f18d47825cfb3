"""SpecAugment and noise: distribution, keys, and no influence of the batch that a segment lies in."""

from __future__ import annotations

import pytest
import torch

from gamut.audio.augment import random_noise, spec_augment, time_maximum
from gamut.randomness import Purpose, key, uniform
from tests.close import apart

MARK = -77.0


def mel(sizes: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(sum(sizes), 128, generator=torch.Generator().manual_seed(0))


def keys(clips: int, seed: int = 3, epoch: int = 1) -> tuple:
    clip_id = torch.arange(clips) * 7919 - 5
    return (seed, epoch, clip_id, torch.zeros(clips, dtype=torch.int64), torch.arange(clips) % 2)


def masks(masked: torch.Tensor, sizes: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """(frames, bins) hidden as a whole, of each segment; everything else must be untouched."""
    found = []
    for segment in masked.split(sizes):
        hidden = segment == MARK
        rows, columns = hidden.all(dim=1), hidden.all(dim=0)
        assert torch.equal(hidden, rows[:, None] | columns[None, :])
        found.append((rows.nonzero()[:, 0].tolist(), columns.nonzero()[:, 0].tolist()))
    return found


def contiguous(numbers: list[int]) -> bool:
    return not numbers or numbers == list(range(numbers[0], numbers[-1] + 1))


def test_one_time_and_one_frequency_mask_a_segment() -> None:
    sizes = (496,) * 400
    before = mel(sizes)
    given = before.clone()
    masked = spec_augment(before, torch.tensor(sizes), sizes, keys(400), 96, 24, fill=MARK)
    assert torch.equal(before, given)
    assert torch.equal(masked[masked != MARK], before[masked != MARK])
    spans = masks(masked, sizes)
    assert all(contiguous(rows) and contiguous(bins) for rows, bins in spans)
    for widths, maximum in (
        ([len(rows) for rows, _ in spans], 96),
        ([len(bins) for _, bins in spans], 24),
    ):
        assert set(range(0, maximum, maximum // 12)) & set(widths)
        assert max(widths) == maximum - 1
        assert sum(widths) / len(widths) == pytest.approx((maximum - 1) / 2, rel=0.1)
    centres = [(rows[0] + rows[-1]) / 2 for rows, _ in spans if rows]
    assert min(centres) < 30
    assert max(centres) > 465
    assert sum(centres) / len(centres) == pytest.approx(247.5, rel=0.07)


def test_masks_wider_than_a_segment_and_a_maximum_a_segment() -> None:
    sizes = (16, 16, 496, 496)
    masked = spec_augment(mel(sizes), torch.tensor(sizes), sizes, keys(4), 192, 0, fill=MARK)
    spans = masks(masked, sizes)
    assert all(len(rows) <= size for (rows, _), size in zip(spans, sizes))
    per_segment = torch.tensor([0, 16, 1, 192])
    spans = masks(spec_augment(mel(sizes), torch.tensor(sizes), sizes, keys(4), per_segment, 0, fill=MARK), sizes)
    assert spans[0] == spans[2] == ([], [])


def test_masks_switched_off_change_nothing() -> None:
    sizes = (48, 96)
    assert torch.equal(spec_augment(mel(sizes), torch.tensor(sizes), sizes, keys(2), 0, 0), mel(sizes))


def augment(kind: str, x: torch.Tensor, sizes: tuple[int, ...], parts: tuple) -> torch.Tensor:
    if kind == "masks":
        return spec_augment(x, torch.tensor(sizes), sizes, parts, 48, 24, fill=MARK)
    return random_noise(x, torch.tensor(sizes), sizes, parts)


@pytest.mark.parametrize("kind", ["masks", "noise"])
def test_keys_decide_and_packing_does_not(kind: str) -> None:
    sizes = (48, 160, 16, 96)
    x, parts = mel(sizes), keys(4)
    before = torch.get_rng_state()
    packed = augment(kind, x, sizes, parts)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(packed, augment(kind, x, sizes, parts))
    for other in (keys(4, seed=4), keys(4, epoch=2), (*parts[:4], parts[4] + 1), (*parts[:3], parts[3] + 1, parts[4])):
        assert not torch.equal(packed, augment(kind, x, sizes, other))
    for number, (clip, result) in enumerate(zip(x.split(sizes), packed.split(sizes))):
        own = tuple(part[number : number + 1] if isinstance(part, torch.Tensor) else part for part in parts)
        assert torch.equal(augment(kind, clip, (len(clip),), own), result)
    assert augment(kind, x[:0], (), keys(0)).shape == (0, 128)


def test_noise_and_roll_are_asts() -> None:
    """Each segment is a numpy-keyed replay of: add U(0, 1) a bin x U(0, 1) a segment / 10, then roll."""
    sizes = (48, 16, 96) * 30
    x, parts = mel(sizes), keys(len(sizes))
    result = random_noise(x, torch.tensor(sizes), sizes, parts)
    rolls = []
    for number, (clip, noisy) in enumerate(zip(x.split(sizes), result.split(sizes))):
        own = [int(part[number]) if isinstance(part, torch.Tensor) else part for part in parts]
        scale = uniform(key(*own, Purpose.NOISE_SCALE)) / 10.0
        bins = torch.arange(clip.numel()).numpy()
        noise = torch.from_numpy(uniform(key(*own, Purpose.NOISE, bins)) * scale).reshape(clip.shape)
        # The roll that was drawn is the only one of -10 .. 9 that undoes it (16 frames: up to a whole turn).
        fits = [r for r in range(-10, 10) if apart(noisy.roll(-r, 0).double(), clip + noise) <= 1e-6]
        assert fits
        if len(clip) > 20:
            assert len(fits) == 1
            rolls += fits
    assert (min(rolls), max(rolls)) == (-10, 9)


def test_time_masks_scale_with_length_or_resolution() -> None:
    """192 * frames / 1,024 at native length, 192 / C at mixed resolution, for which a frame is C x 10 ms."""
    frames, hop = torch.tensor([1024, 512, 2992, 16]), torch.tensor([160, 192, 640, 160])
    pool = torch.tensor([1, 1, 1, 3])
    assert time_maximum(192, "none", frames, hop) == 192
    assert time_maximum(192, "length", frames, hop).tolist() == [192, 96, 561, 3]
    assert time_maximum(192, "resolution", frames, hop).tolist() == [192, 160, 48, 192]
    assert time_maximum(192, "resolution", frames, hop, pool).tolist() == [192, 160, 48, 64]
