"""Scores of a round as it goes, its best and its last epoch, and what all rounds come to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from finetune.evaluation import evaluate, metric_of
from finetune.objective import Classify
from finetune.rounds import Fold, Round
from finetune.start import Start
from gamut.data.loader import Loader
from gamut.evaluate import METRICS
from gamut.evaluate.bootstrap import ends, resampled
from gamut.evaluate.decisions import UNCHOSEN, choose_thresholds
from gamut.evaluate.events import choose_frame_thresholds, event_f1
from gamut.evaluate.scores import Scores, numbers_of
from gamut.files import write_text
from gamut.models.find import metadata_of, thresholds_in
from gamut.models.weights import load_weights, save_weights
from gamut.plan import Clips
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy
from gamut.runs.words import SEEN, footnote, marked, noted, seen_by
from gamut.shards import Index
from gamut.track import figures
from gamut.track.run import BEST, CLASSES, RESULT, SCORES, SUMMARY
from gamut.train.objective import Moment
from gamut.train.schedule import is_due
from gamut.train.session import Session
from gamut.train.world import World

RESAMPLES = 1000  # of the clips, for the interval of a round's score
PLOTTED = 100  # classes of which a confusion matrix is plotted; that of 1,251 speakers would be a picture of 6 GB


class Scoring:
    """Scores a round every few epochs (if any) and at its end; keeps the scores of the selected epoch, and the weights.

    With validation folds that is the epoch which did best on them: the test folds are looked at only then. Without,
    it is the last one; the weights of the best are kept too, but since it was chosen on the test folds its score is
    never the round's, and says so. Where the recipe averages weights over epochs, an epoch's are the mean up to it.
    """

    def __init__(
        self,
        objective: Classify,
        recipe: schema.Recipe,
        each: Round,
        index: Index,
        test: Clips,
        validation: Clips | None,
        run: Session,
        world: World,
        make_loader: Callable[..., Iterable] = Loader,
    ) -> None:
        self.objective, self.recipe, self.each = objective, recipe, each
        self.index, self.test, self.validation, self.run, self.world = index, test, validation, run, world
        self.metric, self.exclusive = metric_of(recipe.finetune), recipe.finetune.loss == "ce"
        self.make_loader = make_loader
        best = None
        if world.first and (run.folder / BEST).exists():
            best = load_weights(run.folder / BEST)[1]["best"]
        self.best: dict[str, float] | None = world.broadcast(
            best
        )  # whether an epoch is better is decided alike on every rank

    def __call__(self, epoch: int, at: Moment) -> dict[str, float]:
        """Called by all ranks after every epoch; scores when it is time."""
        last = epoch + 1 == self.recipe.epochs
        if not last and not is_due(epoch + 1, self.recipe.epochs, self.recipe.finetune.evaluate_epochs):
            return {}
        with self.objective.with_average():
            return self._look(epoch)

    def _look(self, epoch: int) -> dict[str, float]:
        if self.validation is None:
            scores, values = self._score(self.test, "test", self.each.test, epoch)
            self._select(scores)
            if self._is_best(values):
                self._keep_best(values, epoch, {})
            return _named("test", values)
        choosing, values = self._score(self.validation, "validation", self.each.validation, epoch)
        logged = _named("validation", values)
        if self._is_best(values):
            scores, on_test = self._score(self.test, "test", self.each.test, epoch)
            self._select(scores)
            self._keep_best(values, epoch, self._thresholds(choosing))
            logged |= _named("test", on_test)
        return logged

    def _score(self, clips: Clips, what: str, folds: tuple[Fold, ...], epoch: int) -> tuple[Scores, dict[str, float]]:
        scores = evaluate(
            self.objective,
            self.index,
            clips,
            evaluation_policy(self.recipe),
            workers=self.recipe.loader.workers,
            per_forward=self.run.recipe.loader.per_forward,
            make_loader=self.make_loader,
        )
        values = scores.values(self.metric)
        if self.world.first:
            print(
                f"{self.recipe.run.name}  epoch {epoch + 1}: {self.metric.name} "
                f"{self.metric.show(values[self.metric.name])} on {what} folds {', '.join(map(str, folds))}",
                flush=True,
            )
        return scores, values

    def _select(self, scores: Scores) -> None:
        if self.world.first:
            keys = [self.index.key(int(row)) for row in scores.row]
            scores.save(self.run.folder / SCORES, keys, self.index.clip_id[scores.row])

    def _is_best(self, values: dict[str, float]) -> bool:
        return self.metric.better(values[self.metric.name], self.best["score"] if self.best else None)

    def _thresholds(self, choosing: Scores) -> dict[str, list]:
        """Of classes that do not exclude each other, by clips that judge nothing: `thresholds` of clips and, of events,
        `frame_thresholds`, in class order, and the classes of which these clips tell nothing, whose threshold is no
        choice."""
        if self.exclusive or not self.world.first:
            return {}
        found = {"thresholds": choose_thresholds(choosing.target, choosing.logits)}
        if choosing.timed is not None:
            found["frame_thresholds"] = choose_frame_thresholds(choosing.timed.clips(), len(self.index.labels))
        kept: dict[str, list] = {}
        for name, chosen in found.items():
            none = np.isnan(chosen)
            kept |= {} if none.all() else {name: np.where(none, UNCHOSEN, chosen).tolist()}
            kept |= {f"{name}_not_chosen": np.flatnonzero(none).tolist()} if none.any() and not none.all() else {}
        return kept

    def _keep_best(self, values: dict[str, float], epoch: int, thresholds: dict[str, list]) -> None:
        self.best = {"score": values[self.metric.name], "epoch": epoch + 1}
        if self.world.first:
            note = {"best": self.best, "chosen_on": self._chosen_on(), **thresholds, **self.objective.described()}
            save_weights(self.run.folder / BEST, self.objective.model, note)

    def _chosen_on(self) -> str:
        if self.validation is None:
            return f"test folds {', '.join(map(str, self.each.test))}"
        return f"validation folds {', '.join(map(str, self.each.validation))}"

    def finish(self, step: int, leaked: int, start: Start) -> dict:
        """Rank 0, once the round is trained: result.json, classes.csv and the confusion matrix, from the scores of the
        selected epoch.

        leaked: how many of the scored clips the run behind `init` was trained on; start: the weights it began with.
        """
        scores = Scores.load(self.run.folder / SCORES)
        values, metric = scores.values(self.metric), self.metric
        best = self.best or {"score": values[metric.name], "epoch": float(self.recipe.epochs)}
        about = {} if self.validation is None else metadata_of(self.run.folder / BEST)
        numbers = numbers_of(scores, self.exclusive, about.get("thresholds"))
        more = {name: value for name, value in numbers.means.items() if name not in values}
        if scores.timed is not None and (chosen := thresholds_in(about, "frame_thresholds")):
            more["event_f1_chosen"] = event_f1(scores.timed.clips(), np.array(chosen))
        draws = resampled(metric, scores.target, scores.logits, RESAMPLES)
        interval = () if draws is None else ends(draws)
        selected = "last epoch" if self.validation is None else f"epoch {best['epoch']:.0f}, chosen on validation"
        result = {
            "train": list(self.each.train),
            "test": list(self.each.test),
            "seed": self.each.seed,
            "metric": metric.name,
            "score": values[metric.name],
            "metrics": _or_none(values),
            "more_metrics": _or_none(more),
            "left_out": numbers.left_out,
            "interval": list(interval) if np.isfinite(interval).all() else [],
            "by_class": scores.by_class(metric),
            "selected": selected,
            "clips": len(scores.target),
            "index": self.index.fingerprint,
            "init": start,
            SEEN: leaked,
            "best": best | {"chosen_on": self._chosen_on()},
            "scores": str(self.run.folder / SCORES),
        }
        counts = scores.confusion() if metric.confusion else None
        if counts is not None:
            result["confusion"] = counts.tolist()
        if leaked:
            self.run.tracker.log(step, {SEEN: float(leaked)})
        write_text(self.run.folder / CLASSES, numbers.by_class.csv(self.index.labels))
        write_text(self.run.folder / RESULT, json.dumps(result))  # before a picture, which may fail
        if counts is not None and len(counts) <= PLOTTED:
            shown = marked(metric.show(values[metric.name]), leaked)
            title = f"{self.recipe.run.name}: {metric.name} {shown}, {selected}"
            title = noted(title, footnote(leaked, len(scores.target)))
            self.run.tracker.figure("confusion", figures.confusion_matrix(counts, self.index.labels, title), step)
        return result


def _or_none(values: dict[str, float]) -> dict[str, float | None]:
    """For JSON, which has finite numbers alone."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _named(what: str, values: dict[str, float]) -> dict[str, float]:
    """For the log, which takes finite numbers."""
    return {f"{what}/{name}": value for name, value in values.items() if math.isfinite(value)}


def summarise(folder: Path, index: Index, results: list[dict]) -> dict:
    """Write summary.json and the confusion matrix over all rounds, print the table; returns the summary."""
    metric = METRICS[results[0]["metric"]]
    scores = [result["score"] for result in results]
    summary = {
        "metric": metric.name,
        "labels": list(index.labels),
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores)),
        "clips": sum(result["clips"] for result in results),
        SEEN: seen_by(results),
        "rounds": results,
    }
    write_text(folder / SUMMARY, json.dumps(summary, indent=2))
    table = Table(title=f"{folder.name}: {metric.name}")
    for name in ("test folds", "seed", "clips", metric.name, "of the", "best epoch"):
        table.add_column(name)
    for result in results:
        best = result["best"]
        table.add_row(
            ", ".join(map(str, result["test"])),
            str(result["seed"]),
            str(result["clips"]),
            marked(metric.show(result["score"]), seen_by([result])),
            result.get("selected") or result["judged"],  # as an earlier version called it
            f"{metric.show(best['score'])} at {best['epoch']:.0f}, on {best['chosen_on']}",
        )
    table.add_section()
    spread = f" ± {metric.show(summary['std'])}" if len(results) > 1 else ""
    mean = marked(f"{metric.show(summary['mean'])}{spread}", summary[SEEN])
    told = footnote(summary[SEEN], summary["clips"])
    table.add_row("mean", "", str(summary["clips"]), mean, "", "")
    table.caption = told or None
    Console().print(table)
    if metric.confusion and len(index.labels) <= PLOTTED:
        (folder / "figures").mkdir(exist_ok=True)
        confusion = np.sum([result["confusion"] for result in results], axis=0)
        title = noted(f"{folder.name}: {len(results)} rounds", told)
        figure = figures.confusion_matrix(confusion, index.labels, title)
        figure.savefig(folder / "figures" / "confusion.png", dpi=110)
        print(f"confusion matrix: {folder / 'figures' / 'confusion.png'}", flush=True)
    return summary
