"""Sound far beyond full scale: floating-point samples in the range of 16-bit integers become noise where they are held
to [-1, 1], which no later step can tell from a clip.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from gamut.audio.blocks import Blocks
from gamut.errors import AudioError

BULK = 0.05  # share of the samples: more of them are not clipped
LOSSY = 2.0  # times full scale: Vorbis and MP3 of a clipped recording have up to 1.5 % of their samples beyond it
EXACT = ("FLOAT", "DOUBLE")  # encodings, as soundfile calls them, whose samples may be beyond full scale
GAINS = 8.0  # times full scale: beyond it samples are not loud, but in the range of integers


def require_level(saturated: int, samples: int, again: Callable[[], Blocks], source: Path | bytes | None) -> None:
    """`refuse_clipped` where as many of a clip's samples are saturated, for which the sound is read again."""
    if saturated > BULK * samples:
        refuse_clipped(again(), source)


def refuse_clipped(sound: Blocks, source: Path | bytes | None) -> None:
    """Raise Beyond (`level`) where more than BULK of the samples are beyond full scale. `source`: its file, or None for
    a bare array."""
    limit = _limit(source)
    there = beyond = 0
    peak = 0.0
    with contextlib.closing(sound) as read:
        for block, _ in read:
            there, beyond = there + block.size, beyond + int(np.count_nonzero(np.abs(block) > limit))
            peak = max(peak, float(np.abs(block).max()))
    if beyond > BULK * there:
        raise Beyond(beyond / there, peak)


class Beyond(AudioError):
    """Sound that would be clipped in bulk."""

    def __init__(self, share: float, peak: float) -> None:
        super().__init__(
            f"{share:.0%} of its samples are beyond full scale, up to {peak:,.5g} times, and would be clipped. Samples "
            "that are not integers must be in [-1, 1].",
            "level",
        )
        self.peak = peak

    @property
    def divisor(self) -> float:
        """What brings the peak into [-1, 1], a power of two, so that no bit is lost: that of 16-bit integers where the
        samples are in their range."""
        least = float(2 ** np.ceil(np.log2(self.peak)))
        return least if least <= GAINS else max(32768.0, least)


def divided(sound: Blocks, divisor: float) -> Blocks:
    """The same, its samples divided."""
    with contextlib.closing(sound) as read:
        for block, rate in read:
            yield block * np.float32(1 / divisor), rate


def _limit(source: Path | bytes | None) -> float:
    """Full scale; of what went through a lossy encoder, more."""
    try:
        exact = (
            source is None
            or soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else str(source)).subtype in EXACT
        )
    except soundfile.LibsndfileError:
        exact = False
    return 1.0 if exact else LOSSY
