"""`python -m bench.gpu.forecast RATES.json STAGE RECIPE [key=value ...]`: the account of a step on one device, as JSON.

A process of its own: an account changes how torch sees devices.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gamut.estimate import rates
from gamut.estimate.forecast import forecast
from gamut.estimate.step import account
from gamut.estimate.work import work_of
from gamut.recipe.load import load_recipe


def main(argv: list[str]) -> int:
    file, stage, name, *words = argv
    known = rates.read(Path(file))
    recipe = load_recipe(stage, name, words)
    made = forecast(account(recipe, work_of(recipe, 1), known.kind), known, 1)
    # Without the loader, which a benchmark's step has none of.
    step = made.step - made.seconds["loader"]
    print(json.dumps({"clips": made.account.work.clips / step, "gigabytes": made.gigabytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
