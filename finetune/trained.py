"""Fine-tuned models as their runs left them: the recipe, the selected weights, and the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.average import averaged
from finetune.objective import Classify
from finetune.points import Point, at
from gamut.errors import RunError
from gamut.models.find import find_weights, metadata_of
from gamut.models.strict import copy_into, require_fit
from gamut.models.weights import file_sha256, load_weights
from gamut.recipe import schema
from gamut.recipe.load import override
from gamut.shards import Index
from gamut.shards.trained import trained_front
from gamut.track.run import RESULT, RunFolder


@dataclass(frozen=True)
class Trained:
    """A round of fine-tuning that is finished."""

    folder: Path
    recipe: schema.Recipe

    @property
    def test(self) -> tuple[int | str, ...]:
        """The folds that it is scored on."""
        return tuple(self.recipe.folds.test[0])


def trained(run: Path, overrides: tuple[str, ...] = ()) -> list[Trained]:
    """The rounds of a fine-tuning run, or the one whose folder is given, by name.

    overrides: keys of the recipe that scoring may have otherwise, such as where the data lies. Raises RunError where
    there is no run, or where a round of it is not finished.
    """
    rounds = RunFolder.rounds(run)
    if not rounds:
        raise RunError(f"There is no fine-tuning run at {run}: name a folder that finetune/run.py made.")
    found = []
    for each in rounds:
        folder, recipe = each.path, each.recipe
        if recipe.stage != "finetune" or recipe.features or recipe.encoder:
            kind = "of a head on an encoder" if recipe.encoder else "of a head on cached features"
            kind = "pretraining" if recipe.stage == "pretrain" else kind
            raise RunError(f"The run {folder} is {kind}; a sweep is over models that are fine-tuned on sound.")
        if not (folder / RESULT).is_file():
            raise RunError(
                f"{folder} is not finished: it has no {RESULT}. Go on with its finetune/run.py command first."
            )
        found.append(Trained(folder, override(recipe, overrides)))
    return found


class Subject:
    """A trained model on the device, at one point after the other, with its selected weights."""

    def __init__(self, one: Trained, index: Index, device: torch.device) -> None:
        """index: of the clips to score, whose classes must be the model's. Raises CheckpointError, RunError."""
        self.recipe = one.recipe
        self.weights = find_weights(one.folder)
        self.digest = file_sha256(self.weights)
        known = metadata_of(self.weights).get("labels") or list(index.labels)
        if known != list(index.labels):
            raise RunError(
                f"The model of {one.folder} tells apart {len(known)} classes ({', '.join(known[:3])}, ...), and the "
                f"{len(index.labels)} of {index.folder} are others: name its own set, or one with the same classes."
            )
        self.front = trained_front(self.weights, one.recipe)
        assert self.front.mean is not None
        assert self.front.std is not None
        mean, std = self.front.mean, self.front.std
        self._task: Classify | None = None
        self._make = lambda recipe: Classify(recipe, len(index.labels), mean, std, recipe.seed, device)

    def at(self, point: Point) -> Classify:
        """The model as it is scored at a point. Raises CheckpointError where the weights are not its recipe's."""
        recipe = at(self.recipe, point)
        if self._task is None:
            self._task = self._make(recipe)
            self._load(self._task)
        self._task.recipe = recipe
        return self._task

    def _load(self, task: Classify) -> None:
        state, _ = load_weights(self.weights)
        hint = f"it is not of the model in the recipe of {self.recipe.run.name}"
        theirs, own = averaged(state) or state, task.model.state_dict()
        require_fit(own, theirs, self.weights, hint, spare=True)
        copy_into(own, theirs)
