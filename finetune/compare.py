"""Compare initialisations ("arms") under one recipe: is the pretrained backbone worth its hours?

Each arm's learning rate is chosen from the same grid on a part of the training folds; then every arm is trained with
several seeds on all of them and scored on the test folds, the same clips for every arm. The difference between the
first two arms comes with its paired bootstrap 95 % interval over clips. What one arm alone is to be told stands behind
its INIT, within the quotes. With --labels every seed draws so many labelled clips of each class, the same for all arms.

Examples:
    python finetune/compare.py esc10 --arm pretrained=runs/asit_tiny --arm scratch= \\
        --train 1,2,3 --test 4,5 --choose-test 3 --grid 3e-4,1e-3 --seeds 3 data=shards/esc10
    python finetune/compare.py esc10 --arm "frozen=esc10 finetune.freeze=true optim.lr=1e-2" --arm scratch= \\
        --labels 8 --train 1,2,3 --test 4,5 data=shards/mine model.pooling=rows
    python finetune/compare.py scv2 --arm pretrained=runs/asit_b --arm scratch= --train train --test test \\
        --choose-test validation --grid 3e-4,1e-3
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

import numpy as np
from rich.console import Console
from rich.table import Table

from finetune.jobs import Job, choose_rates, run_all
from finetune.rounds import Fold, folds_of
from gamut.commands import command, parser_of
from gamut.errors import RecipeError
from gamut.evaluate import METRICS, Metric, paired
from gamut.evaluate.paired import Difference
from gamut.evaluate.scores import Scores
from gamut.recipe.cli import require_sets
from gamut.recipe.load import load_recipe
from gamut.runs.words import SEEN, footnote, marked, seen_by
from gamut.shards import Index
from gamut.shards.joined import open_sets
from gamut.track import figures


def arms_of(words: list[str]) -> dict[str, list[str]]:
    """`name=init a.b=c` -> what each arm's runs are told, `init` first. Raises RecipeError."""
    arms: dict[str, list[str]] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        try:
            init, *own = shlex.split(f'""{rest}')  # an empty one stays a word
        except ValueError:  # a quote that does not close
            equals = ""
        if not equals or not name or name in arms or not all("=" in one for one in own):
            raise RecipeError(
                f"--arm takes NAME=INIT, each name once (INIT empty: from scratch), not {word!r}. Behind INIT, in "
                "quotes of its own if it has spaces, may stand key=value for this arm alone."
            )
        arms[name] = [f"init={init}", *own]
    return arms


def joined(results: list[dict]) -> dict:
    """One summary of runs that differ in their seed."""
    rounds = [entry for result in results for entry in result["rounds"]]
    return results[0] | {"rounds": rounds, "mean": float(np.mean([result["mean"] for result in results]))}


def require_apart(index: Index, column: str, choosing: list[Fold], test: list[Fold]) -> None:
    """Raises RecipeError where the learning rate would be chosen by clips that judge it."""
    both = np.intersect1d(index.where({column: choosing}), index.where({column: test}))
    if len(both):
        raise RecipeError(
            f"The folds {choosing}, by which learning rates are chosen, have {len(both)} clips of the folds {test}, "
            "which judge them: the score would be the best of several tries. Name others with --choose-test, such as "
            "one of --train."
        )


def difference(one: dict, other: dict, metric: Metric) -> Difference:
    """Of two arms over their seeds; without an interval where a round has kept no scores."""
    mine, its = ([Path(entry.get("scores", "")) for entry in result["rounds"]] for result in (one, other))
    if metric.has_interval and all(place.is_file() for place in (*mine, *its)):
        found = paired.difference([*map(Scores.load, mine)], [*map(Scores.load, its)], metric)
        assert found is not None, "arms are scored on the same clips"
        return found
    return Difference(float(one["mean"] - other["mean"]), np.nan, np.nan, 0)


def by_class(result: dict) -> np.ndarray:
    """float64 [classes]: each class's metric, the mean over rounds and seeds; nan for a class that no clip has."""
    return np.array([entry["by_class"] for entry in result["rounds"]], np.float64).mean(0)


def most_different(scores: list[np.ndarray], most: int = 50) -> np.ndarray:
    """The classes, in order, in which the arms' scores lie furthest apart: at most so many, as a picture can show."""
    spread = np.nan_to_num(np.max(scores, axis=0) - np.min(scores, axis=0), nan=-1.0)
    return np.sort(np.argsort(-spread, kind="stable")[:most])


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of("compare", __doc__)
    parser.add_argument("recipe")
    parser.add_argument("--arm", action="append", required=True, metavar="NAME=INIT", help="INIT empty: from scratch")
    parser.add_argument("--train", type=folds_of, required=True, metavar="1,2,3", help="folds, or splits by name")
    parser.add_argument("--test", type=folds_of, required=True, metavar="4,5")
    parser.add_argument(
        "--choose-test",
        type=folds_of,
        default=None,
        help="folds to choose the rate by, which training then lacks and which are none of --test",
    )
    parser.add_argument("--grid", default="", metavar="3e-4,1e-3", help="learning rates; one or none: no choosing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--labels", type=int, default=None, metavar="N", help="labelled clips a class, drawn by the seed"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("overrides", nargs="*", help="a.b=c, passed on to every run")
    options = parser.parse_intermixed_args(argv)  # overrides may follow the options
    console = Console()
    arms = arms_of(options.arm)
    rates = [rate for rate in options.grid.split(",") if rate]
    held_out = options.choose_test or options.train[-1:]
    few = [] if options.labels is None else [f"subset.per_class={options.labels}"]
    recipe = load_recipe("finetune", options.recipe, [*options.overrides, *few])
    if len(rates) > 1:
        index = open_sets(require_sets(recipe), recipe.remote)
        require_apart(index, recipe.folds.column, held_out, options.test)

    def job(name: str, arm: str, rate: str, train: list[Fold], test: list[Fold], seeds: int, draw: int = 0) -> Job:
        arguments = [options.recipe, *options.overrides, f"run.folder={options.out}", f"run.name={name}"]
        arguments += [*arms[arm], f"folds.train={train}", f"folds.test={[test]}", f"finetune.seeds={seeds}"]
        arguments += [f"optim.lr={rate}"] if rate else []
        if few:
            arguments += [*few, f"subset.seed={draw}", f"seed={recipe.seed + draw}"]
        if test is held_out and recipe.folds.validation:
            arguments += ["folds.validation=null"]  # it is what the rate is chosen by
        return Job(name, tuple(arguments), options.out / name)

    part = [fold for fold in options.train if fold not in held_out]
    if len(rates) > 1:
        console.print(f"Choosing each arm's learning rate: train on folds {part}, look at folds {held_out}.")

    def trial(arm: str, rate: str) -> Job:
        return job(f"choose-{arm}-{rate}", arm, rate, part, held_out, 1)

    chosen = choose_rates(list(arms), rates, trial, options.jobs, console)
    console.print(f"Training every arm on folds {options.train}, scoring on folds {options.test}.")
    draws = options.seeds if few else 1

    def final(arm: str, draw: int) -> Job:
        name = f"final-{arm}-{chosen[arm] or 'recipe'}" + (f"-{draw}" if few else "")
        return job(name, arm, chosen[arm], options.train, options.test, options.seeds // draws, draw)

    options.out.mkdir(parents=True, exist_ok=True)
    found = run_all([final(arm, draw) for arm in arms for draw in range(draws)], options.jobs, console)
    results = {arm: joined(found[draws * at : draws * (at + 1)]) for at, arm in enumerate(arms)}
    report = {"recipe": options.recipe, "train": options.train, "test": options.test}
    report |= compare(results, chosen, console)
    (options.out / "comparison.json").write_text(json.dumps(report, indent=2))
    picture = options.out / "comparison.png"
    names = next(iter(results.values()))["labels"]
    seen = {arm: entry[SEEN] for arm, entry in report["arms"].items()}
    title = {arm: marked(arm, seen[arm]) for arm in results}
    seeds = {title[arm]: np.array([entry["score"] for entry in result["rounds"]]) for arm, result in results.items()}
    classes = {title[arm]: by_class(result) for arm, result in results.items()}
    shown = most_different(list(classes.values()))
    some = {arm: values[shown] for arm, values in classes.items()}
    told, metric = footnote(max(seen.values())), METRICS[report["metric"]]
    figures.arms(seeds, some, [names[at] for at in shown], metric, told).savefig(picture, dpi=110)
    console.print(f"the same by class: {picture}", highlight=False)
    return 0


def compare(results: dict[str, dict], chosen: dict[str, str], console: Console) -> dict:
    """Print every arm's score and the difference of the first two; both as the report's entries.

    The interval is over clips; a metric from outside that knows no weights of clips has a difference without one.
    """
    metric = METRICS[next(iter(results.values()))["metric"]]
    table = Table("arm", "learning rate", f"{metric.name}, mean", "seeds", "clips")
    report: dict = {"metric": metric.name, "arms": {}}
    for arm, result in results.items():
        by_seed = [entry["score"] for entry in result["rounds"]]
        clips = result["rounds"][0]["clips"]
        seen = seen_by([result])
        mean = marked(metric.show(float(np.mean(by_seed))), seen)
        table.add_row(arm, chosen[arm] or "recipe's", mean, " ".join(map(metric.show, by_seed)), str(clips))
        report["arms"][arm] = {"lr": chosen[arm] or None, metric.name: by_seed, "clips": clips, SEEN: seen}
    table.caption = footnote(max(arm[SEEN] for arm in report["arms"].values())) or None
    console.print(table)
    if len(results) > 1:
        first, second = list(results)[:2]
        report["difference"] = {"of": [first, second]}
        between = difference(results[first], results[second], metric)
        report["difference"]["mean"] = between.mean
        if not np.isnan(between.low):
            report["difference"] |= {"low": between.low, "high": between.high}
        console.print(f"{first} - {second}: {between.told(metric)}", highlight=False)
    return report


if __name__ == "__main__":
    sys.exit(main())
