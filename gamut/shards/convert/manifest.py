"""The records of a conversion, in a file, in the order of the shards: what the writers of shards read.

A listing of two million clips is iterated over once and never held: each record becomes a line of a file, and only 24
bytes a clip stay in memory. A second pass sorts the file, so that a shard's records are one stretch of it.
"""

from __future__ import annotations

import csv
import io
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash

from gamut.audio.ffmpeg import require_ffmpeg
from gamut.audio.kinds import needs_ffmpeg
from gamut.audio.segment import Segment
from gamut.errors import ShardError
from gamut.files import TEMPORARY, refusal, replacing
from gamut.shards.build import Names
from gamut.shards.convert.source import SPLIT, Event, Listing, Missing, Record, clips_a_shard, shard_order

RECORDS, MISSING = "records.jsonl", "missing.csv"


@dataclass(frozen=True)
class Stretch:
    """The records of one shard."""

    path: Path
    offset: int  # bytes
    clips: int

    def records(self) -> Iterator[Record]:
        """In the order of the tar."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for _ in range(self.clips):
                yield _parse(file.readline())


@dataclass(frozen=True)
class Manifest:
    """A listing, written down."""

    folder: Path
    shards: tuple[tuple[int, int], ...]  # (offset in the file, clips) of each
    clips: int
    clips_per_shard: int
    missing: int
    digest: str  # of everything in the records except the paths of their files
    ffmpeg: str  # an example of a file that needs it, if any

    def stretch(self, shard: int) -> Stretch:
        """The records of a shard number."""
        return Stretch(self.folder / RECORDS, *self.shards[shard])


def write_manifest(listing: Listing, folder: Path, clips_per_shard: int | None = None) -> Manifest:
    """Iterate over a listing and write its records into `folder`, which is created.

    A shard holds clips of one split only, so that training on a small split does not fetch the others' shards. Raises
    ShardError where two records have the same key, where no record has a file, or where one needs ffmpeg and there is
    none, and whatever the listing itself raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loose = folder / f"{RECORDS}{TEMPORARY}"
    try:
        spool = _spool(listing, loose, folder / MISSING)
        if not len(spool.hash):
            raise ShardError(_nothing(listing, spool))
        order = np.lexsort((spool.hash, spool.split))
        with open(loose, "rb") as file:
            _refuse_duplicates(spool, file.fileno())
            each = clips_per_shard or clips_a_shard(len(order))
            shards, digest = _sort(spool, order, each, file.fileno(), folder / RECORDS)
    except OSError as error:
        raise ShardError(refusal(error, folder)) from error
    finally:
        loose.unlink(missing_ok=True)
    if spool.ffmpeg:
        require_ffmpeg(spool.ffmpeg)
    return Manifest(folder, tuple(shards), len(order), each, spool.missing, digest, spool.ffmpeg)


@dataclass
class _Spool:
    hash: np.ndarray  # uint64 [n], of the key
    split: np.ndarray  # int64 [n]
    offset: np.ndarray  # int64 [n + 1], of the lines
    missing: int
    example: str  # of the missing
    ffmpeg: str


def _spool(listing: Listing, loose: Path, absent: Path) -> _Spool:
    hashes, splits, offsets = array("Q"), array("q"), array("q", [0])
    missing, example, ffmpeg = 0, "", ""
    named = _single_names(listing.names)
    with open(loose, "wb") as file, replacing(absent, ShardError) as lost:
        lost.write(b"clip,split,file\n")
        for record in listing.records:
            if isinstance(record, Missing):
                missing, example = missing + 1, example or record.file
                split = "" if record.split is None else named.get(record.split, str(record.split))
                lost.write(_csv_line(record.clip, split, record.file))
                continue
            line = _dump(record)
            file.write(line)
            offsets.append(offsets[-1] + len(line))
            hashes.append(shard_order(record.key))
            splits.append(record.columns.get(SPLIT, 0))
            if not ffmpeg and needs_ffmpeg(record.path):
                ffmpeg = str(record.path)
    if not missing:
        absent.unlink()
    return _Spool(
        np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64),
        np.frombuffer(splits, np.int64) if splits else np.zeros(0, np.int64),
        np.frombuffer(offsets, np.int64),
        missing,
        example,
        ffmpeg,
    )


def _single_names(names: Names) -> dict[int, str]:
    """Split number -> the last name that means it alone."""
    return {values[0]: name for name, values in names.get(SPLIT, {}).items() if len(values) == 1}


def _csv_line(*words: str) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(words)
    return line.getvalue().encode(errors="surrogateescape")


def _nothing(listing: Listing, spool: _Spool) -> str:
    if spool.missing:
        return (
            f"None of the {spool.missing:,} clips of {listing.name} was found. The first was looked for as "
            f"{spool.example}. Is SRC the right folder?"
        )
    passed = ", ".join(f"{count:,} {why}" for why, count in listing.passed_over().items())
    return f"The source of {listing.name} lists no clips." + (f" Passed over: {passed}." if passed else "")


def _refuse_duplicates(spool: _Spool, descriptor: int) -> None:
    order = np.argsort(spool.hash, kind="stable")
    equal = np.flatnonzero(spool.hash[order[1:]] == spool.hash[order[:-1]])
    if len(equal):
        first, second = (_parse(_line(spool, descriptor, int(order[at]))) for at in (equal[0], equal[0] + 1))
        if first.path == second.path:
            raise ShardError(f"Two entries for {first.path} would both be the clip {first.key}. Leave one of them out.")
        raise ShardError(f"{first.path} and {second.path} would both be the clip {first.key}. Rename one of them.")


def _line(spool: _Spool, descriptor: int, number: int) -> bytes:
    begin, end = int(spool.offset[number]), int(spool.offset[number + 1])
    return os.pread(descriptor, end - begin, begin)


def _sort(
    spool: _Spool, order: np.ndarray, each: int, descriptor: int, path: Path
) -> tuple[list[tuple[int, int]], str]:
    """Write the lines in `order`; (offset, clips) of every shard, and the digest of what the lines say."""
    shards: list[tuple[int, int]] = []
    digest = xxhash.xxh3_128()
    at, split = 0, None
    with replacing(path, ShardError) as file:
        for number in order.tolist():
            line = _line(spool, descriptor, number)
            if not shards or shards[-1][1] == each or spool.split[number] != split:
                shards.append((at, 0))
                split = spool.split[number]
            shards[-1] = (shards[-1][0], shards[-1][1] + 1)
            digest.update(line[: line.index(b"\t")])
            file.write(line)
            at += len(line)
    return shards, digest.hexdigest()


def _dump(record: Record) -> bytes:
    """`CONTENT\\tPATH\\n`, both as JSON, which contains neither a tab nor a line feed."""
    segment = None if record.segment is None else asdict(record.segment)
    content: list[object] = [
        record.key,
        record.labels,
        record.text,
        dict(record.columns),
        dict(record.provenance),
        segment,
    ]
    content += [record.events] if record.events else []  # a listing without events has the digest that it always had
    return f"{json.dumps(content, sort_keys=True)}\t{json.dumps(os.fspath(record.path))}\n".encode()


def _parse(line: bytes) -> Record:
    content, path = line.split(b"\t")
    key, labels, text, columns, provenance, segment, *events = json.loads(content)
    cut = None if segment is None else Segment(**segment)
    timed = tuple(Event(*event) for event in (events[0] if events else ()))
    return Record(key, Path(json.loads(path)), tuple(labels), text, columns, provenance, cut, timed)
