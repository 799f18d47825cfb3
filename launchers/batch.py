"""What the batch script of a job is: the ranks by srun, and then whether the job ends or goes back to the queue.

    python -m launchers.batch FOLDER FAILURES srun ...

FOLDER is where the job's files are; `%a` in it stands for the job's number in an array, as in sbatch's own names.

It goes back when all ranks were preempted; and, FAILURES times in a row without a new checkpoint between, when it was
not a rank's own mistake that ended it: a node was lost, a rank was killed, a network failed. The node is then named and
left out (`scontrol update ExcNodeList`, which SLURM allows a job's owner while it is pending), unless too few are left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gamut.files import write_text
from gamut.numbers import EXIT_PREEMPTED
from gamut.runs.slurm import SCRIPT, facts_of, hosts, own_job, says
from gamut.track.checkpoints import LATEST
from gamut.track.run import RESULT
from launchers.ends import End, Word, ends_of, restarts
from launchers.job import tasks_of_nodes

PATIENCE = 120.0  # seconds that srun may take to end the other tasks; of a lost node it waits for an answer
TRIES, TRY_SECONDS = 5, 5.0  # of a controller that is restarting
ENDED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.*)")
ENDING = re.compile(r"srun: .*(?:Terminating StepId|Job step aborted)")
LOST = re.compile(r"srun: error: .*(?:Node failure on|failed on node) ([\w.\[\],-]+)")


@dataclass
class Step:
    """What srun tells of the tasks, in the order of its telling."""

    killed: list[str] = field(default_factory=list)  # nodes of tasks that a signal ended before srun ended any
    failed: set[int] = field(default_factory=set)  # tasks that exited with a status of their own
    heard: set[str] = field(default_factory=set)  # nodes of which a task's end was told
    lost: list[str] = field(default_factory=list)  # nodes, as SLURM says
    ended_at: float | None = None  # when the first task ended badly
    ending: bool = False  # srun ends the other tasks

    def take(self, line: str) -> None:
        """Note what a line of srun's means."""
        if ENDING.match(line):
            self.ending = True
        elif found := LOST.match(line):
            self.lost += hosts(found[1])
        elif found := ENDED.match(line):
            self.ended_at = self.ended_at or time.monotonic()
            self.heard |= {*hosts(found[1])}
            if found[3].startswith("Exited with exit code"):
                self.failed |= ranks_in(found[2])
            elif not self.ending:
                self.killed += hosts(found[1])


def main(argv: Sequence[str] | None = None) -> int:
    folder, failures, *srun = sys.argv[1:] if argv is None else argv
    for number in (signal.SIGTERM, signal.SIGUSR2):  # for the ranks; srun itself is not to inherit deafness
        signal.signal(number, lambda number, frame: None)
    step = Step()
    status = run(srun, step)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # a requeue sends it to this script, and to what it asks SLURM by
        signal.signal(number, signal.SIG_IGN)
    place = folder.replace("%a", os.environ.get("SLURM_ARRAY_TASK_ID", ""))
    return after(Path(place), int(failures), step, status, os.environ)


def run(srun: Sequence[str], step: Step) -> int:
    """Run srun, with what it says passed on and noted; its exit status, 1 where it had to be killed."""
    process = subprocess.Popen(srun, stderr=subprocess.PIPE, text=True, errors="replace")
    assert process.stderr is not None

    def read(lines: Sequence[str]) -> None:
        for line in lines:
            print(line, end="", flush=True)
            step.take(line)

    reader = threading.Thread(target=read, args=[process.stderr], daemon=True)
    reader.start()
    while process.poll() is None:
        if step.ended_at is not None and time.monotonic() > step.ended_at + PATIENCE:
            print(f"srun has waited {PATIENCE:.0f} s for the other tasks to end; it is ended.", flush=True)
            process.kill()
        time.sleep(0.2)
    reader.join(5.0)
    return process.returncode if process.returncode >= 0 else 1


def after(folder: Path, failures: int, step: Step, status: int, slurm: Mapping[str, str]) -> int:
    """What the job's ranks ended for, said and acted on; the exit status of the job unless SLURM ends it here."""
    job = own_job(slurm)
    nodes = hosts(slurm["SLURM_JOB_NODELIST"])
    counts = tasks_of_nodes(slurm["SLURM_TASKS_PER_NODE"])
    places = [node for node, count in zip(nodes, counts, strict=True) for _ in range(count)]  # of ranks
    ends = ends_of(folder, job, restarts(slurm), len(places))
    if status == 0 and not any(end.word is Word.PREEMPTED for end in ends.values()):
        return 0
    mistaken = [rank for rank, end in ends.items() if end.word is Word.MISTAKE]
    mistaken = mistaken or [rank for rank in step.failed if rank not in ends]  # it failed before its stage began
    if mistaken:
        logs = ", ".join(str(folder / f"{job}_{rank}_log.out") for rank in mistaken[:3])
        print(f"Job {job} ends: {ranks(mistaken)} ended with an error of its own, told in {logs}.", flush=True)
        return status
    preempted = status == 0 or (len(ends) == len(places) and all(end.word is Word.PREEMPTED for end in ends.values()))
    bad = [] if preempted else blamed(step, ends, places)
    if not preempted:
        print(f"Job {job} has failed: {told(ends, places)}{_named(bad)}.", flush=True)
    state = state_of(job)
    if state not in (None, "RUNNING"):  # a cancelled job must not be requeued, and SLURM may have requeued it itself
        print(f"Job {job} is {state} by SLURM's own decision.", flush=True)
        if state in ("PENDING", "COMPLETING"):  # requeued by SLURM, or cancelled, and then it refuses
            leave_out(job, bad, spared(folder, job, bad))
        return EXIT_PREEMPTED
    why = "Saved."
    if not preempted:
        count = counted(folder, job)
        if count > failures:
            print(
                f"Job {job} is not sent back to the queue: that makes {count} failures in a row without a new "
                f"checkpoint, and the cluster's `failures` allows {failures}. Submit it again to go on.",
                flush=True,
            )
            return status
        why = f"Failure {count} of {failures} without a new checkpoint."
    without = spared(folder, job, bad)
    print(f"{why} Sending job {job} back to the queue.", flush=True)
    done = says("scontrol", "requeue", job)
    if done.returncode:
        print(f"Job {job} could not be requeued ({done.stderr.strip()}); submit it again to go on.", flush=True)
        return status or 1
    leave_out(job, bad, without)
    return EXIT_PREEMPTED


def blamed(step: Step, ends: Mapping[int, End], places: Sequence[str]) -> list[str]:
    """The nodes that the failure came from, as far as it can be told; empty where that would be all of them.

    Nodes that SLURM calls lost or does not reach; else those that a rank says it of; else those that were never heard
    of while srun ended the tasks; else the first whose task was killed; else, where others say that they lost a rank,
    the one node that has ranks without a word.
    """
    silent = [
        node
        for node in dict.fromkeys(places)
        if step.heard and node not in step.heard and Word.BEGUN in _words(ends, places, node)
    ]
    said = [end.node for end in ends.values() if end.word is Word.MACHINE]
    mute = [node for node in dict.fromkeys(places) if Word.BEGUN in _words(ends, places, node)]
    alone = mute if len(mute) == 1 and any(end.word is Word.OTHERS for end in ends.values()) else []
    for found in (step.lost + unreachable(places), said, silent, step.killed[:1], alone):
        if found:
            return sorted({*found}) if {*found} < {*places} or len({*places}) == 1 else []
    return []


def _words(ends: Mapping[int, End], places: Sequence[str], node: str) -> set[Word]:
    return {ends[rank].word if rank in ends else Word.BEGUN for rank, place in enumerate(places) if place == node}


def unreachable(places: Sequence[str]) -> list[str]:
    """Those of the job's nodes that SLURM does not reach, or has taken out."""
    lines = says("sinfo", "-h", "-N", "-o", "%N %T", "-n", ",".join(dict.fromkeys(places))).stdout.splitlines()
    states = dict(line.split() for line in lines if len(line.split()) == 2)
    return [node for node, state in states.items() if state.endswith("*") or state.startswith(("down", "fail"))]


def told(ends: Mapping[int, End], places: Sequence[str]) -> str:
    """What the ranks say of their end, in words."""
    silent = [rank for rank in range(len(places)) if rank not in ends or ends[rank].word is Word.BEGUN]
    machine = [f"rank {rank}: {end.said}" for rank, end in ends.items() if end.word is Word.MACHINE]
    if machine:
        return "; ".join(machine[:3])
    if silent:
        return f"{ranks(silent)} ended without a word, as one does that is killed or whose node is lost"
    return "the ranks lost each other"


def ranks(some: Sequence[int]) -> str:
    """`rank 3`, `ranks 1, 2 and more`"""
    more = " and more" if len(some) > 4 else ""
    return f"rank{'s' * (len(some) > 1)} {', '.join(map(str, some[:4]))}{more}"


def ranks_in(text: str) -> set[int]:
    """`0-2,5` -> {0, 1, 2, 5}"""
    pairs = (part.partition("-") for part in text.split(","))
    return {rank for first, _, last in pairs for rank in range(int(first), int(last or first) + 1)}


def _named(bad: Sequence[str]) -> str:
    return f" ({', '.join(bad)})" if bad else ""


def state_of(job: str) -> str | None:
    """JobState, None where SLURM does not answer."""
    for attempt in range(TRIES):
        if (state := facts_of(job).get("JobState")) is not None:
            return state
        if attempt + 1 < TRIES:
            time.sleep(TRY_SECONDS)
    return None


def counted(folder: Path, job: str) -> int:
    """How many failures in a row this is, of those between which no checkpoint and no result came; it is noted."""
    path, run = folder / f"{job}_failures.json", folder.parent
    files = [file for place in (run, *run.glob("*/")) for file in (place / "checkpoints" / LATEST, place / RESULT)]
    reached = {str(file.relative_to(run)): file.read_text(errors="replace") for file in files if file.is_file()}
    try:
        before = json.loads(path.read_bytes())
        count = int(before["count"]) + 1 if before["reached"] == reached else 1
    except (OSError, ValueError, KeyError, TypeError):
        count = 1
    write_text(path, json.dumps({"count": count, "reached": reached}))
    return count


def spared(folder: Path, job: str, bad: Sequence[str]) -> list[str]:
    """The nodes that the job is to start without: these and those it leaves out already; [] where it could not start.

    Asked before the job is sent back: this script does not live long after that.
    """
    if not bad:
        return []
    before = facts_of(job).get("ExcNodeList", "(null)")
    nodes = list(dict.fromkeys([*([] if before == "(null)" else hosts(before)), *bad]))
    script = folder / f"{job}{SCRIPT}"
    enough = says("sbatch", "--test-only", f"--exclude={','.join(nodes)}", str(script))
    if enough.returncode:
        print(f"{','.join(bad)} is not left out: without it SLURM says `{enough.stderr.strip()}`.", flush=True)
        return []
    return nodes


def leave_out(job: str, bad: Sequence[str], nodes: Sequence[str]) -> None:
    """Have the job, which is pending, start without these nodes, `bad` among them; say so, or why it cannot."""
    if not nodes:
        return
    done = says("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(nodes)}")
    if done.returncode:
        print(f"{','.join(bad)} is not left out: SLURM says `{done.stderr.strip()}`.", flush=True)
    else:
        print(f"Job {job} will start again without {','.join(bad)}.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
