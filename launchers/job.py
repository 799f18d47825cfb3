"""One task of a SLURM job: a rank of a stage. submitit starts it; what it runs is in a JSON file.

The pickle that submitit makes holds an instance of `Job`, with nothing but a path, so that it can hide no code.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.helpers import Checkpointable

from gamut.commands import COMMANDS
from gamut.errors import RunError
from gamut.numbers import EXIT_PREEMPTED
from gamut.preemption import SIGNALS, Preempted
from launchers.options import STAGES

_TRIES, _TRY_SECONDS = 5, 5.0
_WAIT_FOR_SLURM = 600.0  # seconds a task that is to be requeued waits for SLURM to end it


class Job(Checkpointable):
    """What submitit calls in every task, at the first start and after every requeue."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> int:
        return run(Path(self.path))


def write_job(path: Path, stage: str, argv: list[str], environment: dict[str, str]) -> Path:
    """Describe a job to the tasks that will run it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps({"stage": stage, "argv": argv, "environment": environment}, indent=1))
    path.chmod(0o600)
    return path


def run(path: Path) -> int:
    """Run this task's rank of the job that `path` describes; 0 when the stage is done.

    A warning of preemption or of the time limit ends the stage at a step boundary on every rank; rank 0 then asks SLURM
    to requeue the job. Raises RunError where the stage ends in any other way, so that SLURM counts the job as failed.
    """
    job = json.loads(path.read_text())
    if job["stage"] not in STAGES:
        raise RunError(f"{path} names the unknown stage {job['stage']!r}; known are {' and '.join(STAGES)}.")
    for number in SIGNALS:  # instead of submitit's, which would requeue from the handler
        signal.signal(number, _preempt)
    os.environ.update(job["environment"])
    os.environ.update(rank_environment(os.environ))
    try:
        status = run_stage(job["stage"], job["argv"])
    except Preempted:
        status = EXIT_PREEMPTED
    if status == EXIT_PREEMPTED:
        _go_back_to_the_queue()
    if status != 0:
        raise RunError(f"{job['stage']} {' '.join(job['argv'])} ended with status {status}; its output says why.")
    return status


def run_stage(stage: str, argv: list[str]) -> int:
    try:
        return int(importlib.import_module(COMMANDS[stage][0]).main(argv) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _preempt(number: int, frame: FrameType | None) -> None:
    raise Preempted(signal.Signals(number).name)


def rank_environment(slurm: Mapping[str, str]) -> dict[str, str]:
    """RANK and the rest from what srun says about this task.

    The port changes with every restart, since the one before may still be in use. Raises RunError outside srun.
    """
    try:
        job, tasks = int(slurm["SLURM_JOB_ID"]), int(slurm["SLURM_NTASKS"])
        rank, local, node = int(slurm["SLURM_PROCID"]), int(slurm["SLURM_LOCALID"]), int(slurm["SLURM_NODEID"])
        local_size = _tasks_of_nodes(slurm["SLURM_TASKS_PER_NODE"])[node]
    except (KeyError, IndexError, ValueError) as error:
        raise RunError(f"This is not a task that srun started: {error} is missing from its environment.") from None
    restart = int(slurm.get("SLURM_RESTART_COUNT") or 0)
    # srun was started on the first node of the job. The tasks were reached from its address, while a node's name may
    # not resolve.
    address = slurm.get("SLURM_LAUNCH_NODE_IPADDR") or _first_node(slurm["SLURM_JOB_NODELIST"])
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(12_000 + (job * 37 + restart) % 20_000),  # below the ephemeral ports
    }


def _tasks_of_nodes(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * (int(times.rstrip(")")) if times else 1)
    return counts


def _first_node(nodes: str) -> str:
    """`gpu[03-05,9],x1` -> gpu03."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    return "" if match is None else match.group(1) + (match.group(2) or "")


def _go_back_to_the_queue() -> None:
    """Rank 0 has the job requeued if it still runs; every task then waits until SLURM ends it.

    Exits with EXIT_PREEMPTED where SLURM has already decided: a cancelled job must not be requeued, and one that SLURM
    requeues by itself does not need it. Raises RunError where SLURM does not answer or refuses.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if int(os.environ["RANK"]) == 0:
        job = os.environ["SLURM_JOB_ID"]
        state = job_facts(job).get("JobState")
        for _ in range(_TRIES):  # a controller that is restarting
            if state is None:
                time.sleep(_TRY_SECONDS)
                state = job_facts(job).get("JobState")
        if state is not None and state != "RUNNING":
            print(f"Saved. Job {job} is {state} by SLURM's own decision.", flush=True)
            raise SystemExit(EXIT_PREEMPTED)
        print(f"Saved. Sending job {job} back to the queue.", flush=True)
        words = ["scontrol", "requeue", job]  # which lies where the cluster has it
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RunError(f"Job {job} was saved but could not be requeued ({done.stderr.strip()}); submit it again.")
    sys.stdout.flush()
    time.sleep(_WAIT_FOR_SLURM)  # ending now would race with the requeue, and count as the job's end


def job_facts(job: str) -> dict[str, Any]:
    """The fields of `scontrol show job`: JobState, Restarts, ...; empty where SLURM no longer knows the job."""
    words = ["scontrol", "show", "job", "-o", job]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
