"""A rank of a toy run that goes on for ever, for tests that start one with a real launcher: FOLDER."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from toy import Toy, teach, toy_recipe  # noqa: E402

from gamut.train import world as worlds  # noqa: E402

if __name__ == "__main__":
    folder = Path(sys.argv[-1])
    recipe = toy_recipe(epochs=1000)
    world = worlds.start(recipe.run)
    objective = Toy()

    def slowly(step: int) -> None:
        (folder / f"rank-{world.rank}").write_text(f"{os.getpid()} {step}")
        time.sleep(0.05)

    objective.before_step = slowly
    teach(world, folder / "run", recipe, objective)
