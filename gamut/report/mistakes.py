"""The clips that a model was most wrong about, to be looked at and listened to where their shards are still there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gamut.errors import AudioError, GamutError
from gamut.evaluate.decisions import probabilities
from gamut.numbers import RATE
from gamut.recipe.cli import require_sets
from gamut.recipe.resolved import read_resolved
from gamut.report.document import Block, Heading, Mistake, Mistakes, Text
from gamut.report.told import Part, Told
from gamut.shards.index import Index
from gamut.shards.joined import open_sets
from gamut.shards.show import clip_waveform
from gamut.track.run import RECIPE

MOST = 12  # clips
SECONDS = 10.0  # of a clip that are shown
SAID = 3  # classes that the model found most likely


def mistakes(run: Told) -> list[Block]:
    worst = sorted((one for part in run.scored for one in _worst(part, run.labels)), key=lambda one: -one[0])
    chosen: dict[str, tuple[Part, int, Mistake]] = {}
    for _, part, row, mistake in worst:  # a clip once, however many rounds were wrong about it
        if len(chosen) < MOST:
            chosen.setdefault(mistake.key, (part, row, replace(mistake, where=part.path.name * (len(run.parts) > 1))))
    if not chosen:
        return []
    found, reason = [], ""
    index: Index | None = None
    try:
        index = _index(run.scored[0])
    except (GamutError, OSError, ValueError) as error:
        reason = str(error)
    for _, row, mistake in chosen.values():
        shown = mistake
        if index is not None:
            try:
                waveform = clip_waveform(index, row)[: round(SECONDS * RATE)]
                shown = replace(mistake, spectrogram=_spectrogram(waveform), sound=_sound(waveform))
            except (AudioError, OSError) as error:
                reason = str(error)
        found.append(shown)
    said = "Those that it was surest about, though wrong."
    blocks: list[Block] = [Heading("Worst errors"), Text(said), Mistakes(found)]
    return blocks + ([Text(f"Without sound: {reason}")] if reason else [])


def _worst(part: Part, labels: Sequence[str]) -> list[tuple[float, Part, int, Mistake]]:
    """(how wrong, round, row in the index, mistake) of the clips that it was most wrong about.

    Where classes exclude each other: the probability of what was said, less that of the truth. Else the largest part of
    a probability that is missing where a class is there, or too much where it is not.
    """
    scores = part.scores
    if scores is None or scores.target.shape[1] != len(labels):
        return []
    target, probability = scores.target.astype(bool), probabilities(scores.logits, part.exclusive)
    if part.exclusive:
        true = np.where(target, probability, -1.0).max(axis=1)
        wrong = np.where(target.any(axis=1), probability.max(axis=1) - true, -1.0)
    else:
        wrong = np.abs(probability - target).max(axis=1) - 0.5
    found = []
    for clip in np.argsort(-wrong, kind="stable")[:MOST].tolist():
        if wrong[clip] > 0:
            first = np.argsort(-probability[clip], kind="stable")[:SAID].tolist()
            said = [(labels[one], float(probability[clip, one])) for one in first]
            truth = [labels[one] for one in np.flatnonzero(target[clip]).tolist()]
            mistake = Mistake(str(scores.key[clip]), truth, said)
            found.append((float(wrong[clip]), part, int(scores.row[clip]), mistake))
    return found


def _index(part: Part) -> Index:
    """Of the set that a round was scored on. Raises GamutError where it is not there any more, is another one by now,
    or lies elsewhere."""
    recipe = read_resolved(part.path / RECIPE)
    folders = require_sets(recipe)
    if any("://" in str(folder) or ":/" in str(folder) for folder in folders):
        raise GamutError(f"the shards of {part.path.name} are not on this machine.")
    index = open_sets(folders, recipe.remote, began=str(part.result.get("index") or ""))
    if index.tars.is_remote:
        raise GamutError(f"the shards of {index.folder} are not on this machine.")
    if (then := part.result.get("index")) and then != index.fingerprint:
        raise GamutError(f"the set at {index.folder} is another one by now: {index.fingerprint}, not {then}.")
    return index


def _spectrogram(waveform: np.ndarray) -> bytes:
    """The log-mel as a PNG, a pixel a frame and a mel bin."""
    from matplotlib.image import imsave  # here: a report without clips need not wait for it

    from gamut.shards.heard import clip_log_mel

    log_mel = clip_log_mel(waveform).numpy()
    low, high = np.percentile(log_mel, [1, 99])
    file = io.BytesIO()
    imsave(file, log_mel.T, vmin=low, vmax=max(high, low + 1e-3), cmap="magma", origin="lower", format="png")
    return file.getvalue()


def _sound(waveform: np.ndarray) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, waveform, RATE, format="FLAC")
    return file.getvalue()
