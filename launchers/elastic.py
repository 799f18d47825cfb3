"""The evidence for ElasticAST on a CPU, from the recordings to the figures, in one command.

Two tasks: identifying the speaker of 4 to 30 s of spoken digits (native length), and ESC-10 at mixed resolution. For
each, an ElasticAST and two standard ASTs are trained on equally many tokens, in about as many steps, with several
seeds; then all are scored over lengths, or over resolutions. Results that exist are not computed again.

DIGITS is the Free Spoken Digit Dataset in the layout of Speech Commands, ESC10 has that of ESC-50; either may be
`none`.

Example:
    python launchers/elastic.py fsdd ESC-10 --folder runs/elastic --seeds 3
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

import numpy as np
from rich.console import Console

from gamut.commands import command
from gamut.plan import plan_epoch
from gamut.recipe.load import load_recipe
from gamut.recipe.policy import training_policy
from gamut.shards import Index
from gamut.shards.select import chosen_rows
from launchers.demo import run
from launchers.utterances import string_together

LENGTHS = "256,400,768,1024,1600,2304,3072"
RESOLUTIONS = "1,1.4,2,2.6,3.2,4"
SPEAKERS = {  # model -> recipe and overrides
    "elastic": ("elastic_tiny",),
    "ast_400": ("ast_tiny", "views.frames=400", "model.table_frames=400"),
    "ast_1600": ("ast_tiny", "views.frames=1600", "model.table_frames=1600"),
}
AT_4 = ("views.frames=null", "views.pad_to=512", "views.resolutions=[4.0]", "model.table_frames=128")
SOUNDS = {"elastic": ("elastic_esc10",), "ast_c1": ("ast_esc10",), "ast_c4": ("ast_esc10", *AT_4)}


def tokens_a_draw(words: tuple[str, ...], data: Path) -> float:
    """Mean over the draws of all epochs of a model's recipe, each clip once an epoch."""
    recipe = load_recipe("finetune", words[0], [*words[1:], f"data={data}"])
    index = Index.open(data)
    assert recipe.folds.train is not None
    clips = index.table().select(chosen_rows(index, {recipe.folds.column: recipe.folds.train}))
    policy = training_policy(recipe)
    return float(np.mean([plan_epoch(clips, recipe.seed, epoch, policy).tokens for epoch in range(recipe.epochs)]))


def train_and_sweep(
    console: Console, models: dict[str, tuple[str, ...]], data: Path, folder: Path, seeds: int, more: tuple[str, ...]
) -> None:
    """Train every model on as many tokens as the first one, which draws each clip once an epoch; then run the sweep."""
    recipe = load_recipe("finetune", models["elastic"][0])
    index = Index.open(data)
    clips = len(chosen_rows(index, {recipe.folds.column: recipe.folds.train or []}))
    whole = clips * tokens_a_draw(models["elastic"], data)
    for name, words in models.items():
        draws = round(whole / tokens_a_draw(words, data))
        line = [*words, f"epochs={recipe.epochs}", f"plan.draws={draws}", f"data={data}", f"run.folder={folder}"]
        run(console, "python", "finetune/run.py", *line, f"run.name={name}", f"finetune.seeds={seeds}", *more)
    lengths = ["--lengths", LENGTHS, "--resolutions", "none"]
    resolutions = ["--lengths", "none", "--resolutions", RESOLUTIONS, "--no-native"]
    grid = lengths if models is SPEAKERS else resolutions
    where = [str(folder / name) for name in models]
    run(console, "python", "finetune/sweep.py", *where, *grid, "--out", str(folder / "sweep"), *more)


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("digits", metavar="DIGITS")
    parser.add_argument("sounds", metavar="ESC10")
    parser.add_argument("--folder", type=Path, default=Path("runs/elastic"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=1200, help="utterances")
    parser.add_argument("--test", type=int, default=300, help="utterances")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every training and the sweeps")
    options = parser.parse_intermixed_args(argv)
    console = Console()
    folder, more = options.folder.resolve(), tuple(options.overrides)
    if options.digits != "none":
        waves, data = folder / "utterances-wav", folder / "utterances"
        if not (waves / "utterances.csv").exists():
            string_together(Path(options.digits), waves, options.train, options.test)
        convert(console, "csv", waves, data)
        train_and_sweep(console, SPEAKERS, data, folder / "speakers", options.seeds, more)
    if options.sounds != "none":
        data = folder / "esc10"
        convert(console, "esc50", Path(options.sounds), data)
        train_and_sweep(console, SOUNDS, data, folder / "sounds", options.seeds, more)
    return 0


def convert(console: Console, layout: str, source: Path, data: Path) -> None:
    """Make shards and their statistics, unless both exist."""
    if (data / "index" / "statistics.json").exists():
        return
    run(console, "python", "-m", "gamut.shards", "convert", layout, str(source), str(data))


if __name__ == "__main__":
    sys.exit(main())
