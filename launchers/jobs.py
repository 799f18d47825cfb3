"""The SLURM job of a run: what it prints, cancel it, submit it again.

Examples:
    python launchers/jobs.py logs asit_b --follow
    python launchers/jobs.py cancel asit_b
    python launchers/jobs.py resume asit_b --time 2-00:00:00
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.commands import command, parser_of, positive
from gamut.errors import RunError
from gamut.runs.slurm import FOLDER, jobs_of, newest_job, says
from launchers.options import STAGES, resources

RUNS = Path("runs")


@command
def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("jobs", __doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = _add(commands, "logs", _logs, "what the run's last job printed")
    one.add_argument("--rank", type=int, default=0, help="whose output (default: %(default)s)")
    one.add_argument("--lines", type=positive, default=50, help="at the end (default: %(default)s)")
    one.add_argument("--follow", action="store_true", help="go on as it prints more")
    _add(commands, "cancel", _cancel, "cancel the run's job; the run can be resumed")
    one = _add(commands, "resume", _resume, "submit the run again as it was, with what is given here changed")
    for name in ("nodes", "gpus", "cpus-per-task"):
        one.add_argument(f"--{name}", type=positive)
    for name in ("time", "partition", "account", "qos"):
        one.add_argument(f"--{name}")
    return parser


def _add(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    one.add_argument("name", metavar="RUN", help="its name in runs/, or its folder")
    one.set_defaults(run=run)
    return one


def run_of(name: str) -> Path:
    """The folder of a run that was submitted. Raises RunError where it has no job."""
    for place in (Path(name), RUNS / name):
        if newest_job(place):
            return place
    raise RunError(
        f"No job was submitted for a run {name}: none is in {Path(name) / FOLDER} or {RUNS / name / FOLDER}. "
        "`python -m gamut.runs list` shows the runs and their jobs."
    )


def _logs(options: argparse.Namespace) -> int:
    run = run_of(options.name)
    job = newest_job(run)
    file = run / FOLDER / f"{job}_{options.rank}_log.out"
    if not file.is_file():
        told = jobs_of([job]).get(job, "no longer known to SLURM")
        raise RunError(f"Job {job} of {run} is {told}; rank {options.rank} has printed nothing ({file}).")
    sys.stdout.flush()
    words = ["tail", "-n", str(options.lines), *(["-F"] if options.follow else []), str(file)]
    os.execvp(words[0], words)  # noqa: S606 (without a shell on purpose)


def _cancel(options: argparse.Namespace) -> int:
    run = run_of(options.name)
    number = newest_job(run)
    job = jobs_of([number]).get(number)
    if job is not None and not job.waits_or_runs:
        raise RunError(f"Job {number} of {run} has ended: it is {job}.")
    done = says("scancel", number)
    if done.returncode:
        raise RunError(f"Job {number} of {run} could not be cancelled: {done.stderr.strip()}")
    print(f"job {number} is cancelled; `python launchers/jobs.py resume {run}` goes on from its newest checkpoint")
    return 0


def _resume(options: argparse.Namespace) -> int:
    run = run_of(options.name)
    told = description(run)
    os.chdir(told["folder"])

    from gamut.recipe import cli
    from launchers.cluster import load_cluster
    from launchers.fit import require_fit
    from launchers.slurm import submit

    changes = {**told["cluster"], **{name: value for name, value in _changes(options).items() if value is not None}}
    cluster = load_cluster(None, changes)
    stage, words = told["stage"], told["argv"]
    typed = cli.parse(stage, words)
    if warning := require_fit(stage, typed.name, typed.recipe, cluster):
        print(f"warning: {warning}", flush=True)
    cli.require_data(typed.recipe)
    submit(stage, words, typed.recipe, cluster)
    return 0


def description(run: Path) -> dict[str, Any]:
    """What was last submitted for a run. Raises RunError where it does not say enough to submit it again."""
    files = sorted((run / FOLDER).glob("job-*.json"), key=lambda file: file.stat().st_mtime)
    for file in reversed(files):
        try:
            told = json.loads(file.read_bytes())
            if told["stage"] in STAGES and told["cluster"] and told["folder"]:
                return dict(told)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise RunError(f"{run / FOLDER} does not say how {run} was submitted; submit it with launchers/slurm.py as before.")


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    return {"nodes": options.nodes, "gpus": options.gpus, **resources(options)}


if __name__ == "__main__":
    sys.exit(main())
