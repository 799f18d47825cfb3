"""Which clips weights were trained on, with their labels or without.

Of a run its recipe and the shards say it, and the run that it began from; beside exported weights lies a list, since
the run is elsewhere. In the list a clip is a hash of its set's name, its key and its samples, which another conversion
of the same recordings gives again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from gamut.errors import GamutError
from gamut.models.find import find_weights
from gamut.recipe.cli import set_folders
from gamut.recipe.resolved import read_values
from gamut.remote import Remote, is_remote
from gamut.remote.mirror import mirror
from gamut.shards import Index
from gamut.shards.joined import open_sets
from gamut.shards.select import select
from gamut.track.run import RECIPE, RunFolder

LIST = "trained_on.npz"
AT_MOST = 5_000_000  # clips of a list, 8 bytes each


class Seen(NamedTuple):
    """Of each of some clips whether it was trained on, bool [n], and whether that was with the labels."""

    clips: np.ndarray
    labelled: bool = False


class _Own(NamedTuple):
    """What a run itself was trained on."""

    sets: Index
    rows: np.ndarray
    labelled: bool
    init: str


def seen(init: str, index: Index, rows: np.ndarray, below: tuple[Path, ...] = ()) -> Seen:
    """Which of the rows of `index` the weights that `init` means have seen, in all trainings that led to them.

    None of them where `init` is empty, lies neither in a run nor in an exported folder with a list, or was trained on
    other shards: what such weights were trained on cannot be told from here.
    """
    none = np.zeros(len(rows), bool)
    run = run_of(init)
    if run is None:
        labelled, others = _listed(init)
        if not len(labelled) + len(others):
            return Seen(none)
        mine = hashes(index, rows)
        with_labels = np.isin(mine, labelled)
        return Seen(with_labels | np.isin(mine, others), bool(with_labels.any()))
    if run.path in below:
        return Seen(none)
    own = _own(run)
    if own is None:
        return Seen(none)
    before = seen(own.init, index, rows, (*below, run.path))
    if index.fingerprint not in [part.fingerprint for part in own.sets.sets]:
        return before
    now = np.isin(np.asarray(index.clip_id)[rows], np.asarray(own.sets.clip_id)[own.rows])
    return Seen(now | before.clips, own.labelled or before.labelled)


def run_of(init: str) -> RunFolder | None:
    """The run, or the round, that `init` lies in, or whose only round it names."""
    rounds = RunFolder.rounds(Path(init).expanduser()) if init else []
    return rounds[0] if len(rounds) == 1 else RunFolder.find(init) if init else None


def write_list(place: str | Path, folder: Path) -> str:
    """Put the list of what the weights at `place` were trained on into an exported folder; what to say of it."""
    try:
        labelled, others = _all(str(place))
    except LookupError as error:
        return f"no {LIST}, by which scores on clips that it was trained on are marked: {error}"
    number = len(labelled) + len(others)
    with (folder / LIST).open("wb") as file:
        np.savez(file, labelled=labelled, unlabelled=others)
    return f"{LIST}: {number:,} clips that it was trained on, {len(labelled):,} of them with their labels"


def hashes(index: Index, rows: np.ndarray) -> np.ndarray:
    """uint64 [n]: of each row the hash of its set's name, its key and its samples."""
    ends = np.cumsum([len(part) for part in index.sets])
    names = [index.sets[number].name for number in np.searchsorted(ends, rows, side="right")]
    samples = np.asarray(index.samples)[rows].tolist()
    texts = (f"{name}/{index.key(int(row))}/{many}" for name, row, many in zip(names, rows, samples, strict=True))
    return np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], np.uint64)


def _all(init: str, below: tuple[Path, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all clips that the weights were trained on, those with labels and those without alone, in order.

    Raises LookupError, in words, where a run behind them cannot be read or had too many for a list.
    """
    run = run_of(init)
    if run is None or run.path in below:
        listed = _listed(init)
        if not below and not len(listed[0]) + len(listed[1]):
            raise LookupError("they lie in no run")
        return listed
    own = _own(run)
    if own is None:
        raise LookupError(f"{run.path} or its shards are not here")
    if len(own.rows) > AT_MOST:
        raise LookupError(f"{run.path} heard more than {AT_MOST:,}")
    before = _all(own.init, (*below, run.path))
    mine = hashes(own.sets, own.rows)
    labelled = np.union1d(before[0], mine) if own.labelled else before[0]
    others = before[1] if own.labelled else np.union1d(before[1], mine)
    return labelled, np.setdiff1d(others, labelled)


def _listed(init: str) -> tuple[np.ndarray, np.ndarray]:
    """What the list of an exported folder says; nothing where there is none."""
    try:
        with np.load(find_weights(init).with_name(LIST), allow_pickle=False) as content:
            return content["labelled"], content["unlabelled"]
    except (GamutError, OSError, LookupError, ValueError):
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)


def _own(run: RunFolder) -> _Own | None:
    """None where the recipe or the shards cannot be read any more."""
    try:
        recipe = read_values(run.path / RECIPE)
        far = Remote(**recipe.get("remote") or {})
        places = set_folders(str(recipe["data"]), recipe.get("mixture") or {})
        theirs = open_sets([mirror(where, far) if is_remote(where) else Path(where) for where in places], far)
        subset, folds = dict(recipe.get("subset") or {}), recipe.get("folds") or {}
        labelled = recipe.get("stage") == "finetune"
        if labelled and folds.get("train") is not None:
            subset |= {folds["column"]: list(folds["train"])}
        return _Own(theirs, np.asarray(select(theirs, subset).row), labelled, str(recipe.get("init") or ""))
    except (GamutError, OSError, LookupError, TypeError):
        return None
