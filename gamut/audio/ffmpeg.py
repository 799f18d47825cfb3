"""Audio from video and from compressed formats that libsndfile does not read, by the installed ffmpeg.

ffmpeg is optional: it is only needed for such files. Its input is a local file and nothing else (a playlist inside it
cannot reach other protocols), and it is started with a list of arguments, never through a shell.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from gamut.audio.decode import read_audio
from gamut.errors import AudioError, ShardError

SUFFIXES = {
    ".3gp", ".aac", ".ac3", ".amr", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4a", ".m4b", ".m4v", ".mka", ".mkv",
    ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".weba", ".webm", ".wma", ".wmv",
}  # fmt: skip
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


def decode_with_ffmpeg(path: Path, start: float = 0.0, end: float | None = None) -> tuple[np.ndarray, int]:
    """The first audio stream of a file, or of [start, end) in seconds: float32 [channels, n], and its rate in Hz.

    Raises AudioError where ffmpeg finds no audio or damage, ShardError where there is no ffmpeg or it was killed,
    OSError where the file cannot be opened.
    """
    return read_audio(_run(path, start, end, ["-f", "wav", "pipe:1"]))


def to_file_with_ffmpeg(path: Path, out: Path, end: float | None = None) -> Path:
    """The first audio stream of a file, of any length or up to `end` in seconds, as WAV (beyond 4 GB RF64) of 32-bit
    floats at `out`, which is returned. Raises as `decode_with_ffmpeg`."""
    _run(path, 0.0, end, ["-f", "wav", "-rf64", "auto", f"file:{os.path.abspath(out)}"])
    return out


def _run(path: Path, start: float, end: float | None, out: list[str]) -> bytes:
    with open(path, "rb") as file:
        if not file.read(1):
            raise AudioError(f"{path} has no bytes.", "empty")
    # Seeking in the input is fast, but may lose the first samples. So it seeks to an earlier point, and what is decoded
    # before the segment is discarded.
    ahead = max(0.0, start - RUN_UP)
    words = [require_ffmpeg(path), "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file,pipe"]
    words += ["-ss", f"{ahead:.6f}"] if ahead else []
    words += ["-i", f"file:{os.path.abspath(path)}", "-map", "0:a:0"]
    words += ["-ss", f"{start - ahead:.6f}"] if start else []
    words += [] if end is None else ["-t", f"{end - start:.6f}"]
    words += ["-c:a", "pcm_f32le", *out]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode < 0:
        raise ShardError(f"ffmpeg was killed by signal {-done.returncode} at {path}. Run the same command again.")
    if done.returncode:
        raise AudioError(f"ffmpeg cannot read {path}: {said[-1] if said else 'it gives no reason'}", "corrupt")
    return done.stdout
