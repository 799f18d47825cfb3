"""The index of third-party shards, which stay where and as they are."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gamut.errors import ShardError
from gamut.files import TEMPORARY, refusal, require_digest, with_digest, write_bytes
from gamut.numbers import RATE
from gamut.progress import Progress
from gamut.shards.build import build, only_writer
from gamut.shards.doubles import find_doubles
from gamut.shards.folds import FOLD, Strata, folds_for, folds_of, hash_of_name
from gamut.shards.foreign import Found, Taking, scan_foreign
from gamut.shards.index import Index
from gamut.shards.labels import Classes, are_vectors, class_of, class_table, named, refuse_captions
from gamut.shards.part import Part, hexadecimal
from gamut.shards.pool import spread
from gamut.shards.statistics import describe
from gamut.shards.tar import members
from gamut.shards.tars import Tars
from gamut.shards.write import Outcome

FORMAT = 4  # of what is kept of a tar
SCANS = "scans"  # folder beside the index
OURS = {"set", "xxh3", "label_ids", "samples"}  # what a KEY.json of `convert` has, among others


@dataclass(frozen=True, kw_only=True)
class Report(Outcome):
    """What indexing found."""

    classes: int
    unlabelled: int  # clips without a label
    codecs: dict[str, int]  # codec -> clips
    damaged: dict[str, str]  # tar -> what is wrong with it
    folds: int = 0  # that the set was given


def adopt(
    tars: Tars,
    folder: Path,
    taking: Taking,
    *,
    classes: Classes | None = None,
    workers: int = 1,
    stop: bool = False,
    folds: int | None = None,
) -> Report:
    """Write the index of `tars` into `folder`, which may be the folder of the tars. Run again after a kill, it
    continues after the tars that were finished.

    Clips that cannot be used are left out and listed in index/quarantine.json, with the tars that are damaged; with
    `stop` the first of either is raised instead. `folds`: as `folds_for` takes them; clips with the same bytes are in
    one. Raises ShardError where a tar cannot be read or is compressed, where
    labels have no place among `classes`, are captions or can be read in two ways, where no clip at all can be used, or
    where `folder` holds other tars.
    """
    place = tars.seen_from(folder)
    with only_writer(folder):
        with Progress(f"indexing {taking.name}", len(tars.names), "shards") as progress:
            scans = Scans.begin(folder / "index", taking)
            found = spread(functools.partial(_scan, tars, scans, stop), tars.names, workers, progress.add)
        labels = [each for one in found for each in one.labels]
        clips = (f"{tars.full(one.part.shard)}/{key}" for one in found for key in one.part.key)
        if not taking.labels.chosen and classes is None:
            refuse_captions(labels)
        vectors = are_vectors(labels, clips, None if classes is None else len(classes[0]))
        texts = [[named(each, vectors, classes) for each in one.labels] for one in found]
        for one, some in zip(found, texts):
            one.events = [[(*times, class_of(name, classes)) for *times, name in events] for events in one.events]
            for clip, events in zip(some, one.events):
                clip += [name for name in dict.fromkeys(name for *_, name in events) if name not in clip]
        report = _report(found, texts, tars)
        report.save(folder, damaged=report.damaged)
        if not report.clips:
            first = [*report.damaged.values(), *(one.message for one in report.quarantined)]
            raise ShardError(
                f"No clip in the tars in {tars.place} can be used."
                + (f" The first problem: {first[0]}" if first else " They hold no FLAC, WAV, Ogg or MP3.")
            )
        seen = {label for some in texts for clip in some for label in clip}
        unnamed = [str(number) for number in range(vectors)] or None
        table, ids = class_table(seen, unnamed if classes is None else classes[0])
        for one, some in zip(found, texts):
            one.part.events = [[[first, end, ids[name]] for first, end, name in events] for events in one.events]
            one.part.labels = [[ids[label] for label in clip] for clip in some]
        report = replace(report, folds=folds_for((), table, folder, folds))
        if report.folds:
            _add_folds([one.part for one in found], table, report.folds)
        about = {"source": "foreign", "fast": taking.fast}
        build(folder, taking.name, table, [one.part for one in found], about, place)
        scans.end()
        heard = {one.part.shard: one.heard for one in found if one.heard is not None}
        if len(heard) == len(found):
            statistics = describe(folder, workers, tars.remote, heard)
            return replace(report, statistics=statistics, doubles=statistics.doubles)
        index = Index.open(folder, remote=tars.remote)
        return replace(report, doubles=find_doubles(index, index.checksum))  # of bytes; `stats` compares samples


def _add_folds(parts: list[Part], table: list[str], folds: int) -> None:
    strata = Strata()
    for part in parts:
        for labels in part.labels:
            strata.add(labels)
    groups = np.array([hash_of_name(hexadecimal(one)) for part in parts for one in part.clip_checksum], np.uint64)
    chosen = iter(folds_of(groups, strata.rarest(), [hash_of_name(name) for name in table], folds).tolist())
    for part in parts:
        part.columns = {FOLD: list(itertools.islice(chosen, len(part.key)))}


def ours(tars: Tars) -> bool:
    """Whether `convert` wrote these tars: what the first KEY.json that can be read looks like.

    The first tar with members decides, since each of our clips has a KEY.json. Remote tars are fetched whole for this.
    """
    for name in tars.names:
        try:
            with tars.open(name) as file:
                member = None
                for member in members(file, tars.full(name)):
                    if member.name.endswith(".json") and member.size < 1 << 20:
                        file.seek(member.offset)
                        content = json.loads(file.read(member.size))
                        return isinstance(content, dict) and content.keys() >= OURS
                if member is not None:
                    return False
        except (ShardError, ValueError, RecursionError):
            continue
    return False


def _scan(tars: Tars, scans: Scans, stop: bool, name: str, advance: Callable[[int], None]) -> Found:
    stamp = tars.stamp(name)
    found = scans.get(name, stamp)
    if found is None:
        with tars.open(name) as file:
            found = scan_foreign(file, name, scans.taking)
        scans.put(name, stamp, found)
    if stop and (found.damage or found.quarantined):
        raise ShardError(found.damage or f"{found.quarantined[0].file}: {found.quarantined[0].message}")
    advance(1)
    return found


def _report(found: list[Found], texts: list[list[list[str]]], tars: Tars) -> Report:
    ignored: Counter[str] = Counter()
    for one in found:
        ignored.update(one.ignored)
    return Report(
        clips=sum(len(one.part.key) for one in found),
        seconds=sum(sum(one.part.samples) for one in found) / RATE,
        shards=len(found),
        classes=len({label for some in texts for labels in some for label in labels}),
        unlabelled=sum(not labels for some in texts for labels in some),
        codecs=dict(Counter(codec for one in found for codec in one.part.codec).most_common()),
        quarantined=tuple(quarantined for one in found for quarantined in one.quarantined),
        saturated={f"{one.part.shard}/{key}": samples for one in found for key, samples in one.saturated.items()},
        ignored=dict(ignored.most_common()),
        read=dict(sum((Counter(one.read) for one in found), Counter[str]()).most_common()),
        damaged={tars.full(one.part.shard): one.damage for one in found if one.damage},
    )


@dataclass(frozen=True)
class Scans:
    """What tars were found to hold, kept until all of them are indexed, so that a kill loses no finished tar: a folder
    with one JSON a tar.

    An entry is valid only for the same bytes, read with the same options: `stamp` stands for the bytes (`Tars.stamp`).
    """

    folder: Path
    taking: Taking

    @classmethod
    def begin(cls, index: Path, taking: Taking) -> Scans:
        """In the folder `index`; what a killed writer left half written is removed. Raises ShardError."""
        folder = index / SCANS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"*{TEMPORARY}"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise ShardError(refusal(error, folder)) from error
        return cls(folder, taking)

    def get(self, name: str, stamp: str | None) -> Found | None:
        """What the tar `name` holds, if that is known."""
        if stamp is None:
            return None
        try:
            content = json.loads((self.folder / f"{name}.json").read_bytes())
            require_digest(content)
            return Found.parse(content["found"]) if content["of"] == self._of(stamp) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, name: str, stamp: str | None, found: Found) -> None:
        """Keep what the tar `name` holds. Raises ShardError where the folder cannot be written."""
        if stamp is not None:
            content = {"of": self._of(stamp), "found": found.dump()}
            write_bytes(self.folder / f"{name}.json", json.dumps(with_digest(content)).encode(), ShardError)

    def end(self) -> None:
        """The index is written: the scans are no longer needed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, stamp: str) -> dict:
        return json.loads(json.dumps({"stamp": stamp, "taking": asdict(self.taking), "format": FORMAT}))
