"""Whose a folder of shards is: index/convert.json says of which conversion, and another one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import soundfile
import soxr

from gamut.audio.ffmpeg import ffmpeg_version, require_ffmpeg
from gamut.errors import ShardError
from gamut.shards.convert.roster import Roster
from gamut.shards.convert.source import Listing
from gamut.shards.durable import write_bytes

FORMAT = 1
COMPARED = ("format", "source", "name", "clips_per_shard", "clips", "labels", "columns", "list")


def settings_of(source: str, listing: Listing, roster: Roster) -> dict:
    """What makes a conversion this one. The tools are told, not compared."""
    tools = {"libsndfile": soundfile.__libsndfile_version__, "soxr": soxr.__version__}
    if roster.ffmpeg:
        tools["ffmpeg"] = ffmpeg_version(require_ffmpeg(roster.ffmpeg))
    return {
        "format": FORMAT,
        "source": source,
        "name": listing.name,
        "clips_per_shard": roster.clips_per_shard,
        "clips": roster.clips,
        "shards": len(roster.shards),
        "labels": list(listing.labels),
        "columns": list(listing.columns),
        "names": {
            column: {name: list(values) for name, values in names.items()} for column, names in listing.names.items()
        },
        "list": roster.digest,
        "tools": tools,
    }


def claim(folder: Path, settings: dict) -> None:
    """Make `folder` this conversion's, or raise ShardError if it is another's."""
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


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
