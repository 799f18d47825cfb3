"""Members of third-party shards: FLAC, WAV, Ogg or MP3 of any rate and channels, to the form of our own shards."""

from __future__ import annotations

import numpy as np

from gamut.audio.blocks import FFMPEG, MINIAUDIO, SOUNDFILE, UnreadableError, Way, frames_of, opened, waveform
from gamut.audio.containers import check_whole
from gamut.audio.decode import decode_flac
from gamut.audio.ffmpeg import has_ffmpeg, require_ffmpeg
from gamut.audio.levels import EXACT, require_level
from gamut.audio.longest import CLIP, Longest
from gamut.audio.mpeg import unannounced
from gamut.audio.sound import sound
from gamut.errors import AudioError
from gamut.numbers import RATE

AUDIO = "The audio"  # in messages


def read_member(payload: bytes, longest: Longest = CLIP, way: Way | None = None) -> tuple[np.ndarray, int]:
    """A whole member as int16 [n >= 1] at 16 kHz mono, and how many samples were saturated; `way` is filled in.

    The same bits for the same bytes, wherever they are decoded. Raises AudioError with the reasons of
    `gamut.audio.decode`, and `level` for what would be clipped in bulk; ShardError as `sound`.
    """
    made = waveform(sound(payload, AUDIO, longest, way), AUDIO)
    require_level(made.saturated, len(made.samples), lambda: sound(payload, AUDIO, longest), payload)
    return made.samples, made.saturated


def decode_member(payload: bytes, samples: int) -> np.ndarray:
    """A member whose number of samples is known from the index, and is the limit: int16 [samples], 16 kHz mono.

    FLAC in the form of our own shards is decoded like them, faster and to the same bits. Raises AudioError as
    `read_member`, and with reason `length` where the count differs.
    """
    if _is_plain(payload):
        return decode_flac(payload, samples)
    try:
        whole, _ = read_member(payload, Longest((samples + 1) / RATE))
    except AudioError as error:
        if error.reason == "unreadable" and not has_ffmpeg():  # whoever indexed it had one: no fault of the clip
            require_ffmpeg("A clip of these shards")
        raise
    if len(whole) != samples:
        raise AudioError(f"The audio decodes to {len(whole)} samples instead of {samples}.", "length")
    return whole


def stated_samples(payload: bytes, longest: Longest = CLIP, way: Way | None = None) -> int | None:
    """The number of samples that `read_member` will give if the headers are right; None where they do not state it, or
    only the samples show whether they are usable; `way` is filled in.

    Raises AudioError where the container shows that the file is incomplete, or is longer than the limit.
    """
    try:
        with opened(payload, AUDIO, way) as (file, _):
            check_whole(payload, file.format, file.extra_info, AUDIO)
            frames = frames_of(file)
            if not frames or file.subtype in EXACT or ("MPEG" in file.subtype and not _announced(file.format, payload)):
                return None
            longest.check(frames, file.samplerate, file.channels, AUDIO)
            # soxr gives n * 16,000 / rate samples, rounded half up.
            return max(0, (2 * frames * RATE + file.samplerate) // (2 * file.samplerate)) or None
    except UnreadableError:
        return None  # to libsndfile: ffmpeg may know it


def read_by(payload: bytes) -> tuple[int, str]:
    """(rate in Hz, 0 where libsndfile does not open it; what reads it) of a member. Raises AudioError (empty)."""
    try:
        with opened(payload, AUDIO) as (file, _):
            bare = "MPEG" in file.subtype and not _announced(file.format, payload)
            return file.samplerate, MINIAUDIO if bare else SOUNDFILE
    except UnreadableError:
        return 0, FFMPEG


def _announced(form: str, payload: bytes) -> bool:
    return form == "MP3" and not unannounced(payload)


def _is_plain(payload: bytes) -> bool:
    """FLAC, 16 kHz, mono, 16 bits (RFC 9639, section 8.2)."""
    if payload[:4] != b"fLaC" or len(payload) < 42 or payload[4] & 0x7F != 0:
        return False
    word = int.from_bytes(payload[18:26], "big")
    return (word >> 44, word >> 41 & 7, word >> 36 & 31) == (RATE, 0, 15)
