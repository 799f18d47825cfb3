"""A whole conversion: what to write, the processes that write it, and the index at the end.

`prepare` iterates over the listing, `write_share` writes shards, `finish` builds the index. One command does all three;
in a SLURM array many jobs do the second. Which clip goes into which shard follows from the listing and the number of
clips a shard alone, so the bytes do not depend on jobs, workers, kills, or the order in which files were found.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import soundfile
import soxr

from gamut.audio.ffmpeg import ffmpeg_version, require_ffmpeg
from gamut.audio.longest import CLIP, Longest
from gamut.errors import AudioError, ShardError
from gamut.files import TEMPORARY, write_bytes
from gamut.numbers import RATE
from gamut.progress import Progress
from gamut.shards.build import Builder, only_writer
from gamut.shards.convert.manifest import MISSING, Manifest, write_manifest
from gamut.shards.convert.source import Listing
from gamut.shards.generations import grown
from gamut.shards.heard import Heard
from gamut.shards.pool import share_of, spread
from gamut.shards.statistics import describe
from gamut.shards.write import REFUSE, Job, Outcome, Quarantined, Written, finished, write_shard

FORMAT = 1  # of index/convert.json
COMPARED = ("format", "source", "name", "clips_per_shard", "clips", "labels", "columns", "list", "levels")
MANIFEST = "roster"  # folder of the manifest, which jobs read; removed when the index is built


@dataclass(frozen=True, kw_only=True)
class Report(Outcome):
    """What a conversion did."""

    already: int  # shards that an earlier run had finished
    bytes: int  # of all tars
    missing: int  # clips that the data set lists and whose files are not there


@dataclass(frozen=True)
class Conversion:
    """A prepared conversion: any process that sees the folder can do a share of it."""

    folder: Path
    manifest: Manifest
    settings: dict  # as in index/convert.json
    ignored: dict[str, int]
    stop: bool  # at the first unusable file
    already: int = 0  # shards that were there when it was prepared
    longest: Longest = CLIP  # of a clip

    @classmethod
    def open(cls, folder: Path) -> Conversion:
        """The conversion that `prepare` left in `folder`. Raises ShardError where there is none."""
        path = folder / "index" / MANIFEST / "conversion.json"
        try:
            content = json.loads(path.read_bytes())
            manifest = content["roster"]
            manifest |= {"folder": path.parent, "shards": tuple((at, clips) for at, clips in manifest["shards"])}
            return cls(
                folder,
                Manifest(**manifest),
                content["settings"],
                content["ignored"],
                content["stop"],
                content["already"],
                Longest(*content.get("longest", CLIP)),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"No conversion is under way in {folder} ({error}). Start it: python -m gamut.shards convert --help"
            ) from error

    def save(self) -> None:
        """Write it for `open`."""
        content = asdict(self) | {"folder": str(self.folder)}
        content["roster"] = content.pop("manifest") | {"folder": str(self.manifest.folder)}
        write_bytes(self.manifest.folder / "conversion.json", json.dumps(content).encode(), ShardError)

    def job(self, number: int) -> Job:
        """The job that writes one shard."""
        labels = tuple(self.settings["labels"])
        stretch, name = self.manifest.stretch(number), self.settings["name"]
        levels = self.settings.get("levels", REFUSE)  # none: of an earlier version
        return Job(self.folder, number, stretch, name, labels, self.stop, self.longest, levels)

    def share(self, number: int, of: int) -> list[Job]:
        """The jobs of a share of the shards."""
        return [self.job(shard) for shard in share_of(len(self.manifest.shards), number, of)]


def convert(
    source: str,
    listing: Listing,
    folder: Path,
    *,
    workers: int = 1,
    clips_per_shard: int | None = None,
    on_error: str = "skip",
    longest: Longest = CLIP,
    levels: str = REFUSE,
) -> Report:
    """Write the shard set of `listing` into `folder`, resuming where an earlier run of the same conversion stopped.

    `on_error`: `skip` leaves unusable files out and lists them in index/quarantine.json; `stop` raises AudioError at
    the first. `longest`: of a clip, a longer one is unusable. `levels`: one of LEVELS. Raises ShardError where the
    folder holds other shards, a file or the disk fails, or no file is usable.
    """
    with only_writer(folder):
        conversion = _prepare(source, listing, folder, clips_per_shard, on_error == "stop", longest, levels)
        _write(conversion.share(0, 1), workers, conversion.settings["name"])
        return _finish(conversion, workers)


def prepare(
    source: str,
    listing: Listing,
    folder: Path,
    *,
    clips_per_shard: int | None = None,
    on_error: str = "skip",
    longest: Longest = CLIP,
    levels: str = REFUSE,
) -> Conversion:
    """Iterate over the listing and claim `folder`, for `write_share` and `finish` elsewhere. Raises ShardError."""
    with only_writer(folder):
        conversion = _prepare(source, listing, folder, clips_per_shard, on_error == "stop", longest, levels)
        conversion.save()
        return conversion


def write_share(folder: Path, number: int, of: int, workers: int = 1) -> None:
    """Write share `number` of `of` of the prepared conversion in `folder`, except the shards that are finished.

    Any number of shares may be written at once. Raises ShardError, and AudioError as `convert` does.
    """
    with only_writer(folder, with_others=True):
        conversion = Conversion.open(folder)
        name = f"{conversion.settings['name']}, share {number + 1} of {of}"
        _write(conversion.share(number, of), workers, name)


def finish(folder: Path, workers: int = 1) -> Report:
    """Build the index of a prepared conversion, and its statistics. Raises ShardError where some of its shards are
    missing."""
    with only_writer(folder):
        return _finish(Conversion.open(folder), workers)


@contextlib.contextmanager
def preview(listing: Listing, clips_per_shard: int | None = None) -> Iterator[Manifest]:
    """The manifest of a listing, written to the system's temporary folder only. Raises ShardError."""
    with tempfile.TemporaryDirectory(prefix="gamut-manifest-") as folder:
        yield write_manifest(listing, Path(folder), clips_per_shard)


def _prepare(
    source: str, listing: Listing, folder: Path, clips_per_shard: int | None, stop: bool, longest: Longest, levels: str
) -> Conversion:
    for place in (folder, folder / "index", folder / "index" / "parts"):
        for left in place.glob(f"*{TEMPORARY}"):
            left.unlink(missing_ok=True)
    if grown(folder):
        raise ShardError(
            f"Shards were added to {folder} since it was converted. Convert into another folder, and append that: "
            f"python -m gamut.shards add {folder} FOLDER"
        )
    place, fresh = folder / "index" / MANIFEST, folder / "index" / f"{MANIFEST}-new"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        manifest = write_manifest(listing, fresh, clips_per_shard)
        settings = _settings(source, listing, manifest, levels)
        _claim(folder, settings)  # if it is refused, queued jobs still find their own manifest
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
        manifest = replace(manifest, folder=place)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    conversion = Conversion(folder, manifest, settings, listing.passed_over(), stop, longest=longest)
    already = 0
    for job in conversion.share(0, 1):
        written = finished(job)
        already += written is not None
        if written and stop and written.quarantined:
            raise AudioError(written.quarantined[0].message, written.quarantined[0].reason)
    return replace(conversion, already=already)


def _write(jobs: list[Job], workers: int, name: str) -> None:
    names = {job.tar.name for job in jobs}
    for place in (jobs[0].folder, jobs[0].part.parent) if jobs else ():
        for left in os.scandir(place):  # by a killed writer of these same shards
            if left.name.endswith(TEMPORARY) and f"{left.name.partition('.')[0]}.tar" in names:
                Path(left.path).unlink(missing_ok=True)
    todo = [job for job in jobs if not finished(job)]
    with Progress(f"converting {name}", sum(job.stretch.clips for job in todo)) as progress:
        spread(write_shard, todo, workers, progress.add)


def _finish(conversion: Conversion, workers: int) -> Report:
    folder, settings = conversion.folder, conversion.settings
    with Builder(folder, settings["name"]) as builder:
        report, versions, kept = _gather(conversion, builder)
        report.save(folder, missing=report.missing)
        if not report.clips:
            raise ShardError(
                f"None of the {len(report.quarantined)} files can be used. The first: {report.quarantined[0].message} "
                f"All are listed in {folder / 'index' / 'quarantine.json'}."
            )
        if conversion.manifest.missing:
            content = (conversion.manifest.folder / MISSING).read_bytes()
            write_bytes(folder / "index" / MISSING, content, ShardError)
        tools = settings["tools"]
        if versions := versions - {"", tools.get("ffmpeg", "")}:  # for what no ending told of
            tools = settings["tools"] = {**tools, "ffmpeg": "; ".join(sorted(versions))}
            write_bytes(folder / "index" / "convert.json", json.dumps(settings, indent=1).encode(), ShardError)
        about = {"source": settings["source"], "tools": tools}
        builder.publish(settings["labels"], about, names=settings["names"])
    shutil.rmtree(conversion.manifest.folder, ignore_errors=True)
    statistics = describe(folder, workers, heard=_Kept(kept))
    return replace(report, statistics=statistics, doubles=statistics.doubles)


class _Kept(Mapping[str, Heard]):
    """What was heard in the shards of a conversion, read from the file of each when it is asked for."""

    def __init__(self, parts: Mapping[str, Path]) -> None:
        self.parts = parts

    def __getitem__(self, shard: str) -> Heard:
        written = Written.load(self.parts[shard])
        if written is None or written.heard is None:
            raise ShardError(f"{self.parts[shard]} is gone or damaged. Run the same command again.")
        return written.heard

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def _gather(conversion: Conversion, builder: Builder) -> tuple[Report, set[str], dict[str, Path]]:
    """The parts of all shards, one at a time: (what they come to, versions of ffmpeg, shard -> the file of its part
    where that tells what was heard, as those of earlier versions do not). Raises ShardError where one is missing."""
    jobs, missing = conversion.share(0, 1), []
    size = samples = 0
    quarantined: list[Quarantined] = []
    saturated: dict[str, int] = {}
    read, versions, kept = Counter[str](), set[str](), dict[str, Path]()
    for job in jobs:
        written = finished(job)
        if written is None:
            missing.append(job.tar.name)
        elif not missing:
            builder.add(written.part)
            size, samples = size + written.part.size, samples + sum(written.part.samples)
            quarantined += written.quarantined
            saturated |= written.saturated
            read.update(written.read)
            versions.add(written.ffmpeg)
            kept |= {} if written.heard is None else {job.tar.name: job.part}
    if missing:
        raise ShardError(
            f"{len(missing)} of the {len(jobs)} shards of {conversion.folder} are missing, the first of them "
            f"{missing[0]}. Run the same command again; finished shards are kept."
        )
    report = Report(
        shards=len(jobs),
        already=conversion.already,
        clips=builder.rows.clips,
        seconds=samples / RATE,
        bytes=size,
        quarantined=tuple(quarantined),
        saturated=saturated,
        ignored=conversion.ignored,
        missing=conversion.manifest.missing,
        read=dict(read.most_common()),
    )
    return report, versions, kept


def _settings(source: str, listing: Listing, manifest: Manifest, levels: str) -> dict:
    """What identifies a conversion. The tools are recorded, but not compared."""
    tools = {"libsndfile": soundfile.__libsndfile_version__, "soxr": soxr.__version__}
    if manifest.ffmpeg:
        tools["ffmpeg"] = ffmpeg_version(require_ffmpeg(manifest.ffmpeg))
    return {
        "format": FORMAT,
        "source": source,
        "name": listing.name,
        "clips_per_shard": manifest.clips_per_shard,
        "clips": manifest.clips,
        "shards": len(manifest.shards),
        "labels": list(listing.labels),
        "columns": list(listing.columns),
        "names": {
            column: {name: list(values) for name, values in names.items()} for column, names in listing.names.items()
        },
        "list": manifest.digest,
        **({} if levels == REFUSE else {"levels": levels}),
        "tools": tools,
    }


def _claim(folder: Path, settings: dict) -> None:
    """Make `folder` this conversion's, or raise ShardError if it is another's."""
    path = folder / "index" / "convert.json"
    try:
        there = json.loads(path.read_bytes())
        for field in COMPARED:
            usual = {"levels": REFUSE}.get(field)
            own, other = settings.get(field, usual), there.get(field, usual) if usual else there[field]
            if own != other:
                raise ShardError(
                    f"{folder} holds the shards of another conversion: its {field} is {_short(other)}, but this "
                    f"one's is {_short(own)}. Give another folder, or delete that one."
                )
    except FileNotFoundError:
        if stranger := next(folder.glob("*.tar"), None):
            raise ShardError(
                f"{folder} holds tars from elsewhere, such as {stranger.name}. Give another folder."
            ) from None
        write_bytes(path, json.dumps(settings, indent=1).encode(), ShardError)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged ({error}). Delete {folder} and convert again.") from error


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
