"""Whether what lies in a folder is what was written: every checkpoint and exported folder against the hashes of its
manifest, every record of every cache against its checksum, and whether the rest of a run can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gamut.errors import CheckpointError, FeatureError, RunError
from gamut.features.folder import CACHE
from gamut.runs.find import Found, checkpoints_of, look
from gamut.runs.standing import recent, standing
from gamut.track.checkpoints import verify
from gamut.track.run import BEST, METRICS


def print_verified(folders: list[Path]) -> int:
    """Say what is damaged; returns the number of things that are. Raises RunError for a place that is no folder, or has
    nothing in it to look at."""
    counted: Counter[str] = Counter()
    bad = 0
    places = [look(folder) for folder in folders]
    for folder, found in zip(folders, places):
        if found.empty and not found.closed:
            raise RunError(f"There is no run, checkpoint, cache of features or exported folder in {folder}.")
    for found in places:
        for path in found.closed:
            print(f"not looked into, since it cannot be read: {path}")
            bad += 1
        for kind, problem in _everything(found):
            counted[kind] += 1
            if problem:
                bad += 1
                print(f"damaged: {problem}", flush=True)
    looked = ", ".join(f"{number} {kind}" for kind, number in counted.items()) or "nothing"
    print(f"{looked} looked at: {f'{bad} damaged' if bad else 'all as written'}")
    return bad


def _everything(found: Found) -> Iterator[tuple[str, str]]:
    """(what it is, what is wrong with it or nothing) of each thing in turn."""
    for run in found.runs:
        one = standing(run)
        _, damaged = recent(run / METRICS, most=None)
        problems = [problem for problem in one.problems if METRICS not in problem]
        problems += [f"{run / METRICS} has {damaged} lines that cannot be read"] if damaged else []
        yield "runs", "; ".join(problems)
        if (run / BEST).exists():
            yield "files of weights", _weights(run / BEST)
        for path in checkpoints_of(run):
            yield "checkpoints", _manifested(path)
    for path in found.checkpoints:
        yield "checkpoints", _manifested(path)
    for path in found.exported:
        yield "exported folders", _manifested(path, needed="")
    for path in found.caches:
        yield from _cache(path)


def _manifested(path: Path, **how: str) -> str:
    try:
        verify(path, **how)
    except CheckpointError as error:
        return str(error)
    return ""


def _weights(path: Path) -> str:
    """Of a file that no manifest knows: whether it is whole."""
    from gamut.models.weights import load_weights

    try:
        load_weights(path)
    except CheckpointError as error:
        return str(error)
    return ""


def _cache(path: Path) -> Iterator[tuple[str, str]]:
    from gamut.features import FeatureCache
    from gamut.features.cache import verify as damages_of  # here: torch takes long to import

    if not (path / CACHE).exists():
        print(f"not finished, so not verified: the cache {path}")
        return
    try:
        damages = damages_of(FeatureCache(path))
    except FeatureError as error:
        yield "caches", str(error)
        return
    yield "caches", "; ".join(damage.what for damage in damages)
