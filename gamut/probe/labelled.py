"""The labelled clips that a probe learns from and is scored on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gamut.errors import ShardError
from gamut.plan import Clips
from gamut.recipe.cli import require_data, require_sets
from gamut.recipe.schema import Probe, Recipe
from gamut.shards import Index
from gamut.shards.joined import open_sets
from gamut.shards.select import chosen_rows, sample

PROBED = "probe.json"  # in a run folder


@dataclass(frozen=True, eq=False)
class Labelled:
    """n clips, in index order, with their classes and the folds in which they are scored."""

    index: Index
    clips: Clips
    target: np.ndarray  # bool [n, classes]
    fold: np.ndarray  # int64 [n], in which a clip is scored; -1: it is only trained on
    labels: tuple[str, ...]  # of the classes that any of the clips has
    unlabelled: int  # clips that were left out since they have no label

    def __str__(self) -> str:
        folds = int(self.fold.max()) + 1
        scored = int((self.fold >= 0).sum())
        how = f"in {folds} folds" if folds > 1 else f"after training on {int((self.fold < 0).sum())}"
        without = f" ({self.unlabelled} more have no label)" if self.unlabelled else ""
        return f"{len(self.labels)} classes of {self.index.folder}, {scored} clips scored {how}{without}"

    def digest(self, options: Probe) -> str:
        """16 hexadecimal digits over what scores depend on besides the network: clips, classes, folds, options."""
        about = (self.index.fingerprint, self.labels, options.max_seconds, options.neighbours)
        found = hashlib.sha256(repr(about).encode())
        for values in (self.clips.row, self.target, self.fold):
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()[:16]


def read_probed(run: Path) -> dict[str, Any]:
    """What a run's reference lines are of: `digest` of the labelled clips, `kinds` of vectors; {}: not known."""
    try:
        return json.loads((run / PROBED).read_text())
    except (OSError, ValueError):
        return {}


def labelled(recipe: Recipe, pretraining: Index | None = None) -> tuple[Labelled | None, str]:
    """The clips that the recipe's section `probe` asks for, or None and why there are none.

    None only where the section names nothing and what is pretrained on has no labels or no folds. `pretraining`: the
    index of what is pretrained on, where it is open already.

    Raises ShardError where what the section names is not there, or is not enough to train and score a probe.
    """
    options = recipe.probe
    if options.data:
        index = open_sets([require_data(replace(recipe, data=options.data, dataset=""))], recipe.remote)
        subset: Mapping[str, Any] = {}
    else:
        index = pretraining if pretraining is not None else open_sets(require_sets(recipe), recipe.remote)
        subset = recipe.subset
    if options.train:
        return _split(index, options.train, options.test, options.clips), ""
    named = bool(options.data)
    lacking = ""
    if not len(index.label):
        lacking = f"the clips of {index.folder} have no labels"
    elif options.folds not in index.columns:
        lacking = f"the shards in {index.folder} have no column {options.folds}"
    else:
        chosen = np.sort(sample(index, chosen_rows(index, subset), options.clips))
        folds = np.asarray(index.columns[options.folds])[chosen]
        if len(np.unique(folds)) > 1:
            return _of(index, chosen, np.unique(folds, return_inverse=True)[1]), ""
        lacking = f"the clips of {index.folder} that are chosen are of a single {options.folds}"
    if named:
        raise ShardError(
            f"{lacking[0].upper()}{lacking[1:]}: name the clips to probe with probe.train={{...}} and "
            "probe.test={...}, as in `subset`, or another set with probe.data=FOLDER."
        )
    return None, lacking


def _split(index: Index, train: Mapping[str, Any], test: Mapping[str, Any], most: int) -> Labelled:
    known, scored = chosen_rows(index, train), chosen_rows(index, test)
    both = np.intersect1d(known, scored)
    if len(both):
        raise ShardError(
            f"{len(both)} clips of {index.folder} are in probe.train and in probe.test, the first of them "
            f"{index.key(int(both[0]))}: a probe is scored on clips that it was not trained on."
        )
    known, scored = (np.sort(sample(index, rows, most)) for rows in (known, scored))
    chosen = np.concatenate([known, scored])
    fold = np.concatenate([np.full(len(known), -1), np.zeros(len(scored), np.int64)])
    order = np.argsort(chosen)
    return _of(index, chosen[order], fold[order])


def _of(index: Index, chosen: np.ndarray, fold: np.ndarray) -> Labelled:
    target = np.zeros((len(chosen), len(index.labels)), bool)
    for clip, row in enumerate(chosen):
        target[clip, index.label_ids(int(row))] = True
    has = target.any(axis=1)
    classes = np.flatnonzero(target.any(axis=0))
    fold, kept = fold[has], target[has]
    scored = fold >= 0
    enough = scored.any() and all(len(np.unique(kept[fold != n], axis=0)) > 1 for n in np.unique(fold[scored]))
    if not enough:
        raise ShardError(
            f"The probe has {len(fold) - int(scored.sum())} clips to train on and {int(scored.sum())} to score in "
            f"{index.folder}, with labels of {len(classes)} classes: it needs two classes to train on and a clip to "
            "score. See probe.train, probe.test and probe.folds."
        )
    return Labelled(
        index=index,
        clips=index.table().select(chosen[has]),
        target=kept[:, classes],
        fold=fold.astype(np.int64),
        labels=tuple(index.labels[number] for number in classes),
        unlabelled=int((~has).sum()),
    )
