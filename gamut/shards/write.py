"""From a slice of the source's records to one finished shard and the part of the index beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from gamut.audio.blocks import BY_FFMPEG, SOUNDFILE, Blocks, Waveform, Way, waveform
from gamut.audio.decode import encode_flac
from gamut.audio.ffmpeg import ffmpeg_version, require_ffmpeg
from gamut.audio.levels import Beyond, divided, require_level
from gamut.audio.longest import CLIP, Longest
from gamut.audio.segment import load
from gamut.errors import AudioError, ShardError
from gamut.files import replacing, require_digest, with_digest, write_bytes
from gamut.numbers import RATE
from gamut.shards.convert.manifest import Stretch
from gamut.shards.convert.source import Record
from gamut.shards.doubles import Doubles
from gamut.shards.heard import Heard
from gamut.shards.part import Part, hexadecimal, scan, within
from gamut.shards.statistics import Statistics

REFUSE, SCALE = LEVELS = ("refuse", "scale")
OWNER = "gamut"  # user and group in the tars, which with a fixed time and mode makes the bytes a function of the clips


@dataclass(frozen=True)
class Job:
    """One shard to write. It follows from the source's list alone, so any process writes the same at any time."""

    folder: Path
    number: int
    stretch: Stretch  # of its records
    name: str  # of the set
    labels: tuple[str, ...]
    stop: bool  # raise at the first unusable file instead of quarantining it
    longest: Longest = CLIP  # of a clip
    levels: str = REFUSE  # what becomes of a clip beyond full scale, one of LEVELS

    @property
    def tar(self) -> Path:
        return self.folder / shard_name(self.number)

    @property
    def part(self) -> Path:
        return part_path(self.folder, self.number)


@dataclass(frozen=True)
class Quarantined:
    """A source file that could not be made into a clip."""

    key: str
    file: str
    reason: str  # AudioError.reason, or `missing`
    message: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of converting a data set or indexing third-party tars."""

    clips: int
    seconds: float  # of audio
    shards: int
    quarantined: tuple[Quarantined, ...]
    saturated: dict[str, int]  # clip -> samples held to the int16 range
    ignored: dict[str, int]  # what -> how many files, rows or members were passed over
    read: dict[str, int] = field(default_factory=dict)  # how -> clips, as `Way.notes`
    doubles: Doubles | None = None  # once the index is there
    statistics: Statistics | None = None  # likewise; None where clips were indexed without being decoded

    @property
    def reasons(self) -> dict[str, int]:
        """Quarantined files by reason, most frequent first."""
        return dict(Counter(one.reason for one in self.quarantined).most_common())

    def save(self, folder: Path, **more: object) -> None:
        """Write index/quarantine.json of the set in `folder`, with `more` that it should hold. Raises ShardError."""
        content = {
            "counts": self.reasons,
            "files": [asdict(one) for one in self.quarantined],
            "saturated": self.saturated,
            "ignored": self.ignored,
            "read": self.read,
            **more,
        }
        write_bytes(folder / "index" / "quarantine.json", json.dumps(content, indent=1).encode(), ShardError)


@dataclass(frozen=True)
class Written:
    """What is known about a finished shard apart from its bytes."""

    part: Part
    quarantined: tuple[Quarantined, ...]
    saturated: dict[str, int]  # key -> samples held to the int16 range, where there are any
    longest: float  # seconds that a clip could have
    read: dict[str, int]  # how -> clips, as `Way.notes`
    ffmpeg: str = ""  # version of the one that read some
    heard: Heard | None = None  # what the clips' sound tells; None: written by an earlier version

    def save(self, path: Path) -> None:
        content = {
            "part": self.part.dump(),
            "quarantined": [asdict(one) for one in self.quarantined],
            "saturated": self.saturated,
            "longest": self.longest,
            "read": self.read,
            "ffmpeg": self.ffmpeg,
            "heard": self.heard and self.heard.dump(),
        }
        write_bytes(path, json.dumps(with_digest(content)).encode(), ShardError)

    @classmethod
    def load(cls, path: Path) -> Written | None:
        """None where the file is missing or was not written by `save`; the shard is then written again."""
        try:
            content = json.loads(path.read_bytes())
            require_digest(content)
            quarantined = tuple(Quarantined(**one) for one in content["quarantined"])
            return cls(
                Part.parse(content["part"]),
                quarantined,
                content["saturated"],
                content.get("longest", CLIP.seconds),
                content.get("read", {}),
                content.get("ffmpeg", ""),
                Heard.parse(heard) if (heard := content.get("heard")) else None,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def shard_name(number: int) -> str:
    """File name of a shard's tar."""
    return f"shard-{number:06d}.tar"


def part_path(folder: Path, number: int) -> Path:
    """The file of a shard's part of the index."""
    return folder / "index" / "parts" / f"shard-{number:06d}.json"


def finished(job: Job) -> Written | None:
    """The shard's part if it is complete: the part is written after the tar, and records the tar's size.

    It is not where it left out clips as too long that may now be longer.
    """
    written = Written.load(job.part)
    if written is None or not job.tar.is_file() or job.tar.stat().st_size != written.part.size:
        return None
    if written.longest < job.longest.seconds and any(one.reason == "too_long" for one in written.quarantined):
        return None
    return written


def write_shard(job: Job, advance: Callable[[int], None]) -> None:
    """Write one shard and its part, each whole or not at all, and call `advance(1)` after each record.

    The part is read back from the finished tar, so it describes what is on the disk. Raises ShardError where a file
    or the disk fails, AudioError at the first unusable file if the job says so.
    """
    from webdataset import TarWriter  # takes a second to import, which only writers need

    quarantined: list[Quarantined] = []
    saturated: dict[str, int] = {}
    read, heard = Counter[str](), Heard()
    with replacing(job.tar, ShardError) as file:
        with TarWriter(file, user=OWNER, group=OWNER, mode=0o444, mtime=0, encoder=False, compress=False) as tar:
            for record in job.stretch.records():
                try:
                    way = Way()
                    flac, about, samples = convert_clip(record, job, way)
                except AudioError as error:
                    if job.stop:
                        raise
                    quarantined.append(Quarantined(record.key, str(record.path), error.reason, str(error)))
                else:
                    tar.write({"__key__": record.key, "flac": flac, "json": json.dumps(about, sort_keys=True).encode()})
                    read.update(way.notes)
                    heard.add(samples)
                    heard.add_described(about)
                    if about["saturated"]:
                        saturated[record.key] = about["saturated"]
                advance(1)
        file.flush()
        part = scan(file, job.tar)
    ffmpeg = ffmpeg_version(require_ffmpeg("A clip")) if BY_FFMPEG in read else ""
    Written(part, tuple(quarantined), saturated, job.longest.seconds, dict(read), ffmpeg, heard).save(job.part)


def convert_clip(record: Record, job: Job, way: Way) -> tuple[bytes, dict, np.ndarray]:
    """A record's KEY.flac, the content of its KEY.json, and the samples, int16 [n]; `way` is filled in. Raises
    AudioError where the file is unusable."""
    try:
        made, divisor = _waveform(record, job, way)
    except AudioError as error:
        raise AudioError(f"{_called(record)}: {error}", error.reason) from error
    except FileNotFoundError as error:
        raise AudioError(f"{record.path} is missing.", "missing") from error
    except OSError as error:  # a fault of the storage, not of the clip: no reason to quarantine it
        raise ShardError(
            f"{record.path} cannot be read: {error.strerror or error}. Once that is fixed, run the same command again; "
            "finished shards are kept."
        ) from error
    timed = _events(record, job, len(made.samples))
    flac = encode_flac(made.samples)
    about = {
        "set": job.name,
        "labels": [job.labels[label] for label in record.labels],
        "label_ids": list(record.labels),
        **({"events": timed} if timed else {}),
        "text": record.text,
        "columns": dict(record.columns),
        "samples": len(made.samples),
        "duration": len(made.samples) / RATE,  # seconds
        "saturated": made.saturated,  # samples
        "xxh3": hexadecimal(xxhash.xxh3_64_intdigest(flac)),
        "provenance": {
            **record.provenance,
            **_stretch(record),
            "rate": made.rate,
            "channels": made.channels,
            "seconds": made.frames / made.rate,
            **({} if way.reader == SOUNDFILE else {"reader": way.reader}),
            **({"unpatched": True} if way.unpatched else {}),
            **({} if divisor == 1 else {"divided": divisor}),
        },
    }
    return flac, about, made.samples


def _waveform(record: Record, job: Job, way: Way) -> tuple[Waveform, float]:
    """A clip, and what its samples were divided by. Raises AudioError, OSError, ShardError."""

    def sound() -> Blocks:
        return load(Path(record.path), record.segment, job.longest, way)

    made = waveform(sound(), "The audio")
    source = None if record.segment and record.segment.member else Path(record.path)
    try:
        require_level(made.saturated, len(made.samples), sound, source)
    except Beyond as error:
        if job.levels == SCALE:
            return waveform(divided(sound(), error.divisor), "The audio"), error.divisor
        raise AudioError(f"{error} Mend the file, or convert with --levels scale.", error.reason) from error
    return made, 1.0


def _events(record: Record, job: Job, samples: int) -> list[tuple[float, float, str]]:
    """(onset, offset, class) of a clip's events, in seconds. Raises AudioError where one is not within the clip."""
    timed = []
    for event in record.events:
        name = job.labels[event.label]
        try:
            within(event.onset, event.offset, samples)
        except ValueError as error:
            line = f" in line {event.line} of the events" if event.line else ""
            raise AudioError(f"{_called(record)}: {name!r}{line} {error}.", "events") from error
        timed.append((event.onset, min(event.offset, samples / RATE), name))
    return timed


def _called(record: Record) -> str:
    """The file, and the clip where that says more."""
    return str(record.path) if record.segment is None else f"{record.path} (clip {record.key})"


def _stretch(record: Record) -> dict[str, float]:
    """The start and end of the clip in its recording, in seconds."""
    if record.segment is None:
        return {}
    end = {} if record.segment.end is None else {"end": record.segment.end}
    return {"start": record.segment.start, **end}
