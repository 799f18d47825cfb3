"""The index of a shard set: what is where, column by column, memory-mapped, with no Python object a clip."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from gamut.audio.decode import decode_flac
from gamut.audio.members import decode_member
from gamut.errors import ShardError
from gamut.files import UNSOUND, require_digest
from gamut.plan import Clips
from gamut.recipe.schema import FrontEnd
from gamut.remote import Remote
from gamut.remote.store import refuse_pipe
from gamut.shards.build import COLUMN, FORMAT, fingerprint
from gamut.shards.tars import Tars

DTYPES = {
    "clip_id": np.uint64,
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "samples": np.int64,
    "checksum": np.uint64,
    "label_offset": np.int64,
    "label": np.int32,
    "key_offset": np.int64,
    "key": np.uint8,
}
FOREIGN = {"codec": np.uint8}  # of third-party shards
EVENTS = {
    "event_offset": np.int64,
    "event_onset": np.int64,
    "event_end": np.int64,
    "event": np.int32,
}  # of strong labels
RAGGED = {"label": "label_offset", "key": "key_offset"} | dict.fromkeys(list(EVENTS)[1:], "event_offset")
LARGEST = 1 << 50  # bytes of a tar, samples of a clip
_intact: set[tuple] = set()  # versions of files that this process, or the one that it was forked from, has checked


class Index:
    """One row a clip, in the order of the shards; n clips. Arrays are read-only and mapped from their files.

    >>> index = Index.open("shards/esc50")                      # doctest: +SKIP
    >>> index.key(0), index.labels[index.label[index.label_offset[0]]], index.samples[0] / 16000  # doctest: +SKIP
    ('3-144028-A-0', 'dog', 5.0)
    """

    folder: Path
    name: str  # of the set
    labels: tuple[str, ...]  # the class table
    shards: tuple[dict, ...]  # name, size, clips, checksum (hexadecimal) of each tar
    fingerprint: str  # of everything below and the tars' checksums
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
    columns: dict[str, np.ndarray]  # int64 [n] each
    names: dict[str, dict[str, list[int]]]  # column -> name -> the values that it stands for
    tars: Tars  # where they are: in `folder`, or elsewhere for third-party and remote ones
    codecs: tuple[str, ...]  # of third-party shards; none: ours, FLAC of 16 kHz, mono, 16 bits
    codec: np.ndarray | None  # uint8 [n], positions in `codecs`

    def __init__(self, folder: Path, content: dict, arrays: Mapping[str, np.ndarray], remote: Remote) -> None:
        self.folder = folder
        self.name = content["name"]
        self.labels = tuple(content["labels"])
        self.shards = tuple(content["shards"])
        self.fingerprint = content["fingerprint"]
        self.digests = dict(content["arrays"])  # file -> xxh3_64 (hexadecimal), for `verify`
        self.clip_id, self.shard, self.offset = arrays["clip_id"], arrays["shard"], arrays["offset"]
        self.size, self.samples, self.checksum = arrays["size"], arrays["samples"], arrays["checksum"]
        self.label_offset, self.label = arrays["label_offset"], arrays["label"]
        self.event_offset = arrays.get("event_offset")
        self.event_onset, self.event_end, self.event = (
            arrays.get(name, np.zeros(0, EVENTS[name])) for name in ("event_onset", "event_end", "event")
        )
        self._key_offset, self._key = arrays["key_offset"], arrays["key"]
        self.columns = {column: arrays[COLUMN + column] for column in content["columns"]}
        self.names = {column: dict(names) for column, names in content.get("names", {}).items()}
        self.tars = Tars(content.get("place", str(folder)), tuple(shard["name"] for shard in self.shards), remote)
        self.codecs, self.codec = tuple(content.get("codecs", ())), arrays.get("codec")

    @classmethod
    def open(cls, folder: str | Path, *, tars: bool = True, intact: bool = True, remote: Remote | None = None) -> Index:
        """Open the index of the shard set in `folder`, check (with `intact`) that its files are those that were written
        and (with `tars`) that its tars are there, at their size.

        Remote tars are checked only when they are read; `remote` says how.

        Raises ShardError where the index is missing, damaged, or older than its tars, with the command that repairs it.
        """
        folder = Path(folder)
        content = _content(folder)
        try:
            require_digest(content)
            if content["fingerprint"] != fingerprint(content):
                raise ValueError("index.json does not have its fingerprint")
            if intact and (damaged := damaged_arrays(folder, content["arrays"])):
                raise ValueError(f"{damaged[0]} is not what was written")
            dtypes = {**DTYPES, **(FOREIGN if content.get("codecs") else {})}
            dtypes |= EVENTS if "event_offset" in content["arrays"] else {}
            dtypes |= {COLUMN + column: np.int64 for column in content["columns"]}
            arrays = {name: _array(folder / "index" / f"{name}.npy", dtype) for name, dtype in dtypes.items()}
            index = cls(folder, content, arrays, remote or Remote())
            clips = int(content["clips"])
            for name, array in arrays.items():
                ragged = arrays.get(RAGGED.get(name, ""))
                expected = clips + (name in RAGGED.values()) if ragged is None else int(ragged[-1])
                if len(array) != expected:
                    raise ValueError(f"{name}.npy has {len(array)} entries where {expected} are expected")
            index._require_sense(tars)
        except (*UNSOUND, OSError) as error:
            raise ShardError(
                f"The index in {folder} is damaged ({error}). Rebuild it: python -m gamut.shards index {folder}"
            ) from error
        refuse_pipe(index.tars.place, index.tars.remote)
        if tars and not index.tars.is_remote:
            index._check_tars()
        return index

    def _require_sense(self, tars: bool) -> None:
        """Raise ValueError where a column points outside of what it points into: an index need not be of our making.
        tars: also where a clip is outside of its tar."""
        words = [self.name, *self.labels, *self.codecs, self.tars.place, *self.tars.names]
        if not all(isinstance(word, str) and "\0" not in word for word in words):
            raise ValueError("a name is not text")
        for name in self.tars.names:
            if Path(name).name != name or name in ("", "..", "."):
                raise ValueError(f"{name!r} is not the name of a file")
        sizes = np.array([shard["size"] for shard in self.shards], np.int64)
        _require_within("shard", self.shard, len(sizes))
        _require_within("label", self.label, len(self.labels))
        _require_within("event", self.event, len(self.labels))
        _require_within("samples", self.samples, LARGEST)
        _require_within("offset", self.offset, LARGEST)
        _require_within("size", self.size, LARGEST)
        if self.codec is not None:
            _require_within("codec", self.codec, len(self.codecs))
        if tars and len(self) and (self.offset + self.size > sizes[self.shard]).any():
            raise ValueError("a clip is outside of its tar")
        for name, offsets in (
            ("label_offset", self.label_offset), ("key_offset", self._key_offset), ("event_offset", self.event_offset)
        ):  # fmt: skip
            if offsets is not None and (offsets[0] != 0 or (np.diff(offsets) < 0).any()):
                raise ValueError(f"{name}.npy does not ascend from 0")
        bytes(self._key).decode()
        if (self._key[self._key_offset[:-1][np.diff(self._key_offset) > 0]] & 0xC0 == 0x80).any():
            raise ValueError("a key begins within a character")
        for column, values in self.names.items():
            if column not in self.columns or not all(
                isinstance(number, int) for numbers in values.values() for number in numbers
            ):
                raise ValueError(f"the names of the column {column} are not of its values")

    def __len__(self) -> int:
        return len(self.clip_id)

    def __reduce__(self) -> tuple:
        # A worker process maps the files again instead of being sent the arrays.
        return functools.partial(Index.open, remote=self.tars.remote), (self.folder,)

    def key(self, row: int) -> str:
        """The clip's key in its tar; unique within a shard only, and never a path."""
        return bytes(self._key[self._key_offset[row] : self._key_offset[row + 1]]).decode()

    def keys(self) -> list[str]:
        """All keys in order: a Python object a clip, for looking up what a person wrote."""
        raw, offset = bytes(self._key), self._key_offset.tolist()
        return [raw[first:last].decode() for first, last in itertools.pairwise(offset)]

    @property
    def sets(self) -> tuple[Index, ...]:
        """The sets that this index is of: itself, or those of a mixture (`Joined`)."""
        return (self,)

    def shard_path(self, shard: int) -> Path:
        """The tar of a shard number, where it is on this machine's disks (see `tars`)."""
        return Path(self.tars.place) / self.shards[shard]["name"]

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
        return Clips(row=rows, clip_id=self.clip_id, shard=self.shard, samples=self.samples, size=self.size)

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
                there = f"its columns are {', '.join(self.columns)}" if self.columns else "it has none"
                raise ShardError(f"The shards in {self.folder} have no column {column}; {there}.")
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
        try:
            content = json.loads((self.folder / "index" / "statistics.json").read_bytes())
            require_digest(content)
            if content["index"] != self.fingerprint:
                return None
            mean, std = float(content["mean"]), float(content["std"])
        except FileNotFoundError:
            return None
        except (OSError, *UNSOUND) as error:
            raise ShardError(
                f"{self.folder / 'index' / 'statistics.json'} is damaged ({error}). "
                f"Write it again: python -m gamut.shards stats {self.folder}"
            ) from error
        return mean, std

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

    def _check_tars(self) -> None:
        for number, shard in enumerate(self.shards):
            path = self.shard_path(number)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ShardError(
                    f"{path} is in the index but cannot be found ({error.strerror}). Restore it, or run the "
                    f"conversion to {self.folder} again, or index the remaining tars: "
                    f"python -m gamut.shards index {self.folder}"
                ) from error
            if size != shard["size"]:
                raise ShardError(
                    f"{path} has {size} bytes, but {shard['size']} in the index: the index is older than the tar, "
                    f"or the tar is damaged. To find out: python -m gamut.shards verify {self.folder}. "
                    f"If the tar is right: python -m gamut.shards index {self.folder}"
                )


def damaged_arrays(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Names of the files of an index that are not as they were written, each a `digests` of its own. A file is read
    once a process, as long as its size, its times and its place on the disk stay: 2 million clips have 0.16 GB."""
    damaged = []
    for name, digest in digests.items():
        path = folder / "index" / f"{name}.npy"
        with path.open("rb") as file:
            there = os.fstat(file.fileno())
            version = (there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns, digest)
            if version in _intact:
                continue
            if hashlib.file_digest(file, xxhash.xxh3_64).hexdigest() == digest:  # type: ignore[arg-type]
                _intact.add(version)
            else:
                damaged.append(path.name)
    return damaged


def _content(folder: Path) -> dict:
    """index.json, of the format that this code reads."""
    path = folder / "index" / "index.json"
    try:
        content = json.loads(path.read_bytes())
        found = content["format"]
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(_absent(folder)) from None
    except (OSError, *UNSOUND) as error:
        raise ShardError(f"{path} is damaged ({error}). Rebuild it: python -m gamut.shards index {folder}") from error
    if found != FORMAT:
        raise ShardError(
            f"{path} has format {found}, but this version of Gamut reads format {FORMAT}. "
            f"Rebuild it: python -m gamut.shards index {folder}"
        )
    return content


def _absent(folder: Path) -> str:
    if any(folder.glob("*.tar")):
        return (
            f"The shards in {folder} have no index. If their conversion did not finish, run it again; otherwise index "
            f"them: python -m gamut.shards index {folder}"
        )
    return f"There are no shards in {folder}. Make them: python -m gamut.shards convert DATASET SRC {folder}"


def _require_within(name: str, values: np.ndarray, end: int) -> None:
    if len(values) and not 0 <= values.min() <= values.max() < end:
        raise ValueError(f"{name}.npy has values outside of 0 to {end - 1}")


def _array(path: Path, dtype: type) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="r")  # which never unpickles
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"{path.name} holds {array.dtype} {list(array.shape)}")
    return np.asarray(array)  # over the same memory: indexing an np.memmap takes several times as long
