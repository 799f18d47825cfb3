"""How each rank of a job ended, in its own words: what decides whether a job that failed is worth another start.

A rank says so in a file beside the job's output before its sockets close, so whoever loses it can read why. One that
was killed, or whose node was lost, leaves the word of its beginning.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from gamut.errors import MachineError, RunError
from gamut.files import write_text
from gamut.runs.slurm import own_job

# What torch and NCCL say, in exceptions without a type of their own, when another rank is gone or does not answer
_OTHERS = re.compile(r"[Gg]loo|NCCL|[Cc]onnection (?:reset|closed|refused)|[Ss]ocket|Broken pipe|[Tt]imed out waiting")
_HARDWARE = re.compile(r"ECC error|hardware|NVLink|unavailable|bus error|has fallen off")  # of a GPU, as CUDA says it
# Of a file system or a device that is gone, not of a file
_SYSTEM = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO, errno.ENODEV, errno.EHOSTDOWN, errno.ENETUNREACH}


class Word(StrEnum):
    """The last word of a rank."""

    BEGUN = "begun"  # none since
    DONE = "done"
    PREEMPTED = "preempted"  # saved where there was something to save
    MISTAKE = "mistake"  # an error that another start would meet again
    OTHERS = "others"  # other ranks did not answer any more
    MACHINE = "machine"  # something on its own node failed


@dataclass(frozen=True)
class End:
    """What a rank's file says."""

    restart: int  # of the job
    node: str
    word: Word
    said: str = ""  # the error


def note(folder: Path, slurm: Mapping[str, str], word: Word, said: str = "") -> None:
    """Write this rank's word; `slurm` is the environment of its task. What cannot be written is said on stderr."""
    node = slurm.get("SLURMD_NODENAME") or os.uname().nodename
    end = End(restarts(slurm), node, word, said[:2000])
    path = _path(folder, own_job(slurm), int(slurm["SLURM_PROCID"]))
    try:
        write_text(path, json.dumps(asdict(end)))
    except (OSError, RunError) as error:
        print(f"warning: {path}, why this rank ends, could not be written: {error}", file=sys.stderr, flush=True)


def restarts(slurm: Mapping[str, str]) -> int:
    """How often the job of this environment was started again."""
    return int(slurm.get("SLURM_RESTART_COUNT") or 0)


def ends_of(folder: Path, job: str, restart: int, tasks: int) -> dict[int, End]:
    """The last words of a job's ranks since it was started for the `restart`th time again; {} of one that has none."""
    found: dict[int, End] = {}
    for rank in range(tasks):  # by name: a network file system may show a listing that is a minute old
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            raw = json.loads(_path(folder, job, rank).read_bytes())
            end = End(int(raw["restart"]), str(raw["node"]), Word(raw["word"]), str(raw["said"]))
            if end.restart == restart:
                found[rank] = end
    return found


def word_of(error: BaseException) -> Word:
    """What an error that ends a rank amounts to: its own mistake, its machine's, or that the others are gone."""
    for one in _line(error):
        kinds = {kind.__name__ for kind in type(one).__mro__}  # torch's by name: this module imports no torch
        if isinstance(one, MachineError) or (isinstance(one, OSError) and one.errno in _SYSTEM):
            return Word.MACHINE
        if "AcceleratorError" in kinds:
            return Word.MACHINE if _HARDWARE.search(str(one)) else Word.MISTAKE
        if "DistError" in kinds or isinstance(one, ConnectionError | TimeoutError):
            return Word.OTHERS
        if type(one) is RuntimeError and _OTHERS.search(str(one)):
            return Word.OTHERS
    return Word.MISTAKE


def _line(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from; not one that was being handled when it was raised."""
    while error is not None:
        yield error
        error = error.__cause__


def _path(folder: Path, job: str, rank: int) -> Path:
    return folder / f"{job}_{rank}_end.json"
