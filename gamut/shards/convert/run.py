"""A whole conversion: which shards are still to be written, the processes that write them, the index at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile
import soxr
import xxhash

from gamut.audio.decode import RATE
from gamut.errors import AudioError, ShardError
from gamut.shards.build import build
from gamut.shards.convert.source import Listing, clips_a_shard, duplicates, in_shard_order
from gamut.shards.durable import TEMPORARY, write_bytes
from gamut.shards.lock import only_writer
from gamut.shards.pool import spread
from gamut.shards.progress import Progress
from gamut.shards.write import Job, Quarantined, Written, finished, write_shard

FORMAT = 1
COMPARED = ("format", "source", "name", "clips_per_shard", "clips", "labels", "columns", "list")


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    shards: int
    already: int  # shards that an earlier run had finished
    clips: int
    seconds: float  # of audio
    bytes: int  # of all tars
    quarantined: tuple[Quarantined, ...]
    saturated: dict[str, int]  # key -> samples
    ignored: dict[str, int]

    @property
    def reasons(self) -> dict[str, int]:
        """Quarantined files by reason, most frequent first."""
        return dict(Counter(one.reason for one in self.quarantined).most_common())


def convert(
    source: str,
    listing: Listing,
    folder: Path,
    *,
    workers: int = 1,
    clips_per_shard: int | None = None,
    on_error: str = "skip",
) -> Report:
    """Write the shard set of `listing` into `folder`, going on where an earlier run of the same conversion stopped.

    Which clip goes into which shard follows from the listing and `clips_per_shard` alone, so the bytes do not depend
    on the workers, on kills, or on the order in which files were found. `on_error`: `skip` leaves unusable files out
    and lists them in index/quarantine.json; `stop` raises AudioError at the first.

    Raises ShardError where the folder holds other shards, a file or the disk fails, or no file at all is usable.
    """
    if not listing.records:
        raise ShardError(f"The source of {listing.name} lists no clips.")
    if twice := duplicates(listing.records):
        key, paths = next(iter(twice.items()))
        raise ShardError(f"{paths[0]} and {paths[1]} would both be the clip {key}. Rename one of them.")
    records = in_shard_order(listing.records)
    each = clips_per_shard or clips_a_shard(len(records))
    starts = range(0, len(records), each)
    jobs = [
        Job(folder, n, tuple(records[at : at + each]), listing.name, listing.labels, on_error == "stop")
        for n, at in enumerate(starts)
    ]
    with only_writer(folder):
        settings = _settings(source, listing, each)
        _claim(folder, settings)
        done = {job.number: written for job in jobs if (written := finished(job))}
        if on_error == "stop":
            _refuse_quarantined(done.values())
        todo = [job for job in jobs if job.number not in done]
        with Progress(f"converting {listing.name}", sum(len(job.records) for job in todo)) as progress:
            new = spread(write_shard, todo, workers, progress.add)
        already = len(done)
        done.update((job.number, one) for job, one in zip(todo, new))
        return _finish(folder, listing, [done[job.number] for job in jobs], already, settings)


def _finish(folder: Path, listing: Listing, shards: list[Written], already: int, settings: dict) -> Report:
    quarantined = tuple(one for written in shards for one in written.quarantined)
    report = Report(
        shards=len(shards),
        already=already,
        clips=sum(len(written.part.key) for written in shards),
        seconds=sum(sum(written.part.samples) for written in shards) / RATE,
        bytes=sum(written.part.size for written in shards),
        quarantined=quarantined,
        saturated={key: samples for written in shards for key, samples in written.saturated.items()},
        ignored=dict(listing.ignored),
    )
    content = {
        "counts": report.reasons,
        "files": [asdict(one) for one in quarantined],
        "saturated": report.saturated,
        "ignored": report.ignored,
    }
    write_bytes(folder / "index" / "quarantine.json", json.dumps(content, indent=1).encode())
    if not report.clips:
        raise ShardError(
            f"None of the {len(quarantined)} files could be used. The first: {quarantined[0].message} "
            f"All are listed in {folder / 'index' / 'quarantine.json'}."
        )
    about = {"source": settings["source"], "tools": settings["tools"]}
    build(folder, listing.name, listing.labels, [written.part for written in shards], about)
    return report


def _settings(source: str, listing: Listing, each: int) -> dict:
    """What makes a conversion this one. The tools are told, not compared."""
    digest = xxhash.xxh3_128()
    for record in in_shard_order(listing.records):
        line = [record.key, record.labels, record.text, dict(record.columns), dict(record.provenance)]
        digest.update(json.dumps(line, sort_keys=True).encode())
    return {
        "format": FORMAT,
        "source": source,
        "name": listing.name,
        "clips_per_shard": each,
        "clips": len(listing.records),
        "labels": list(listing.labels),
        "columns": list(listing.columns),
        "list": digest.hexdigest(),
        "tools": {"libsndfile": soundfile.__libsndfile_version__, "soxr": soxr.__version__},
    }


def _claim(folder: Path, settings: dict) -> None:
    """Make `folder` this conversion's, or refuse if it is another's. Clears away what a kill left behind."""
    path = folder / "index" / "convert.json"
    try:
        there = json.loads(path.read_bytes())
        for field in COMPARED:
            if there[field] != settings[field]:
                raise ShardError(
                    f"{folder} holds the shards of another conversion: its {field} is {_short(there[field])}, this "
                    f"one's {_short(settings[field])}. Give another folder, or delete that one."
                )
    except FileNotFoundError:
        if stranger := next(folder.glob("*.tar"), None):
            raise ShardError(
                f"{folder} holds tars that are not of this conversion, such as {stranger.name}. Give another folder."
            ) from None
        write_bytes(path, json.dumps(settings, indent=1).encode())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged ({error}). Delete {folder} and convert again.") from error
    for place in (folder, folder / "index", folder / "index" / "parts"):
        for left in place.glob(f"*{TEMPORARY}"):
            left.unlink(missing_ok=True)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_quarantined(shards: Iterable[Written]) -> None:
    for written in shards:
        for one in written.quarantined:
            raise AudioError(one.message, one.reason)
