"""A task of a job: its rank, its ending, and what its pickle may hold."""

from __future__ import annotations

import os
import pickle
import pickletools
import signal
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
from submitit.core.utils import DelayedSubmission

from gamut.errors import MachineError, RunError
from gamut.numbers import EXIT_PREEMPTED
from launchers import job
from launchers.cluster import Cluster
from launchers.ends import Word, ends_of
from launchers.executor import executor_in
from launchers.job import STAGES, Job, rank_environment, run, write_job
from launchers.task import read_job

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURM_JOB_NODELIST": "gpu[03-05]",
}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch):
    """This process as rank 0 of one of a job; its environment and signal handlers come back afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    environment = dict(os.environ)
    for key, value in (TASK | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}).items():
        monkeypatch.setenv(key, value)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


def test_rank_environment() -> None:
    found = rank_environment(TASK)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("3", "5", "1", "2")
    assert found["MASTER_ADDR"] == "gpu03"
    assert rank_environment(TASK | {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"})["MASTER_ADDR"] == "10.0.0.7"
    assert rank_environment(TASK | {"SLURM_NODEID": "2", "SLURM_LOCALID": "0"})["LOCAL_WORLD_SIZE"] == "1"
    assert rank_environment(TASK | {"SLURM_JOB_NODELIST": "a1,b[2-3]"})["MASTER_ADDR"] == "a1"
    assert rank_environment(TASK | {"SLURM_JOB_NODELIST": "gpu[7,9-12],b1"})["MASTER_ADDR"] == "gpu7"


def test_every_restart_meets_elsewhere_and_all_ranks_at_one_place() -> None:
    ports = [rank_environment(TASK | {"SLURM_RESTART_COUNT": str(count)})["MASTER_PORT"] for count in range(20)]
    assert len(set(ports)) == 20
    assert all(1024 < int(port) < 32768 for port in ports)
    for change in ({}, {"SLURM_PROCID": "0"}, {"SLURM_NODEID": "0"}):
        assert rank_environment(TASK | change)["MASTER_PORT"] == ports[0]


@pytest.mark.parametrize("key", ["SLURM_PROCID", "SLURM_TASKS_PER_NODE", "SLURM_JOB_ID"])
def test_outside_of_srun(key: str) -> None:
    with pytest.raises(RunError, match=f"srun.*{key}"):
        rank_environment({name: value for name, value in TASK.items() if name != key})


def test_the_pickle_holds_a_class_and_a_path(tmp_path: Path) -> None:
    path = tmp_path / "job.pkl"
    DelayedSubmission(Job("/runs/x/job.json")).dump(path)
    strings, names = [], []
    for operation, argument, _ in pickletools.genops(path.read_bytes()):
        if operation.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            strings.append(argument)
        if operation.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        assert operation.name != "GLOBAL"
    assert set(names) == {"submitit.core.utils.DelayedSubmission", "launchers.job.Job"}
    assert "/runs/x/job.json" in strings


def stage(monkeypatch: pytest.MonkeyPatch, body) -> None:
    monkeypatch.setattr(job, "run_stage", body)


def test_a_stage_runs_as_its_rank(task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def main(name: str, argv: list[str]) -> int:
        seen.update(name=name, argv=argv, rank=os.environ["RANK"], device=os.environ["DS_ACCELERATOR"])
        return 0

    stage(monkeypatch, main)
    path = write_job(tmp_path / "slurm" / "job.json", "pretrain", ["asit_tiny", "seed=3"], {"DS_ACCELERATOR": "cpu"})
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert Job(str(path))() == 0
    assert seen == {"name": "pretrain", "argv": ["asit_tiny", "seed=3"], "rank": "0", "device": "cpu"}


@pytest.mark.parametrize("status", [1, 2])
def test_a_stage_that_fails_fails_the_job(
    task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    stage(monkeypatch, lambda name, argv: status)
    with pytest.raises(RunError, match=f"pretrain asit_tiny ended with status {status}"):
        run(write_job(tmp_path / "job.json", "pretrain", ["asit_tiny"], {}))


def test_only_our_stages(task: None, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="os"):
        run(write_job(tmp_path / "job.json", "os", [], {}))


@pytest.mark.parametrize("how", ["status", "signal"])
def test_a_preempted_rank_says_so_and_leaves_the_rest_to_the_batch_script(
    task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """By the stage's own status, or by a signal that comes when nothing is trained yet."""

    def main(name: str, argv: list[str]) -> int:
        if how == "signal":
            os.kill(os.getpid(), signal.SIGUSR2)
        return EXIT_PREEMPTED

    def ended(status: int) -> None:
        raise SystemExit(status)

    stage(monkeypatch, main)
    monkeypatch.setattr(os, "_exit", ended)
    with pytest.raises(SystemExit) as caught:
        run(write_job(tmp_path / "job.json", "pretrain", ["asit_tiny"], {}))
    assert caught.value.code == 0  # else SLURM would end the others
    assert ends_of(tmp_path, "4711", 0, 1)[0].word is Word.PREEMPTED


def test_an_error_is_noted_before_the_rank_ends(task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(name: str, argv: list[str]) -> int:
        assert ends_of(tmp_path, "4711", 0, 1)[0].word is Word.BEGUN
        raise KeyError("label")

    for body, raised, word in (
        (breaks, KeyError, Word.MISTAKE),
        (lambda name, argv: MachineError.status, RunError, Word.MACHINE),
        (lambda name, argv: 2, RunError, Word.MISTAKE),
    ):
        stage(monkeypatch, body)
        with pytest.raises(raised):
            run(write_job(tmp_path / "job.json", "pretrain", ["asit_tiny"], {}))
        assert ends_of(tmp_path, "4711", 0, 1)[0].word is word
    stage(monkeypatch, lambda name, argv: 0)
    assert run(write_job(tmp_path / "job.json", "pretrain", ["asit_tiny"], {})) == 0
    assert ends_of(tmp_path, "4711", 0, 1)[0].word is Word.DONE


def test_status_of_a_preempted_stage() -> None:
    assert os.EX_TEMPFAIL == EXIT_PREEMPTED


def test_every_stage_is_there_and_lists_its_recipes() -> None:
    for name in STAGES:
        assert job.run_stage(name, []) == 2


class Tampered:
    """What runs code where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def started(folder: Path) -> subprocess.CompletedProcess[str]:
    """A task as srun starts it, in a process that knows the repository only by PYTHONPATH."""
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-m", "launchers.task", str(folder)],
        env=os.environ | TASK | {"PYTHONPATH": root, "SUBMITIT_EXECUTOR": "slurm"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_task_reads_a_job_of_ours_and_runs_no_code_of_a_pickle(tmp_path: Path) -> None:
    path, mark = tmp_path / "4711_submitted.pkl", tmp_path / "tampered"
    DelayedSubmission(Job("somewhere.json")).dump(path)
    assert read_job(path).function.path == "somewhere.json"
    assert "No such file or directory: 'somewhere.json'" in started(tmp_path).stderr
    function = DelayedSubmission(Job("x"))
    function.function = Tampered(mark)
    for payload in (Tampered(mark), function, DelayedSubmission(os.system, "true"), DelayedSubmission(lambda: 1)):
        with open(path, "wb") as file:
            cloudpickle.dump(payload, file)
        with pytest.raises(RunError, match=r"4711_submitted\.pkl is no job of ours and is not run \(it names"):
            read_job(path)
    path.write_bytes(pickle.dumps(Tampered(mark), 0))
    done = started(tmp_path)
    assert done.returncode
    assert "is no job of ours and is not run (it names posix.system" in done.stderr
    assert not mark.exists()
    for damaged in (b"", b"\x80", b"not a pickle"):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="is no job of ours"):
            read_job(path)


def test_a_job_that_others_can_have_written_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "4711_submitted.pkl"
    DelayedSubmission(Job("somewhere.json")).dump(path)
    tmp_path.chmod(0o777)
    with pytest.raises(RunError, match="others may write into it"):
        read_job(path)
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(RunError, match="belongs to another user"):
        read_job(path)


def test_submitted_scripts_start_our_reader(tmp_path: Path) -> None:
    assert f"-m launchers.task {tmp_path}" in executor_in(tmp_path, "x", Cluster()).script()
