"""Whether a sound file is complete, which libsndfile does not check.

libsndfile reads a truncated WAV, AIFF, Ogg or MP3 as a shorter one, without an error. Every container states in its own
way how long it should be, and `check_whole` checks that. What no container states (an MP3 without a Xing header that
was cut between two frames, a flipped bit in PCM) cannot be found.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from gamut.audio.mpeg import after_tags, check_frames
from gamut.errors import AudioError

# What writers that cannot go back (to a pipe, or killed) leave in a size field, or that less a header
UNKNOWN_SIZES = (0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1)
HEADER = 128
MOST = 10_000  # chunks that are looked at
SAMPLES = (b"data", b"SSND", b"BODY")  # chunks of samples
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_whole(payload: bytes, form: str, log: str, name: str) -> None:
    """Raise AudioError (`truncated` or `corrupt`) where a file's container shows that part of it is missing.

    `form` and `log` are libsndfile's name of the container (soundfile's `format`) and its log of opening the file;
    empty for what it does not read.
    """
    if payload[:4] == b"OggS":
        _check_ogg(payload, name)
    elif form == "MP3":
        check_frames(payload, name)
    elif (found := samples_in(payload)) is not None:
        there = len(payload) - found.begin
        if found.stated > there and not _unknown(found.stated):
            raise AudioError(
                f"{name} has only {there} of the {found.stated} bytes of audio that its header states.", "truncated"
            )
    elif packet := _packet(payload):
        if len(payload) % packet:
            raise AudioError(f"{name} ends in the middle of a packet of MPEG-TS, at byte {len(payload)}.", "truncated")
    else:
        _check_log(log, name)


def _packet(payload: bytes) -> int:
    """Bytes of each packet of an MPEG-TS (ISO 13818-1; with times before each, of Blu-ray and AVCHD); else 0."""
    for size, first in ((188, 0), (192, 4)):
        if [payload[at : at + 1] for at in range(first, 5 * size, size)] == [b"G"] * 5:
            return size
    return 0


class Samples(NamedTuple):
    """Where the samples of a WAV or AIFF are, which may come after ID3 tags."""

    begin: int  # first byte
    stated: int  # bytes
    field: tuple[int, int]  # first byte of what states them, and its bytes
    order: str  # of its bytes


def samples_in(payload: bytes) -> Samples | None:
    """None in other containers."""
    start = after_tags(payload)
    head = payload[start : start + 4]
    if head not in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
        return None
    order, large = "big" if head in (b"RIFX", b"FORM") else "little", 0
    for name, at, size in _chunks(payload, start + 12, order):
        if name == b"ds64":
            large = at + 8
        elif name in SAMPLES and large and size == 0xFFFFFFFF:
            return Samples(at, int.from_bytes(payload[large : large + 8], "little"), (large, 8), order)
        elif name in SAMPLES:
            return Samples(at, size, (at - 4, 4), order)
    return None


def unpatched(payload: bytes) -> tuple[int, bytes] | None:
    """(place, content) of the size of the samples, as it should be, of a WAV or AIFF whose writer never came back to
    state it: everything up to the end of the file. None for others. Raises OverflowError where it has no place."""
    found = samples_in(payload)
    if found is None or not (_unknown(found.stated) or found.stated == 0):
        return None
    if found.stated == 0 and _are_chunks(payload, found.begin, found.order):
        return None
    place, size = found.field
    return place, (len(payload) - found.begin).to_bytes(size, found.order)  # type: ignore[arg-type]


def tagged(payload: bytes) -> int:
    """Bytes of the ID3 tags before a WAV or AIFF, which libsndfile passes over, but loses as many from its end; else
    0."""
    return after_tags(payload) if payload[:3] == b"ID3" and samples_in(payload) else 0


def _unknown(size: int) -> bool:
    return any(0 <= unknown - size <= HEADER for unknown in UNKNOWN_SIZES)


def _chunks(payload: bytes, at: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, bytes as stated) of chunks, one behind the other."""
    for _ in range(MOST):
        if at + 8 > len(payload):
            return
        size = int.from_bytes(payload[at + 4 : at + 8], order)  # type: ignore[arg-type]
        yield payload[at : at + 4], at + 8, size
        at += 8 + size + size % 2


def _are_chunks(payload: bytes, at: int, order: str) -> bool:
    """Whether chunks, and not samples, are from here to the end."""
    end = at
    for name, first, size in _chunks(payload, at, order):
        if not all(32 <= letter < 127 for letter in name):
            return False
        end = first + size + size % 2
    return len(payload) - 1 <= end <= len(payload) + 1


def _check_log(log: str, name: str) -> None:
    """Other containers (AU, CAF, W64, RF64): libsndfile logs a stated size that is not the true one."""
    for stated, true in re.findall(r": *(\d+) \(should be (\d+)\)", log):
        if int(stated) > int(true) and not _unknown(int(stated)):
            raise AudioError(f"{name} has only {true} of the {stated} bytes that its header states.", "truncated")


def _check_ogg(payload: bytes, name: str) -> None:
    """Ogg (RFC 3533): pages without a gap, each with a right checksum, up to an end-of-stream page."""
    at, ended = 0, False
    numbers: dict[bytes, int] = {}
    while at < len(payload):
        if payload[at : at + 4] != b"OggS":
            if ended:
                return  # tags or padding after the stream
            raise AudioError(f"{name} is damaged: no Ogg page begins at byte {at}.", "corrupt")
        lacing = payload[at + 27 : at + 27 + payload[min(at + 26, len(payload) - 1)]]
        end = at + 27 + len(lacing) + sum(lacing)
        if at + 27 > len(payload) or len(lacing) < payload[at + 26] or end > len(payload):
            raise AudioError(f"{name} ends in the middle of an Ogg page, at byte {len(payload)}.", "truncated")
        if _ogg_checksum(payload[at:end]) != int.from_bytes(payload[at + 22 : at + 26], "little"):
            raise AudioError(f"{name} is damaged: the Ogg page at byte {at} fails its checksum.", "corrupt")
        serial, number = payload[at + 14 : at + 18], int.from_bytes(payload[at + 18 : at + 22], "little")
        if ended and payload[at + 5] & 2:
            raise AudioError(
                f"{name} holds several consecutive Ogg streams, of which only one would be read. Write it anew: ffmpeg "
                "-i OLD.ogg NEW.wav.",
                "format",
            )
        if number != numbers.get(serial, number - 1) + 1:
            raise AudioError(f"{name} is damaged: pages are missing before byte {at}.", "corrupt")
        numbers[serial] = number
        ended = bool(payload[at + 5] & 4)
        at = end
    if not ended:
        raise AudioError(f"{name} ends before its stream does (no Ogg end-of-stream page).", "truncated")


def _ogg_checksum(page: bytes) -> int:
    """Ogg's CRC-32 of a page: the polynomial of zlib's, but most significant bit first and without inversion.

    So zlib computes it at full speed on bytes with their bits reversed.
    """
    cleared = page[:22] + b"\0\0\0\0" + page[26:]
    mirrored = zlib.crc32(cleared.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
