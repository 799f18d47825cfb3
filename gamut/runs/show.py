"""Runs, checkpoints and caches as tables, and one of them in full."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gamut.errors import CheckpointError, GamutError
from gamut.features.folder import ABOUT, CACHE
from gamut.progress import clock_time
from gamut.runs.find import Found, checkpoints_of, look, run_at
from gamut.runs.slurm import Job, age_of, jobs_of, newest_job, own_job
from gamut.runs.standing import Standing, recent, size_of, standing
from gamut.runs.words import footnote, marked, number, of_bytes, of_score, since, table
from gamut.track.checkpoints import KEPT, LATEST, epochs_at
from gamut.track.run import METRICS, RunFolder

HEAD = ("run", "stage", "state", "epoch", "step", "score", "size", "age")
JOBS = ("run", "job", "SLURM says", "state", "step", "loss", "clips/s", "left", "nodes", "restarts")


def listed(folder: Path) -> tuple[Found, list[Standing]]:
    """What is in a folder, and how each of its runs stands."""
    found = look(folder)
    return found, [standing(run, rounds) for run, rounds in found.groups]


def print_list(folder: Path, found: Found, runs: list[Standing]) -> None:
    if runs:
        print(table(HEAD, [_row(folder, one) for one in runs]))
        if told := footnote(sum(one.seen for one in runs)):
            print(told)
    if jobs := _jobs(folder, found, runs):
        print(f"\nunder SLURM:\n{table(JOBS, jobs)}" if runs else f"under SLURM:\n{table(JOBS, jobs)}")
    for kind, paths in (
        ("checkpoints", found.checkpoints),
        ("feature caches", found.caches),
        ("exported weights", found.exported),
    ):
        if paths:
            print(f"\n{kind}:" if runs or kind != "checkpoints" else f"{kind}:")
            print(table(("folder", "what", "size", "age"), [_other(folder, path) for path in paths]))
    if found.empty and not found.submitted:
        print(f"There are no runs, checkpoints or caches of features in {folder}.")
    for one in runs:
        for problem in one.problems:
            print(f"damaged: {problem}")
    for path in found.closed:
        print(f"not looked into, since it cannot be read: {path}")


def job_number(one: Standing) -> str:
    """Of the SLURM job that was submitted for a run, or that its last attempt ran in; empty where there is none."""
    slurm = {name.upper(): str(value) for name, value in one.facts.items()}
    return max(newest_job(one.path), own_job(slurm) if "SLURM_JOB_ID" in slurm else "", key=age_of)


def _jobs(folder: Path, found: Found, runs: list[Standing]) -> list[list[str]]:
    """A row for each run that SLURM works on or has worked on."""
    here = {one.path: one for one in runs}
    here |= {path: Standing(path, "not begun") for path in found.submitted if path not in here}
    numbers = {path: job_number(one) for path, one in sorted(here.items())}
    jobs = jobs_of({*numbers.values()})
    return [_job_row(folder, here[path], number, jobs.get(number)) for path, number in numbers.items() if number]


def _job_row(folder: Path, one: Standing, number: str, job: Job | None) -> list[str]:
    nodes, restarts = str(one.facts.get("slurm_job_nodelist", "")), str(one.facts.get("slurm_restart_count", 0))
    if job is not None:
        nodes = job.nodes or ("" if job.state == "PENDING" else nodes)
        restarts = restarts if job.restarts is None else str(job.restarts)
    loss = one.scores.get("loss", math.nan)
    numbers = [f"{value:.4g}" if not math.isnan(value) else "" for value in (loss, one.rate)]
    left = clock_time(one.left) if one.state == "running" and not math.isnan(one.left) else ""
    told = str(job) if job is not None else "nothing any more"
    return [_name(folder, one.path), number, told, one.state, str(one.step or ""), *numbers, left, nodes, restarts]


def as_json(one: Standing) -> dict[str, Any]:
    """For programs; what has no value is null."""
    content = asdict(one) | {"stage": one.stage, "score": one.score, "path": str(one.path), "job": job_number(one)}
    content["rounds"] = [as_json(each) for each in one.rounds]
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in content.items()}


def _row(folder: Path, one: Standing) -> list[str]:
    epoch = f"{one.epoch} of {one.epochs}" if one.epochs else str(one.epoch or "")
    if one.rounds:
        epoch += f", {len(one.rounds)} round{'s' * (len(one.rounds) > 1)}"
    return [_name(folder, one.path), one.stage, one.state, epoch, str(one.step), _scored(one), *_size_and_age(one)]


def _scored(one: Standing) -> str:
    score = of_score(one.metric, one.score)
    if score and not math.isnan(one.deviation):
        score += f" ± {number(one.metric, one.deviation)}"
    return marked(score, one.seen)


def _size_and_age(one: Standing) -> list[str]:
    return [of_bytes(one.size), since(one.touched)]


def _other(folder: Path, path: Path) -> list[str]:
    if (path / ABOUT).exists():
        finished = (path / CACHE).exists()
        what = f"{_cache_name(path)}{'' if finished else ', not finished'}"
    else:
        at = epochs_at(path)
        what = f"step {at[0]}, after epoch {at[1]:.4g}" if at else "weights"
    return [_name(folder, path), what, of_bytes(size_of(path)), since(path.stat().st_mtime)]


def _cache_name(path: Path) -> str:
    try:
        about = json.loads((path / ABOUT).read_bytes())
        return f"{about['name']}, {about['clips']:,} clips, {about['dtype']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "about.json is damaged"


def _name(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder)) if path != folder else str(path)


def print_run(place: Path) -> None:
    """Everything about one run. Raises RunError where there is none."""
    run, rounds = run_at(place)
    one = standing(run, rounds)
    print(f"{run}: {one.stage}, {one.state}{f' ({one.holder})' if one.holder else ''}")
    recipe = one.recipe
    for key in ("data", "features", "encoder", "init"):
        if recipe.get(key):
            print(f"  {key}: {recipe[key]}")
    epochs = f"epoch {one.epoch} of {one.epochs}, " if one.epoch else ""
    print(f"  {epochs}step {one.step}; {of_bytes(one.size)}, last written {since(one.touched)} ago")
    if score := _scored(one):
        ends = " to ".join(number(one.metric, end) for end in one.interval)
        print(f"  {score}{f', 95 % interval {ends}' if ends else ''}")
    for each in one.rounds:
        print(f"  round {each.path.name}: {each.state}, {_scored(each) or f'step {each.step}'}")
    for part in one.rounds or (one,):
        _print_part(part, indent="    " if one.rounds else "  ", name=bool(one.rounds))
    if one.scores:
        print(table(("  score", ""), [(f"  {name}", number(name, value)) for name, value in one.scores.items()]))
    if told := footnote(one.seen):
        print(f"  {told}")
    for problem in one.problems:
        print(f"  damaged: {problem}")


def _print_part(one: Standing, indent: str, name: bool) -> None:
    """Attempts, checkpoints and the weights that a run or round stands for."""
    if name:
        print(f"  {one.path.name}:")
    history, _ = recent(one.path / METRICS, most=None)
    for attempt in history.attempts.values():
        facts = attempt.facts
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(attempt.started))
        where = ", ".join(f"{key} {facts[key]}" for key in ("host", "ranks", "device", "git") if key in facts)
        ended = attempt.status or ("running" if one.state == "running" else "ended without a word")
        print(f"{indent}attempt {attempt.number}: {began}, {where}; {ended}")
    run = RunFolder(one.path)
    try:
        kept = set(run.checkpoints.noted())
    except CheckpointError as error:
        print(f"{indent}damaged: {error}")
        kept = set()
    latest = run.checkpoints.folder / LATEST
    newest = latest.read_text(errors="replace").strip() if latest.is_file() else ""
    for path in checkpoints_of(one.path):
        at = epochs_at(path)
        marks = [f"after epoch {at[1]:.4g}" if at else "no readable state", of_bytes(size_of(path))]
        marks += ["latest"] * (path.name == newest) + [f"kept ({KEPT})"] * (path.name in kept)
        print(f"{indent}{path.name}: {', '.join(marks)}")
    print(f"{indent}weights: {weights_of(one.path)}")


def weights_of(place: Path) -> str:
    """Which weights a place stands for, or why it has none, in words."""
    from gamut.models.find import find_weights, told  # here: it takes long to import

    try:
        return told(find_weights(place))
    except GamutError as error:
        return str(error)


def print_place(place: Path) -> None:
    """A run, a checkpoint, a cache or exported weights, in full. Raises RunError where it is none."""
    found = look(place)
    if place in found.caches:
        print(table(("folder", "what", "size", "age"), [_other(place, place)]))
        print(f"More: python -m gamut.features info {place}")
    elif place in found.checkpoints + found.exported:
        print(table(("folder", "what", "size", "age"), [_other(place, place)]))
        print(f"weights: {weights_of(place)}")
    else:
        print_run(place)
