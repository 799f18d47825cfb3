"""Probes are scored in a process beside the training, one after the other, and reported when they are done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

from gamut.probe.fit import PICTURE, REQUEST, RESULT
from gamut.track.checkpoints import step_name, step_of, steps_in

ROOT = Path(__file__).resolve().parents[2]
QUEUE = "probe-queue"  # in a run folder: what is not scored yet


class Tracker(Protocol):
    def log(self, step: int, values: dict[str, float], late: bool = False) -> None: ...

    def picture(self, name: str, file: Path, step: int, late: bool = False) -> None: ...


def place(run: Path, step: int) -> Path:
    """The folder of the probe of a step."""
    return run / QUEUE / step_name(step)


class Background(threading.Thread):
    """Scores the folders in RUN/probe-queue in order of their steps and hands the numbers to the tracker.

    A folder is removed once its numbers are in metrics.jsonl: what a killed attempt left is scored by the next one.
    One that cannot be scored is counted (`probe/failures`), said, and removed; the process's words are in
    RUN/logs/probe.log. Nothing that happens here reaches the training.
    """

    def __init__(self, run: Path, tracker: Tracker) -> None:
        super().__init__(name="probe", daemon=True)
        self.run_folder = run
        self.tracker = tracker
        self.failures = 0
        self._changed = threading.Condition()
        self._waiting: list[int] = []  # steps
        self._busy = False
        self._ending = False
        self._process: subprocess.Popen | None = None

    def take_over(self, newest: int) -> None:
        """Queue what an attempt before this one left, up to the step that this one goes on from; remove the rest."""
        for folder in sorted(steps_in(self.run_folder / QUEUE)):
            if step_of(folder) <= newest and (folder / REQUEST).exists():
                self.add(step_of(folder))
            else:
                shutil.rmtree(folder)

    def add(self, step: int) -> None:
        """The folder of this step is complete."""
        with self._changed:
            self._waiting = sorted({*self._waiting, step})
            self._changed.notify_all()

    def fail(self, step: int, reason: str) -> None:
        """Count and say a probe that came to nothing."""
        self.failures += 1
        print(f"warning: the probe of step {step} came to nothing ({reason}); the training goes on.", flush=True)
        shutil.rmtree(place(self.run_folder, step), ignore_errors=True)
        try:
            self.tracker.log(step, {"probe/failures": float(self.failures)}, late=True)
        except Exception as error:  # such as a full disk, which the training will meet and explain by itself
            print(f"warning: that it failed could not be written down: {error}", flush=True)

    def drain(self, patience: float) -> None:
        """Wait until all is scored, for so many seconds at most."""
        until = time.monotonic() + patience
        with self._changed:
            while (self._waiting or self._busy) and self.is_alive() and time.monotonic() < until:
                self._changed.wait(min(1.0, max(0.0, until - time.monotonic())))

    def close(self) -> None:
        """End, with the process that is scoring; what is left stays in its folder."""
        with self._changed:
            self._ending = True
            if self._process is not None:
                self._process.kill()
            self._changed.notify_all()
        if self.is_alive():
            self.join(10.0)

    def run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._waiting and not self._ending:
                    self._changed.wait()
                if self._ending:
                    return
                step = self._waiting.pop(0)
                self._busy = True
            try:
                self._score(step)
            except Exception as error:  # whatever it is, it must not end the training
                if not self._ending:
                    self.fail(step, f"{type(error).__name__}: {str(error)[:200]}")

    def _score(self, step: int) -> None:
        folder = place(self.run_folder, step)
        log = self.run_folder / "logs" / "probe.log"
        log.parent.mkdir(mode=0o700, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with log.open("a") as words:
            with self._changed:
                if self._ending:
                    return
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "gamut.probe.fit", str(folder.resolve()), str(os.getpid())],
                    cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=words, stderr=words,
                )  # fmt: skip
            status = self._process.wait()
        if self._ending:
            return
        if status or not (folder / RESULT).exists():
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise RuntimeError(f"status {status}, {lines[-1][:150] if lines else 'without a message'}; see {log}")
        values = json.loads((folder / RESULT).read_text())
        if values:
            self.tracker.log(step, values, late=True)
        if (folder / PICTURE).exists():
            self.tracker.picture("embedding", folder / PICTURE, step, late=True)
        shutil.rmtree(folder)
