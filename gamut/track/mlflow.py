"""MLflow, fed in the background: it may be slow or down without any step noticing."""

from __future__ import annotations

import threading

from gamut.track.feed import Feed
from gamut.track.store import public

FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0  # seconds between tries while the server does not answer


class Feeder(threading.Thread):
    """Brings metrics.jsonl to MLflow whenever poked, and goes on trying while MLflow is down. Training never waits."""

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
