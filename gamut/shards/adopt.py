"""The index of third-party shards, which stay where and as they are."""

from __future__ import annotations

import functools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gamut.errors import ShardError
from gamut.numbers import RATE
from gamut.progress import Progress
from gamut.shards.build import build, only_writer
from gamut.shards.doubles import find_doubles
from gamut.shards.folds import FOLD, Strata, folds_for, folds_of, hash_of_name
from gamut.shards.foreign import Found, Taking, scan_foreign
from gamut.shards.heard import Heard
from gamut.shards.index import Index
from gamut.shards.kept import SCANS, Kept
from gamut.shards.labels import Classes, Forms, class_of, class_table, named
from gamut.shards.part import Part, hexadecimal
from gamut.shards.pool import share_of, stream
from gamut.shards.statistics import describe
from gamut.shards.tar import members
from gamut.shards.tars import Tars
from gamut.shards.write import Outcome, Quarantined

FORMAT = 5  # of what is kept of a tar
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
    continues after the tars that were finished; those that `scan_share` has read are not read again.

    Clips that cannot be used are left out and listed in index/quarantine.json, with the tars that are damaged; with
    `stop` the first of either is raised instead. `folds`: as `folds_for` takes them; clips with the same bytes are in
    one. Memory grows with the tars and with what is listed, and with the clips by some 100 bytes each where they get
    folds. Raises ShardError where a tar cannot be read or is compressed, where labels have no place among `classes`,
    are captions or can be read in two ways, where no clip at all can be used, or where `folder` holds other tars.
    """
    place = tars.seen_from(folder)
    with only_writer(folder):
        kept = _kept(tars, folder, taking)
        kept.begin()
        forms, survey = Forms(), _Survey()
        for found in _scans(kept, tars.names, taking, workers, stop):
            survey.add(found, tars.full(found.part.shard))
            for key, labels in zip(found.part.key, found.labels):
                forms.add(f"{tars.full(found.part.shard)}/{key}", labels)
        if not taking.labels.chosen and classes is None:
            forms.refuse_captions()
        vectors = forms.vectors(None if classes is None else len(classes[0]))
        read = functools.partial(_read, kept, vectors, classes)
        seen: set[str] = set()
        unlabelled = 0
        for _, texts in read():
            seen.update(label for clip in texts for label in clip)
            unlabelled += sum(not clip for clip in texts)
        report = survey.report(len(seen), unlabelled)
        report.save(folder, damaged=report.damaged)
        if not report.clips:
            first = [*report.damaged.values(), *(one.message for one in report.quarantined)]
            raise ShardError(
                f"No clip in the tars in {tars.place} can be used."
                + (f" The first problem: {first[0]}" if first else " They hold no FLAC, WAV, Ogg or MP3.")
            )
        unnamed = [str(number) for number in range(vectors)] or None
        table, ids = class_table(seen, unnamed if classes is None else classes[0])
        report = replace(report, folds=folds_for((), table, folder, folds))
        own = _folds(read(), ids, table, report.folds) if report.folds else None
        about = {"source": "foreign", "fast": taking.fast}
        build(folder, taking.name, table, _parts(read(), ids, own), about, place)
        if survey.heard == len(tars.names):
            statistics = describe(folder, workers, tars.remote, _Heard(kept))
            report = replace(report, statistics=statistics, doubles=statistics.doubles)
        else:
            index = Index.open(folder, remote=tars.remote)  # `stats` compares samples, this bytes
            report = replace(report, doubles=find_doubles(index, index.checksum))
        kept.remove()
        return report


def scan_share(
    tars: Tars, folder: Path, taking: Taking, number: int, of: int, workers: int = 1, stop: bool = False
) -> None:
    """Read share `number` of `of` of the tars, for `adopt` to gather; any number of shares at once. Raises ShardError
    as that."""
    tars.seen_from(folder)
    names = [tars.names[one] for one in share_of(len(tars.names), number, of)]
    with only_writer(folder, with_others=True):
        for _ in _scans(_kept(tars, folder, taking), names, taking, workers, stop):
            pass


def _kept(tars: Tars, folder: Path, taking: Taking) -> Kept[Found]:
    """What tars were found to hold, until all are indexed, so that a kill loses no finished tar. It counts only for
    the same bytes, taken in the same way."""
    about = {"taking": asdict(taking), "format": FORMAT}
    return Kept(tars, folder / "index" / SCANS, about, Found.dump, Found.parse)


def _scans(kept: Kept[Found], names: Sequence[str], taking: Taking, workers: int, stop: bool) -> Iterator[Found]:
    """What these tars hold, one after the other; those are read of which it is not kept, and it is kept of all."""
    with Progress(f"indexing {taking.name}", len(names), "shards") as progress:
        work = functools.partial(_scan, taking, stop)
        yield from stream(work, map(kept.only, names), len(names), workers, progress.add)


def _scan(taking: Taking, stop: bool, kept: Kept[Found], advance: Callable[[int], None]) -> Found:
    (name,) = kept.tars.names
    stamp, found = kept.look(name)
    if found is None:
        with kept.tars.open(name) as file:
            found = scan_foreign(file, name, taking)
        kept.keep(name, found, stamp)
    if stop and (found.damage or found.quarantined):
        raise ShardError(found.damage or f"{found.quarantined[0].file}: {found.quarantined[0].message}")
    advance(1)
    return found


class _Survey:
    """What all tars together were found to hold."""

    def __init__(self) -> None:
        self.clips, self.samples, self.shards, self.heard = 0, 0, 0, 0  # heard: tars whose clips were all decoded
        self.codecs, self.ignored, self.ways = Counter[str](), Counter[str](), Counter[str]()
        self.quarantined: list[Quarantined] = []
        self.saturated: dict[str, int] = {}
        self.damaged: dict[str, str] = {}

    def add(self, found: Found, name: str) -> None:
        """The next tar, and its name with its place."""
        self.clips += len(found.part.key)
        self.samples += sum(found.part.samples)
        self.shards += 1
        self.heard += found.heard is not None
        self.codecs.update(found.part.codec)
        self.ignored.update(found.ignored)
        self.ways.update(found.read)
        self.quarantined += found.quarantined
        self.saturated |= {f"{found.part.shard}/{key}": samples for key, samples in found.saturated.items()}
        if found.damage:
            self.damaged[name] = found.damage

    def report(self, classes: int, unlabelled: int) -> Report:
        return Report(
            clips=self.clips,
            seconds=self.samples / RATE,
            shards=self.shards,
            classes=classes,
            unlabelled=unlabelled,
            codecs=dict(self.codecs.most_common()),
            quarantined=tuple(self.quarantined),
            saturated=self.saturated,
            ignored=dict(self.ignored.most_common()),
            read=dict(self.ways.most_common()),
            damaged=self.damaged,
        )


def _read(kept: Kept[Found], vectors: int, classes: Classes | None) -> Iterator[tuple[Found, list[list[str]]]]:
    """(what a tar holds, with events by the names of the class table; the labels of each of its clips) of all tars."""
    for name in kept.tars.names:
        found = kept.again(name)
        texts = [named(each, vectors, classes) for each in found.labels]
        found.events = [[(*times, class_of(label, classes)) for *times, label in events] for events in found.events]
        for clip, events in zip(texts, found.events):
            clip += [label for label in dict.fromkeys(label for *_, label in events) if label not in clip]
        yield found, texts


def _folds(
    read: Iterable[tuple[Found, list[list[str]]]], ids: Mapping[str, int], table: Sequence[str], folds: int
) -> np.ndarray:
    """int64 [clips], as `folds_of`."""
    strata, groups = Strata(), array("Q")
    for found, texts in read:
        for clip in texts:
            strata.add([ids[label] for label in clip])
        groups.extend(hash_of_name(hexadecimal(one)) for one in found.part.clip_checksum)
    return folds_of(np.array(groups, np.uint64), strata.rarest(), [hash_of_name(name) for name in table], folds)


def _parts(
    read: Iterable[tuple[Found, list[list[str]]]], ids: Mapping[str, int], folds: np.ndarray | None
) -> Iterator[Part]:
    first = 0
    for found, texts in read:
        part = found.part
        part.events = [[[onset, end, ids[name]] for onset, end, name in events] for events in found.events]
        part.labels = [[ids[label] for label in clip] for clip in texts]
        if folds is not None:
            part.columns = {FOLD: folds[first : first + len(part.key)].tolist()}
            first += len(part.key)
        yield part


class _Heard(Mapping[str, Heard]):
    """What the clips of each tar sound like, as it was kept when they were decoded: of all tars."""

    def __init__(self, kept: Kept[Found]) -> None:
        self._kept, self._names = kept, frozenset(kept.tars.names)

    def __getitem__(self, name: str) -> Heard:
        heard = self._kept.again(name).heard
        if heard is None:
            raise KeyError(name)
        return heard

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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
