"""A cache while it is made: shard by shard, by any number of processes, whole after any kill.

    features/NAME/FINGERPRINT/
        about.json               what it is of (written first)
        000000.safetensors ...   each appears whole, by rename, and is not written again while it is whole
        index/*.npy              of each clip, once all is there: id, row, key, shard, slot, checksum
        cache.json               written last: without it the cache is not finished and is not read

Who makes a shard holds its lock (flock), which the kernel gives back however a process ends, so several processes share
the work without knowing of each other, and what a killed one had begun is begun anew by another.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from gamut.data.batch import Hole
from gamut.errors import FeatureError
from gamut.features.about import About
from gamut.features.cache import FeatureCache, column_digest
from gamut.features.folder import ABOUT, CACHE, INDEX, LOCKS
from gamut.features.precision import STORED, Error, load, store
from gamut.features.shard import Header, read_header, shard_name, write_shard
from gamut.files import TEMPORARY, lock, refusal, with_digest, write_bytes

SHOWN = 20  # names in a message


class Records:
    """A shard's records while they come, in the order of its clips."""

    def __init__(self, made: Store, number: int) -> None:
        self._made = made
        self.number = number
        self.error = Error.none(made.about.layers)
        self._ids: list[np.ndarray] = []
        self._used = 0
        about = made.about
        self._room = np.empty((len(about.clips_of(number)), *about.stored), STORED[about.dtype])

    @property
    def clip_id(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.uint64), *self._ids])

    @property
    def stored(self) -> np.ndarray:
        return self._room[: self._used]

    def add(self, clip_id: np.ndarray, x: torch.Tensor) -> None:
        """Some clips more: uint64 [n] and float32 [n, layers, steps, dim], on any device.

        Raises FeatureError naming the clip where a feature is not finite, or more than the type holds.
        """
        about = self._made.about
        if x.shape != (len(clip_id), about.layers, about.steps, about.dim):
            raise FeatureError(f"Features of another shape than the cache's were encoded: {list(x.shape)}.")
        stored = store(x, about.dtype)
        back = load(stored, about.dtype)
        bad = torch.nonzero(~torch.isfinite(back).all(dim=(1, 2, 3)))
        if len(bad):
            number = int(bad[0])
            key = self._made.keys[int(np.flatnonzero(self._made.clip_id == clip_id[number])[0])]
            most = float(x[number].abs().max())
            raise FeatureError(
                f"The features of clip {key} reach {most:.3g}, more than {about.dtype} holds: "
                "extract with extract.dtype=fp32."
                if np.isfinite(most)
                else f"The features of clip {key} are not finite: extract with precision=fp32, and look at the clip."
            )
        self._room[self._used : self._used + len(x)] = stored.cpu().numpy()
        self._used += len(x)
        self._ids.append(np.asarray(clip_id, np.uint64))
        self.error += Error.between(x, back)


class Store:
    """The folder of a cache that is being made; see `Store.begin`."""

    def __init__(self, folder: Path, about: About, clip_id: np.ndarray, row: np.ndarray, keys: Sequence[str]) -> None:
        self.folder = folder
        self.about = about
        self.clip_id = clip_id
        self.row = row
        self.keys = keys

    @classmethod
    def begin(cls, folder: Path, about: About, clip_id: np.ndarray, row: np.ndarray, keys: Sequence[str]) -> Store:
        """Make `folder`, or take up what is there. clip_id uint64 [n], row int64 [n] ascending, keys: of its clips.

        Raises FeatureError where the folder is of something else or cannot be written.
        """
        clip_id, row = np.asarray(clip_id, np.uint64), np.asarray(row, np.int64)
        if len(row) > 1 and np.any(np.diff(row) <= 0):
            raise ValueError("the rows of a cache ascend")
        made = cls(folder, about, clip_id, row, keys)
        with _errors(folder):
            (folder / INDEX).mkdir(parents=True, exist_ok=True)
            (folder / LOCKS).mkdir(exist_ok=True)
            with lock(folder / LOCKS / "folder"):
                made._clean()
                if (folder / ABOUT).exists():
                    made._compare()
                else:
                    write_bytes(folder / ABOUT, json.dumps(about.content(), indent=1).encode(), FeatureError)
        return made

    def _clean(self) -> None:
        """Remove what killed processes were writing: under the folder's lock, which is held, and shards whose lock is
        free."""
        for left in (*self.folder.glob(f"*{TEMPORARY}"), *self.folder.glob(f"{INDEX}/*{TEMPORARY}")):
            number = left.name.partition(".")[0]
            with (
                lock(self._lock(int(number)), wait=False) if number.isdigit() else contextlib.nullcontext(True) as free
            ):
                if free:
                    left.unlink(missing_ok=True)

    def _known(self) -> dict[str, np.ndarray]:
        """The columns that do not depend on what comes out."""
        raw = [key.encode() for key in self.keys]
        return {
            "clip_id": self.clip_id,
            "row": self.row,
            "key": np.frombuffer(b"".join(raw), np.uint8),
            "key_offset": np.cumsum([0, *(len(key) for key in raw)], dtype=np.int64),
        }

    def _compare(self) -> None:
        try:
            there = About.of(json.loads((self.folder / ABOUT).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FeatureError(
                f"{self.folder / ABOUT} is damaged ({error}). Remove {self.folder} and extract again."
            ) from error
        if there.fingerprint != self.about.fingerprint:
            raise FeatureError(
                f"{self.folder} is a cache of other features ({there.fingerprint}, not {self.about.fingerprint}). "
                "Name another folder."
            )

    @property
    def finished(self) -> bool:
        return (self.folder / CACHE).exists()

    def path(self, number: int) -> Path:
        return self.folder / shard_name(number)

    def header(self, number: int) -> Header | None:
        """Of a shard that is there and whole; else None."""
        try:
            header = read_header(self.path(number), self.about, number)
        except (FeatureError, FileNotFoundError):
            return None
        mine = self.clip_id[list(self.about.clips_of(number))]
        return header if np.isin(header.clip_id, mine, assume_unique=True).all() else None

    def missing(self) -> list[int]:
        """Shards that are not there, or not whole."""
        return [number for number in range(self.about.shards) if self.header(number) is None]

    @contextlib.contextmanager
    def claim(self, number: int, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process is now the one to make a shard, for as long as the block lasts.

        Not so if another holds it (`wait`: wait for that one to end), or the shard is there.
        """
        with _errors(self.folder), lock(self._lock(number), wait=wait) as held:
            yield held and self.header(number) is None

    def _lock(self, number: int) -> Path:
        return self.folder / LOCKS / f"{number:06d}"

    def records(self, number: int) -> Records:
        """An empty shard, to be filled and then `put`."""
        return Records(self, number)

    def put(self, records: Records, holes: Sequence[Hole]) -> None:
        """Publish a shard that is claimed, once it has all its clips but the holes.

        Raises FeatureError where they are not the shard's, or the disk is full.
        """
        mine, there = self.clip_id[list(self.about.clips_of(records.number))], records.clip_id
        if len(there) + len(holes) != len(mine) or not np.array_equal(mine[np.isin(mine, there)], there):
            raise FeatureError(f"Shard {records.number} of {self.folder} is to hold other clips than were encoded.")
        path = self.path(records.number)
        with _errors(self.folder):
            write_shard(path, self.about, records.number, records.stored, there, holes, records.error)

    def seal(self, most: float = 1.0) -> FeatureCache:
        """Finish the cache, once all its shards are there; nothing to do where that was done.

        Raises FeatureError where shards are missing, or more than the share `most` of the clips are holes.
        """
        with _errors(self.folder), lock(self.folder / LOCKS / "folder"):
            if not self.finished:
                self._finish(most)
        return FeatureCache(self.folder)

    def _finish(self, most: float) -> None:
        about = self.about
        shard, slot = np.full(about.clips, -1, np.int32), np.full(about.clips, -1, np.int32)
        holes: list[Hole] = []
        sums, error = np.zeros(about.clips, np.uint64), Error.none(about.layers)
        for number in range(about.shards):
            header = self.header(number)
            if header is None:
                raise FeatureError(
                    f"{self.folder} lacks {shard_name(number)}; run the extraction again, which makes what is missing."
                )
            mine = about.clips_of(number)
            there = mine.start + np.flatnonzero(np.isin(self.clip_id[list(mine)], header.clip_id))
            shard[there], slot[there], sums[there] = number, np.arange(len(there)), header.checksum
            holes += header.holes
            error += header.error
        refuse_holes(holes, most, about.clips)
        arrays = self._known() | {"shard": shard, "slot": slot, "checksum": sums}
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array, allow_pickle=False)
            write_bytes(self.folder / INDEX / f"{name}.npy", file.getvalue(), FeatureError)
        content = {
            "about": about.content(),
            "fingerprint": about.fingerprint,
            "arrays": {name: column_digest(array) for name, array in arrays.items()},
            "holes": [vars(hole) for hole in holes],
            "error": error.relative(),
        }
        write_bytes(self.folder / CACHE, json.dumps(with_digest(content), indent=1).encode(), FeatureError)

    def unseal(self, shards: Sequence[int]) -> None:
        """Take the cache back into the making, and these shards away, so that they are made anew."""
        with _errors(self.folder), lock(self.folder / LOCKS / "folder"):
            (self.folder / CACHE).unlink(missing_ok=True)
            for number in shards:
                with lock(self._lock(number)):
                    self.path(number).unlink(missing_ok=True)


def refuse_holes(holes: Sequence[Hole], most: float, clips: int) -> None:
    """Raises FeatureError, with the list, where holes are more than the share `most` of so many clips."""
    if len(holes) > most * clips:
        shown = ", ".join(f"{hole.key} ({hole.reason})" for hole in holes[:SHOWN])
        more = f" and {len(holes) - SHOWN} more" if len(holes) > SHOWN else ""
        raise FeatureError(
            f"{len(holes)} of {clips} clips cannot be used, more than the recipe allows (loader.max_holes={most:g}): "
            f"{shown}{more}. Run `python -m gamut.shards verify` on the shard set, which says how to mend it, and "
            "extract with --mend; or raise loader.max_holes."
        )


@contextlib.contextmanager
def _errors(folder: Path) -> Iterator[None]:
    """What the disk refuses, as a sentence."""
    try:
        yield
    except OSError as error:
        raise FeatureError(refusal(error, folder)) from error
