"""Reading a finished cache: one positional read a clip, checked, into the array that is returned."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import xxhash

from gamut.data.batch import Hole
from gamut.errors import FeatureError
from gamut.features.about import About
from gamut.features.folder import ABOUT, CACHE, INDEX
from gamut.features.precision import STORED, load
from gamut.features.shard import Files, checksum, read_header, shard_name
from gamut.files import UNSOUND, require_digest
from gamut.progress import Progress

DTYPES = {
    "clip_id": np.uint64,
    "row": np.int64,
    "shard": np.int32,
    "slot": np.int32,
    "checksum": np.uint64,
    "key": np.uint8,
    "key_offset": np.int64,
}


@dataclass(frozen=True)
class Info:
    """What a cache holds: records [layers, steps, dim]."""

    folder: Path
    name: str
    layers: int
    steps: int
    dim: int
    dtype: str  # as stored: fp16 | fp32 | int8
    fingerprint: str  # of the cache: model, front end, pooling, blocks, dtype, index, clips
    index: str  # fingerprint of the shard set that was encoded
    clips: int  # holes included
    holes: int
    record_bytes: int
    blocks: tuple[int, ...]  # which blocks the layers are the outputs of, from 0
    model: dict
    front: dict
    pooling: dict
    error: tuple[float, ...]  # of storing, a layer: root mean square over that of the features


class FeatureCache:
    """A finished cache in `folder`, or the only one in a folder of caches (`features/NAME`).

    Reads are positional and each thread has descriptors of its own, so one object serves threads and forked workers
    alike; it can be pickled. Raises FeatureError where there is no finished cache, or it is damaged.

    >>> cache = FeatureCache("features/whisper_tiny_esc50")      # doctest: +SKIP
    >>> cache.read([0, 7, 3]).shape      # doctest: +SKIP
    (3, 4, 25, 384)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = _find(Path(folder))
        content = _content(self.folder)
        try:
            require_digest(content)
            self.about = About.of(content["about"])
            if content["fingerprint"] != self.about.fingerprint:
                raise ValueError("its fingerprint is that of another cache")
            self.digests: dict[str, str] = dict(content["arrays"])
            self.holes = tuple(Hole(hole["row"], hole["key"], hole["reason"]) for hole in content["holes"])
            arrays = {name: _array(self.folder, name, self.digests[name]) for name in DTYPES}
            error = tuple(float(value) for value in content["error"])
            for name, array in arrays.items():
                expected = {"key": int(arrays["key_offset"][-1]), "key_offset": self.about.clips + 1}
                if len(array) != expected.get(name, self.about.clips):
                    raise ValueError(f"{name}.npy has {len(array)} entries")
            if len(self) and not -1 <= arrays["shard"].min() <= arrays["shard"].max() < self.about.shards:
                raise ValueError("shard.npy names shards that there are not")
            if (arrays["shard"][arrays["slot"] >= 0] < 0).any():
                raise ValueError("a record is in no shard")
        except (OSError, *UNSOUND) as problem:
            raise FeatureError(f"The cache {self.folder} is damaged ({problem}). {remedy(self.folder)}") from problem
        self.clip_id, self.rows = arrays["clip_id"], arrays["row"]  # in index order
        self._shard, self._slot, self._checksum = arrays["shard"], arrays["slot"], arrays["checksum"]
        self._key, self._key_offset = arrays["key"], arrays["key_offset"]
        about = self.about
        same = {f.name: getattr(about, f.name) for f in fields(Info) if hasattr(about, f.name)}
        self.info = Info(folder=self.folder, holes=len(self.holes), error=error, **same)
        records = np.bincount(self._shard[self._slot >= 0], minlength=about.shards)
        self._files = Files(self.folder, records, about.record_bytes)

    def __len__(self) -> int:
        return self.about.clips

    def __reduce__(self) -> tuple:
        return FeatureCache, (self.folder,)

    def key(self, place: int) -> str:
        """The key of the clip at a place of the cache's order."""
        return bytes(self._key[self._key_offset[place] : self._key_offset[place + 1]]).decode(errors="replace")

    def has(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """bool [k]: whether the clips in these rows of the index have features here."""
        places, there = _search(self.rows, np.asarray(rows, np.int64))
        return there & (self._slot[places] >= 0) if len(self.rows) else there

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Features of the clips in these rows of the shard set's index: [k, layers, steps, dim], in the order given.

        float16, of fp32 caches float32. Raises FeatureError naming the clip where one is not in the cache, is a hole,
        or its record is missing or damaged, and where the disk cannot be read.
        """
        rows = np.asarray(rows, np.int64).reshape(-1)
        places, there = _search(self.rows, rows)
        if not there.all():
            raise FeatureError(
                f"The cache {self.folder} has no clip of row {rows[np.argmin(there)]}: it is of {len(self)} clips of "
                "the shard set. Extract features of the whole set, or use the subset that the cache was made of."
            )
        return self._read(places)

    def read_ids(self, clip_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """As `read`, by clip ids: uint64, or the same bits as int64."""
        ids = np.asarray(clip_ids).reshape(-1)
        ids = ids.view(np.uint64) if ids.dtype == np.int64 else ids.astype(np.uint64)
        order, ordered = self._by_id
        places, there = _search(ordered, ids)
        if not there.all():
            raise FeatureError(
                f"The cache {self.folder} has no clip {ids[np.argmin(there)]:#018x}: it is of another shard set, or of "
                "a part of it."
            )
        return self._read(order[places])

    def check_index(self, fingerprint: str) -> None:
        """Raises FeatureError unless the cache is of the shard set with this fingerprint."""
        if fingerprint != self.about.index:
            raise FeatureError(
                f"The cache {self.folder} is of a shard set as it was (index {self.about.index}), and it has changed "
                f"since (index {fingerprint}). Extract its features again."
            )

    @functools.cached_property
    def _by_id(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.clip_id)
        return order, self.clip_id[order]

    def _read(self, places: np.ndarray) -> np.ndarray:
        try:
            out = np.empty((len(places), *self.about.stored), STORED[self.about.dtype])
        except (MemoryError, ValueError) as error:
            raise FeatureError(
                f"{len(places)} records of the cache {self.folder} do not fit into memory: one has "
                f"{self.about.record_bytes:,} bytes."
            ) from error
        for record, place in zip(out, places.tolist()):
            self._fill(record, place)
        if self.about.dtype != "int8":
            return out
        return load(torch.from_numpy(out), self.about.dtype).numpy()

    def _fill(self, record: np.ndarray, place: int) -> None:
        shard, slot = int(self._shard[place]), int(self._slot[place])
        if slot < 0:
            reason = next((hole.reason for hole in self.holes if hole.row == self.rows[place]), "unknown")
            raise FeatureError(
                f"Clip {self.key(place)} has no features in {self.folder}: it was unusable when it was to be encoded "
                f"({reason}). Leave it out, or mend the shard set and extract with --mend."
            )
        view, wanted = record.data.cast("B"), int(self._checksum[place])
        clip_id = int(self.clip_id[place])
        for fresh in (False, True):  # once more with a new descriptor: the old one may be of a file replaced meanwhile
            if fresh:
                self._files.close(shard)
            try:
                read = self._files.read(view, shard, slot)
            except (OSError, FeatureError) as error:
                why = (error.strerror or error) if isinstance(error, OSError) else error
                raise FeatureError(
                    f"The features of clip {self.key(place)} cannot be read from {self.folder / shard_name(shard)} "
                    f"({why}). {remedy(self.folder)}"
                ) from error
            if read == len(view) and checksum(self.about, clip_id, view) == wanted:
                return
        found = "ends early" if read < len(view) else "does not have its checksum"
        raise FeatureError(
            f"The features of clip {self.key(place)} in {self.folder / shard_name(shard)} are damaged: the record "
            f"{found}. {remedy(self.folder)}"
        )


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    shard: int
    what: str  # names the file, and the clip where it is one


def verify(cache: FeatureCache) -> list[Damage]:
    """Whether every byte is still what was written: every shard's header and every record against its checksum, in
    order. Opening the cache has checked its index."""
    damages: list[Damage] = []
    about = cache.about
    with Progress("verifying", about.clips) as progress:
        for number in range(about.shards):
            clips = np.array(about.clips_of(number))
            damages += _check(cache, number, clips)
            progress.add(len(clips))
    return damages


def _check(cache: FeatureCache, number: int, places: np.ndarray) -> list[Damage]:
    path = cache.folder / shard_name(number)
    try:
        header = read_header(path, cache.about, number)
    except FeatureError as error:
        return [Damage(number, str(error))]
    except OSError as error:
        return [Damage(number, f"{path} cannot be read ({error.strerror or error}).")]
    if not np.array_equal(header.clip_id, cache.clip_id[places[cache.has(cache.rows[places])]]):
        return [Damage(number, f"{path} holds other clips than the index says.")]
    found = []
    for place in places[cache.has(cache.rows[places])]:
        try:
            cache.read(cache.rows[[place]])
        except FeatureError as error:
            found.append(Damage(number, str(error)))
    return found


def remedy(folder: Path) -> str:
    """What to do about damage."""
    again = "Repair it: run the extraction again with --mend."
    return f"See what else is: python -m gamut.features verify {folder}. {again}"


def _search(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of each wanted value in an ascending array, whether it is there); a place that is not there is 0."""
    places = np.searchsorted(ordered, wanted)
    places = np.where(places < len(ordered), places, 0)
    there = ordered[places] == wanted if len(ordered) else np.zeros(len(wanted), bool)
    return np.where(there, places, 0), there


def _find(folder: Path) -> Path:
    """The folder of a cache: the one given, or the only finished one inside."""
    if (folder / ABOUT).is_file() or not folder.is_dir():
        return folder
    inside = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CACHE}"))
    inside = inside or sorted(path.parent for path in folder.glob(f"*/{ABOUT}"))[:1]
    if len(inside) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in inside)
        raise FeatureError(
            f"{folder} holds {len(inside)} caches ({names}): name the one you mean, as `python -m gamut.features info "
            f"{folder}` lists them."
        )
    return inside[0] if inside else folder


def _content(folder: Path) -> dict:
    path = folder / CACHE
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if (folder / ABOUT).exists():
            done = len(list(folder.glob("*.safetensors")))
            raise FeatureError(
                f"The cache {folder} is not finished ({done} shards are there): run the same extraction again, which "
                "resumes where it stopped."
            ) from None
        raise FeatureError(
            f"There is no cache of features in {folder}. Make one: python -m gamut.features extract RECIPE"
        ) from None
    except (OSError, *UNSOUND) as error:
        raise FeatureError(f"{path} is damaged ({error}). {remedy(folder)}") from error


def _array(folder: Path, name: str, digest: str) -> np.ndarray:
    """A column, checked, in memory (about 45 bytes a clip in all): a row that is wrong, or becomes so on the disk,
    would give another clip's features."""
    array = np.load(folder / INDEX / f"{name}.npy", allow_pickle=False)
    if array.dtype != DTYPES[name] or array.ndim != 1 or column_digest(array) != digest:
        raise ValueError(f"{name}.npy is not as it was written")
    return array


def column_digest(array: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data)
