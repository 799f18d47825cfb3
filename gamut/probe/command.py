"""Probes of networks one after the other, in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from gamut.accelerator import accelerator
from gamut.errors import CheckpointError
from gamut.models.backbone import build
from gamut.models.weights import load_backbone
from gamut.probe.features import Encoder, FrontEnd, extract, whole_clips
from gamut.probe.fit import fit, join, plot
from gamut.probe.labelled import Labelled
from gamut.probe.pictures import attention_figures
from gamut.recipe.schema import Recipe

PICTURED = 2  # clips whose attention is plotted


def score(
    recipe: Recipe,
    clips: Labelled,
    checkpoints: list[tuple[int, float, Path]],
    out: Path,
    console: Console,
) -> list[dict]:
    """[{name, step, epochs, scores}], the network before training first; pictures of the last checkpoint into `out`.

    recipe: with the statistics of the log-mel. checkpoints: (step, epochs, what to load). Raises CheckpointError for
    weights that cannot be loaded.
    """
    device = torch.device(accelerator())
    backbone = build(recipe.model, recipe.seed).to(device)
    assert recipe.front.mean is not None
    assert recipe.front.std is not None
    front = FrontEnd(recipe.front.mean, recipe.front.std, recipe.front.mode)
    encode = Encoder(backbone, front, recipe.precision, device, recipe.probe.rows)
    plan = whole_clips(clips.clips, recipe)
    entries: list[dict] = []

    def take(name: str, step: int, epochs: float) -> dict[str, np.ndarray]:
        loader = recipe.loader
        how = {"workers": loader.workers, "per_forward": loader.per_forward}
        share = extract(encode, clips.index, plan, with_logmel=not entries, **how)
        if share.problem:
            raise CheckpointError(f"{name} cannot be probed: {share.problem}")
        if share.holes and not entries:
            keys = ", ".join(hole.key for hole in share.holes[:5])
            said = f"warning: {len(share.holes)} clips cannot be read: {keys}."
            console.print(said, highlight=False, soft_wrap=True)
        vectors, target, fold = join([share.arrays()], clips.clips.row, clips.target, clips.fold)
        scores = fit(vectors, target, fold, recipe.probe.neighbours)
        entries.append({"name": name, "step": step, "epochs": epochs, "scores": scores})
        return vectors | {"target": target}

    if recipe.init:
        try:
            load_backbone(backbone, recipe.init)
        except CheckpointError as error:
            said = f"warning: {error} The first row is of a network from the seed instead."
            console.print(said, highlight=False, soft_wrap=True)
    found = take("before training", 0, 0.0)
    for step, epochs, place in checkpoints:
        load_backbone(backbone, place)
        found = take(place.name, step, epochs)
    kind = "both" if "both" in found else "mean"
    name = entries[-1]["name"]
    title = f"{recipe.run.name} {name}: {clips.index.name}"
    plot(found[kind], found["target"], list(clips.labels), title, out / "embedding.png")
    some = clips.clips.select(np.arange(len(clips.clips))[:: max(1, len(clips.clips) // PICTURED)][:PICTURED])
    for clip, figure in enumerate(attention_figures(encode, clips.index, some, recipe, f"of {name}")):
        figure.savefig(out / f"attention-{clip}.png", dpi=110)
    return entries
