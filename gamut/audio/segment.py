"""A segment of a longer recording, read without the rest where the format allows it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from gamut.audio.blocks import BLOCK, Blocks, UnreadableError, Way, blocks, frames_of, opened, read
from gamut.audio.longest import CLIP, RECORDING, Longest
from gamut.audio.sound import by_ending, from_ffmpeg, sound
from gamut.errors import AudioError

OVERHANG = 1.0  # seconds that a segment may reach over the end of its recording: annotations are rounded
COMPRESSED = ("OGG", "MP3")  # here a decoder's output depends on where it was sought
AUDIO = "This audio"  # in messages
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset, and h5py's lzf
LARGEST_CHUNK = 1 << 24  # samples: HDF5 unpacks a chunk as a whole


@dataclass(frozen=True)
class Segment:
    """Which part of a file is the clip."""

    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: to the end
    member: str = ""  # name of the array, for a file of many (HDF5)
    rate: int = 0  # Hz, for an array, which does not say it
    gain: float = 1.0  # amplitude is multiplied by it

    def frames(self, rate: int, there: int) -> tuple[int, int]:
        """First and last frame (exclusive) in a recording of `there` frames at `rate` Hz. Raises AudioError."""
        first = round(self.start * rate)
        last = there if self.end is None else round(self.end * rate)
        if not 0 <= first < last:
            raise AudioError(f"The segment from {self.start} to {self.end} s is empty.", "empty")
        if first >= there:
            raise AudioError(
                f"The segment begins at {self.start} s, but its recording ends at {there / rate:.3f} s.", "empty"
            )
        if last > there + OVERHANG * rate:
            raise AudioError(
                f"The segment ends at {self.end} s, but its recording at {there / rate:.3f} s.", "truncated"
            )
        return first, min(last, there)


def load(path: Path, segment: Segment | None = None, longest: Longest = CLIP, way: Way | None = None) -> Blocks:
    """A file of any kind, or a segment of it, block by block: float32 [n, channels] in [-1, 1), and its rate in Hz;
    `way` is filled in.

    WAV, FLAC, similar formats and HDF5 are read from the segment's first sample to its last; Ogg and MP3 are decoded
    from their beginning, since a clip's samples must not depend on how a decoder seeks; the rest goes through ffmpeg.
    Raises AudioError where the bytes cannot be decoded, or a clip is longer than the limit; OSError where they cannot
    be read, ShardError without ffmpeg.
    """
    if segment is None:
        yield from sound(path, AUDIO, longest, way)
        return
    way = way or Way()
    for block, rate in _array(path, segment, longest, way) if segment.member else _part(path, segment, longest, way):
        yield block if segment.gain == 1 else block * np.float32(segment.gain), rate


def _part(path: Path, segment: Segment, longest: Longest, way: Way) -> Blocks:
    refused = None
    if not by_ending(path):
        try:
            yield from _stretch(path, segment, longest, way)
            return
        except UnreadableError as error:
            refused = error
    done = rate = 0
    for block, rate in from_ffmpeg(path, AUDIO, longest, way, refused, segment.start, segment.end):
        yield block, rate
        done += len(block)
    segment.frames(rate, round(segment.start * rate) + done)  # its recording ends where ffmpeg's does


def _stretch(path: Path, segment: Segment, longest: Longest, way: Way) -> Blocks:
    """Damage behind the segment does not matter to it."""
    name = "The file"
    with opened(path, name, way) as (file, _):  # raises OSError where the file cannot be read
        rate, channels, there = file.samplerate, file.channels, frames_of(file)
        exact = file.format not in COMPRESSED and "MPEG" not in file.subtype
        if exact and there is not None and soundfile.SoundFile.seekable(file):
            first, last = segment.frames(rate, there)
            longest.check(last - first, rate, channels, name)
            file.seek(first)
            yield from read(file, last - first, name, longest)
            return
    begin, end = round(segment.start * rate), None if segment.end is None else round(segment.end * rate)
    done = taken = 0
    with contextlib.closing(blocks(path.read_bytes(), name, RECORDING, way)) as whole:
        for block, _ in whole:
            if len(inside := block[max(0, begin - done) : None if end is None else max(0, end - done)]):
                taken += len(inside)
                longest.check(taken, rate, channels, name)
                yield inside, rate
            done += len(block)
            if end is not None and done >= end:
                break
    segment.frames(rate, done)


def _array(path: Path, segment: Segment, longest: Longest, way: Way) -> Blocks:
    way.reader = "h5py"
    os.stat(path)  # raises OSError for a missing file, before HDF5 raises its own
    try:
        array = _member(path, segment.member)
        first, last = segment.frames(segment.rate, array.shape[0])
        longest.check(last - first, segment.rate, 1, f"The array {segment.member}")
        for at in range(first, last, BLOCK):
            block = np.asarray(array[at : min(last, at + BLOCK)])
            if np.issubdtype(block.dtype, np.integer):
                half = 2.0 ** (np.iinfo(block.dtype).bits - 1)  # unsigned integers are around it, as in an 8-bit WAV
                block = (block - (half if block.dtype.kind == "u" else 0.0)) / half
            yield np.ascontiguousarray(block[:, None], np.float32), segment.rate
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise AudioError(f"The HDF5 file cannot be read at {segment.member}: {error}", "corrupt") from error


def _member(path: Path, name: str) -> Any:
    """An array of numbers [samples] that is in this very file, and that HDF5 unpacks by itself: a link or a stored name
    can lead to any file of this machine, and a filter that HDF5 lacks is a library that it looks for."""
    import h5py

    file = _hdf5(str(path))
    inside: Any = file
    for part in name.strip("/").split("/"):
        link = inside.get(part, getlink=True)
        if link is None:
            raise AudioError(f"The file has no array {name}.", "missing")
        if not isinstance(link, h5py.HardLink):
            raise AudioError(f"The array {name} is a link, which is not followed.", "format")
        inside = inside[part]
    if inside.ndim != 1 or inside.dtype.kind not in "iuf":
        raise AudioError(f"The array {name} is {inside.dtype} {list(inside.shape)}, not numbers [samples].", "format")
    if inside.external or inside.is_virtual:
        raise AudioError(f"The samples of {name} are in another file, which is not read.", "format")
    made = inside.id.get_create_plist()
    if unknown := {made.get_filter(number)[0] for number in range(made.get_nfilters())} - FILTERS:
        raise AudioError(f"The array {name} is packed by the filter {min(unknown)}, which is not HDF5's own.", "format")
    if inside.chunks and inside.chunks[0] > LARGEST_CHUNK:
        raise AudioError(f"The array {name} is in chunks of {inside.chunks[0]:,} samples, too many at once.", "format")
    return inside


@lru_cache(maxsize=2)
def _hdf5(path: str) -> Any:
    """The opened file, kept open since segments of the same file are read one after another."""
    import h5py  # takes a while to import, which only this needs

    return h5py.File(path, "r")
