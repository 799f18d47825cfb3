"""From metrics.jsonl to MLflow.

What MLflow shows is a function of the file: feeding twice, or after a crash at any point, changes nothing. A parent run
stands for the run; a child run an attempt holds that attempt's facts. The parent gets metrics only as far as they
cannot be undone (the last checkpoint, or the end), so every (key, step) is there once, however often the run restarts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gamut.files import write_text
from gamut.recipe.resolved import recipe_hash
from gamut.recipe.schema import Recipe
from gamut.settings import flatten
from gamut.track.metrics import Attempt, History
from gamut.track.run import RunFolder
from gamut.track.store import connect, experiment_id, public, tagged_run

BATCH = 1000  # metrics a request: the REST interface's limit
PARAMS = 100  # params a request: likewise
LONGEST_PARAM = 6000
LONGEST_NAME, LONGEST_DIGEST = 500, 36  # of a data set
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "preempted": "SCHEDULED"}


class Feed:
    """One run's way into one MLflow store. Not for two threads at once."""

    def __init__(self, folder: RunFolder, recipe: Recipe, uri: str) -> None:
        self.folder, self.recipe, self.uri = folder, recipe, uri
        self._history = History()
        self._client: Any = None
        self._run = ""  # id of the parent run
        self._children: dict[int, tuple[str, str]] = {}  # attempt -> (run id, status there)
        self._given: set[str] = set()  # fingerprints of shard sets that MLflow has been told
        self._marks = Marks(folder.path / "mlflow.json", uri)

    def now(self, dead: bool = False) -> None:
        """Bring MLflow up to date. `dead`: nobody works on the run, so an attempt without an end was killed.

        Raises whatever MLflow raises; the next call then starts from what MLflow says it has.
        """
        try:
            self._now(dead)
        except BaseException:
            self._client = None
            raise

    @property
    def run(self) -> str:
        """MLflow's id of the run. Raises as `now`."""
        if self._client is None:
            self._connect()
        return self._run

    def keep(self, files: Sequence[Path], at: str | None = "report") -> None:
        """Log files as artifacts of the run, below a name or none, in the place of those that it has there. Raises as
        `now`."""
        run = self.run
        for file in files:
            self._client.log_artifact(run, str(file), at)

    def keep_folder(self, folder: Path, at: str) -> None:
        """Log all files of a folder as artifacts below a name. Raises as `now`."""
        run = self.run
        self._client.log_artifacts(run, str(folder), at)

    def _now(self, dead: bool) -> None:
        if self._client is None:
            self._connect()
        history = self._history
        history.done = self._marks.steps  # what MLflow has is settled: a long run's points are not all held again
        history.follow(self.folder.metrics)
        self._feed_points()
        for number, attempt in sorted(history.attempts.items()):
            self._feed_attempt(attempt, gone=dead or number < max(history.attempts))
        self._feed_tags()
        last = history.last_attempt
        if last is not None:
            status = _STATUS[last.status] if last.status else ("KILLED" if dead else "RUNNING")
            end = None if last.ended is None else round(1000 * last.ended)
            if status in ("RUNNING", "SCHEDULED"):
                self._client.update_run(self._run, status=status)
            else:
                self._client.set_terminated(self._run, status, end_time=end)
        self._feed_figures()

    def _connect(self) -> None:
        client = connect(self.uri)
        self._run = self._find_run(client)
        give_params(client, self._run, self.recipe)
        self._children.clear()
        for child in self._children_of(client):
            self._children[int(child.data.tags["gamut.attempt"])] = (child.info.run_id, child.info.status)
        self._client = client

    def _find_run(self, client: Any) -> str:
        """The parent run: the one that was fed before, one that was made in an attempt cut short, or a new one."""
        experiment = experiment_id(client, self.uri, self.recipe.track.experiment)
        tags = {"gamut.run": self.folder.identity, "gamut.kind": "run"}
        run = str(tagged_run(client, experiment, self.recipe.run.name, tags, **source(self.recipe)).info.run_id)
        self._marks.belong_to(run)
        return run

    def _children_of(self, client: Any) -> list[Any]:
        experiment = client.get_run(self._run).info.experiment_id
        query = f"tags.`mlflow.parentRunId` = '{self._run}'"
        found, token = [], None
        while True:
            page = client.search_runs([experiment], filter_string=query, page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return [run for run in found if "gamut.attempt" in run.data.tags]

    def _feed_points(self) -> None:
        """Every point that is settled and beyond its key's mark, in order of steps, in batches."""
        settled, marks = self._history.settled, self._marks
        waiting = sorted(
            (step, key, value, when)
            for key, points in self._history.points.items()
            for step, (value, when) in points.items()
            if marks.steps.get(key, -1) < step <= settled
        )
        there: set[tuple[str, int]] = set()
        doubted = marks.in_doubt  # a batch was sent and its answer never came, or the marks are lost: ask what is there
        if doubted:
            for key in {key for _, key, _, _ in waiting}:
                history = self._client.get_metric_history(self._run, metric_name(key))
                there |= {(key, point.step) for point in history}
        for start in range(0, len(waiting), BATCH):
            batch = waiting[start : start + BATCH]
            marks.doubt()
            self._send([point for point in batch if (point[1], point[0]) not in there])
            for step, key, _, _ in batch:
                marks.steps[key] = max(step, marks.steps.get(key, -1))
            if doubted:  # until all that may be there has been compared
                marks.save()
            else:
                marks.trust()
        if doubted:
            marks.trust()
        for key, points in self._history.points.items():  # what MLflow has need not be kept in memory
            for step in [s for s in points if s <= marks.steps.get(key, -1)]:
                del points[step]

    def _send(self, points: list[tuple[int, str, float, float]]) -> None:
        from mlflow.entities import Metric

        if points:
            metrics = [Metric(metric_name(key), value, round(1000 * when), step) for step, key, value, when in points]
            self._client.log_batch(self._run, metrics=metrics)

    def _feed_attempt(self, attempt: Attempt, gone: bool) -> None:
        run, status = self._children.get(attempt.number, ("", ""))
        if not run:
            tags = {
                "mlflow.parentRunId": self._run,
                "gamut.attempt": str(attempt.number),
                "gamut.kind": "attempt",
                **{f"gamut.{key}": str(value)[:LONGEST_PARAM] for key, value in attempt.facts.items()},
            }
            experiment = self._client.get_run(self._run).info.experiment_id
            made = self._client.create_run(
                experiment,
                start_time=round(1000 * attempt.started),
                tags=tags,
                run_name=f"{self.recipe.run.name}, attempt {attempt.number}",
            )
            run, status = made.info.run_id, "RUNNING"
            self._children[attempt.number] = (run, status)
        ended = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
        wanted = ended[attempt.status] if attempt.status else ("KILLED" if gone else "RUNNING")
        if wanted != status:
            end = None if attempt.ended is None else round(1000 * attempt.ended)
            self._client.set_terminated(run, wanted, end_time=end)
            self._children[attempt.number] = (run, wanted)

    def _feed_tags(self) -> None:
        last, checkpoint = self._history.last_attempt, self._history.checkpoint
        tags = {"gamut.recipe_hash": recipe_hash(self.recipe), "gamut.folder": str(self.folder.path.resolve())}
        if last is not None:
            tags |= {"gamut.index": str(last.facts.get("index", "")), "gamut.attempts": str(last.number)}
            tags |= {"mlflow.source.git.commit": str(last.facts.get("git", "unknown"))}
            self._feed_data(str(last.facts.get("index", "")))
        if checkpoint is not None:
            tags |= {f"gamut.checkpoint.{key}": str(checkpoint.get(key, "")) for key in ("step", "uri", "sha256")}
        for key, value in tags.items():
            if self._marks.tags.get(key) != value:
                self._client.set_tag(self._run, key, value)
                self._marks.tags[key] = value

    def _feed_data(self, fingerprint: str) -> None:
        """The shard set, once a fingerprint: what MLflow shows as the run's data set."""
        if fingerprint and fingerprint not in self._given:
            give_data(self._client, self._run, self.recipe, fingerprint)
            self._given.add(fingerprint)

    def _feed_figures(self) -> None:
        for name, files in sorted(self._history.figures.items()):
            for step, file in sorted(files.items()):
                path = self.folder.path / file
                if self._marks.figures.get(name, -1) < step <= self._history.settled and path.exists():
                    self._client.log_artifact(self._run, str(path), "figures")
                    self._marks.figures[name] = step
                    self._marks.save()


def source(recipe: Recipe) -> dict[str, str]:
    """Tags that say what made a run of this recipe."""
    return {
        "gamut.stage": recipe.stage,
        "mlflow.source.name": f"gamut {recipe.stage}",
        "mlflow.source.type": "LOCAL",
    }


def give_params(client: Any, run: str, recipe: Recipe) -> None:
    """The recipe's keys, once: a param never changes."""
    from mlflow.entities import Param

    values = {
        key: str(value)[:LONGEST_PARAM]
        for key, value in flatten(recipe).items()
        if not key.startswith(("track.", "run."))
    }
    there = client.get_run(run).data.params
    missing = [Param(key, value) for key, value in values.items() if key not in there]
    for start in range(0, len(missing), PARAMS):
        client.log_batch(run, params=missing[start : start + PARAMS])


def give_data(client: Any, run: str, recipe: Recipe, fingerprint: str) -> None:
    """The shard set that a run reads, by its name and the fingerprint of its index. Giving it again changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name = "+".join(Path(place).name for place in recipe.mixture or [recipe.data]) or recipe.dataset or "clips"
    where = json.dumps({"uri": public(recipe.data)})
    data = Dataset(name[:LONGEST_NAME], fingerprint[:LONGEST_DIGEST], "local", where)
    client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def metric_name(key: str) -> str:
    """MLflow's names know letters, digits and _-. :/ only."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", key)


class Marks:
    """How far a run has been fed, in a small file: of each metric and figure the last step that MLflow has."""

    def __init__(self, path: Path, uri: str) -> None:
        self.path = path
        self.store = public(uri)
        self.run = ""
        self.steps: dict[str, int] = {}
        self.figures: dict[str, int] = {}
        self.tags: dict[str, str] = {}  # not kept on disk: setting one again changes nothing
        self.in_doubt = True

    def belong_to(self, run: str) -> None:
        """Take up the marks of MLflow's run `run`; without them (lost, or another store) all is in doubt."""
        self.run = run
        try:
            saved = json.loads(self.path.read_text())
            if saved["run"] == run:
                self.steps = {str(key): int(step) for key, step in saved["steps"].items()}
                self.figures = {str(key): int(step) for key, step in saved["figures"].items()}
                self.in_doubt = bool(saved["in_doubt"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self.steps, self.figures, self.in_doubt = {}, {}, True
        self.save()

    def doubt(self) -> None:
        """A batch is about to leave."""
        if not self.in_doubt:
            self.in_doubt = True
            self.save()

    def trust(self) -> None:
        """The batch has arrived."""
        self.in_doubt = False
        self.save()

    def save(self) -> None:
        record = {"store": self.store, "run": self.run, "in_doubt": self.in_doubt}
        write_text(self.path, json.dumps({**record, "steps": self.steps, "figures": self.figures}))
