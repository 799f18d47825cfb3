"""The run folder: everything that a run leaves behind, in one place that only its owner may enter."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gamut.commands import IN_CLONE, ROOT, version
from gamut.errors import CheckpointError, RunError
from gamut.files import lock, write_text
from gamut.recipe.resolved import decisive, differences, read_resolved, read_values, resolved_yaml
from gamut.recipe.schema import Recipe
from gamut.track.checkpoints import Checkpoints

RECIPE = "recipe.yaml"
RECORD = "run.json"
METRICS = "metrics.jsonl"
LOCK = "lock"  # held by the process that runs it, whose name is in it
SUMMARY = "summary.json"  # of fine-tuning: what all its rounds come to, once they are finished
# Of a round of fine-tuning, which is a run inside the run's folder:
ROUND = re.compile(r"test-.+-seed-\d+")  # the name of its folder
BEST = "best.safetensors"  # the weights of the epoch that did best on what `chosen_on` in it says
RESULT = "result.json"  # its scores, once it is finished
CLASSES = "classes.csv"  # and every number of each class
SCORES = "scores.npz"  # what it said of each clip of the test, in the selected epoch
START = "init.json"  # what it began with


@dataclass(frozen=True)
class RunFolder:
    """`RUNS/NAME/`, mode 0700: recipe.yaml, run.json, metrics.jsonl, figures/, logs/ and the checkpoints.

    `attempt` counts the starts of this run from 1, in a folder that was opened; `identity` names the run for ever,
    wherever the folder is moved.
    """

    path: Path
    attempt: int = 0
    identity: str = ""

    @staticmethod
    def place(recipe: Recipe) -> Path:
        """Where the recipe's run lies, made or not: the same on every rank."""
        return Path(recipe.run.folder) / recipe.run.name

    @classmethod
    def open(cls, recipe: Recipe) -> RunFolder:
        """Make the folder or go on in it, and count the attempt. For one rank only, which holds the folder's lease.

        Raises RunError where the folder is another user's, or belongs to a recipe that differs in a key that decides
        the run's numbers.
        """
        path = cls.place(recipe)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.stat().st_uid
        if owner != os.geteuid():
            raise RunError(f"The run folder {path} belongs to user {owner}; choose another run.name or run.folder.")
        for folder in [path, *path.parents][: len(Path(recipe.run.name).parts)]:  # a run may lie inside another
            folder.chmod(0o700)
        cls.keep_recipe(path, recipe)
        for name in ("figures", "logs"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        record = read_record(path)
        identity, attempt = str(record.get("identity") or uuid.uuid4().hex), int(record.get("attempt", 0)) + 1
        write_text(path / RECORD, json.dumps({"identity": identity, "attempt": attempt}))
        return cls(path, attempt, identity)

    @classmethod
    def last(cls, path: Path) -> RunFolder:
        """A folder that is only read, as its last attempt left it. Raises RunError where there is none."""
        record = read_record(path)
        if not record:
            raise RunError(f"There is no run at {path}: it has no {RECORD}.")
        return cls(path, int(record["attempt"]), str(record["identity"]))

    @classmethod
    def find(cls, path: str | Path) -> RunFolder | None:
        """The run that a path lies in: a run's or a round's own folder, a checkpoint, a file. None where it is in none.

        >>> RunFolder.find("runs/asit_b/checkpoints/step-00000100").path      # doctest: +SKIP
        PosixPath('runs/asit_b')
        """
        place = Path(path).expanduser().resolve()
        near = (place, *place.parents)
        return next((cls(folder) for folder in near if (folder / RECIPE).is_file()), None)

    @classmethod
    def rounds(cls, path: Path) -> list[RunFolder]:
        """The rounds of a fine-tuning run, by name; or the one run whose folder this is."""
        if (path / RECIPE).is_file():
            return [cls(path)]
        return [cls(file.parent) for file in sorted(path.glob(f"*/{RECIPE}")) if ROUND.fullmatch(file.parent.name)]

    @staticmethod
    def inside(path: Path) -> list[Path]:
        """The runs in a folder of runs, by name."""
        found = [file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/{RECIPE}")]
        return sorted({one.parent if ROUND.fullmatch(one.name) else one for one in found})

    @staticmethod
    def keep_recipe(path: Path, recipe: Recipe) -> None:
        """The first attempt writes the resolved recipe; later ones must want the same. Raises RunError."""
        file = path / RECIPE
        if not file.exists():
            write_text(file, resolved_yaml(recipe))
            return
        _require_same(path, read_resolved(file), recipe)

    @classmethod
    def require_same(cls, recipe: Recipe) -> None:
        """Raise RunError where the recipe's run, or a round of it, is there already and was started with another one:
        another engine or stage too, so that nobody waits for GPUs to be told."""
        place = cls.place(recipe)
        for run in cls.rounds(place):
            then, now = run.recipe, recipe
            if run.path != place:  # a round has folds and a seed of its own
                own = replace(recipe.finetune, seeds=then.finetune.seeds)
                now = replace(recipe, seed=then.seed, folds=then.folds, finetune=own)
            _require_same(run.path, then, now)

    @property
    def recipe(self) -> Recipe:
        """As the first attempt resolved it. Raises RecipeError where it is missing or does not fit."""
        return read_resolved(self.path / RECIPE)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints")

    def weights(self) -> Path:
        """The weights that the run stands for, one rule for all that opens a run: BEST, or a checkpoint's folder.

        Of a fine-tuning the epoch that was chosen on validation folds where the recipe has some, else the last: the
        best one would be chosen on the folds that score it. Of a pretraining the newest checkpoint. Raises
        CheckpointError where they are not there.
        """
        best = self.path / BEST
        if self._chosen():
            if not best.is_file():
                raise CheckpointError(
                    f"The run {self.path} has no {BEST}, the epoch that its validation folds chose: it has not been "
                    "scored yet, or the file was removed."
                )
            return best
        try:
            return self.checkpoints.newest()
        except CheckpointError as error:
            if not best.is_file():
                raise
            raise CheckpointError(
                f"{error} The run stands for its last epoch, since it has no validation folds. {best} was chosen on "
                "the folds that score it; to use that anyway, name the file."
            ) from error

    def _chosen(self) -> bool:
        """Whether validation folds choose its epoch; of a recipe that is not whole, or of another version, too."""
        says = read_values(self.path / RECIPE) if (self.path / RECIPE).is_file() else {}
        return says.get("stage") == "finetune" and bool((says.get("folds") or {}).get("validation"))

    def index(self) -> str:
        """Fingerprint of the shards' index that the run was trained on; empty where its record does not say."""
        try:
            with self.metrics.open(encoding="utf-8") as lines:
                first: dict[str, Any] = next((json.loads(line) for line in lines if '"event": "start"' in line), {})
            return str(first.get("index", ""))
        except (OSError, ValueError, AttributeError):
            return ""

    def holder(self) -> str:
        """Who runs it, in words; empty where no process holds its lock. Raises OSError where that cannot be told."""
        file = self.path / LOCK
        if not file.exists():
            return ""
        with lock(file, wait=False, inherited=False) as idle:
            return "" if idle else file.read_text(errors="replace")[:200].strip() or "another process"

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def logs(self) -> Path:
        return self.path / "logs"


def _require_same(path: Path, then: Recipe, now: Recipe) -> None:
    changed = differences(decisive(then), decisive(now))
    if changed:
        shown = [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
        more = f"; and {len(shown) - 3} more" if len(shown) > 3 else ""
        back = [f"{key}={_typed(old)}" for key, (old, _) in changed.items()]
        raise RunError(
            f"The run at {path} was started with another recipe ({'; '.join(shown[:3])}{more}), which decides its "
            f"numbers.{_longer(changed)} To go on with it, set {' '.join(back)}. To change over, give the new run a "
            f"name of its own with run.name=... (init={path} starts it from this one's weights), or remove the folder "
            "to start it afresh."
        )


def _longer(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """What is said of a run that is to be longer: its schedule ran over the epochs that it was started with."""
    then, now = changed.get("epochs", (0, 0))
    if not isinstance(then, int) or not isinstance(now, int) or now <= then:
        return ""
    return " Its learning rate was to end after these epochs, so more of them are another run, from its weights."


def _typed(value: Any) -> str:
    """A value as it is typed behind `key=`."""
    if isinstance(value, str):
        return value
    return "null" if value is None else json.dumps(value, separators=(",", ":"))


def read_record(path: Path) -> dict[str, Any]:
    """run.json of a run folder; empty where there is none. Raises RunError where it is damaged."""
    file = path / RECORD
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text())
        return {"identity": str(record["identity"]), "attempt": int(record["attempt"])}
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{file} is damaged ({error}); restore it, or remove it to count attempts afresh.") from None


def git_revision() -> str:
    """The commit that this code is from, `+changes` behind it where files differ; for an installed package its version,
    such as `gamut 0.1.0`. `unknown` where there is neither."""
    if IN_CLONE:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            top, head = _git("rev-parse", "--show-toplevel", "HEAD").splitlines()
            if Path(top).resolve() == ROOT:  # not the repository of a project that this one lies in
                return f"{head}+changes" if _git("status", "--porcelain", "--untracked-files=no") else head
    return f"gamut {number}" if (number := version()) else "unknown"


def began_with(recipe: Recipe) -> str:
    """Fingerprint of the index that the recipe's run, or its first round, began with; empty where it did not begin."""
    return next(filter(None, (one.index() for one in RunFolder.rounds(RunFolder.place(recipe)))), "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20, check=True)  # noqa: S607 (whichever git the user has)
    return done.stdout.strip()
