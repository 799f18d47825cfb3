"""Independent uniform numbers in ascending order, of which any stretch is made alone."""

from __future__ import annotations

import numpy as np

from gamut.randomness import Purpose, key

PIECE = 1 << 16  # numbers made together, at most about


class Ascending:
    """N independent numbers, uniform in [0, 1), sorted: number i of them without making those before it.

    The interval is halved, and its halves, until a part holds few numbers. How many of m numbers fall into the left
    half is the count of ones among m random bits: exact, and the same bits on every machine, as no function is
    inverted. It takes N random bits a halving, 0.2 s for 200 million numbers; then a part is 2**16 numbers or so, made
    and sorted when it is asked for.

    >>> some = Ascending(10, 3)
    >>> bool((some.stretch(4, 6) == some.stretch(0, 10)[4:6]).all())
    True
    """

    def __init__(self, numbers: int, *parts: int) -> None:
        """parts: of the key, seed and epoch and whatever else tells this sequence from others."""
        self.parts = parts
        self.depth = max(0, (numbers // PIECE).bit_length())
        counts = [numbers]
        for depth in range(self.depth):
            halves = []
            for part, count in enumerate(counts):
                left = self._ones(depth, part, count)
                halves += [left, count - left]
            counts = halves
        self.before = np.concatenate([[0], np.cumsum(counts)])  # numbers in the parts before each

    def stretch(self, begin: int, end: int) -> np.ndarray:
        """float64 [end - begin], ascending: numbers `begin` to `end`, of all 53 bits that a double has."""
        if begin >= end:
            return np.zeros(0)
        from_part = int(np.searchsorted(self.before, begin, side="right")) - 1
        to_part = int(np.searchsorted(self.before, end, side="left"))
        made = np.concatenate([self._part(part) for part in range(from_part, to_part)])
        skipped = begin - int(self.before[from_part])
        return made[skipped : skipped + end - begin]

    def _part(self, part: int) -> np.ndarray:
        count = int(self.before[part + 1] - self.before[part])
        keys = np.sort(key(*self.parts, Purpose.ASCENDING, self.depth, part, np.arange(count)))
        fine = keys >> np.uint64(11 + self.depth)
        return ((np.uint64(part) << np.uint64(53 - self.depth)) | fine).astype(np.float64) * 2.0**-53

    def _ones(self, depth: int, part: int, bits: int) -> int:
        words = key(*self.parts, Purpose.HALVES, depth, part, np.arange(-(-bits // 64)))
        if bits % 64:
            words[-1] &= np.uint64((1 << bits % 64) - 1)
        return int(np.bitwise_count(words).sum(dtype=np.int64))
