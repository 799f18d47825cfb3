"""What is to be exported: a run's weights by the one rule, and all that is known of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gamut.errors import ExportError
from gamut.export.story import Story, story_of
from gamut.models.backbone import Backbone, build
from gamut.models.classifier import ClassifierNetwork
from gamut.models.find import HEAD, find_weights, metadata_of, recipe_of
from gamut.models.tagger import head_tensors
from gamut.models.weights import load_backbone, load_classifier, load_weights
from gamut.recipe import schema
from gamut.recipe.resolved import portable
from gamut.shards.trained import trained_front
from gamut.train.objective import described

PASSED_ON = ("best", "chosen_on", "thresholds")  # of what weights say of themselves, besides what is said anew


@dataclass(frozen=True)
class Source:
    """The weights of a model, read and checked, on the CPU."""

    weights: Path
    recipe: schema.Recipe
    about: dict[str, Any]  # all that is needed to use them without a run folder; the metadata of an exported file
    state: dict[str, torch.Tensor]  # of the model alone, by its own names
    network: ClassifierNetwork | Backbone | None  # None: a head on the features of an encoder
    story: Story

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in their order; empty where there are none."""
        return tuple(self.about.get("labels", ()))

    @property
    def backbone(self) -> Backbone:
        """Of a model that is no head. Raises ExportError where it is one."""
        if self.network is None:
            raise ExportError(f"{self.weights} is a head on the features of an encoder, and no model by itself.")
        return self.network.backbone if isinstance(self.network, ClassifierNetwork) else self.network


def open_source(place: str | Path) -> Source:
    """The model that a run, round, checkpoint, file of weights or exported folder stands for.

    Raises CheckpointError where there are no weights, or damaged ones; ExportError where they do not say of which model
    they are: only what Gamut trained can be exported.
    """
    weights = find_weights(place)
    recipe = recipe_of(weights)
    if recipe is None:
        raise ExportError(
            f"{weights} does not say of which model it is: name a run, a round, a checkpoint, or an exported folder."
        )
    said = metadata_of(weights)
    story = Story.read(said["story"]) if "story" in said else story_of(weights, recipe)
    if "head" in said or any(name.endswith(HEAD) for name in load_weights(weights)[0]):
        return _head(weights, recipe, said, story)
    front = trained_front(weights, recipe)
    assert front.mean is not None
    assert front.std is not None
    about = described(recipe, front.mean, front.std)
    about["front"]["mode"] = front.mode
    if recipe.stage == "finetune":
        labels = said.get("labels")
        if not labels:
            raise ExportError(
                f"{weights} does not say which classes it tells apart: it was written by an earlier version. Score the "
                "run again."
            )
        about |= {"loss": recipe.finetune.loss, "labels": list(labels)}
        network: ClassifierNetwork | Backbone = ClassifierNetwork(recipe.model, len(labels), recipe.seed)
        assert isinstance(network, ClassifierNetwork)
        load_classifier(network, weights)
        state = network.state_dict()
    else:
        network = build(recipe.model)
        load_backbone(network, weights)
        state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    about |= {name: said[name] for name in PASSED_ON if name in said}
    about |= {"recipe": portable(recipe), "story": asdict(story)}
    return Source(weights, recipe, about, state, network.eval(), story)


def _head(weights: Path, recipe: schema.Recipe, said: dict[str, Any], story: Story) -> Source:
    if "head" not in said or not said.get("labels"):
        raise ExportError(
            f"The head in {weights} does not say which classes it tells apart, or of which encoder it reads: it was "
            "written by an earlier version. Score the run again."
        )
    state, _ = head_tensors(weights)
    about = {name: value for name, value in said.items() if name not in ("recipe", "story")}
    about["encoder"] = said["encoder"] | {"name": Path(said["encoder"]["name"]).name}
    about |= {"recipe": portable(recipe), "story": asdict(story)}
    return Source(weights, recipe, about, state, None, story)
