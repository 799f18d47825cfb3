"""What every submission shares: the options that ask SLURM for resources, and the executor that asks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from launchers.cluster import Cluster, minutes

ROOT = Path(__file__).resolve().parents[1]
ARRAY = 1000  # jobs in one array, at most: SLURM's default limit


class Executor(SlurmExecutor):
    """submitit's executor, which can also write its script where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self) -> str:
        """The text that `submit` hands to sbatch."""
        return self._make_submission_file_text(self._submitit_command_str, "")


def executor_in(folder: Path, name: str, cluster: Cluster) -> Executor:
    """An executor of jobs called `name` that writes into `folder` and asks SLURM for what `cluster` says."""
    made = Executor(
        folder=folder, max_num_timeout=100
    )  # whatever is requeued goes on where it was, as often as need be
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]  # plugins may lie there
    environment = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)), **cluster.environment}
    made.update_parameters(
        job_name=name,
        nodes=cluster.nodes,
        ntasks_per_node=cluster.tasks_per_node,
        gpus_per_node=cluster.gpus or None,
        cpus_per_task=cluster.cpus_per_task,
        mem=None if cluster.memory_gb is None else f"{cluster.memory_gb}GB",
        time=minutes(cluster.time),
        partition=cluster.partition,
        account=cluster.account,
        qos=cluster.qos,
        constraint=cluster.constraint,
        exclusive=cluster.exclusive or None,
        signal_delay_s=cluster.signal_seconds,
        stderr_to_stdout=True,
        wckey=None,
        setup=[*cluster.setup, *(f"export {key}={_quoted(value)}" for key, value in environment.items())],
        additional_parameters={"requeue": True},
        # srun does not take --cpus-per-task from sbatch; one dead rank ends the job, as the others wait for it
        srun_args=[f"--cpus-per-task={cluster.cpus_per_task}", "--kill-on-bad-exit=1"],
    )
    return made


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def add_resources(parser: argparse.ArgumentParser, *, dry_run: str) -> None:
    """The options that any submission takes, but for those that say how many tasks there are."""
    parser.add_argument("--time", help="minutes, HH:MM:SS or D-HH:MM:SS; the job is requeued when it runs out")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--cluster", metavar="NAME", help="take what is not given here from configs/clusters/NAME.yaml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help=dry_run)
    how.add_argument("--local", action="store_true", help="run it on this machine, without SLURM")


def resources(options: argparse.Namespace) -> dict[str, Any]:
    """What those options change in a cluster; None where they say nothing."""
    return {name: getattr(options, name) for name in ("cpus_per_task", "time", "partition", "account", "qos")}


def array_jobs(text: str) -> int:
    """The number of an array's jobs, as argparse reads it."""
    if not text.isdigit() or not 1 <= int(text) <= ARRAY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {ARRAY}")
    return int(text)
