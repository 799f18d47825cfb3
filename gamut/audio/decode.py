"""From a file or a shard member to samples: read, mix down, resample, encode, decode.

Everything that soundfile reads becomes 16 kHz mono int16, the only form that shards hold. Whether audio is usable
depends on its bytes alone, and so is the same on every machine: an `AudioError` carries a short `reason` for counting:

    empty        no bytes, or no sample (of the source, or after resampling to 16 kHz)
    unreadable   not a sound file that libsndfile knows, nor ffmpeg where that is installed
    truncated    the file ends before its own header says it should
    corrupt      the file is whole but damaged inside
    not_finite   NaN or infinite samples
    format       a rate outside 1 kHz to 10 MHz, several Ogg streams in one file, a shard member not 16 kHz mono
    too_long     lasts longer than may be decoded (`Longest`)
    length       a shard member with an unexpected number of samples
"""

from __future__ import annotations

import io
from pathlib import Path

import miniaudio
import numpy as np
import soundfile

from gamut.audio.blocks import joined, of_array, opened, waveform
from gamut.audio.longest import CLIP, Longest
from gamut.audio.sound import sound
from gamut.errors import AudioError
from gamut.numbers import RATE


def read_audio(source: str | Path | bytes, longest: Longest = CLIP) -> tuple[np.ndarray, int]:
    """Read a whole file of any format and rate: float32 [channels, n] in [-1, 1] (n >= 1), and its rate in Hz.

    libsndfile reads truncated WAV, Ogg and MP3 short without an error; here they raise. Raises AudioError (see the
    module); OSError where the file cannot be read, which says nothing about its content.
    """
    name = "This audio" if isinstance(source, bytes) else str(source)
    return joined(sound(source if isinstance(source, bytes) else Path(source), name, longest), name)


def to_int16_16k(audio: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Float [channels, n] at `rate` Hz to int16 [m] at 16 kHz, m >= 1, and how many samples were saturated: as
    `gamut.audio.blocks.waveform`, so 16-bit sources at 16 kHz pass bit by bit."""
    made = waveform(of_array(audio, rate), "This audio")
    return made.samples, made.saturated


def encode_flac(waveform: np.ndarray) -> bytes:
    """int16 [n] at 16 kHz as a FLAC file; lossless, and the same bytes for the same samples and libsndfile."""
    if waveform.dtype != np.int16 or waveform.ndim != 1:
        raise TypeError(f"int16 [n] is needed, not {waveform.dtype} {list(waveform.shape)}")
    file = io.BytesIO()
    soundfile.write(file, waveform, RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def flac_header(payload: bytes) -> tuple[int, int, int]:
    """(rate in Hz, channels, samples; 0 samples: unknown) from a FLAC's STREAMINFO (RFC 9639, section 8.2)."""
    if payload[:4] != b"fLaC" or len(payload) < 42 or payload[4] & 0x7F != 0:
        raise AudioError("The payload does not begin like a FLAC file.", "unreadable")
    word = int.from_bytes(payload[18:26], "big")
    return word >> 44, (word >> 41 & 7) + 1, word & ((1 << 36) - 1)


def decode_flac(payload: bytes, samples: int) -> np.ndarray:
    """Decode a shard's FLAC to int16 [samples], 16 kHz mono.

    miniaudio is 1.5 to 2 times as fast as libsndfile, with the same bits; whatever it does not decode completely, and
    what does not state its length (there miniaudio would have no end), is left to libsndfile. Raises AudioError
    (format, length, truncated, corrupt, unreadable).
    """
    rate, channels, stated = flac_header(payload)
    if (rate, channels) != (RATE, 1):
        raise AudioError(f"The FLAC has {channels} channels at {rate} Hz instead of 1 at {RATE}.", "format")
    if stated not in (samples, 0):  # before anything is allocated by it
        raise AudioError(f"The FLAC states {stated} samples instead of {samples}.", "length")
    try:
        if stated:
            whole = np.frombuffer(miniaudio.flac_read_s16(payload).samples, dtype=np.int16)
            if len(whole) == samples:
                return whole
    except (miniaudio.DecodeError, ValueError):
        pass
    return _decode_with_soundfile(payload, samples)


def _decode_with_soundfile(payload: bytes, samples: int) -> np.ndarray:
    try:
        with opened(payload, "The FLAC") as (file, _):
            whole = file.read(samples + 1, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"The FLAC is damaged: {error.error_string}", "corrupt") from error
    except (MemoryError, ValueError) as error:
        raise AudioError(f"{samples} samples are more than any clip has.", "length") from error
    if len(whole) != samples:
        reason = "truncated" if len(whole) < samples else "length"
        raise AudioError(f"The FLAC decodes to {len(whole)} samples instead of {samples}.", reason)
    return whole
