"""Fine-tuned models as their runs left them: which recipe, which weights they are judged by, and the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.average import COUNT, PREFIX
from finetune.objective import Classify
from finetune.points import Point, at
from finetune.rounds import RESULT
from finetune.scoring import BEST
from gamut.errors import CheckpointError, RunError
from gamut.models.weights import MODEL, OBJECTIVE, file_sha256, load_weights
from gamut.recipe import schema
from gamut.recipe.load import override
from gamut.recipe.resolved import read_resolved

RECIPE = "recipe.yaml"  # of a round's folder


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
    folders = [run] if (run / RECIPE).is_file() else sorted(path.parent for path in run.glob(f"*/{RECIPE}"))
    if not folders:
        raise RunError(f"There is no fine-tuning run at {run}: name a folder that finetune/run.py made.")
    found = []
    for folder in folders:
        recipe = read_resolved(folder / RECIPE)
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


def judged_weights(one: Trained) -> tuple[dict[str, torch.Tensor], str]:
    """(weights by name, sha256 of their file) that the round was judged by: those of the epoch that validation chose,
    else the last epoch's, or the mean over epochs where it has one. Raises CheckpointError where they are gone."""
    path = one.folder / BEST
    if not one.recipe.folds.validation:
        folder = one.folder / "checkpoints"
        try:
            newest = folder / (folder / "latest").read_text().strip()
        except OSError as error:
            raise CheckpointError(f"{one.folder} has no checkpoint any more: no {folder / 'latest'}.") from error
        path = newest / (OBJECTIVE if one.recipe.finetune.average_from else MODEL)
    state, _ = load_weights(path)
    if COUNT in state:
        state = {name.removeprefix(PREFIX): value for name, value in state.items() if name != COUNT}
    return state, file_sha256(path)


class Subject:
    """A trained model on the device, at one point after the other."""

    def __init__(self, one: Trained, classes: int, mean: float, std: float, device: torch.device) -> None:
        self.recipe = one.recipe
        self.state, self.digest = judged_weights(one)
        self._task: Classify | None = None
        self._make = lambda recipe: Classify(recipe, classes, mean, std, recipe.seed, device)

    def at(self, point: Point) -> Classify:
        """The model as it is scored at a point. Raises CheckpointError where the weights are not its recipe's."""
        recipe = at(self.recipe, point)
        if self._task is None:
            self._task = self._make(recipe)
            self._load(self._task)
        self._task.recipe = recipe
        return self._task

    @torch.no_grad()
    def _load(self, task: Classify) -> None:
        for name, mine in task.model.state_dict().items():
            saved = self.state.get(name)
            if saved is None or saved.shape != mine.shape:
                raise CheckpointError(
                    f"The weights of {self.recipe.run.name} have {'no' if saved is None else 'another'} tensor {name} "
                    f"of shape {tuple(mine.shape)}: they are not of the model in its {RECIPE}."
                )
            mine.copy_(saved)
