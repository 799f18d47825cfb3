"""What was found in each shard of a set by whoever read it, kept beside the index until all of them are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from gamut import files
from gamut.errors import ShardError
from gamut.progress import Progress
from gamut.shards.index import Index
from gamut.shards.pool import stream
from gamut.shards.read import ShardClips

Finding = TypeVar("Finding")
Job = tuple[ShardClips, dict]  # of a shard: its clips, and its entry in the table of shards


class Found(Mapping[str, Finding], Generic[Finding]):
    """By the shard's name; a file a shard, index/WORK/NUMBER.json. What was found in another index, or in a tar that
    has changed since, counts as not there."""

    def __init__(
        self, index: Index, work: str, dump: Callable[[Finding], Any], parse: Callable[[Any], Finding]
    ) -> None:
        """dump, parse: a finding as JSON knows it, and back."""
        self.index, self.folder = index, index.folder / "index" / work
        self._dump, self._parse = dump, parse
        self._numbers = {name: number for number, name in enumerate(index.tars.names)}

    def keep(self, name: str, finding: Finding) -> None:
        """Raises ShardError where the disk refuses."""
        about = {"index": self.index.fingerprint, "tar": self.index.tars.stamp(name), "found": self._dump(finding)}
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ShardError(files.refusal(error, self.folder)) from error
        files.write_bytes(self._path(name), json.dumps(files.with_digest(about)).encode(), ShardError)

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __getitem__(self, name: str) -> Finding:
        try:
            content = json.loads(self._path(name).read_bytes())
            files.require_digest(content)
            if [content["index"], content["tar"]] == [self.index.fingerprint, self.index.tars.stamp(name)]:
                return self._parse(content["found"])
        except (OSError, *files.UNSOUND):
            pass
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._numbers if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._numbers[name]:06d}.json"


def read_shards(
    index: Index,
    numbers: Sequence[int],
    read: Callable[[Job, Callable[[int], None]], Finding],
    workers: int,
    what: str,
    kept: Found[Finding] | None = None,
) -> Iterator[Finding]:
    """What `read` finds in each of these shards, in their order; with `kept`, only those are read that are not there,
    and all are afterwards. `what` is done, for progress."""
    names = index.tars.names
    unread = [number for number in numbers if kept is None or names[number] not in kept]
    left = set(unread)
    with Progress(what, int(sum(index.shard_table.clips[number] for number in unread))) as progress:
        jobs = ((ShardClips.of(index, number), index.shards[number]) for number in unread)
        done = stream(read, jobs, len(unread), workers, progress.add)
        for number in numbers:
            if kept is not None and number not in left:
                yield kept[names[number]]
                continue
            found = next(done)
            if kept is not None:
                kept.keep(names[number], found)
            yield found
