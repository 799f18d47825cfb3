"""The model card, README.md: what the weights are, and how they are used."""

from __future__ import annotations

from typing import Any

import yaml

from gamut.export.source import WHISPER, Source
from gamut.export.story import Story
from gamut.recipe.resolved import portable
from gamut.tag.units import UNIT

TRAINED_BY = [
    *("epochs", "engine", "precision", "seed", "objective", "model", "head", "views", "step", "optim", "asit"),
    *("augment", "folds", "finetune"),
]


def card(source: Source, kind: str, input_layout: str, example: str) -> str:
    """kind: what the folder is, a sentence; input_layout: what goes in and what comes out; example: lines of Python
    that run beside the folder, with `FOLDER` for its name."""
    story = source.story
    title = story.run or source.weights.stem
    parts = [
        _front_matter(source),
        f"# {title}",
        kind,
        "Licence: to be filled in here, and as `license` in the first lines of this file.",
        "## Use",
        f"```python\n{example.strip()}\n```",
        "## Input and output",
        input_layout,
        _front_end(source),
        "## Training",
        _training(story, source),
        "## Scores",
        _scores(story, source),
    ]
    if source.labels:
        parts += ["## Classes", _classes(source)]
    parts += ["## Recipe", f"```yaml\n{_recipe(source)}```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(source: Source) -> str:
    said: dict[str, Any] = {"license": "unknown", "tags": ["audio", "gamut"]}
    if source.labels:
        said["pipeline_tag"] = "audio-classification"
    return f"---\n{yaml.safe_dump(said, sort_keys=False)}---"


def _front_end(source: Source) -> str:
    if "normalise" not in source.about:
        encoder = source.about["encoder"]
        seconds = encoder.get("front", {}).get("seconds", source.recipe.head.seconds)
        blocks, steps = encoder.get("blocks", ["all"]), encoder.get("pooling", {}).get("steps", UNIT)
        if source.reads != WHISPER:
            return (
                f"Front end: that of {source.reads} with a window of {seconds:g} s; the outputs of the blocks "
                f"{', '.join(map(str, blocks))} of {encoder['name']}, counted from 0, as means of {steps} steps."
            )
        return (
            f"Front end: sound at 16 kHz, mono; Whisper's log-mel of a window of {seconds:g} s, to which a sound is "
            f"cut or padded with silence; the outputs of the blocks {', '.join(map(str, blocks))} of the Whisper "
            f"{encoder['name']}, counted from 0, as means of {steps} steps of 20 ms."
        )
    front, of = source.about["front"], source.about["normalise"]
    views = source.recipe.views
    length = (
        f"cut or padded to {views.pad_to} frames of 10 ms"
        if views.pad_to
        else f"cut{' or padded' if views.pad else ''} to {views.frames} frames"
        if views.frames
        else "as long as the clip, down to a multiple of 16 frames"
        + (f", {views.max_frames} at most" if views.max_frames else "")
        + (f", of {views.max_seconds:g} s at most" if views.max_seconds else "")
    )
    padding = "frames of 0.0, before normalisation" if views.pad_with == "zero" else "silence in the waveform"
    pooled = f"means of {front['poolings'][0]} frames, " if front["poolings"][0] != 1 else ""
    return (
        "Front end: sound at 16 kHz, mono, as 16-bit numbers; its mean is subtracted; Kaldi's log-mel of 128 bins (25 "
        f"ms Hann windows every {10 * front['resolutions'][0]:g} ms, pre-emphasis 0.97, no dither; {front['mode']}), "
        f"{pooled}then (x - mean) / (2 * deviation), with mean {of['mean']:.7g} and deviation {of['std']:.7g}. Length: "
        f"{length}; padding: {padding}."
    )


def _training(story: Story, source: Source) -> str:
    lines = [f"- weights: {story.which}" if story.which else ""]
    lines += [f"- sha256 of the file they were in: {story.sha256}"]
    lines += [f"- data: the shard set with fingerprint {story.index}" if story.index else "- data: not recorded"]
    if story.clips:
        lines += [
            f"- heard: {story.clips:,} clips, {story.hours:.4g} hours of sound as the model saw it"
            + (f", in {story.epochs:g} epochs" if story.epochs else "")
        ]
    else:
        lines += ["- heard: not recorded"]
    if story.began_with:
        lines += [f"- began with weights of sha256 {story.began_with}"]
    elif source.recipe.init:
        lines += ["- began with other weights (init)"]
    return "\n".join(line for line in lines if line)


def _scores(story: Story, source: Source) -> str:
    if story.score is None:
        return "None are recorded of these weights."
    lines = [f"On {story.scored_on}; epoch: {story.selected}."]
    if source.about.get("chosen_on", "").startswith("test"):
        lines += ["The epoch of these weights was chosen on the folds that score it: the score is too good."]
    rows = [f"| {name} | {value:.4g} |" for name, value in sorted(story.metrics.items())]
    return "\n\n".join([*lines, "\n".join(["| metric | value |", "| --- | --- |", *rows])])


def _classes(source: Source) -> str:
    thresholds = {
        name: source.about[key]
        for name, key in (("threshold", "thresholds"), ("threshold of a frame", "frame_thresholds"))
        if source.about.get(key)
    }
    how = "exclude each other (softmax)" if source.about.get("loss") == "ce" else "may occur together (sigmoid)"
    rows = []
    for number, name in enumerate(source.labels):
        row = f"| {number} | {name.replace('|', chr(92) + '|')} |"
        rows.append(row + "".join(f" {chosen[number]:.3g} |" for chosen in thresholds.values()))
    head = "| number | class |" + "".join(f" {name} |" for name in thresholds)
    rule = "| --- | --- |" + " --- |" * len(thresholds)
    told = " Thresholds were chosen on validation clips." if thresholds else ""
    return f"{len(source.labels)} classes, which {how}.{told}\n\n" + "\n".join([head, rule, *rows])


def _recipe(source: Source) -> str:
    recipe = portable(source.recipe)
    keys = [key for key in TRAINED_BY if key in recipe and not (key in ("asit", "objective") and source.labels)]
    of_head = "head" in source.about
    kept = {key: recipe[key] for key in keys if key != ("model" if of_head else "head")}
    return yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=100)
