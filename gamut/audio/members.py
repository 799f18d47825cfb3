"""Members of third-party shards: FLAC, WAV, Ogg or MP3 of any rate and channels, to the form of our own shards."""

from __future__ import annotations

import numpy as np

from gamut.audio.blocks import blocks, frames_of, open_sound, waveform
from gamut.audio.containers import check_whole
from gamut.audio.decode import decode_flac
from gamut.audio.longest import CLIP, Longest
from gamut.audio.mpeg import unannounced
from gamut.errors import AudioError
from gamut.numbers import RATE

CODECS = {"flac": "flac", "wav": "wav", "ogg": "ogg", "oga": "ogg", "opus": "ogg", "mp3": "mp3"}  # by ending of a name
AUDIO = "The audio"  # in messages


def read_member(payload: bytes, longest: Longest = CLIP) -> tuple[np.ndarray, int]:
    """A whole member as int16 [n >= 1] at 16 kHz mono, and how many samples were saturated.

    The same bits for the same bytes, wherever they are decoded. Raises AudioError with the reasons of
    `gamut.audio.decode`.
    """
    made = waveform(blocks(payload, AUDIO, longest), AUDIO)
    return made.samples, made.saturated


def decode_member(payload: bytes, samples: int) -> np.ndarray:
    """A member whose number of samples is known from the index, and is the limit: int16 [samples], 16 kHz mono.

    FLAC in the form of our own shards is decoded like them, faster and to the same bits. Raises AudioError as
    `read_member`, and with reason `length` where the count differs.
    """
    if _is_plain(payload):
        return decode_flac(payload, samples)
    whole, _ = read_member(payload, Longest((samples + 1) / RATE))
    if len(whole) != samples:
        raise AudioError(f"The audio decodes to {len(whole)} samples instead of {samples}.", "length")
    return whole


def stated_samples(payload: bytes, longest: Longest = CLIP) -> int | None:
    """The number of samples that `read_member` will give if the headers are right; None where they do not state it.

    Raises AudioError where the container shows that the file is incomplete, is longer than the limit, or is not sound.
    """
    with open_sound(payload, AUDIO) as file:
        check_whole(payload, file.format, file.extra_info, AUDIO)
        frames = frames_of(file)
        if not frames or (file.format == "MP3" and unannounced(payload)):
            return None
        longest.check(frames, file.samplerate, file.channels, AUDIO)
        # soxr gives n * 16,000 / rate samples, rounded half up.
        return max(0, (2 * frames * RATE + file.samplerate) // (2 * file.samplerate)) or None


def _is_plain(payload: bytes) -> bool:
    """FLAC, 16 kHz, mono, 16 bits (RFC 9639, section 8.2)."""
    if payload[:4] != b"fLaC" or len(payload) < 42 or payload[4] & 0x7F != 0:
        return False
    word = int.from_bytes(payload[18:26], "big")
    return (word >> 44, word >> 41 & 7, word >> 36 & 31) == (RATE, 0, 15)
