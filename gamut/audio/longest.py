"""The limit of what is decoded of one file: a small file can unpack to more than any memory, or any patience."""

from __future__ import annotations

import argparse
import contextlib
import math
from typing import NamedTuple

from gamut.errors import AudioError

A_SECOND = 1_000_000  # samples over all channels: ten channels at 96 kHz, and what nobody records beyond


class Longest(NamedTuple):
    """So many seconds, and of absurd rates or channels fewer."""

    seconds: float
    setting: str = ""  # what raises it, for the message

    @classmethod
    def of_hours(cls, text: str) -> Longest:
        """What somebody types after --longest, as the `type` of an option."""
        with contextlib.suppress(ValueError):
            if 0 < float(text) < math.inf:
                return cls(float(text) * 3600, "--longest HOURS")
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours")

    def __str__(self) -> str:
        return f"{self.seconds / 3600:g} h" if self.seconds >= 3600 else f"{self.seconds:g} s"

    def check(self, frames: int, rate: int, channels: int, name: str) -> None:
        """Raise AudioError (`too_long`) where so many samples a channel are more."""
        if frames <= self.seconds * rate and frames * channels <= self.seconds * A_SECOND:
            return
        many = f", of {channels} channels at {rate} Hz," if frames <= self.seconds * rate else ""
        remedy = f" ({self.setting} raises the limit)" if self.setting else ""
        raise AudioError(f"{name}{many} lasts longer than {self}{remedy}.", "too_long")


CLIP = Longest.of_hours("4")  # of what becomes a clip, and is held in memory: 115 MB an hour
RECORDING = Longest.of_hours("48")  # of what is read on and on, or has segments
