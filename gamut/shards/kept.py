"""What was found in each tar of a set by whoever read it, kept beside the index until all of them are read."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from gamut import files
from gamut.errors import ShardError
from gamut.progress import Progress
from gamut.shards.index import Index
from gamut.shards.pool import stream
from gamut.shards.read import ShardClips
from gamut.shards.tars import Tars

SCANS = "scans"  # folder beside the index: what tars hold, until they are indexed

Finding = TypeVar("Finding")
Job = tuple[ShardClips, dict]  # of a shard: its clips, and its entry in the table of shards


class Kept(Mapping[str, Finding], Generic[Finding]):
    """By the tar's name; a file a tar, FOLDER/NAME.json. What was found otherwise, or in a tar that has changed since,
    counts as not there."""

    def __init__(
        self, tars: Tars, folder: Path, about: Any, dump: Callable[[Finding], Any], parse: Callable[[Any], Finding]
    ) -> None:
        """about: how it was looked for, as JSON knows it. dump, parse: a finding as JSON knows it, and back."""
        self.tars, self.folder, self.about = tars, folder, json.loads(json.dumps(about))
        self._dump, self._parse = dump, parse
        self._names = frozenset(tars.names)

    @classmethod
    def of_index(
        cls, index: Index, work: str, dump: Callable[[Finding], Any], parse: Callable[[Any], Finding]
    ) -> Kept[Finding]:
        """In index/WORK, of the tars of this index."""
        return cls(index.tars, index.folder / "index" / work, {"index": index.fingerprint}, dump, parse)

    def only(self, name: str) -> Kept[Finding]:
        """Of one tar: what a job is given, however many tars there are."""
        return Kept(replace(self.tars, names=(name,)), self.folder, self.about, self._dump, self._parse)

    def begin(self) -> None:
        """Remove what a killed writer left half written; for the only one that writes. Raises ShardError."""
        with self._writing():
            for left in self.folder.glob(f"*{files.TEMPORARY}"):
                left.unlink(missing_ok=True)

    def look(self, name: str) -> tuple[str | None, Finding | None]:
        """(the tar's stamp, what was found in it), None where either is not known. `keep` takes the stamp of before the
        reading: a tar that changes meanwhile then counts as changed."""
        stamp = self.tars.stamp(name)
        try:
            finding, of = self._read(name)
        except KeyError:
            return stamp, None
        return stamp, finding if stamp is not None and stamp == of else None

    def keep(self, name: str, finding: Finding, stamp: str | None) -> None:
        """Raises ShardError where the disk refuses."""
        content = {"about": self.about, "tar": stamp, "found": self._dump(finding)}
        with self._writing():
            files.write_bytes(self._path(name), json.dumps(files.with_digest(content)).encode(), ShardError)

    def again(self, name: str) -> Finding:
        """What this process has kept or found there before: the tar is not looked at. Raises ShardError where that is
        gone."""
        try:
            return self._read(name)[0]
        except KeyError:
            raise ShardError(
                f"{self._path(name)} was written a moment ago and cannot be read: run the same command again."
            ) from None

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __getitem__(self, name: str) -> Finding:
        finding = self.look(name)[1]
        if finding is None:
            raise KeyError(name)
        return finding

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.tars.names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _read(self, name: str) -> tuple[Finding, str | None]:
        if name in self._names:
            try:
                content = json.loads(self._path(name).read_bytes())
                files.require_digest(content)
                if content["about"] == self.about:
                    return self._parse(content["found"]), content["tar"]
            except (OSError, *files.UNSOUND):
                pass
        raise KeyError(name)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise ShardError(files.refusal(error, self.folder)) from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def read_shards(
    index: Index,
    numbers: Sequence[int],
    read: Callable[[Job, Callable[[int], None]], Finding],
    workers: int,
    what: str,
    kept: Kept[Finding] | None = None,
) -> Iterator[Finding]:
    """What `read` finds in each of these shards, in their order; with `kept`, only those are read that are not there,
    and all are afterwards. `what` is done, for progress."""
    names = index.tars.names
    left: dict[int, str | None] = {}  # the stamps of those whose findings are to be kept
    if kept is not None:
        for number in numbers:
            stamp, found = kept.look(names[number])
            if found is None:
                left[number] = stamp
    unread = numbers if kept is None else list(left)
    with Progress(what, int(sum(index.shard_table.clips[number] for number in unread))) as progress:
        jobs = ((ShardClips.of(index, number), index.shards[number]) for number in unread)
        done = stream(read, jobs, len(unread), workers, progress.add)
        for number in numbers:
            if kept is not None and number not in left:
                yield kept[names[number]]
                continue
            found = next(done)
            if kept is not None:
                kept.keep(names[number], found, left[number])
            yield found
