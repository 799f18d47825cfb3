"""Valid inputs made invalid, for fuzzing: a short program of bytes, which hypothesis finds and shrinks, says how."""

from __future__ import annotations

import base64
import copy
import json
import resource
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gamut.errors import GamutError

SECONDS = 1.0  # of this process's own time that an input may take
BYTES = 1 << 30  # of memory that it may take
EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, float("nan"), "", "x", "..", "../../x",
    "/etc/passwd", "/dev/zero", "a\0b", "a\nb", "\ud800", "pipe:touch owned {}", [], {}, [[]], [None], {"": None},
    "9" * 5000,
)  # fmt: skip


def changed(seed: bytes, program: bytes) -> bytes:
    """`seed` after up to eight edits: flips, cuts, splices, numbers of a header set to extremes."""
    data = bytearray(seed)
    for at in range(0, min(len(program), 64) - 7, 8):
        what, where, more = program[at], int.from_bytes(program[at + 1 : at + 5], "big"), program[at + 5 : at + 8]
        place = where % (len(data) + 1)
        if what & 1:  # half of all edits are in the header
            place = where % (min(len(data), 128) + 1)
        length = int.from_bytes(more[:2], "big") % (len(data) // 4 + 2)
        kind = what >> 1 & 7
        if kind in (0, 1) and data:
            data[place % len(data)] ^= 1 << (more[0] & 7)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            other = int.from_bytes(more, "big") % (len(data) + 1)
            data[place:place] = data[other : other + length]
        elif kind == 6:
            size = 1 << (more[0] & 3)
            number = EXTREME[more[1] % len(EXTREME)] & (1 << 8 * size) - 1
            data[place : place + size] = number.to_bytes(size, "big" if more[2] & 1 else "little")
        else:
            data[place : place + length % 64] = bytes([more[2]]) * (length % 64)
    return bytes(data)


def altered(content: Any, program: bytes) -> Any:
    """JSON after up to four edits: a value anywhere in it becomes another, is removed, or repeated."""
    whole = [copy.deepcopy(content)]
    for at in range(0, min(len(program), 32) - 7, 8):
        inside, key = whole, 0
        for step in program[at : at + 5]:
            there = inside[key]
            if not isinstance(there, (dict, list)) or not there or step & 3 == 0:
                break
            inside, key = there, list(there)[step % len(there)] if isinstance(there, dict) else step % len(there)
        kind, which = program[at + 5] & 7, program[at + 6]
        if kind == 0 and inside is not whole:
            del inside[key]
        elif kind == 1 and isinstance(inside, list) and inside is not whole:
            inside.append(inside[key])
        elif kind == 2 and isinstance(inside[key], list):
            inside[key] = inside[key] * (which or 1)
        else:
            inside[key] = copy.deepcopy(VALUES[which % len(VALUES)])
    return whole[0]


def dumped(content: Any) -> bytes:
    """As JSON; what UTF-8 does not hold is dropped."""
    return json.dumps(content).encode("utf-8", "ignore")


class Trial:
    """One target: what reads an input either can, or raises an error of ours, within its time and memory."""

    def __init__(self, read: Callable[[bytes], object], seeds: Sequence[bytes]) -> None:
        self.read, self.seeds = read, seeds
        self.taken = self.refused = 0
        self.slowest = 0.0
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        self.before = _peak()

    def __call__(self, program: bytes) -> None:
        """A program's first byte says which seed; 255: the program itself is the input."""
        first = program[0] if program else 255
        payload = program[1:] if first == 255 else changed(self.seeds[first % len(self.seeds)], program[1:])
        self.give(payload)

    def give(self, payload: bytes) -> None:
        since = time.process_time()
        try:
            with suppress(GamutError):
                self.refused += 1
                self.read(payload)
                self.refused -= 1
                self.taken += 1
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error}. {_replay(payload)}") from error
        took = time.process_time() - since
        if took >= SECONDS:  # once more, in case the machine was busy with something else
            since = time.process_time()
            with suppress(GamutError):
                self.read(payload)
            took = min(took, time.process_time() - since)
        self.slowest = max(self.slowest, took)
        assert took < SECONDS, f"{took:.1f} s. {_replay(payload)}"
        grown = _peak() - self.before
        assert grown < BYTES, f"{grown / 1e6:.0f} MB. {_replay(payload)}"

    def __str__(self) -> str:
        return (
            f"{self.taken} read, {self.refused} refused, the slowest in {1000 * self.slowest:.0f} ms, "
            f"{(_peak() - self.before) / 1e6:.0f} MB"
        )


def _replay(payload: bytes) -> str:
    packed = base64.b64encode(zlib.compress(payload, 9)).decode()
    return f"The input: zlib.decompress(base64.b64decode({packed!r}))"


def _peak() -> int:
    """Bytes of the largest resident set so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
