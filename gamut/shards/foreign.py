"""What a third-party tar holds, clip by clip. Nothing in it is trusted: a key names a clip, never a path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

import xxhash

from gamut.audio.blocks import Way
from gamut.audio.kinds import FFMPEG, SOUND
from gamut.audio.longest import CLIP, Longest
from gamut.audio.members import read_member, stated_samples
from gamut.errors import AudioError, ShardError
from gamut.shards.heard import Heard
from gamut.shards.labels import ENDINGS, LARGEST, Labels, LabelSource
from gamut.shards.part import MEMBER, MERGED, Part, checksum_of, merge, within
from gamut.shards.tar import Member, members, refuse_compressed
from gamut.shards.write import Quarantined

CODECS = {"oga": "ogg", "opus": "ogg", "wave": "wav"}  # ending -> name in the index; of others it is the ending


@dataclass(frozen=True)
class Taking:
    """How foreign shards are taken."""

    name: str  # of the set
    labels: LabelSource = field(default_factory=LabelSource)
    fast: bool = False  # trust the headers for the number of samples
    largest: int = 256 << 20  # bytes of a clip
    longest: Longest = CLIP  # of a clip


@dataclass
class Found:
    """What was found in one tar. `part.labels` and `part.events` are filled in from `labels` and `events` once the
    labels of all tars are known: they alone tell what the labels of one are."""

    part: Part
    labels: list[Labels] = field(default_factory=list)  # of each clip
    events: list[list[tuple[Any, ...]]] = field(default_factory=list)  # of each clip: first sample, end, label
    quarantined: list[Quarantined] = field(default_factory=list)
    saturated: dict[str, int] = field(default_factory=dict)  # key -> samples held to the int16 range
    ignored: dict[str, int] = field(default_factory=dict)  # what -> members passed over
    read: dict[str, int] = field(default_factory=dict)  # how -> clips, as `Way.notes`
    damage: str = ""  # of the tar itself: clips after it are lost
    heard: Heard | None = None  # what the clips' sound tells; None where some were not decoded

    def dump(self) -> dict:
        """As JSON knows it."""
        return {**asdict(replace(self, heard=None)), "heard": self.heard and self.heard.dump()}

    @classmethod
    def parse(cls, content: dict) -> Found:
        """The inverse of `dump` after a round trip through JSON. Raises TypeError, ValueError, KeyError."""
        quarantined = [Quarantined(**one) for one in content["quarantined"]]
        labels = [Labels(tuple(one["names"]), one["length"]) for one in content["labels"]]
        heard = Heard.parse(content["heard"]) if content["heard"] else None
        parsed = {"part": Part.parse(content["part"]), "quarantined": quarantined, "labels": labels, "heard": heard}
        return cls(**{**content, **parsed})


def scan_foreign(file: BinaryIO, shard: str, taking: Taking, advance: Callable[[int], None] = lambda _: None) -> Found:
    """Read a tar from front to back, decoding each clip once (with `fast`, only where its headers do not give its
    length).

    A key's members may come in any order; one key is one clip. What cannot be used is quarantined by name. `shard` is
    the tar's name in the index. Raises ShardError where the tar is compressed, since nothing in it could be read in
    place.
    """
    refuse_compressed(file, shard)
    part = Part(shard, file.seek(0, 2), checksum_of(file), name=taking.name)
    found = Found(part, heard=None if taking.fast else Heard())
    audio: dict[str, tuple[Member, str]] = {}
    described: dict[str, dict[str, Member]] = {}
    ignored: Counter[str] = Counter()
    _sort_out(file, shard, found, audio, described, ignored)
    # By their place, as the tar has them: links come last, and lead back.
    for key, (member, codec) in sorted(audio.items(), key=lambda item: item[1][0].offset):
        try:
            _add(file, found, key, member, codec, described.get(key, {}), taking, ignored)
        except AudioError as error:
            found.quarantined.append(Quarantined(key, f"{shard}/{member.name}", error.reason, str(error)))
        advance(1)
    ignored["labels without audio"] = len(described.keys() - audio.keys())
    found.ignored = {what: count for what, count in sorted(ignored.items()) if count}
    return found


def _sort_out(
    file: BinaryIO,
    shard: str,
    found: Found,
    audio: dict[str, tuple[Member, str]],
    described: dict[str, dict[str, Member]],
    ignored: Counter[str],
) -> None:
    """Which members are a clip's audio, which its labels, and which neither."""
    try:
        for member in members(file, shard, ignored):
            match = MEMBER.match(member.name)
            if match is None or member.name.rpartition("/")[2].startswith(("__", "._")):
                ignored["members without a key"] += 1  # WebDataset skips them too
                continue
            key, ending = match[1], match[2].lower()
            last = ending.rpartition(".")[2]
            codec = CODECS.get(last, last) if f".{last}" in SOUND else None
            if codec is None and ending not in ENDINGS:
                ignored[f".{ending} members" if ending.isprintable() else "members without a key"] += 1
            elif not key.isprintable():
                _quarantine(found, member, "name", "has a name that cannot be printed or is not UTF-8")
            elif codec is None:
                described.setdefault(key, {})[ending] = member
            elif key in audio and (f".{last}" in FFMPEG) != (f".{audio[key][1]}" in FFMPEG):
                ignored["videos beside the sound of the same clip"] += 1
                audio[key] = audio[key] if f".{last}" in FFMPEG else (member, codec)
            elif key in audio:
                _quarantine(found, member, "duplicate", f"is a second clip of the key {key} in this tar")
            else:
                audio[key] = member, codec
    except ShardError as error:
        found.damage = str(error)


def _quarantine(found: Found, member: Member, reason: str, what: str) -> None:
    name = member.name.encode("utf-8", "backslashreplace").decode()
    name = name if name.isprintable() else ascii(name)
    found.quarantined.append(Quarantined(name, f"{found.part.shard}/{name}", reason, f"{name} {what}."))


def _add(
    file: BinaryIO,
    found: Found,
    key: str,
    member: Member,
    codec: str,
    described: dict[str, Member],
    taking: Taking,
    ignored: Counter[str],
) -> None:
    if member.size > taking.largest:
        raise AudioError(
            f"{key} has {member.size:,} bytes, more than the {taking.largest:,} that --largest-mb allows.", "too_large"
        )
    labels, events = _labels(file, key, described, taking.labels)
    file.seek(member.offset)
    payload = file.read(member.size)
    way = Way()
    samples = stated_samples(payload, taking.longest, way) if taking.fast else None
    waveform, saturated = None, 0
    if samples is None:
        waveform, saturated = read_member(payload, taking.longest, way)
        samples = len(waveform)
    try:
        timed, fewer = merge((*within(onset, offset, samples), name) for onset, offset, name in events)
    except ValueError as error:
        raise AudioError(f"An event of {key} {error}.", "events") from error
    if found.heard is not None and waveform is not None:
        found.heard.add_member(payload, codec, saturated > 0, samples)
        found.heard.add(waveform)
    part = found.part
    part.key.append(key)
    part.offset.append(member.offset)
    part.bytes.append(member.size)
    part.samples.append(samples)
    part.clip_checksum.append(xxhash.xxh3_64_intdigest(payload))
    part.codec.append(codec)
    found.labels.append(labels)
    found.events.append(timed)
    ignored[MERGED] += fewer
    for note in way.notes:
        found.read[note] = found.read.get(note, 0) + 1
    if saturated:
        found.saturated[key] = saturated


def _labels(
    file: BinaryIO, key: str, described: dict[str, Member], source: LabelSource
) -> tuple[Labels, list[tuple[float, float, str]]]:
    """(labels, events as (onset, offset, class)) of a clip."""
    contents = {}
    for ending, member in described.items():
        if ending in source.endings:
            if member.size > LARGEST:
                raise AudioError(
                    f"{key}.{ending} has {member.size:,} bytes, too many for labels (at most {LARGEST:,}).", "labels"
                )
            file.seek(member.offset)
            contents[ending] = file.read(member.size)
    try:
        return source.read(contents), source.events(contents)
    except (ValueError, RecursionError) as error:
        raise AudioError(f"The labels of {key} cannot be read: {error}.", "labels") from error
