"""One task of a SLURM job: a rank of a stage. submitit starts it; what it runs is in a JSON file.

The pickle that submitit makes holds an instance of `Job`, with nothing but a path, so that it can hide no code.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from submitit.helpers import Checkpointable

from gamut.commands import COMMANDS
from gamut.errors import MachineError, RunError
from gamut.numbers import EXIT_PREEMPTED
from gamut.preemption import SIGNALS, Preempted
from launchers.ends import Word, note, restarts, word_of
from launchers.options import STAGES

if TYPE_CHECKING:
    from launchers.cluster import Cluster

_MLFLOW_SECONDS = 30.0  # that a preempted rank waits for what still goes to MLflow


class Job(Checkpointable):
    """What submitit calls in every task, at the first start and after every requeue."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> int:
        return run(Path(self.path))


def write_job(
    path: Path, stage: str, argv: list[str], environment: dict[str, str], cluster: Cluster | None = None
) -> Path:
    """Describe a job to the tasks that will run it, and to whoever submits it again."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    told: dict[str, Any] = {"stage": stage, "argv": argv, "environment": environment, "folder": os.getcwd()}
    if cluster is not None:
        told["cluster"] = asdict(cluster)
    path.write_text(json.dumps(told, indent=1))
    path.chmod(0o600)
    return path


def run(path: Path) -> int:
    """Run this task's rank of the job that `path` describes; 0 when the stage is done.

    A warning of preemption or of the time limit ends the stage at a step boundary on every rank. How it ends is noted
    beside `path`, for the batch script to decide whether the job goes back to the queue (launchers/batch.py). Raises
    RunError where the stage ends with an error; the process ends here where it was preempted.
    """
    folder, job = path.parent, json.loads(path.read_text())
    if job["stage"] not in STAGES:
        raise RunError(f"{path} names the unknown stage {job['stage']!r}; known are {' and '.join(STAGES)}.")
    for number in SIGNALS:  # instead of submitit's, which would requeue from the handler
        signal.signal(number, _preempt)
    os.environ.update(job["environment"])
    os.environ.update(rank_environment(os.environ))
    note(folder, os.environ, Word.BEGUN)
    try:
        status = run_stage(job["stage"], job["argv"])
    except Preempted:
        status = EXIT_PREEMPTED
    except BaseException as error:
        note(folder, os.environ, word_of(error), f"{type(error).__name__}: {error}")
        raise
    said = f"{job['stage']} {' '.join(job['argv'])} ended with status {status}; its output says why."
    words = {0: Word.DONE, EXIT_PREEMPTED: Word.PREEMPTED, MachineError.status: Word.MACHINE}
    note(folder, os.environ, words.get(status, Word.MISTAKE), said if status else "")
    if status == EXIT_PREEMPTED:
        # Well: of a rank that ends badly SLURM ends the others, and may do so a minute later again, in the job's next
        # start. And at once, but for whoever feeds MLflow: its file is no good if it is cut off while it is being made.
        for thread in threading.enumerate():
            if thread.name == "mlflow":
                thread.join(_MLFLOW_SECONDS)
        sys.stdout.flush()
        os._exit(0)
    if status:
        raise RunError(said)
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
        local_size = tasks_of_nodes(slurm["SLURM_TASKS_PER_NODE"])[node]
    except (KeyError, IndexError, ValueError) as error:
        raise RunError(f"This is not a task that srun started: {error} is missing from its environment.") from None
    # srun was started on the first node of the job. The tasks were reached from its address, while a node's name may
    # not resolve.
    address = slurm.get("SLURM_LAUNCH_NODE_IPADDR") or _first_node(slurm["SLURM_JOB_NODELIST"])
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(12_000 + (job * 37 + restarts(slurm)) % 20_000),  # below the ephemeral ports
    }


def tasks_of_nodes(text: str) -> list[int]:
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
