"""A task in HEAR's layout scored here: scene embeddings by HEAR's interface, then the probes of `gamut probe`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from gamut.benchmarks.hear import HearModel, get_scene_embeddings
from gamut.benchmarks.layouts import METADATA, VOCABULARY
from gamut.errors import AudioError, ShardError
from gamut.evaluate.probe import probe

BATCH = 16  # clips of one length at a time


@dataclass(frozen=True)
class Task:
    """A task of HEAR whose embeddings are of scenes.

    splits: name -> file -> labels.
    """

    folder: Path
    name: str
    folds: bool  # each is scored by what the others train; else `test` by `train` and `valid`
    labels: tuple[str, ...]
    splits: dict[str, dict[str, list[str]]]


def read_task(folder: Path) -> Task:
    """Raises ShardError where it is no task of HEAR, or one of events, naming the file that is wrong."""
    if not (folder / METADATA).exists() and (inside := sorted(folder.glob(f"*/{METADATA}"))):
        raise ShardError(f"{folder} is a folder of tasks: name one of them, such as {inside[0].parent}.")
    metadata = _json(folder / METADATA)
    try:
        name, kind, mode = (metadata[key] for key in ("task_name", "embedding_type", "split_mode"))
        splits = {str(split): _json(folder / f"{split}.json") for split in metadata["splits"]}
    except (KeyError, TypeError) as error:
        raise ShardError(f"{folder / METADATA} has no {error}: it is not of a task of HEAR.") from error
    if kind != "scene":
        raise ShardError(f"{name} is a task of {kind}s: heareval scores it; here tasks of scenes are scored.")
    try:
        with open(folder / VOCABULARY, encoding="utf-8", newline="") as table:
            rows = sorted(csv.DictReader(table), key=lambda row: int(row["idx"]))
            labels = tuple(row["label"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{folder / VOCABULARY} is not a table of idx and label: {error}.") from error
    known = set(labels)
    for split, files in splits.items():
        for file, said in files.items():
            if unknown := {str(label) for label in said} - known:
                raise ShardError(f"{folder / split}.json: {file} is labelled {min(unknown)}, not in {VOCABULARY}.")
    return Task(folder, str(name), mode != "trainvaltest", labels, splits)


def score(task: Task, model: HearModel) -> dict[str, float]:
    """{"knn": ..., "linear": ..., "clips": scored}: k-NN and logistic regression (`gamut.evaluate.probe`), as shares.

    Each fold is scored by what all others train; without folds `test` by what `train` and `valid` train together,
    since nothing is chosen. Raises AudioError naming a file that is missing, of another rate, or no sound.
    """
    vectors, target, fold = [], [], []
    number = {label: column for column, label in enumerate(task.labels)}
    for at, (split, files) in enumerate(task.splits.items()):
        for name, vector in _embedded(task.folder / str(model.sample_rate) / split, list(files), model):
            row = np.zeros(len(task.labels), bool)
            row[[number[str(label)] for label in files[name]]] = True
            vectors.append(vector)
            target.append(row)
            fold.append(at if task.folds or split == "test" else -1)
    if not vectors:
        raise ShardError(f"The task in {task.folder} has no clips.")
    found = probe({"scene": np.stack(vectors)}, np.stack(target), np.asarray(fold))
    return {name.removesuffix("/scene"): value for name, value in found.items()} | {
        "clips": float(sum(f >= 0 for f in fold))
    }


def _embedded(folder: Path, files: list[str], model: HearModel) -> Iterator[tuple[str, np.ndarray]]:
    waiting: list[tuple[str, np.ndarray]] = []
    for file in files:
        waveform = _waveform(folder / file, model.sample_rate)
        if waiting and (len(waiting) == BATCH or len(waiting[0][1]) != len(waveform)):
            yield from _together(waiting, model)
            waiting = []
        waiting.append((file, waveform))
    if waiting:
        yield from _together(waiting, model)


def _together(some: list[tuple[str, np.ndarray]], model: HearModel) -> Iterator[tuple[str, np.ndarray]]:
    try:
        vectors = get_scene_embeddings(torch.from_numpy(np.stack([waveform for _, waveform in some])), model)
    except AudioError as error:
        raise AudioError(f"Among {some[0][0]} to {some[-1][0]}: {error}", error.reason) from error
    yield from zip((file for file, _ in some), vectors.numpy())


def _waveform(path: Path, rate: int) -> np.ndarray:
    """float32 [samples]."""
    try:
        waveform, found = soundfile.read(path, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path} cannot be read: {error}.") from error
    if found != rate or waveform.ndim != 1:
        raise AudioError(
            f"{path} is of {found} Hz and shape {list(waveform.shape)}: it must be mono at {rate} Hz.", "format"
        )
    return waveform


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}, of a task of HEAR, cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise ShardError(f"{path} is not a JSON object: it is not of a task of HEAR.")
    return found
