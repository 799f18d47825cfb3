"""A run that is killed hundreds of times, of itself, and ends with the weights of one that never was: `make soak`.

Two ranks with a loader worker each pretrain a tiny model on a CPU. Time and again a rank, the launcher or a worker gets
SIGKILL: anywhere in a step, while it starts, in the middle of a save. Between kills the disk is slow for a while, or
full, or the clock goes back. Whatever ends is started again, as a scheduler would, and nothing else is done. Most
attempts are forked from a process with all imports done, so that hundreds take minutes; some go through the real
launcher.

Ends with 1 where anything but a kill or a full disk ended an attempt, where a process outlived its run, or where one
bit of the last checkpoint (weights, teacher, centres, optimiser, random state, counters) or of any step's loss differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gamut.processes import Process
from gamut.track.checkpoints import SAVING, Checkpoints, verify
from gamut.track.metrics import History
from launchers.corpus import synthesise
from tests.soak.faults import Faults
from tests.soak.steps import Steps

ROOT = Path(__file__).resolve().parents[2]
RANKS, CLIPS, STEPS_AN_EPOCH = 2, 48, 6
STEPS_A_KILL = 4
SPARE = 4  # epochs: steps are fast, and the last kill may wait for a save
RECIPE = """
defaults: asit
front: {mean: -6.0, std: 5.0}
model: {dim: 32, depth: 1, heads: 2, table_frames: 48}
views: {frames: 48}
step: {packs: 4, clips: 2}
asit: {hidden: 32, bottleneck: 16, prototypes: 32}
loader: {workers: 1}
checkpoint: {every_epochs: 0.7}
track: {mlflow: "off", picture_epochs: 0}
probe: {every_epochs: 0}
run: {threads: 1, timeout_seconds: 60}
"""
KILLS = {"rank": 30, "launcher": 15, "worker": 15, "saving": 30, "starting": 10}  # what is killed, and how often
# Of attempts: on a slow disk, a full one, with a clock that goes back in the middle, by the real launcher
SHARES = {"slow": 0.15, "full": 0.05, "back": 0.1, "cold": 0.03}
END_SECONDS = 60.0  # within which all of a run must be gone once a part of it was killed
FULL_SAYS = ("cannot be written", "the disk is full", "could not write", "No space left")


class SoakError(Exception):
    """What must not have been."""


@dataclass
class Attempt:
    """One start of the run."""

    launcher: Process
    status: Callable[[], int | None]  # of the launcher, once it has ended
    log: Path
    cold: bool
    began: float = field(default_factory=time.monotonic)

    def ranks(self) -> list[Process]:
        return children(self.launcher.pid, b"" if not self.cold else b"pretrain/run.py")

    def workers(self) -> list[Process]:
        ranks = self.ranks()
        return [worker for rank in ranks for worker in children(rank.pid, command_of(rank.pid))]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children(pid: int, command: bytes) -> list[Process]:
    """Those of a process with these words in their command line."""
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    found = [Process.of(int(one)) for one in pids if command in command_of(int(one))]
    return [one for one in found if one is not None and one.alive()]


class Soak:
    """Everything happens below `folder`."""

    def __init__(
        self, folder: Path, kills: int, seed: int, say: Callable[[str], None], shares: dict[str, float] = SHARES
    ) -> None:
        self.folder, self.kills, self.say, self.shares = folder, kills, say, shares
        self.random = random.Random(seed)
        self.epochs = -(-max(kills, 1) * STEPS_A_KILL // STEPS_AN_EPOCH) + SPARE
        self.total = self.epochs * STEPS_AN_EPOCH
        self.faults = Faults(folder / "runs", folder)
        environment = os.environ | {key: str(value) for key, value in self.faults.environment.items()}
        self.environment = environment | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.killed: Counter[str] = Counter()
        self.spells: Counter[str] = Counter()
        self.attempts = 0
        self.full_left = 0  # attempts that the disk stays full for
        self.gone: list[float] = []  # seconds from a kill until all of the run was gone
        self.starts: list[float] = []  # seconds from a start to its first step
        self.server: subprocess.Popen[str] | None = None
        self.attempt: Attempt | None = None

    def __enter__(self) -> Soak:
        (self.folder / "tiny.yaml").write_text(RECIPE)
        synthesise(self.folder / "corpus", CLIPS, seconds=1.0)
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env=self.environment, start_new_session=True,
        )  # fmt: skip
        words = ["convert", "esc50", str(self.folder / "corpus"), str(self.folder / "shards"), "--workers", "1"]
        log = self.folder / "convert.log"
        if self._warm("gamut.shards.__main__", words, 1, log).wait() != 0:
            raise SoakError(f"The shards could not be made: {log.read_text()}")
        return self

    def __exit__(self, *error: object) -> None:
        if self.attempt is not None and self.attempt.launcher.alive():  # whoever looks on had enough
            os.kill(self.attempt.launcher.pid, signal.SIGKILL)
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def _warm(self, module: str, argv: list[str], ranks: int, log: Path) -> Warm:
        assert self.server is not None
        return Warm(self.server, {"module": module, "argv": argv, "ranks": ranks, "log": str(log)})

    def words(self, name: str) -> list[str]:
        words = [str(self.folder / "tiny.yaml"), f"data={self.folder}/shards", f"run.folder={self.folder}/runs"]
        return [*words, f"run.name={name}", f"epochs={self.epochs}"]

    def start(self, name: str, cold: bool = False) -> Attempt:
        log = self.folder / f"{name}.log"
        self.attempts += 1
        if not cold:
            warm = self._warm("pretrain.run", self.words(name), RANKS, log)
            self.attempt = Attempt(warm.launcher, warm.poll, log, cold)
            return self.attempt
        line = [
            sys.executable,
            "launchers/slurm.py",
            "pretrain",
            *self.words(name),
            "--cpus-only",
            str(RANKS),
            "--local",
        ]
        with open(log, "ab") as out:
            begun = subprocess.Popen(
                line, cwd=ROOT, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        launcher = Process.of(begun.pid)
        assert launcher is not None
        self.attempt = Attempt(launcher, begun.poll, log, cold)
        return self.attempt

    def quiet(self) -> float:
        """The run that nothing befalls: seconds that it took."""
        attempt = self.start("quiet")
        if self.wait(attempt, lambda: False) != 0:
            raise SoakError(f"The quiet run failed:\n{tail(attempt.log)}")
        return time.monotonic() - attempt.began

    def wait(self, attempt: Attempt, until: Callable[[], bool], seconds: float = 3600.0) -> int | None:
        """Wait for the attempt's end, and give its status, or until something holds, and give None."""
        end = time.monotonic() + seconds
        while (status := attempt.status()) is None:
            if until():
                return None
            if time.monotonic() > end:
                raise SoakError(f"Nothing happened in {seconds:.0f} s:\n{tail(attempt.log)}")
            time.sleep(0.005)
        return status

    def run(self) -> None:
        """The run that all befalls, to its end."""
        steps = Steps(self.folder / "runs" / "stormy" / "metrics.jsonl")
        began = said = time.monotonic()
        while True:
            done = sum(self.killed.values())
            attempt = self.start("stormy", cold=self.random.random() < self.shares["cold"])
            size = attempt.log.stat().st_size if attempt.log.exists() else 0
            status = self.one(attempt, steps, done) if done < self.kills else self.wait(attempt, lambda: False)
            steps.follow()
            if status == 0:
                break
            if status is not None:
                said_by_it = attempt.log.read_text(errors="replace")[size:]
                if not self.full_left or not any(words in said_by_it for words in FULL_SAYS):
                    raise SoakError(f"An attempt ended with {status}, which nobody had killed:\n{said_by_it[-4000:]}")
                self.full_left -= 1
                self.spells["full disk"] += 1
            if not self.full_left:
                self.faults.set()
            if time.monotonic() - said > 10.0:
                said, passed = time.monotonic(), time.monotonic() - began
                done = sum(self.killed.values())
                left = passed / done * (self.kills - done) if done else 0.0
                self.say(
                    f"{done} of {self.kills} kills, step {steps.last} of {self.total}, {passed / 60:.1f} minutes, "
                    f"about {left / 60:.0f} left"
                )
        self.faults.set()
        self.report(steps, time.monotonic() - began)

    def one(self, attempt: Attempt, steps: Steps, number: int) -> int | None:
        """Let the `number`-th kill befall an attempt: its status where it ended by itself."""
        chosen = self.random
        kind = chosen.choices(list(KILLS), list(KILLS.values()))[0]
        step = round((number + chosen.random()) * STEPS_A_KILL)
        if not self.full_left and chosen.random() < self.shares["full"]:
            self.full_left = chosen.randint(1, 2)
            where = chosen.choice(["all", "checkpoints"])
            status = self.wait(attempt, lambda: steps.follow() >= step)
            if status is None:
                self.faults.set(full=where)
                status = self.wait(attempt, lambda: False)
            return status
        if self.full_left:
            return self.wait(attempt, lambda: False)
        slow = chosen.uniform(0.005, 0.05) if chosen.random() < self.shares["slow"] else 0.0
        back = chosen.uniform(60.0, 86_400.0) if chosen.random() < self.shares["back"] else 0.0
        self.spells["slow disk"] += slow > 0
        self.spells["clock back"] += back > 0
        self.faults.set(slow=slow)
        if kind == "starting":
            moment = time.monotonic() + chosen.uniform(0.0, 10.0 if attempt.cold else 2.0)
            status = self.wait(attempt, lambda: time.monotonic() > moment)
        else:
            before = steps.follow(), len(steps.times)
            status = self.wait(attempt, lambda: steps.follow() >= step and len(steps.times) > before[1])
            self.starts.append(time.monotonic() - attempt.began)
        self.faults.set(slow=slow, back=back)
        if status is None and kind == "saving":
            saves = self.folder / "runs" / "stormy" / "checkpoints"
            status = self.wait(attempt, lambda: any(saves.glob(f"{SAVING}*")))
        if status is not None:
            return status
        time.sleep(chosen.uniform(0.0, 0.03))
        return self.kill(attempt, kind)

    def kill(self, attempt: Attempt, kind: str) -> int | None:
        """End a part of the run, and see that all of it goes."""
        ranks, workers = attempt.ranks(), attempt.workers()
        whom = {"launcher": [attempt.launcher], "worker": workers, "rank": ranks}.get(kind) or [
            attempt.launcher,
            *ranks,
        ]
        victim = self.random.choice(whom)
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            return attempt.status()
        self.killed[kind] += 1
        since = time.monotonic()
        everyone = [attempt.launcher, *ranks, *workers]
        while left := [one.pid for one in everyone if one.alive()] or ([0] if attempt.status() is None else []):
            if time.monotonic() - since > END_SECONDS:
                raise SoakError(f"{left} lived on for {END_SECONDS:.0f} s after a kill:\n{tail(attempt.log)}")
            time.sleep(0.005)
        self.gone.append(time.monotonic() - since)
        return attempt.status() if attempt.status() == 0 else None

    def report(self, steps: Steps, seconds: float) -> None:
        killed = sum(self.killed.values())
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.killed.items()))
        spells = ", ".join(f"{kind} {count}" for kind, count in sorted(self.spells.items())) or "none"
        self.say(f"{killed} kills ({kinds}) and {self.attempts} starts in {seconds / 60:.1f} minutes; spells: {spells}")
        if killed:
            self.say(
                f"lost steps: {steps.lost} of {sum(steps.taken.values())} taken, {steps.lost / killed:.1f} a kill; "
                f"all of a run gone in {statistics.median(self.gone):.1f} s (at most {max(self.gone):.1f})"
            )
        share = steps.productive() / seconds
        self.say(
            f"effective training time: {share:.0%} ({steps.productive():.0f} of {seconds:.0f} s in steps that count)"
        )

    def compare(self) -> None:
        """Raise SoakError where a bit differs."""
        quiet, stormy = (self.folder / "runs" / name for name in ("quiet", "stormy"))
        made = [verify(Checkpoints(run / "checkpoints").newest())["files"] for run in (quiet, stormy)]
        other = [name for name in sorted(made[0].keys() | made[1].keys()) if made[0].get(name) != made[1].get(name)]
        if other:
            raise SoakError(f"The last checkpoints differ in {', '.join(other)}.")
        losses = [History.read(run / "metrics.jsonl").series("loss") for run in (quiet, stormy)]
        if losses[0] != losses[1] or losses[0][0] != list(range(1, self.total + 1)):
            raise SoakError("The losses of the two runs differ, or a step has none.")
        self.say(f"bitwise the same after {self.total} steps: {len(made[0])} files of the last checkpoint, every loss")


class Warm:
    """A launcher that the server has forked."""

    def __init__(self, server: subprocess.Popen[str], wanted: dict[str, Any]) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self._out: IO[str] = server.stdout
        server.stdin.write(json.dumps(wanted) + "\n")
        server.stdin.flush()
        launcher = Process.of(int(self._out.readline()))
        assert launcher is not None  # a zombie at least, until the server waits for it
        self.launcher = launcher
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None and not self.launcher.alive():
            self._status = int(self._out.readline())
        return self._status

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(0.01)
        return status


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:] if log.exists() else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, help="of what is killed and when, as near as clocks repeat")
    parser.add_argument("--folder", type=Path, help="a new one that stays, to look at it afterwards")
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="gamut-soak-"))).resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(line, flush=True)

    say(f"{options.kills} kills with --seed {seed} in {folder}")
    try:
        with Soak(folder, options.kills, seed, say) as soak:
            say(f"the quiet run: {soak.total} steps in {soak.quiet():.0f} s")
            soak.run()
            soak.compare()
    except SoakError as error:
        say(f"{error}\nEverything is in {folder}.")
        return 1
    if options.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
