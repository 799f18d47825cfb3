"""The index of a shard set: what is where, column by column, memory-mapped, with no Python object a clip."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gamut.audio.decode import decode_flac
from gamut.audio.members import decode_member
from gamut.errors import ShardError
from gamut.files import UNSOUND, require_digest
from gamut.plan import Clips
from gamut.recipe.schema import FrontEnd
from gamut.remote import Remote
from gamut.remote.mirror import statistics_name
from gamut.remote.pages import Page
from gamut.remote.store import refuse_pipe
from gamut.shards.check import (
    MANY_TARS,
    SMALL,
    Checks,
    Whole,
    ends_of,
    own_share,
    parts_of,
    require_count,
    require_names,
    require_sense,
)
from gamut.shards.columns import COLUMN, EVENTS, RAGGED, damaged_columns, dtype_of, map_column, path_of
from gamut.shards.folds import FOLD, FOLDS
from gamut.shards.generations import Generation, damaged, read_generation
from gamut.shards.paged import page_columns
from gamut.shards.shard_table import ShardSums, ShardTable, sums_of
from gamut.shards.tars import Tars

STATISTICS = statistics_name()  # in the folder of the index
LOOKERS, AT_ONCE = 16, 256  # threads that look for tars, and how many each takes at a time


class Index:
    """One row a clip, in the order of the shards; n clips. Arrays are read-only and mapped from their files.

    >>> index = Index.open("shards/esc50")                      # doctest: +SKIP
    >>> index.key(0), index.labels[index.label[index.label_offset[0]]], index.samples[0] / 16000  # doctest: +SKIP
    ('3-144028-A-0', 'dog', 5.0)
    """

    folder: Path
    name: str  # of the set
    labels: tuple[str, ...]  # the class table
    fingerprint: str  # of everything below and the tars' checksums
    generation: int  # 0, or how many times `add` had appended to the set
    has_grown: bool  # whether the set has a newer generation by now
    by_ranges: bool  # whether its columns are fetched page by page when they are read (`gamut.shards.paged`)
    shard_table: ShardTable  # the tars: names, sizes, clips, checksums
    clip_id: np.ndarray  # uint64 [n], 64-bit hash of (set, shard, key)
    shard: np.ndarray  # int32 [n]
    offset: np.ndarray  # int64 [n], first byte of the audio inside its tar
    size: np.ndarray  # int64 [n], bytes of the audio
    samples: np.ndarray  # int64 [n], at 16 kHz
    checksum: np.ndarray  # uint64 [n], xxh3_64 of the audio's bytes
    label_offset: np.ndarray  # int64 [n + 1]
    label: np.ndarray  # int32 [labels], class ids
    event_offset: np.ndarray | None  # int64 [n + 1]; None: no clip has events, and the next three are empty
    event_onset: np.ndarray  # int64 [events], the first sample of each, at 16 kHz
    event_end: np.ndarray  # int64 [events], the sample after its last
    event: np.ndarray  # int32 [events], class ids, each among the clip's labels
    columns: Mapping[str, np.ndarray]  # int64 [n] each
    names: dict[str, dict[str, list[int]]]  # column -> name -> the values that it stands for
    tars: Tars  # where they are: in `folder`, or elsewhere for third-party and remote ones
    codecs: tuple[str, ...]  # of third-party shards; none: ours, FLAC of 16 kHz, mono, 16 bits
    codec: np.ndarray | None  # uint8 [n], positions in `codecs`

    def __init__(
        self, folder: Path, of: Generation, arrays: Mapping[str, np.ndarray], pages: Sequence[Page], remote: Remote
    ) -> None:
        self.folder = folder
        self.name, self.labels, self.fingerprint, self.generation = of.name, of.labels, of.fingerprint, of.number
        self.has_grown, self.by_ranges = of.number + 1 < of.of, of.origin is not None
        self.shard_table = ShardTable.mapped(arrays) if of.table is None else ShardTable.of(of.table)
        self._checks: list[Checks] = []  # that are not waited for yet
        self.arrays, self.pages = arrays, pages  # all columns by the names of their files; the files' pages
        self.clip_id, self.shard, self.offset = arrays["clip_id"], arrays["shard"], arrays["offset"]
        self.size, self.samples, self.checksum = arrays["size"], arrays["samples"], arrays["checksum"]
        self.label_offset, self.label = arrays["label_offset"], arrays["label"]
        self.event_offset = arrays.get("event_offset")
        self.event_onset, self.event_end, self.event = (
            arrays.get(name, np.zeros(0, EVENTS[name])) for name in ("event_onset", "event_end", "event")
        )
        self._key_offset, self._key = arrays["key_offset"], arrays["key"]
        self.columns = {column: arrays[COLUMN + column] for column in of.columns}
        self.names = {column: dict(names) for column, names in of.names.items()}
        self.tars = Tars(str(folder) if of.place is None else of.place, self.shard_table.name, remote)
        self.codecs, self.codec = of.codecs, arrays.get("codec")
        self._sums = None if "shard-samples" not in arrays else _stored_sums(self.shard_table, arrays)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        tars: bool = True,
        intact: bool = True,
        remote: Remote | None = None,
        generation: str = "",
        later: bool = False,
    ) -> Index:
        """Open the index of the shard set in `folder`, check (with `intact`) that its files are those that were written
        and (with `tars`) that its tars are there, at their size.

        Of an index of over 1 GiB, and of more than 4,096 tars, each rank of a job checks its share: together they read
        it once. With `later` a process goes on with an index of over 1 GiB while threads check its share, and calls
        `require_sound` before anything is made of what it reads. A page of a remote index that is fetched by ranges is
        checked when it comes, and remote tars only when they are read; `remote` says how. generation: the fingerprint
        of the generation to open, where `add` has appended to the set; the newest if empty.

        Raises ShardError where the index is missing, damaged, or older than its tars, with the command that repairs it,
        and where it has no such generation.
        """
        folder = Path(folder)
        of = read_generation(folder, generation)
        remote = remote or Remote()
        try:
            arrays, pages = _map(folder, of, remote)
            size = sum(array.nbytes for array in arrays.values())
            later = later and size > SMALL
            shares = parts_of(own_share(size <= SMALL), size)
            here = of.origin is None
            if intact and here and not later:
                Checks([partial(_require_intact, folder, pages, share) for share in shares]).wait()
            index = cls(folder, of, arrays, pages, remote)
            words = (index.name, index.tars.place, *index.labels, *index.codecs)
            require_names(words, index.tars.names, index.names, index.columns)
            whole = Whole(index.shard_table, len(index), len(index.labels), len(index.codecs))
            if intact and not here:
                require_count(whole)
            if intact and here and not later:
                Checks([partial(require_sense, whole, arrays, tars, share) for share in shares]).wait()
        except (*UNSOUND, OSError) as error:
            raise damaged(folder, error) from error
        refuse_pipe(index.tars.place, index.tars.remote)
        if intact and here and later:
            index._checks.append(Checks([partial(index._check_share, whole, tars, share) for share in shares]))
        if tars and not index.tars.is_remote:
            index._checks.append(index._tar_checks())
        if not later:
            index.require_sound()
        return index

    def require_sound(self) -> None:
        """Wait for the checks of an index that was opened with `later`, if it is large. Raises ShardError as `open`
        does."""
        checks, self._checks = self._checks, []
        for each in checks:
            each.wait()

    @property
    def shards(self) -> Sequence[dict]:
        """{"name", "size", "clips", "checksum" (hexadecimal)} of each tar."""
        return self.shard_table

    @functools.cached_property
    def sums(self) -> ShardSums:
        """Sums over each shard: of an index of format 2 as it stores them, else by one pass over its columns."""
        return self._sums or sums_of(self.shard_table, self.samples, self.label_offset, self.label)

    def rows_of(self, shard: int) -> range:
        """The rows of a shard number."""
        first = self.shard_table.first
        return range(int(first[shard]), int(first[shard + 1]))

    def __len__(self) -> int:
        return len(self.clip_id)

    def __reduce__(self) -> tuple:
        # A worker process maps the files again instead of being sent the arrays; they were checked here.
        return _again, (self.folder, self.tars.remote, self.fingerprint)

    def key(self, row: int) -> str:
        """The clip's key in its tar; unique within a shard only, and never a path."""
        return bytes(self._key[self._key_offset[row] : self._key_offset[row + 1]]).decode()

    def keys(self) -> list[str]:
        """All keys in order: a Python object a clip, for looking up what a person wrote."""
        return [key for some in self.keys_by(len(self)) for key in some]

    def keys_by(self, rows: int) -> Iterator[list[str]]:
        """All keys in order, those of so many rows at a time."""
        for first in range(0, len(self), max(1, rows)):
            offset = self._key_offset[first : first + rows + 1].tolist()
            raw = bytes(self._key[offset[0] : offset[-1]])
            yield [raw[begin - offset[0] : end - offset[0]].decode() for begin, end in itertools.pairwise(offset)]

    @property
    def sets(self) -> tuple[Index, ...]:
        """The sets that this index is of: itself, or those of a mixture (`Joined`)."""
        return (self,)

    def shard_path(self, shard: int) -> Path:
        """The tar of a shard number, where it is on this machine's disks (see `tars`)."""
        return Path(self.tars.place) / self.tars.names[shard]

    @property
    def decode(self) -> Callable[[bytes, int], np.ndarray]:
        """From a clip's bytes and number of samples to int16 [samples], 16 kHz mono; raises AudioError."""
        return decode_member if self.codecs else decode_flac

    def label_ids(self, row: int) -> np.ndarray:
        """int32 [labels of the clip]."""
        return self.label[self.label_offset[row] : self.label_offset[row + 1]]

    def events(self, row: int) -> np.ndarray:
        """int64 [events of the clip, 3]: first sample, the sample after the last, class id; by time."""
        if self.event_offset is None:
            return np.zeros((0, 3), np.int64)
        own = slice(self.event_offset[row], self.event_offset[row + 1])
        return np.stack([self.event_onset[own], self.event_end[own], self.event[own]], 1).astype(np.int64)

    def table(self) -> Clips:
        """What a plan knows of the set."""
        rows = np.arange(len(self), dtype=np.int64)
        clip_id, shard, samples, size = map(np.asarray, (self.clip_id, self.shard, self.samples, self.size))
        return Clips(row=rows, clip_id=clip_id, shard=shard, samples=samples, size=size)

    def where(self, subset: Mapping[str, Sequence[int | str]]) -> np.ndarray:
        """int64 rows, ascending, whose every named column holds one of the values; all rows for an empty subset.

        A value is an integer, or a name that the column has for one or more (`split: [train]`). A column with a `?`
        after its name is ignored where the set does not have it. Raises ShardError for a column or a name that the set
        does not have, and for an integer that is also the name of another value.
        """
        return np.flatnonzero(self.holds(subset, slice(0, len(self)))).astype(np.int64)

    def holds(self, subset: Mapping[str, Sequence[int | str]], rows: slice) -> np.ndarray:
        """bool [rows]: which of some rows `where` would give. Raises ShardError as that does."""
        chosen = np.ones(rows.stop - rows.start, bool)
        for name, values in subset.items():
            column = name.removesuffix("?")
            if column not in self.columns:
                if column != name:
                    continue
                raise ShardError(no_column(self, column))
            chosen &= np.isin(self.columns[column][rows], self._values(column, values))
        return chosen

    def _values(self, column: str, wanted: Sequence[int | str]) -> np.ndarray:
        names = self.names.get(column, {})
        values: list[int] = []
        for one in wanted:
            if isinstance(one, str) and one not in names:
                there = f"its values are named {', '.join(names)}" if names else "its values are integers without names"
                raise ShardError(f"The column {column} of the shards in {self.folder} has no value {one!r}; {there}.")
            if not isinstance(one, str) and list(names.get(str(one), (one,))) != [one]:
                raise ShardError(
                    f"In the column {column} of the shards in {self.folder}, {one} is both a value and the name of "
                    f"another value; if the name is meant, write it in quotes: {column}: ['{one}']."
                )
            values.extend(names[one] if isinstance(one, str) else (one,))
        return np.asarray(values, np.int64)

    def statistics(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the log-mel as `stats` wrote them; None before that, for other shards, and
        where there is nothing but silence."""
        found = self._statistics()
        return found if found is not None and math.isfinite(found[0]) and found[1] > 0 else None

    def _statistics(self) -> tuple[float, float] | None:
        for path in (self.folder / "index" / STATISTICS, statistics_of(self.folder, self.fingerprint)):
            try:
                content = json.loads(path.read_bytes())
                require_digest(content)
                if content["index"] == self.fingerprint:
                    return float(content["mean"]), float(content["std"])
            except FileNotFoundError:
                continue
            except (OSError, *UNSOUND) as error:
                raise ShardError(
                    f"{path} is damaged ({error}). Write it again: python -m gamut.shards stats {self.folder}"
                ) from error
        return None

    def normalisation(self, front: FrontEnd) -> tuple[float, float]:
        """Mean and standard deviation that the log-mel is normalised by: the recipe's, or the set's own `statistics`.

        Raises ShardError where neither has them.
        """
        if front.mean is not None and front.std is not None:
            return front.mean, front.std
        found = self.statistics()
        if found is None:
            part = next(part for part in self.sets if part.statistics() is None)
            lacking = part.folder
            if part._statistics() is not None:
                raise ShardError(
                    f"The clips in {lacking} are silent, or all frames alike: the standard deviation of their log-mel "
                    "is 0, so it cannot be normalised. Look at the sources; if they are right, set front.mean and "
                    "front.std."
                )
            raise ShardError(
                f"The recipe sets no front.mean and front.std, and {lacking} has no statistics yet: run "
                f"`python -m gamut.shards stats {lacking}` once, or set both keys."
            )
        return found

    def _check_share(self, whole: Whole, tars: bool, share: tuple[int, int]) -> None:
        """This share of the columns: as they were written, and sensible. Raises ShardError."""
        try:
            _require_intact(self.folder, self.pages, share)
            require_sense(whole, self.arrays, tars, share)
        except (*UNSOUND, OSError) as error:
            raise damaged(self.folder, error) from error

    def _tar_checks(self) -> Checks:
        """This process' share of them, several at a time: on a shared file system each look waits for the network."""
        number, of = own_share(len(self.shard_table) <= MANY_TARS)
        tars = range(number, len(self.shard_table), of)
        some = (tars[at : at + AT_ONCE] for at in range(0, len(tars), AT_ONCE))
        return Checks([partial(self._check_some, one) for one in some], LOOKERS)

    def _check_some(self, tars: Sequence[int]) -> None:
        for shard in tars:
            path, expected = self.shard_path(shard), int(self.shard_table.size[shard])
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ShardError(
                    f"{path} is in the index but cannot be found ({error.strerror}). Restore it, or run the "
                    f"conversion to {self.folder} again, or index the remaining tars: "
                    f"python -m gamut.shards index {self.folder}"
                ) from error
            if size != expected:
                raise ShardError(
                    f"{path} has {size} bytes, but {expected} in the index: the index is older than the tar, "
                    f"or the tar is damaged. To find out: python -m gamut.shards verify {self.folder}. "
                    f"If the tar is right: python -m gamut.shards index {self.folder}"
                )


def no_column(index: Index, column: str) -> str:
    """What is said of a column that a set does not have; of folds, also how a set gets them."""
    there = f"its columns are {', '.join(index.columns)}" if index.columns else "it has none"
    if column != FOLD:
        return f"The shards in {index.folder} have no column {column}; {there}."
    by = f"index {index.tars.place} --out FOLDER" if index.codecs else "convert DATASET SRC FOLDER"
    return (
        f"The shards in {index.folder} have no column {column}; {there}. To give them folds, make the set again with "
        f"`python -m gamut.shards {by} --folds {FOLDS}`, in another FOLDER."
    )


def statistics_of(folder: Path, fingerprint: str) -> Path:
    """Where the statistics of a generation are kept once `add` has made another."""
    return folder / "index" / statistics_name(fingerprint)


def _again(folder: Path, remote: Remote, generation: str) -> Index:
    return Index.open(folder, tars=False, intact=False, remote=remote, generation=generation)


def _map(folder: Path, of: Generation, remote: Remote) -> tuple[dict[str, np.ndarray], list[Page]]:
    """(the columns of a generation, their pages). Raises ValueError, OSError, and ShardError as `page_columns`."""
    if of.origin is not None:
        return _map_ranges(folder, of, of.origin, remote)
    arrays: dict[str, np.ndarray] = {}
    start: dict[str, int] = {}
    for name in sorted(of.entries, key=RAGGED.__contains__):  # those that say where stretches begin come first
        told = of.entries[name]
        last = RAGGED.get(name, "")
        if last and (not len(arrays[last]) or told not in (None, int(arrays[last][-1]))):
            raise ValueError(f"{name}.npy has not the entries that {last}.npy says")
        entries = int(arrays[last][-1]) if told is None else told
        arrays[name], start[name] = map_column(path_of(folder, name), dtype_of(name), entries)
    return arrays, of.pages({name: (start[name], start[name] + arrays[name].nbytes) for name in of.entries})


def _map_ranges(folder: Path, of: Generation, origin: str, remote: Remote) -> tuple[dict[str, np.ndarray], list[Page]]:
    entries = {name: int(of.parts[-1]["entries"][name]) for name in of.entries}
    edges = {}
    for name, count in entries.items():
        array, start = map_column(path_of(folder, name), dtype_of(name), count)
        edges[name] = start, start + array.nbytes
    pages, dtypes = of.pages(edges), {name: dtype_of(name) for name in entries}
    ends = ends_of(of.shards, len(of.labels), len(of.codecs))
    return page_columns(folder, entries, dtypes, pages, ends, origin, remote), pages


def _require_intact(folder: Path, pages: Sequence[Page], share: tuple[int, int]) -> None:
    """Raise ValueError where a page of this share is not as it was written."""
    if broken := damaged_columns(folder, pages[share[0] :: share[1]]):
        raise ValueError(f"{broken[0]} is not what was written")


def _stored_sums(table: ShardTable, arrays: Mapping[str, np.ndarray]) -> ShardSums:
    return ShardSums(
        table.clips,
        arrays["shard-samples"],
        table.first[:-1],
        arrays["shard-label_offset"],
        arrays["shard-label"],
        arrays["shard-label_count"],
    )
