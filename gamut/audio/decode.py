"""From a file or a shard member to samples: read, mix down, resample, encode, decode.

Everything that soundfile reads becomes 16 kHz mono int16, the only form that shards hold. Whether audio is usable
depends on its bytes alone, and so is the same on every machine: an `AudioError` carries a short `reason` for counting:

    empty        no bytes, or no sample (of the source, or after resampling to 16 kHz)
    unreadable   not a sound file that libsndfile knows
    truncated    the file ends before its own header says it should
    corrupt      the file is whole but damaged inside
    not_finite   NaN or infinite samples
    format       a rate outside 1 kHz to 10 MHz, several Ogg streams in one file, a shard member not 16 kHz mono
    length       a shard member with an unexpected number of samples
"""

from __future__ import annotations

import io
from pathlib import Path

import miniaudio
import numpy as np
import soundfile
import soxr

from gamut.audio.containers import check_whole
from gamut.audio.mpeg import unannounced
from gamut.errors import AudioError
from gamut.numbers import RATE

LOST_MPEG_FRAMES = 10


def read_audio(source: str | Path | bytes) -> tuple[np.ndarray, int]:
    """Read a whole file of any format and rate: float32 [channels, n] in [-1, 1] (n >= 1), and its rate in Hz.

    libsndfile reads truncated WAV, Ogg and MP3 short without an error; here they raise. Raises AudioError (see the
    module); OSError where the file cannot be read, which says nothing about its content.
    """
    name = "This audio" if isinstance(source, bytes) else str(source)
    payload = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not payload:
        raise AudioError(f"{name} has no bytes.", "empty")
    try:
        file = soundfile.SoundFile(_Bytes(payload))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name} is not a readable sound file: {error.error_string}", "unreadable") from error
    with file:
        check_whole(payload, file.format, file.extra_info, name)
        if file.format == "MP3" and (part := unannounced(payload)):
            return _read_mpeg(payload, part, name), file.samplerate
        try:
            # In one read: soundfile seeks after each, and the output of an MP3 decoder depends on where it was sought.
            interleaved = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{name} is damaged: {error.error_string}", "corrupt") from error
        except (MemoryError, ValueError) as error:
            raise AudioError(f"{name} states an impossible length of {file.frames} samples.", "corrupt") from error
        if len(interleaved) < file.frames:
            raise AudioError(f"{name} ends after {len(interleaved)} of its {file.frames} samples.", "truncated")
        if len(interleaved) == 0:
            raise AudioError(f"{name} holds no sample.", "empty")
        audio = np.ascontiguousarray(interleaved.T)
        if not np.isfinite(audio).all():
            raise AudioError(f"{name} has samples that are NaN or infinite.", "not_finite")
        return audio, file.samplerate


def _read_mpeg(payload: bytes, part: tuple[int, int, int], name: str) -> np.ndarray:
    """An MP3 whose length libsndfile would only guess: float32 [channels, n], by miniaudio."""
    begin, frames, each = part
    try:
        decoded = miniaudio.mp3_read_f32(payload[begin:])
    except miniaudio.DecodeError as error:
        raise AudioError(f"{name} is damaged: its MPEG frames do not decode.", "corrupt") from error
    audio = np.array(decoded.samples, np.float32).reshape(-1, decoded.nchannels).T
    # A stream cut out of a longer one begins with frames that need bytes from before it, and so give nothing.
    if audio.shape[1] < max(1, frames - LOST_MPEG_FRAMES) * each:
        raise AudioError(f"{name} decodes to {audio.shape[1]} samples, but has {frames} frames of {each}.", "corrupt")
    return np.ascontiguousarray(audio)


class _Bytes(io.BytesIO):
    """A corrupt header can make libsndfile seek to before the first byte; that leaves the position as it is."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def to_int16_16k(audio: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Float [channels, n] at `rate` Hz to int16 [m] at 16 kHz, m >= 1, and how many samples were saturated.

    Channels are averaged; soxr resamples at its HQ setting (audio at 16 kHz is left as it is, so 16-bit sources pass
    bit by bit); samples are scaled by 32,768, rounded half to even, and held to [-32,768, 32,767].
    """
    if not 1_000 <= rate <= 10_000_000:
        raise AudioError(f"A sample rate of {rate} Hz is outside 1 kHz to 10 MHz.", "format")
    mono = audio.mean(axis=0, dtype=np.float32)
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE, quality="HQ")
    if len(mono) == 0:
        raise AudioError(f"{audio.shape[1]} samples at {rate} Hz are less than one sample at {RATE} Hz.", "empty")
    scaled = np.rint(mono * np.float32(32768))
    saturated = int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
    return np.clip(scaled, -32768, 32767).astype(np.int16), saturated


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

    miniaudio is 1.5 to 2 times as fast as libsndfile, with the same bits; whatever it does not decode completely is
    left to libsndfile. Raises AudioError (format, length, truncated, corrupt, unreadable).
    """
    rate, channels, stated = flac_header(payload)
    if (rate, channels) != (RATE, 1):
        raise AudioError(f"The FLAC has {channels} channels at {rate} Hz instead of 1 at {RATE}.", "format")
    if stated not in (samples, 0):  # before anything is allocated by it
        raise AudioError(f"The FLAC states {stated} samples instead of {samples}.", "length")
    try:
        decoded = miniaudio.flac_read_s16(payload)
        waveform = np.frombuffer(decoded.samples, dtype=np.int16)
        if len(waveform) == samples:
            return waveform
    except (miniaudio.DecodeError, ValueError):
        pass
    return _decode_with_soundfile(payload, samples)


def _decode_with_soundfile(payload: bytes, samples: int) -> np.ndarray:
    try:
        with soundfile.SoundFile(_Bytes(payload)) as file:
            waveform = file.read(samples + 1, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"The FLAC is damaged: {error.error_string}", "corrupt") from error
    if len(waveform) != samples:
        reason = "truncated" if len(waveform) < samples else "length"
        raise AudioError(f"The FLAC decodes to {len(waveform)} samples instead of {samples}.", reason)
    return waveform
