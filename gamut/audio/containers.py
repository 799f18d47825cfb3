"""Is a sound file whole? What libsndfile does not say.

libsndfile reads a WAV, AIFF, Ogg or MP3 that was cut off as a shorter one, without an error. Every container says in
its own way how long it should be; `check_whole` asks it. What no container tells (an MP3 without a Xing header cut
between two frames, a flipped bit in PCM) cannot be known from the bytes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from gamut.errors import AudioError

UNKNOWN_SIZE = (0, 0xFFFFFFFF, 0x7FFFFFFF)  # what writers to a pipe leave in a size field
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
MP3_KBIT = {  # (MPEG-1, layer) -> bit rates of the 4-bit index, ISO 11172-3 and 13818-3
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def check_whole(payload: bytes, form: str, log: str, name: str) -> None:
    """Raise AudioError (`truncated` or `corrupt`) where a file's container shows that part of it is missing.

    `form` and `log` are libsndfile's name of the container (soundfile's `format`) and its log of opening the file.
    """
    if form == "OGG":
        _check_ogg(payload, name)
    elif form == "MP3":
        _check_mp3(payload, name)
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
                    f"{name} has {there} of the {size} bytes of audio that its header states.", "truncated"
                )
            return
        at += 8 + size + size % 2


def _check_log(log: str, name: str) -> None:
    """Other containers (AU, CAF, W64, RF64): libsndfile logs a stated size that is not the true one."""
    for stated, true in re.findall(r": *(\d+) \(should be (\d+)\)", log):
        if int(stated) > int(true) and int(stated) not in UNKNOWN_SIZE:
            raise AudioError(f"{name} has {true} of the {stated} bytes that its header states.", "truncated")


def _check_ogg(payload: bytes, name: str) -> None:
    """Ogg (RFC 3533): pages without a gap, each with a right checksum, up to an end-of-stream page."""
    at, ended = 0, False
    numbers: dict[bytes, int] = {}
    while at < len(payload):
        if payload[at : at + 4] != b"OggS":
            if ended:
                return  # tags or padding behind the stream
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


def _mp3_frame(payload: bytes, at: int) -> tuple[int, int] | None:
    """(what all frames of a stream share, bytes of the frame; 0: free format) of the MPEG audio header at `at`."""
    word = int.from_bytes(payload[at : at + 4], "big") if at + 4 <= len(payload) else 0
    version, layer, rate = word >> 19 & 3, 4 - (word >> 17 & 3), word >> 10 & 3
    kbit = word >> 12 & 15
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or rate == 3 or kbit == 15:
        return None
    hertz = (44100, 48000, 32000)[rate] >> (0, 1, 2)[{3: 0, 2: 1, 0: 2}[version]]
    bits = MP3_KBIT[version == 3, layer][kbit] * 1000
    padding = word >> 9 & 1
    if layer == 1:
        size = (12 * bits // hertz + padding) * 4
    else:
        size = (72 if layer == 3 and version != 3 else 144) * bits // hertz + padding
    return word >> 17 << 2 | rate, 0 if bits == 0 else size


def _mp3_chains(payload: bytes, start: int, kind: int | None) -> Iterator[int]:
    """Positions from `start` on where a frame begins and another of its kind follows."""
    at = payload.find(b"\xff", start)
    while at >= 0:
        frame = _mp3_frame(payload, at)
        if frame and kind in (None, frame[0]):
            after = _mp3_frame(payload, at + frame[1]) if frame[1] else None
            if after and after[0] == frame[0]:
                yield at
        at = payload.find(b"\xff", at + 1)


def _check_mp3(payload: bytes, name: str) -> None:
    """MPEG audio: frames follow each other without a gap, and the last one is whole."""
    at = 0
    while payload[at : at + 3] == b"ID3" and at + 10 <= len(payload):
        high, middle, low, last = payload[at + 6 : at + 10]
        at += 10 + (high << 21 | middle << 14 | low << 7 | last)
    first = next(_mp3_chains(payload, at, None), None)
    if first is None:
        return  # a single frame or free format: what was decoded is compared with the header's count of samples
    at, kind = first, (_mp3_frame(payload, first) or (0, 0))[0]
    while (frame := _mp3_frame(payload, at)) and frame[0] == kind:
        if at + frame[1] > len(payload):
            raise AudioError(f"{name} ends in the middle of an MPEG frame, at byte {len(payload)}.", "truncated")
        if frame[1] == 0:
            return
        at += frame[1]
    if 0 < len(payload) - at < 4 and payload[at] == 0xFF:
        raise AudioError(f"{name} ends in the middle of an MPEG header, at byte {len(payload)}.", "truncated")
    if next(_mp3_chains(payload, at, kind), None) is not None:  # else tags or padding behind the last frame
        raise AudioError(f"{name} is damaged: MPEG frames are missing at byte {at}.", "corrupt")
