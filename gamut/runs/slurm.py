"""Jobs of SLURM that work on runs: what SLURM, and its accounting where there is some, say of them."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = "slurm"  # of a run: what its jobs were given, and what they print
SCRIPT = "_submission.sh"  # ending of a job's script there, behind its number


@dataclass(frozen=True)
class Job:
    """A job, as SLURM tells it."""

    number: str
    state: str  # PENDING, RUNNING, COMPLETED, ...
    reason: str = ""  # why it waits
    nodes: str = ""
    restarts: int | None = None  # None where SLURM does not say

    @property
    def waits_or_runs(self) -> bool:
        return self.state in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED")

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


def own_job(slurm: Mapping[str, str]) -> str:
    """The number of the job whose environment this is: `12`, of one in an array `12_3`. Raises KeyError outside."""
    array = slurm.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{slurm['SLURM_ARRAY_TASK_ID']}" if array else slurm["SLURM_JOB_ID"]


def age_of(number: str) -> tuple[int, ...]:
    """By which a job's number sorts: later ones are larger."""
    return tuple(int(part) for part in number.split("_") if part)


def says(*words: str) -> subprocess.CompletedProcess[str]:
    """What a command of SLURM prints and how it ends; 127 where there is none, or no answer in a minute."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))


def facts_of(job: str) -> dict[str, str]:
    """The fields of `scontrol show job`: JobState, Restarts, ...; empty where SLURM no longer knows the job."""
    words = says("scontrol", "show", "job", "-o", job).stdout.split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def hosts(nodes: str) -> list[str]:
    """The names in SLURM's `n[1-2,5]`."""
    if "[" not in nodes:
        return [name for name in nodes.split(",") if name]
    return says("scontrol", "show", "hostnames", nodes).stdout.split()


def newest_job(run: Path) -> str:
    """The number of the job that was last submitted for a run; empty where none was."""
    numbers = [file.name.removesuffix(SCRIPT) for file in (run / FOLDER).glob(f"*{SCRIPT}")]
    return max((number for number in numbers if re.fullmatch(r"\d+(_\d+)?", number)), key=age_of, default="")


def jobs_of(numbers: Collection[str]) -> dict[str, Job]:
    """What is known of jobs, by number: from the queue, and of those that it has forgotten from the accounting."""
    wanted = {number for number in numbers if number}
    if not wanted:
        return {}
    found: dict[str, Job] = {}
    fields = ("JobArrayID", "State", "Reason", "NodeList", "RestartCnt")
    asked = ",".join(f"{name}:|" for name in fields)
    # All of this user's: asked for by number, squeue only says that one of them is invalid.
    for line in says("squeue", "-h", "-a", "-r", "-t", "all", "-u", getpass.getuser(), "-O", asked).stdout.splitlines():
        number, state, reason, nodes, restarts, *_ = *line.strip().split("|"), "", "", "", ""
        if number in wanted:
            why = reason if state == "PENDING" and reason != "None" else ""
            found[number] = Job(number, state, why, nodes, int(restarts) if restarts.isdigit() else None)
    if rest := sorted(wanted - {*found}):
        words = ["sacct", "-n", "-P", "-X", "-j", ",".join(rest), "-o", "JobID,State,NodeList"]
        for line in says(*words).stdout.splitlines():
            number, state, nodes, *_ = *line.split("|"), "", ""
            if number in rest and state:  # `CANCELLED by 1000`; of a requeued job the last line is the last start
                found[number] = Job(number, state.split()[0], nodes="" if nodes == "None assigned" else nodes)
    return found
