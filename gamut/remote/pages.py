"""Which bytes of an index's files have which digest: what index.json of a set in several parts says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import xxhash

PAGE = 1 << 18  # bytes that have a digest of their own, and are fetched together: 32,768 entries of 8 bytes
_BLOCK = 1 << 20


class Page(NamedTuple):
    """Bytes [begin, end) of a column's file, and their xxh3_64 (hexadecimal)."""

    name: str
    begin: int
    end: int
    digest: str


def pages_of(parts: Sequence[Mapping[str, Any]]) -> list[Page]:
    """All pages of the columns that these parts appended to, column by column.

    Of each part `begins` and `ends` are the bytes of a column's file that it appended; `arrays` has their digests, one
    a page, or one alone of the whole file up to there. Raises ValueError where there are more or fewer.
    """
    found: dict[str, list[Page]] = {}
    for part in parts:
        for name, told in part["arrays"].items():
            begin, end = int(part["begins"].get(name, 0)), int(part["ends"][name])
            if isinstance(told, str):
                begin, told = 0, [told]
                edges = [begin, end]
            else:
                edges = [*range(begin, end, int(part["page"])), end] if end > begin else []
            pages = (Page(name, *page) for page in zip(edges[:-1], edges[1:], told, strict=True))
            found.setdefault(name, []).extend(pages)
    return [page for pages in found.values() for page in pages]


def digest(file: BinaryIO, begin: int, end: int) -> str | None:
    """xxh3_64 (hexadecimal) of bytes [begin, end) of a file; None where it ends before."""
    file.seek(begin)
    hashed = xxhash.xxh3_64()
    while begin < end:
        block = file.read(min(_BLOCK, end - begin))
        if not block:
            return None
        hashed.update(block)
        begin += len(block)
    return hashed.hexdigest()
