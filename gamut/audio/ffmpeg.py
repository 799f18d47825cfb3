"""Audio from video and from compressed formats that libsndfile does not read, by the installed ffmpeg.

ffmpeg is optional: it is only needed for such files. Its input is one local file and nothing else (a playlist is
refused whatever it is called, and no protocol but that of files is known), and it is started with a list of arguments,
never through a shell.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from gamut.audio.blocks import Blocks, blocks, frames_of, open_sound
from gamut.audio.longest import Longest
from gamut.errors import AudioError, ShardError

SUFFIXES = {
    ".3gp", ".aac", ".ac3", ".amr", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4a", ".m4b", ".m4v", ".mka", ".mkv",
    ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".weba", ".webm", ".wma", ".wmv",
}  # fmt: skip
# The formats that ffmpeg may take a file for: containers of sound. None names other files, as playlists, concat, dash
# and image sequences do, which would be read whatever the ending of the file is.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,dtshd,dv,eac3,flac,flv,loas,matroska,mlp,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,"
    "nistsphere,nut,ogg,rm,swf,tak,truehd,tta,voc,w64,wav,wtv,wv"
)
ONLY = ("-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS)
# Of what ffmpeg calls errors: timestamps that go back where recordings were joined, and pictures, which are not decoded
HARMLESS = ("non monotonically increasing dts", "[h264 @", "[hevc @", "[mpeg4 @", "[mpeg2video @", "[mjpeg @", "[vp9 @")
RUN_UP = 2.0  # seconds: decoding starts this long before a segment


def needs_ffmpeg(path: str | Path) -> bool:
    """Whether a file of this ending goes through ffmpeg.

    >>> needs_ffmpeg("clips/x.MP4"), needs_ffmpeg("clips/x.wav")
    (True, False)
    """
    return os.path.splitext(path)[1].lower() in SUFFIXES


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


def ffmpeg_blocks(path: Path, longest: Longest, start: float = 0.0, end: float | None = None) -> Blocks:
    """The first audio stream of a file, or of [start, end) in seconds, by way of a temporary file.

    Raises AudioError where ffmpeg finds no audio or damage, or it is longer than the limit; ShardError where there is
    no ffmpeg, it was killed, or the disk is full; OSError where the file cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="gamut-ffmpeg-") as folder:
        yield from blocks(
            to_file_with_ffmpeg(path, Path(folder) / "sound.wav", longest, start, end), str(path), longest
        )


def to_file_with_ffmpeg(path: Path, out: Path, longest: Longest, start: float = 0.0, end: float | None = None) -> Path:
    """The first audio stream of a file, or of [start, end) in seconds, to a little over the limit, as WAV (beyond 4 GB
    RF64) of 32-bit floats at `out`, which is returned. Raises as `ffmpeg_blocks`, but for the limit."""
    with open(path, "rb") as file:
        if not file.read(1):
            raise AudioError(f"{path} has no bytes.", "empty")
    # Seeking in the input is fast, but may lose the first samples. So it seeks to an earlier point, and what is decoded
    # before the segment is discarded.
    ahead = max(0.0, start - RUN_UP)
    words = [require_ffmpeg(path), "-nostdin", "-v", "error", *ONLY]
    words += ["-ss", f"{ahead:.6f}"] if ahead else []
    words += ["-i", f"file:{os.path.abspath(path)}", "-map", "0:a:0"]
    words += ["-ss", f"{start - ahead:.6f}"] if start else []
    words += ["-t", f"{longest.seconds + 1 if end is None else min(end - start, longest.seconds + 1):.6f}"]
    words += ["-c:a", "pcm_f32le", "-f", "wav", "-rf64", "auto", f"file:{os.path.abspath(out)}"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode < 0:
        raise ShardError(f"ffmpeg was killed by signal {-done.returncode} at {path}. Run the same command again.")
    if any("No space left on device" in line for line in said):
        raise ShardError(f"{path} cannot be unpacked: the disk of {out.parent} is full. Name another folder as TMPDIR.")
    if any("matches no streams" in line for line in said):
        raise AudioError(f"{path} holds no sound: it has pictures alone.", "empty")
    if done.returncode:
        raise AudioError(f"ffmpeg cannot read {path}: {said[-1] if said else 'it gives no reason'}", "corrupt")
    # It ends with 0 on what is cut or damaged, too.
    if complaints := [line for line in said if not any(word in line for word in HARMLESS)]:
        raise AudioError(f"{path} is cut off or damaged. ffmpeg says: {complaints[0]}", "corrupt")
    if start == 0.0 and end is None:
        _require_all(path, out, longest)
    return out


def _require_all(path: Path, out: Path, longest: Longest) -> None:
    """Raise AudioError where less is there than the container says: of some (avi, flv) nothing else shows that they
    are cut off."""
    with open(path, "rb") as file:
        head, size = file.read(12), file.seek(0, 2)
    if head[:4] == b"RIFF" and head[8:] == b"AVI " and size < (stated := 8 + int.from_bytes(head[4:8], "little")):
        raise AudioError(f"{path} is cut off: {size} of the {stated} bytes that it states are there.", "truncated")
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
    with open_sound(out, str(path)) as file:
        there = (frames_of(file) or 0) / file.samplerate
    if there < min(length, longest.seconds) - max(slack, length / 20):
        raise AudioError(f"{path} is cut off: {there:.2f} of the {length:.2f} s that it states are there.", "truncated")
