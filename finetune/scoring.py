"""Scores of a round as it goes, its best and its last epoch, and what all rounds come to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from finetune.evaluation import evaluate
from finetune.objective import Classify
from finetune.rounds import Round
from gamut.models.weights import load_weights, save_weights
from gamut.plan import Clips
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy
from gamut.shards import Index
from gamut.track import figures
from gamut.track.run import write_whole
from gamut.train.objective import Moment
from gamut.train.session import Session
from gamut.train.world import World

BEST = "best.safetensors"


class Scoring:
    """Scores a round's test folds every few epochs and at its end; keeps the weights of the best epoch.

    That epoch is chosen on the test folds, so it says so, and is never what a round is judged by.
    """

    def __init__(
        self,
        objective: Classify,
        recipe: schema.Recipe,
        each: Round,
        index: Index,
        test: Clips,
        run: Session,
        world: World,
    ) -> None:
        self.objective, self.recipe, self.each = objective, recipe, each
        self.index, self.test, self.run, self.world = index, test, run, world
        self.metric = "accuracy" if recipe.finetune.loss == "ce" else "mAP"
        self.best = {"score": -1.0, "epoch": 0.0}
        if world.first and (run.folder / BEST).exists():
            self.best = load_weights(run.folder / BEST)[1]["best"]

    def __call__(self, epoch: int, at: Moment) -> dict[str, float]:
        """Called by all ranks after every epoch; scores when it is time."""
        every = max(1, round(self.recipe.finetune.evaluate_epochs))
        if epoch + 1 != self.recipe.epochs and (epoch + 1) % every:
            return {}
        scores = evaluate(
            self.objective,
            self.index,
            self.test,
            evaluation_policy(self.recipe),
            per_forward=self.recipe.loader.packs_per_forward,
            workers=self.recipe.loader.workers,
        )
        values = scores.metrics(self.recipe.finetune.loss)
        if self.world.first:
            scores.save(self.run.folder / "scores.npz", self.index)
            self._keep_best(values[self.metric], epoch)
            print(
                f"{self.recipe.run.name}  epoch {epoch + 1}: {self.metric} {values[self.metric]:.1%} on folds "
                f"{', '.join(map(str, self.each.test))}",
                flush=True,
            )
        return {f"test/{name}": value for name, value in values.items()}

    def _keep_best(self, score: float, epoch: int) -> None:
        if score <= self.best["score"]:
            return
        self.best = {"score": score, "epoch": epoch + 1}
        note = {"best": self.best, "chosen_on": f"test folds {self.each.test}", "model": asdict(self.recipe.model)}
        save_weights(self.run.folder / BEST, self.objective.model, note)

    def finish(self, step: int, seen: int) -> dict:
        """Rank 0, once the round is trained: confusion matrix and result.json from the last epoch's scores.

        seen: how many of the scored clips the pretraining had, without their labels.
        """
        with np.load(self.run.folder / "scores.npz", allow_pickle=False) as scores:
            target, logits = scores["target"], scores["logits"]
        counts = np.zeros((len(self.index.labels),) * 2, np.int64)
        np.add.at(counts, (target.argmax(1), logits.argmax(1)), 1)
        if self.metric == "accuracy":
            score = float(np.diag(counts).sum() / counts.sum())
            title = f"{self.recipe.run.name}: accuracy {score:.1%}, last epoch"
            self.run.tracker.figure("confusion", figures.confusion_matrix(counts, self.index.labels, title), step)
        else:
            from finetune.evaluation import Scores

            score = Scores(np.arange(len(target)), target, logits).metrics(self.recipe.finetune.loss)[self.metric]
        result = {
            "train": list(self.each.train),
            "test": list(self.each.test),
            "seed": self.each.seed,
            "metric": self.metric,
            "score": score,
            "clips": len(target),
            "seen_in_pretraining": seen,
            "best_chosen_on_the_test_folds": self.best,
            "confusion": counts.tolist(),
            "scores": str(self.run.folder / "scores.npz"),
        }
        write_whole(self.run.folder / "result.json", json.dumps(result))
        return result


def summarise(folder: Path, index: Index, results: list[dict]) -> dict:
    """Write summary.json and the confusion matrix over all rounds, print the table; returns the summary."""
    metric = results[0]["metric"]
    scores = [result["score"] for result in results]
    confusion = np.sum([result["confusion"] for result in results], axis=0)
    summary = {
        "metric": metric,
        "labels": list(index.labels),
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores)),
        "clips": sum(result["clips"] for result in results),
        "seen_in_pretraining": sum(result["seen_in_pretraining"] for result in results),
        "rounds": results,
    }
    write_whole(folder / "summary.json", json.dumps(summary, indent=2))
    table = Table(title=f"{folder.name}: {metric} of the last epoch")
    for name in ("test folds", "seed", "clips", metric, "best epoch (chosen on the test folds)"):
        table.add_column(name)
    for result in results:
        best = result["best_chosen_on_the_test_folds"]
        table.add_row(
            ", ".join(map(str, result["test"])),
            str(result["seed"]),
            str(result["clips"]),
            f"{result['score']:.1%}",
            f"{best['score']:.1%} at {best['epoch']:.0f}",
        )
    table.add_section()
    table.add_row("mean", "", str(summary["clips"]), f"{summary['mean']:.1%} ± {summary['std']:.1%}", "")
    Console().print(table)
    if metric == "accuracy":
        (folder / "figures").mkdir(exist_ok=True)
        figure = figures.confusion_matrix(confusion, index.labels, f"{folder.name}: {len(results)} rounds, last epoch")
        figure.savefig(folder / "figures" / "confusion.png", dpi=110)
        print(f"confusion matrix: {folder / 'figures' / 'confusion.png'}", flush=True)
    return summary
