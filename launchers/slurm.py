"""Submit a stage to SLURM, run it here, or show what would be submitted.

Examples:
    python launchers/slurm.py pretrain asit_b --nodes 4 --gpus 8 --time 1-00:00:00
    python launchers/slurm.py finetune esc50 init=runs/asit_b data=shards/esc50 --gpus 4 --partition short
    python launchers/slurm.py pretrain asit_tiny data=shards/esc10 --cpus-only 2 --local
    python launchers/slurm.py pretrain asit_b_4096 --nodes 8 --gpus 8 --dry-run
    python launchers/slurm.py convert audioset /data/AudioSet shards/audioset --jobs 64
    python launchers/slurm.py verify shards/audioset --jobs 64
    python launchers/slurm.py index /archive/fsd50k-tars --out shards/fsd50k --jobs 64
    python launchers/slurm.py features whisper_large_as20k init=models/whisper-large --jobs 8
    python launchers/slurm.py pretrain asit_s data=shards/esc50 --sweep seed=0,1,2 --sweep optim.lr=1e-4,3e-4
    python launchers/slurm.py convert esc50 ESC-50 shards/esc50 --then pretrain asit_tiny --then finetune esc10
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gamut.accelerator import CHOICE
from gamut.commands import COMMANDS, ROOT, command, parser_of, positive
from gamut.errors import RecipeError, RunError, ShardError
from gamut.estimate.rates import SHEETS
from gamut.processes import name_launcher
from gamut.recipe import cli
from launchers.options import STAGES, add_resources, become, resources

if TYPE_CHECKING:
    from gamut.recipe.schema import Recipe
    from launchers.cluster import Cluster
    from launchers.executor import Executor


@command
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if "--then" in argv:
        from launchers import chain

        return chain.main(argv, submit_part)
    if argv[:1] == ["convert"]:
        from launchers import convert

        return convert.main(argv[1:])
    if argv[:1] == ["features"]:
        from launchers import features

        return features.main(argv[1:])
    if argv[:1] in (["verify"], ["stats"], ["index"]):
        from launchers import shares

        return shares.main(argv)
    options = _parser().parse_intermixed_args(argv)
    if options.sweep:
        return _sweep(options)
    typed, cluster = _asked(options)
    if options.dry_run or options.full:
        words = [*options.words, *["--full"] * options.full]
        return dry_run(options.stage, words, typed, cluster, options.gpu)
    if options.local:
        _warn_of_idle(options, typed, cluster)
        if options.gpus or not cluster.gpus:  # if GPUs are not mentioned, use whatever is here
            os.environ.update(stage_environment(cluster))
        return run_here(options.stage, options.words, cluster)
    _submit(options, typed, cluster)
    return 0


def submit_part(argv: list[str], after: str) -> tuple[str, dict[str, str]]:
    """Submit a stage as one of several (launchers/chain.py), behind the job `after`: (its number, what it makes, by the
    keys of recipes that take it). Raises GamutError."""
    if argv[0] == "convert":
        from launchers import convert

        number, shards = convert.submit_part(argv[1:])
        return number, {"data": str(shards)}
    from gamut.track.run import RunFolder

    options = _parser().parse_intermixed_args(argv)
    if options.sweep:
        raise RecipeError(
            "--sweep makes several runs, of which what follows could take none: submit it without --then."
        )
    options.after = after or options.after
    typed, cluster = _asked(options)
    return _submit(options, typed, cluster), {"init": str(RunFolder.place(typed.recipe))}


def _asked(options: argparse.Namespace) -> tuple[cli.Command, Cluster]:
    from launchers.cluster import load_cluster  # imported late, like everything slow to import, for --help

    typed = cli.parse(options.stage, options.words)
    changes: dict[str, Any] = {
        "nodes": options.nodes,
        "gpus": 0 if options.cpus_only else options.gpus,
        "cpu_tasks": options.cpus_only,
        **resources(options),
    }
    return typed, load_cluster(options.cluster, changes)


def _submit(options: argparse.Namespace, typed: cli.Command, cluster: Cluster) -> str:
    from gamut.track.run import RunFolder

    RunFolder.require_same(typed.recipe)
    _warn_of_idle(options, typed, cluster)
    if not options.after:  # else the job before may make it
        cli.require_data(typed.recipe)
    return submit(options.stage, options.words, typed.recipe, cluster, options.after)


def _sweep(options: argparse.Namespace) -> int:
    """Submit an array of runs, or show it."""
    from gamut.track.run import RunFolder
    from launchers import sweep

    made = sweep.points(options.stage, options.words, options.sweep)
    if options.local:
        raise RecipeError(f"--sweep is for SLURM; here the {len(made)} runs would be one after another: start them so.")
    options.words = made[0].words
    typed, cluster = _asked(options)
    if options.dry_run:
        print(f"{len(made)} runs of one array; what follows is of the first")
        for point in made:
            print(f"  {point.place}")
        return dry_run(options.stage, options.words, typed, cluster, options.gpu)
    _warn_of_idle(options, typed, cluster)
    for point in made:
        RunFolder.require_same(point.typed.recipe)
        if not options.after:
            cli.require_data(point.typed.recipe)
        require_idle(point.place)
    sweep.submit(options.stage, made, stage_environment(cluster), cluster, options.at_once or len(made), options.after)
    return 0


def _warn_of_idle(options: argparse.Namespace, typed: cli.Command, cluster: Cluster) -> None:
    from launchers.fit import require_fit

    if warning := require_fit(options.stage, typed.name, typed.recipe, cluster):
        print(f"warning: {warning}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("submit", __doc__, allow_abbrev=False)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("words", nargs="*", metavar="RECIPE [key=value ...]", help="the recipe and its overrides")
    parser.add_argument("--nodes", type=int, help="number of nodes")
    parser.add_argument("--gpus", type=int, help="GPUs a node, with one task each")
    parser.add_argument(
        "--gpu", choices=SHEETS, default="h100", help="what a dry run's forecast is for (default: %(default)s)"
    )
    parser.add_argument("--cpus-only", type=int, metavar="TASKS", help="TASKS tasks a node, and no GPU")
    parser.add_argument("--cpus-per-task", type=int)
    parser.add_argument("--after", metavar="JOB", default="", help="start when that job has ended well")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="an array with a run for each value, such as seed=0,1,2; given again for another key: each combination",
    )
    parser.add_argument("--at-once", type=positive, metavar="N", help="of these runs only N at the same time")
    add_resources(parser, dry_run="show what it would take, the plan and the sbatch script; submit nothing")
    parser.add_argument("--full", action="store_true", help="a dry run, with every key of the resolved recipe")
    return parser


def executor(recipe: Recipe, cluster: Cluster) -> Executor:
    """An executor that writes into the run's folder and requests what `cluster` says."""
    from gamut.track.run import RunFolder
    from launchers.executor import executor_in

    made = executor_in(RunFolder.place(recipe).absolute() / "slurm", recipe.run.name.replace("/", "-"), cluster)
    made.failures = cluster.failures
    return made


def stage_environment(cluster: Cluster) -> dict[str, str]:
    """A job with GPUs that it cannot use ends, instead of continuing on the CPU."""
    return {CHOICE: "cuda" if cluster.gpus else "cpu"}


def submit(stage: str, words: list[str], recipe: Recipe, cluster: Cluster, after: str = "") -> str:
    """Submit the job and print where to look; its number. after: a job that must have ended well before.

    Raises RunError where there is no SLURM or it refuses, and where a job for that run waits or runs.
    """
    from gamut.track.run import RunFolder
    from launchers.executor import require_sbatch
    from launchers.job import Job, write_job

    require_sbatch()
    place = RunFolder.place(recipe)
    require_idle(place)
    made = executor(recipe, cluster)
    if after:
        made.follow(after)
    folder = Path(made.folder)
    description = write_job(
        folder / f"job-{uuid.uuid4().hex[:12]}.json", stage, words, stage_environment(cluster), cluster
    )
    try:
        job = made.submit(Job(str(description)))
    except Exception as error:  # submitit raises its own kinds, and the system's
        description.unlink(missing_ok=True)
        raise RunError(f"SLURM did not take the job: {error}") from error
    print(f"job {job.job_id}: {cluster.tasks} tasks on {cluster.nodes} nodes, run {place}")
    print(f"output {folder}/{job.job_id}_0_log.out; `python launchers/jobs.py logs {place}` shows it")
    print(f"stop it with `scancel {job.job_id}`; `python launchers/jobs.py resume {place}` goes on")
    return str(job.job_id)


def require_idle(run: Path) -> None:
    """Raise RunError where a job for this run waits or runs already: two would not go well in one folder."""
    from gamut.runs.slurm import jobs_of, newest_job

    for job in jobs_of([newest_job(run)]).values():
        if job.waits_or_runs:
            where = f" on {job.nodes}" if job.nodes else ""
            raise RunError(
                f"Job {job.number} is in SLURM's queue for the run {run} ({job}{where}). Wait for it, stop it with "
                f"`python launchers/jobs.py cancel {run}`, or give the new run another name (run.name=...)."
            )


def dry_run(stage: str, words: list[str], typed: cli.Command, cluster: Cluster, gpu: str) -> int:
    """Print what it would take on GPUs, let the stage show its plan for the job's ranks, and then the sbatch script.
    Raises, after all that, ShardError where the shards are not there, so that there is no plan to show, and RecipeError
    where some of the GPUs would have nothing to do."""
    from launchers.fit import forecast_lines, require_fit
    from launchers.job import run_stage

    recipe = typed.recipe
    for line in forecast_lines(recipe, cluster, gpu):
        print(line, flush=True)
    try:
        cli.require_sets(recipe)
    except ShardError:
        print(executor(recipe, cluster).script(), flush=True)
        raise
    declared = {"WORLD_SIZE": str(cluster.tasks), "LOCAL_WORLD_SIZE": str(cluster.tasks_per_node)}
    before = {name: os.environ.get(name) for name in declared}
    os.environ.update(declared)
    try:
        status = run_stage(stage, [*words, "--dry-run"])
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if status:
        return status
    print(executor(recipe, cluster).script())
    if warning := require_fit(stage, typed.name, recipe, cluster):
        print(f"warning: {warning}", flush=True)
    return 0


def local_words(stage: str, words: list[str], ranks: int, port: int) -> list[str]:
    """The arguments of Python that run a stage on `ranks` processes of this machine."""
    script = [str(ROOT / f"{COMMANDS[stage][0].replace('.', '/')}.py"), *words]
    if ranks == 1:
        return script
    # DeepSpeed's launcher of this node, not the runner in front of it, which ends with 0 when the launcher was killed.
    chosen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.isdigit()]
    devices = list(map(int, chosen)) if len(chosen) >= ranks else list(range(ranks))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices[:ranks]}).encode()).decode()
    words = ["--world_info", world, "--master_port", str(port), "--log_level", "error", *script]
    return ["-m", "deepspeed.launcher.launch", *words]


def run_here(stage: str, words: list[str], cluster: Cluster) -> int:
    """Replace this process by the stage. Raises RunError where it needs more than this machine."""
    if cluster.nodes > 1:
        raise RunError(f"--local runs on this machine only, not on {cluster.nodes} nodes: leave out one of the two.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja, for deepspeed
    )
    name_launcher()
    become(*local_words(stage, words, cluster.tasks, port))


if __name__ == "__main__":
    sys.exit(main())
