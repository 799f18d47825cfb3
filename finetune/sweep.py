"""Score fine-tuned models over lengths, resolutions and native length: ElasticAST's figures, with a table beside them.

Each RUN is a folder that finetune/run.py made (of several seeds: their mean and spread), and one line in the pictures.
All must have been scored on the same clips. A standard AST, whose recipe gives one length, has every clip cut or padded
to the length in question; a model for any length only has it cut. What was scored is saved point by point and not
scored again, so the command may be stopped, and repeated with more runs or points.

OUT gets lengths.png, resolutions.png, sweep.md, sweep.csv and sweep.json, and MLflow a run for each model.

Examples:
    python finetune/sweep.py runs/elastic_voxceleb runs/ast_voxceleb_400 runs/ast_voxceleb_1024 --resolutions none
    python finetune/sweep.py runs/elastic_audioset runs/ast_c1 runs/ast_c4 --lengths none --names ElasticAST,C=1,C=4
    python finetune/sweep.py runs/elastic_tiny --lengths 256,512,1024 --out runs/quick data=shards/utterances
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

from rich.console import Console

from finetune.points import LENGTHS, RESOLUTIONS, Point, at
from gamut.commands import command, parser_of
from gamut.errors import RunError
from gamut.evaluate import METRICS
from gamut.plan import Clips
from gamut.progress import clock_time
from gamut.recipe import cli
from gamut.shards import Index
from gamut.shards.joined import open_sets
from gamut.shards.select import for_scoring, select

if TYPE_CHECKING:
    from finetune.trained import Trained


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of("sweep", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a fine-tuning run, or one of its rounds")
    parser.add_argument(
        "--lengths", default="paper", help="frames, such as 256,512,1024; paper: 256 to 3,072; none (default: paper)"
    )
    parser.add_argument("--resolutions", default="paper", help="C, such as 1,2,4; paper: 1.0 to 4.0; none")
    parser.add_argument("--no-native", action="store_true", help="not on clips as each model takes them itself")
    parser.add_argument("--names", default="", help="of the lines, separated by commas; the folders' by default")
    parser.add_argument("--out", type=Path, default=None, help="default: `sweep` beside the first run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="such as data=FOLDER or loader.workers=4")
    options = parser.parse_intermixed_args(argv)
    words = [*options.runs, *options.overrides]
    runs = [Path(word) for word in words if "=" not in word]
    overrides = tuple(word for word in words if "=" in word)
    if not runs:
        raise RunError("Name the folder of at least one fine-tuning run.")
    points = grid(options.lengths, options.resolutions, not options.no_native)
    out = options.out or runs[0].resolve().parent / "sweep"

    from finetune.trained import trained  # here: torch takes its time, and what was typed makes sense

    names = options.names.split(",") if options.names else [run.resolve().name for run in runs]
    if len(set(names)) != len(names) or len(names) != len(runs):
        raise RunError(
            f"{len(runs)} runs need as many different names, not {', '.join(names)}: give them with --names."
        )
    models = {name: trained(run, overrides) for name, run in zip(names, runs, strict=True)}
    for rounds in models.values():
        for point in points:
            at(rounds[0].recipe, point)  # a point that cannot be is said before anything is scored
    sets = {name: [clips_of(one) for one in rounds] for name, rounds in models.items()}
    same_clips(sets)

    from finetune.sweep_report import report
    from finetune.sweep_score import Scorer
    from gamut.models.find import told

    console = Console()
    scorer = Scorer(out / "points")
    total, done, scored, began = sum(map(len, models.values())) * len(points), 0, 0, time.monotonic()
    entries = []
    for name, rounds in models.items():
        for one, (index, clips) in zip(rounds, sets[name], strict=True):
            weights = told(scorer.subject(one, index).weights)
            console.print(f"{name}: weights {weights}", highlight=False, soft_wrap=True, markup=False)
            for point in points:
                entry, new = scorer.score(one, index, clips, point)
                done, scored = done + 1, scored + new
                spent = time.monotonic() - began
                left = clock_time(spent / scored * (total - done)) if scored else "?"
                shown = METRICS[entry["metric"]].show(entry["score"])
                said = f"{name}, seed {one.recipe.seed}, {point}: {entry['metric']} {shown}, "
                said += f"{entry['tokens_a_clip']:.0f} tokens a clip"
                how = f"left {left}" if new else "scored before"
                console.print(f"[{done}/{total}] {said}  ({how})", highlight=False, soft_wrap=True, markup=False)
                entries.append({"model": name, **entry})
    report(out, entries, models[names[0]][0].recipe, console)
    return 0


def grid(lengths: str, resolutions: str, native: bool) -> list[Point]:
    """The points that were asked for. Raises RunError where they are no numbers, or none."""
    points = [Point("length", value) for value in _numbers("--lengths", lengths, LENGTHS)]
    points += [Point("resolution", value) for value in _numbers("--resolutions", resolutions, RESOLUTIONS)]
    points += [Point("native")] if native else []
    if not points:
        raise RunError("There is nothing to score: --lengths, --resolutions and native length are all switched off.")
    return points


def _numbers(option: str, text: str, paper: tuple[float, ...]) -> list[float]:
    if text in ("paper", "none"):
        return list(paper) if text == "paper" else []
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise RunError(f"{option} must be numbers with commas between them, paper or none, not {text!r}.") from None


def clips_of(one: Trained) -> tuple[Index, Clips]:
    """The clips that a round was scored on, in the set that they are in."""
    index = open_sets(cli.require_sets(one.recipe), one.recipe.remote)
    chosen = for_scoring(one.recipe.subset) | {one.recipe.folds.column: list(one.test)}
    return index, select(index, chosen)


def same_clips(sets: dict[str, list[tuple[Index, Clips]]]) -> None:
    """Raise RunError where two models were not scored on the same clips: their lines would not bear comparison."""
    heard = {
        name: sorted({index.fingerprint + clips.fingerprint() for index, clips in rounds})
        for name, rounds in sets.items()
    }
    first = next(iter(heard))
    for name, mine in heard.items():
        if mine != heard[first]:
            raise RunError(
                f"{first} and {name} were not scored on the same clips ({_told(sets[first])}; {_told(sets[name])}): "
                "sweep over them apart, or say where both find their clips with data=FOLDER."
            )


def _told(rounds: list[tuple[Index, Clips]]) -> str:
    return f"{sum(len(clips) for _, clips in rounds)} of {rounds[0][0].folder}"


if __name__ == "__main__":
    sys.exit(main())
