"""The members of an untrusted tar: header by header, nothing decompressed, nothing unpacked.

Python's tarfile takes a tar that was cut between two members, or whose header is damaged, as a shorter one without an
error, and reads extended headers of any stated size into memory. Here a tar must end in its zeros.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gamut.errors import ShardError

BLOCK = 512
LARGEST_HEADER = 1 << 20  # bytes, of an extended header: a long name and a few dates
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_EMPTY = (*_LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str  # as the tar has it; bytes that are not UTF-8 as surrogates
    offset: int  # of the content, bytes
    size: int  # bytes


def members(file: BinaryIO, path: str | Path, ignored: Counter[str] | None = None) -> Iterator[Member]:
    """The regular members of a tar, in order, and those that are links to one: those, hard
    or symbolic, come last. `path` is its name, for messages; `file` may be read in between.

    Links that lead elsewhere, devices and pipes are counted in `ignored`.

    Raises ShardError where the tar is compressed, is cut off, has a damaged header, or where anything but zeros
    follows its end; the members before that have been yielded by then.
    """
    size = file.seek(0, os.SEEK_END)
    refuse_compressed(file, path)
    at, last = 0, "its beginning"
    everywhere: dict[str, str] = {}
    extended: dict[str, str] = {}
    ignored = Counter() if ignored is None else ignored
    files: dict[str, Member] = {}  # what links may lead to
    links: list[tuple[str, str]] = []  # (name, what it leads to)
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if not any(block):
            break
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise ShardError(
                f"{path} is cut off or has a damaged header after {last}, at byte {at} of {size} ({error}): "
                "what comes after it would be lost silently."
            ) from error
        if header.type in (_LONG_NAME, _LONG_LINK, *_PAX):
            content = _extended(file, path, header.size, last)
            if header.type in (_LONG_NAME, _LONG_LINK):
                extended["path" if header.type == _LONG_NAME else "linkpath"] = content.split(b"\0", 1)[0].decode(
                    "utf-8", "surrogateescape"
                )
            elif header.type in _PAX:
                (everywhere if header.type == tarfile.XGLTYPE else extended).update(_records(content, path, last))
            at += BLOCK + _padded(header.size)
            continue
        facts = {**everywhere, **extended}
        extended = {}
        name, length = facts.get("path", header.name), _length(facts, header, path)
        if header.type in _EMPTY:
            length = 0
        elif header.type == tarfile.GNUTYPE_SPARSE or any(fact.startswith("GNU.sparse") for fact in facts):
            raise ShardError(
                f"{path} holds the sparse file {name!r}, which is not supported. Write the shard again without sparse "
                "files."
            )
        if at + BLOCK + length > size:
            raise ShardError(
                f"{path} is cut off in the middle of {name!r}: its {length} bytes begin at byte {at + BLOCK} of {size}."
            )
        if header.type in _FILES:
            files[posixpath.normpath(name)] = found = Member(name, at + BLOCK, length)
            yield found
        elif header.type in _LINKS:
            place = "" if header.type == tarfile.LNKTYPE else posixpath.dirname(name)
            target = posixpath.normpath(posixpath.join(place, facts.get("linkpath", header.linkname)))
            yield from _linked(link := [(name, target)], files)
            links += link
        elif header.type != tarfile.DIRTYPE:
            ignored["members that are no files"] += 1
        at, last = at + BLOCK + _padded(length), repr(name)
    _check_end(file, path, at, size, last)
    yield from _linked(links, files)
    ignored["links that lead to no file in the tar"] += len(links)


def _linked(links: list[tuple[str, str]], files: dict[str, Member]) -> Iterator[Member]:
    """The links that lead to one of these files, also over another link, as they are found; the others stay."""
    while led := [link for link in links if link[1] in files]:
        links[:] = [link for link in links if link[1] not in files]
        for name, target in led:
            found = files[posixpath.normpath(name)] = files[target]._replace(name=name)
            yield found


def refuse_compressed(file: BinaryIO, path: str | Path) -> None:
    """Raise ShardError where the file is compressed: no member of it could be read by itself."""
    file.seek(0)
    begin = file.read(8)
    for magic, (kind, tool) in COMPRESSED.items():
        if begin.startswith(magic):
            raise ShardError(
                f"{path} is compressed with {kind}, so no clip in it can be read without everything before it. "
                f"Decompress it with {tool}; compression gains nothing on audio."
            )


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _extended(file: BinaryIO, path: str | Path, size: int, last: str) -> bytes:
    if not 0 <= size <= LARGEST_HEADER:
        raise ShardError(
            f"{path} has an extended header of {size} bytes after {last}, far more than a file name needs."
        )
    content = file.read(size)
    if len(content) < size:
        raise ShardError(f"{path} is cut off in an extended header after {last}.")
    return content


def _records(content: bytes, path: str | Path, last: str) -> dict[str, str]:
    """A pax header (POSIX.1-2001): records `LENGTH KEY=VALUE\\n`, the length that of the whole record."""
    found: dict[str, str] = {}
    try:
        while content.strip(b"\0"):
            length = int(content.split(b" ", 1)[0])
            record, content = content[:length], content[length:]
            key, value = record[record.index(b" ") + 1 : -1].split(b"=", 1)
            if length < 5 or not record.endswith(b"\n"):
                raise ValueError("a record of another length than it states")
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
    except ValueError as error:
        raise ShardError(f"{path} has a damaged extended header after {last}: {error}.") from error
    return found


def _length(facts: dict[str, str], header: tarfile.TarInfo, path: str | Path) -> int:
    try:
        length = int(facts.get("size", header.size))
    except ValueError:
        length = -1
    if length < 0:
        raise ShardError(f"{path} states an impossible size of {header.name!r}.")
    return length


def _check_end(file: BinaryIO, path: str | Path, at: int, size: int, last: str) -> None:
    file.seek(at)
    zeros = True
    while zeros and (block := file.read(1 << 20)):
        zeros = block.count(0) == len(block)
    if not zeros or size - at < 2 * BLOCK:
        raise ShardError(
            f"{path} is cut off or has a damaged header after {last}, at byte {at} of {size}: "
            "what comes after it would be lost silently."
        )
