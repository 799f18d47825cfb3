"""Compare pretraining recipes: each is trained with several seeds, probed along the way, and fine-tuned at its end.

The probes are those of `python -m gamut.probe`, on each task's labelled clips, beside the untrained network and the
mean and deviation of the log-mel; fine-tuning is `finetune/run.py`, also from the untrained network. Means and spreads
over seeds are printed; `study.json` has all numbers, `study.png` the curves. Results that exist are not computed again,
so the command may be stopped, and repeated with more seeds or tasks; results of other arguments are refused.

Examples:
    python launchers/study.py digits/reconstruction_unmasked digits/reconstruction digits --seeds 3 \\
        --task words=shards/digits,digits_words --task speakers=shards/digits-speakers \\
        --out runs/table3 data=shards/digits
    python launchers/study.py asit_tiny --seeds 1 --task sounds=shards/esc10 data=shards/esc10
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import gamut  # noqa: F401  # first: it says what this Python lacks

from rich.console import Console

from finetune.jobs import ROOT, Job, call, run_job, share_of_cores
from finetune.rounds import rounds
from gamut.commands import command, parser_of, positive
from gamut.errors import GamutError, RecipeError
from gamut.files import write_text
from gamut.plan import plan_epoch
from gamut.probe.labelled import labelled
from gamut.recipe.cli import require_sets
from gamut.recipe.load import load_recipe, override
from gamut.recipe.policy import training_policy
from gamut.runs.words import seen_by
from gamut.shards.joined import open_sets
from gamut.shards.select import select
from gamut.track.metrics import History
from launchers import findings

UNTRAINED = "untrained"
KINDS = ("cls", "pool", "mean", "both", "rows")
CLIPS_OF_ACCOUNT = 1000  # clips that are planned for the account of a step


@dataclass(frozen=True)
class Task:
    """Labelled clips to probe on, and the recipe to fine-tune with, if any."""

    name: str
    data: str
    finetune: str = ""

    @classmethod
    def parse(cls, text: str) -> Task:
        """`words=shards/digits,digits_words`"""
        name, _, rest = text.partition("=")
        data, _, finetune = rest.partition(",")
        if not name or not data:
            raise RecipeError(
                f"--task {text!r} must be NAME=SHARDS or NAME=SHARDS,RECIPE, such as words=shards/digits."
            )
        return cls(name, data, finetune)


@dataclass(frozen=True)
class Study:
    """The arguments of a study."""

    recipes: tuple[str, ...]
    overrides: tuple[str, ...]  # of pretraining
    tuning: tuple[str, ...]  # of fine-tuning
    seeds: int
    points: int
    out: Path
    threads: int

    def folder(self, recipe: str, seed: int) -> Path:
        """The run folder of a pretraining."""
        return self.out / f"{recipe.replace('/', '-')}-seed-{seed}"

    def pretraining(self, recipe: str, seed: int) -> list[str]:
        """The arguments of a pretraining, which is probed afterwards on all tasks instead of during it."""
        epochs = load_recipe("pretrain", recipe, self.overrides).epochs
        every = max(1, -(-epochs // self.points))
        own = [f"seed={seed}", f"run.folder={self.out}", f"run.name={self.folder(recipe, seed).name}"]
        own += [f"checkpoint.keep_every={every}", f"checkpoint.every_epochs={every}", "checkpoint.keep=1"]
        trained = [word for word in self.overrides if not word.startswith("probe.")]
        return [recipe, *trained, "probe.every_epochs=0", "track.picture_epochs=0", *own]

    def pretrain(self, recipe: str, seed: int) -> None:
        """Train one run to its end, unless it exists. Raises GamutError where it exists with other arguments."""
        folder, arguments = self.folder(recipe, seed), self.pretraining(recipe, seed)
        last = History.read(folder / "metrics.jsonl").last_attempt
        decide = [word for word in arguments if not word.startswith("run.folder=")]  # a study may be moved
        done = last is not None and last.status == "finished"
        if there(done, folder, self.out / "logs" / f"{folder.name}.json", decide):
            return
        words = [str(ROOT / "pretrain" / "run.py"), *arguments, f"run.threads={self.threads}"]
        call(folder.name, words, self.out / "logs" / f"{folder.name}.log", self.threads)

    def probe(self, recipe: str, seed: int, task: Task) -> list[dict[str, Any]]:
        """Scores of the untrained network and of every kept checkpoint, as `gamut.probe` gives them.

        Raises GamutError where they exist for other clips or probes.
        """
        run = self.folder(recipe, seed)
        out = run / f"probe-{task.name}"
        asked = self.probing(task)
        if not there((out / "scores.json").exists(), out, out / "arguments.json", asked):
            words = ["-m", "gamut.probe", str(run), "--out", str(out), *asked]
            call(f"the probe of {run.name} on {task.name}", words, self.out / "logs" / f"{run.name}.log", self.threads)
        return json.loads((out / "scores.json").read_text())

    def probing(self, task: Task) -> list[str]:
        """The overrides of a probe."""
        return [f"probe.data={task.data}", *(word for word in self.overrides if word.startswith("probe."))]

    def finetune(self, recipe: str, seed: int, task: Task) -> dict[str, Any]:
        """The summary of fine-tuning from a run, or with the recipe UNTRAINED from nothing."""
        return run_job(self.finetuning(recipe, seed, task), self.threads)

    def finetuning(self, recipe: str, seed: int, task: Task) -> Job:
        """A fine-tuning with its arguments."""
        name = f"{task.name}-from-{self.folder(recipe, seed).name}"
        init = "" if recipe == UNTRAINED else str(self.folder(recipe, seed))
        arguments = [task.finetune, *self.tuning, f"data={task.data}", f"init={init}", f"seed={seed}"]
        arguments += ["finetune.seeds=1", f"run.folder={self.out}", f"run.name={name}"]
        return Job(name, tuple(arguments), self.out / name)

    def check(self, task: Task) -> None:
        """Open everything that a task's probes and fine-tuning need, to find mistakes before anything is trained.

        Raises GamutError with the task's name.
        """
        try:
            for recipe in self.recipes:
                name, *arguments = self.pretraining(recipe, 0)
                labelled(override(load_recipe("pretrain", name, arguments), self.probing(task)))
            if task.finetune:
                name, *arguments = self.finetuning(UNTRAINED, 0, task).arguments
                tuned = load_recipe("finetune", name, arguments)
                index = open_sets(require_sets(tuned), tuned.remote)
                index.normalisation(tuned.front)
                for each in rounds(tuned, index):
                    select(index, tuned.subset | {tuned.folds.column: list(each.train)}, tuned.plan.weights)
        except GamutError as error:
            raise GamutError(f"--task {task.name}: {error}") from None

    def check_kind(self, kind: str) -> None:
        """Raises RecipeError where the probes of a recipe give no such vectors."""
        from gamut.probe.features import kinds  # here: torch takes its time

        for recipe in self.recipes:
            known = kinds(load_recipe("pretrain", recipe, self.overrides))
            if kind not in known:
                more = " With probe.rows=true it has rows." if kind == "rows" else ""
                raise RecipeError(
                    f"--kind {kind}: {recipe} does not have these vectors, only {', '.join(known)}.{more}"
                )

    def tokens(self, recipe: str) -> int:
        """Tokens of a whole pretraining: those of its first epoch's plan, with class tokens and all views, times
        epochs."""
        resolved = load_recipe("pretrain", recipe, self.overrides)
        index = open_sets(require_sets(resolved), resolved.remote)
        clips = select(index, resolved.subset, resolved.plan.weights)
        return int(plan_epoch(clips, 0, 0, training_policy(resolved)).tokens.sum()) * resolved.epochs

    def flops(self, recipe: str) -> float:
        """Operations of a whole pretraining, by the account of a step (`gamut.estimate`), so many for each token."""
        from gamut.estimate.step import account  # here: torch takes its time
        from gamut.estimate.work import work_of

        resolved = load_recipe("pretrain", recipe, self.overrides)
        work = work_of(resolved, 1, CLIPS_OF_ACCOUNT)
        return account(resolved, work, "cpu").flops / work.tokens * self.tokens(recipe)

    def seconds(self, recipe: str, seed: int, steps: Sequence[int]) -> list[float]:
        """CPU seconds that a pretraining had taken at these steps; none where its metrics do not tell."""
        return findings.spent(History.read(self.folder(recipe, seed) / "metrics.jsonl"), steps)


def there(done: bool, what: Path, asked: Path, arguments: Sequence[str]) -> bool:
    """Whether a result is `done`; its arguments are kept in the file `asked`.

    A result without that file, of an earlier version, is accepted. Raises GamutError where a result has other
    arguments.
    """
    if done and asked.exists() and json.loads(asked.read_text()) != list(arguments):
        raise GamutError(f"{what} holds a result of other arguments ({asked}): give another --out, or remove it.")
    asked.parent.mkdir(parents=True, exist_ok=True)
    write_text(asked, json.dumps(list(arguments)))
    return done


def side_by_side(what: Sequence[tuple[str, Callable[[], Any]]], jobs: int, console: Console) -> list[Any]:
    """Results of these calls in order, run `jobs` at a time; the name of each is printed when it is done."""
    results = []
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(work) for _, work in what]
        try:
            for number, ((name, _), result) in enumerate(zip(what, waiting), 1):
                results.append(result.result())
                console.print(f"[{number}/{len(what)}] {name}", highlight=False, markup=False)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


@command
def main(argv: list[str] | None = None) -> int:
    parser = parser_of("study", __doc__)
    parser.add_argument("recipe", nargs="+", help="recipes of pretraining; words with `=` are overrides of all of them")
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="NAME=SHARDS[,RECIPE]",
        help="RECIPE: the recipe to fine-tune with",
    )
    parser.add_argument("--tune", action="append", default=[], metavar="a.b=c", help="an override of fine-tuning")
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--points", type=positive, default=4, help="checkpoints of each run that are probed")
    parser.add_argument("--kind", default="both", choices=KINDS, help="which vectors of a clip the figure shows")
    parser.add_argument(
        "--over",
        default="tokens",
        choices=findings.COSTS,
        help="what the figure shows scores over: tokens, operations, or CPU seconds of the first rank's process",
    )
    parser.add_argument("--jobs", type=positive, default=1, help="runs at the same time")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    options = parser.parse_intermixed_args(argv)
    recipes = tuple(word for word in options.recipe if "=" not in word)
    overrides = tuple(word for word in options.recipe if "=" in word)
    if not recipes:
        raise RecipeError("Name a recipe of pretraining, such as asit_tiny.")
    study = Study(
        recipes, overrides, tuple(options.tune), options.seeds, options.points, options.out,
        share_of_cores(options.jobs),
    )  # fmt: skip
    tasks = [Task.parse(text) for text in options.task]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"Two tasks are called {name}: give each --task a different name.")
    seeds = range(study.seeds)
    console = Console()
    tokens = {recipe: study.tokens(recipe) for recipe in recipes}
    study.check_kind(options.kind)
    for task in tasks:
        study.check(task)
    flops = {recipe: study.flops(recipe) for recipe in recipes}
    for recipe, count in tokens.items():
        console.print(
            f"{recipe}: {count / 1e6:.2f} million tokens, {flops[recipe] / 1e12:.3g} TFLOP a run", highlight=False
        )

    runs = [(recipe, seed) for seed in seeds for recipe in recipes]  # a seed of every arm before the next
    pretrained = [(f"pretrained {study.folder(*run).name}", partial(study.pretrain, *run)) for run in runs]
    side_by_side(pretrained, options.jobs, console)
    probes = [(*run, task) for task in tasks for run in runs]
    scores = side_by_side(
        [(f"probed {study.folder(*one[:2]).name} on {one[2].name}", partial(study.probe, *one)) for one in probes],
        options.jobs,
        console,
    )
    tunings = [
        (recipe, seed, task) for task in tasks if task.finetune for seed in seeds for recipe in (UNTRAINED, *recipes)
    ]
    tuned = side_by_side(
        [
            (f"fine-tuned {study.folder(*one[:2]).name} on {one[2].name}", partial(study.finetune, *one))
            for one in tunings
        ],
        options.jobs,
        console,
    )

    report = findings.collect(
        {(recipe, seed, task.name): found for (recipe, seed, task), found in zip(probes, scores)},
        {(recipe, seed, task.name): found["mean"] for (recipe, seed, task), found in zip(tunings, tuned)},
        tokens,
        flops,
        study.seconds,
        {(recipe, seed, task.name): seen_by([found]) for (recipe, seed, task), found in zip(tunings, tuned)},
    )
    write_text(study.out / "study.json", json.dumps(report, indent=2))
    for table in (*findings.tables(report), *findings.paths(report, options.kind)):
        console.print(table)
    findings.plot(report, options.kind, options.over).savefig(study.out / "study.png", dpi=100)
    console.print(f"every number: {study.out / 'study.json'}; curves: {study.out / 'study.png'}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
