"""Reading at a place in an open file."""

from __future__ import annotations

import os


def read_at(descriptor: int, size: int, at: int) -> bytes:
    """`size` bytes from byte `at`, or fewer where the file ends. Raises OSError."""
    payload = os.pread(descriptor, size, at)
    while 0 < len(payload) < size:  # a read may legally give less than was asked for
        rest = os.pread(descriptor, size - len(payload), at + len(payload))
        if not rest:
            break
        payload += rest
    return payload
