"""From the parts of all shards, one after the other, to the index beside them: flat arrays, and index.json last."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from gamut.errors import ShardError
from gamut.files import hook, lock, refusal, sync, with_digest, write_bytes
from gamut.remote import pages
from gamut.shards.columns import COLUMN, DTYPES, SHARDS, Appender, digest_of, map_column
from gamut.shards.generations import FORMAT, PARTS, Generation, columns_of, fingerprint, part_fingerprint
from gamut.shards.part import Part
from gamut.shards.shard_table import ShardTable, label_counts

Names = Mapping[str, Mapping[str, Sequence[int]]]  # column -> name -> the values that it stands for

MANY = 16_384  # shards from which on they are columns (format 2) instead of a list in index.json
FRESH = "fresh"  # folder of an index that is being written
IDS = 1 << 24  # clip ids that are compared at once


@contextlib.contextmanager
def only_writer(folder: Path, *, with_others: bool = False) -> Iterator[None]:
    """Hold the lock of the shard set in `folder`, which is made if need be; it ends with this process in any case.

    `with_others`: share the lock with the other jobs of one conversion, each of which writes shards of its own.

    Raises ShardError where another process holds the lock, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            (folder / "index" / "parts").mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock(folder / "index" / "lock", wait=False, shared=with_others))
        except OSError as error:
            raise ShardError(refusal(error, folder)) from error
        if not held:
            raise ShardError(f"Another process is writing shards into {folder}. Wait for it to end.")
        yield


def clip_id(name: str, shard: str, key: str) -> int:
    """64-bit hash of (set, shard, key): stable under reordering, and different for a key that shards share."""
    return xxhash.xxh3_64_intdigest(f"{name}/{shard.removesuffix('.tar')}/{key}".encode())


def build(
    folder: Path,
    name: str,
    labels: Sequence[str],
    parts: Iterable[Part],
    about: dict | None = None,
    place: str | None = None,
    names: Names | None = None,
) -> None:
    """Write the index of a shard set into `folder`, from the parts one at a time. `about` is kept in index.json as it
    is; `place` is where the tars are if not in `folder` itself; `names` are those of values in the set's own columns.

    Raises ShardError as `Builder` does.
    """
    with Builder(folder, name) as builder:
        for part in parts:
            builder.add(part)
        builder.publish(labels, about, place, names)


class Builder:
    """Writes the index of a set part by part, in memory that does not grow with the clips (but with the shards).

    The columns go to a folder of their own. `publish` removes the index that was there, moves them in and writes
    index.json last, so a kill leaves the old index or none, never a mixed one. Memory: some 30 MB and 60 bytes a shard.

    Raises ShardError where the parts do not make one set, or the disk refuses.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder, self.index, self.fresh = folder, folder / "index", folder / "index" / FRESH
        try:
            shutil.rmtree(self.fresh, ignore_errors=True)
            self.fresh.mkdir(parents=True)
        except OSError as error:
            raise ShardError(refusal(error, self.fresh)) from error
        self.rows = Rows(Appender(self.fresh), folder, name)

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.rows.to.abandon()
        shutil.rmtree(self.fresh, ignore_errors=True)

    def add(self, part: Part) -> None:
        """The next shard."""
        self.rows.add(part)

    def publish(
        self, labels: Sequence[str], about: dict | None = None, place: str | None = None, names: Names | None = None
    ) -> None:
        """End the index; arguments as of `build`."""
        rows = self.rows
        rows.require_labels(labels)
        if list(rows.codecs) != sorted(rows.codecs):
            rows.sort_codecs()
        listed = rows.shards <= MANY
        rows.to.close(passing=SHARDS if listed else ())
        ids = map_column(self.fresh / "clip_id.npy", np.uint64, rows.clips).array
        refuse_equal_ids(ids, 0, rows.to.entries, self.fresh, self.folder)
        content = {
            "format": FORMAT,
            "name": rows.name,
            "labels": list(labels),
            "columns": list(rows.columns or ()),
            "names": {column: values for column, values in (names or {}).items() if column in (rows.columns or ())},
            "clips": rows.clips,
            "codecs": sorted(rows.codecs),
            "place": place,
        }
        wanted = columns_of(content, rows.timed)
        content = self._listed(content, wanted, about) if listed else self._many(content, [*wanted, *SHARDS], about)
        self._move_in()
        write_bytes(self.index / "index.json", json.dumps(with_digest(content), indent=1).encode(), ShardError)

    def _listed(self, content: dict, wanted: Sequence[str], about: dict | None) -> dict:
        """index.json of format 1."""
        entries = self.rows.to.entries
        told = {name: map_column(self.fresh / f"{name}.npy", SHARDS[name], entries[name]).array for name in SHARDS}
        table = ShardTable.mapped(told)
        for name in SHARDS:
            (self.fresh / f"{name}.npy").unlink()
        codecs, place = content.pop("codecs"), content.pop("place")
        content |= {
            "shards": list(table),
            "arrays": {name: digest_of(self.fresh / f"{name}.npy") for name in wanted},
            "about": about or {},
        }
        content |= {"codecs": codecs} if codecs else {}
        content |= {"place": place} if place is not None else {}
        return content | {"fingerprint": fingerprint(content)}

    def _many(self, content: dict, wanted: Sequence[str], about: dict | None) -> dict:
        """index.json of format 2, of one part."""
        content = {key: value for key, value in content.items() if value is not None}
        content |= {"format": PARTS, "about": about or {}, "parts": []}
        return with_part(content, self.rows, wanted, content.pop("names"), content.pop("clips"))

    def _move_in(self) -> None:
        try:
            (self.index / "index.json").unlink(missing_ok=True)
            for old in self.index.glob("*.npy"):
                old.unlink()
            for new in sorted(self.fresh.iterdir()):
                hook("rename", self.index / new.name)
                new.rename(self.index / new.name)
            sync(self.index)
        except OSError as error:
            raise ShardError(refusal(error, self.index)) from error


def with_part(content: dict, rows: Rows, wanted: Sequence[str], names: Names, clips: int) -> dict:
    """index.json of format 2 with one more part: what `rows` have appended."""
    entries, digests, edges = rows.to.entries, rows.to.digests, rows.to.edges
    part: dict[str, Any] = {
        "clips": clips,
        "shards": rows.shards,
        "classes": len(content["labels"]),
        "codecs": len(rows.codecs),
        "names": {column: values for column, values in names.items() if column in content["columns"]},
        "entries": {name: entries[name] for name in wanted},
        "page": pages.PAGE,
        "begins": {name: edges[name][0] for name in wanted},
        "ends": {name: edges[name][1] for name in wanted},
        "arrays": {name: digests[name] for name in wanted},
    }
    before = content["parts"][-1]["fingerprint"] if content["parts"] else ""
    part["fingerprint"] = part_fingerprint(before, content["name"], content["labels"], part)
    return content | {"codecs": list(rows.codecs), "parts": [*content["parts"], part]}


class Rows:
    """Appends the clips of shards to the columns of an index, and each shard to the columns of shards.

    to: knows how many entries the columns have. after: the generation that is appended to, whose columns and codecs the
    parts then share.
    """

    def __init__(self, to: Appender, folder: Path, name: str, after: Generation | None = None) -> None:
        self.to, self.folder, self.name = to, folder, name
        self.columns: tuple[str, ...] | None = None if after is None else after.columns
        self.codecs: dict[str, int] = {codec: number for number, codec in enumerate(after.codecs if after else ())}
        ends = to.there
        listed = after is None or after.table is not None  # the columns of shards are begun anew
        self.clips, self.shards = after.clips if after else 0, 0 if after is None or listed else after.shards
        self.timed = "event_offset" in ends
        self._ends = {of: ends.get(of, 0) for of in ("label", "key", "event", "shard-name", "shard-label")}
        self._last = -1  # the highest class id
        if after is None:
            for offset in ("label_offset", "key_offset"):
                self.to.append(offset, [0])
        if listed:
            for offset in ("shard-name_offset", "shard-label_offset"):
                self.to.append(offset, [0])

    def add(self, part: Part) -> None:
        """The next shard. Raises ShardError where it is of another set."""
        if part.key:
            self._require_same(part)
        put, own = self.to.append, self.columns or ()
        keys, labels = [key.encode() for key in part.key], [label for ids in part.labels for label in ids]
        put("clip_id", np.array([clip_id(self.name, part.shard, key) for key in part.key], np.uint64))
        put("shard", np.full(len(keys), self.shards, np.int32))
        for name, values in (
            ("offset", part.offset), ("size", part.bytes), ("samples", part.samples), ("checksum", part.clip_checksum)
        ):  # fmt: skip
            put(name, np.array(values, DTYPES[name]))
        self._ragged("label_offset", "label", [len(ids) for ids in part.labels])
        put("label", np.array(labels, np.int32))
        self._ragged("key_offset", "key", [len(key) for key in keys])
        put("key", np.frombuffer(b"".join(keys), np.uint8))
        for column in own:
            put(COLUMN + column, np.array(part.columns[column] if part.key else (), np.int64))
        if part.codec or self.codecs:
            put("codec", [self.codecs.setdefault(codec, len(self.codecs)) for codec in part.codec])
        self._add_events(part)
        self._last = max([self._last, *labels])
        self.add_shard(part.shard, part.size, part.checksum, np.array(part.samples, np.int64), np.array(labels, int))
        self.clips += len(keys)

    def add_shard(self, name: str, size: int, checksum: int, samples: np.ndarray, labels: np.ndarray) -> None:
        """Its entries in the columns of shards; samples, labels: int64, of its clips."""
        ids, counts = label_counts(labels)
        for column, value in (
            ("shard-size", size), ("shard-clips", len(samples)), ("shard-samples", samples.sum()),
        ):  # fmt: skip
            self.to.append(column, [int(value)])
        self.to.append("shard-checksum", np.array([checksum], np.uint64))
        self._ragged("shard-name_offset", "shard-name", [len(name.encode())])
        self.to.append("shard-name", np.frombuffer(name.encode(), np.uint8))
        self._ragged("shard-label_offset", "shard-label", [len(ids)])
        self.to.append("shard-label", ids)
        self.to.append("shard-label_count", counts)
        self.shards += 1

    def require_labels(self, labels: Sequence[str]) -> None:
        """Raise ShardError where a clip has a class that the table lacks."""
        if self._last >= len(labels):
            raise ShardError(f"A clip in {self.folder} has label {self._last}, but there are {len(labels)} classes.")
        for name in [*DTYPES, *(COLUMN + column for column in self.columns or ()), *SHARDS]:
            self.to.append(name, ())  # begun, where there was no part

    def sort_codecs(self) -> None:
        """Number the codecs in the order of their names."""
        order = sorted(self.codecs)
        table = np.array([order.index(codec) for codec in self.codecs], np.uint8)
        self.to.again("codec", lambda values: table[values])
        self.codecs = {codec: number for number, codec in enumerate(order)}

    def _require_same(self, part: Part) -> None:
        if self.columns is None:
            self.name, self.columns = self.name or part.name, tuple(part.columns)
            for column in self.columns:  # shards without clips came before
                self.to.append(COLUMN + column, ())
        if (part.name, set(part.columns)) != (self.name, set(self.columns)):
            raise ShardError(
                f"{self.folder / part.shard} belongs to another set than the shards beside it: its name and columns "
                f"are {part.name} {sorted(part.columns)}, theirs {self.name} {sorted(self.columns)}."
            )

    def _ragged(self, offset: str, of: str, lengths: Sequence[int]) -> None:
        self.to.append(offset, self._ends[of] + np.cumsum(lengths, dtype=np.int64))
        self._ends[of] += sum(lengths)

    def _add_events(self, part: Part) -> None:
        """Nothing as long as no clip has any, so that a set without events is what it always was."""
        clips = part.events or [[]] * len(part.key)
        events = np.array([event for events in clips for event in events], np.int64).reshape(-1, 3)
        if not self.timed:
            if not len(events):
                return
            self.timed = True
            for first in range(0, self.clips + 1, IDS):
                self.to.append("event_offset", np.zeros(min(IDS, self.clips + 1 - first), np.int64))
        self._ragged("event_offset", "event", [len(events) for events in clips])
        for name, values in zip(("event_onset", "event_end", "event"), events.T):
            self.to.append(name, values)


def refuse_equal_ids(ids: np.ndarray, since: int, entries: Mapping[str, int], place: Path, folder: Path) -> None:
    """Raise ShardError where two of the clip ids, uint64 [n], are equal, at least one of them in a row from `since` on.

    IDS of the new ones are held at once, each time those of another range of values. place: of the columns of keys.
    """
    passes = 1 << max(0, (len(ids) - since - 1) // IDS).bit_length()
    for number in range(passes):
        some = np.sort(_of_range(ids, since, len(ids), number, passes))
        twice = some[1:][some[1:] == some[:-1]]
        for first in range(0, since if len(some) else 0, IDS):
            old = _of_range(ids, first, min(first + IDS, since), number, passes)
            at = np.minimum(np.searchsorted(some, old), len(some) - 1)
            twice = np.concatenate([twice, old[some[at] == old]])
        if len(twice):
            chunks = range(0, len(ids), IDS)
            rows = [at + int(row) for at in chunks for row in np.flatnonzero(ids[at : at + IDS] == twice[0])]
            first_key, second_key = (_key(place, entries, row) for row in rows[:2])
            raise ShardError(
                f"Two clips in {folder} have the same clip id: {first_key} and {second_key}. "
                "Convert with another --name."
            )


def _of_range(ids: np.ndarray, first: int, last: int, number: int, passes: int) -> np.ndarray:
    """Of rows [first, last) those ids whose highest bits are the number of the pass."""
    if passes == 1:
        return np.asarray(ids[first:last])
    shift = np.uint64(64 - (passes.bit_length() - 1))
    chunks = (ids[at : min(at + IDS, last)] for at in range(first, last, IDS))
    return np.concatenate([np.zeros(0, np.uint64), *(chunk[chunk >> shift == number] for chunk in chunks)])


def _key(place: Path, entries: Mapping[str, int], row: int) -> str:
    offset, key = (
        map_column(place / f"{name}.npy", DTYPES[name], entries[name]).array for name in ("key_offset", "key")
    )
    return bytes(key[offset[row] : offset[row + 1]]).decode()
