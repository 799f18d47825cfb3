"""What a batch script does when its ranks have ended: which ends send the job back, and which node is left out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gamut.errors import GamutError, MachineError, RunError
from gamut.numbers import EXIT_PREEMPTED
from gamut.runs import slurm as commands
from gamut.train.world import World
from launchers import batch
from launchers.batch import Step, after, ranks_in, run
from launchers.ends import Word, ends_of, note, word_of

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "n1,n2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_RESTART_COUNT": "1",
}
KILLED = ["srun: error: n2: task 2: Killed", "srun: launch/slurm: _step_signal: Terminating StepId=7.0"]
RESET = "srun: error: n1: tasks 0-1: Exited with exit code 1"


class Controller:
    """SLURM's commands, as they were seen to answer a job's owner."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.state, self.excluded, self.enough, self.down = "RUNNING", "(null)", True, "n1 idle\nn2 idle\n"
        for place in (batch, commands):
            monkeypatch.setattr(place, "says", self)
        monkeypatch.setattr(batch, "TRY_SECONDS", 0.0)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = " ".join(words)
        self.asked.append(line)
        if line.startswith("scontrol show job"):
            state = f"JobId=7 JobState={self.state} ExcNodeList={self.excluded}\n" if self.state else ""
            return subprocess.CompletedProcess(words, 0, state, "")
        if line.startswith("scontrol show hostnames"):
            return subprocess.CompletedProcess(words, 0, "n1\nn2\n", "")
        if line.startswith("sinfo"):
            return subprocess.CompletedProcess(words, 0, self.down, "")
        if line.startswith("sbatch --test-only") and not self.enough:
            return subprocess.CompletedProcess(words, 1, "", "allocation failure: not available\n")
        return subprocess.CompletedProcess(words, 0, "", "")

    @property
    def requeued(self) -> bool:
        return "scontrol requeue 7" in self.asked

    @property
    def without(self) -> str:
        found = [line for line in self.asked if line.startswith("scontrol update")]
        return found[-1].partition("ExcNodeList=")[2] if found else ""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Controller:
    return Controller(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    return tmp_path / "run" / "slurm"


def say(folder: Path, *words: Word | None, restart: str = "1", said: str = "why") -> None:
    """The last words of ranks 0, 1, ... of two on each node."""
    for rank, word in enumerate(words):
        if word is not None:
            task = {"SLURM_PROCID": str(rank), "SLURMD_NODENAME": f"n{1 + rank // 2}", "SLURM_RESTART_COUNT": restart}
            note(folder, JOB | task, word, said)


def step(*lines: str) -> Step:
    made = Step()
    for line in lines:
        made.take(line + "\n")
    return made


def test_what_srun_tells(slurm: Controller) -> None:
    seen = step(*KILLED, RESET, "srun: error: n1: task 1: Terminated", "srun: error: Node failure on n2")
    assert (seen.killed, seen.failed, seen.heard, seen.lost) == (["n2"], {0, 1}, {"n1", "n2"}, ["n2"])
    assert ranks_in("0-2,5") == {0, 1, 2, 5}


BEGUN, OTHERS, MISTAKE, SAVED = Word.BEGUN, Word.OTHERS, Word.MISTAKE, Word.PREEMPTED


@pytest.mark.parametrize(
    ("words", "lines", "back", "without"),
    [
        ((OTHERS, OTHERS, BEGUN, OTHERS), (*KILLED, RESET), True, "n2"),  # a rank that the kernel killed
        ((OTHERS, OTHERS, BEGUN, BEGUN), (RESET, KILLED[1]), True, "n2"),  # a node that is never heard of again
        (
            (OTHERS, BEGUN, BEGUN, BEGUN),
            (RESET, KILLED[1], "srun: error: n2: tasks 2-3: Killed"),
            True,
            "",
        ),  # srun killed them: no telling
        ((OTHERS, OTHERS, BEGUN, OTHERS), (RESET, *KILLED[::-1]), True, "n2"),  # the others' end was told before
        (
            (OTHERS, OTHERS, None, None),
            ("srun: error: Task launch for StepId=7.0 failed on node n2: Timeout",),
            True,
            "n2",
        ),
        ((OTHERS, OTHERS, OTHERS, Word.MACHINE), (RESET,), True, "n2"),
        ((Word.MACHINE,) * 4, (RESET,), True, ""),  # all nodes would be none
        (
            (OTHERS, OTHERS, MISTAKE, OTHERS),
            (RESET, KILLED[1]),
            False,
            "",
        ),  # one made a mistake, and the others lost it
        ((BEGUN, BEGUN, MISTAKE, BEGUN), (KILLED[0], KILLED[1]), False, ""),
        (
            (OTHERS, OTHERS, OTHERS, None),
            ("srun: error: n2: task 3: Exited with exit code 1",),
            False,
            "",
        ),  # it could not even begin
        ((SAVED, SAVED, SAVED, SAVED), ("srun: error: n1: task 0: Exited with exit code 75",), True, ""),
        ((SAVED, SAVED, SAVED, BEGUN), (*KILLED,), True, "n2"),
    ],
)
def test_which_ends_send_the_job_back(
    slurm: Controller, folder: Path, words: tuple, lines: tuple[str, ...], back: bool, without: str
) -> None:
    say(folder, *words)
    status = after(folder, 3, step(*lines), 1, JOB)
    assert slurm.requeued == back
    assert slurm.without == without
    assert status == (EXIT_PREEMPTED if back else 1)


def test_a_job_that_is_done_ends(slurm: Controller, folder: Path) -> None:
    say(folder, *[Word.DONE] * 4)
    assert after(folder, 3, Step(), 0, JOB) == 0
    assert slurm.asked == []


@pytest.mark.parametrize("words", [(SAVED,) * 4, (SAVED, Word.DONE, SAVED, SAVED)])
def test_preempted_ranks_end_well_and_their_job_goes_back(slurm: Controller, folder: Path, words: tuple) -> None:
    say(folder, *words)
    assert after(folder, 0, Step(), 0, JOB) == EXIT_PREEMPTED
    assert (slurm.requeued, slurm.without) == (True, "")


def test_a_mistake_of_the_start_before_is_forgiven(slurm: Controller, folder: Path) -> None:
    say(folder, MISTAKE, MISTAKE, MISTAKE, MISTAKE, restart="0")
    after(folder, 3, step(*KILLED), 1, JOB)
    assert slurm.requeued


@pytest.mark.parametrize(
    ("state", "back"), [("RUNNING", True), ("COMPLETING", False), ("CANCELLED", False), ("", True)]
)
@pytest.mark.parametrize("word", [SAVED, OTHERS])
def test_only_if_slurm_has_not_decided(slurm: Controller, folder: Path, state: str, back: bool, word: Word) -> None:
    """`""`: SLURM did not answer."""
    slurm.state = state
    say(folder, word, word, word, word)
    assert after(folder, 3, step(RESET), 1, JOB) == EXIT_PREEMPTED
    assert slurm.requeued == back


def test_slurm_knows_the_node_and_keeps_what_was_left_out(
    slurm: Controller, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.down, slurm.excluded = "n1 allocated\nn2 allocated*\n", "n9"
    say(folder, OTHERS, OTHERS, BEGUN, BEGUN)
    after(folder, 3, step(KILLED[1]), 1, JOB)
    assert slurm.without == "n9,n2"
    said = capsys.readouterr().out
    assert "ranks 2, 3 ended without a word" in said
    assert "start again without n2" in said


def test_a_node_that_is_needed_is_kept(slurm: Controller, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.enough = False
    say(folder, OTHERS, OTHERS, BEGUN, OTHERS)
    assert after(folder, 3, step(*KILLED), 1, JOB) == EXIT_PREEMPTED
    assert (slurm.requeued, slurm.without) == (True, "")
    assert "n2 is not left out: without it SLURM says `allocation failure: not available`" in capsys.readouterr().out


def test_what_is_asked_of_slurm_outlives_the_signal_of_a_requeue(tmp_path: Path, folder: Path) -> None:
    """SLURM ends a job that is sent back: all processes of its batch step get SIGTERM, half a minute before SIGKILL."""
    say(folder, OTHERS, OTHERS, BEGUN, OTHERS)
    (tmp_path / "bin").mkdir()
    asked = tmp_path / "asked"
    script = f"""#!/bin/sh
case "$(basename $0) $*" in
    "scontrol show hostnames"*) echo n1; echo n2;;
    "scontrol show job"*) echo JobState=RUNNING;;
    "scontrol requeue"*) kill -TERM 0;;
    "scontrol update"*) sleep 0.5; echo "$*" >> {asked};;
    "srun"*) echo "{KILLED[0]}" >&2; exit 1;;
esac
"""
    for name in ("scontrol", "sbatch", "sinfo", "srun"):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "launchers.batch", str(folder), "3", "srun", "task"],
        env=os.environ | JOB | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert (done.returncode, done.stderr) == (EXIT_PREEMPTED, ""), done.stdout
    assert asked.read_text() == "update JobId=7 ExcNodeList=n2\n"


def test_failures_in_a_row_are_bounded_and_a_checkpoint_ends_the_row(
    slurm: Controller, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> bool:
        slurm.asked.clear()
        after(folder, 2, step(*KILLED), 1, JOB)
        return slurm.requeued

    say(folder, OTHERS, OTHERS, BEGUN, OTHERS)
    assert [fails(), fails(), fails()] == [True, True, False]
    assert "3 failures in a row without a new checkpoint" in capsys.readouterr().out
    (folder.parent / "checkpoints").mkdir()
    (folder.parent / "checkpoints" / "latest").write_text("step-00000003")
    assert [fails(), fails(), fails()] == [True, True, False]
    round_ = folder.parent / "test-1-seed-0"
    round_.mkdir()
    (round_ / "result.json").write_text("{}")
    assert fails()
    say(folder, SAVED, SAVED, SAVED, SAVED)
    assert [fails() for _ in range(9)] == [True] * 9  # preempted: any number of times


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection reset by peer"), OTHERS),
        (dist.DistBackendError("NCCL error in: ..., unhandled system error"), OTHERS),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), OTHERS),
        (ConnectionResetError(errno.ECONNRESET, "reset"), OTHERS),
        (MachineError("a worker died"), Word.MACHINE),
        (OSError(errno.EIO, "Input/output error"), Word.MACHINE),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), Word.MACHINE),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), MISTAKE),
        (RunError("Step 7 is the 5th in a row whose loss is not finite"), MISTAKE),
        (OSError(errno.ENOSPC, "No space left on device"), MISTAKE),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), MISTAKE),
        (KeyError("label"), MISTAKE),
        (SystemExit(3), MISTAKE),
    ],
)
def test_what_an_error_amounts_to(error: BaseException, word: Word) -> None:
    assert word_of(error) is word


def test_an_error_from_another_is_that_of_the_other() -> None:
    error = ValueError("wrapped")
    error.__cause__ = dist.DistBackendError("gone")
    assert word_of(error) is OTHERS


def test_a_machine_that_fails_has_its_own_status() -> None:
    assert (GamutError.status, MachineError.status) == (2, 71)


def test_ranks_agree_on_whose_failure_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's failure on rank 1 is one on rank 0, too, and a mistake a mistake."""
    world = World(0, 2, 0, 2, torch.device("cpu"), 1)
    for kind in (MachineError, RunError):
        monkeypatch.setattr(World, "gather", lambda self, value, kind=kind: [value, ("broken", kind)])
        with pytest.raises(RunError, match="Rank 1 could not read: broken") as caught:
            world.agree(None, "read")
        assert caught.type is kind


def test_words_of_a_rank_are_read_back(folder: Path) -> None:
    say(folder, OTHERS, None, MISTAKE, said="x" * 5000)
    found = ends_of(folder, "7", 1, 4)
    assert {rank: (end.word, end.node) for rank, end in found.items()} == {0: (OTHERS, "n1"), 2: (MISTAKE, "n2")}
    (folder / "7_2_end.json").write_text('{"restart": 1')
    assert set(ends_of(folder, "7", 1, 4)) == {0}


def test_srun_that_waits_for_a_lost_node_is_ended(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(batch, "PATIENCE", 0.5)
    program = f"import sys, time; print({RESET!r}, file=sys.stderr, flush=True); time.sleep(60)"
    seen, alarm = Step(), threading.Timer(30, lambda: pytest.fail("not ended"))
    alarm.start()
    assert run([sys.executable, "-c", program], seen) == 1
    alarm.cancel()
    assert seen.failed == {0, 1}
    assert RESET in capfd.readouterr().out
    assert run([sys.executable, "-c", "raise SystemExit(9)"], Step()) == 9
