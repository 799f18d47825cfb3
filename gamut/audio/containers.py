"""Whether a sound file is complete, which libsndfile does not check.

libsndfile reads a truncated WAV, AIFF, Ogg or MP3 as a shorter one, without an error. Every container states in its own
way how long it should be, and `check_whole` checks that. What no container states (an MP3 without a Xing header that
was cut between two frames, a flipped bit in PCM) cannot be found.
"""

from __future__ import annotations

import re
import zlib

from gamut.audio.mpeg import check_frames
from gamut.errors import AudioError

UNKNOWN_SIZE = (0x7FFFF000, 0xFFFFFFFF)  # what writers to a pipe leave in a size field: sox's, ffmpeg's
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_whole(payload: bytes, form: str, log: str, name: str) -> None:
    """Raise AudioError (`truncated` or `corrupt`) where a file's container shows that part of it is missing.

    `form` and `log` are libsndfile's name of the container (soundfile's `format`) and its log of opening the file.
    """
    if form == "OGG":
        _check_ogg(payload, name)
    elif form == "MP3":
        check_frames(payload, name)
    elif payload[:4] in (b"RIFF", b"RIFX", b"FORM"):
        _check_chunks(payload, name)
    else:
        _check_log(log, name)


def _check_chunks(payload: bytes, name: str) -> None:
    """WAV and AIFF: the chunk of samples must lie inside the file."""
    order = "little" if payload[:4] == b"RIFF" else "big"
    at = 12
    while at + 8 <= len(payload):
        size = int.from_bytes(payload[at + 4 : at + 8], order)  # type: ignore[arg-type]
        if payload[at : at + 4] in (b"data", b"SSND", b"BODY"):
            there = len(payload) - at - 8
            if size > there and size not in UNKNOWN_SIZE:
                raise AudioError(
                    f"{name} has only {there} of the {size} bytes of audio that its header states.", "truncated"
                )
            return
        at += 8 + size + size % 2


def _check_log(log: str, name: str) -> None:
    """Other containers (AU, CAF, W64, RF64): libsndfile logs a stated size that is not the true one."""
    for stated, true in re.findall(r": *(\d+) \(should be (\d+)\)", log):
        if int(stated) > int(true) and int(stated) not in UNKNOWN_SIZE:
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
        if number != numbers.get(serial, number - 1) + 1:
            raise AudioError(f"{name} is damaged: pages are missing before byte {at}.", "corrupt")
        numbers[serial] = number
        if ended and payload[at + 5] & 2:
            raise AudioError(
                f"{name} holds several consecutive Ogg streams, of which only one would be read.", "format"
            )
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
