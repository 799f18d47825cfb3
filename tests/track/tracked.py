"""A run that does nothing but log, as fast as a small model takes steps: FOLDER URI FIRST. It goes on until there is a
file FOLDER/stop. FOLDER/times has a line a step: when it ended, and the seconds that it took."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from gamut.recipe.load import load_recipe  # noqa: E402
from gamut.track.run import RunFolder  # noqa: E402
from gamut.track.tracker import Tracker  # noqa: E402


def main(folder: Path, uri: str, first: int) -> None:
    wanted = load_recipe("pretrain", "asit_tiny", [f"run.folder={folder}", "run.name=one", f"track.mlflow={uri}"])
    with Tracker(RunFolder.open(wanted), wanted) as tracker, open(folder / "times", "a", buffering=1) as times:
        step = first
        while step % 20 != 1 or step == first or not (folder / "stop").exists():
            since = time.monotonic()
            sum(number * number for number in range(20_000))  # the step's own work, which needs the interpreter
            tracker.log(step, {"loss": 1.0 / step, "lr": 0.1, "clips/s": float(step)})
            if step % 20 == 0:
                tracker.checkpoint(step)
            now = time.monotonic()
            print(step, now - since, file=times)
            time.sleep(0.02)
            step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
