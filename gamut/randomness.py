"""One counter-based integer hash: the only source of randomness.

Key = (seed, epoch, clip id, draw, view, purpose or layer). The same key gives the same bits in NumPy, in torch on the
CPU and in torch on CUDA, whatever ran before; nothing draws from a generator with hidden state. So a crop, a mask or
a dropped layer can be replayed from its key alone, on any rank, at any world size, after any restart.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), a bijection of 64-bit words. NumPy computes it
in uint64, torch in int64 with logical shifts; both wrap modulo 2**64, so the bits agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
WORD = (1 << 64) - 1
PIECE = 1 << 15  # keys made at a time: what fits into a core's cache is mixed twice as fast


class Purpose(IntEnum):
    """What a key is for, so that no two uses of one clip share bits. Numbers are part of the format: only append."""

    ORDER_SHARDS = 1
    ORDER_CLIPS = 2
    DRAW = 3
    CROP = 4
    HOP = 5
    MIXUP = 6
    PARTNER = 7
    MASK = 8
    MASK_TARGET = 9
    FILL = 10
    SPEC_TIME = 11
    SPEC_FREQUENCY = 12
    NOISE = 13
    NOISE_SCALE = 14
    ROLL = 15
    DROP_TOKEN = 16
    DROP_PATH = 17
    DROPOUT = 18
    INIT = 19
    SAMPLE = 20
    POOL = 21
    ROLL_WAVE = 22
    ROLL_CHANCE = 23
    MIX_WEIGHT = 24
    PARTNER_CROP = 25
    CLONE = 26
    HALVES = 27
    ASCENDING = 28


def _mix(word: Any) -> Any:
    word = word ^ (word >> np.uint64(30))  # an array of its own, so the rest may happen in place
    word *= np.uint64(FIRST)
    word ^= word >> np.uint64(27)
    word *= np.uint64(SECOND)
    word ^= word >> np.uint64(31)
    return word


def _as_uint64(part: Any) -> Any:
    if isinstance(part, (int, np.integer)):
        return np.uint64(int(part) & WORD)
    array = np.asarray(part)
    return array if array.dtype == np.uint64 else array.astype(np.int64).view(np.uint64)


def key(*parts: Any) -> Any:
    """Hash integers and integer arrays (broadcast against each other) into uint64 keys.

    The order of the parts matters. Arrays of uint64 (clip ids) and of signed integers are both accepted.

    >>> hex(key(0, 1, 2))
    '0x5def8c1f8a9e3322'
    """
    columns = [part for part in parts if isinstance(part, np.ndarray) and part.ndim]
    if len({column.shape for column in columns}) == 1 and columns[0].ndim == 1 and len(columns[0]) > PIECE:
        words = np.empty(len(columns[0]), np.uint64)
        for piece in (slice(first, first + PIECE) for first in range(0, len(words), PIECE)):
            words[piece] = key(*(part[piece] if any(part is c for c in columns) else part for part in parts))
        return words
    with np.errstate(over="ignore"):
        word = np.uint64(0)
        for part in parts:
            word = _mix((word ^ _as_uint64(part)) + np.uint64(GOLDEN))
    return word


def uniform(keys: Any) -> Any:
    """Map uint64 keys to float64 in [0, 1): the top 24 bits, so that float32 holds the same number exactly."""
    return (np.asarray(keys) >> np.uint64(40)).astype(np.float64) * 2.0**-24


def integers(keys: Any, low: Any, high: Any) -> Any:
    """Map uint64 keys to int64 in [low, high), by multiply-shift on the top 32 bits. `high` - `low` <= 2**31."""
    top = (np.asarray(keys) >> np.uint64(32)).astype(np.uint64)
    span = (np.asarray(high) - np.asarray(low)).astype(np.uint64)
    return ((top * span) >> np.uint64(32)).astype(np.int64) + low


def permutation(n: int, *parts: Any) -> np.ndarray:
    """A permutation of range(n), int64, from a key: positions sorted by their hash, ties by position."""
    return np.argsort(key(*parts, np.arange(n, dtype=np.int64)), kind="stable")


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant


SIGNED = (_signed(GOLDEN), _signed(FIRST), _signed(SECOND))  # as torch has them


def _shift(word: torch.Tensor, by: int) -> torch.Tensor:
    return (word >> by) & ((1 << (64 - by)) - 1)  # torch shifts int64 arithmetically; the mask makes it logical


@dataclass(frozen=True)
class Begun:
    """The first parts of a key, hashed already, for many keys that begin alike: the first part of `key_torch`."""

    word: torch.Tensor

    def __getitem__(self, which: Any) -> Begun:
        """Those of some of the keys."""
        return Begun(self.word[which])


def begun(*parts: Any) -> Begun:
    """key_torch(begun(*parts), *more) is key_torch(*parts, *more), and hashes `more` alone."""
    return Begun(key_torch(*parts))


def key_torch(*parts: Any, device: torch.device | str | None = None) -> torch.Tensor:
    """`key` on torch int64 tensors (and integers): the same 64 bits, read as int64.

    The integers that come first are hashed on the host: a part costs thirteen operations of the device. Without a
    tensor among the parts the key is made on `device`. The first part may be a `Begun`.
    """
    import torch

    if isinstance(parts[0], Begun):
        return _hashed(parts[0].word, parts[1:])
    constants = next((at for at, part in enumerate(parts) if isinstance(part, torch.Tensor)), len(parts))
    start = _signed(int(key(*parts[:constants]))) if constants else 0  # torch.compile follows no NumPy
    if constants == len(parts):
        return torch.full((), start, dtype=torch.int64, device=device)
    return _hashed(start, parts[constants:])


def _hashed(word: Any, parts: Sequence[Any]) -> torch.Tensor:
    """The key of a word that is hashed already and further parts."""
    import torch

    golden, first, second = SIGNED
    for part in parts:
        if not isinstance(part, torch.Tensor):
            part = _signed(int(part) & WORD)
        elif part.dtype != torch.int64:
            part = part.to(torch.int64)
        word = (word ^ part) + golden
        word = (word ^ _shift(word, 30)) * first
        word = (word ^ _shift(word, 27)) * second
        word = word ^ _shift(word, 31)
    return word


def uniform_torch(keys: torch.Tensor) -> torch.Tensor:
    """`uniform` on torch keys: float32 in [0, 1), equal to NumPy's numbers."""
    return _shift(keys, 40).float() * 2.0**-24


def normal_torch(keys: torch.Tensor) -> torch.Tensor:
    """Standard normal float32 numbers, within +-5.8, from torch keys (Box and Muller, of a key's 48 upper bits).

    The bits are the same on every device, the logarithm and cosine of them to rounding.
    """
    import torch

    radius = (-2.0 * torch.log((_shift(keys, 40) + 1).float() * 2.0**-24)).sqrt()
    angle = (_shift(keys, 16) & 0xFFFFFF).float() * (2.0**-24 * 2.0 * np.pi)
    return radius * torch.cos(angle)


def integers_torch(keys: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
    """`integers` on torch keys: int64 in [low, high), equal to NumPy's."""
    return _shift(_shift(keys, 32) * (high - low), 32) + low
