"""Trained models of spectrograms by what a person names: a run, a file that says what it is, or public weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gamut.errors import CheckpointError, RecipeError
from gamut.models.backbone import Backbone, build
from gamut.models.classifier import ClassifierNetwork
from gamut.models.find import find_weights, metadata_of, recipe_of, statistics_in, thresholds_in, told
from gamut.models.folder import CONFIG, read_json
from gamut.models.section import section_of
from gamut.models.weights import load_backbone, load_classifier, load_weights
from gamut.recipe import schema
from gamut.shards.trained import trained_front

AUDIOSET = schema.FrontEnd(-4.2677393, 4.5689974)  # of AST, SSAST and ASiT (published code)
ELASTIC = schema.FrontEnd(-4.414, 4.905)  # of ElasticAST on AudioSet (published code)
EXTRACTOR = "preprocessor_config.json"  # of transformers: how AST's log-mel is normalised
ONE = schema.Step(packs=1, clips=1)  # no budget of tokens that would cut a clip
AUDIOSET_CLASSES = 527  # a clip has several of them; of any other number it is taken to have one


@dataclass(frozen=True)
class Opened:
    """A backbone with its weights, its classifier if it has one, and how a sound becomes what they read."""

    backbone: Backbone
    network: ClassifierNetwork | None  # around the backbone
    recipe: schema.Recipe  # its views are those of an evaluation, its `front` has mean and deviation
    labels: tuple[str, ...] | None  # names of the classes; None where there are none, or they are not known
    weights: str  # which ones they are, in words
    what: str  # such as `FILE, of a pretraining,`, at the beginning of a sentence
    thresholds: tuple[float, ...] | None = None  # of the classes' probabilities, chosen on validation clips
    frame_thresholds: tuple[float, ...] | None = None  # of those in a frame, from which on an event is heard


def open_spectrograms(
    place: str | Path,
    labels: Sequence[str] | None = None,
    model: Mapping[str, Any] | None = None,
    front: schema.FrontEnd | None = None,
) -> Opened:
    """The model at a place: a run, one of its rounds or checkpoints, a file or folder of weights that says what it is,
    or a public AST, SSAST, ASiT or ElasticAST, whose model section is told by its tensors.

    labels: names of the classes, where the weights do not say them. model: keys of the model section of public weights
    that their tensors do not tell. front: the normalisation of the log-mel, instead of the weights' own.

    Raises CheckpointError or RecipeError saying what is missing.
    """
    weights = find_weights(place)
    about, recipe = metadata_of(weights), recipe_of(weights)
    if recipe is None and "model" not in about:
        return _public(weights, labels, model or {}, front)
    if model:
        raise RecipeError(f"{weights} says which model it is of: leave `model` out.")
    if recipe is None:
        return _without_recipe(weights, about, front)
    if recipe.stage == "pretrain":
        recipe = replace(recipe, front=front or trained_front(weights, recipe, recipe.data))
        return _bare(weights, _whole_clips(recipe), f"{weights}, of a pretraining,")
    names, statistics = about.get("labels"), statistics_in(about)
    if statistics and not names and "recipe" in about:  # exported without its classifier
        recipe = replace(recipe, front=front or replace(recipe.front, mean=statistics[0], std=statistics[1]))
        return _bare(weights, _whole_clips(recipe), f"{weights}, a backbone alone,")
    if not names or statistics is None:
        raise CheckpointError(
            f"{weights} does not say which classes it tells apart, or how its log-mel is normalised: it was written by "
            "an earlier version. Score the run again."
        )
    front = front or replace(recipe.front, mean=statistics[0], std=statistics[1])
    opened = _classifier(
        weights, replace(recipe, front=front), tuple(names), len(names), f"{weights}, of a fine-tuning,"
    )
    of_frames = thresholds_in(about, "frame_thresholds")
    return replace(opened, thresholds=thresholds_in(about), frame_thresholds=of_frames)


def _without_recipe(weights: Path, about: dict[str, Any], front: schema.FrontEnd | None) -> Opened:
    """Weights that say their model and front end; how long a clip of a classifier is, only its recipe says."""
    statistics, says = statistics_in(about), about.get("front", {})
    if about.get("labels") or (statistics is None and front is None):
        raise CheckpointError(
            f"{weights} is not in a run folder, and holds no recipe that says how to use it: name its run, or a folder "
            "that `python -m gamut.export` made of one."
        )
    mean, std = statistics or (None, None)
    front = front or schema.FrontEnd(mean, std, says.get("mode", "fast"))
    views = schema.Views(resolutions=says.get("resolutions", [1.0]), poolings=says.get("poolings", [1]))
    recipe = schema.Recipe(model=schema.Model(**about["model"]), front=front, views=views)
    return _bare(weights, _whole_clips(recipe), f"{weights}, of a pretraining,")


def _public(
    weights: Path, labels: Sequence[str] | None, model: Mapping[str, Any], front: schema.FrontEnd | None
) -> Opened:
    section, like_ast, classes = section_of(load_weights(weights)[0], weights, model)
    extractor = weights.parent / EXTRACTOR
    says = read_json(extractor) if extractor.is_file() else {}
    if front is None and "mean" in says and "std" in says:
        front = schema.FrontEnd(float(says["mean"]), float(says["std"]))
    front = front or (AUDIOSET if section.positions == "learned" else ELASTIC)
    loss = "bce" if classes == AUDIOSET_CLASSES else "ce"
    recipe = schema.Recipe(model=section, front=front, finetune=schema.Finetune(loss=loss), step=ONE)
    if like_ast and section.positions == "learned":  # every clip is cut or padded to the length of the table
        frames = section.table_frames
        recipe = replace(recipe, views=schema.Views(frames=frames, random=False, pad_with="zero"))
    else:
        recipe = _whole_clips(recipe)
    if not classes:
        return _bare(weights, recipe, f"{weights}, a backbone alone,")
    names = tuple(labels or _names(weights))
    if names and len(names) != classes:
        raise CheckpointError(f"{weights} tells {classes} classes apart, and {len(names)} names were given.")
    return _classifier(weights, replace(recipe, stage="finetune"), names, classes, f"{weights}, a classifier,")


def _names(weights: Path) -> list[str]:
    """Of the classes, as the config.json of transformers has them; [] where it has none."""
    config = weights.parent / CONFIG
    names = read_json(config).get("id2label", {}) if config.is_file() else {}
    return [names[key] for key in sorted(names, key=int)]


def _whole_clips(recipe: schema.Recipe) -> schema.Recipe:
    """Clips of their own length, up to `probe.max_seconds`, as the probes read them."""
    views = recipe.views
    whole = schema.Views(
        random=False,
        pad=False,
        max_seconds=recipe.probe.max_seconds,
        resolutions=views.resolutions[:1],
        poolings=views.poolings[:1],
    )
    return replace(recipe, views=whole, step=ONE)


def _bare(weights: Path, recipe: schema.Recipe, what: str) -> Opened:
    backbone = build(recipe.model, recipe.seed)
    load_backbone(backbone, weights)
    return Opened(backbone, None, recipe, None, told(weights), what)


def _classifier(weights: Path, recipe: schema.Recipe, names: tuple[str, ...], classes: int, what: str) -> Opened:
    network = ClassifierNetwork(recipe.model, classes, recipe.seed)
    load_classifier(network, weights)
    return Opened(network.backbone, network, recipe, names or None, told(weights), what)
