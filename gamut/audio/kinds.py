"""Which files are sounds, by the endings of their names: the one list, of everything that looks into folders and tars.

What a file is, its content says (`gamut.audio.sound`).
"""

from __future__ import annotations

import os
from pathlib import Path

import soundfile

# The formats that libsndfile reads, by their usual endings, except RAW, which has no header.
SOUNDFILE = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {
    ".aif", ".aifc", ".snd", ".oga", ".opus", ".mp2", ".wave", ".sph", ".8svx", ".iff"
}  # fmt: skip
FFMPEG = {
    ".3gp", ".aac", ".ac3", ".amr", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4a", ".m4b", ".m4v", ".mka", ".mkv",
    ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".spx", ".ts", ".weba", ".webm", ".wma", ".wmv",
}  # fmt: skip
SOUND = SOUNDFILE | FFMPEG


def suffix_of(path: str | Path) -> str:
    """The ending of a name, in small letters: `.wav`."""
    return os.path.splitext(path)[1].lower()


def is_sound(name: str | Path) -> bool:
    """Whether libsndfile or ffmpeg reads files with this ending.

    >>> is_sound("x.OGA"), is_sound("x.csv")
    (True, False)
    """
    return suffix_of(name) in SOUND


def needs_ffmpeg(path: str | Path) -> bool:
    """Whether a file of this ending goes through ffmpeg.

    >>> needs_ffmpeg("clips/x.MP4"), needs_ffmpeg("clips/x.wav")
    (True, False)
    """
    return suffix_of(path) in FFMPEG
