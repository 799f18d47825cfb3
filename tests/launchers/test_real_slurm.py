"""On a real SLURM of two nodes: a job of two tasks trains, is preempted, comes back, and ends as one run."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gamut.runs.slurm import newest_job
from gamut.shards.__main__ import main as shards
from gamut.track.checkpoints import Checkpoints, step_of, verify
from gamut.track.metrics import History
from gamut.track.store import quiet
from launchers.corpus import synthesise

if TYPE_CHECKING:
    from conftest import Slurm

quiet()
from mlflow.tracking import MlflowClient  # noqa: E402

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, STEPS = 40, 120
RECIPE = f"""
defaults: asit
epochs: {EPOCHS}
front: {{mean: null, std: null}}
model: {{dim: 32, depth: 1, heads: 2, table_frames: 48}}
views: {{frames: 48}}
step: {{packs: 4, clips: 4}}
asit: {{hidden: 32, bottleneck: 16, prototypes: 32}}
checkpoint: {{every_epochs: 10}}
track: {{picture_epochs: 0}}
probe: {{every_epochs: 0}}
"""

TUNED = """
defaults: demo
epochs: 2
model: {dim: 32, depth: 1, heads: 2, table_frames: 48}
views: {frames: 48}
"""


@pytest.fixture(scope="module")
def folder(slurm: Slurm) -> Path:
    """A recipe and 48 clips of a second, where a job of the cluster finds them."""
    folder = slurm.folder / "work"
    synthesise(folder / "corpus", 48, seconds=1.0)
    assert shards(["convert", "esc50", str(folder / "corpus"), str(folder / "shards")]) == 0
    assert shards(["stats", str(folder / "shards")]) == 0
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


def submit(slurm: Slurm, folder: Path, name: str, *more: str, partition: str = "low") -> tuple[str, Path, Path]:
    """(job, run folder, output of its first task) of a two-task job."""
    words = ["pretrain", str(folder / "tiny.yaml"), f"data={folder}/shards", f"run.folder={folder}/runs"]
    words += [f"run.name={name}", "run.threads=1", "loader.workers=1", *more]
    asked = ["--nodes", "2", "--cpus-only", "1", "--cpus-per-task", "1", "--partition", partition, "--time", "60"]
    said = slurm.run(sys.executable, str(ROOT / "launchers" / "slurm.py"), *words, *asked)
    job = said.split()[1].rstrip(":")
    return job, folder / "runs" / name, folder / "runs" / name / "slurm" / f"{job}_0_log.out"


def steps(run: Path) -> list[int]:
    return History.read(run / "metrics.jsonl").series("loss")[0]


def shown(folder: Path, name: str) -> tuple[Any, list[Any], list[int]]:
    """(MLflow's one parent run of that name, its attempts in order, the steps of its loss)."""
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("gamut").experiment_id])
    (parent,) = [each for each in runs if each.info.run_name == name]
    children = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    children.sort(key=lambda each: int(each.data.tags["gamut.attempt"]))
    points = [point.step for point in client.get_metric_history(parent.info.run_id, "loss")]
    return parent, children, sorted(points)


def trained(run: Path) -> list[int]:
    """Every step that was ever taken, in the order of taking."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def test_preempted_requeued_finished(slurm: Slurm, folder: Path) -> None:
    job, run, log = submit(slurm, folder, "preempted")
    slurm.wait("the job trains", lambda: len(steps(run)) >= 5, 180, log)
    other = slurm.run("sbatch", "-N2", "-n2", "-p", "high", "-o", "/dev/null", "--wrap", "sleep 1").split()[-1]
    slurm.wait("the other job ends", lambda: slurm.job(other).get("JobState") == "COMPLETED", 120, log)
    assert len(steps(run)) < STEPS  # else it was not preempted but done
    slurm.wait("the job is back", lambda: slurm.job(job).get("Restarts") == "1", 60, log)
    slurm.wait("the job ends", lambda: slurm.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 300, log)
    facts = slurm.job(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "1"), log.read_text()

    history = History.read(run / "metrics.jsonl")
    first, second = history.attempts[1], history.attempts[2]
    assert (first.status, second.status) == ("preempted", "finished")
    assert [attempt.facts["ranks"] for attempt in (first, second)] == [2, 2]
    assert (first.facts["slurm_job_id"], second.facts["slurm_restart_count"]) == (job, "1")
    assert trained(run) == list(range(1, STEPS + 1))  # no step lost, none twice: it was saved where it stopped

    newest = run / "checkpoints" / f"step-{STEPS:08d}"
    assert newest.is_dir()
    assert len(list(newest.glob("rank-*.safetensors"))) == 2
    assert f"step-{STEPS:08d}" in (run / "checkpoints" / "latest").read_text()

    parent, children, points = shown(folder, "preempted")
    assert parent.info.status == "FINISHED"
    assert [each.info.status for each in children] == ["KILLED", "FINISHED"]
    assert points == list(range(1, STEPS + 1))


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, folder: Path) -> None:
    job, run, log = submit(slurm, folder, "cancelled")
    slurm.wait("the job trains", lambda: len(steps(run)) >= 3, 180, log)
    slurm.run("scancel", job)
    slurm.wait("the job is gone", lambda: slurm.job(job)["JobState"] == "CANCELLED", 60, log)
    nodes = ("sinfo", "-h", "-N", "-p", "low", "-o", "%T")
    slurm.wait("its nodes are free", lambda: slurm.run(*nodes).split() == ["idle"] * 2, 60, log)
    facts = slurm.job(job)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")
    assert subprocess.run(["pgrep", "-f", str(run)], capture_output=True, check=False).stdout == b""


def ended(slurm: Slurm, job: str) -> bool:
    return slurm.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")


def came_back(slurm: Slurm, job: str, run: Path, log: Path, seconds: float) -> None:
    """It resumed unaided on the nodes that are left, lost a checkpoint's interval at most, and finished."""
    slurm.wait("the job ends", lambda: ended(slurm, job), seconds, log)
    facts, said = slurm.job(job), log.read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said
    assert facts["NodeList"] == "n[1,3]", said
    assert "(n2)" in said
    if "by SLURM's own decision" not in said:  # which knows that the node is down
        assert f"Sending job {job} back to the queue." in said
        assert f"Job {job} will start again without n2." in said
        assert facts["ExcNodeList"] == "n2"
    again = trained(run)
    assert sorted({*again}) == list(range(1, STEPS + 1))
    assert len(again) - STEPS <= 30  # the steps between two checkpoints
    first, second = History.read(run / "metrics.jsonl").attempts.values()
    assert first.status in (None, "failed")
    assert second.status == "finished"


def test_a_killed_rank_sends_the_job_back(slurm: Slurm, folder: Path) -> None:
    """As the kernel does it that lacks memory."""
    job, run, log = submit(slurm, folder, "killed", partition="spare")
    slurm.wait("the job trains", lambda: len(steps(run)) >= 35, 180, log)
    rank = min(slurm.tasks("n2"))  # its workers are younger
    os.kill(rank, signal.SIGKILL)
    came_back(slurm, job, run, log, 240)


@pytest.mark.long
@pytest.mark.parametrize("timeout", [30, 300])
def test_a_lost_node_sends_the_job_back(slurm: Slurm, folder: Path, timeout: int) -> None:
    """Whether SLURM notices before the ranks' end is told, or long after it."""
    file = slurm.folder / "slurm.conf"
    before = file.read_text()
    file.write_text(before.replace("SlurmdTimeout=30", f"SlurmdTimeout={timeout}"))
    slurm.run("scontrol", "reconfigure")
    try:
        job, run, log = submit(slurm, folder, f"lost-{timeout}", partition="spare")
        slurm.wait("the job trains", lambda: len(steps(run)) >= 35, 180, log)
        slurm.lose("n2")
        came_back(slurm, job, run, log, 900)
    finally:
        file.write_text(before)
        slurm.run("scontrol", "reconfigure")
        slurm.start("n2")
        idle = ("sinfo", "-h", "-n", "n2", "-p", "low", "-o", "%T")
        slurm.wait("the node is back", lambda: slurm.run(*idle).split() == ["idle"], 90)


@pytest.mark.long
def test_five_requeues_in_a_row(slurm: Slurm, folder: Path) -> None:
    job, run, log = submit(slurm, folder, "requeued")
    for count in range(1, 6):
        before = len(steps(run)) if (run / "metrics.jsonl").exists() else 0
        slurm.wait("the job trains", lambda before=before: len(steps(run)) >= before + 4, 180, log)
        slurm.run("scancel", "--signal=USR2", job)  # what SLURM sends ahead of a time limit
        slurm.wait("the job is back", lambda count=count: slurm.job(job)["Restarts"] == str(count), 90, log)
    slurm.wait("the job ends", lambda: slurm.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 300, log)
    assert (slurm.job(job)["JobState"], slurm.job(job)["Restarts"]) == ("COMPLETED", "5"), log.read_text()
    assert trained(run) == list(range(1, STEPS + 1))
    parent, children, points = shown(folder, "requeued")
    assert parent.info.status == "FINISHED"
    assert [each.info.status for each in children] == ["KILLED"] * 5 + ["FINISHED"]
    assert points == list(range(1, STEPS + 1))


def jobs(slurm: Slurm, *words: str) -> str:
    """What `launchers/jobs.py` prints."""
    return slurm.run(sys.executable, str(ROOT / "launchers" / "jobs.py"), *words)


@pytest.mark.long
def test_a_sweep_is_an_array_whose_runs_are_stopped_and_resumed_alone(slurm: Slurm, folder: Path) -> None:
    """One is sent back as by its time limit, the other cancelled and submitted again by its name."""
    words = ["pretrain", str(folder / "tiny.yaml"), f"data={folder}/shards", f"run.folder={folder}/runs"]
    words += ["run.name=swept", "run.threads=1", "loader.workers=1", "--sweep", "seed=0,1"]
    asked = ["--cpus-only", "1", "--cpus-per-task", "1", "--partition", "low", "--time", "60"]
    said = slurm.run(sys.executable, str(ROOT / "launchers" / "slurm.py"), *words, *asked)
    job = said.split()[1].rstrip(":")
    runs = [folder / "runs" / "swept" / f"seed-{seed}" for seed in (0, 1)]
    logs = [run / "slurm" / f"{job}_{seed}_0_log.out" for seed, run in enumerate(runs)]
    slurm.wait("both train", lambda: all(len(steps(run)) >= 4 for run in runs), 180, logs[0])
    slurm.run("scancel", "--signal=USR2", f"{job}_0")
    jobs(slurm, "cancel", str(runs[1]))
    slurm.wait("one is cancelled", lambda: slurm.job(f"{job}_1")["JobState"] == "CANCELLED", 60, logs[1])
    jobs(slurm, "resume", str(runs[1]))
    again = newest_job(runs[1])
    assert again.isdigit()
    for number, log in ((f"{job}_0", logs[0]), (again, runs[1] / "slurm" / f"{again}_0_log.out")):
        slurm.wait(f"{number} ends", lambda number=number: ended(slurm, number), 240, log)
        assert slurm.job(number)["JobState"] == "COMPLETED", log.read_text()
    assert (slurm.job(f"{job}_0")["Restarts"], slurm.job(again)["Restarts"]) == ("1", "0")
    assert trained(runs[0]) == list(range(1, STEPS + 1))
    assert sorted({*trained(runs[1])}) == list(range(1, STEPS + 1))
    rows = slurm.run(sys.executable, "-m", "gamut.runs", "list", str(folder / "runs" / "swept"))
    under = rows[rows.index("under SLURM:") :].splitlines()[2:]
    assert [line.split()[:4] for line in under if line] == [
        ["seed-0", f"{job}_0", "COMPLETED", "finished"],
        ["seed-1", again, "COMPLETED", "finished"],
    ]
    assert "120" in jobs(slurm, "logs", str(runs[0]), "--lines", "100")


@pytest.mark.long
def test_a_chain_runs_to_its_end(slurm: Slurm, folder: Path) -> None:
    """From raw sounds to a fine-tuned model, in one line."""
    cpus = ["--cpus-only", "1", "--cpus-per-task", "1"]
    quick = [f"run.folder={folder}/runs", "run.threads=1", "loader.workers=1"]
    words = ["convert", "esc50", str(folder / "corpus"), str(folder / "made"), "--jobs", "1", "--cpus-per-task", "1"]
    words += ["--then", "pretrain", str(folder / "tiny.yaml"), *quick, "run.name=before", "epochs=2", *cpus]
    words += ["--then", "finetune", str(folder / "tuned.yaml"), *quick, "run.name=behind", *cpus]
    (folder / "tuned.yaml").write_text(TUNED)
    slurm.run(sys.executable, str(ROOT / "launchers" / "slurm.py"), *words)
    last = newest_job(folder / "runs" / "behind")
    log = folder / "runs" / "behind" / "slurm" / f"{last}_0_log.out"
    slurm.wait("the last part ends", lambda: ended(slurm, last), 400, log)
    assert slurm.job(last)["JobState"] == "COMPLETED", log.read_text()
    (result,) = (folder / "runs" / "behind").glob("*/result.json")
    assert json.loads(result.read_bytes())["clips"] > 0


@pytest.mark.long
def test_a_conversion_that_is_stopped_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    """Its job is sent back at the signal, in the middle of a piece, and makes what one command makes."""
    synthesise(tmp_path / "corpus", 600, seconds=2.0)
    one = ["convert", "esc50", str(tmp_path / "corpus"), str(tmp_path / "alone"), "--clips-per-shard", "50"]
    assert shards(one) == 0
    words = ["convert", "esc50", str(tmp_path / "corpus"), str(tmp_path / "shards"), "--clips-per-shard", "50"]
    alone = ["--jobs", "1", "--cpus-per-task", "1"]
    said = slurm.run(sys.executable, str(ROOT / "launchers" / "slurm.py"), *words, *alone)
    job, last = re.findall(r"jobs, (\d+), write|job (\d+) then", said)
    job, last = job[0], last[1]
    log = tmp_path / "shards" / "index" / "slurm" / f"{job}_0_log.out"
    slurm.wait("it has begun", lambda: any((tmp_path / "shards").rglob("*.tar*")), 90, log)
    slurm.run("scancel", "--signal=USR2", job)
    slurm.wait("it is back", lambda: slurm.job(job).get("Restarts") == "1", 60, log)
    slurm.wait("the last job ends", lambda: ended(slurm, last), 240, log)
    assert slurm.job(last)["JobState"] == "COMPLETED"
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("*.tar")} for name in ("alone", "shards")]
    assert len(made[0]) == 12
    assert made[0] == made[1]


@pytest.mark.long
def test_an_array_makes_the_index_of_one_command(slurm: Slurm, tmp_path: Path) -> None:
    """And its statistics, though a job of it is sent away and started again."""
    synthesise(tmp_path / "corpus", 60, seconds=2.0)
    made, tars = tmp_path / "made", tmp_path / "tars"
    words = ["convert", "esc50", str(tmp_path / "corpus"), str(made), "--clips-per-shard", "10", "--workers", "1"]
    assert shards(words) == 0
    tars.mkdir()
    for tar in made.glob("*.tar"):
        tar.rename(tars / tar.name)
    assert shards(["index", str(tars), "--out", str(tmp_path / "one"), "--workers", "1"]) == 0
    words = ["index", str(tars), "--out", str(tmp_path / "many"), "--jobs", "3", "--cpus-per-task", "1"]
    said = slurm.run(sys.executable, str(ROOT / "launchers" / "slurm.py"), *words)
    (array,), (last,) = re.findall(r"3 jobs, (\d+), read 6 tars", said), re.findall(r"job (\d+) then", said)
    log = tmp_path / "many" / "index" / "slurm" / f"{array}_0_log.out"
    slurm.wait("a job of the array runs", lambda: slurm.job(f"{array}_0")["JobState"] != "PENDING", 90, log)
    slurm.run("scontrol", "requeue", f"{array}_0", check=False)  # it may have ended by now
    slurm.wait("the last job ends", lambda: ended(slurm, last), 240, log)
    assert slurm.job(last)["JobState"] == "COMPLETED", log.read_text()
    one, many = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "index").iterdir() if path.is_file()}
        for name in ("one", "many")
    )
    assert {name: many[name] for name in one if name != "lock"} == {name: one[name] for name in one if name != "lock"}


@pytest.mark.long
def test_a_job_that_is_killed_again_and_again_ends_bit_for_bit(slurm: Slurm, folder: Path) -> None:
    """A rank, or its whole step by SLURM, right after each of seven checkpoints."""
    quick = ["epochs=80", "checkpoint.every_epochs=2", "checkpoint.least_minutes=0"]
    job, run, log = submit(slurm, folder, "stormy", *quick, partition="spare")
    checkpoints, chosen = Checkpoints(run / "checkpoints"), random.Random(17)
    for count in range(7):
        at = steps_at(checkpoints)
        slurm.wait("a checkpoint is new", lambda at=at: steps_at(checkpoints) > at, 240, log)
        if chosen.random() < 0.5:
            slurm.run("scancel", "--signal=KILL", f"{job}.0")
        else:
            nodes = slurm.run("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()
            os.kill(min(slurm.tasks(chosen.choice(nodes))), signal.SIGKILL)
        slurm.wait("the job is back", lambda count=count: slurm.job(job)["Restarts"] == str(count + 1), 120, log)
    slurm.wait("the job ends", lambda: ended(slurm, job), 400, log)
    assert (slurm.job(job)["JobState"], slurm.job(job)["Restarts"]) == ("COMPLETED", "7"), log.read_text()
    job, quiet, log = submit(slurm, folder, "quiet", *quick, partition="spare")
    slurm.wait("the other ends", lambda: ended(slurm, job), 240, log)
    ends = [verify(Checkpoints(place / "checkpoints").newest())["files"] for place in (quiet, run)]
    assert ends[0] == ends[1]


def steps_at(checkpoints: Checkpoints) -> int:
    """Of the newest checkpoint, 0 where there is none."""
    return max(map(step_of, checkpoints.saved()), default=0)
