"""The command-line options of every submission, and replacing this process by the command that runs it here."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn

from gamut.recipe import find

STAGES = tuple(name for name, stage in find.STAGES.items() if stage.work)  # what a job of several ranks runs
ARRAY = 1000  # largest number of jobs in an array: SLURM's default limit


def add_resources(parser: argparse.ArgumentParser, *, dry_run: str) -> None:
    """The resources that any submission may request, except the number of its tasks."""
    parser.add_argument("--time", help="minutes, HH:MM:SS or D-HH:MM:SS; the job is requeued when it runs out")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--cluster", metavar="NAME", help="take what is not given here from configs/clusters/NAME.yaml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help=dry_run)
    how.add_argument("--local", action="store_true", help="run it on this machine, without SLURM")


def add_jobs(parser: argparse.ArgumentParser, jobs: int) -> None:
    """The option for the number of an array's jobs; default `jobs`."""
    parser.add_argument(
        "--jobs", type=_jobs, default=jobs, metavar="N", help="jobs of the array (default: %(default)s)"
    )


def resources(options: argparse.Namespace) -> dict[str, Any]:
    """The values that those options change in a cluster; None for an option that is not given."""
    return {name: getattr(options, name) for name in ("cpus_per_task", "time", "partition", "account", "qos")}


def _jobs(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= ARRAY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {ARRAY}")
    return int(text)


def become(*words: str) -> NoReturn:
    """Replace this process by Python with these words, so that signals reach it and its status is ours."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606 (no shell is what is wanted)
