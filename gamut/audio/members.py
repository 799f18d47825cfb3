"""Members of third-party shards: FLAC, WAV, Ogg or MP3 of any rate and channels, to the form of our own shards."""

from __future__ import annotations

import numpy as np
import soundfile

from gamut.audio.containers import check_whole
from gamut.audio.decode import _Bytes, decode_flac, flac_header, read_audio, to_int16_16k
from gamut.audio.mpeg import unannounced
from gamut.errors import AudioError
from gamut.numbers import RATE

CODECS = {"flac": "flac", "wav": "wav", "ogg": "ogg", "oga": "ogg", "opus": "ogg", "mp3": "mp3"}  # by ending of a name
LARGEST = 1 << 29  # samples over all channels: three hours at 48 kHz; a small file can state more than fits into memory


def read_member(payload: bytes) -> tuple[np.ndarray, int]:
    """A whole member as int16 [n >= 1] at 16 kHz mono, and how many samples were saturated.

    The same bits for the same bytes, wherever they are decoded. Raises AudioError with the reasons of
    `gamut.audio.decode`, or `too_long`.
    """
    _check_size(payload)
    return to_int16_16k(*read_audio(payload))


def decode_member(payload: bytes, samples: int) -> np.ndarray:
    """A member whose number of samples is known from the index: int16 [samples], 16 kHz mono.

    FLAC in the form of our own shards is decoded like them, faster and to the same bits. Raises AudioError as
    `read_member`, and with reason `length` where the count differs.
    """
    if _is_plain(payload):
        return decode_flac(payload, samples)
    waveform, _ = read_member(payload)
    if len(waveform) != samples:
        raise AudioError(f"The audio decodes to {len(waveform)} samples instead of {samples}.", "length")
    return waveform


def stated_samples(payload: bytes) -> int | None:
    """The number of samples that `read_member` will give if the headers are right; None where they do not state it.

    Raises AudioError where the container shows that the file is incomplete, or is not sound.
    """
    with _opened(payload) as file:
        check_whole(payload, file.format, file.extra_info, "This audio")
        silent = file.format == "FLAC" and payload[:4] == b"fLaC" and flac_header(payload)[2] == 0
        if silent or (file.format == "MP3" and unannounced(payload)) or not 0 < file.frames <= LARGEST:
            return None
        # soxr gives n * 16,000 / rate samples, rounded half up.
        return max(0, (2 * file.frames * RATE + file.samplerate) // (2 * file.samplerate)) or None


def _is_plain(payload: bytes) -> bool:
    """FLAC, 16 kHz, mono, 16 bits (RFC 9639, section 8.2)."""
    if payload[:4] != b"fLaC" or len(payload) < 42 or payload[4] & 0x7F != 0:
        return False
    word = int.from_bytes(payload[18:26], "big")
    return (word >> 44, word >> 41 & 7, word >> 36 & 31) == (RATE, 0, 15)


def _check_size(payload: bytes) -> None:
    if not payload:
        return  # `read_audio` says so
    with _opened(payload) as file:
        if file.frames * file.channels > LARGEST and not (file.format == "FLAC" and flac_header(payload)[2] == 0):
            raise AudioError(
                f"The audio states {file.frames:,} samples in {file.channels} channels, more than the {LARGEST:,} that "
                "one clip may have.",
                "too_long",
            )


def _opened(payload: bytes) -> soundfile.SoundFile:
    if not payload:
        raise AudioError("This audio has no bytes.", "empty")
    try:
        return soundfile.SoundFile(_Bytes(payload))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"This is not a readable sound file: {error.error_string}", "unreadable") from error
