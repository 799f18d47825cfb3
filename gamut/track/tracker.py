"""Where a run's metrics, pictures and events go. The first rank has a Tracker, the others a NullTracker."""

from __future__ import annotations

import os
import platform
import re
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gamut.files import replacing, write_bytes
from gamut.recipe.schema import Recipe
from gamut.track.feed import Feed
from gamut.track.metrics import MetricsFile
from gamut.track.run import RunFolder, git_revision
from gamut.track.store import public, store_uri
from gamut.watchdog import WATCHDOG

if TYPE_CHECKING:  # most runs draw nothing
    from matplotlib.figure import Figure

FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0  # seconds between tries while the server does not answer
STATUSES = ("finished", "preempted", "failed")


class NullTracker:
    """Takes everything and keeps nothing."""

    def log(self, step: int, values: dict[str, float], late: bool = False) -> None:
        pass

    def figure(self, name: str, figure: Figure, step: int) -> None:
        pass

    def picture(self, name: str, file: Path, step: int, late: bool = False) -> None:
        pass

    def checkpoint(self, step: int, uri: str = "", sha256: str = "") -> None:
        pass

    def close(self, status: str = "finished") -> None:
        pass

    def __enter__(self) -> NullTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("failed" if kind else "finished")


class Tracker(NullTracker):
    """Writes metrics.jsonl and figures at once, and lets a background thread bring them to MLflow.

    As a context manager it closes as `failed` on an exception, else as `finished` unless `close` said otherwise.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, index: str = "", facts: dict[str, Any] | None = None) -> None:
        """`index`: fingerprint of the shards' index. `facts`: what is true of this attempt only, such as the ranks."""
        self.folder = folder
        self._file = MetricsFile(folder.metrics, folder.attempt)
        self._file.append({"git": git_revision(), "index": index, **machine(), **(facts or {})}, event="start")
        self._closed = False
        uri = store_uri(recipe)
        self._feeder = None if uri is None else Feeder(Feed(folder, recipe, uri))
        if self._feeder:
            self._feeder.start()

    def log(self, step: int, values: dict[str, float], late: bool = False) -> None:
        """Metrics of a step. The same key may be logged again at a later step, by a later attempt also at the same.

        `late`: they are of a step before the one that the training has come to; from any thread.
        """
        self._file.append({key: float(value) for key, value in values.items()}, step=step, late=late)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Save a figure as figures/NAME-STEP.png."""
        file = png_name(name, step)
        with replacing(self.folder.figures / file) as picture:
            figure.savefig(picture, format="png", dpi=110)
        self._note(name, file, step, late=False)

    def picture(self, name: str, file: Path, step: int, late: bool = False) -> None:
        """Take over a PNG that is made already, as figures/NAME-STEP.png; `late` as in `log`."""
        write_bytes(self.folder.figures / png_name(name, step), file.read_bytes())
        self._note(name, png_name(name, step), step, late)

    def _note(self, name: str, file: str, step: int, late: bool) -> None:
        self._file.append({"name": name, "file": f"figures/{file}"}, step=step, event="figure", late=late)

    def checkpoint(self, step: int, uri: str = "", sha256: str = "") -> None:
        """A checkpoint of `step` is safe: what is logged up to it is final, made durable and shown to MLflow."""
        self._file.append({"uri": uri, "sha256": sha256}, step=step, event="checkpoint")
        self._file.sync()
        if self._feeder:
            self._feeder.poke()

    def close(self, status: str = "finished") -> None:
        """End the attempt: finished, preempted (it will go on) or failed. Only the first call counts."""
        if self._closed:
            return
        if status not in STATUSES:
            raise ValueError(f"{status!r} is not one of {', '.join(STATUSES)}")
        self._closed = True
        self._file.append({"status": status}, event="end")
        self._file.close()
        if self._feeder:
            with WATCHDOG.resting():
                self._feeder.finish(patience=10.0 if status == "preempted" else 60.0)


def png_name(name: str, step: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-{step:07d}.png"


def machine() -> dict[str, Any]:
    """What is true of this process's machine, for an attempt's record."""
    facts: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "python": platform.python_version()}
    slurm = ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT", "JOB_NODELIST")
    for name in ("WORLD_SIZE", *(f"SLURM_{one}" for one in slurm)):
        if os.environ.get(name):
            facts[name.lower()] = os.environ[name]
    return facts


class Feeder(threading.Thread):
    """Brings metrics.jsonl to MLflow in the background whenever poked, and goes on trying while MLflow is slow or down:
    no step waits or notices."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._feed = feed
        self._wake = threading.Event()
        self._finishing = False
        self._down = False
        self._wake.set()  # the run shows from its start

    def poke(self) -> None:
        """There is something new that will stay."""
        self._wake.set()

    def finish(self, patience: float) -> None:
        """Bring over what is left and end; give up after `patience` seconds, or at the first failure."""
        self._finishing = True
        self._wake.set()
        self.join(patience)
        if self.is_alive() or self._down:
            print(
                f"warning: MLflow at {public(self._feed.uri)} has not got everything; `python -m gamut.track feed "
                f"{self._feed.folder.path}` brings over the rest.",
                flush=True,
            )

    def run(self) -> None:
        wait = FIRST_WAIT
        while True:
            self._wake.wait(timeout=wait if self._down else None)
            self._wake.clear()
            last = self._finishing  # read first: what comes before `finish` is then in the file
            try:
                self._feed.now()
                if self._down:
                    print(f"MLflow at {public(self._feed.uri)} answers again.", flush=True)
                self._down, wait = False, FIRST_WAIT
            except Exception as error:  # whatever MLflow and what lies below it may raise must not end training
                if not self._down:
                    reason = (str(error).splitlines() or [""])[0][:200]
                    print(
                        f"warning: MLflow at {public(self._feed.uri)} does not take metrics ({type(error).__name__}: "
                        f"{reason}); they are kept in {self._feed.folder.metrics} and will be fed when it does.",
                        flush=True,
                    )
                self._down, wait = True, min(2 * wait, LONGEST_WAIT)
            if last:
                return
