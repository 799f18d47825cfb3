"""Audio from video and from compressed formats that libsndfile does not read, by the installed ffmpeg.

ffmpeg is optional: it is only needed for such files (`gamut.audio.sound` asks it). Its input is one local file and
nothing else (a playlist is refused whatever it is called, and no protocol but that of files is known), and it is
started with a list of arguments, never through a shell.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from gamut.audio.blocks import frames_of, opened
from gamut.audio.containers import check_whole
from gamut.audio.longest import Longest
from gamut.errors import AudioError, ShardError
from gamut.files import write_bytes

# The formats that ffmpeg may take a file for: containers of sound. None names other files, as playlists, concat, dash
# and image sequences do, which would be read whatever the ending of the file is.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,dtshd,dv,eac3,flac,flv,loas,matroska,mlp,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,"
    "nistsphere,nut,ogg,rm,swf,tak,truehd,tta,voc,w64,wav,wtv,wv"
)
ONLY = ("-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS)
# Of what ffmpeg calls errors: timestamps that go back where recordings were joined, and pictures, which are not decoded
HARMLESS = (
    "non monotonically increasing dts", "Non-monotonous DTS", "[h264]", "[hevc]", "[mpeg4]", "[mpeg2video]",
    "[mjpeg]", "[vp9]",
)  # fmt: skip
RUN_UP = 2.0  # seconds: decoding starts this long before a segment


def has_ffmpeg() -> bool:
    """Whether it is installed."""
    return shutil.which("ffmpeg") is not None


def require_ffmpeg(example: str | Path) -> str:
    """The path of ffmpeg. Raises ShardError where it is not installed, naming a file that needs it."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise ShardError(
            f"{example} can only be read through ffmpeg, which is not on the PATH. Install it (apt-get install ffmpeg, "
            "conda install ffmpeg, module load ffmpeg) and run the same command again; finished shards are kept."
        )
    return program


@cache
def ffmpeg_version(program: str) -> str:
    """The first line that `ffmpeg -version` prints, without its copyright; empty where it prints none."""
    done = subprocess.run([program, "-version"], capture_output=True, text=True, errors="replace", check=False)
    return done.stdout.partition("\n")[0].partition(" Copyright")[0]


class RefusedError(AudioError):
    """What ffmpeg does not read."""


def by_ffmpeg(
    source: Path | bytes, name: str, folder: Path, longest: Longest, start: float = 0.0, end: float | None = None
) -> Path:
    """The first audio stream of a file, or of [start, end) in seconds, to a little over the limit, as WAV (beyond 4 GB
    RF64) of 32-bit floats in `folder`.

    Raises AudioError where ffmpeg finds no audio or damage, RefusedError where it does not read it; ShardError where
    there is no ffmpeg, it was killed, or the disk is full; OSError where the file cannot be opened."""
    at = name if isinstance(source, bytes) else source  # what is no fault of the clip names the file
    program, whole, out = require_ffmpeg(at), start == 0.0 and end is None, folder / "sound.wav"
    path = folder / "source" if isinstance(source, bytes) else source
    if isinstance(source, bytes):
        write_bytes(path, source, ShardError)
    with open(path, "rb") as file:
        if not file.read(1):
            raise AudioError(f"{name} has no bytes.", "empty")
        if whole:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as payload:
                check_whole(payload, "", "", name)  # type: ignore[arg-type]
    # Seeking in the input is fast, but may lose the first samples. So it seeks to an earlier point, and what is decoded
    # before the segment is discarded.
    ahead = max(0.0, start - RUN_UP)
    words = [program, "-nostdin", "-v", "error", *ONLY]
    words += ["-ss", f"{ahead:.6f}"] if ahead else []
    words += ["-i", f"file:{os.path.abspath(path)}", "-map", "0:a:0"]
    words += ["-ss", f"{start - ahead:.6f}"] if start else []
    words += ["-t", f"{longest.seconds + 1 if end is None else min(end - start, longest.seconds + 1):.6f}"]
    words += ["-c:a", "pcm_f32le", "-f", "wav", "-rf64", "auto", f"file:{os.path.abspath(out)}"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    said = [
        re.sub(r" @ 0x[0-9a-f]+|file:/.*?: ", "", line)  # a place in memory, and where the file lies
        for line in done.stderr.decode(errors="replace").splitlines()
        if line.strip()
    ]
    if done.returncode < 0:
        raise ShardError(f"ffmpeg was killed by signal {-done.returncode} at {at}. Run the same command again.")
    if any("No space left on device" in line for line in said):
        raise ShardError(f"{at} cannot be unpacked: the disk of {out.parent} is full. Name another folder as TMPDIR.")
    if any("matches no streams" in line for line in said):
        raise AudioError(f"{name} holds no sound: it has pictures alone.", "empty")
    if done.returncode:
        raise RefusedError(f"ffmpeg cannot read {name}: {said[-1] if said else 'it gives no reason'}", "corrupt")
    # It ends with 0 on what is cut or damaged, too.
    if complaints := [line for line in said if not any(word in line for word in HARMLESS)]:
        raise AudioError(f"{name} is cut off or damaged. ffmpeg says: {complaints[0]}", "corrupt")
    if whole:
        _require_all(path, out, name, longest)
    return out


def _require_all(path: Path, out: Path, name: str, longest: Longest) -> None:
    """Raise AudioError where less is there than the container says: of some (avi, flv) nothing else shows that they
    are cut off."""
    with open(path, "rb") as file:
        head, size = file.read(12), file.seek(0, 2)
    if head[:4] == b"RIFF" and head[8:] == b"AVI " and size < (stated := 8 + int.from_bytes(head[4:8], "little")):
        raise AudioError(f"{name} is cut off: {size} of the {stated} bytes that it states are there.", "truncated")
    probe = shutil.which("ffprobe")
    if probe is None:
        return
    words = [probe, "-v", "error", *ONLY, "-select_streams", "a:0", "-show_entries", "stream=duration:format=duration"]
    words += ["-of", "json", f"file:{os.path.abspath(path)}"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        about = json.loads(done.stdout)
        own = [float(stream["duration"]) for stream in about["streams"] if "duration" in stream]
        # The container's duration may be that of its pictures, which the sound need not last as long as.
        length, slack = (own[0], 0.5) if own else (float(about["format"]["duration"]), 1.0)
    except (ValueError, KeyError, TypeError):
        return  # it does not say
    with opened(out, name) as (file, _):
        there = (frames_of(file) or 0) / file.samplerate
    if there < min(length, longest.seconds) - max(slack, length / 20):
        raise AudioError(f"{name} is cut off: {there:.2f} of the {length:.2f} s that it states are there.", "truncated")
