"""What is to be exported: a run's weights by the one rule, and all that is known of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gamut.errors import ExportError
from gamut.export.story import Story, story_of
from gamut.models.backbone import Backbone
from gamut.models.classifier import ClassifierNetwork
from gamut.models.find import ENCODER, HEAD, find_weights, metadata_of, recipe_of
from gamut.models.tagger import head_tensors
from gamut.models.weights import load_weights
from gamut.numbers import PATCH, RATE, WINDOW
from gamut.plan import Policy
from gamut.plan.crops import fixed_frames
from gamut.recipe import schema
from gamut.recipe.policy import evaluation_policy
from gamut.recipe.resolved import portable
from gamut.shards.opened import open_spectrograms
from gamut.tag.choose import load
from gamut.tag.speech import Speech
from gamut.train.objective import described

WHISPER = "whisper"  # the kind of an encoder
THRESHOLDS = ("thresholds", "frame_thresholds")
PASSED_ON = ("best", "chosen_on", *THRESHOLDS)  # of what weights say of themselves, besides what is said anew


@dataclass(frozen=True)
class Source:
    """The weights of a model, read and checked, on the CPU."""

    weights: Path
    recipe: schema.Recipe
    about: dict[str, Any]  # all that is needed to use them without a run folder; the metadata of an exported file
    state: dict[str, torch.Tensor]  # of the model alone, by its own names
    network: ClassifierNetwork | Backbone | None  # None: a head on the features of an encoder
    story: Story
    evaluated: schema.Recipe  # with the views by which sounds are read once the model is trained
    speech: Speech | None = None  # the head with its Whisper, in float32, where that is at hand

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in their order; empty where there are none."""
        return tuple(self.about.get("labels", ()))

    @property
    def backbone(self) -> Backbone:
        """Of a model that is no head. Raises ExportError where it is one."""
        self.require_whisper()
        if self.network is None:
            raise ExportError(
                f"{self.weights} is a head on an encoder's features, for which neither transformers nor timm has a "
                "class: --to onnx, torch and safetensors hold it, with its encoder (--encoder)."
            )
        return self.network.backbone if isinstance(self.network, ClassifierNetwork) else self.network

    @property
    def reads(self) -> str:
        """The kind of the encoder whose features a head reads."""
        return self.about.get("encoder", {}).get("model", {}).get("kind", WHISPER)

    def require_whisper(self) -> None:
        """Raises ExportError for a head on the features of another encoder."""
        if self.reads != WHISPER:
            raise ExportError(
                f"{self.weights} is a head on the features of {self.reads}, and only a Whisper goes out with its head: "
                "--to safetensors (without --encoder) holds the head by itself, to go on training it on such features."
            )

    def without_classifier(self) -> Source:
        """The backbone alone. Raises ExportError where there is no classifier to leave out."""
        if not isinstance(self.network, ClassifierNetwork):
            raise ExportError(f"{self.weights} has no classifier behind a backbone: leave --backbone out.")
        left = ("labels", "loss", *THRESHOLDS)
        about = {name: value for name, value in self.about.items() if name not in left}
        state = {name: value for name, value in self.state.items() if name.startswith("backbone.")}
        return replace(self, about=about, state=state, network=self.network.backbone)

    def heard(self, seconds: float | None) -> schema.Recipe:
        """The recipe whose evaluation says how a program cuts and pads a sound, of at most so many seconds where they
        are given. A backbone hears it whole (`gamut.shards.opened`)."""
        if seconds is None:
            return self.evaluated
        if frames_of_all(evaluation_policy(self.evaluated)) is not None:
            return self.at_length(frames_within(seconds, self.recipe))
        return replace(self.evaluated, views=replace(self.evaluated.views, max_seconds=seconds))

    def at_length(self, frames: int) -> schema.Recipe:
        """The recipe with views that are cut or padded to so many frames."""
        views = replace(self.recipe.views, frames=frames, pad=True, pad_to=None, max_frames=None, random=False)
        return replace(self.recipe, views=views)


def frames_of_all(policy: Policy) -> int | None:
    """Frames to which an evaluation cuts or pads every clip; None where a clip keeps its length."""
    frames = fixed_frames(np.array(policy.hops[0]), np.array(policy.pools[0]), policy)
    return None if frames is None else int(frames)


def frames_within(seconds: float, recipe: schema.Recipe) -> int:
    """Frames of a sound of so many seconds, a multiple of 16. Raises ExportError where there are not 16."""
    policy = evaluation_policy(recipe)
    frames = (1 + (round(seconds * RATE) - WINDOW) // policy.hops[0]) // policy.pools[0] // PATCH * PATCH
    if frames < PATCH:
        raise ExportError(f"--seconds {seconds:g} is too short for a patch of {PATCH} frames.")
    return frames


def open_source(place: str | Path, encoder: str | Path | None = None) -> Source:
    """The model that a run, round, checkpoint, file of weights or exported folder stands for.

    encoder: the Whisper that a head reads. Raises CheckpointError where there are no weights, or damaged ones;
    ExportError where they do not say of which model they are: only what Gamut trained can be exported.
    """
    weights = find_weights(place)
    recipe = recipe_of(weights)
    if recipe is None:
        raise ExportError(
            f"{weights} does not say of which model it is: name a run, a round, a checkpoint, or an exported folder."
        )
    said = metadata_of(weights)
    if encoder and "head" not in said:
        raise ExportError(f"{weights} is no head on the features of an encoder: leave --encoder out.")
    story = Story.read(said["story"]) if "story" in said else story_of(weights, recipe)
    if "head" in said or any(name.endswith(HEAD) for name in load_weights(weights)[0]):
        return _head(weights, recipe, said, story, encoder)
    opened = open_spectrograms(weights)
    front = opened.recipe.front
    assert front.mean is not None
    assert front.std is not None
    about = described(recipe, front.mean, front.std)
    about["front"]["mode"] = front.mode
    if opened.network is not None:
        assert opened.labels is not None
        about |= {"loss": recipe.finetune.loss, "labels": list(opened.labels)}
        state = opened.network.state_dict()
    else:
        state = {f"backbone.{name}": tensor for name, tensor in opened.backbone.state_dict().items()}
    about |= {name: said[name] for name in PASSED_ON if name in said}
    about |= {"recipe": portable(recipe), "story": asdict(story)}
    network = (opened.network or opened.backbone).eval()
    return Source(weights, recipe, about, state, network, story, opened.recipe)


def _head(
    weights: Path, recipe: schema.Recipe, said: dict[str, Any], story: Story, encoder: str | Path | None
) -> Source:
    if "head" not in said or not said.get("labels"):
        raise ExportError(
            f"The head in {weights} does not say which classes it tells apart, or of which encoder it reads: it was "
            "written by an earlier version. Score the run again."
        )
    end_to_end = "pool" in said["encoder"]
    about = {name: value for name, value in said.items() if name not in ("recipe", "story")}
    about["encoder"] = said["encoder"] | {"name": Path(said["encoder"]["name"]).name}
    state, _ = head_tensors(weights)
    alone = Source(weights, recipe, about, state, None, story, recipe)
    if encoder:
        alone.require_whisper()
    speech = None
    if encoder or end_to_end or (weights.parent / ENCODER).is_dir():
        loaded = load(weights, encoder=encoder, precision="fp32", device="cpu")
        assert isinstance(loaded, Speech)
        speech = loaded
    if end_to_end:  # its encoder goes out with it, so from here on it is one that a head was put on
        of = said["encoder"]
        about["encoder"] = {
            "name": about["encoder"]["name"],
            "model": {"kind": WHISPER, "precision": "fp32"},
            "front": {"seconds": of["seconds"]},
            "pooling": {"steps": of["pool"]},
            "blocks": list(range(said["shape"][0])),
        }
    about |= {"recipe": portable(recipe), "story": asdict(story)}
    return replace(alone, about=about, speech=speech)
