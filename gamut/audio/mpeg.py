"""The frames of an MP3 (MPEG audio, ISO 11172-3 and 13818-3): whether it is complete, and whether it states its
length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from gamut.errors import AudioError

# (is MPEG-1, layer) -> kbit/s of the header's four bits
KBIT = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
OTHERS = 4  # frames in a row of another kind: what follows a stream can by chance look like fewer
REMEDY = "Write it anew: ffmpeg -i OLD.mp3 NEW.wav."
VERSIONS = {3: 0, 2: 1, 0: 2}  # the header's two bits -> halvings of MPEG-1's sample rate


class Frame(NamedTuple):
    """A frame's header."""

    kind: int  # version, layer and rate, which all frames of a stream share
    size: int  # bytes, header included; 0: free format, where the header does not state it
    samples: int
    channels: int


def frame_at(payload: bytes, at: int) -> Frame | None:
    """The frame whose header is at byte `at`; None where there is no header."""
    word = int.from_bytes(payload[at : at + 4], "big") if at + 4 <= len(payload) else 0
    version, layer, rate, kbit = word >> 19 & 3, 4 - (word >> 17 & 3), word >> 10 & 3, word >> 12 & 15
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or rate == 3 or kbit == 15:
        return None
    hertz = (44100, 48000, 32000)[rate] >> VERSIONS[version]
    bits = KBIT[version == 3, layer][kbit] * 1000
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    slot = 4 if layer == 1 else 1  # bytes of padding
    size = (samples // 8 * bits // hertz // slot + (word >> 9 & 1)) * slot
    return Frame(word >> 17 << 2 | rate, size if bits else 0, samples, 1 if word >> 6 & 3 == 3 else 2)


def chains(payload: bytes, start: int, kind: int | None = None) -> Iterator[int]:
    """Positions from `start` on where a frame (of this kind) begins and another of its kind follows it."""
    at = payload.find(b"\xff", start)
    while at >= 0:
        frame = frame_at(payload, at)
        if frame and frame.size and kind in (None, frame.kind):
            after = frame_at(payload, at + frame.size)
            if after and after.kind == frame.kind:
                yield at
        at = payload.find(b"\xff", at + 1)


def stream(payload: bytes, begin: int) -> Iterator[Frame]:
    """The frames from the one at byte `begin` on, as long as one of its kind follows; the last may be cut off."""
    at, kind = begin, None
    while (frame := frame_at(payload, at)) and frame.size and kind in (None, frame.kind):
        yield frame
        at, kind = at + frame.size, frame.kind


def first_frame(payload: bytes) -> int | None:
    """Where the stream begins, after any ID3v2 tags; None for free format and streams of a single frame."""
    return next(chains(payload, after_tags(payload)), None)


def after_tags(payload: bytes) -> int:
    """The first byte after any ID3v2 tags."""
    at = 0
    while payload[at : at + 3] == b"ID3" and at + 10 <= len(payload):
        high, middle, low, last = payload[at + 6 : at + 10]
        at += 10 + (high << 21 | middle << 14 | low << 7 | last)
    return at


def check_frames(payload: bytes, name: str) -> None:
    """Frames follow each other without a gap, the last one is whole, and all are of one rate and as many channels.

    Decoders read on at the rate and in the channels of the first frame: noise, double speed, or nothing. Raises
    AudioError (truncated, corrupt, format).
    """
    begin = first_frame(payload)
    if begin is None:
        return
    frames = list(stream(payload, begin))
    at = begin + sum(frame.size for frame in frames)
    if at > len(payload):
        raise AudioError(f"{name} ends in the middle of an MPEG frame, at byte {len(payload)}.", "truncated")
    if 0 < len(payload) - at < 4 and payload[at] == 0xFF:
        raise AudioError(f"{name} ends in the middle of an MPEG header, at byte {len(payload)}.", "truncated")
    if next(chains(payload, at, frames[0].kind), None) is not None:  # else tags or padding after the last frame
        raise AudioError(f"{name} is damaged: MPEG frames are missing at byte {at}.", "corrupt")
    changes = [number for number, frame in enumerate(frames[1:], 1) if frame.channels != frames[-1].channels]
    if changes:  # of the first frame, which may be the encoder's header, nothing is heard
        raise AudioError(
            f"{name} changes from {frames[1].channels} to {frames[-1].channels} channels inside. {REMEDY}", "format"
        )
    for other in chains(payload, at):
        if len(list(itertools.islice(stream(payload, other), OTHERS))) == OTHERS:
            raise AudioError(f"{name} goes on in another sample rate at byte {other}. {REMEDY}", "format")


class Part(NamedTuple):
    """Which bytes of an MP3 are sound."""

    begin: int  # first byte
    end: int  # the byte after the last: decoders lose the last frame where anything but a tag follows it
    frames: int
    samples: int  # of a frame


def unannounced(payload: bytes) -> Part | None:
    """The sound of a stream whose header does not give its true number of frames.

    Without a Xing or Info header libsndfile guesses the length from the first frame's size, and reads a stream of
    variable bit rate short, to a third of it or less, without an error; of several files joined together it reads
    only the first. None where the header can be trusted.
    """
    begin = first_frame(payload)
    if begin is None:
        return None
    first, *others = stream(payload, begin)
    stated = _stated_frames(payload[begin : begin + first.size])
    behind = begin + first.size
    end = behind + sum(frame.size for frame in others)
    if stated is None:
        return Part(begin, end, 1 + len(others), first.samples)
    if len(others) <= stated + 1:  # as it says (some writers do not count the last frame), or cut off and refused later
        return None
    return Part(behind, end, len(others), first.samples)


def _stated_frames(frame: bytes) -> int | None:
    """The number of frames that a Xing or Info header gives."""
    for tag in (b"Xing", b"Info"):
        at = frame.find(tag, 4, 48)
        if at > 0 and len(frame) >= at + 12 and frame[at + 7] & 1:
            return int.from_bytes(frame[at + 8 : at + 12], "big")
    return None
