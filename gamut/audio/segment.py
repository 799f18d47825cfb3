"""A segment of a longer recording, read without the rest where the format allows it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from gamut.audio.decode import read_audio
from gamut.audio.ffmpeg import decode_with_ffmpeg, needs_ffmpeg
from gamut.errors import AudioError

OVERHANG = 1.0  # seconds that a segment may reach over the end of its recording: annotations are rounded
COMPRESSED = ("OGG", "MP3")  # here a decoder's output depends on where it was sought


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


def load(path: Path, segment: Segment | None = None) -> tuple[np.ndarray, int]:
    """A file of any kind, or a segment of it: float32 [channels, n] in [-1, 1) (n >= 1), and its rate in Hz.

    WAV, FLAC, similar formats and HDF5 are read from the segment's first sample to its last; Ogg and MP3 are decoded
    whole and then cut, since a clip's samples must not depend on how a decoder seeks; the rest goes through ffmpeg.
    Raises AudioError where the bytes cannot be decoded, OSError where they cannot be read, ShardError without ffmpeg.
    """
    if segment is None:
        return decode_with_ffmpeg(path) if needs_ffmpeg(path) else read_audio(path.read_bytes())
    if segment.member:
        audio, rate = _read_array(path, segment)
    elif needs_ffmpeg(path):
        audio, rate = decode_with_ffmpeg(path, segment.start, segment.end)
        segment.frames(rate, round(segment.start * rate) + audio.shape[1])  # its recording ends where ffmpeg's does
    else:
        audio, rate = _read_stretch(path, segment)
    if not np.isfinite(audio).all():
        raise AudioError("The segment has samples that are NaN or infinite.", "not_finite")
    return (audio if segment.gain == 1 else audio * np.float32(segment.gain)), rate


def _read_stretch(path: Path, segment: Segment) -> tuple[np.ndarray, int]:
    if os.stat(path).st_size == 0:  # raises OSError where the file cannot be read
        raise AudioError("The file has no bytes.", "empty")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            if file.format not in COMPRESSED and file.seekable():
                first, last = segment.frames(file.samplerate, file.frames)
                file.seek(first)
                interleaved = file.read(last - first, dtype="float32", always_2d=True)
                if len(interleaved) < last - first:
                    raise AudioError(f"The file ends {last - first - len(interleaved)} samples early.", "truncated")
                return np.ascontiguousarray(interleaved.T), file.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioError(f"The file is damaged or not sound: {error.error_string}", "unreadable") from error
    audio, rate = read_audio(path.read_bytes())
    first, last = segment.frames(rate, audio.shape[1])
    return np.ascontiguousarray(audio[:, first:last]), rate


def _read_array(path: Path, segment: Segment) -> tuple[np.ndarray, int]:
    os.stat(path)  # raises OSError for a missing file, before HDF5 raises its own
    try:
        file = _hdf5(str(path))
        array = file.get(segment.member)
        if array is None:
            raise AudioError(f"The file has no array {segment.member}.", "missing")
        first, last = segment.frames(segment.rate, array.shape[0])
        stretch = np.asarray(array[first:last])
    except (OSError, RuntimeError, AttributeError, IndexError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise AudioError(f"The HDF5 file cannot be read at {segment.member}: {error}", "corrupt") from error
    if stretch.ndim != 1:
        raise AudioError(f"The array {segment.member} has shape {list(array.shape)}, not [samples].", "format")
    if np.issubdtype(stretch.dtype, np.integer):
        stretch = stretch / -float(np.iinfo(stretch.dtype).min or -1)
    return np.ascontiguousarray(stretch[None], np.float32), segment.rate


@lru_cache(maxsize=2)
def _hdf5(path: str) -> Any:
    """The opened file, kept open since segments of the same file are read one after another."""
    import h5py  # takes a while to import, which only this needs

    return h5py.File(path, "r")
